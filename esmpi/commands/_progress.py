"""A bar on a terminal, for commands that may take long."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

_PATIENCE_S, _EVERY_S = 2.0, 0.2
_WIDTH = 30


class Progress:
    """A bar with the time that is left, which appears if something takes seconds, and vanishes at the end.

    Nothing is shown if the output is not a terminal.

    Parameters
    ----------
    what : str
        What is counted, such as "generations replayed".
    out : TextIO, optional
        Default: standard error.
    """

    def __init__(self, what: str, out: TextIO | None = None):
        self._what = what
        self._out = sys.stderr if out is None else out
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE_S
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Show that so much is done of a total."""
        now = time.monotonic()
        if now < self._next or not self._out.isatty() or not 0 < done <= total:
            return
        left = round((now - self._began) / done * (total - done))
        filled = _WIDTH * done // total
        bar = "#" * filled + "-" * (_WIDTH - filled)
        line = f"{bar} {done:,} of {total:,} {self._what}, {left // 60}:{left % 60:02d} left"
        self._write(f"\r{line.ljust(self._shown)}")
        self._shown, self._next = len(line), now + _EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write(f"\r{' ' * self._shown}\r")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
