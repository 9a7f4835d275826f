"""`esmpi watch`: frames of run files that are missing, damaged, large, hostile or growing; and a real terminal."""

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import fill, make_run, members_of, row_of
from rich.cells import cell_len
from rich.console import Console

from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.report.frame import frame
from esmpi.report.spark import duration, one_line, sparkline
from esmpi.report.watching import View, Watcher
from esmpi.stop.time_limit import job_ends
from esmpi.store import members as member_table
from esmpi.store.run_file import RunFile, samples_path

HOSTILE = [
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp.exe",
    "[bold red]x[/bold red] [link=http://127.0.0.1:9]here[/link] :smile: [/]",
    "first\nsecond\r\tthird\u2028fourth \ud800",
    "日本語のテキスト " * 40,
    "z\u0301" * 300,
]


def grow(run: RunFile, rng: np.random.Generator, generations: int) -> None:
    """Commit another generation."""
    generation = run.num_generations
    run.commit(row_of(generation, rng, generations), members_of(8, rng, generation / generations))


def half_way(folder: Path, planned: int = 100, **keys: int) -> RunFile:
    """Write a run that has some of its generations."""
    run = make_run(folder, **keys)
    run.attributes["config"]["es"]["generations"] = planned
    run.write()
    return run


def draw(views: list[View], width: int, height: int = 50, now: float | None = None) -> str:
    """Return a frame as text, after a look at what must hold for any frame."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, markup=False, highlight=False, emoji=False)
    console.print(frame(views, console, time.time() if now is None else now, "footer"))
    text = out.getvalue()
    assert [line for line in text.splitlines() if cell_len(line) > width] == []
    assert [character for character in text if character != "\n" and not character.isprintable()] == []
    return text


@pytest.mark.parametrize("width", [10, 30, 80, 160])
def test_a_frame_has_the_facts_and_fits_the_terminal(tmp_path: Path, width: int) -> None:
    run = half_way(tmp_path / "run", generations=40)
    text = draw(Watcher([tmp_path / "run"]).look(), width)
    if width < 80:  # nothing but that it fits
        return
    row, last = run.generations[-1], run.evaluations["held_out"][-1]
    for fact in (
        *("made", "running", "40 of 100 generations", "40 %", "footer", "held-out", "kept", "tokens/s"),
        *(f"{row['fitness_mean']:.3f}", f"best {row['fitness_max']:.3f}", f"{100 * last['accuracy']:.1f} %"),
        *(f"{row['tokens'] / row['seconds_total']:,.0f}", "+55.0 since 0", "generate 6", "2 ranks", "failures"),
        *("9 rewards raised an exception, 39 in all", "shrink at generation 8: accuracy fell"),
        *(
            "3:00 by generations",
            "completions of held-out at generation 40",
            "right",
            "wrong",
            "problem 1: plain words",
        ),
    ):
        assert fact in text, fact
    assert "secret" not in text
    # idle: two ranks with four members of 0.2 and 0.3 s each, of generations of 3 s
    assert "idle        7 % of the time" in text


def test_what_models_and_strangers_wrote_is_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", texts=HOSTILE)
    config = run.attributes["config"]
    config["run"]["name"] = config["model"]["path"] = config["task"]["name"] = HOSTILE[0] + HOSTILE[1]
    run.attributes["provenance"][0]["slurm"] = {"SLURM_JOB_ID": "1 --help"}
    run.write()
    views = Watcher([tmp_path / "run"]).look()
    assert views[0].facts is not None
    assert views[0].facts.job == ""
    text = draw(views, 160)
    for shown in ("\\x1b[31mred\\x1b]0;title\\x07", "[bold red]x[/bold red] [link=http", ":smile:", "\\u202egnp"):
        assert shown in text
    assert "first second third fourth" in text
    draw(views, 80)
    draw(Watcher([tmp_path / "run", tmp_path / HOSTILE[1].replace("/", "|")]).look(), 80)


def test_a_file_is_read_only_if_it_has_changed(tmp_path: Path) -> None:
    run = half_way(tmp_path / "run")
    watcher = Watcher([tmp_path / "run"])
    [view] = watcher.look()
    first = view.facts
    watcher.look()
    assert view.facts is first
    grow(run, np.random.default_rng(1), 100)
    assert watcher.look() == [view]
    assert view.facts is not None
    assert view.facts.done == 13
    assert "13 of 100 generations" in draw([view], 80)
    before = run.path.stat()
    run.attributes["config"]["es"]["generations"] = 200
    run.write()
    os.utime(run.path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as within one tick of a file server's clock
    assert run.path.stat().st_size == before.st_size
    watcher.look()
    assert "13 of 200 generations" in draw([view], 80)


def test_a_file_that_is_not_there_or_damaged_is_looked_at_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    watcher = Watcher([folder])
    [view] = watcher.look()
    assert view.state == "waiting"
    shown = draw([view], 160)
    assert str(folder) in shown
    assert "there is no run file yet" in shown
    run = half_way(folder)
    whole = run.path.read_bytes()
    run.path.write_bytes(whole[: len(whole) // 2])  # somebody copies it
    watcher.look()
    assert view.state == "unreadable"
    assert "is damaged: its checksum is wrong" in draw([view], 160)
    run.path.write_bytes(whole)
    watcher.look()
    assert (view.state, view.trouble) == ("running", "")
    run.path.write_bytes(b"nothing")
    watcher.look()
    shown = draw([view], 160)
    assert "is not a run file of esmpi" in shown
    assert "12 of 100 generations" in shown  # what was known is still shown
    run.path.unlink()
    watcher.look()
    assert "the run file is gone" in draw([view], 80)
    samples_path(run.path, "held_out", 12).write_text("{}\n")
    run.write()
    watcher.look()
    assert "g000012.held_out.jsonl is damaged" in draw([view], 400)
    run.attributes["log_only"] = True
    run.write()
    watcher.look()
    assert "is a log-only file, which has no figures of the training: watch the run itself" in draw([view], 400)
    run.attributes["log_only"] = False
    run.attributes["config"]["es"]["generations"] = "many"  # well formed, but by no esmpi
    run.write()
    watcher.look()
    assert "es.generations of the config: Expected `int`" in draw([view], 400)


def test_segments_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_table, "SEGMENT_BYTES", 2000)
    run = half_way(tmp_path / "run", generations=40)
    assert len(run.segments) > 1
    for segment in run.segments:
        (tmp_path / "run" / segment.file).unlink()
    with pytest.raises(UserError, match="is missing"):
        RunFile.open(run.path)
    text = draw(Watcher([tmp_path / "run"]).look(), 80)
    assert "40 of 100 generations" in text
    assert "idle        7 %" in text  # of the members that are in the run file


def test_states(tmp_path: Path) -> None:
    run = half_way(tmp_path / "run")
    watcher = Watcher([tmp_path / "run"])
    old = time.time() - 1000

    def state() -> str:
        return watcher.look()[0].state

    assert state() == "running"
    os.utime(run.path, (old, old))
    assert state() == "silent"
    run.attributes["config"]["es"]["generations"] = 12
    run.attributes["config"]["run"]["export_dtype"] = "float32"
    run.write()
    assert state() == "running"  # the model is not written yet
    (tmp_path / "run" / "model").mkdir()
    assert state() == "finished"
    run.attributes["config"]["es"]["generations"] = 13  # prolonged
    run.write()
    assert state() == "running"
    run.attributes["events"] = [{"generation": 12, "action": "stop", "reason": "accuracy fell", "to": None}]
    run.write()
    assert state() == "stopped"


def test_time_left_counts_evaluations_and_the_end_of_the_job(tmp_path: Path) -> None:
    run = half_way(tmp_path / "run", generations=12)
    for i, row in enumerate(run.generations):
        row["unix_time"] = 100 + 5 * i  # 3 s of a generation, 2 s of evaluations
    run.write()
    [view] = Watcher([tmp_path / "run"]).look()
    assert view.left_s == 5 * 88
    view.ends = 1100.0
    assert "7:20 by generations; the job ends in 1:40, after about 20 generations" in draw([view], 160, now=1000.0)
    assert "its job ends in 1:40, before the last generation" in draw([view, view], 160, now=1000.0)
    assert "its job is over" in draw([view], 80, now=2000.0)


def test_slurm_is_asked_for_the_end_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert job_ends({"7"}) == {}
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\n[ $2 = --jobs=7,8,9 ] && printf '7 1-00:00:10\\n8 UNLIMITED\\n9 INVALID\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = job_ends({"9", "8", "7"})
    assert found.keys() == {"7"}
    assert found["7"] - time.time() == pytest.approx(86410, abs=5)
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id' >&2\nexit 1\n")
    assert job_ends({"7"}) == {}


def test_runs_of_a_folder_are_in_one_table(tmp_path: Path) -> None:
    for seed in range(3):
        half_way(tmp_path / "sweep" / f"tuned_sigma=0.001_seed={seed}", planned=30, seed=seed)
    watcher = Watcher([tmp_path / "sweep", tmp_path / "later"])
    assert watcher.has_folders
    wide, narrow = draw(watcher.look(), 160), draw(watcher.look(), 80)
    for text in (wide, narrow):
        assert "4 runs: 1 waiting, 3 running" in text
        assert text.count("12/30") == 3
        assert all(f"sigma=0.001_seed={seed}" in text for seed in range(3))
    assert "sweep/tuned_sigma=0.001_seed=2" in wide
    assert all(head in wide for head in ("fitness", "held-out", "since", "tokens/s", "idle", "failures"))
    make_run(tmp_path / "sweep" / "tuned_sigma=0.001_seed=3", "run.export_dtype=none")  # appears, and is finished
    assert "5 runs: 1 waiting, 3 running, 1 finished" in draw(watcher.look(), 160)
    assert "and 2 runs more" in draw(watcher.look(), 80, height=8)
    assert not Watcher([tmp_path / "later"]).has_folders


def test_a_pipe_gets_one_frame_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_way(tmp_path / "run")

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.rglob("*"))}

    before = files()
    assert main(["watch", str(tmp_path / "run")]) == 0
    assert "12 of 100 generations" in capsys.readouterr().out
    assert main(["watch", "--once", str(tmp_path / "none")]) == 2
    assert "no run file yet" in capsys.readouterr().out
    assert files() == before


def test_the_page_is_kept_up_to_date(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_way(tmp_path / "run")
    assert main(["watch", "--once", "--page", str(tmp_path / "run")]) == 0
    assert "page: " in capsys.readouterr().out
    assert "12 of 100" in (tmp_path / "run" / "report.html").read_text()
    assert main(["watch", "--out", "x.html", str(tmp_path / "run")]) == 2
    assert "--out: no page is written without --page" in capsys.readouterr().err


def test_without_rich_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["watch", "run"]) == 2
    assert "watch needs rich: pip install 'esmpi[report]'" in capsys.readouterr().err


def test_a_terminal(tmp_path: Path) -> None:
    """Before there is a run, while it grows, and until it is finished; then ctrl-c."""
    rng = np.random.default_rng(0)

    def start() -> tuple[subprocess.Popen[bytes], Callable[[bytes], bytes]]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        command = [sys.executable, "-m", "esmpi", "watch", "--every", "0.1", str(tmp_path / "run")]
        environment = {key: text for key, text in os.environ.items() if key not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            *[command], stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
        )
        os.close(theirs)
        seen = b""

        def until(text: bytes) -> bytes:
            nonlocal seen
            deadline = time.monotonic() + 60
            while text not in seen:
                assert time.monotonic() < deadline, seen
                if select.select([ours], [], [], 1)[0]:
                    try:
                        seen += os.read(ours, 65536)
                    except OSError:  # the other end is closed
                        break
            assert text in seen, seen
            return seen

        return process, until

    process, until = start()
    until(b"no run file yet")
    run = half_way(tmp_path / "run", planned=14)
    until(b"12 of 14 generations")
    grow(run, rng, 14)
    until(b"13 of 14 generations")
    grow(run, rng, 14)
    fill(run, rng, [14], (), 20)
    run.attributes["config"]["run"]["export_dtype"] = "none"
    run.write()
    shown = until(b"finished")
    assert process.wait(30) == 0
    assert b"Traceback" not in shown

    grow(run, rng, 14)
    run.attributes["config"]["es"]["generations"] = 20
    run.write()
    for number in (signal.SIGINT, signal.SIGTERM):
        process, until = start()
        until(b"15 of 20 generations")
        process.send_signal(number)
        shown = until(b"\x1b[?25h")  # the cursor is back
        assert process.wait(30) == 0
        assert b"Traceback" not in shown


def test_sparklines() -> None:
    assert sparkline(np.array([0.0, 1, 2, 3, 4, 5, 6, 7]), 20) == "▁▂▃▄▅▆▇█"
    assert sparkline(np.array([0.0, 0, 7, 7]), 2) == "▁█"
    assert sparkline(np.array([1.0, np.nan, np.inf, 2]), 4) == "▁  █"
    assert sparkline(np.array([3.0, 3]), 4) == "▅▅"
    assert sparkline(np.array([np.nan]), 4) == " "
    assert sparkline(np.empty(0), 4) == ""
    assert sparkline(np.array([0.0, 1]), 4, ascii_only=True).isascii()


def test_durations_and_lines() -> None:
    seconds = (7, 754, 3723, 200000, -1, np.nan)
    assert [duration(one) for one in seconds] == ["0:07", "12:34", "1:02:03", "2 d 7 h", "0:00", "-"]
    assert one_line(" a\n\tb\x07 ", 20) == "a b\\x07"
    assert [one_line("abcdefghijk", most) for most in (0, 3, 8)] == ["", "abc", "ab ... k"]
    assert one_line("x" * 50 + "end", 12) == "xxxx ... end"
    assert len(one_line("\x07" * 10**6, 40)) == 40
