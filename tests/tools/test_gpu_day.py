"""tools/gpu_day.sh from end to end without a GPU, so that on the day of a GPU only CUDA itself is new."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

pytest.importorskip("triton", reason="pip install triton")

PARTS = ("machine", "bits", "run", "placements", "large_tensor", "kernels", "update", "memory", "efficiency", "waves")


def gpu_day(out: Path, *options: str) -> tuple[int, list[dict[str, Any]]]:
    """Return the exit code and the lines of the results."""
    command = ["bash", "tools/gpu_day.sh", "--device", "cpu", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=570)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kept = (out / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in kept[-len(lines) :]] == lines, done.stderr
    return done.returncode, lines


def test_all_parts_find_what_they_are_to_find(tmp_path: Path) -> None:
    code, found = gpu_day(tmp_path, "--limits", "4")
    assert [(part["part"], part["error"]) for part in found if "error" in part] == []
    assert code == 0
    assert [part["part"] for part in found] == list(PARTS)
    by_name = {part["part"]: part for part in found}
    assert by_name["bits"]["bits_equal"]
    assert by_name["large_tensor"]["bits_equal"]
    assert by_name["run"]["replayed_on_cpu"]
    assert by_name["placements"]["placements_equal"]
    assert all(by_name["update"][name] > 0 for name in ("seconds_30", "seconds_100", "rank_1_seconds_100"))
    assert by_name["memory"]["planned_gpu_mib.device"] > by_name["memory"]["planned_gpu_mib.host"] > 0
    assert by_name["efficiency"]["efficiency"] > 0
    assert [row["wave_size"] for row in by_name["waves"]["found"]] == [3, 3]
    assert all(row["gain"] > 0 for row in by_name["waves"]["found"])
    assert by_name["kernels"]["perturb_ns"] > 0


def test_faults_are_told_and_the_other_parts_run(tmp_path: Path) -> None:
    code, (bits, machine) = gpu_day(tmp_path, "--parts", "bits,machine", "--fault", "bits=bits", "--limits", "4")
    assert code == 1
    assert "makes other bits on this GPU than esmpi does on a CPU" in bits["error"]
    assert "error" not in machine
    code, (machine, bits) = gpu_day(tmp_path, "--parts", "machine,bits", "--fault", "machine=hang", "--limits", "0.1")
    assert code == 1
    assert machine["error"] == "no end after 2 s"
    assert bits["error"] == "no end after 8 s" or bits["bits_equal"]
    code, (machine,) = gpu_day(tmp_path, "--parts", "machine", "--fault", "machine=raise")
    assert code == 1
    assert machine["error"] == "the fault that was asked for"
    code, (machine, update) = gpu_day(tmp_path, "--parts", "machine,update", "--budget", "4", "--fault", "machine=hang")
    assert code == 1
    assert machine["error"].startswith("no end after")
    assert update["error"] == "no time left"
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 7


def processes(mark: str) -> dict[int, str]:
    """Return the command lines of all processes that have a mark in their environment and have not ended, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended, or is another user's
            continue
    return {number: command for number, command in found.items() if command}


def wait_until(done: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("number", "target"),
    [(signal.SIGTERM, "gpu_day.sh"), (signal.SIGKILL, "gpu_day.sh"), (signal.SIGKILL, "gpu_day.py")],
)
def test_cut_off_midway_it_leaves_whole_lines_and_no_process(
    tmp_path: Path, number: signal.Signals, target: str
) -> None:
    """While a part runs that has started a process of its own."""
    mark = f"GPU_DAY_MARK={tmp_path}"
    options = ["--device", "cpu", "--out", str(tmp_path), "--parts", "machine,run,bits", "--limits", "4"]
    day = subprocess.Popen(
        ["bash", "tools/gpu_day.sh", *options],
        cwd=ROOT,
        env=os.environ | dict([mark.split("=")]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: any("-m esmpi.run" in command for command in processes(mark).values()), 120)
        own = [pid for pid, command in processes(mark).items() if f"tools/{target} " in command]
        os.kill(own[0], number)
        day.wait(20)
        wait_until(lambda: not processes(mark), 10)
    finally:
        for pid in processes(mark):
            os.kill(pid, signal.SIGKILL)
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["part"] == "machine"
    assert day.returncode == {("gpu_day.sh", signal.SIGTERM): 143, ("gpu_day.sh", signal.SIGKILL): -9}.get(
        (target, number), 137
    )
