"""Several runs in a frame of `esmpi watch`: a table with a line for each."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from esmpi.report.outcome import percent
from esmpi.report.spark import duration, one_line, sparkline
from esmpi.report.watching import View
from esmpi.wording import counted, visible_line

STYLES = {
    **{"waiting": "dim", "unreadable": "red", "running": "green", "silent": "yellow", "stopped": "magenta"},
    "finished": "cyan",
}
"""Styles of the states of a run."""
_MOST_TROUBLES = 4
"""Lines below the table."""
_LEAST_SPARK, _MOST_SPARK = 6, 40
_LEAST_NAME = 24
"""Width to which the names of runs are cut before a column is left out."""
_GAP = 2


@dataclass(kw_only=True)
class _Column:
    """A column: cells, or curves that fill the room that is left."""

    head: str
    cells: list[str] = field(default_factory=list)
    curves: list[np.ndarray] | None = None
    justify: Literal["left", "right"] = "right"
    style: str = ""
    rank: int = 0
    """The column with the highest rank is left out first where the terminal is narrow; 0 is never."""
    width: int = 0

    def __post_init__(self) -> None:
        if self.curves is not None:
            self.justify, self.width = "left", _LEAST_SPARK
        else:
            self.width = max(map(cell_len, [self.head, *self.cells]))


def several(views: Sequence[View], console: Console, now: float) -> Iterator[RenderableType]:
    """Yield the parts of a frame: how many runs are in which state, the table, and what a user should know."""
    states = [view.state for view in views]
    tally = ", ".join(f"{states.count(state):,} {state}" for state in STYLES if state in states)
    yield Text(f"{counted(len(views), 'run')}: {tally}", style="bold", no_wrap=True, overflow="ellipsis")
    troubles = [(view, trouble) for view in views for trouble in _troubles(view, now)]
    room = max(3, console.height - 5 - min(len(troubles), _MOST_TROUBLES))
    shown = list(range(len(views)))
    if len(views) > room:  # what is going on matters most
        shown = sorted(sorted(shown, key=lambda i: states[i] in ("finished", "stopped", "waiting"))[:room])
    names = _names(views)
    yield _table([views[i] for i in shown], [names[i] for i in shown], console)
    if len(shown) < len(views):
        yield Text(f"and {counted(len(views) - len(shown), 'run')} more", style="dim")
    for view, trouble in troubles[:_MOST_TROUBLES]:
        line = one_line(f"{view.directory.name}: {trouble}", 3 * console.width)
        yield Text(line, style="yellow", no_wrap=True, overflow="ellipsis")


def _troubles(view: View, now: float) -> Iterator[str]:
    if view.trouble:
        yield view.trouble
    if view.facts is None or view.state != "running":
        return
    if view.facts.no_signal:
        yield "all members have the same fitness, so nothing is learned"
    if view.ends is not None and view.ends - now < np.nan_to_num(view.left_s):
        yield f"its job ends in {duration(view.ends - now)}, before the last generation"


def _names(views: Sequence[View]) -> list[str]:
    """Return the directories without the folders that all of them are in."""
    texts = [str(view.directory) for view in views]
    try:
        common = os.path.commonpath({str(Path(text).parent) for text in texts})
    except ValueError:  # some are absolute and some are not
        return list(map(visible_line, texts))
    return [visible_line(os.path.relpath(text, common) if common else text) for text in texts]


def _table(views: Sequence[View], names: Sequence[str], console: Console) -> RenderableType:
    columns = _fitted(_columns(views, names), console.width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        # a Text, because a head in a str would be read as markup
        table.add_column(
            Text(column.head), width=column.width, justify=column.justify, no_wrap=True, overflow="ellipsis"
        )
    for i, view in enumerate(views):
        cells = []
        for column in columns:
            if column.curves is not None:
                text = sparkline(column.curves[i], column.width, console.options.ascii_only)
            else:
                text = column.cells[i]
            cells.append(Text(text, style=STYLES[view.state] if column.head == "state" else column.style))
        cells[0] = Text(_end_of(names[i], columns[0].width), style="bold")
        table.add_row(*cells)
    return table


def _fitted(columns: list[_Column], width: int) -> list[_Column]:
    """Return the columns that a line has room for, with their widths."""
    while (over := sum(column.width + _GAP for column in columns) - _GAP - width) > 0:
        name, least = columns[0], max(columns, key=lambda column: column.rank)
        if name.width - over >= _LEAST_NAME or least.rank == 0:
            name.width = max(1, name.width - over)
            return columns
        columns = [column for column in columns if column is not least]
    curves = [column for column in columns if column.curves is not None]
    for column in curves:
        column.width = min(_MOST_SPARK, column.width + (-over) // len(curves))
    return columns


def _end_of(name: str, width: int) -> str:
    """Return a name, or its end: names of runs that belong together begin alike."""
    shown = one_line(name, 400)
    while cell_len(shown) > width:
        shown = "…" + shown[2:]
    return shown


def _columns(views: Sequence[View], names: Sequence[str]) -> list[_Column]:
    facts = [view.facts for view in views]
    trained = [one if one and one.done else None for one in facts]
    last = [one.suites[0] if one and one.suites else None for one in facts]
    changes = [100 * (suite.accuracies[-1] - suite.accuracies[0]) if suite else math.nan for suite in last]
    idle = [one.idle if one else math.nan for one in facts]
    failed = [sum(kind[3] for kind in one.failures) if one else 0 for one in facts]
    left = [duration(view.left_s) if view.state in ("running", "silent") else "-" for view in views]
    none = np.empty(0)
    columns = [
        _Column(head="run", cells=[one_line(name, 400) for name in names], justify="left"),
        _Column(head="state", cells=[view.state for view in views], justify="left", rank=1),
        _Column(head="done", cells=[f"{one.done}/{one.planned}" if one else "-" for one in facts]),
        _Column(head="left", cells=left, rank=2),
        _Column(head="fitness", cells=[f"{one.fitness[-1]:.3f}" if one else "-" for one in trained]),
        _Column(head="", curves=[one.fitness if one else none for one in facts], style="blue"),
        _Column(head="held-out", cells=[percent(suite.accuracies[-1]) if suite else "-" for suite in last]),
        _Column(head="since", cells=["-" if math.isnan(one) else f"{one:+.1f}" for one in changes], rank=3),
        _Column(head="", curves=[suite.accuracies if suite else none for suite in last], style="green", rank=4),
        _Column(
            head="tokens/s", cells=[f"{one.tokens_per_second[-1]:,.0f}" if one else "-" for one in trained], rank=5
        ),
        _Column(head="step", cells=[f"{one.step_s:.3g} s" if one else "-" for one in trained], rank=7),
    ]
    if not all(map(math.isnan, idle)):
        cells = ["-" if math.isnan(share) else f"{100 * share:.0f} %" for share in idle]
        columns.append(_Column(head="idle", cells=cells, rank=8))
    if any(failed):
        cells = [f"{number:,}" if number else "-" for number in failed]
        columns.append(_Column(head="failures", cells=cells, style="red", rank=6))
    return columns
