"""The figures of several runs: a curve for each run, or the mean and a band of runs that differ only in their seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esmpi.config.problems import GENERATED, HELD_OUT
from esmpi.report.compare import differing_values
from esmpi.report.figure import COST, LEARNING, MODEL, Curve, Figure
from esmpi.report.of_run import column, rows_of, table_of
from esmpi.report.palette import DASHES, NUM_COLORS
from esmpi.store.run_file import RunFile

Series = tuple[np.ndarray, np.ndarray]
"""Generations and values, (n,) each."""
_MOST_SETTINGS = NUM_COLORS * len(DASHES)
"""With a look of their own."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in nothing but their seed."""

    name: str
    setting: Mapping[str, Any]
    """The keys in which the groups differ."""
    runs: Sequence[RunFile]


def groups_of(runs: Sequence[RunFile]) -> list[Group]:
    """Return the runs by their settings, in the order of each setting's first run."""
    values = differing_values(runs)
    values.pop("run.seed", None)
    if all(run.attributes["config"].get("data", {}).get("train") == GENERATED for run in runs):
        values.pop("data.digest", None)  # the seed decides the problems, too
    found: dict[str, list[int]] = {}
    for i in range(len(runs)):
        found.setdefault(repr([column[i] for column in values.values()]), []).append(i)
    settings = [{key: column[members[0]] for key, column in values.items()} for members in found.values()]
    names = [_name_of(runs[members[0]]) for members in found.values()]
    if len(found) < len(runs) or len(set(names)) < len(names):  # several seeds of a setting, or runs of the same name
        names = [
            ", ".join(f"{key.removeprefix('es.')}={_short(value)}" for key, value in setting.items()) or name
            for setting, name in zip(settings, names, strict=True)
        ]
    return [
        Group(name=name, setting=setting, runs=[runs[i] for i in members])
        for name, setting, members in zip(names, settings, found.values(), strict=True)
    ]


def _name_of(run: RunFile) -> str:
    """Return the name of a run's directory, which may have been renamed, or of a log-only file."""
    return run.path.stem if run.attributes["log_only"] else run.path.absolute().parent.name


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def figures_of_groups(groups: Sequence[Group]) -> list[Figure]:
    """Return figures with a curve for each group; those for which no run has data are left out."""
    made = [
        _figure("fitness", "Fitness of the members, mean", "mean reward", LEARNING, groups, _trained("fitness_mean")),
        _figure("accuracy", "Accuracy on held-out problems", "%", LEARNING, groups, _evaluated("accuracy")),
        _figure("reward", "Reward on held-out problems", "mean", LEARNING, groups, _evaluated("reward_mean")),
        *(
            _figure(
                f"suite_{suite}",
                f"Accuracy on {suite}",
                "%",
                LEARNING,
                groups,
                _evaluated("accuracy", suite),
            )
            for suite in sorted({suite for group in groups for run in group.runs for suite in run.evaluations})
            if suite != HELD_OUT
        ),
        _figure("kl", "Divergence from the base model", "nats per token", MODEL, groups, _evaluated("kl_per_token")),
        _figure("distance", "Distance from the base model", "norm", MODEL, groups, _evaluated("theta_distance")),
        _figure("speed", "Tokens per second", "tokens/s", COST, groups, _speed),
        _figure("time", "Time of a generation", "s", COST, groups, _trained("seconds_total")),
    ]
    return [figure for figure in made if figure is not None]


def _figure(
    name: str,
    title: str,
    unit: str,
    section: str,
    groups: Sequence[Group],
    series: Callable[[RunFile], Series],
) -> Figure | None:
    curves = []
    for number, group in enumerate(groups):
        curve = _curve(group, number, series)
        if curve is not None:
            curves.append(curve)
    if not curves:
        return None
    seeds = max(len(group.runs) for group in groups)
    note = "Mean over seeds; the band is one sample standard deviation." if seeds > 1 else ""
    from_zero = section == COST
    return Figure(
        name=name,
        title=title,
        section=section,
        y_label=unit,
        curves=curves,
        note=note,
        y_range=(0 if from_zero else None, None),
    )


def _curve(group: Group, number: int, series: Callable[[RunFile], Series]) -> Curve | None:
    """Return the mean of a group's runs at each generation for which any of them has a value."""
    found = []
    for run in group.runs:
        generations, values = series(run)
        known = ~np.isnan(values)
        found.append((run, generations[known].astype(np.int64), values[known]))
    x = np.unique(np.concatenate([generations for _, generations, _ in found]))
    if not x.size:
        return None
    rows = np.full((len(found), len(x)), np.nan)
    costs = {name: rows.copy() for name in ("tokens", "seconds")}
    for i, (run, generations, values) in enumerate(found):
        places = np.searchsorted(x, generations)
        rows[i, places] = values
        for name, cost in _spent(run).items():
            costs[name][i, places] = cost[generations]
    count = (~np.isnan(rows)).sum(0)
    mean = np.nanmean(rows, 0)
    squares = np.nansum((rows - mean) ** 2, 0)
    deviation = np.sqrt(np.divide(squares, count - 1, out=np.zeros(len(x)), where=count > 1))
    band = (deviation > 0).any()
    return Curve(
        name=f"{group.name} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.name,
        x=x.astype(np.float64),
        y=mean,
        low=mean - deviation if band else None,
        high=mean + deviation if band else None,
        color=number if number < _MOST_SETTINGS else -1,
        dash=number // NUM_COLORS,
        markers=True,
        axes={name: np.nanmean(cost, 0) for name, cost in costs.items()},
    )


def _spent(run: RunFile) -> dict[str, np.ndarray]:
    """Return how many tokens and seconds of training theta of each generation took, (G + 1,) each."""
    table = table_of(run)
    costs = {"tokens": table["tokens"], "seconds": table["seconds_total"]}
    return {name: np.concatenate([[0.0], np.cumsum(column, dtype=np.float64)]) for name, column in costs.items()}


def _trained(name: str) -> Callable[[RunFile], Series]:
    def series(run: RunFile) -> Series:
        table = table_of(run) if not run.attributes["log_only"] else table_of(run)[:0]
        return table["generation"].astype(np.float64), table[name].astype(np.float64)

    return series


def _evaluated(name: str, suite: str = HELD_OUT) -> Callable[[RunFile], Series]:
    def series(run: RunFile) -> Series:
        rows = rows_of(run, suite)
        return column(rows, "generation"), column(rows, name) * (100 if name == "accuracy" else 1)

    return series


def _speed(run: RunFile) -> Series:
    generations, seconds = _trained("seconds_total")(run)
    tokens = _trained("tokens")(run)[1]
    return generations, np.divide(tokens, seconds, out=np.full(len(tokens), np.nan), where=seconds > 0)
