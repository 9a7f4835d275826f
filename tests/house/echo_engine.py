"""An engine in one file, as a user would write it: `engine.kind=tests/house/echo_engine.py:EchoConfig`.

It has real weights, theta and noise included, but no language model: what it says to a prompt is the solution of the
problem or not, and that depends on the sum of one tensor of the live weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from esmpi.config.keys import key
from esmpi.config.sections import ModelConfig
from esmpi.engines import Completion, Engine, EngineConfig, Request, Sampling
from esmpi.model.base_model import BaseModel
from esmpi.mpi.comm import Place
from esmpi.weights.host import Weights
from esmpi.weights.model_weights import ModelWeights
from esmpi.weights.shard import WeightShard, call_here
from esmpi.weights.views import View


class EchoEngine(Engine):
    """Says more of what the task asks for, the larger the sum of its first tensor."""

    max_length = None

    def __init__(self, model: ModelConfig, config: "EchoConfig", base: BaseModel, place: Place):
        live = {name: torch.zeros(stored.shape) for name, stored in base.tensors.items()}
        views = [View.whole(name, tensor) for name, tensor in live.items()]
        weights = Weights(views, lambda view: base.read(view.name, view.rows, view.cols), config.num_threads or 1)
        self.weights = ModelWeights(base, call_here(WeightShard(weights, base)))
        self._tensor, self._scale = live[next(iter(live))], config.loudness

    def render(self, prompt: Any) -> str:
        return str(prompt)

    def prompt_lengths(self, prompts: Sequence[str]) -> list[int]:
        return [len(prompt) for prompt in prompts]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        right = int(self._scale * float(self._tensor.double().sum())) % (len(requests) + 1)
        texts = [
            "x</think>\n<answer>1</answer>" if i < right else f"{len(request.prompt)}"
            for i, request in enumerate(requests)
        ]
        return [Completion(text=text, num_tokens=len(text), truncated=False) for text in texts]

    def logprobs(self, prompts: Sequence[str], completions: Sequence[Completion]) -> list[list[float]]:
        return [[0.0] * completion.num_tokens for completion in completions]


@dataclass(frozen=True, kw_only=True)
class EchoConfig(EngineConfig):
    """Keys of the engine."""

    engine: ClassVar[type[Engine]] = EchoEngine
    kind: str = key("echo", changes_result="no")
    loudness: float = key(100.0, above=0)
    """What the sum is multiplied with."""
    remark: str = key("", changes_result="no")
    """A note that has no effect."""
