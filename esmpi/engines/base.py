"""What an engine is: live weights that can be perturbed, and text made with them. Engines know no tasks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.errors import UserError, said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What the model said after one prompt."""

    text: str
    num_tokens: int
    """New tokens, the end-of-text token included."""
    truncated: bool
    """Whether `max_tokens` cut it off."""
    tokens: tuple[int, ...] = ()
    """The new tokens."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    seed: int = 0
    """For temperature > 0: the same seed and prompts give the same completions."""


class Engine(ABC):
    """A model whose weights ES may change, with theta behind them (see `esmpi.weights.views`)."""

    @abstractmethod
    def perturb(self, seed: int, scale: float) -> None:
        """Write live = cast(theta + scale * eps(seed)); `scale` is sign * sigma."""

    @abstractmethod
    def restore(self) -> None:
        """Write live = cast(theta)."""

    @abstractmethod
    def update(self, seeds: np.ndarray, coefficients: np.ndarray) -> None:
        """Add sum_i coefficient_i * eps_i to theta; the live weights follow at the next perturb or restore.

        `seeds` is (N,) uint64, `coefficients` (N,) float32.
        """

    @abstractmethod
    def load(self, snapshot: Path | None) -> None:
        """Replace theta by a snapshot's, or by the base model's; the live weights follow as after an update.

        Raises
        ------
        UserError
            If the snapshot cannot be read here. Theta is then in part replaced: load another one, or the base.
        """

    @abstractmethod
    def digest(self) -> int:
        """Return the 64-bit digest of theta."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Yield theta: canonical name and float32 tensor of the canonical shape, on the CPU, not to be changed."""

    @abstractmethod
    def live(self) -> Iterator[tuple[str, "torch.Tensor"]]:
        """Yield the live weights: canonical name and tensor of the canonical shape, not to be changed."""

    @abstractmethod
    def aliases(self) -> dict[str, str]:
        """Return the names of tied tensors that are not canonical, with the canonical name of each."""

    @property
    @abstractmethod
    def num_weights(self) -> int:
        """How many weights theta has."""

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """Tokens of a prompt and its completion that the model has room for, None if it has no limit."""

    @abstractmethod
    def render(self, prompt: str | list[dict[str, str]]) -> str:
        """Return the text of a prompt; messages go through the model's chat template."""

    @abstractmethod
    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has."""

    @abstractmethod
    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        """Return the natural logarithm of the probability that the live weights give each token of the completions.

        Whatever the sampling was: of the model's own distribution, at temperature 1. What does not fit into the
        model's length is left out at the end.
        """

    @abstractmethod
    def show_base(self) -> None:
        """Write live = cast(base model), to compare with it; `restore` ends that. Theta stays."""

    @abstractmethod
    def distance(self) -> float:
        """Return the Euclidean norm of theta minus the base model."""

    @abstractmethod
    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Complete each prompt with the live weights; the completions come in the prompts' order."""


def render_chat(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """Return messages as text by a tokenizer's chat template, without what the tokenizer itself puts in front.

    Raises
    ------
    UserError
        If the model has no chat template, or one that refuses these messages.
    """
    if not tokenizer.chat_template:
        raise UserError("task.chat_format: this model has no chat template: choose none, or another form")
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's: it may refuse a system turn, an order, ...
        raise UserError(f"task.chat_format: the model's chat template refuses a prompt: {said(error)}") from error
    first = tokenizer.bos_token
    adds_it = first is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(first) if adds_it else text
