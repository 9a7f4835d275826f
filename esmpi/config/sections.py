"""The configuration of a run: a frozen dataclass for each section. `esmpi.config.reader` makes it.

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

from esmpi.config.keys import Section, key, require

_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class RunConfig(Section):
    """What the run is called, where it lies, and how it starts and stops."""

    name: str = key(changes_result="no")  # the directory may have been renamed: run_uuid says which run it is
    """Name of the run; its directory is `<output_dir>/<name>`."""
    output_dir: str = key("runs", changes_result="no")
    """Folder of all runs, on a file system that rank 0 can write."""
    seed: int = key(0, minimum=0, maximum=2**63 - 1)
    """Decides every random stream: noise, generated problems, draws of prompts, sampling."""
    export_dtype: Literal["float32", "bfloat16", "none"] = key("float32", changes_result="no")
    """Type of the weights in the exported model folder; float32 is theta to the bit."""
    fork_from: str | None = None
    """Begin with the generations of another run: `PATH@G` takes the run directory's first G. All else may differ."""
    stop_before_limit: float | None = key(60.0, minimum=0, maximum=1e7, unit="s", changes_result="no")
    """In a Slurm job, stop between generations when less than this time, beside the longest recent generation, is left
    of the job's time limit. null: ignore the time limit."""
    profile: bool = key(False, changes_result="no")
    """Add to the run file when each rank did what in one generation, the second after the start; `esmpi report` draws
    it. The ranks wait for one another before it begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(re.fullmatch(r"[\w.+=,-]+", self.name)),
            f"name: letters, digits and _.+=,- only: {self.name!r}",
        )
        require(self.name not in (".", ".."), f"name: {self.name!r} cannot be the name of a directory")
        # with what is added to it, such as for temporary files, it must not be longer than file systems allow
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

    # Where the model lies does not matter: the digest of its weights says whether it is the same.
    path: str = key(changes_result="by_digest")
    """A Hugging Face model folder, a hub id (org/name), or `esmpi:tiny_countdown`, which ships with esmpi."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the live weights that the engine computes with. Theta is float32 in any case."""
    revision: str | None = key(None, changes_result="by_digest")
    """Branch, tag or commit of a hub id."""
    trust_remote_code: bool = key(False, changes_result="no")
    """Whether code that comes with the model may run here."""
    stage_to: str | None = key(None, changes_result="no")
    """A folder on each node's own disk, such as /scratch/$SLURM_JOB_ID: the first rank of a node copies the model
    there, and all read the copy. null: all ranks read the model where it is."""

    @property
    def bytes_per_weight(self) -> int:
        """Bytes of a live weight."""
        return {"float32": 4, "bfloat16": 2}[self.dtype]


@dataclass(frozen=True, kw_only=True)
class EngineSection(Section):
    """The keys that all engines have; each engine adds its own beside its code, see `esmpi.engines.base`."""

    kind: str = key("hf", changes_result="no")
    """Which engine generates: one that ships with esmpi, `file.py:Class`, or an installed package's."""
    num_threads: int | None = key(None, minimum=1, maximum=4096, changes_result="no")
    """CPU cores of a rank. null: those it may use, shared with the other ranks that may use the same."""
    theta_placement: Literal["auto", "device", "host", "host+bf16"] = key("auto", changes_result="no")
    """Where theta is if the live weights are on a GPU: beside them, or in host memory and streamed (the same bits).
    auto: beside them if it fits. `host+bf16`: in host memory, with a bfloat16 copy on the GPU that stands for it while
    members are evaluated, so that live weights are cast(bf16(theta) + sigma * eps); only updates stream."""


@dataclass(frozen=True, kw_only=True)
class EsConfig(Section):
    """The members of a generation and the update."""

    population_size: int = key(30, minimum=2, maximum=10**7)
    """Members of a generation, N."""
    generations: int = key(minimum=0, maximum=10**9, changes_result="no")
    """How many updates the run makes."""
    sigma: float = key(1e-3, minimum=1e-12, below=1e3)  # below float32's resolution of any weight nothing would move
    """Perturbation scale: a member's weights are theta + sigma * eps."""
    alpha: float | None = key(None, minimum=1e-12, below=1e3)
    """Step size: theta += alpha / N * sum of shaped fitness times eps. null: sigma / 2, filled in."""
    shaping: str = key("zscore", plugins="esmpi.es.shapings")
    """How fitness becomes shaped fitness: z-scores, or ranks from -0.5 to 0.5 (centered_rank)."""
    antithetic: bool = False
    """Whether members come in pairs of +eps and -eps."""
    dispatch: Literal["static", "dynamic"] = key("static", changes_result="no")
    """Who evaluates which member: shares that are fixed beforehand, or the next one to whichever rank is free, for
    members of uneven length and nodes of uneven speed. Changes no result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
            super().__post_init__()  # alpha has bounds, too
        require(
            not self.antithetic or self.population_size % 2 == 0,
            f"population_size: antithetic pairs need an even number, got {self.population_size}",
        )

    @property
    def step_size(self) -> float:
        """Alpha, which is never None once the config is checked."""
        assert self.alpha is not None
        return self.alpha


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """The `task` section of a config. A task with keys of its own subclasses it."""

    name: str
    """Which task: one that ships with esmpi, `gym:<name>`, `file.py:function`, or an installed package's."""


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
class DataConfig(Section):
    """The problems, and how many of them a generation sees."""

    train: str = key(GENERATED, changes_result="by_digest")
    """Training problems: a file (.jsonl, .json, .csv, .parquet), a folder that `datasets` saved to disk, a hub id
    (`org/name` or `org/name:subset`), `generated` by the task, or the `builtin` ones that come with it."""
    eval: str = key(GENERATED, changes_result="by_digest")
    """Held-out problems: any of these (generated ones are never training problems), or `split`: `num_eval` of the
    training problems, drawn at random. They choose the best generation; for test suites see `eval.suites`."""
    train_split: str = "train"
    """Split of a folder or hub id to train on."""
    eval_split: str = "test"
    """Split of a folder or hub id for held-out problems and suites."""
    columns: dict[str, str] = key(factory=dict)
    """What the task's keys are called in the data, where the names differ: such as `problem: question`."""
    few_shot: str | None = None
    """A .jsonl file of objects `prompt`, `completion`, which stand in front of every prompt as examples."""
    num_train: int | None = key(None, minimum=1)
    """Use the first so many training problems of the file or the task; how many to generate (default 1000)."""
    num_eval: int | None = key(None, minimum=1)
    """Use the first so many held-out problems of the file or the task; how many to generate (default 400)."""
    batch_size: int = key(200, minimum=1)
    """Prompts of a generation, the same for every member."""
    mini_batch_size: int | None = key(None, minimum=1, changes_result="if_sampled")
    """Prompts that the engine gets at once, to bound memory; null: all of them. Changes no result, but with engine hf
    and a temperature the draws."""
    order: Literal["fixed", "random", "epochs"] = "epochs"
    """Prompts of a generation: always the first `batch_size`; a fresh draw; or all in turn, shuffled each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.train != SPLIT, "train: split is for data.eval")
        require(
            self.train != GENERATED or self.eval != SPLIT,
            "eval: split takes from problems that are there; where the task generates them, it generates these, too",
        )
        for part, count in _GENERATED_COUNTS.items():
            if getattr(self, part) in (GENERATED, SPLIT) and getattr(self, f"num_{part}") is None:
                object.__setattr__(self, f"num_{part}", count)
        require(
            self.num_train is None or self.batch_size <= self.num_train,
            f"batch_size: {self.batch_size} prompts wanted of num_train: {self.num_train} problems",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section):
    """How completions are sampled in training; evaluation has a temperature of its own."""

    max_tokens: int = key(1024, minimum=1)
    """New tokens of a completion, at most. Without the key: what the task asks for, and so for `temperature`."""
    temperature: float = key(0.0, minimum=0, maximum=100)
    """0 is greedy decoding."""
    top_p: float = key(1.0, above=0, maximum=1)
    """Sample from the smallest set of tokens with this much probability; needs a temperature."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.top_p == 1 or self.temperature > 0,
            "top_p: has no effect on greedy decoding: set sampling.temperature, too",
        )


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(Section):
    """The processes that compute rewards."""

    num_processes: int = key(1, minimum=1, maximum=1024, changes_result="no")
    """Processes of a rank that compute rewards, beside generation."""
    time_limit_s: float = key(10.0, above=0, maximum=86400, unit="s", changes_result="no")
    """Seconds that the reward of one completion may take."""
    memory_gib: float = key(8.0, minimum=0.25, maximum=2**20, unit="GiB", changes_result="no")
    """GiB that such a process may have."""
    failure_reward: float = key(0.0, above=-1e100, below=1e100)
    """What a completion gets whose reward raises, takes too long or ends its process."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """When and how held-out problems are evaluated."""

    every: int | None = key(None, minimum=1, changes_result="no")
    """Evaluate the held-out problems every so many generations; null: only before the first and after the last."""
    suites: dict[str, str] = key(factory=dict, changes_result="by_digest")
    """Further held-out problems, by the name of the suite: where they are, as in `data.eval`. They are reported only;
    the best generation is chosen by the problems of `data.eval`."""
    num_samples: int = key(1, minimum=1, maximum=10_000)
    """Completions of each problem; more than one needs a temperature, and gives pass@k."""
    temperature: float = key(0.0, minimum=0, maximum=100)
    """0 is greedy decoding."""
    divergence: bool = key(False, changes_result="no")
    """Whether to estimate the KL divergence from the base model, per token, on the evaluated completions (of the
    models' own distributions, at temperature 1), and to give the distance of theta from the base model's weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_samples == 1 or self.temperature > 0,
            "num_samples: several greedy completions are all the same: set eval.temperature, too",
        )
        for name, source in self.suites.items():
            require(source not in (GENERATED, SPLIT), f"suites: {name}: {source} is for data.eval: name a source")
            require(is_suite_name(name), f"suites: {name!r}: letters, digits, _ and - only")
            require(name != HELD_OUT, f"suites: {HELD_OUT} is the name of the problems of data.eval")


@dataclass(frozen=True, kw_only=True)
class SnapshotConfig(Section):
    """When theta is written beside the run."""

    every: int | None = key(None, minimum=1, changes_result="no")
    """Write theta beside the run every so many generations, after the last one, and when asked to stop. null: never;
    a start then replays from the base model, which takes about a nanosecond a weight, member and generation."""
    keep: int = key(2, minimum=1, changes_result="no")
    """How many of the last snapshots stay; the others are deleted."""
    best: bool = key(False, changes_result="no")
    """Write theta also when an evaluation has the highest accuracy so far (then mean reward decides)."""


@dataclass(frozen=True, kw_only=True)
class LogConfig(Section):
    """What is shown, and where figures go."""

    level: Literal["debug", "info", "warning", "error"] = key("info", changes_result="no")
    """The least severe messages that are shown."""
    sinks: tuple[str, ...] = key((), plugins="esmpi.record.sinks", changes_result="no")
    """Where figures go besides the run file and the screen: tensorboard, wandb."""


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
