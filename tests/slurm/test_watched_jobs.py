"""`esmpi watch` in terminals of two widths, beside a run on a real Slurm."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import GENERATIONS, ROOT, TINY_RUN, pieces, read_digests, require

from esmpi import submit
from slurm.cluster import Cluster
from slurm.conftest import PATIENCE_S

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTHS = (80, 160)


class Terminal:
    """A terminal in which a command runs, and all that was ever on it."""

    def __init__(self, command: list[str], columns: int):
        self.seen = b""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment | {"TERM": "xterm-256color"}
        )
        os.close(slave)
        self._thread = threading.Thread(target=self._read, args=(master,))
        self._thread.start()

    def _read(self, master: int) -> None:
        for piece in pieces(master):
            self.seen += piece

    def lines(self) -> list[str]:
        """Wait for the end of the command, and return the lines without colours and moves of the cursor."""
        try:
            assert self.process.wait(PATIENCE_S) == 0
        finally:
            self.process.kill()
            self._thread.join()
        return [_CODES.sub("", line) for line in re.split(r"[\r\n]+", self.seen.decode())]


def test_a_run_is_watched_from_its_queue_to_its_end(
    cluster: Cluster, digests: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require("slurm", find_spec("submitit") is not None, "pip install 'esmpi[submitit]'")
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "tiny"
    watch = [sys.executable, "-m", "esmpi", "watch", str(folder), "--every", "0.3"]
    terminals = [Terminal(watch, columns) for columns in WIDTHS]
    overrides = [f"run.output_dir={tmp_path}", f"es.generations={GENERATIONS}", "eval.every=1"]
    (job,) = submit(TINY_RUN, overrides, nodes=2, time_limit="30:00")
    job.result()
    for columns, terminal in zip(WIDTHS, terminals, strict=True):
        lines = terminal.lines()
        text = "\n".join(lines)
        assert max(map(len, lines)) <= columns
        assert "there is no run file yet" in text
        assert re.search(r"running, updated 0:0\d ago", text)
        # what Slurm said of the end of the job
        assert re.search(r"time left +0:\d\d by generations; the job ends in [23]\d:\d\d", text)
        assert re.search(r"idle +\d+ % of the time, 2 ranks", text)
        assert re.search(r"completions of held-out at generation \d", text)
        assert re.search(r"(right|wrong) +\d\.\d\d  \{\"numbers\"", text)
        assert re.search(r" finished", text)
        beside = any(line.startswith("fitness") and re.search(r"right|wrong|completions", line) for line in lines)
        assert beside is (columns == 160), "there is room for completions beside the figures"
    assert read_digests(folder) == digests, "the run is none the worse"
