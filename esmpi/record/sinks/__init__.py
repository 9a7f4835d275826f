"""Send a run's figures elsewhere, such as to TensorBoard. The run file has them all; sinks are for watching a run."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from esmpi import plugins
from esmpi.errors import UserError, said
from esmpi.record.past import Past
from esmpi.record.sinks.base import Sink

log = logging.getLogger(__name__)


def find_sink(name: str) -> type[Sink]:
    """Return a kind of sink by its name; raise KeyError if there is none."""
    module = plugins.modules("esmpi.record.sinks")[name]
    [found] = (sink for sink in plugins.classes("esmpi.record.sinks", Sink) if sink.__module__ == module)
    return found


class Sinks:
    """All sinks of a run. One that fails is dropped with a warning: watching must not end a run.

    Raises
    ------
    UserError
        If a sink cannot be opened, for example because its package is not installed.
    """

    def __init__(self, names: Sequence[str], directory: Path, attributes: Mapping[str, Any], first: int):
        self._open: dict[str, Sink] = {}
        for name in names:
            try:
                self._open[name] = find_sink(name)(directory, attributes, first)
            except ImportError as error:
                raise UserError(f"log.sinks: {name} is not installed: pip install 'esmpi[{name}]'") from error
            except UserError:
                raise
            except Exception as error:  # whatever a library raises
                raise UserError(f"log.sinks: {name} cannot be opened: {said(error)}") from error

        lacking = {name: first if sink.lacks_from is None else sink.lacks_from for name, sink in self._open.items()}
        self._lacks_from = lacking

    @property
    def lacks_from(self) -> int | None:
        """The first generation that any of the sinks lacks; None if there are no sinks."""
        return min(self._lacks_from.values(), default=None)

    def repeat(self, past: Past) -> None:
        """Write what the run file has to those sinks that lack it."""
        for name in [name for name in self._open if self._lacks_from[name] <= past.generation]:
            self._try(name, lambda sink: _repeat(sink, past))

    def write(self, group: str, generation: int, figures: Mapping[str, float]) -> None:
        """Add figures of a generation to every sink."""
        self._each(lambda sink: sink.write(group, generation, figures))

    def write_members(self, generation: int, fitness: np.ndarray, samples: Sequence[Mapping[str, Any]]) -> None:
        """Add the members of a generation to every sink; see `Sink.write_members`."""
        self._each(lambda sink: sink.write_members(generation, fitness, samples))

    def _each(self, write: Callable[[Sink], None]) -> None:
        for name in list(self._open):
            self._try(name, write)

    def _try(self, name: str, write: Callable[[Sink], None]) -> None:
        try:
            write(self._open[name])
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


def _repeat(sink: Sink, past: Past) -> None:
    sink.write(past.group, past.generation, past.figures)
    if past.fitness is not None:
        sink.write_members(past.generation, past.fitness, past.samples)
