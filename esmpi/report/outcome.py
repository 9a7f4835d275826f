"""The outcome of a run: accuracy before and after, how sure it is, where the files are, and what to do next."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from esmpi.config.problems import HELD_OUT
from esmpi.report.certainty import Change, interval, p_text
from esmpi.report.samples import change_of, ends, pairs, read_samples
from esmpi.store.history import History
from esmpi.wording import counted

_UNSURE = 0.05


@dataclass(frozen=True, kw_only=True)
class Result:
    """An evaluation."""

    generation: int
    accuracy: float
    low: float
    """Lower end of the 95 % interval of the accuracy."""
    high: float
    reward: float
    """Mean over completions."""
    num_problems: int

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Return what a row of the run file says; older files do not tell problems from completions."""
        count = row.get("num_problems", math.nan)
        count = row.get("num_samples", math.nan) if math.isnan(count) else count
        problems = 0 if math.isnan(count) else int(count)
        low, high = interval(float(row["accuracy"]), problems)
        return cls(
            generation=int(row["generation"]),
            accuracy=float(row["accuracy"]),
            low=low,
            high=high,
            reward=float(row["reward_mean"]),
            num_problems=problems,
        )

    @property
    def interval_text(self) -> str:
        """The interval in per cent."""
        return "-" if math.isnan(self.low) else f"{100 * self.low:.1f} to {100 * self.high:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Two evaluations of the held-out problems."""

    before: Result
    after: Result
    change: Change | None
    """Compared problem by problem; None if the samples of one of the two are not there."""
    num_evaluations: int
    """Of which the later one was chosen as the best; 0 if it was not chosen."""

    @property
    def test_text(self) -> str:
        """What the test of the problems says, in words."""
        if self.change is None:
            return "the completions of the two evaluations are not there to be compared"
        points = f"{100 * self.change.difference:+.1f} points"
        if not math.isnan(self.change.low):
            points += f", 95 % interval {100 * self.change.low:+.1f} to {100 * self.change.high:+.1f}"
        return f"{points}; paired sign test {p_text(self.change.p_value)}"

    @property
    def caution(self) -> str:
        """What a reader should not overlook; empty if there is nothing."""
        if self.num_evaluations > 1:
            return (
                f"Generation {self.after.generation} was chosen as the best of {self.num_evaluations} evaluations on "
                "these problems, so its accuracy is an optimistic estimate: evaluate it on other problems."
            )
        if self.change is not None and self.change.p_value > _UNSURE:
            return (
                "The difference may be chance: evaluate on more problems (data.num_eval), or train for more "
                "generations."
            )
        return ""


def outcome_of(run: History, generation: int | None = None, chosen: bool = False) -> Outcome | None:
    """Return the outcome of a run, None if the held-out problems were not evaluated twice.

    Parameters
    ----------
    run : History
    generation : int, optional
        Of the later evaluation; default: the last.
    chosen : bool
        Whether this generation was chosen because it is the best one.

    Raises
    ------
    UserError
        If a file of samples is damaged.
    """
    between = ends(run, HELD_OUT, generation)
    if between is None:
        return None
    rows = {int(row["generation"]): row for row in run.evaluations[HELD_OUT]}
    found = pairs(*(read_samples(run, HELD_OUT, one, texts=False) for one in between))
    before, after = (Result.of(rows[one]) for one in between)
    return Outcome(before=before, after=after, change=change_of(found), num_evaluations=len(rows) if chosen else 0)


def percent(share: float) -> str:
    """Return a share in per cent."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def exit_summary(run: History, generation: int, chosen: bool, model: Path | None) -> list[str]:
    """Return the lines that end a run: what it learned, how sure that is, where its files are, and the next command.

    Parameters
    ----------
    run : History
    generation : int
        Whose theta the run ends with.
    chosen : bool
        Whether this generation was chosen because it is the best one.
    model : Path or None
        Folder of the exported model, if there is one.

    Raises
    ------
    UserError
        If a file of samples is damaged.
    """
    here = run.path.parent
    lines = []
    outcome = outcome_of(run, generation, chosen)
    if outcome is not None:
        before, after = outcome.before, outcome.after
        since = "" if before.generation == 0 else f" since generation {before.generation}"
        lines.append(
            f"learned{since}: held-out accuracy {percent(before.accuracy)} -> {percent(after.accuracy)}, "
            f"95 % intervals {before.interval_text} -> {after.interval_text}, "
            f"mean reward {before.reward:.3f} -> {after.reward:.3f}, {counted(after.num_problems, 'problem')}"
        )
        if outcome.change is not None:
            better, worse = outcome.change.num_better, outcome.change.num_worse
            lines.append(f"problem by problem: {better:,} became better, {worse:,} became worse: {outcome.test_text}")
        if outcome.caution:
            lines.append(outcome.caution)
    for suite in sorted(run.evaluations):
        rows = {int(row["generation"]): row for row in run.evaluations[suite]}
        if suite != HELD_OUT and generation in rows and min(rows) < generation:
            was, is_now = (percent(rows[one]["accuracy"]) for one in (min(rows), generation))
            lines.append(f"{suite.replace('_', '-')}: accuracy {was} -> {is_now}")
    places = [f"run file {run.path}", *([f"model {model}"] if model else []), f"completions {here / 'eval'}"]
    lines.append(f"files: {', '.join(places)}")
    lines.append(f"next: esmpi report {shlex.quote(str(here))}")
    return lines
