"""A run as a picture: fitness and held-out accuracy over generations; and a profile: when each rank did what."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esmpi.files import replacing
from esmpi.report.draw import draw as draw_figures
from esmpi.report.draw import new_figure
from esmpi.report.of_run import figures_of
from esmpi.report.spark import one_line
from esmpi.store.history import History
from esmpi.store.run_file import RunFile

if TYPE_CHECKING:
    from esmpi.report.picture import Picture

_OVERVIEW = ("fitness", "accuracy")
"""Figures that are drawn where there is room for two."""

_MOST_RANKS = 32
"""Ranks of a profile that have room in the picture."""
_COLORS = {
    "plan": "#8c8c8c",
    "perturb": "#d55e00",
    "generate": "#7fb2e5",
    "score": "#9467bd",
    "wait": "#e8d9f1",
    "exchange": "#e0e0e0",
    "shape": "#f0e442",
    "update": "#009e73",
    "digest": "#003f2e",
    "commit": "#cc3377",
    "write": "#e89ac0",
    "evaluate": "#2a5c99",
    "snapshot": "#8b5a2b",
}
"""The engine's work in light blue, waiting in pale colours, what ES adds in strong ones."""

_BESIDE = ("score", "write")
"""What other processes or threads do meanwhile."""


def plot_profile(run: RunFile, path: Path) -> None:
    """Draw when each rank did what into a PNG file; raise as `draw_profile` does."""
    figure = draw_profile(run)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_profile(run: History, titled: bool = True) -> "Picture":
    """Return the picture of when each rank did what, in the generation that was profiled.

    A rank has a broad bar, and a narrow one below for the rewards that were computed beside. A page has a title of its
    own, where the names are text.

    Raises
    ------
    UserError
        If Matplotlib is not installed.
    """
    profile = run.profile
    assert profile is not None
    ranks = np.unique(profile["rank"])
    shown = ranks[np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), _MOST_RANKS)).astype(int))]
    figure = new_figure(11, 1.9 + 0.42 * len(shown))
    axes = figure.subplots()
    end = max(float(profile["seconds_end"].max()), 1e-9)
    unit, scale = ("milliseconds", 1e3) if end < 1 else ("seconds", 1.0)
    main = profile[~np.isin(profile["phase"], [name.encode() for name in _BESIDE])]
    busy = len(ranks) * end
    for name, color in _COLORS.items():
        rows = profile[profile["phase"] == name.encode()]
        if not rows.size:
            continue
        seconds = (rows["seconds_end"] - rows["seconds_start"]).sum()
        for line, rank in enumerate(shown):
            mine = rows[rows["rank"] == rank]
            spans = np.stack([mine["seconds_start"], mine["seconds_end"] - mine["seconds_start"]], 1) * scale
            place = (line + 0.29, 0.13) if name in _BESIDE else (line - 0.36, 0.6)
            axes.broken_barh(spans.tolist(), place, facecolors=color, linewidth=0)
        beside = ", beside" if name in _BESIDE else ""
        axes.broken_barh([], (0, 0), facecolors=color, label=f"{name} {_share(seconds / busy)}{beside}")
    covered = (main["seconds_end"] - main["seconds_start"]).sum() / busy
    axes.set_yticks(range(len(shown)), [f"rank {rank}" for rank in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, end * scale)
    omitted = f"; {len(shown)} of {len(ranks)} ranks" if len(shown) < len(ranks) else ""
    axes.set_xlabel(f"{unit} since the generation began; phases cover {100 * covered:.1f} % of the time{omitted}")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title="share of all ranks' time")
    if titled:
        name = one_line(run.attributes["config"]["run"]["name"], 80)
        axes.set_title(f"{name}, generation {profile['generation'][0]}", loc="left", fontsize=10)
    return figure


def _share(share: float) -> str:
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %"


def plot(run: History, path: Path) -> None:
    """Draw the run into a PNG file.

    Raises
    ------
    UserError
        If Matplotlib is not installed.
    """
    figure = draw(run)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw(run: History) -> "Picture":
    """Return the picture of a run: fitness and held-out accuracy over generations.

    Raises
    ------
    UserError
        If Matplotlib is not installed.
    """
    shown = [figure for figure in figures_of(run) if figure.name in _OVERVIEW]
    es, config = run.attributes["config"]["es"], run.attributes["config"]
    title = (
        f"{config['run']['name']}: {config['model']['path']} on {config['task']['name']}, "
        f"N {es.get('population_size', '-')}, sigma {es.get('sigma', '-')}"
    )
    return draw_figures(shown, title)
