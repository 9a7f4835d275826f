"""Problems: read from JSON Lines or made by the task, and which of them a generation sees."""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

from esmpi.config import GENERATED, DataConfig
from esmpi.errors import UserError, nearest
from esmpi.streams import stream
from esmpi.tasks import Example, Task

_MAX_REPEATS = 1000
"""Draws in a row that bring no new problem before a generator counts as exhausted."""


@dataclass(frozen=True)
class Problems:
    """The training and the held-out problems of a run."""

    train: list[Example]
    held_out: list[Example]


def load_problems(config: DataConfig, task: Task, run_seed: int) -> Problems:
    """Read or generate the problems; no held-out problem is also a generated training problem.

    Raises
    ------
    UserError
        If a file cannot be read, a line is not what the task needs, or there are fewer problems than asked for.
    """
    files = {
        part: _read(part, source, task, count)
        for part, source, count in (
            ("train", config.train, config.num_train),
            ("eval", config.eval, config.num_eval),
        )
        if source != GENERATED
    }
    taken = {task.key(example) for examples in files.values() for example in examples}
    made = {
        part: _generate(part, count, task, run_seed, taken)
        for part, count in (("eval", config.num_eval), ("train", config.num_train))
        if part not in files
    }
    parts = files | made
    train = parts["train"]
    if config.batch_size > len(train):
        raise UserError(f"data.batch_size: {config.batch_size} prompts wanted, but there are {len(train)} to train on")
    return Problems(train, parts["eval"])


def check_files(config: DataConfig) -> None:
    """Raise UserError if a data file is missing; looks at names only."""
    for part in ("train", "eval"):
        source = getattr(config, part)
        if source != GENERATED and not Path(source).is_file():
            folder = Path(source).parent
            names = [str(folder / entry.name) for entry in folder.glob("*.jsonl")] if folder.is_dir() else []
            raise UserError(f"data.{part}: no file {source}{nearest(source, [*names, GENERATED])}")


def batch(config: DataConfig, train: list[Example], run_seed: int, generation: int) -> list[Example]:
    """Return the prompts' examples of a generation; depends on nothing but the arguments, so it can be resumed."""
    if config.order == "fixed":
        return train[: config.batch_size]
    if config.order == "random":
        chosen = stream(run_seed, "batch", generation).choice(len(train), config.batch_size, replace=False)
        return [train[i] for i in chosen.tolist()]
    start = generation * config.batch_size
    positions = range(start, start + config.batch_size)
    orders = {
        epoch: stream(run_seed, "epoch", epoch).permutation(len(train))
        for epoch in {position // len(train) for position in positions}
    }
    return [train[orders[position // len(train)][position % len(train)]] for position in positions]


def _read(part: str, source: str, task: Task, count: int | None) -> list[Example]:
    try:
        # not splitlines(): a JSON string may hold U+2028 and other characters at which that cuts
        lines = Path(source).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.{part}: cannot read {source}: {error}") from error
    examples: list[Example] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(examples) == count:
            break
        try:
            example = json.loads(line)
            if not isinstance(example, dict):
                raise ValueError("not a JSON object")
            task.check(example)
        except ValueError as error:
            raise UserError(f"data.{part}: {source} line {number}: {error}") from None
        examples.append(example)
    if not examples or (count is not None and len(examples) < count):
        raise UserError(f"data.num_{part}: {count or 1} problems wanted, {source} has {len(examples)}")
    return examples


def _generate(part: str, count: int | None, task: Task, run_seed: int, taken: set[Hashable]) -> list[Example]:
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
