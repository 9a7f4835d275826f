"""Sampling in which each completion draws from a stream of its own, whatever else is in its batch."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from esmpi.engines.base import Request, Sampling


class Sampler(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Chooses each row's next token, and leaves no other to what comes after.

    transformers draws from one global generator for the whole batch, so that a completion would depend on its
    neighbours: on mini-batches, and on which members share a wave.

    Parameters
    ----------
    requests : sequence of Request
        One for each row.
    sampling : Sampling
    prompt_length : int
        Tokens of the padded prompts.
    """

    def __init__(self, requests: Sequence[Request], sampling: Sampling, prompt_length: int):
        self._sampling = sampling
        self._prompt_length = prompt_length
        streams = {
            seed: np.random.default_rng(seed).random(sampling.max_tokens)
            for seed in {request.seed for request in requests}
        }
        self._draws = torch.from_numpy(np.stack([streams[request.seed] for request in requests]))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (rows, vocabulary) of 0 for the token that is drawn, and of minus infinity for all others."""
        # A perturbed model can overflow; its completions are then noise with a bad reward, not a crash.
        scores = torch.nan_to_num(scores.double() / self._sampling.temperature, nan=0.0)
        chances, tokens = torch.softmax(scores, -1).sort(dim=-1, descending=True)
        sums = chances.cumsum(-1)
        sampling, num_kept = self._sampling, torch.full_like(tokens[:, :1], tokens.shape[1])
        if sampling.min_p:
            num_kept = (chances >= sampling.min_p * chances[:, :1]).sum(-1, keepdim=True)
        if sampling.top_k:
            least = chances[:, min(sampling.top_k, tokens.shape[1]) - 1, None]
            num_kept = torch.minimum(num_kept, (chances >= least).sum(-1, keepdim=True))
        total = sums.gather(1, num_kept - 1) if sampling.min_p or sampling.top_k else 1.0
        # the smallest set of tokens with a share of top_p: those before which it is not reached yet
        kept = torch.minimum(num_kept, (sums - chances < sampling.top_p * total).sum(-1, keepdim=True))
        draws = self._draws[:, input_ids.shape[1] - self._prompt_length, None].to(scores.device)
        below = draws * sums.gather(1, kept - 1)
        place = torch.minimum((sums <= below).sum(-1, keepdim=True), kept - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens.gather(1, place), 0.0)
