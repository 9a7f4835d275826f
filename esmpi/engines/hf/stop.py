"""Stop strings: each row of a batch ends by itself, at the token where vLLM ends it."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import StoppingCriteria

from esmpi.engines.base import Sampling


class StopStrings(StoppingCriteria):  # type: ignore[misc]  # transformers has no types here
    """Ends rows whose completion has a stop string.

    transformers' own `StopStringCriteria` also finds a stop string that begins in the prompt, knows no least number of
    tokens, and refuses a stop string that the vocabulary cannot spell.

    Parameters
    ----------
    tokenizer
        A fast one of transformers, which can decode one token after another.
    sampling : Sampling
    ends : sequence of int
        The end-of-text tokens.
    num_rows, prompt_length : int
        Rows of the batch, and tokens of the padded prompts.
    """

    def __init__(self, tokenizer: Any, sampling: Sampling, ends: Sequence[int], num_rows: int, prompt_length: int):
        self._tokenizer = tokenizer.backend_tokenizer
        self._sampling = sampling
        self._ends = set(ends)
        self._prompt_length = prompt_length
        self._open = {row: _Text() for row in range(num_rows)}
        self._done = torch.zeros(num_rows, dtype=torch.bool)
        self.stopped: dict[int, tuple[int, str]] = {}
        """Tokens and text of the rows that a stop string has ended."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        """Return which rows have ended, (rows,) of bool. Each call takes the one token that is new."""
        num_tokens = input_ids.shape[1] - self._prompt_length
        tokens = input_ids[:, -1].tolist()
        for row, text in list(self._open.items()):
            before = len(text.text)
            if tokens[row] not in self._ends:
                text.add(self._tokenizer, tokens[row])
                found = first_stop(text.text, before, self._sampling.stop)
                if found is None or num_tokens <= self._sampling.min_tokens:
                    continue
                begin, end = found
                self.stopped[row] = num_tokens, text.text[: end if self._sampling.include_stop else begin]
            del self._open[row]
            self._done[row] = True
        return self._done.to(input_ids.device)


class _Text:
    """The text of a row, to which tokens are added: the bytes of a character are held back until all are there."""

    def __init__(self) -> None:
        self.text = ""
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, tokenizer: Any, token: int) -> None:
        try:
            piece = self._stream.step(tokenizer, token)
        except Exception:  # of no type of its own: bytes that are no text took back a character that was out
            self._stream = DecodeStream(skip_special_tokens=True)
            piece = self._stream.step(tokenizer, token)
        self.text += piece or ""


def first_stop(text: str, before: int, stop: Sequence[str]) -> tuple[int, int] | None:
    """Return where the stop string that ends first begins and ends, None if none ends beyond `before`.

    Of several that end at the same place, the first of the sequence counts.
    """
    starts = [(text.find(one, max(0, before - len(one) + 1)), len(one)) for one in stop]
    found = [(start, start + size) for start, size in starts if start >= 0]
    return min(found, key=lambda place: place[1], default=None)
