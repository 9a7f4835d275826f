"""An engine whose model is a vector, or a few tensors, and whose completion is the value of a function there.

`engine.kind=tests/es/function_engine.py:FunctionConfig`. Members have real weights and real noise; only the language
model is missing. The functions are maximized, as rewards are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from esmpi.config.keys import key, require
from esmpi.config.sections import ModelConfig
from esmpi.engines import Completion, Engine, EngineConfig, Request, Sampling
from esmpi.model.base_model import BaseModel
from esmpi.mpi.comm import Place
from esmpi.weights.host import Weights
from esmpi.weights.model_weights import ModelWeights
from esmpi.weights.shard import WeightShard, call_here
from esmpi.weights.views import View


@dataclass(frozen=True)
class Function:
    """A function of a vector (D,) float64, and its gradient, (D,) float64."""

    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]


@lru_cache
def direction(dimensions: int) -> np.ndarray:
    """Return the gradient of `linear`: a random direction of length 1, always the same, (D,) float64."""
    drawn = np.random.default_rng(0).standard_normal(dimensions)
    return np.asarray(drawn / np.linalg.norm(drawn))


CONDITION = 100.0
"""Condition number of the ellipsoid."""


@lru_cache
def curvatures(dimensions: int) -> np.ndarray:
    """Return the eigenvalues of the ellipsoid's Hessian: 1 to `CONDITION` in geometric progression, (D,) float64."""
    return np.geomspace(1.0, CONDITION, dimensions)


AMPLITUDE = 10.0
"""Of Rastrigin's cosines, as in the literature."""


def _rastrigin(x: np.ndarray) -> float:
    return -float(np.sum(x * x + AMPLITUDE * (1 - np.cos(2 * np.pi * x))))


FUNCTIONS = {
    "linear": Function(lambda x: float(np.sum(direction(len(x)) * x)), lambda x: direction(len(x))),
    "sphere": Function(lambda x: -0.5 * float(np.sum(x * x)), lambda x: -x),
    "ellipsoid": Function(
        lambda x: -0.5 * float(np.sum(curvatures(len(x)) * x * x)), lambda x: -curvatures(len(x)) * x
    ),
    "rastrigin": Function(_rastrigin, lambda x: -2 * x - 2 * np.pi * AMPLITUDE * np.sin(2 * np.pi * x)),
}

TRANSFORMS: dict[str, Callable[[float], float]] = {
    "none": lambda f: f,
    "affine": lambda f: 3 * f + 7,
    "exp": lambda f: float(np.exp(f)),
    "cubic": lambda f: f**3,
}
"""What may be done to the value; all are strictly increasing."""


class FunctionEngine(Engine):
    """Says the value of a function at the live weights, whatever the prompt."""

    max_length = None

    def __init__(self, model: ModelConfig, config: "FunctionConfig", base: BaseModel, place: Place):
        dtype = getattr(torch, model.dtype)
        live = {name: torch.zeros(base.tensors[name].shape, dtype=dtype) for name in sorted(base.tensors)}
        views = [View.whole(name, tensor) for name, tensor in live.items()]
        weights = Weights(views, lambda view: base.read(view.name, view.rows, view.cols), config.num_threads or 1)
        self.weights = ModelWeights(base, call_here(WeightShard(weights, base)))
        self._live = list(live.values())
        self._value, self._transform = FUNCTIONS[config.function].value, TRANSFORMS[config.transform]

    def render(self, prompt: Any) -> str:
        return str(prompt)

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt) for prompt in prompts]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        x = np.concatenate([tensor.double().numpy().reshape(-1) for tensor in self._live])
        text = repr(self._transform(self._value(x)))  # repr and float lose no bit
        return [Completion(text=text, num_tokens=1, truncated=False) for _ in requests]

    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        return [[0.0] * completion.num_tokens for completion in completions]


@dataclass(frozen=True, kw_only=True)
class FunctionConfig(EngineConfig):
    """Keys of the engine."""

    engine: ClassVar[type[Engine]] = FunctionEngine
    kind: str = key("function", changes_result="no")
    function: str
    """A name of `FUNCTIONS`."""
    transform: Literal["none", "affine", "exp", "cubic"] = "none"
    """What is done to the value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.function in FUNCTIONS, f"function: must be one of {', '.join(FUNCTIONS)}, got {self.function!r}")
