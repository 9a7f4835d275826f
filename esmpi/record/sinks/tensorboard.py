"""Sink `tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from esmpi.record.sinks.base import Sink


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

    def close(self) -> None:
        self._writer.close()
