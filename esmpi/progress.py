"""A line at the end of a terminal for what takes long: how much is done, or since when it has been under way."""

import logging
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Self, TextIO

_PATIENCE_S, _EVERY_S = 2.0, 0.5
_WIDTH, _LEAST_WIDTH = 20, 5
"""Characters of a bar: as many as there is room for beside the text, or none."""
_LOCK = threading.RLock()
"""Held by whoever writes to the terminal: the loop, a thread for each line, and the log."""
_shown: list["Progress"] = []
"""The lines that are on the screen: at most one, as things that take long are not within each other."""


class Progress:
    """A line that appears if something takes seconds, and vanishes at the end. Only a terminal has it.

    It has a bar with the time that is left, once it was called; before, and for what nobody can count, the time that
    has passed. A thread writes it, so that it moves though a single step takes long.

    Parameters
    ----------
    what : str
        What is counted, such as "generations replayed", or what is done, such as "loading the model".
    out : TextIO, optional
        Default: standard error.
    """

    def __init__(self, what: str, out: TextIO | None = None):
        self._what = what
        self._out = sys.stderr if out is None else out
        self._began = time.monotonic()
        self._next = self._began + _PATIENCE_S
        self._done = self._total = self._length = 0
        self._ended = threading.Event()

    def __call__(self, done: int, total: int) -> None:
        """Show that so much is done of a total."""
        self._done, self._total = done, total
        if self._out.isatty():
            self._draw()

    def __enter__(self) -> Self:
        self._ended.clear()
        if self._out.isatty():  # elsewhere, nothing here waits for anything
            threading.Thread(target=self._keep_drawing, name="esmpi-progress", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self in _shown:
            self.erase()

    def _keep_drawing(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._draw()

    def _draw(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        passed = now - self._began
        room = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
        if 0 < self._done <= self._total:
            left = round(passed / self._done * (self._total - self._done))
            line = f"{self._done:,} of {self._total:,} {self._what}, {_clock(left)} left"
            if (width := min(_WIDTH, room - 1 - len(line))) >= _LEAST_WIDTH:
                filled = width * self._done // self._total
                line = f"{'#' * filled}{'-' * (width - filled)} {line}"
        else:
            line = f"{self._what}, {_clock(round(passed))}"
        line = line[:room]
        with _LOCK:
            if self._ended.is_set():
                return
            self._write(f"\r{line.ljust(self._length)}")
            self._length, self._next = len(line), now + _EVERY_S
            if self not in _shown:
                _shown.append(self)

    def erase(self) -> None:
        """Take the line off the screen, until it is drawn again."""
        with _LOCK:
            if self._length:
                self._write(f"\r{' ' * self._length}\r")
                self._length = 0
            if self in _shown:
                _shown.remove(self)

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:  # a terminal that was closed is no reason to stop
            pass


class AboveProgress(logging.StreamHandler[TextIO]):
    """Writes messages where a line of progress may be, which appears again below them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        with _LOCK:
            for one in list(_shown):
                one.erase()
            super().emit(record)


def _clock(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"
