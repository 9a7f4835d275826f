"""A run as a picture: fitness and held-out accuracy over generations."""

from pathlib import Path

import numpy as np

from esmpi.errors import UserError
from esmpi.store.files import replacing
from esmpi.store.run_file import RunFile


def plot(run: RunFile, path: Path) -> None:
    """Draw the run into a PNG file.

    Raises
    ------
    UserError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'esmpi[report]'") from error

    table = np.array(run.generations)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if len(table):
        # the members of generation g were scored around theta of generation g
        generation = table["generation"]
        mean, std = table["fitness_mean"], table["fitness_std"]
        left.fill_between(generation, mean - std, mean + std, alpha=0.25, linewidth=0, label="mean ± std")
        left.plot(generation, mean, marker="o", markersize=3, label="mean")
        left.plot(generation, table["fitness_max"], linestyle="--", linewidth=1, label="best member")
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
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
