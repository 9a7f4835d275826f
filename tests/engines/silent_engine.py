"""An engine whose completions have no tokens, not even one that ends the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from esmpi.engines import Completion, Request, Sampling
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine


class SilentEngine(HfEngine):
    """Says nothing."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        return [Completion(text="", num_tokens=0, truncated=False) for _ in requests]


@dataclass(frozen=True, kw_only=True)
class SilentConfig(HfConfig):
    """Keys of the engine."""

    engine: ClassVar[type[HfEngine]] = SilentEngine  # type: ignore[assignment]
    kind: str = "silent"
