"""The configuration of a run: a frozen dataclass for each section. `esmpi.config.reader` makes it.

The sections `es` and `guard` are in `esmpi.config.search`, and those about problems in `esmpi.config.problems`.
Importing these modules is cheap: no torch, no MPI.
"""

import dataclasses
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from ruamel.yaml import YAML

from esmpi.config.keys import Section, key, require
from esmpi.config.problems import DataConfig, EvalConfig, SamplingConfig, ScoringConfig
from esmpi.config.search import EsConfig, GuardConfig

_LONGEST_NAME = 200
INT4_NEEDS_LOW_RANK = (
    "int4 needs noise that is added to the outputs of layers, as a step of 4 bits is larger than a weight's noise: "
    "set es.noise=low_rank, or model.quantization=int8"
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """Name and place of the run, and how it starts and stops."""

    name: str = key(changes_result="no")  # the directory may have been renamed: run_uuid says which run it is
    """Name of the run; its directory is `<output_dir>/<name>`."""
    output_dir: str = key("runs", changes_result="no")
    """Folder of all runs. Only rank 0 has to be able to write there."""
    seed: int = key(0, minimum=0, maximum=2**63 - 1)
    """Seed of every random stream: noise, generated problems, draws of prompts, and sampling."""
    export_dtype: Literal["float32", "bfloat16", "none"] = key("float32", changes_result="no")
    """Type of the weights in the model folder that is written at the end; float32 is theta, bit for bit. none: no
    folder."""
    export: Literal["last", "best"] = key("last", changes_result="no")
    """Which generation is exported at the end: the last one, or the one with the best held-out accuracy. A run that its
    guard stops exports the best one in any case."""
    fork_from: str | None = None
    """Begin with the first G generations of another run, given as `PATH@G`. Everything but the base model may
    differ."""
    stop_before_limit: float | None = key(60.0, minimum=0, maximum=1e7, unit="s", changes_result="no")
    """In a Slurm job, stop after a generation if the time that is left is less than the longest recent generation plus
    this reserve. null: ignore the time limit."""
    profile: bool = key(False, changes_result="no")
    """Record when each rank did what in one generation, the second after the start. `esmpi report` draws it. All ranks
    synchronize before that generation begins."""
    on_desync: Literal["stop", "repair"] = key("stop", changes_result="no")
    """What the run does if theta or the live weights of a rank have changed without an update, as a defective memory
    changes them; `engine.check_every` finds that. stop: it ends with a message that names the rank. repair: theta is
    replayed from the run file, and the generation is done again; a second time in the same generation it ends."""
    on_rank_loss: Literal["stop", "shrink"] = key("stop", changes_result="no")
    """What happens if a rank other than 0 is killed. stop: the job ends, and resumes when it is started again. shrink:
    the other ranks do the generation again, with the lost rank's members among theirs, and end with the same theta.
    This needs Open MPI 5 or later, started by `mpiexec --with-ft ulfm`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(re.fullmatch(r"[\w.+=,-]+", self.name)),
            f"name: letters, digits and _.+=,- only: {self.name!r}",
        )
        require(self.name not in (".", ".."), f"name: {self.name!r} cannot be the name of a directory")
        # File systems limit names, and temporary files add a suffix to this one.
        size = len(self.name.encode())
        require(size <= _LONGEST_NAME, f"name: must have at most {_LONGEST_NAME} bytes, has {size}")
        require(
            self.fork_from is None or bool(re.fullmatch(r".+@\d{1,10}", self.fork_from)),
            f"fork_from: must be PATH@GENERATION, such as runs/first@100, got {self.fork_from!r}",
        )

    @property
    def fork(self) -> tuple[Path, int] | None:
        """The run directory and the generation of `fork_from`."""
        if self.fork_from is None:
            return None
        path, _, generation = self.fork_from.rpartition("@")
        return Path(path).expanduser(), int(generation)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """The base model, and the type of the live weights."""

    # The model's path does not matter: the digest of its weights shows whether it is the same.
    path: str = key(changes_result="by_digest")
    """A Hugging Face model folder, a hub id (org/name), or `esmpi:tiny_countdown`, which ships with esmpi."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the live weights, with which the engine computes. Theta is float32 in any case. float16 is for GPUs
    without bfloat16 (V100, T4); weights above 65504 become infinite, which a warning tells."""
    quantization: Literal["none", "int8", "fp8", "int4"] = "none"
    """Whether the live weights of linear layers are quantized: to one byte each with a float32 scale for each row, int8
    or fp8 (E4M3), or to int4, two in a byte with a scale for each 64 weights of a row. int4 needs `es.noise: low_rank`,
    which is then added to the outputs of layers and not quantized. Embeddings, the head, norms and biases keep `dtype`,
    in which the engine computes with what the numbers stand for. Theta is float32 in any case."""
    revision: str | None = key(None, changes_result="by_digest")
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = key(False, changes_result="no")
    """Whether Python code that comes with the model may be executed."""
    stage_to: str | None = key(None, changes_result="no")
    """A folder on each node's own disk, such as /scratch/$SLURM_JOB_ID. The first rank of a node copies the model
    there, and all ranks of the node read the copy. null: all ranks read the model where it is."""

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of a live weight."""
        return {"float32": 4, "bfloat16": 2, "float16": 2}[self.dtype]


@dataclass(frozen=True, kw_only=True)
class EngineSection(Section):
    """The keys that all engines have. Each engine has further keys of its own."""

    kind: str = key("hf", changes_result="no")
    """Which engine generates: one that ships with esmpi, `file.py:Class`, or an installed package's."""
    num_threads: int | None = key(None, minimum=1, maximum=4096, changes_result="no")
    """CPU cores of each rank. null: the cores that it may use, shared evenly with the ranks that may use the same."""
    wave_size: int | None = key(None, minimum=1, maximum=10**6, changes_result="no")
    """Most members that are evaluated in one batch, with low-rank noise. null: as many as the engine is fastest with.
    With full-rank noise it is one member at a time."""
    theta_placement: Literal["auto", "device", "host", "host+bf16"] = key("auto", changes_result="no")
    """Where theta is if the live weights are on a GPU. device: beside them. host: in host memory, streamed to the GPU
    for each member; the bits are the same. auto: device if it fits, else host. host+bf16: in host memory, with a
    bfloat16 copy on the GPU from which members are made as cast(bf16(theta) + sigma * eps); only updates are
    streamed."""
    check_every: int = key(10, minimum=0, maximum=10**9, unit="generations", changes_result="no")
    """Every so many generations, and in the last one, check on each rank that theta and the live weights are still what
    they were made to be, bit for bit. On a CPU it takes about as long as perturbing five members. 0: never. The ranks
    compare theta's digest after each update in any case."""
    share_theta: bool = key(False, changes_result="no")
    """Whether the ranks of a node have one theta together, if it is in host memory, and each updates a part of it. The
    bits are the same. Only training does this, not evaluating."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """The `task` section of a config. A task with keys of its own subclasses it."""

    name: str
    """The task: one that ships with esmpi, `gym:NAME`, `file.py:function`, or one of an installed package."""


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig(Section):
    """When theta is written to files beside the run file. Snapshots only make a start faster."""

    every: int | None = key(None, minimum=1, changes_result="no")
    """Write theta every so many generations, after the last one, and when asked to stop. null: never. A start then
    replays the log from the base model, which takes about a nanosecond per weight, member and generation."""
    keep: int = key(2, minimum=1, changes_result="no")
    """Number of latest snapshots to keep; older ones are deleted."""
    best: bool = key(False, changes_result="no")
    """Whether to also keep a snapshot of the generation with the highest held-out accuracy."""


@dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """What is shown on the screen, and where figures go."""

    level: Literal["debug", "info", "warning", "error"] = key("info", changes_result="no")
    """Least severe messages that are shown."""
    sinks: tuple[str, ...] = key((), plugins="esmpi.record.sinks", changes_result="no")
    """Where figures go in addition to the run file and the screen."""
    samples: int = key(0, minimum=0, maximum=10_000, changes_result="no")
    """Number of completions of the best, the worst and a random member that are kept of each generation, in
    `samples/*.jsonl` beside the run file: the first ones of its prompts."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. Sections are described at their classes."""

    run: RunConfig
    model: ModelConfig
    engine: EngineSection
    """The engine's own subclass, which is beside its code."""
    es: EsConfig
    task: TaskConfig
    """The task's own subclass, which is beside its code."""
    data: DataConfig
    sampling: SamplingConfig
    scoring: ScoringConfig
    eval: EvalConfig
    guard: GuardConfig
    snapshot: SnapshotConfig
    log: LogConfig

    def __post_init__(self) -> None:
        es, guard, num_samples = self.es, self.guard, self.sampling.num_samples
        require(
            self.model.quantization == "none" or self.engine.theta_placement != "host+bf16",
            "engine.theta_placement: host+bf16 keeps more on the GPU than model.quantization saves: set it to host, "
            "or to device",
        )
        require(
            self.model.quantization != "int4" or es.noise == "low_rank",
            f"model.quantization: {INT4_NEEDS_LOW_RANK}",
        )
        require(
            num_samples > 1 or es.fitness not in ("best_of", "majority"),
            f"es.fitness: {es.fitness} needs several completions of a prompt: set sampling.num_samples",
        )
        require(
            (es.fitness_k or 1) <= num_samples,
            f"es.fitness_k: {es.fitness_k} is more than sampling.num_samples: {num_samples}",
        )
        require(
            self.data.prompts == "shared" or es.shaping != "per_prompt",
            "es.shaping: per_prompt compares members on the same prompts: set data.prompts=shared",
        )
        taken = [
            ("es.dispatch: dynamic", es.dispatch == "dynamic"),
            ("scoring.per_node", self.scoring.per_node),
            ("engine.share_theta", self.engine.share_theta),
        ]
        for name, is_set in taken if self.run.on_rank_loss == "shrink" else ():
            require(
                not is_set,
                f"run.on_rank_loss: shrink does not go with {name}, which needs what a lost rank has held: change one",
            )
        require(
            guard.max_kl is None or self.eval.divergence,
            "guard.max_kl: the KL divergence is only estimated with eval.divergence=true",
        )
        require(
            guard.max_retention_drop is None or bool(self.eval.retention),
            "guard.max_retention_drop: name the suites in eval.retention",
        )
        require(
            not guard.acts or self.eval.every is not None,
            "guard: it looks at evaluations, so eval.every must be set",
        )

    @property
    def completions_per_member(self) -> int:
        """How many completions each member makes in a generation."""
        return self.data.batch_size * self.sampling.num_samples

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
        yaml.default_flow_style = False
        # its declared type is None, what it starts with
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        yaml.dump(self.to_dict(), stream)
        return stream.getvalue()
