"""Draw figures with Matplotlib, for pictures, notebooks and the page.

Why Matplotlib: its SVG is text that stands in a page as it is, about 10 kB a figure. Nothing has to run before a
figure is seen, so the page can be printed, mailed, and read without scripts; and the same figure is a PNG, an SVG and
what a notebook shows. Libraries that draw in the browser would each be a part of every page (uPlot 50 kB, Observable
Plot with D3 500 kB, Vega 800 kB, Bokeh 1 MB, Plotly 4 MB) and a second description of every figure.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.errors import UserError
from esmpi.files import replacing
from esmpi.report.figure import Curve, Figure
from esmpi.report.palette import DASHES, LIGHT, color_of
from esmpi.report.spark import one_line
from esmpi.wording import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from esmpi.report.picture import Picture

SIZE = (3.7, 2.2)
"""Width and height of a figure in inches: text that is readable on a phone, where it is as wide as the screen."""
_SOLID, _BAND = 0.85, 0.22
"""Opacity of parts in a stack, and of bands."""
_STEPS = (1, 2, 2.5, 5, 10)
"""Distances of ticks, up to a power of ten: those that are easily read."""
_STYLE = {
    **{"font.size": 8, "axes.labelsize": 8, "axes.titlesize": 9, "legend.fontsize": 7.5, "legend.frameon": False},
    **{"axes.edgecolor": LIGHT["line"], "axes.labelcolor": LIGHT["muted"], "axes.titlelocation": "left"},
    **{"text.color": LIGHT["ink"], "xtick.color": LIGHT["muted"], "ytick.color": LIGHT["muted"]},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "ytick.left": False},
    **{"axes.grid": True, "axes.grid.axis": "y", "grid.color": LIGHT["grid"], "axes.axisbelow": True},
    **{"xtick.major.size": 3, "lines.linewidth": 1.3, "lines.markersize": 3, "axes.facecolor": "none"},
    # the page's own font; a name of a run is a text, whatever dollar signs it has; the same figure has the same bytes
    **{"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "esmpi", "savefig.facecolor": "white"},
}


@contextmanager
def style() -> Iterator[None]:
    """Give figures in a block the look of esmpi; raise UserError if Matplotlib is not installed."""
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'esmpi[report]'") from error
    with rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> "Picture":
    """Return an empty picture of this size in inches; raise UserError if Matplotlib is not installed."""
    try:
        from esmpi.report.picture import Picture
    except ImportError as error:
        raise UserError("the plot needs matplotlib: pip install 'esmpi[report]'") from error
    return Picture(width, height)


def draw(figures: Sequence[Figure], title: str = "", columns: int = 2) -> "Picture":
    """Return a picture with some figures side by side, each with its title and legend.

    Raises
    ------
    UserError
        If Matplotlib is not installed.
    """
    columns = max(1, min(columns, len(figures)))
    rows = max(1, -(-len(figures) // columns))
    with style():
        picture = new_figure(SIZE[0] * columns, (SIZE[1] + 0.75) * rows)
        places = picture.subplots(rows, columns, squeeze=False).ravel()
        for axes in places[len(figures) :]:
            axes.axis("off")
        for axes, figure in zip(places, figures, strict=False):
            panel(axes, figure)
            axes.set_title(figure.title)
            handles, labels = axes.get_legend_handles_labels()
            if handles and figure.kind != "bars" and labels != [figure.title]:
                below = {"loc": "upper left", "bbox_to_anchor": (0, -0.25), "borderaxespad": 0.0}
                beside = 1 if max(len(curve.name) for curve in figure.curves) > 24 else 2
                axes.legend(handles, list(map(visible, labels)), **below, ncols=beside)
        if title:
            picture.suptitle(one_line(title, 160), fontsize=10, x=0.01, ha="left")
        return picture


def panel(axes: "Axes", figure: Figure) -> None:
    """Draw a figure into a pair of axes, without its title and legend. The style must be set: see `style`."""
    from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

    for x in figure.events:
        axes.axvline(x, color=LIGHT["bad"], linewidth=0.9, dashes=(2, 2))
    if figure.kind == "bars":
        [curve] = figure.curves
        assert curve.y is not None
        axes.bar(curve.x, curve.y, color=LIGHT[color_of(curve.color)], alpha=_SOLID, width=0.75, label=curve.name)
        axes.set_xlim(curve.x.min() - 0.6, curve.x.max() + 0.6)
    else:
        bottom: Any = 0.0
        for curve in figure.curves:
            stacked = figure.kind in ("stack", "steps") and curve.dash == 0
            if stacked and curve.y is not None:
                top = bottom + curve.y
                color = LIGHT[color_of(curve.color)]
                look: dict[str, Any] = {"facecolor": color, "alpha": _SOLID, "linewidth": 0, "label": curve.name}
                axes.fill_between(curve.x, bottom, top, step="mid" if figure.kind == "steps" else None, **look)
                bottom = top
            else:
                _line(axes, curve)
    for name, value, number in figure.levels:
        axes.axhline(value, color=LIGHT[color_of(number)], linewidth=1, dashes=(4, 3), label=name)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set_ylim(*figure.y_range)
    if figure.kind != "bars":
        axes.margins(x=0.02)
    whole = figure.x_label.startswith(("generation", "rank"))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole, min_n_ticks=1 if whole else 2, steps=(1, 2, 5, 10)))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_STEPS))
    if not whole:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    largest = max(map(abs, axes.get_ylim()))
    if largest >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    elif largest < 0.01:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _line(axes: "Axes", curve: Curve) -> None:
    color = LIGHT[color_of(curve.color)]
    if curve.low is not None and curve.high is not None:
        label = curve.name if curve.y is None else None
        axes.fill_between(
            curve.x,
            curve.low,
            curve.high,
            facecolor=color,
            alpha=_BAND if curve.color >= 0 else _BAND * 0.75,
            linewidth=0,
            label=label,
        )
    if curve.y is not None:
        marker = "o" if curve.markers and len(curve.x) <= 30 else None
        line = DASHES[curve.dash % len(DASHES)]
        [drawn] = axes.plot(curve.x, curve.y, color=color, linestyle=line, marker=marker, label=curve.name)
        drawn.set(clip_on=False, in_layout=False)  # a marker on the lowest value is drawn as a whole


def save(figures: Mapping[str, "Picture"], folder: Path) -> list[Path]:
    """Write pictures as PNG and SVG into a folder, by their names; return the files."""
    written = []
    for name, picture in figures.items():
        for form in ("png", "svg"):
            path = folder / f"{name}.{form}"
            with style(), replacing(path) as temporary:
                picture.savefig(temporary, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
            written.append(path)
    return written
