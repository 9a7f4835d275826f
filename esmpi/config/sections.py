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
Schedule = Literal["constant", "linear", "cosine"]
INT4_NEEDS_LOW_RANK = (
    "int4 needs noise that is added to the outputs of layers, as a step of 4 bits is larger than a weight's noise: "
    "set es.noise=low_rank, or model.quantization=int8"
)

_FACTOR = 0.5
_END = 0.1
"""Where schedules end by default."""


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
class EsConfig(Section):
    """The population and the update."""

    population_size: int = key(30, minimum=2, maximum=10**7)
    """Number of members of a generation, N."""
    generations: int = key(minimum=0, maximum=10**9, changes_result="no")
    """Number of generations, and so of updates. More of them prolong a finished run."""
    sigma: float = key(1e-3, minimum=1e-12, below=1e3)  # a sigma below float32's resolution would move no weight
    """Scale of the perturbation: a member's weights are theta + sigma * eps."""
    alpha: float | None = key(None, minimum=0, below=1e3)
    """Step size: theta += alpha / N * sum of shaped fitness * eps. null: sigma / 2. 0: theta stays, and the members are
    a random search, whose best ones `esmpi eval --ensemble` lets vote."""
    sigma_schedule: Schedule = "constant"
    """How sigma changes over the generations: not at all, or from its value to `sigma_end` of it, linearly or as half a
    cosine wave."""
    sigma_end: float = key(_END, above=0, maximum=10)
    """The last generation's sigma, as a share of the first one's."""
    alpha_schedule: Schedule = "constant"
    """How alpha changes over the generations."""
    alpha_end: float = key(_END, minimum=0, maximum=10)
    """The last generation's alpha, as a share of the first one's."""
    warmup: int = key(0, minimum=0, maximum=10**9)
    """In so many first generations, alpha rises to its value in equal steps."""
    sigma_warmup: int = key(0, minimum=0, maximum=10**9)
    """The same for sigma."""
    schedule_generations: int | None = key(None, minimum=1, maximum=10**9)
    """Length of the schedules in generations; after that, sigma and alpha stay as they are. null: `generations`. A run
    that is prolonged later must name the former number here."""
    noise: Literal["full", "low_rank"] = "full"
    """full: each weight has noise of its own. low_rank: the noise of a matrix is a product of two thin ones, so that
    the engine can evaluate several members at once; biases and norms have none."""
    rank: int = key(1, minimum=1, maximum=256)
    """Rank of low-rank noise."""
    include: tuple[str, ...] = ("*",)
    """Patterns of the tensors that have noise, by the names in the checkpoint, such as `*.mlp.*`. All others stay as
    they are."""
    exclude: tuple[str, ...] = ()
    """Patterns of tensors that have no noise though `include` names them, such as `*embed_tokens*`."""
    sigma_per_tensor: Literal["none", "std"] = "none"
    """std: sigma and alpha of each tensor are times the standard deviation of its values in the base model."""
    anchor: float = key(0.0, minimum=0, below=1e3)
    """Weight decay towards the base model: after each update, theta moves back by alpha * anchor of its distance."""
    max_distance: float | None = key(None, above=0)
    """Largest Euclidean distance of theta from the base model, over the tensors that have noise. After an update that
    leads farther away, theta is moved back to this distance."""
    shaping: str = key("zscore", plugins="esmpi.es.shapings")
    """How fitness becomes shaped fitness. zscore: minus mean, divided by standard deviation. centered_rank: ranks from
    -0.5 to 0.5. log_rank: the utilities of natural evolution strategies, which tell only the better half apart. top_k:
    the fittest `top_k` members count, all the same. per_prompt: the mean over prompts of z-scores among the members'
    rewards for a prompt. raw: minus mean, so that alpha depends on the scale of the reward."""
    top_k: int | None = key(None, minimum=1, maximum=10**7)
    """With shaping top_k, how many members count. null: a quarter of them."""
    antithetic: bool = False
    """Whether members come in pairs with +eps and -eps."""
    fitness: Literal["mean", "best_of", "pass_at_k", "majority"] = "mean"
    """How several completions of a prompt (sampling.num_samples) become the reward of the prompt; a member's fitness is
    the mean of its prompts' rewards. mean: their mean reward. best_of: the best reward. pass_at_k: an estimate of the
    chance that at least one of k completions is right. majority: the reward of the most frequent answer."""
    fitness_k: int | None = key(None, minimum=1, maximum=10_000)
    """k of pass_at_k, at most sampling.num_samples. null: all of them."""
    dispatch: Literal["static", "dynamic"] = key("static", changes_result="no")
    """Who evaluates which member. static: each rank has a fixed share. dynamic: a rank that is free takes the next
    member, which pays if completions differ in length or nodes in speed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is None:
            object.__setattr__(self, "alpha", self.sigma / 2)
            super().__post_init__()  # alpha has bounds, too
        scheduled = {self.sigma_schedule, self.alpha_schedule} != {"constant"}
        if scheduled and self.schedule_generations is None:
            object.__setattr__(self, "schedule_generations", self.generations or 1)
        require(
            scheduled or self.schedule_generations is None,
            "schedule_generations: has no effect without es.sigma_schedule or es.alpha_schedule",
        )
        for name, schedule in (("sigma_end", self.sigma_schedule), ("alpha_end", self.alpha_schedule)):
            require(
                getattr(self, name) == _END or schedule != "constant",
                f"{name}: has no effect without es.{name.removesuffix('end')}schedule",
            )
        largest = self.step_size * (1 if self.alpha_schedule == "constant" else max(1, self.alpha_end))
        require(
            largest * self.anchor < 1,
            f"anchor: times alpha, {largest:g}, it must be below 1, got {self.anchor:g}",
        )
        require(
            not self.antithetic or self.population_size % 2 == 0,
            f"population_size: antithetic pairs need an even number, got {self.population_size}",
        )
        require(
            self.top_k is None or self.shaping == "top_k",
            f"top_k: has no effect on shaping {self.shaping}: set es.shaping=top_k, too",
        )
        require(
            self.top_k is None or self.top_k < self.population_size,
            f"top_k: must be less than es.population_size, {self.population_size}, got {self.top_k}",
        )
        require(
            self.fitness_k is None or self.fitness == "pass_at_k",
            f"fitness_k: has no effect on es.fitness: {self.fitness}: remove the key, or set es.fitness=pass_at_k",
        )

    @property
    def schedule_length(self) -> int:
        """Number of generations from the beginning of the schedules to their end."""
        return self.schedule_generations or self.generations

    @property
    def noise_rank(self) -> int:
        """Rank of the noise, 0 for full rank."""
        return self.rank if self.noise == "low_rank" else 0

    @property
    def step_size(self) -> float:
        """Alpha, which is never None once the config is checked."""
        assert self.alpha is not None
        return self.alpha


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """The `task` section of a config. A task with keys of its own subclasses it."""

    name: str
    """The task: one that ships with esmpi, `gym:NAME`, `file.py:function`, or one of an installed package."""


HELD_OUT = "held_out"
"""Name of the suite that the problems of `data.eval` make."""
MOST_SUITES = 1000
"""In a run, with those that only `esmpi eval` has evaluated."""


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
    (`org/name` or `org/name:subset`), `generated` by the task, or `builtin` ones that come with the task."""
    eval: str = key(GENERATED, changes_result="by_digest")
    """Held-out problems, from the same sources. Generated ones are never training problems. `split` holds out
    `num_eval` of the training problems, drawn at random. The held-out problems decide which generation is the best."""
    train_split: str = "train"
    """Split of a folder or hub id for training."""
    eval_split: str = "test"
    """Split of a folder or hub id for held-out problems and suites."""
    columns: dict[str, str] = key(factory=dict)
    """Names of columns in the data, by the names that the task expects, such as `problem: question`."""
    few_shot: str | None = None
    """A .jsonl file with objects of `prompt` and `completion`. They precede every prompt as examples."""
    num_train: int | None = key(None, minimum=1)
    """Number of training problems: the first ones of the source, or how many to generate. null: all, or 1000
    generated."""
    num_eval: int | None = key(None, minimum=1)
    """Number of held-out problems: the first ones of the source, or how many to generate. null: all, or 400
    generated."""
    batch_size: int = key(200, minimum=1)
    """Number of prompts of each member in a generation."""
    prompts: Literal["shared", "per_member"] = "shared"
    """Whether all members of a generation have the same prompts, or each has its own. The two members of an antithetic
    pair always share theirs. per_member takes the next `batch_size` prompts of `order` for each member or pair."""
    mini_batch_size: int | None = key(None, minimum=1, changes_result="no")
    """Number of prompts of a member that the engine gets at once, to limit memory; each sample of a prompt counts.
    null: all of them."""
    order: Literal["fixed", "random", "epochs"] = "epochs"
    """Which prompts a generation has. fixed: always the first ones. random: a fresh draw. epochs: all in turn, shuffled
    in each epoch."""

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
            f"batch_size: {self.batch_size} is more than num_train: {self.num_train}; lower it, or raise num_train",
        )
        require(
            self.prompts == "shared" or self.order != "fixed",
            "prompts: per_member has no effect if data.order is fixed: set data.order to epochs or random",
        )


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(Section):
    """How completions are made in training. Evaluation has its own temperature. A task may have other defaults."""

    max_tokens: int = key(1024, minimum=1)
    """Most new tokens of a completion."""
    temperature: float = key(0.0, minimum=0, maximum=100)
    """0 is greedy decoding."""
    top_p: float = key(1.0, above=0, maximum=1)
    """Sample from the smallest set of tokens with this total probability. Needs a temperature above 0."""
    top_k: int | None = key(0, minimum=0)
    """Sample from this many most probable tokens. 0 or null: all. Needs a temperature above 0."""
    min_p: float = key(0.0, minimum=0, maximum=1)
    """Sample from the tokens that are at least this times as probable as the most probable one, at the temperature.
    Needs a temperature above 0."""
    repetition_penalty: float = key(1.0, above=0, maximum=100)
    """Divides positive scores of tokens that the prompt or the completion has, and multiplies negative ones."""
    presence_penalty: float = key(0.0, minimum=-2, maximum=2)
    """Is subtracted from the scores of tokens that the completion has."""
    frequency_penalty: float = key(0.0, minimum=-2, maximum=2)
    """Is subtracted from the score of a token as often as the completion has it."""
    min_tokens: int = key(0, minimum=0)
    """Least new tokens of a completion: before that, no end-of-text token is chosen, and no stop string counts."""
    bad_words: tuple[str, ...] = ()
    """Texts that are not generated: the last token of one is never chosen after its other tokens."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion. What follows the first one is cut off."""
    include_stop: bool = False
    """Whether a completion that `stop` has ended keeps that text at its end."""
    stop_token_ids: tuple[int, ...] = ()
    """Further tokens that end a completion as the model's end-of-text tokens do. They are not part of its text."""
    num_samples: int = key(1, minimum=1, maximum=10_000)
    """Number of completions of each prompt of a member; `es.fitness` says what they are worth together. More than one
    needs a temperature above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is None:
            object.__setattr__(self, "top_k", 0)
        for name, has_effect in (("top_p", self.top_p < 1), ("top_k", self.top_k), ("min_p", self.min_p)):
            require(
                not has_effect or self.temperature > 0,
                f"{name}: has no effect on greedy decoding: set sampling.temperature, too",
            )
        require(
            self.num_samples == 1 or self.temperature > 0,
            "num_samples: several greedy completions are all the same: set sampling.temperature, too",
        )
        require(
            self.min_tokens <= self.max_tokens,
            f"min_tokens: {self.min_tokens} is more than max_tokens: {self.max_tokens}; lower it, or raise max_tokens",
        )
        require("" not in self.stop, "stop: an empty text would end every completion at once")
        require(all(map(str.strip, self.bad_words)), "bad_words: a text without letters or signs cannot be forbidden")
        require(not self.include_stop or bool(self.stop), "include_stop: has no effect without sampling.stop")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(Section):
    """The processes that compute rewards."""

    num_processes: int = key(1, minimum=1, maximum=1024, changes_result="no")
    """Number of processes of each rank, or with `per_node` of each node, that compute rewards, beside generation."""
    per_node: bool = key(False, changes_result="no")
    """Whether the ranks of a node share these processes. For rewards that need much memory or a GPU, such as a reward
    model: it is then loaded `num_processes` times on each node, and not on each rank."""
    time_limit_s: float = key(10.0, above=0, maximum=86400, unit="s", changes_result="no")
    """Time limit for one call of the reward: for one completion, or for all that it gets at once."""
    memory_gib: float = key(8.0, minimum=0.25, maximum=2**20, unit="GiB", changes_result="no")
    """Memory limit of each of these processes."""
    concurrency: int = key(16, minimum=1, maximum=4096, changes_result="no")
    """Most calls of rewards written as coroutines (`async def`) that each of these processes has under way at once."""
    retries: int = key(0, minimum=0, maximum=100, changes_result="no")
    """How often such a call that raised or took too long is made again, after 1, 2, 4, ..., at most 60 seconds."""
    rate_limit: float | None = key(None, above=0, maximum=1e6, unit="calls/s", changes_result="no")
    """Most such calls a second, of all ranks together. Each process has an equal share. null: no limit."""
    failure_reward: float = key(0.0, above=-1e100, below=1e100)
    """Reward of a completion whose reward raised, took too long or ended its process."""
    on_failure: Literal["stop", "continue"] = key("stop", changes_result="no")
    """What the run does if not a single reward of an evaluation or of a generation can be computed, or none applies.
    stop: it ends with the error, before anything is recorded. continue: theta stays as it is in that generation."""


@dataclass(frozen=True, kw_only=True)
class HarnessSuite(Section):
    """A suite of lm-evaluation-harness, as a value of `eval.suites`. Needs `pip install 'esmpi[lm-eval]'`."""

    lm_eval: str = key(changes_result="by_digest")
    """Name of a task, a group or a tag of the harness."""
    include_path: str | None = key(None, changes_result="by_digest")
    """A folder with task files of your own; its tasks take precedence over those that the harness comes with."""
    metric: str | None = key(None, changes_result="by_digest")
    """The metric of the task that counts as accuracy, as `METRIC` or `METRIC,FILTER`; higher must be better. null: acc,
    else exact_match, else the task's first metric, with the task's first filter."""
    limit: int | None = key(None, minimum=1, changes_result="by_digest")
    """Use only so many problems of each task, the first ones. null: all."""
    num_fewshot: int | None = key(None, minimum=0, changes_result="by_digest")
    """Number of solved examples in front of each problem. null: as the task says."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """When and how held-out problems are evaluated."""

    every: int | None = key(None, minimum=1, changes_result="no")
    """Evaluate every so many generations. null: only before the first and after the last."""
    suites: dict[str, str | HarnessSuite] = key(factory=dict, changes_result="by_digest")
    """Further held-out problems by name: sources as for `data.eval`, or tasks of lm-evaluation-harness. They are only
    reported, and do not decide which generation is the best."""
    retention: tuple[str, ...] = ()
    """Names of those suites that show what the model forgets, for `guard.max_retention_drop`."""
    num_samples: int = key(1, minimum=1, maximum=10_000)
    """Number of completions of each problem. More than one gives pass@k, and needs a temperature above 0."""
    temperature: float = key(0.0, minimum=0, maximum=100)
    """0 is greedy decoding."""
    control_every: int | None = key(None, minimum=1, changes_result="no")
    """Every so many generations, also complete the generation's training prompts with theta itself, and record its
    fitness beside the members', as a control. null: never."""
    divergence: bool = key(False, changes_result="no")
    """Whether to estimate the KL divergence from the base model per token, at temperature 1 on the evaluated
    completions, and to report the distance of theta from the base model's weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.num_samples == 1 or self.temperature > 0,
            "num_samples: several greedy completions are all the same: set eval.temperature, too",
        )
        require(len(self.suites) < MOST_SUITES, f"suites: at most {MOST_SUITES - 1}, got {len(self.suites):,}")
        for name, source in self.suites.items():
            require(source not in (GENERATED, SPLIT), f"suites: {name}: {source} is for data.eval: name a source")
            require(is_suite_name(name), f"suites: {name!r}: letters, digits, _ and - only")
            require(name != HELD_OUT, f"suites: {HELD_OUT} is the name of the problems of data.eval")
        for name in self.retention:
            require(name in self.suites, f"retention: {name} is none of eval.suites")

    @property
    def sources(self) -> dict[str, str]:
        """The suites whose problems the run's own task completes and scores: where those come from, by name."""
        return {name: source for name, source in self.suites.items() if isinstance(source, str)}


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Section):
    """What the run does when evaluations get worse. It looks at them whenever `eval.every` has them made."""

    patience: int | None = key(None, minimum=1)
    """Stop after so many evaluations in a row that are no better than the best one."""
    measure: Literal["accuracy", "reward_mean"] = "accuracy"
    """Which result on the held-out problems counts."""
    max_drop: float | None = key(None, minimum=0)
    """Act if the held-out result is worse than the best one by more than this."""
    max_kl: float | None = key(None, above=0)
    """Act if the KL divergence from the base model, per token, is larger than this. Needs `eval.divergence`."""
    max_retention_drop: float | None = key(None, minimum=0, maximum=1)
    """Act if the accuracy of a suite of `eval.retention` is worse than the base model's by more than this."""
    action: Literal["stop", "shrink", "restore"] = "stop"
    """stop: end the run. shrink: multiply alpha by `factor`. restore: take theta back to the best generation with which
    nothing was wrong, and multiply alpha by `factor`."""
    factor: float = key(_FACTOR, above=0, maximum=1)
    """What alpha is multiplied with by shrink and restore."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limits = (self.max_drop, self.max_kl, self.max_retention_drop)
        require(
            self.action == "stop" or any(limit is not None for limit in limits),
            f"action: {self.action} needs a limit: set guard.max_drop, guard.max_kl or guard.max_retention_drop",
        )
        require(self.factor == _FACTOR or self.action != "stop", "factor: has no effect on guard.action: stop")

    @property
    def acts(self) -> bool:
        """Whether it has anything to watch."""
        return any(limit is not None for limit in (self.patience, self.max_drop, self.max_kl, self.max_retention_drop))


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
