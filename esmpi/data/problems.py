"""Problems: read from files, made by the task or its own, and which of them a generation sees."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from esmpi.config.problems import BUILTIN, GENERATED, HELD_OUT, SPLIT, DataConfig
from esmpi.data.files import check_source, read_rows
from esmpi.data.problem import Example, Part, ProblemSource
from esmpi.data.shots import read_shots
from esmpi.errors import UserError, nearest
from esmpi.es.random_streams import stream

_LONGEST_HINT = 300
"""Most characters of column names that a message lists."""
_MAX_REPEATS = 1000
"""Number of draws in a row without a new problem after which a generator counts as exhausted."""


@dataclass(frozen=True)
class Problems:
    """The training and the held-out problems of a run."""

    train: list[Example]
    suites: dict[str, list[Example]]
    """Held-out problems by suite; `held_out` is that of `data.eval`."""
    shots: list[Example] = field(default_factory=list)
    """Examples with `prompt` and `completion` that stand in front of every prompt."""

    @property
    def held_out(self) -> list[Example]:
        """The problems of `data.eval`."""
        return self.suites[HELD_OUT]


def load_problems(
    config: DataConfig, task: ProblemSource, run_seed: int, suites: Mapping[str, str] | None = None
) -> Problems:
    """Read or generate the problems; no held-out problem is also a generated training problem.

    `suites` are sources of further held-out problems, by name.

    Raises
    ------
    UserError
        If a source cannot be read, a row is not what the task needs, or there are fewer problems than asked for.
    """
    read = _Reader(config, task)
    parts: dict[Part, list[Example]] = {}
    if config.train != GENERATED:
        wanted = config.num_train if config.eval != SPLIT else None
        parts["train"] = read("train", config.train, config.train_split, wanted)
    if config.eval not in (GENERATED, SPLIT):
        parts["eval"] = read("eval", config.eval, config.eval_split, config.num_eval)
    further = {
        name: read("eval", source, config.eval_split, None, f"eval.suites: {name}")
        for name, source in (suites or {}).items()
    }
    taken = {task.key(example) for examples in parts.values() for example in examples}
    if config.eval == GENERATED:
        parts["eval"] = _generate("eval", config.num_eval, task, run_seed, taken)
    # Suites come last: held-out problems may also be in a suite, and must not change when a suite is added.
    taken |= {task.key(example) for examples in further.values() for example in examples}
    if config.train == GENERATED:
        parts["train"] = _generate("train", config.num_train, task, run_seed, taken)
    if config.eval == SPLIT:
        parts["train"], parts["eval"] = _split_off(parts["train"], config, task, run_seed)
    train = parts["train"]
    if config.batch_size > len(train):
        raise UserError(f"data.batch_size: {config.batch_size} prompts wanted, but there are {len(train)} to train on")
    return Problems(train, {HELD_OUT: parts["eval"]} | further, read_shots(config.few_shot))


def check_files(config: DataConfig, suites: Mapping[str, str] | None = None) -> None:
    """Raise UserError if a data file is missing; looks at names only."""
    sources = {"data.train": config.train, "data.eval": config.eval}
    sources |= {f"eval.suites: {name}": source for name, source in (suites or {}).items()}
    for what, source in sources.items():
        if source not in (BUILTIN, GENERATED, SPLIT):
            check_source(what, source, [BUILTIN, GENERATED])
    if config.few_shot is not None:
        check_source("data.few_shot", config.few_shot, [])


@dataclass(frozen=True)
class _Reader:
    """Reads problems that are not generated."""

    config: DataConfig
    task: ProblemSource

    def __call__(
        self, part: Part, source: str, split: str, count: int | None, what: str | None = None
    ) -> list[Example]:
        what = what or f"data.{part}"
        if source == BUILTIN:
            return _builtin(what, part, self.task, count)
        examples: list[Example] = []
        for place, row in read_rows(what, source, split, count):
            try:
                examples.append(self._example(row))
            except ValueError as error:
                raise UserError(f"{what}: {place}: {error}{self._hint(row)}") from None
        if not examples or (count is not None and len(examples) < count):
            raise UserError(f"data.num_{part}: {count or 1} problems wanted, {source} has {len(examples)}")
        return examples

    def _hint(self, row: dict[str, Any]) -> str:
        columns = f" (columns: {', '.join(row)}; data.columns renames them)"
        return columns if not self.config.columns and len(columns) < _LONGEST_HINT else ""

    def _example(self, row: dict[str, Any]) -> Example:
        missing = sorted(set(self.config.columns.values()) - row.keys())
        if missing:
            raise ValueError(f"no column {missing[0]!r}, which data.columns names{nearest(missing[0], list(row))}")
        example = row | {key: row[column] for key, column in self.config.columns.items()}
        self.task.check(example)
        return example


def _split_off(
    train: list[Example], config: DataConfig, task: ProblemSource, run_seed: int
) -> tuple[list[Example], list[Example]]:
    """Take some of the training problems, drawn at random, as the held-out ones; both stay in their order.

    A problem that is there twice is not on both sides: it is held out, or trained on.
    """
    count = config.num_eval
    assert count is not None  # the config fills it in
    if count >= len(train):
        raise UserError(f"data.num_eval: {count} of {len(train)} problems to be split off leave none to train on")
    chosen = set(stream(run_seed, "held-out split").choice(len(train), count, replace=False).tolist())
    held_out = [example for i, example in enumerate(train) if i in chosen]
    taken = {task.key(example) for example in held_out}
    kept = [example for example in train if task.key(example) not in taken]
    if config.num_train is not None and config.num_train > len(kept):
        raise UserError(f"data.num_train: {config.num_train} problems wanted, {len(kept)} are left to train on")
    return kept[: config.num_train], held_out


def _builtin(what: str, part: Part, task: ProblemSource, count: int | None) -> list[Example]:
    try:
        examples = task.problems(part)
        for example in examples:
            task.check(example)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
    if not examples or (count is not None and len(examples) < count):
        raise UserError(f"data.num_{part}: {count or 1} problems wanted, task {task.name} comes with {len(examples)}")
    return examples[:count]


def _generate(part: str, count: int | None, task: ProblemSource, run_seed: int, taken: set[Hashable]) -> list[Example]:
    """Generate problems that are not `taken`, and take them."""
    assert count is not None  # the config fills it in
    try:
        draw = task.generator(stream(run_seed, f"{part} problems"))
        examples: list[Example] = []
        repeats = 0
        while repeats < _MAX_REPEATS:
            example = draw()
            key = task.key(example)
            repeats += 1
            if key not in taken:
                taken.add(key)
                examples.append(example)
                repeats = 0
            if len(examples) == count:
                return examples
    except ValueError as error:
        raise UserError(f"data.{part}: {error}") from None
    raise UserError(f"data.num_{part}: task {task.name} has only about {len(examples)} different problems, not {count}")
