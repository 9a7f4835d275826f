"""Sink `tensorboard`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.record.sinks.base import Sink, row_of_sample


class TensorBoard(Sink):
    """Event files in `<run directory>/tensorboard`."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        from torch.utils.tensorboard import SummaryWriter

        # what an earlier start wrote beyond the last committed generation is not shown
        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=first)

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{group}/{name}", value, generation)
        self._writer.flush()

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        if fitness.size:
            self._writer.add_histogram("generation/fitness", fitness, generation)
        if samples:
            self._writer.add_text("generation/samples", "\n\n".join(map(_text_of, samples)), generation)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _text_of(sample: Mapping[str, Any]) -> str:
    """Return a completion in Markdown, in which it is a block of code: TensorBoard would show its own as Markdown."""
    row = row_of_sample(sample)
    lines = [f"{name}: {value}" for name, value in row.items() if name not in ("prompt", "completion")]
    return "\n".join(f"    {line}" for text in (*lines, str(row["completion"])) for line in text.split("\n"))
