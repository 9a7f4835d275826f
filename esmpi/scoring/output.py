"""What rewards print: it is passed on, but not without end."""

import logging
import os
import selectors
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

log = logging.getLogger(__name__)

_AT_START = 65536
"""Bytes that a process may print before its first completion, such as a traceback."""
_AT_ONCE = 4096
"""Bytes that it may print while it scores a completion, or all that a reward gets at once."""
_PIECE = 65536


class Output:
    """Passes on what a process writes to standard output and standard error, up to a limit, in a thread.

    Parameters
    ----------
    context : SpawnContext
        Of the process.
    """

    def __init__(self, context: SpawnContext):
        self._ours, self._theirs = zip(*(context.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._left = _AT_START
        self._said = False
        self._thread = threading.Thread(target=self._pass_on, daemon=True, name="esmpi-reward-output")

    @property
    def theirs(self) -> tuple[Connection, Connection]:
        """The ends for `take`, of standard output and standard error; they are an argument of the process."""
        return self._theirs

    def begin(self) -> None:
        """Begin to pass on, once the process has its ends."""
        for end in self._theirs:
            end.close()  # so that the pipes end when the process does
        self._thread.start()

    def renew(self) -> None:
        """Allow as much as for one completion."""
        self._left = _AT_ONCE

    def end(self) -> None:
        """Wait for what is left in the pipes, once the process has ended."""
        self._thread.join(1)  # a process that a reward has started may have left its group, and keep the pipes open

    def _pass_on(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, end in enumerate(self._ours, 1):
                selector.register(end, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, _PIECE)
                    if not data:
                        selector.unregister(key.fileobj)
                    kept = data[: max(0, self._left)]
                    self._left -= len(kept)
                    with suppress(OSError):  # nobody reads what this process prints
                        os.write(key.data, kept)
                    if len(kept) < len(data) and not self._said:
                        self._said = True
                        log.warning(
                            "a reward prints more than %d bytes at once: the rest is left out, here and later", _AT_ONCE
                        )


def take(ends: tuple[Connection, Connection]) -> None:
    """Let standard output and standard error of this process go where the run passes them on."""
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    # a pipe would be written to in blocks, and what is in memory is lost when the process is killed
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a file here
