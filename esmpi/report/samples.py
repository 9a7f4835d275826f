"""Completions of two evaluations side by side: what became right or wrong, with the words that changed."""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

from esmpi.errors import UserError
from esmpi.files import read_json_lines
from esmpi.report.certainty import Change, change
from esmpi.report.text import num_bytes
from esmpi.store.history import History
from esmpi.store.run_file import samples_path

KINDS = ("became right", "became wrong", "still wrong", "still right")
"""What can become of a completion, in the order in which a page shows them."""

_MOST_CHARACTERS = 1200
"""Of a text that are shown."""
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")
"""Words with the space after them: with spaces of their own, comparing texts takes much longer."""

Sample = dict[str, Any]
"""A line of an evaluation's file: see `esmpi.evaluate`."""
Pair = tuple[Sample, Sample]
"""The same completion of the same problem, before and after."""
Marked = list[tuple[bool, str]]
"""A text in pieces, each with whether the other text lacks it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pair as a page shows it."""

    kind: str
    problem: str
    prompt: str
    before: Marked
    after: Marked
    reward_before: float
    reward_after: float
    size: int
    """Bytes that it takes in a page, about."""


def read_samples(
    run: History, suite: str, generation: int, texts: bool = True, most: int | None = None
) -> list[Sample]:
    """Return the samples of an evaluation; none if their file is missing, as in a run that was copied without it.

    Without `texts`, prompts and completions are left out: they are most of what a file holds, which may be much. With
    `most`, only so many lines are read.

    Raises
    ------
    UserError
        If the file is damaged.
    """
    path = samples_path(run.path, suite, generation)
    try:
        lines = read_json_lines(path, inside=run.path.parent)
        return [_checked(sample, texts) for sample in islice(lines, most)]
    except OSError:
        return []
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _checked(sample: Any, texts: bool) -> Sample:
    if not isinstance(sample, dict) or not isinstance(sample.get("completion"), str) or "example" not in sample:
        raise ValueError("a line is no sample")
    if not all(type(sample.get(key, 0)) is int for key in ("index", "sample")):
        raise ValueError("a line does not say of which problem it is")
    found = {key: sample[key] for key in ("index", "sample", "example") if key in sample}
    if texts:
        found |= {"prompt": str(sample.get("prompt", "")), "completion": sample["completion"]}
    return found | {
        "reward": float(sample["reward"]) if sample.get("reward") is not None else float("nan"),
        "correct": bool(sample.get("correct")),
    }


def ends(run: History, suite: str, last: int | None = None) -> tuple[int, int] | None:
    """Return the generations of the first evaluation of a suite and of another one, by default the last.

    None if there are no two.
    """
    known = sorted(int(row["generation"]) for row in run.evaluations.get(suite, ()))
    end = known[-1] if known and last is None else last
    return (known[0], end) if end in known and end != known[0] else None


def pairs(before: Sequence[Sample], after: Sequence[Sample]) -> list[Pair]:
    """Return the completions that both evaluations have, in their order; none if they are of other problems."""
    old = {_place(sample, i): sample for i, sample in enumerate(before)}
    found = [(old[_place(new, i)], new) for i, new in enumerate(after) if _place(new, i) in old]
    return found if all(one["example"] == other["example"] for one, other in found) else []


def _place(sample: Mapping[str, Any], line: int) -> tuple[int, int]:
    """Return the problem's number, and which of its completions this is: old files have neither."""
    return int(sample.get("index", line)), int(sample.get("sample", 0))


def change_of(found: Sequence[Pair]) -> Change | None:
    """Return how the problems of some pairs changed, None without any.

    Completions to which no reward applied count neither before nor after, as for the accuracy.
    """
    before: dict[int, list[bool]] = {}
    after: dict[int, list[bool]] = {}
    for line, (old, new) in enumerate(found):
        if math.isnan(old["reward"] + new["reward"]):
            continue
        before.setdefault(_place(new, line)[0], []).append(old["correct"])
        after.setdefault(_place(new, line)[0], []).append(new["correct"])
    return change(list(before.values()), list(after.values())) if before else None


def kind_of(pair: Pair) -> str:
    """Return which of `KINDS` a pair is."""
    was, is_now = (sample["correct"] for sample in pair)
    return KINDS[(0 if is_now else 2) if not was else (3 if is_now else 1)]


def choose(found: Sequence[Pair], most_bytes: int) -> list[Shown]:
    """Return pairs to show, sorted by kind: as many of each kind in turn as have room."""
    queues = [[pair for pair in found if kind_of(pair) == kind] for kind in KINDS]
    chosen: list[Shown] = []
    room = most_bytes
    for turn in range(max(map(len, queues), default=0)):
        for queue in queues:
            if turn < len(queue):
                shown = show(queue[turn])
                room -= shown.size
                if room < 0:
                    return sorted(chosen, key=lambda one: KINDS.index(one.kind))
                chosen.append(shown)
    return sorted(chosen, key=lambda one: KINDS.index(one.kind))


def show(pair: Pair) -> Shown:
    """Return a pair as it is shown: long texts cut, and the words marked that only one of the two has."""
    old, new = pair
    texts = [cut(sample["completion"], _MOST_CHARACTERS) for sample in pair]
    before, after = marked(*texts)
    problem = problem_text(new["example"])
    prompt = cut(new["prompt"], _MOST_CHARACTERS)
    return Shown(
        kind=kind_of(pair),
        problem=problem,
        prompt=prompt,
        before=before,
        after=after,
        reward_before=old["reward"],
        reward_after=new["reward"],
        size=num_bytes(problem + prompt + "".join(text for _, text in before + after)) + 20 * len(before + after) + 900,
    )


def marked(before: str, after: str) -> tuple[Marked, Marked]:
    """Return two texts in pieces, with what only one of them has marked, word by word."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    left: Marked = []
    right: Marked = []
    for tag, a, b, c, d in SequenceMatcher(
        None, [w.strip() for w in old], [w.strip() for w in new], autojunk=False
    ).get_opcodes():
        for side, words in ((left, old[a:b]), (right, new[c:d])):
            text = "".join(words)
            bare = text.rstrip() if tag != "equal" else text
            side += [(marks, piece) for marks, piece in ((tag != "equal", bare), (False, text[len(bare) :])) if piece]
    return left, right


def problem_text(example: Any) -> str:
    """Return a problem as a page shows it: long ones cut, and without its solution."""
    if isinstance(example, dict):
        example = {key: value for key, value in example.items() if key != "solution"}
    return cut(example if isinstance(example, str) else json.dumps(example, ensure_ascii=False), 300)


def cut(text: str, most: int) -> str:
    """Return a text with at most about so many characters, of which the middle ones are left out."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[: most // 2]} [... {left_out:,} characters ...] {text[-most // 2 :]}"


def samples_of_all(
    run: History, suite: str, most_files: int = 40, most_bytes: int = 100 * 2**20
) -> Iterator[tuple[int, list[Sample]]]:
    """Yield the samples of evaluations by generation, the last one first: of so many, and as far as there is room."""
    known = sorted((int(row["generation"]) for row in run.evaluations.get(suite, ())), reverse=True)
    for generation in known[:: -(-len(known) // most_files) or 1]:
        path = samples_path(run.path, suite, generation)
        most_bytes -= path.stat().st_size if path.exists() else 0
        if most_bytes < 0:
            return
        if samples := read_samples(run, suite, generation, texts=False):
            yield generation, samples
