"""Lines of a terminal that show numbers: sparklines, durations, and texts of strangers cut to a width."""

import math

import numpy as np

from esmpi.wording import visible

_BLOCKS, _ASCII = "▁▂▃▄▅▆▇█", "_.,-~=+#"


def sparkline(values: np.ndarray, width: int, ascii_only: bool = False) -> str:
    """Return numbers as a line of at most `width` characters, from the lowest to the highest of them.

    Parameters
    ----------
    values : (n,) ndarray of float
        NaN is a gap. More than `width` values are averaged in groups of neighbours.
    width : int
    ascii_only : bool
        For terminals without the characters of blocks.
    """
    if not len(values) or width < 1:
        return ""
    groups = np.array_split(np.asarray(values, np.float64), min(width, len(values)))
    means = np.array([_mean(group[np.isfinite(group)]) for group in groups])
    known = means[np.isfinite(means)]
    if not known.size:
        return " " * len(means)
    means = means / max(1.0, np.abs(known).max())  # so that no difference overflows
    known = means[np.isfinite(means)]
    levels = _ASCII if ascii_only else _BLOCKS
    low, high = known.min(), known.max()
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    base = 0.0 if high > low else len(levels) // 2
    return "".join(
        " " if not math.isfinite(mean) else levels[round(base + (mean - low) * scale)] for mean in means.tolist()
    )


def _mean(values: np.ndarray) -> float:
    # divided first: a sum may overflow
    return float((values / len(values)).sum()) if len(values) else math.nan


def one_line(text: str, most: int) -> str:
    """Return a text of a stranger as one line of up to `most` characters, with its middle left out if it is longer.

    Line feeds and runs of spaces become one space, and control characters become codes.
    """
    # cut before it is searched: a completion may be long
    line = " ".join(visible(" ".join(_middle(text, 4 * most).split())).split())
    return _middle(line, most)


def _middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    if most < 8:
        return text[:most]
    half = (most - 5) // 2
    return f"{text[: most - 5 - half]} ... {text[len(text) - half :]}"


def duration(seconds: float) -> str:
    """Return a duration: 0:07, 12:34, 1:02:03, or 3 d 4 h; "-" if it is not known."""
    if not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
