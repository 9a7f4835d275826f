"""The bar of commands that take long: on a terminal only, and gone at the end."""

import io

import pytest

from esmpi.commands._progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(out: io.StringIO, seconds: float, monkeypatch: pytest.MonkeyPatch) -> str:
    """Do 10 steps of so many seconds and return what was written."""
    now = 100.0
    monkeypatch.setattr("esmpi.commands._progress.time.monotonic", lambda: now)
    with Progress("generations replayed", out) as progress:
        for done in range(1, 11):
            now += seconds
            progress(done, 10)
    return out.getvalue()


def test_a_bar_shows_what_is_left_and_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    written = run(Terminal(), 30, monkeypatch)
    bars = written.split("\r")
    assert bars[4].rstrip() == "############------------------ 4 of 10 generations replayed, 3:00 left"
    assert len(bars) == 13
    assert set(bars[11]) == {" "}
    assert len(bars[11]) == max(map(len, bars))
    assert bars[12] == ""


def test_what_is_fast_or_no_terminal_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Terminal(), 0.1, monkeypatch) == ""
    assert run(io.StringIO(), 30, monkeypatch) == ""
