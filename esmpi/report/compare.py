"""Several runs side by side: a line each, with the keys in which their configs differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.store.run_file import RunFile, run_file_path

_NO_DIFFERENCE = (
    "run.name",
    "es.generations",
    "es.dispatch",
    "run.output_dir",
    "run.stop_before_limit",
    "run.profile",
    "log.",
    "engine.",
    "model.path",
)
"""Keys that say nothing about what a run is."""


def compare(paths: Sequence[str | Path]) -> str:
    """Return a table of runs, the best held-out accuracy first.

    A directory without a readable run file has a line that says so: the runs of a sweep do not all start at once.
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
    keys = _differing_keys(runs)
    suites = sorted({suite for run in runs for suite in run.evaluations})
    head = ["run", *(key.removeprefix("es.") for key in keys), "generations", "fitness"]
    for suite in suites:
        head += [f"{suite.replace('_', '-')} before", "after", "best", "at"]
    runs.sort(
        key=lambda run: (
            -max((_best(run, suite)["accuracy"] for suite in suites if run.evaluations.get(suite)), default=-1)
        )
    )
    lines = [head, *(_line(run, keys, suites) for run in runs)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([*table, *unread])


def _differing_keys(runs: Sequence[RunFile]) -> list[str]:
    configs = [_flat(run) for run in runs]
    keys = sorted({key for config in configs for key in config})
    return [
        key
        for key in keys
        if not key.startswith(_NO_DIFFERENCE) and any(config.get(key) != configs[0].get(key) for config in configs)
    ]


def _flat(run: RunFile) -> dict[str, Any]:
    config = run.attributes["config"]
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


def _line(run: RunFile, keys: Sequence[str], suites: Sequence[str]) -> list[str]:
    config = _flat(run)
    line = [str(run.path.parent), *(_cell(config.get(key)) for key in keys)]
    line.append(f"{run.num_generations}/{config['es.generations']}")
    line.append(f"{run.generations[-1]['fitness_mean']:.3f}" if run.generations else "-")
    for suite in suites:
        rows = sorted(run.evaluations.get(suite, ()), key=lambda row: int(row["generation"]))
        if not rows:
            line += ["-"] * 4
            continue
        best = _best(run, suite)
        line += [f"{100 * row['accuracy']:.1f} %" for row in (rows[0], rows[-1], best)] + [str(best["generation"])]
    return line


def _best(run: RunFile, suite: str) -> dict[str, Any]:
    return max(run.evaluations[suite], key=lambda row: (row["accuracy"], row["reward_mean"]))


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
