"""Engine `hf`: transformers' own generation, on the CPU or one GPU."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from esmpi.config.keys import key
from esmpi.config.sections import Config
from esmpi.engines.base import EngineConfig, factor_line, memory_line, planned_noise
from esmpi.weights.placement import size

if TYPE_CHECKING:
    from esmpi.model.base_model import BaseModel

ROWS_ON_CPU = 128
"""Completions of a wave: on a CPU, more are no faster (tools/RESULTS.md)."""
ROWS_ON_GPU = 1024
"""Completions of a wave on a GPU if they fit: a guess, as none was measured."""


@dataclass(frozen=True, kw_only=True)
class HfConfig(EngineConfig):
    """Keys of engine hf."""

    engine: ClassVar[str] = "esmpi.engines.hf.engine:HfEngine"
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    kind: str = key("hf", changes_result="no")
    """transformers' own generation."""
    device: Literal["auto", "cpu", "cuda"] = key("auto", changes_result="no")
    """Where the live weights are. auto: on a GPU if this rank has one."""

    @property
    def gpus_per_rank(self) -> int:
        return 0 if self.device == "cpu" else 1

    def prepare(self) -> None:
        from esmpi.engines.vllm.gpus import sees_slices, show_own_gpus

        super().prepare()
        if self.device != "cpu" and sees_slices():
            show_own_gpus(1)  # of several slices, CUDA would find the first only, on every rank

    def plan(self, config: Config, base: "BaseModel") -> list[str]:
        shape = base.config
        line = memory_line(config, base)
        prompts = min(config.data.mini_batch_size or config.completions_per_member, config.completions_per_member)
        waves = []
        if config.es.noise_rank and (self.wave_size != 1 or config.model.quantization == "int4"):
            sizes = [self.wave_size or max(1, rows // prompts) for rows in (ROWS_ON_CPU, ROWS_ON_GPU)]
            waves = [factor_line(config, base, planned_noise(config, base), *sizes)]
        if not {"num_hidden_layers", "num_attention_heads", "hidden_size"} <= shape.keys():
            return [line, *waves]
        heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
        head_size = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        token = 2 * shape["num_hidden_layers"] * heads * head_size * config.model.bytes_per_weight
        cache = size(token * prompts * config.sampling.max_tokens)
        new = f"{prompts} prompts x {config.sampling.max_tokens} new tokens"
        each = " for each member" if waves else ""
        return [f"{line} + cache {cache}{each} ({new}, and the prompts' own)", *waves]
