"""The fitness of members by sigma as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esmpi.files import replacing
from esmpi.report.plot import new_figure

if TYPE_CHECKING:
    from esmpi.probe import Rung

_COLORS = {"good": "#009e73", "no signal": "#8c8c8c", "breaks the model": "#d55e00"}


def plot_probe(rungs: "Sequence[Rung]", sigma: float, path: Path) -> None:
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
