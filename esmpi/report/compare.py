"""Several runs side by side: a line each, with the keys in which their configs differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmpi.config.differences import differences
from esmpi.errors import UserError
from esmpi.store.run_file import RunFile, run_file_path


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
            -max((best["accuracy"] for suite in suites if (best := run.best(suite)) is not None), default=-1)
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


_DIGESTS = {"model": "model_digest", "data": "data_digest"}
"""Attribute of the run file with a digest of what the keys of a section name."""


def _differing_keys(runs: Sequence[RunFile]) -> list[str]:
    """Return the keys that make these runs different ones."""
    first = runs[0].attributes
    sampled = any(first["config"].get(name, {}).get("temperature", 0.0) > 0 for name in ("sampling", "eval"))
    found: dict[str, None] = {}
    for run in runs[1:]:
        for one in differences(first["config"], run.attributes["config"]):
            digest = _DIGESTS.get(one.section, "")
            by_digest = one.changes_result == "by_digest" and run.attributes.get(digest) != first.get(digest)
            if by_digest or one.matters(sampled):
                found[one.name] = None
    return sorted(found)


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
