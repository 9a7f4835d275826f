"""Asking a run to stop: the first signal sets a flag, the loop acts on it at the end of the generation."""

import os
import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Becomes true at the first SIGTERM, SIGINT or SIGUSR1; a second one ends the process at once.

    Nothing committed is lost by that: the run file is never half-written.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def install(self) -> None:
        """Take over the signals; only possible in the main thread."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = signal.Signals(number)
