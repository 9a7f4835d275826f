"""Cells of the matrix of faults, each in a real run on two ranks: what is committed stays, and the run can be resumed.

A few of the cells that have been measured are tried, chosen by a seed, which is the day. ESMPI_FAULTS=all tries all,
ESMPI_FAULTS=NUMBER those of that seed, and ESMPI_FAULTS=TEXT;TEXT those with a text in their name.
ESMPI_FAULTS_RECORD=FILE adds what is measured to a file, such as measured.json, from which faults_page.py makes
docs/faults.md.
"""

import datetime
import json
import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from faults_page import MEASURED, page
from matrix import ENDS, LIMIT_S, NUMBERS, REFUSES, STOPS, SURVIVES, Cell, cells
from slurm.cluster import ended
from support import ROOT, TINY_RUN, VLLM_SMALL, Columns, Run, read, require, train

from esmpi.run import STOPPED

AT_PHASE = Path(__file__).parent / "at_phase.py"
SMALL = (
    *("es.population_size=3", "es.generations=2", "data.batch_size=4", "data.num_eval=2", "sampling.max_tokens=40"),
    *("eval.every=1", "snapshot.every=1", "snapshot.keep=1", "scoring.time_limit_s=120"),
)
VLLM = (
    "engine.kind=vllm",
    "engine.tensor_parallel_size=2",
    *(f"engine.{key}={value}" for key, value in VLLM_SMALL.items()),
)
SAMPLE = 3
ASKED = os.environ.get("ESMPI_FAULTS", "")
PAUSE_S = float(os.environ.get("ESMPI_FAULTS_PAUSE_S", "3"))
RECORD = os.environ.get("ESMPI_FAULTS_RECORD")
DAY = datetime.date.today()


def chosen() -> list[Cell]:
    """Return the cells to try."""
    known = [cell for cell in cells() if cell.runs]
    if ASKED == "all":
        return known
    if ASKED and not ASKED.isdigit():
        return [cell for cell in known if any(part in cell.name for part in ASKED.split(";"))]
    measured = json.loads(MEASURED.read_text())["cells"]
    quick = [cell for cell in known if cell.name in measured and cell.victim != "vLLM worker"]  # which starts slowly
    return random.Random(int(ASKED or DAY.toordinal())).sample(quick, SAMPLE)


@pytest.fixture(scope="module")
def undisturbed(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """A run to which nothing happens."""
    print(f"cells of seed {ASKED or DAY.toordinal()} (ESMPI_FAULTS)")
    columns = train(launch, tmp_path_factory.mktemp("undisturbed"), 0, *SMALL)
    assert len(set(columns["generations/theta_digest"].tolist())) == 2, "theta has to change"
    return columns


@pytest.mark.parametrize("cell", chosen(), ids=lambda cell: cell.name)
def test_cell(launch: Run, tmp_path: Path, undisturbed: Columns, cell: Cell) -> None:
    stamp, directory, moved = tmp_path / "stamp", tmp_path / "tiny", tmp_path / "moved"
    words, ranks = (*SMALL, f"run.output_dir={tmp_path}"), 2
    if cell.victim == "vLLM worker":
        require("vllm", shutil.which("vllm") is not None, "pip install 'esmpi[vllm]'")
        words, ranks = (*words, *VLLM), 1
    if cell.fault == "read-only":
        may_mount = subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0
        require("namespaces", may_mount, "no mounts of a process's own here: containers seldom may")
    program = [AT_PHASE, cell.victim, cell.fault, cell.phase, stamp, PAUSE_S, TINY_RUN]
    done = launch([*program, *words], ranks, 900)
    seconds = time.time() - float(stamp.read_text())
    if moved.exists():
        assert not directory.exists(), "the run made its directory anew"
        moved.rename(directory)
    text = done.stdout + done.stderr
    expected = undisturbed["generations/theta_digest"].tolist()
    before = read(directory)["generations/theta_digest"].tolist() if (directory / "run.h5").exists() else []
    record(cell, done, seconds, len(before))
    check_end(cell, done, text)
    assert seconds < PAUSE_S + LIMIT_S * ((4 if cell.victim == "vLLM worker" else 2) if cell.outcome == SURVIVES else 1)
    wait_for_the_end_of((tmp_path / "processes").read_text().split())
    assert before == expected[: len(before)], "what is committed is the undisturbed run's"
    # most phases come after the first generation, which is committed at the latest a moment later
    assert not (cell.fault == "deleted" and before)
    announced = [int(found) for found in re.findall(r"^generation .* (\d+)/\d+ done", done.stdout, re.MULTILINE)]
    assert len(before) >= max(announced, default=0) or cell.fault == "deleted"
    resumed = train(launch, tmp_path, 0, *SMALL)
    for name in ("generations/theta_digest", "members/fitness", "evaluations/held_out/reward_mean"):
        assert resumed[name].tolist() == undisturbed[name].tolist()
    assert (directory / "model" / "model.safetensors").exists()
    assert not list(tmp_path.rglob("*.tmp")), "leftovers"


def wait_for_the_end_of(processes: list[str]) -> None:
    """Wait until none of the processes that worked for a rank is left."""
    deadline = time.monotonic() + LIMIT_S
    while left := [number for number in processes if not ended(int(number))]:
        assert time.monotonic() < deadline, f"processes {left} are left"
        time.sleep(0.1)


def check_end(cell: Cell, done: "subprocess.CompletedProcess[str]", text: str) -> None:
    """Check how the disturbed run has ended."""
    if cell.outcome == ENDS:
        assert done.returncode not in (0, 2, STOPPED), text
    elif cell.outcome == STOPS:
        assert done.returncode in (0, STOPPED), text
    elif cell.outcome == REFUSES:
        assert done.returncode == 2, text
    else:
        assert done.returncode == 0, text
    if cell.says:
        assert re.search(cell.says, text), text
    if cell.outcome != ENDS:
        own = [
            line for line in text.splitlines() if not line.startswith("(Worker")
        ]  # vLLM tells what its workers raise
        assert not any("Traceback" in line for line in own), text


def record(cell: Cell, done: "subprocess.CompletedProcess[str]", seconds: float, committed: int) -> None:
    """Add what was seen to the file of measurements."""
    if RECORD is None:
        return
    path = Path(RECORD)
    found = json.loads(path.read_text()) if path.exists() else {"cells": {}}
    found |= {"date": str(DAY)} | ({"pause_s": PAUSE_S} if cell.fault == "STOP" else {})
    seen = {"exit": done.returncode, "seconds": round(seconds, 1), "committed": committed, "says": said(cell, done)}
    found["cells"][cell.name] = seen
    path.write_text(json.dumps(found, indent=1) + "\n")


def said(cell: Cell, done: "subprocess.CompletedProcess[str]") -> str:
    """Return the line that tells the user what happened, without names of this machine."""
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines()]
    kinds = [cell.says] if cell.says else [r"rerun the same command", r"KILLED BY SIGNAL|signal 9|EXIT CODE"]
    line = next((line for kind in kinds for line in reversed(lines) if re.search(kind, line)), "")
    line = re.sub(r"/\S*/(tiny|moved)", "RUN", line)
    return re.sub(r" on \S+\]", " on HOST]", line).replace("|", "/").replace("`", "'")[:300]


def test_the_page_is_that_of_the_table() -> None:
    assert (ROOT / "docs" / "faults.md").read_text() == page()


def test_each_cell_has_one_answer() -> None:
    for cell in cells():
        assert sum(map(bool, (cell.outcome, cell.elsewhere, cell.impossible, cell.untried))) == 1, cell
        if cell.elsewhere:
            assert (ROOT / cell.elsewhere).exists(), cell
            assert cell.happens
    for *_, file in NUMBERS:
        assert (ROOT / file).exists(), file
