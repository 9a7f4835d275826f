"""The bar of commands that take long: on a terminal only, and gone at the end."""

import io
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, pieces

from esmpi.progress import AboveProgress, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(out: io.StringIO, seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """Do 10 steps of so many seconds and return what was written."""
    now = 100.0
    monkeypatch.setattr("esmpi.progress.time.monotonic", lambda: now)
    with Progress("generations replayed", out) as progress:
        for done in range(1, 11):
            now += seconds
            progress(done, 10)
    return out.getvalue()


def test_a_bar_shows_what_is_left_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = run(Terminal(), 30, monkeypatch)
    bars = written.split("\r")
    assert bars[4].rstrip() == "########------------ 4 of 10 generations replayed, 3:00 left"
    assert len(bars) == 13
    assert set(bars[11]) == {" "}
    assert len(bars[11]) == max(map(len, bars))
    assert bars[12] == ""


def test_what_is_fast_or_no_terminal_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Terminal(), 0.1, monkeypatch) == ""
    assert run(io.StringIO(), 30, monkeypatch) == ""


def test_what_cannot_be_counted_has_a_clock_and_messages_stand_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.progress._PATIENCE_S", 0.0)
    monkeypatch.setattr("esmpi.progress._EVERY_S", 0.01)
    out = Terminal()
    message = logging.LogRecord("esmpi", logging.INFO, "", 0, "a message", None, None)
    with Progress("loading the model", out):
        deadline = time.monotonic() + 20
        while "0:00" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        AboveProgress(out).emit(message)
    assert "\rloading the model, 0:00" in out.getvalue()
    assert f"\r{' ' * 23}\ra message\n" in out.getvalue()
    ended = out.getvalue()
    time.sleep(0.05)
    assert out.getvalue() == ended


def test_a_run_on_a_terminal_shows_what_goes_on_and_its_log_has_none_of_it(tmp_path: Path) -> None:
    program = (
        "import esmpi.progress as it; it._PATIENCE_S, it._EVERY_S = 0.0, 0.001\n"
        "from esmpi.run import leave, main; leave(main())"
    )
    words = [sys.executable, "-c", program, str(TINY_RUN), f"run.output_dir={tmp_path}", "es.generations=1"]
    master, slave = pty.openpty()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=slave, cwd=ROOT)
    os.close(slave)
    seen = b"".join(pieces(master))
    assert process.wait() == 0, seen
    shown = seen.decode()
    assert "loading the model, compiling and testing, 0:0" in shown
    assert re.search(r"#+-* \d of 7 members of generation 0 evaluated, 0:0\d left\r", shown), shown[-3000:]
    assert "batches of held-out at generation 1 completed" in shown
    for what in (
        "members of generation 0 have their rewards",
        "batches of held-out at generation 1 have their rewards",
    ):
        assert what in shown
    assert shown.rstrip(" ").endswith("\r")
    text = (tmp_path / "log").read_text()
    assert "generation 0  fitness mean" in text
    assert "\r" not in text
    assert "members of generation" not in text
