"""Completions of members, which `log.samples` keeps of each generation: those that a page has room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.errors import UserError
from esmpi.files import read_json_lines
from esmpi.report.samples import cut, problem_text
from esmpi.report.text import num_bytes
from esmpi.store.history import History
from esmpi.store.run_file import member_samples_path

_MOST_GENERATIONS = 300
"""Between which a reader can choose."""
_MOST_OF_A_MEMBER = 4
_MOST_CHARACTERS = 800
"""Of a completion that are shown."""
_MOST_READ = 100 * 2**20
"""Bytes of files that are read."""


@dataclass(frozen=True, kw_only=True)
class MemberSample:
    """A completion of a member as a page shows it."""

    problem: str
    completion: str
    reward: str
    """With its parts, if it has any."""
    correct: bool


@dataclass(frozen=True, kw_only=True)
class SampledMember:
    """A member of which completions were kept."""

    which: str
    """best, worst or random."""
    member: int
    fitness: float
    samples: Sequence[MemberSample]


@dataclass(frozen=True, kw_only=True)
class SampledGeneration:
    """The members of a generation of which completions were kept."""

    generation: int
    members: Sequence[SampledMember]

    @property
    def size(self) -> int:
        """Bytes that it takes in a page, about."""
        texts = [text for one in self.members for s in one.samples for text in (s.problem, s.completion, s.reward)]
        return 300 + 400 * len(texts) // 3 + sum(map(num_bytes, texts))


def generations_with_samples(run: History) -> list[int]:
    """Return the committed generations of which completions of members were kept, ascending."""
    folder = member_samples_path(run.path, 0).parent
    numbers = (
        [path.stem.removeprefix("g") for path in folder.glob("g*.jsonl")] if not run.attributes["log_only"] else []
    )
    return sorted(number for text in numbers if text.isdecimal() and (number := int(text)) < run.num_generations)


def choose_generations(run: History, most_bytes: int) -> list[SampledGeneration]:
    """Return generations to show, ascending: all, or as many as there is room for, at equal distances.

    Raises
    ------
    UserError
        If a file is damaged.
    """
    known = generations_with_samples(run)
    if not known:
        return []
    largest = max(member_samples_path(run.path, generation).stat().st_size for generation in known)
    count = min(len(known), _MOST_GENERATIONS, max(1, _MOST_READ // max(1, largest)))
    while True:
        places = np.unique(np.linspace(len(known) - 1, 0, count).round().astype(int))  # a single one is the last
        found = [read_generation(run, known[place]) for place in places]
        size = sum(one.size for one in found)
        if size <= most_bytes or count == 1:
            return found
        count = max(1, min(count - 1, count * most_bytes // size))


def read_generation(run: History, generation: int) -> SampledGeneration:
    """Return the first completions of the members of a generation; raise as `choose_generations` does."""
    path = member_samples_path(run.path, generation)
    try:
        members: dict[str, list[Mapping[str, Any]]] = {}
        for line in read_json_lines(path, inside=run.path.parent):
            members.setdefault(str(line["which"]), []).append(line)
        return SampledGeneration(
            generation=generation,
            members=[
                SampledMember(
                    which=which,
                    member=int(rows[0]["member"]),
                    fitness=float(rows[0]["fitness"]),
                    samples=[_shown(row) for row in rows[:_MOST_OF_A_MEMBER]],
                )
                for which, rows in members.items()
            ],
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged: {type(error).__name__}: {error}")


def _shown(row: Mapping[str, Any]) -> MemberSample:
    reward = "no reward" if row.get("reward") is None else f"reward {float(row['reward']):.3g}"
    parts = "".join(f", {name} {float(value):.3g}" for name, value in (row.get("figures") or {}).items())
    return MemberSample(
        problem=problem_text(row["example"]),
        completion=cut(str(row["completion"]), _MOST_CHARACTERS),
        reward=cut(reward + parts, 300),
        correct=bool(row.get("correct")),
    )
