"""Pictures that a notebook shows. This module imports Matplotlib: it is imported only where that is needed."""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Picture(Figure):
    """A figure of Matplotlib that belongs to no window, and that a notebook shows though pyplot was not imported."""

    def __init__(self, width: float, height: float):
        """Make an empty picture; its width and height are in inches."""
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()
