"""The configuration of a run: a frozen dataclass for each section, which checks its values. `config_reader` makes it.

Importing this module is cheap: no torch, no MPI.
"""

import dataclasses
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML

from esmpi.tasks import TaskConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    name: str
    """Name of the run; its directory is `<output_dir>/<name>`."""
    output_dir: str = "runs"
    """Folder of all runs, on a file system that rank 0 can write."""
    seed: int = 0
    """Decides every random stream: noise, generated problems, draws of prompts, sampling."""
    export_dtype: Literal["float32", "bfloat16", "none"] = "float32"
    """Type of the weights in the exported model folder; float32 is theta to the bit."""
    fork_from: str | None = None
    """Begin with the generations of another run: `PATH@G` takes the run directory's first G. All else may differ."""
    stop_before_limit: float | None = 60.0
    """In a Slurm job: stop between generations when less than so many seconds, beside the longest recent generation,
    are left of its time. null: do not look."""
    profile: bool = False
    """Add to the run file when each rank did what in one generation, the second after the start; `esmpi report` draws
    it. The ranks wait for one another before it begins."""

    def __post_init__(self) -> None:
        _require(
            bool(re.fullmatch(r"[\w.+=,-]+", self.name)),
            f"name: letters, digits and _.+=,- only: {self.name!r}",
        )
        _require(self.name not in (".", ".."), f"name: {self.name!r} is no name for a directory")
        _require(0 <= self.seed < 2**63, f"seed: wants 0 <= seed < 2^63, got {self.seed}")
        _require(
            self.fork_from is None or bool(re.fullmatch(r".+@\d{1,10}", self.fork_from)),
            f"fork_from: wants PATH@GENERATION, such as runs/first@100, got {self.fork_from!r}",
        )
        limit = self.stop_before_limit
        _require(limit is None or 0 <= limit <= 1e7, f"stop_before_limit: wants seconds or null, got {limit}")

    @property
    def fork(self) -> tuple[Path, int] | None:
        """The run directory and the generation of `fork_from`."""
        if self.fork_from is None:
            return None
        path, _, generation = self.fork_from.rpartition("@")
        return Path(path).expanduser(), int(generation)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    path: str
    """A Hugging Face model folder, a hub id (org/name), or `esmpi:tiny_countdown`, which ships with esmpi."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the live weights that the engine computes with. Theta is float32 in any case."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run here."""
    stage_to: str | None = None
    """A folder on each node's own disk, such as /scratch/$SLURM_JOB_ID: the first rank of a node copies the model
    there, and all read the copy. null: all ranks read the model where it is."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    kind: Literal["hf", "vllm"] = "hf"
    """What generates: `hf` is transformers' own generation, on the CPU or a GPU; `vllm` is vLLM."""
    num_threads: int | None = None
    """CPU cores of a rank. null: those it may use, shared with the other ranks that may use the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """hf: where the live weights are; auto takes a GPU if this rank has one. (vLLM is built for one device.)"""
    theta_placement: Literal["auto", "device", "host", "host+bf16"] = "auto"
    """Where theta is if the live weights are on a GPU: beside them, or in host memory and streamed (the same bits).
    auto: beside them if it fits. `host+bf16`: in host memory, with a bfloat16 copy on the GPU that stands for it while
    members are evaluated, so that live weights are cast(bf16(theta) + sigma * eps); only updates stream."""
    tensor_parallel_size: int = 1
    """vllm: worker processes, with a GPU each, that share every layer of one model."""
    pipeline_parallel_size: int = 1
    """vllm: groups of workers that share the layers among them."""
    gpu_memory_utilization: float = 0.9
    """vllm: share of a GPU's memory for theta (if it is there), live weights, cache and activations."""
    cpu_kv_cache_gib: int = 1
    """vllm on a CPU: size of the cache, GiB."""
    max_model_len: int | None = None
    """vllm: tokens of a prompt and its completion, at most. null: the model's own limit."""
    max_num_seqs: int | None = None
    """vllm: completions that are generated at once, at most. null: vLLM's default."""
    enforce_eager: bool = False
    """vllm: no CUDA graphs; starts faster, generates slower."""
    prefix_caching: bool = False
    """vllm: compute a beginning that prompts share once a call. Saves time; what shares a cache may round otherwise."""
    self_test: bool = True
    """vllm: make sure at the start that a perturbation of each kind of weight changes the outputs."""
    vllm_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    """vllm: further arguments of `vllm.LLM`, passed as they are."""

    def __post_init__(self) -> None:
        for name in (
            *("num_threads", "tensor_parallel_size", "pipeline_parallel_size", "cpu_kv_cache_gib"),
            *("max_model_len", "max_num_seqs"),
        ):
            value = getattr(self, name)
            _require(value is None or 1 <= value <= 2**31, f"{name}: at least 1, got {value}")
        _require(self.num_threads is None or self.num_threads <= 4096, f"num_threads: {self.num_threads} is too many")
        _require(
            0 < self.gpu_memory_utilization <= 1,
            f"gpu_memory_utilization: wants a share above 0, at most 1, got {self.gpu_memory_utilization}",
        )
        taken = sorted(_SET_BY_ESMPI & self.vllm_args.keys())
        _require(not taken, f"vllm_args: {', '.join(taken)}: esmpi sets this by a key of its own")
        if self.kind == "hf":
            for field in dataclasses.fields(self):
                if field.name not in ("kind", "num_threads", "device", "theta_placement"):
                    default = field.default if field.default is not dataclasses.MISSING else {}
                    _require(getattr(self, field.name) == default, f"{field.name}: only for engine.kind: vllm")
        else:
            _require(self.device == "auto", "device: only for engine.kind: hf; vLLM is built for one device")


_SET_BY_ESMPI = {
    *("model", "dtype", "trust_remote_code", "tensor_parallel_size", "pipeline_parallel_size", "seed"),
    *("gpu_memory_utilization", "enforce_eager", "enable_prefix_caching", "worker_extension_cls"),
    *("max_model_len", "max_num_seqs"),
}


@dataclass(frozen=True, kw_only=True)
class EsConfig:
    population_size: int = 30
    """Members of a generation, N."""
    generations: int
    """How many updates the run makes."""
    sigma: float = 1e-3
    """Perturbation scale: a member's weights are theta + sigma * eps."""
    alpha: float | None = None
    """Step size: theta += alpha / N * sum of shaped fitness times eps. null: sigma / 2, filled in."""
    shaping: Literal["zscore", "centered_rank"] = "zscore"
    """How fitness becomes shaped fitness: z-scores, or ranks from -0.5 to 0.5."""
    antithetic: bool = False
    """Whether members come in pairs of +eps and -eps."""
    dispatch: Literal["static", "dynamic"] = "static"
    """Who evaluates which member: shares that are fixed beforehand, or the next one to whichever rank is free, for
    members of uneven length and nodes of uneven speed. Changes no result."""

    def __post_init__(self) -> None:
        _require(
            2 <= self.population_size <= 10**7, f"population_size: wants 2 to 10 million, got {self.population_size}"
        )
        _require(0 <= self.generations <= 10**9, f"generations: wants 0 to 10^9, got {self.generations}")
        # below float32's resolution of any weight nothing would move
        _require(1e-12 <= self.sigma < 1e3, f"sigma: wants 1e-12 <= sigma < 1000, got {self.sigma}")
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
        _require(1e-12 <= self.step_size < 1e3, f"alpha: wants 1e-12 <= alpha < 1000, got {self.alpha}")
        _require(
            not self.antithetic or self.population_size % 2 == 0,
            f"population_size: antithetic pairs need an even number, got {self.population_size}",
        )

    @property
    def step_size(self) -> float:
        """Alpha, which is never None once the config is checked."""
        assert self.alpha is not None
        return self.alpha


HELD_OUT = "held_out"
"""Name of the suite that the problems of `data.eval` make."""


def is_suite_name(name: str) -> bool:
    """Return whether a suite may be called so: its name is part of file names, and of places in the run file."""
    return re.fullmatch(r"[\w-]+", name) is not None


GENERATED = "generated"
"""Instead of a file: the task makes the problems."""
BUILTIN = "builtin"
"""Instead of a file: the problems that come with the task."""
SPLIT = "split"
"""As `data.eval`: some of the training problems are held out."""
_GENERATED_COUNTS = {"train": 1000, "eval": 400}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: str = GENERATED
    """Training problems: a file (.jsonl, .json, .csv, .parquet), a folder that `datasets` saved to disk, a hub id
    (`org/name` or `org/name:subset`), `generated` by the task, or the `builtin` ones that come with it."""
    eval: str = GENERATED
    """Held-out problems: any of these (generated ones are never training problems), or `split`: `num_eval` of the
    training problems, drawn at random. They choose the best generation; for test suites see `eval.suites`."""
    train_split: str = "train"
    """Split of a folder or hub id to train on."""
    eval_split: str = "test"
    """Split of a folder or hub id for held-out problems and suites."""
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    """What the task's keys are called in the data, where the names differ: such as `problem: question`."""
    few_shot: str | None = None
    """A .jsonl file of objects `prompt`, `completion`, which stand in front of every prompt as examples."""
    num_train: int | None = None
    """Use the first so many training problems of the file or the task; how many to generate (default 1000)."""
    num_eval: int | None = None
    """Use the first so many held-out problems of the file or the task; how many to generate (default 400)."""
    batch_size: int = 200
    """Prompts of a generation, the same for every member."""
    mini_batch_size: int | None = None
    """Prompts that the engine gets at once, to bound memory; null: all of them. Changes no result, but with engine hf
    and a temperature the draws."""
    order: Literal["fixed", "random", "epochs"] = "epochs"
    """Prompts of a generation: always the first `batch_size`; a fresh draw; or all in turn, shuffled each time."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_eval", "batch_size", "mini_batch_size"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name}: at least 1, got {value}")
        _require(self.train != SPLIT, "train: split is for data.eval")
        _require(
            self.train != GENERATED or self.eval != SPLIT,
            "eval: split takes from problems that are there; where the task generates them, it generates these, too",
        )
        for part, count in _GENERATED_COUNTS.items():
            if getattr(self, part) in (GENERATED, SPLIT) and getattr(self, f"num_{part}") is None:
                object.__setattr__(self, f"num_{part}", count)
        _require(
            self.num_train is None or self.batch_size <= self.num_train,
            f"batch_size: {self.batch_size} prompts wanted of num_train: {self.num_train} problems",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    max_tokens: int = 1024
    """New tokens of a completion, at most. Without the key: what the task asks for, and so for `temperature`."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this much probability; needs a temperature."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens: at least 1, got {self.max_tokens}")
        _require(0 <= self.temperature <= 100, f"temperature: wants 0 to 100, got {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p: wants 0 < top_p <= 1, got {self.top_p}")
        _require(
            self.top_p == 1 or self.temperature > 0,
            "top_p: has no effect on greedy decoding: set sampling.temperature, too",
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    num_processes: int = 1
    """Processes of a rank that compute rewards, beside generation."""
    time_limit_s: float = 10.0
    """Seconds that the reward of one completion may take."""
    memory_gib: float = 8.0
    """GiB that such a process may have."""
    failure_reward: float = 0.0
    """What a completion gets whose reward raises, takes too long or ends its process."""

    def __post_init__(self) -> None:
        _require(1 <= self.num_processes <= 1024, f"num_processes: wants 1 to 1024, got {self.num_processes}")
        _require(0 < self.time_limit_s <= 86400, f"time_limit_s: wants seconds, at most a day, got {self.time_limit_s}")
        _require(0.25 <= self.memory_gib <= 2**20, f"memory_gib: wants 0.25 or more, got {self.memory_gib}")
        _require(abs(self.failure_reward) < 1e100, f"failure_reward: wants a number, got {self.failure_reward}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every: int | None = None
    """Evaluate the held-out problems every so many generations; null: only before the first and after the last."""
    suites: dict[str, str] = dataclasses.field(default_factory=dict)
    """Further held-out problems, by the name of the suite: where they are, as in `data.eval`. They are reported only;
    the best generation is chosen by the problems of `data.eval`."""
    num_samples: int = 1
    """Completions of each problem; more than one needs a temperature, and gives pass@k."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    divergence: bool = False
    """Whether to estimate the KL divergence from the base model, per token, on the evaluated completions (of the
    models' own distributions, at temperature 1), and to give the distance of theta from the base model's weights."""

    def __post_init__(self) -> None:
        _require(self.every is None or self.every >= 1, f"every: at least 1, got {self.every}")
        _require(1 <= self.num_samples <= 10_000, f"num_samples: wants 1 to 10,000, got {self.num_samples}")
        _require(
            self.num_samples == 1 or self.temperature > 0,
            "num_samples: several greedy completions are all the same: set eval.temperature, too",
        )
        for name, source in self.suites.items():
            _require(source not in (GENERATED, SPLIT), f"suites: {name}: {source} is for data.eval: name a source")
            _require(is_suite_name(name), f"suites: {name!r}: letters, digits, _ and - only")
            _require(name != HELD_OUT, f"suites: {HELD_OUT} is the name of the problems of data.eval")
        _require(0 <= self.temperature <= 100, f"temperature: wants 0 to 100, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig:
    every: int | None = None
    """Write theta beside the run every so many generations, after the last one, and when asked to stop. null: never;
    a start then replays from the base model, which takes about a nanosecond a weight, member and generation."""
    keep: int = 2
    """How many of the last snapshots stay; the others are deleted."""
    best: bool = False
    """Write theta also when an evaluation has the highest accuracy so far (then mean reward decides)."""

    def __post_init__(self) -> None:
        _require(self.every is None or self.every >= 1, f"every: at least 1, got {self.every}")
        _require(self.keep >= 1, f"keep: at least 1, got {self.keep}")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are shown."""
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where figures go besides the run file and the screen."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections are described at their classes."""

    run: RunConfig
    model: ModelConfig
    engine: EngineConfig
    es: EsConfig
    task: TaskConfig
    data: DataConfig
    sampling: SamplingConfig
    scoring: ScoringConfig
    eval: EvalConfig
    snapshot: SnapshotConfig
    log: LogConfig

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run.output_dir).expanduser() / self.run.name

    def to_dict(self) -> dict[str, Any]:
        """Return the config, fully resolved, in the types that JSON has (so a tuple is a list)."""
        return dict(msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(self))))

    def to_yaml(self) -> str:
        """Return the config, fully resolved, as YAML."""
        stream = io.StringIO()
        yaml = YAML(typ="safe", pure=True)
        # their declared type is None, what they start with
        yaml.default_flow_style, yaml.sort_base_mapping_type_on_output = False, False  # type: ignore[assignment]
        yaml.dump(self.to_dict(), stream)
        return stream.getvalue()
