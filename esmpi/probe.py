"""Try several sigmas on a few members, before a run: which ones tell members apart, and which ones break the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from esmpi.batches import batches
from esmpi.es.fitness import Fitness
from esmpi.es.population import check, plan
from esmpi.files import replacing
from esmpi.report.draw import new_figure
from esmpi.session import Session
from esmpi.stopwatch import Stopwatch
from esmpi.train import begin_control, evaluate_members, exchange

_COLORS = {"good": "#009e73", "no signal": "#8c8c8c", "breaks the model": "#d55e00"}


@dataclass(frozen=True)
class Rung:
    """What members with one sigma did."""

    sigma: float
    theta_fitness: float
    """Fitness of theta itself, on the same prompts."""
    fitness: np.ndarray
    """(N,) float64, of the members; NaN for those that failed."""

    @property
    def good(self) -> np.ndarray:
        """The fitness of the members that did not fail."""
        return self.fitness[~np.isnan(self.fitness)]

    @property
    def num_better(self) -> int:
        """How many members are better than theta."""
        return int((self.good > self.theta_fitness).sum())

    @property
    def verdict(self) -> str:
        """What this sigma does: whether members differ, and whether they are still as good as theta now and then."""
        if not len(self.good) or self.good.min() == self.good.max():
            return "no signal"
        return "breaks the model" if self.good.mean() + self.good.std() < self.theta_fitness else "good"


def probe(session: Session, sigmas: Sequence[float], num_members: int) -> list[Rung]:
    """Collective. Evaluate the first members of the first generation with each sigma; theta stays.

    All sigmas have the same noise and the same prompts.
    """
    batch_of, config = batches(session), session.config
    each = replace(session, config=replace(config, eval=replace(config.eval, control_every=1)))
    control = begin_control(each, batch_of, Stopwatch())
    of_theta = session.comm.allgather_object(None if control is None else control.result().fitness(Fitness.of(config)))
    rungs = []
    for sigma in sigmas:
        es = replace(
            config.es, sigma=sigma, population_size=num_members, antithetic=False, shaping="zscore", top_k=None
        )
        trial = replace(session, config=replace(config, es=es))
        members = plan(config.run.seed, 0, num_members, antithetic=False)
        mine = evaluate_members(trial, members, batch_of, Stopwatch())
        results = check(exchange(trial, mine), members)
        rungs.append(Rung(sigma, of_theta[0], results["fitness"]))
    return rungs


def table(rungs: Sequence[Rung]) -> str:
    """Return the results as a table for people."""
    lines = [f"theta itself: fitness {rungs[0].theta_fitness:.3f}", ""]
    lines.append(f"{'sigma':>9} {'mean':>8} {'std':>8} {'worst':>8} {'best':>8}  better than theta")
    for rung in rungs:
        figures = [f(rung.good) if len(rung.good) else np.nan for f in (np.mean, np.std, np.min, np.max)]
        numbers = " ".join(f"{figure:8.3f}" for figure in figures)
        lines.append(f"{rung.sigma:9.3g} {numbers}  {rung.num_better} of {len(rung.good)}: {rung.verdict}")
    good = [rung.sigma for rung in rungs if rung.verdict == "good"]
    if good:
        said = f"es.sigma from {good[0]:.3g} to {good[-1]:.3g} tells members apart without breaking the model."
        said += " Start in the upper half of this range, but not at its end."
    else:
        said = "No sigma tells members apart without breaking the model: try others, more prompts, or a finer reward."
    return "\n".join([*lines, "", said])


def plot_probe(rungs: Sequence[Rung], sigma: float, path: Path) -> None:
    """Draw each member's fitness by its sigma into a PNG file, beside the fitness of theta and the config's sigma.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    figure = new_figure(7, 3.8)
    axes = figure.subplots()
    axes.axhline(rungs[0].theta_fitness, color="black", linewidth=1, label="theta")
    axes.axvline(sigma, color="#2a5c99", linestyle=":", linewidth=1, label="es.sigma of the config")
    for verdict, color in _COLORS.items():
        chosen = [rung for rung in rungs if rung.verdict == verdict]
        places = [rung.sigma for rung in chosen for _ in rung.good]
        heights = [fitness for rung in chosen for fitness in rung.good]
        if places:
            axes.scatter(places, heights, s=18, alpha=0.6, color=color, linewidths=0, label=verdict)
    with_fitness = [rung for rung in rungs if len(rung.good)]
    means = [float(rung.good.mean()) for rung in with_fitness]
    axes.plot([rung.sigma for rung in with_fitness], means, color="#404040", linewidth=1, label="mean of the members")
    axes.set(xscale="log", xlabel="sigma", ylabel="fitness (mean reward)", title="members by sigma")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
