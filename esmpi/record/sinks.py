"""Send a run's figures to TensorBoard or Weights & Biases. The run file has them all; sinks are for looking on."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esmpi.errors import UserError

log = logging.getLogger(__name__)


class Sink(ABC):
    """A place that draws figures over generations."""

    @abstractmethod
    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        """Add figures of a generation."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back."""


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


class WeightsAndBiases(Sink):
    """A W&B run of project `esmpi` with the run's uuid as id; WANDB_MODE=offline on nodes without internet."""

    def __init__(self, directory: Path, attributes: Mapping[str, Any], first: int):
        import wandb

        self._run = wandb.init(
            project="esmpi",
            id=attributes["run_uuid"],
            name=attributes["config"]["run"]["name"],
            config=attributes["config"],
            dir=str(directory),
            resume="allow",
        )

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        self._run.log({f"{group}/{name}": value for name, value in figures.items()} | {"generation": generation})

    def close(self) -> None:
        self._run.finish()


SINKS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class Sinks:
    """All sinks of a run. One that fails is dropped with a warning: looking on must not end a run.

    Raises
    ------
    UserError
        If a sink's package is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, attributes: Mapping[str, Any], first: int):
        self._open: dict[str, Sink] = {}
        for name in names:
            try:
                self._open[name] = SINKS[name](directory, attributes, first)
            except ImportError as error:
                raise UserError(f"log.sinks: {name} is not installed: pip install 'esmpi[{name}]'") from error

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        """Add figures of a generation to every sink."""
        for name in list(self._open):
            try:
                self._open[name].write(group, generation, figures)
            except Exception as error:  # a sink may raise anything: full disk, no network, ...
                log.warning("log.sinks: %s failed and gets no more figures: %s", name, error)
                del self._open[name]

    def close(self) -> None:
        """Close every sink."""
        for name, sink in self._open.items():
            try:
                sink.close()
            except Exception as error:
                log.warning("log.sinks: %s could not be closed: %s", name, error)
