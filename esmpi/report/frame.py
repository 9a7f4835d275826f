"""A frame of `esmpi watch`: one run with its curves and completions, or several runs in a table."""

import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esmpi.report.frame_of_runs import STYLES, several
from esmpi.report.outcome import percent
from esmpi.report.samples import Sample
from esmpi.report.spark import duration, one_line, sparkline
from esmpi.report.watching import Facts, Suite, View
from esmpi.wording import counted

_LABEL = 10
"""Width of the column with the names of figures."""
_WIDE = 130
"""From this width on, completions stand beside the figures."""
_LINES = 2
"""Of a completion."""
_LEAST_SPARK = 6

Row = tuple[str, str, np.ndarray | None, str]
"""Name, value, curve, and what else there is to say; without a curve, the value may be long."""


def frame(views: Sequence[View], console: Console, now: float, footer: str = "") -> RenderableType:
    """Return what a terminal shows.

    Parameters
    ----------
    views : sequence of View
        A single one is shown in full.
    console : Console
        Its size and characters are what the frame has to fit.
    now : float
        Seconds of `time.time()`.
    footer : str
        The last line.
    """
    parts = [_one(views[0], console, now)] if len(views) == 1 else list(several(views, console, now))
    return Group(*parts, *([Text(footer, style="dim", no_wrap=True, overflow="ellipsis")] if footer else []))


def _one(view: View, console: Console, now: float) -> RenderableType:
    width = console.width
    if view.facts is None:
        return Group(_head(view, str(view.directory), ""), *_troubles(view, width))
    facts, wide = view.facts, width >= _WIDE and bool(view.facts.samples)
    left = width if not wide else max(78, width * 11 // 20)
    head = _head(view, facts.name, facts.about)
    figures = Group(
        _progress(facts, left), Text(), _curves(facts, left, console), *_texts(_about(view, facts, now), left)
    )
    if wide:
        room = (console.height - 6) // (_LINES + 2)
        columns = Table.grid(padding=(0, 3, 0, 0))
        columns.add_column(width=left)
        columns.add_column(width=width - left - 3)
        columns.add_row(figures, _samples(facts, width - left - 3, max(2, min(5, room)), console))
        return Group(head, *_troubles(view, width), columns)
    room = (console.height - 20) // (_LINES + 2)
    return Group(head, *_troubles(view, width), figures, _samples(facts, width, max(2, min(4, room)), console))


def _head(view: View, name: str, about: str) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    title = Text(one_line(name, 200), style="bold")
    title.append(f"  {one_line(about, 300)}" if about else "", style="not bold dim")
    ago = f", updated {duration(view.age_s)} ago" if view.facts is not None and view.state != "finished" else ""
    grid.add_row(title, Text.assemble((view.state, f"bold {STYLES[view.state]}"), (ago, "dim")))
    return grid


def _troubles(view: View, width: int) -> Iterator[Text]:
    """Yield what went wrong at the last look."""
    texts = [view.trouble, view.facts.note if view.facts else ""]
    if view.facts is None and not view.trouble:
        texts = ["there is no run file yet"]
    for text in filter(None, texts):
        yield Text(one_line(text, 3 * width), style="dim" if view.state == "waiting" else "yellow", overflow="fold")


def _progress(facts: Facts, width: int) -> RenderableType:
    share = facts.done / max(1, facts.planned)
    label = f"{facts.done:,} of {counted(facts.planned, 'generation')}"
    end = f"{100 * share:.0f} %"
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_row(
        Text(label, style="bold"),
        ProgressBar(facts.planned or 1, facts.done, width=max(4, width - len(label) - len(end) - 4)),
        Text(end),
    )
    return grid


def _curves(facts: Facts, width: int, console: Console) -> RenderableType:
    rows = list(_rows_of_curves(facts))
    value = max(cell_len(row[1]) for row in rows)
    more = min(max(cell_len(row[3]) for row in rows), width // 2)
    spark = max(_LEAST_SPARK, width - _LABEL - value - more - 6)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_LABEL, no_wrap=True, overflow="ellipsis", style="dim")
    grid.add_column(width=value, justify="right", no_wrap=True, style="bold")
    grid.add_column(width=spark, no_wrap=True)
    grid.add_column(width=max(1, width - _LABEL - value - spark - 6), no_wrap=True, overflow="ellipsis", style="dim")
    styles = {"fitness": "blue", "tokens/s": "magenta", "seconds": "magenta"}
    for name, text, curve, what in rows:
        line = "" if curve is None else sparkline(curve, spark, console.options.ascii_only)
        grid.add_row(name, text, Text(line, style=styles.get(name, "green")), Text(what))
    return grid


def _rows_of_curves(facts: Facts) -> Iterator[Row]:
    if facts.done:
        fitness = f"mean; best {facts.fitness_best:.3f}, std {facts.fitness_std:.3f}"
        yield "fitness", f"{facts.fitness[-1]:.3f}", facts.fitness, fitness
    for suite in facts.suites:
        yield suite.name.replace("_", "-"), percent(suite.accuracies[-1]), suite.accuracies, _since(suite)
    if not facts.suites:
        yield "held-out", "-", None, "not evaluated yet"
    if facts.done:
        yield "tokens/s", f"{facts.tokens_per_second[-1]:,.0f}", facts.tokens_per_second, "all ranks together"
        yield "seconds", f"{facts.seconds[-1]:.3g} s", facts.seconds, f"{facts.step_s:.3g} s from one to the next"


def _since(suite: Suite) -> str:
    first, last = suite.accuracies[0], suite.accuracies[-1]
    if len(suite.generations) == 1:
        return f"at generation {suite.generations[0]}, reward {suite.reward:.3f}"
    best = int(np.nanargmax(suite.accuracies)) if not np.isnan(suite.accuracies).all() else 0
    highest = "now" if best == len(suite.accuracies) - 1 else f"{percent(suite.accuracies[best])}"
    at = "" if highest == "now" else f" at {suite.generations[best]}"
    return f"{100 * (last - first):+.1f} since {suite.generations[0]}; best {highest}{at}"


def _about(view: View, facts: Facts, now: float) -> Iterator[tuple[str, Text]]:
    """Yield further lines: a name, and what there is to say."""
    if facts.phases:
        yield "phases", Text(", ".join(f"{name} {100 * share:.0f} %" for name, share in facts.phases.items()))
    if facts.ranks > 1:
        known = "not known" if math.isnan(facts.idle) else f"{100 * facts.idle:.0f} % of the time"
        yield "idle", Text(f"{known}, {counted(facts.ranks, 'rank')}")
    if facts.done:
        yield "failures", _failures(facts)
    for event in facts.events[-2:]:
        yield "guard", Text(one_line(event, 140), style="magenta")
    if facts.no_signal:
        yield "no signal", Text("all members have the same fitness, so nothing is learned", style="yellow")
    if view.state in ("running", "silent"):
        yield "time left", _time_left(view, facts, now)


def _failures(facts: Facts) -> Text:
    if not facts.failures:
        return Text("none")
    kinds = [f"{counted(recently, noun)} {what}, {in_all:,} in all" for noun, what, recently, in_all in facts.failures]
    recently = any(one[2] for one in facts.failures)
    return Text(f"{'; '.join(kinds)}", style="red" if recently else "")


def _time_left(view: View, facts: Facts, now: float) -> Text:
    text = Text(f"{duration(view.left_s)} by generations" if facts.done else "not known before the first generation")
    if facts.done >= facts.planned:
        text = Text("the last generation is done; the run is being completed")
    if view.ends is not None:
        left = view.ends - now
        number = left / facts.step_s if facts.step_s > 0 else math.nan
        after = "" if math.isnan(number) else f", after about {counted(int(max(0, number)), 'generation')}"
        style = "yellow" if left < np.nan_to_num(view.left_s) else ""
        text.append(f"; the job ends in {duration(left)}{after}" if left > 0 else "; its job is over", style=style)
    return text


def _texts(rows: Iterator[tuple[str, Text]], width: int) -> Iterator[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=_LABEL, no_wrap=True, style="dim")
    grid.add_column(width=max(1, width - _LABEL - 2), overflow="fold")
    for name, text in rows:
        grid.add_row(name, text)
    if grid.row_count:
        yield grid


def _samples(facts: Facts, width: int, most: int, console: Console) -> RenderableType:
    if not facts.samples:
        return Text()
    shown = facts.samples[:most]
    lines: list[RenderableType] = [Text(), Text(f"completions of {facts.samples_of}", style="bold", no_wrap=True)]
    for sample in shown:
        right = sample["correct"]
        head = Text.assemble(("right" if right else "wrong", "green" if right else "red"))
        reward = "-" if math.isnan(sample["reward"]) else f"{sample['reward']:.2f}"
        head.append(f"  {reward}  ", style="dim")
        head.append(one_line(_problem(sample), 4 * width))
        head.no_wrap, head.overflow = True, "ellipsis"
        lines += [head, *_cut(sample["completion"], width - 2, console)]
    return Group(*lines)


def _problem(sample: Sample) -> str:
    example = sample["example"]
    if isinstance(example, dict):
        example = {key: value for key, value in example.items() if key != "solution"}
    return example if isinstance(example, str) else json.dumps(example, ensure_ascii=False)


def _cut(text: str, width: int, console: Console) -> list[Text]:
    """Return a text on a few indented lines, with its middle left out if it is longer."""
    most = _LINES * width
    while True:
        shown = one_line(text, most) or "(empty)"
        lines = Text(shown, style="dim").wrap(console, width, overflow="fold")
        if len(lines) <= _LINES or most < 8:
            return [Text(f"  {line.plain.rstrip()}", style="dim") for line in lines[:_LINES]]
        most = most * 7 // 8  # wide characters, or words that did not fit
