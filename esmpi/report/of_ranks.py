"""How long ranks waited for the busiest one: figures of each rank, over generations and in all."""

from collections.abc import Iterator

import numpy as np

from esmpi.es.population import idle_seconds
from esmpi.report.figure import COST, Curve, Figure
from esmpi.report.palette import NUM_COLORS
from esmpi.store.history import History

_MOST_RANKS = 64
"""Bars that a figure has room for."""


def figures_of_ranks(run: History) -> Iterator[Figure]:
    """Yield the ranks' idle time over generations, and in all generations together; nothing of a single rank."""
    waited = _waited(run)
    if max(map(len, waited), default=0) < 2:
        return
    yield _over_generations(run, waited)
    idle, there = _in_all(run, waited)
    share = idle / there
    ranks = np.arange(len(share))
    if len(share) > _MOST_RANKS:
        ranks = np.sort(np.argsort(-share)[:_MOST_RANKS])
    shown = f", the {_MOST_RANKS} most idle of {len(share)}" if len(share) > len(ranks) else ""
    yield Figure(
        name="idle",
        title="Idle time of ranks",
        section=COST,
        kind="bars",
        x_label=f"rank{shown}",
        y_label="% of the time",
        curves=[Curve(name="idle", x=ranks.astype(np.float64), y=100 * share[ranks])],
        y_range=(0, None),
        note="Waiting for the busiest rank, in all generations together.",
    )


def _over_generations(run: History, waited: list[np.ndarray]) -> Figure:
    """Return a curve for each rank, or for many ranks their mean, with a band from the least to the most idle one."""
    x = np.array([row["generation"] for row in run.generations], np.float64)
    table = np.full((len(waited), max(map(len, waited))), np.nan)
    for line, row, idle in zip(table, run.generations, waited, strict=True):
        line[: len(idle)] = 100 * idle / max(float(row["seconds_total"]), 1e-9)
    if table.shape[1] <= NUM_COLORS:
        curves = [Curve(name=f"rank {rank}", x=x, y=y, color=rank) for rank, y in enumerate(table.T)]
    else:
        curves = [
            Curve(name="least to most idle rank", x=x, low=np.nanmin(table, 1), high=np.nanmax(table, 1), color=-1),
            Curve(name="mean of the ranks", x=x, y=np.nanmean(table, 1)),
        ]
    return Figure(
        name="idle_over_time",
        title="Idle time over generations",
        section=COST,
        y_label="% of the time",
        curves=curves,
        y_range=(0, None),
        note="Waiting for the busiest rank before the exchange.",
    )


def idle_times(run: History) -> tuple[np.ndarray, np.ndarray]:
    """Return how long each rank waited for the busiest one, and how long it was there, (ranks,) float64 in seconds."""
    return _in_all(run, _waited(run))


def _waited(run: History) -> list[np.ndarray]:
    """Return for each generation how long each of its ranks waited, (ranks,) in seconds."""
    return [
        idle_seconds(members["rank"], members["seconds"], run.num_ranks(generation))
        for generation, members in enumerate(run.members)
    ]


def _in_all(run: History, waited: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    idle, there = (np.zeros(max(map(len, waited), default=0)) for _ in range(2))
    for row, seconds in zip(run.generations, waited, strict=True):
        idle[: len(seconds)] += seconds
        there[: len(seconds)] += float(row["seconds_total"])
    return idle, np.maximum(there, 1e-9)
