"""Settings side by side: a table and a plot, with mean and standard deviation over the seeds of each setting."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.files import replacing
from esmpi.report.compare import aligned
from esmpi.report.draw import new_figure
from esmpi.store.history import History
from esmpi.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_COLORS = 10
"""Settings that have a colour in the plot; the others are grey."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run of a sweep, as its files show it."""

    name: str
    setting: Mapping[str, str]
    """The values of the keys that are swept, by the key."""
    file: History | None
    """What the run file holds; None if there is none."""
    state: str
    """How far the run is, in words; "finished" if it is."""


def table_of_sweep(entries: Sequence[Entry]) -> str:
    """Return a table with a line for each setting, then a line for each run that is not finished.

    Figures are those of the held-out problems and of the finished runs, as mean ± sample standard deviation over the
    seeds. "best" is the best generation of each run. Seconds are those of training. The first line has the setting
    with the highest accuracy of the best generations, then the highest reward.
    """
    keys = list(entries[0].setting)
    lines = [[*keys, "finished", "accuracy: last", "best", "reward: last", "best", "seconds"]]
    for group in _groups(entries):
        runs = _finished(group)
        last, best = [_last(run) for run in runs], [run.best() or {} for run in runs]
        lines.append(
            [
                *group[0].setting.values(),
                f"{len(runs)}/{len(group)}",
                *(_spread([100 * row["accuracy"] for row in rows], ".1f", " %") for rows in (last, best)),
                *(_spread([row["reward_mean"] for row in rows], ".3f") for rows in (last, best)),
                _spread([sum(float(row["seconds_total"]) for row in run.generations) for run in runs], ".1f"),
            ]
        )
    unfinished = [f"{entry.name}: {entry.state}" for entry in entries if entry.state != "finished"]
    return "\n".join([*aligned(lines, len(keys)), *[""] * bool(unfinished), *unfinished])


def plot_sweep(entries: Sequence[Entry], title: str, path: Path) -> None:
    """Write the picture of a sweep into a PNG file; raise UserError if matplotlib is not installed."""
    figure = draw_sweep(entries, title)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_sweep(entries: Sequence[Entry], title: str) -> "Figure":
    """Return the picture of a sweep: held-out reward and accuracy over generations, a curve for each setting.

    A curve is the mean over those seeds that have an evaluation of the generation, and the band around it one sample
    standard deviation. Runs that are not finished are drawn as far as they are.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    figure = new_figure(11, 4.2)
    from matplotlib.ticker import MaxNLocator

    groups = _groups(entries)
    panels = figure.subplots(1, 2)
    for axes, column, factor, label in zip(
        panels, ("reward_mean", "accuracy"), (1, 100), ("mean reward", "accuracy (%)"), strict=True
    ):
        # the best one last, so that it lies on top
        for rank, group in reversed(list(enumerate(groups))):
            generation, mean, deviation = _curve(group, column, factor)
            color = f"C{rank}" if rank < _MOST_COLORS else "0.8"
            if deviation.any():
                axes.fill_between(
                    generation, mean - deviation, mean + deviation, color=color, alpha=0.12, linewidth=0.6
                )
            axes.plot(generation, mean, color=color, marker="o", markersize=3)
        axes.set(xlabel="generation", ylabel=label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for rank, group in enumerate(groups[:_MOST_COLORS]):
        label = ", ".join(f"{key}={value}" for key, value in group[0].setting.items()) or title
        panels[1].plot([], color=f"C{rank}", marker="o", markersize=3, label=label)
    if (others := len(groups) - _MOST_COLORS) > 0:
        panels[1].plot([], color="0.8", marker="o", markersize=3, label=f"{counted(others, 'other setting')}")
    panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    seeds = max(map(len, groups))
    band = ": mean ± standard deviation" if seeds > 1 else ""
    figure.suptitle(f"{title}, held-out problems, {counted(seeds, 'seed')} of each setting{band}", fontsize=10)
    return figure


def _groups(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Return the runs of each setting, the best setting first, those without a finished run last."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry.setting.values()), []).append(entry)

    def goodness(group: list[Entry]) -> tuple[float, float]:
        best = [row for run in _finished(group) if (row := run.best()) is not None]
        if not best:
            return -np.inf, -np.inf
        return np.mean([row["accuracy"] for row in best]), np.mean([row["reward_mean"] for row in best])

    return sorted(groups.values(), key=goodness, reverse=True)


def _finished(group: Sequence[Entry]) -> list[History]:
    return [entry.file for entry in group if entry.file is not None and entry.state == "finished"]


def _last(run: History) -> dict[str, float]:
    return max(run.evaluations[HELD_OUT], key=lambda row: int(row["generation"]))


def _spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """Return mean ± sample standard deviation; without the latter for a single value."""
    if not values:
        return "-"
    deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}{unit}"


def _curve(group: Sequence[Entry], column: str, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return generations, and mean and sample standard deviation of a figure over the runs that have it there."""
    values: dict[int, list[float]] = {}
    for entry in group:
        for row in entry.file.evaluations.get(HELD_OUT, ()) if entry.file is not None else ():
            values.setdefault(int(row["generation"]), []).append(factor * row[column])
    generations = sorted(values)
    mean = [np.mean(values[generation]) for generation in generations]
    deviation = [np.std(values[g], ddof=1) if len(values[g]) > 1 else 0.0 for g in generations]
    return np.array(generations), np.array(mean), np.array(deviation)
