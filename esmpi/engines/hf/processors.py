"""What changes a batch's scores before the next tokens are chosen, each as vLLM defines it.

A row's scores depend on its own prompt and completion alone. Rows are padded on the left to the longest prompt, and the
padding is no part of a prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from esmpi.engines.base import Request, Sampling
from esmpi.engines.hf.sampler import Sampler


def processors(
    requests: Sequence[Request], sampling: Sampling, mask: torch.Tensor, ends: list[int], tokenizer: Any
) -> list[Any]:
    """Return what a sampling asks for, in the order in which it is applied; nothing for plain greedy decoding.

    Parameters
    ----------
    requests : sequence of Request
        One for each row.
    sampling : Sampling
    mask : torch.Tensor
        0 where the prompts are padded, else 1, (rows, tokens of the longest prompt).
    ends : list of int
        The end-of-text tokens.
    tokenizer
    """
    prompt_length = mask.shape[1]
    found: list[Any] = []
    if sampling.bad_words:
        found.append(BadWords(bad_words_ids(tokenizer, sampling.bad_words), prompt_length))
    if sampling.min_tokens:
        found.append(
            MinNewTokensLengthLogitsProcessor(prompt_length, sampling.min_tokens, ends, device=str(mask.device))
        )
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenalty(sampling.repetition_penalty, mask))
    if sampling.presence_penalty or sampling.frequency_penalty:
        found.append(CountPenalties(sampling.presence_penalty, sampling.frequency_penalty, prompt_length))
    if sampling.temperature > 0:
        # it leaves one token of each row, which the greedy choice takes
        found.append(Sampler(requests, sampling, prompt_length))
    return found


def bad_words_ids(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """Return the sequences of tokens that bad words stand for, each alone, and after a blank where that is another."""
    found = []
    for word in words:
        alone, after_blank = (tokenizer.encode(blank + word.lstrip(), add_special_tokens=False) for blank in ("", " "))
        found.append(alone)
        if len(after_blank) == len(alone) and after_blank[0] != alone[0]:
            found.append(after_blank)
    return found


class BadWords(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Rules out the last token of a sequence where the completion ends with its other tokens.

    transformers' own `NoBadWordsLogitsProcessor` looks into the prompt, too.
    """

    def __init__(self, words: Sequence[Sequence[int]], prompt_length: int):
        self._words = words
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self._prompt_length :]
        scores = scores.clone()
        for *before, last in self._words:
            if len(before) <= new.shape[1]:
                at_end = new[:, new.shape[1] - len(before) :] == torch.tensor(before, device=new.device)
                scores[:, last].masked_fill_(at_end.all(-1), -torch.inf)
        return scores


class RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]  # as above
    """transformers' own penalty, for which padding would count as a token of the prompt."""

    def __init__(self, penalty: float, mask: torch.Tensor):
        self._apply = RepetitionPenaltyLogitsProcessor(float(penalty))
        self._mask = mask.bool()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        length = self._mask.shape[1]
        # a token counts once, however often it is there: the prompt's last one stands in for the padding
        prompts = torch.where(self._mask, input_ids[:, :length], input_ids[:, length - 1 : length])
        penalized: torch.Tensor = self._apply(torch.cat([prompts, input_ids[:, length:]], -1), scores)
        return penalized


class CountPenalties(LogitsProcessor):  # type: ignore[misc]  # as above
    """Subtracts the frequency and the presence penalty, which transformers lacks: OpenAI's definition, as in vLLM."""

    def __init__(self, presence: float, frequency: float, prompt_length: int):
        self._presence, self._frequency = presence, frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        new = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, new, torch.ones_like(new, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)
