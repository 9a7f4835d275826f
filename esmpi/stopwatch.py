"""Where the time of a generation goes."""

import time


class Stopwatch:
    """Adds up seconds by phase, from its making on.

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

    def phase(self, name: str) -> "_Phase":
        """Count a `with` block's time to a phase."""
        return _Phase(self, name)

    def add(self, name: str, started: float, ended: float) -> None:
        """Count a time that was measured elsewhere, by `time.perf_counter`."""
        self.seconds[name] = self.seconds.get(name, 0.0) + ended - started
        if self.intervals is not None:
            self.intervals.append((name, started, ended))

    def total(self) -> float:
        """Return the seconds since the stopwatch was made."""
        return time.perf_counter() - self.started


class _Phase:
    # a class: contextlib's generators take several times as long, and there are two of these a member
    __slots__ = ("_name", "_started", "_watch")

    def __init__(self, watch: Stopwatch, name: str):
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._watch.add(self._name, self._started, time.perf_counter())
