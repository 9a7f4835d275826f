"""The sections of a config about problems and completions: `data`, `sampling`, `scoring` and `eval`."""

import re
from dataclasses import dataclass
from typing import Literal

from esmpi.config.keys import Section, key, require

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
