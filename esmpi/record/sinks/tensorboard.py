"""Sink `tensorboard`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.record.sinks.base import Sink, first_gap, row_of_sample

_TEXT = "generation/samples/text_summary"


class TensorBoard(Sink):
    """Event files in `<run directory>/tensorboard`."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / "tensorboard"
        steps = _recorded(folder)
        # the last one may lack its completions
        self.lacks_from = min(first_gap(steps["generation/fitness_mean"], first), max(0, first - 1))
        self._known = steps[_TEXT]  # TensorBoard drops the figures from `purge_step` on, but no texts
        self._writer = SummaryWriter(str(folder), purge_step=self.lacks_from)

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"{group}/{name}", value, generation)
        self._writer.flush()

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        if fitness.size:
            self._writer.add_histogram("generation/fitness", fitness, generation)
        if samples and generation not in self._known:
            self._writer.add_text("generation/samples", "\n\n".join(map(_text_of, samples)), generation)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _recorded(folder: Path) -> Mapping[str, set[int]]:
    """Return the steps that event files have, by tags."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    steps: dict[str, set[int]] = defaultdict(set)
    for path in folder.glob("events.*"):
        for data in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(data)
            for value in event.summary.value:
                steps[value.tag].add(event.step)
    return steps


def _text_of(sample: Mapping[str, Any]) -> str:
    """Return a completion in Markdown, in which it is a block of code: TensorBoard would show its own as Markdown."""
    row = row_of_sample(sample)
    lines = [f"{name}: {value}" for name, value in row.items() if name not in ("prompt", "completion")]
    return "\n".join(f"    {line}" for text in (*lines, str(row["completion"])) for line in text.split("\n"))
