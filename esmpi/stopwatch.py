"""Where the time of a generation goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import numpy as np


class Stopwatch:
    """Adds up seconds by phase. It starts when it is created.

    Parameters
    ----------
    profiled : bool
        Whether to keep when each phase began and ended, too, in `intervals`.
    """

    def __init__(self, profiled: bool = False) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.intervals: list[tuple[str, float, float]] | None = [] if profiled else None
        """Phase, begin and end, by `time.perf_counter`; None unless profiled."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count a `with` block's time to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, started, time.perf_counter())

    def add(self, name: str, started: float, ended: float) -> None:
        """Count a time that was measured elsewhere, by `time.perf_counter`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + ended - started
        if self.intervals is not None:
            self.intervals.append((name, started, ended))

    def add_all(self, name: str, started: np.ndarray, ended: np.ndarray) -> None:
        """Count times that were measured elsewhere, (n,) float64 each."""
        self.seconds[name] = self.seconds.get(name, 0.0) + float((ended - started).sum())
        if self.intervals is not None:
            self.intervals += zip(repeat(name), started.tolist(), ended.tolist())

    def total(self) -> float:
        """Return the seconds since the stopwatch was made."""
        return time.perf_counter() - self.started
