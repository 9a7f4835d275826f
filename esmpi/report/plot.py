"""A run as a picture: fitness and held-out accuracy over generations; and a profile: when each rank did what."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esmpi.errors import UserError
from esmpi.files import replacing
from esmpi.store.run_file import RunFile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty picture of this size in inches; raise UserError if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'esmpi[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_profile(run: RunFile, path: Path) -> None:
    """Draw when each rank did what, in the generation that was profiled, into a PNG file.

    A rank has a broad bar, and a narrow one below for the rewards that were computed beside.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    profile = run.profile
    assert profile is not None
    ranks = np.unique(profile["rank"])
    shown = ranks[np.unique(np.linspace(0, len(ranks) - 1, min(len(ranks), _MOST_RANKS)).astype(int))]
    figure = new_figure(11, 1.9 + 0.42 * len(shown))
    axes = figure.subplots()
    end = max(float(profile["seconds_end"].max()), 1e-9)
    unit, scale = ("ms", 1e3) if end < 1 else ("s", 1.0)
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
        axes.broken_barh([], (0, 0), facecolors=color, label=f"{name} {100 * seconds / busy:.2g} %{beside}")
    covered = (main["seconds_end"] - main["seconds_start"]).sum() / busy
    axes.set_yticks(range(len(shown)), [f"rank {rank}" for rank in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, end * scale)
    axes.set_xlabel(f"{unit} since the generation began; {100 * covered:.1f} % of the time is in a phase")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), title="share of all ranks' time")
    omitted = f", {len(shown)} of {len(ranks)} ranks" if len(shown) < len(ranks) else ""
    config = run.attributes["config"]
    axes.set_title(f"{config['run']['name']}, generation {profile['generation'][0]}{omitted}", loc="left", fontsize=10)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def plot(run: RunFile, path: Path) -> None:
    """Draw the run into a PNG file.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    figure = draw(run)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw(run: RunFile) -> "Figure":
    """Return the picture of a run: fitness and held-out accuracy over generations.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    figure = new_figure(9, 3.6)
    from matplotlib.ticker import MaxNLocator

    table = np.array(run.generations)
    left, right = figure.subplots(1, 2)
    if len(table):
        # the members of generation g were scored around theta of generation g
        generation = table["generation"]
        mean, std = table["fitness_mean"], table["fitness_std"]
        left.fill_between(generation, mean - std, mean + std, alpha=0.25, linewidth=0, label="mean ± std")
        left.plot(generation, mean, marker="o", markersize=3, label="mean")
        left.plot(generation, table["fitness_max"], linestyle="--", linewidth=1, label="best member")
        known = ~np.isnan(table["fitness_theta"])
        if known.any():
            left.plot(generation[known], table["fitness_theta"][known], "k.", label="theta itself")
        left.legend(frameon=False, fontsize=8)
    left.set(title="fitness of the members", xlabel="generation", ylabel="mean reward")
    for suite, rows in run.evaluations.items():
        ordered = sorted(rows, key=lambda row: row["generation"])
        accuracy = [100 * row["accuracy"] for row in ordered]
        name = suite.replace("_", "-")
        right.plot([row["generation"] for row in ordered], accuracy, marker="o", label=f"{name} accuracy")
        for i, offset in ((0, -16), (-1, 9)):
            right.annotate(
                f"{accuracy[i]:.1f} %",
                (ordered[i]["generation"], accuracy[i]),
                xytext=(0, offset),
                textcoords="offset points",
                ha="center",
            )
    right.set(title="theta on held-out problems", xlabel="generation", ylabel="accuracy (%)")
    right.set_ylim(0, 100)
    right.margins(x=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    config = run.attributes["config"]
    figure.suptitle(
        f"{config['run']['name']}: {config['model']['path']} on {config['task']['name']}, "
        f"N {config['es']['population_size']}, sigma {config['es']['sigma']:g}",
        fontsize=10,
    )
    return figure
