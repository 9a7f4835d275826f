"""What an engine is: live weights that can be perturbed, and text made with them. Engines know no tasks."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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
    """A model whose weights ES may change, with theta behind them (see `esmpi.weights`)."""

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
    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has."""

    @abstractmethod
    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[Completion]:
        """Complete each prompt with the live weights; the completions come in the prompts' order."""
