"""Several runs side by side: a line each, with the keys in which their configs differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.identity import differences_of_runs
from esmpi.store.run_file import RunFile, run_file_path
from esmpi.wording import visible_line


def compare(paths: Sequence[str | Path]) -> str:
    """Return a table of runs, the best held-out accuracy first.

    A directory without a readable run file has a line that says so: the runs of a sweep do not all start at once.
    """
    runs, unread = read_runs(paths)
    return "\n".join([*aligned(table(runs), 1), *unread])


def read_runs(paths: Sequence[str | Path]) -> tuple[list[RunFile], list[str]]:
    """Return those runs that can be read, the best held-out accuracy first, and why the others cannot.

    Raises
    ------
    UserError
        If none can be read.
    """
    runs: list[RunFile] = []
    unread: list[str] = []
    for path in paths:
        try:
            runs.append(RunFile.open(run_file_path(path)))
        except UserError as error:
            unread.append(str(error))
    if not runs:
        raise UserError("\n".join(unread))
    return best_first(runs), unread


def best_first(runs: Sequence[RunFile]) -> list[RunFile]:
    """Return runs by their best accuracy."""
    bests = [[run.best(suite) for suite in run.evaluations] for run in runs]
    accuracies = [max((best["accuracy"] for best in found if best is not None), default=-1) for found in bests]
    return [runs[i] for i in sorted(range(len(runs)), key=lambda i: -accuracies[i])]


def table(runs: Sequence[RunFile]) -> list[list[str]]:
    """Return the cells of a table: the head, then a line for each run."""
    suites = sorted({suite for run in runs for suite in run.evaluations})
    values = differing_values(runs)
    head = ["run", *(name.removeprefix("es.") for name in values), "generations", "fitness"]
    for suite in suites:
        head += [f"{suite.replace('_', '-')}: base", "last", "best", "best at"]
    lines = [head]
    for i, run in enumerate(runs):
        cells = [_cell(value[i]) for value in values.values()]
        lines.append([str(run.path.parent), *cells, *_results(run, suites)])
    return lines


def aligned(lines: Sequence[Sequence[str]], num_left: int) -> list[str]:
    """Return the lines of a table, its first columns flush left and the others flush right."""
    lines = [list(map(visible_line, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < num_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]


def differing_values(runs: Sequence[RunFile]) -> dict[str, list[Any]]:
    """Return the keys that make these runs different ones, each with its value in every run."""
    found: dict[str, list[Any]] = {}
    for i, run in enumerate(runs):
        for difference in differences_of_runs(runs[0], run):
            # a run without the key has its default, and one that is like the first has the first one's digest
            own = (other.attributes["config"].get(difference.section, {}) for other in runs)
            values = found.setdefault(difference.name, [keys.get(difference.key, difference.before) for keys in own])
            values[i] = difference.after
    return dict(sorted(found.items()))


def _results(run: RunFile, suites: Sequence[str]) -> list[str]:
    line = [f"{run.num_generations}/{run.attributes['config']['es']['generations']}"]
    line.append(f"{run.generations[-1]['fitness_mean']:.3f}" if run.generations else "-")
    for suite in suites:
        rows = sorted(run.evaluations.get(suite, ()), key=lambda row: int(row["generation"]))
        best = run.best(suite)
        if best is None:
            line += ["-"] * 4
            continue
        before = rows[0] if rows[0]["generation"] == 0 else None  # the base model
        line += ["-" if row is None else f"{100 * row['accuracy']:.1f} %" for row in (before, rows[-1], best)]
        line.append(str(best["generation"]))
    return line


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
