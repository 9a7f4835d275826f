"""What a figure shows: curves and bands over generations, parts stacked, or bars; `esmpi.report.draw` draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

X_LABELS = {"generations": "generation", "tokens": "tokens generated in training", "seconds": "seconds of training"}
"""What figures of several runs can have as their x-axis, with its label."""

LEARNING, COMPLETIONS, MODEL, COST = "What it learned", "Completions", "The model", "Time and tokens"
"""Headings under which the page has figures."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A line; a band, if it has no line of its own; or a band with a line in it."""

    name: str
    x: np.ndarray
    """(n,) ascending, the generations."""
    y: np.ndarray | None = None
    """(n,); NaN where there is nothing."""
    low: np.ndarray | None = None
    """(n,): lower end of the band."""
    high: np.ndarray | None = None
    color: int = 0
    """Number of the colour in `esmpi.report.palette`; -1 for grey."""
    dash: int = 0
    """Number of the kind of line: 0 is solid."""
    markers: bool = False
    """Whether each point is marked, because there are few or none between which to draw a line."""
    axes: dict[str, np.ndarray] = field(default_factory=dict)
    """Further x by the names of `X_LABELS`, (n,) each."""

    def on(self, axis: str) -> "Curve":
        """Return the curve over another x."""
        return replace(self, x=self.axes.get(axis, self.x))


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """A figure with a single pair of axes."""

    name: str
    """Of its files, and of the figure in `esmpi.open_run(...).plot(name)`."""
    title: str
    y_label: str
    curves: Sequence[Curve]
    x_label: str = "generation"
    section: str = ""
    """Heading under which the page has it."""
    kind: str = "lines"
    """lines; stack: the curves on top of each other, except dashed ones; steps: the same for counts, which are no lines
    between generations; bars: a bar for each x of the only curve."""
    levels: Sequence[tuple[str, float, int]] = ()
    """Horizontal lines: name, value, colour."""
    events: Sequence[int] = ()
    """Generations after which the guard did something."""
    y_range: tuple[float | None, float | None] = (None, None)
    note: str = ""
    """A sentence on how to read it."""

    def on(self, axis: str) -> "Figure":
        """Return the figure over generations, tokens or seconds; see `X_LABELS`."""
        return replace(
            self,
            curves=[curve.on(axis) for curve in self.curves],
            x_label=self.x_label if axis == "generations" else X_LABELS[axis],
        )

    def thinned(self, most: int) -> "Figure":
        """Return the figure with at most about so many points in all, without losing a peak of any curve."""
        each = max(40, most // max(1, len(self.curves)))
        if self.kind not in ("stack", "steps"):
            return replace(self, curves=[thinned(curve, each) for curve in self.curves])
        # what lies on top of each other keeps the same points
        parts = [curve.y for curve in self.curves if curve.y is not None and not curve.dash]
        kept = _extremes(np.sum(parts, axis=0), each)
        return replace(self, curves=[thinned(one, each) if one.dash else _at(one, kept) for one in self.curves])


def thinned(curve: Curve, most: int) -> Curve:
    """Return a curve with at most about so many points: of each of equal pieces, the lowest and the highest ones."""
    if len(curve.x) <= most:
        return curve
    if curve.y is not None:
        return _at(curve, _extremes(curve.y, most))
    return _at(curve, np.linspace(0, len(curve.x) - 1, most).astype(np.int64))


def _extremes(y: np.ndarray, most: int) -> np.ndarray:
    """Return the places of at most about so many values, among them the first, the last and every peak."""
    if len(y) <= most:
        return np.arange(len(y))
    pieces = np.array_split(np.arange(len(y)), most // 2)
    lowest = [int(piece[np.argmin(np.nan_to_num(y[piece], nan=np.inf))]) for piece in pieces]
    highest = [int(piece[np.argmax(np.nan_to_num(y[piece], nan=-np.inf))]) for piece in pieces]
    return np.unique([0, *lowest, *highest, len(y) - 1])


def _at(curve: Curve, places: np.ndarray) -> Curve:
    """Return a curve at some of its points; its band covers those that are left out."""
    ends = [*places[1:].tolist(), len(curve.x)]
    spans = list(zip(places.tolist(), ends, strict=True))
    low, high = curve.low, curve.high
    return replace(
        curve,
        x=curve.x[places],
        y=None if curve.y is None else curve.y[places],
        low=None if low is None else np.array([np.fmin.reduce(low[a:b]) for a, b in spans]),
        high=None if high is None else np.array([np.fmax.reduce(high[a:b]) for a, b in spans]),
        axes={name: x[places] for name, x in curve.axes.items()},
    )
