"""Figures for the page: Matplotlib's SVG, made small, in the page's colours, with nothing in it that can act."""

import html
import io
import json
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from esmpi.report.draw import SIZE, new_figure, panel, style
from esmpi.report.figure import X_LABELS, Curve, Figure
from esmpi.report.palette import LIGHT, color_of

if TYPE_CHECKING:
    from esmpi.report.picture import Picture

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_TAGS = {"g", "path", "text", "rect", "defs", "use", "clipPath"}
_ATTRIBUTES = {
    *("d", "x", "y", "width", "height", "transform", "clip-path", "id", "fill", "fill-opacity", "fill-rule", "stroke"),
    *("stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-opacity", "opacity", "text-anchor", "font-size"),
}
_DEFAULTS = {("stroke-linejoin", "round"), ("stroke-linecap", "butt"), ("stroke-dashoffset", "0")}
_VARIABLES = {color: f"var(--{name})" for name, color in LIGHT.items() if name not in ("good", "mark", "page")}
_POINTS = 3000
"""Of all curves of a figure together: more than a screen can show."""
_NUMBER = re.compile(r"-?\d+\.\d+")


def inline(figure: Figure, number: int) -> str:
    """Return a figure as an SVG element for a page, whose ids begin with the figure's number."""
    with style():
        picture = new_figure(*SIZE)
        axes = picture.subplots()
        panel(axes, figure.thinned(_POINTS))
        axes.set_ylabel("")  # the page has it in the heading
        inside = _inside(picture, f"f{number}-")
        box = axes.get_window_extent().transformed(picture.dpi_scale_trans.inverted())
        limits = axes.get_xlim()
    width, height = (72 * inches for inches in SIZE)
    place = json.dumps([round(72 * box.x0, 1), round(72 * box.x1, 1), round(72 * (SIZE[1] - box.y1), 1)])
    bottom = round(72 * (SIZE[1] - box.y0), 1)
    span = json.dumps([float(f"{limit:.6g}") for limit in limits])
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(figure.title)}" '
        f'data-box="{place}" data-bottom="{bottom}" data-span="{span}">{inside}</svg>'
    )


def inline_picture(picture: "Picture", title: str, prefix: str) -> str:
    """Return a whole picture, which was drawn in the style of `draw`, as an SVG element for a page."""
    with style():
        inside = _inside(picture, prefix)
    width, height = (72 * inches for inches in picture.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">{inside}</svg>'


def _inside(picture: "Picture", prefix: str) -> str:
    file = io.StringIO()
    picture.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())
    _clean(root, prefix)
    return "".join(ElementTree.tostring(child, "unicode") for child in root)


def _clean(parent: ElementTree.Element, prefix: str) -> None:
    """Keep only what draws: style attributes become attributes, colours become variables of the page."""
    for element in list(parent):
        tag = element.tag.removeprefix(_SVG) if isinstance(element.tag, str) else ""
        if tag not in _TAGS:
            parent.remove(element)
            continue
        element.tag = tag
        found = dict(element.attrib)
        for rule in found.pop("style", "").split(";"):
            key, _, value = rule.partition(":")
            if (key.strip(), value.strip()) not in _DEFAULTS:
                found[key.strip()] = value.strip()
        font = found.pop("font", "") or found.get("font-size", "")
        href = found.pop(_HREF, None)
        element.attrib.clear()
        for key, value in found.items():
            if key in _ATTRIBUTES:
                element.set(key, _value(key, value, prefix))
        if font and tag == "text" and (size := re.search(r"([\d.]+)px", font)):
            element.set("font-size", size[1])
        if href is not None and href.startswith("#"):
            element.set("href", f"#{prefix}{href[1:]}")
        if tag == "g":  # Matplotlib numbers its groups, which nothing refers to
            element.attrib.pop("id", None)
        element.text = element.text.strip() if element.text and element.text.strip() else None
        element.tail = None
        _clean(element, prefix)


def _value(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return prefix + value
    if key == "clip-path":
        return value.replace("url(#", f"url(#{prefix}")
    if key in ("fill", "stroke"):
        return _VARIABLES.get(value, value)
    if key in ("d", "transform", "x", "y", "width", "height"):
        return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), " ".join(value.split()))
    return value


def legend(figure: Figure) -> list[dict[str, Any]]:
    """Return what the legend says of each curve and level: name, colour, and line, band or solid part."""
    entries = [
        {
            "name": curve.name,
            "color": color_of(curve.color),
            "dash": curve.dash % 4,
            "band": "band" if curve.y is None else "solid" if figure.kind != "lines" and not curve.dash else "",
        }
        for curve in figure.curves
    ]
    levels = [{"name": name, "color": color_of(n), "dash": 1, "band": ""} for name, _, n in figure.levels]
    event = {"name": "the guard acted", "color": "bad", "dash": 2, "band": ""}
    return [*entries, *levels, *([event] if figure.events else [])]


def values(figure: Figure, axes: Sequence[str] = ("generations",)) -> dict[str, Any]:
    """Return what a pointer shows: for each curve its x on each of the axes, and its values."""
    small = figure.thinned(_POINTS)
    return {
        "label": small.x_label,
        "unit": small.y_label,
        "axes": [X_LABELS[axis] for axis in axes],
        "curves": [_curve(curve, axes) for curve in small.curves],
        "levels": [[name, _short(value)] for name, value, _ in small.levels],
    }


def _curve(curve: Curve, axes: Sequence[str]) -> dict[str, Any]:
    columns = {"y": curve.y, "low": curve.low, "high": curve.high}
    return {
        "name": curve.name,
        "color": color_of(curve.color),
        "x": [[_short(x) for x in curve.on(axis).x] for axis in axes],
        **{key: [_short(v) for v in column] for key, column in columns.items() if column is not None},
    }


def _short(value: float) -> float | int | None:
    """Return a number with as many digits as a reader needs; None, which JSON has, in place of NaN."""
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
