"""The matrix of faults: what happens to whom, when, and what a run does then.

`cells()` lists all of them. A cell has what is expected of it, and how it is tried: by `at_phase.py` in a real run, or
by a test elsewhere; or the reason why it cannot happen. `python tests/faults/matrix.py > docs/faults.md` writes that
page from this table and from what was measured (measured.json).
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VICTIMS = (
    *("rank 0", "another rank", "vLLM worker", "scoring process"),
    *("judge endpoint", "batch shell", "slurmd", "whole node"),
)
FAULTS = ("kill", "TERM", "STOP", "exception", "memory", "disk", "directory", "network", "clock")
PHASES = (
    *("load", "self-test", "generate", "score", "exchange"),
    *("update", "commit", "snapshot", "evaluate", "export"),
)
MEANING = {
    "kill": "`kill -9`, as the kernel does when memory runs out",
    "TERM": "`kill -TERM`",
    "STOP": "`kill -STOP`, and `-CONT` later",
    "exception": "an error in Python",
    "memory": "an allocation is refused",
    "disk": "no more room for files",
    "directory": "the run directory is renamed, and has its name back afterwards",
    "network": "the network is cut for a while",
    "clock": "the clock is set back by an hour",
}

ENDS, STOPS, SURVIVES, REFUSES = "ends", "stops", "survives", "refuses"
OUTCOMES = {
    ENDS: "the job ends with an error",
    STOPS: "the run stops after its generation, exit code 75, or was at its end already",
    SURVIVES: "the run goes on",
    REFUSES: "the run ends with exit code 2 and a message, or does without what could not be written",
}
LIMIT_S = 30
"""How long an end may take, on a machine that has other things to do, too."""


@dataclass(frozen=True)
class Cell:
    """Something that happens to a part of a run in a phase."""

    victim: str
    fault: str
    phase: str
    outcome: str = ""
    """A key of `OUTCOMES`; empty if the cell cannot happen, or is tried elsewhere."""
    says: str = ""
    """A regular expression of what the user reads; empty if nothing need be said."""
    elsewhere: str = ""
    """The test that tries it, if it is not in the runs of `at_phase.py`."""
    impossible: str = ""
    """Why it cannot happen."""
    untried: str = ""
    """Why it can happen, but nothing tries it."""

    @property
    def name(self) -> str:
        return f"{self.victim}, {self.fault}, {self.phase}"

    @property
    def runs(self) -> bool:
        """Whether `at_phase.py` runs it."""
        return bool(self.outcome)


def cells() -> Iterator[Cell]:
    """Yield all cells."""
    for victim in VICTIMS:
        for fault in FAULTS:
            for phase in PHASES:
                yield Cell(victim, fault, phase, **_of(victim, fault, phase))


def _of(victim: str, fault: str, phase: str) -> dict[str, str]:
    if victim in ("rank 0", "another rank"):
        return _of_rank(0 if victim == "rank 0" else 1, fault, phase)
    return {
        "vLLM worker": _of_worker,
        "scoring process": _of_scoring,
        "judge endpoint": _of_judge,
        "batch shell": _of_batch,
        "slurmd": _of_batch,
        "whole node": _of_node,
    }[victim](fault, phase)


def _of_rank(rank: int, fault: str, phase: str) -> dict[str, str]:
    if fault == "network":
        return {"elsewhere": "tests/mpi/test_two_hosts.py (a cut of seconds in a generation; not in each phase)"}
    if rank and fault in ("disk", "directory"):
        return {"impossible": "only rank 0 writes files"}
    if fault in ("exception", "memory"):
        what = "the fault of the test" if fault == "exception" else "MemoryError"
        return {"outcome": ENDS, "says": rf"\[rank {rank} of 2 on .*\] .*{what}"}
    if fault == "directory" and phase == "load":
        return {"outcome": REFUSES, "says": "no longer the directory in which this run began"}
    return {
        "kill": {"outcome": ENDS},
        "TERM": {"outcome": STOPS},
        "STOP": {"outcome": SURVIVES},
        "clock": {"outcome": SURVIVES},
        "disk": {"outcome": REFUSES, "says": "no room for|cannot write|continues without"},
        "directory": {"outcome": REFUSES, "says": "no longer the directory in which this run began"},
    }[fault]


def _of_scoring(fault: str, phase: str) -> dict[str, str]:
    if fault in ("disk", "directory"):
        return {"impossible": "it writes no files, unless the reward does"}
    if fault == "network":
        return {"impossible": "it talks to its rank by a pipe, unless the reward uses a network: see judge endpoint"}
    if phase == "load":
        return {"impossible": "it is started in this phase"}
    if fault in ("exception", "memory"):
        if phase in ("score", "evaluate"):
            return {"elsewhere": "tests/scoring/test_scoring.py"}
        return {"impossible": "it waits for completions, and executes nothing"}
    if fault == "clock":
        return {"impossible": "it measures no time: its rank does, by a clock that nobody can set"}
    return {"outcome": SURVIVES}


def _of_worker(fault: str, phase: str) -> dict[str, str]:
    if fault in ("disk", "directory"):
        return {"impossible": "it writes no files of the run"}
    if fault == "network":
        return {"impossible": "the workers of a rank are on its node"}
    if fault in ("kill", "STOP", "TERM") and phase in ("generate", "update"):
        return {"outcome": {"kill": ENDS, "STOP": SURVIVES, "TERM": SURVIVES}[fault]}
    return {"untried": "a start of vLLM takes too long for each phase"}


def _of_judge(fault: str, phase: str) -> dict[str, str]:
    if phase not in ("score", "evaluate"):
        return {"impossible": "nobody asks it in this phase"}
    if fault in ("kill", "exception", "STOP", "network", "memory"):
        return {"elsewhere": "tests/rewards/test_judge.py, tests/scoring/test_coroutines.py"}
    return {"impossible": "it is another program; what it does then is its own, and shows as an error or as silence"}


def _of_batch(fault: str, phase: str) -> dict[str, str]:
    if fault in ("exception", "memory"):
        return {"impossible": "it is no program of esmpi's: a death is the cell `kill`"}
    if fault in ("disk", "directory", "clock"):
        return {"impossible": "it neither writes into the run directory nor looks at the clock"}
    if fault == "TERM":
        return {"elsewhere": "tests/slurm/test_job_scripts.py"}
    return {"untried": "Slurm ends or requeues the job; resuming is the cell `kill` of both ranks"}


def _of_node(fault: str, phase: str) -> dict[str, str]:
    if fault == "kill":
        return {"elsewhere": "tests/slurm/test_job_scripts.py (in a generation; not in each phase)"}
    if fault == "network":
        return {"elsewhere": "tests/mpi/test_two_hosts.py (a cut of seconds in a generation; not in each phase)"}
    return {"impossible": "it is the cell of its ranks"}


NUMBERS = (
    ("a reward that is NaN or infinite", "has `scoring.failure_reward`", "tests/scoring/test_scoring.py"),
    ("a reward of 1e100 or more, such as 1e300", "has `scoring.failure_reward`", "tests/scoring/test_scoring.py"),
    ("fitness so large that the update overflows", "the run ends before the update", "tests/es/test_shaping.py"),
    ("equal rewards of all members", "theta stays; the log says `no signal`", "tests/es/test_shaping.py"),
    ("no reward at all", "the run ends, or theta stays: `scoring.on_failure`", "tests/es/test_shaping.py"),
    ("weights that overflow float16", "a warning with their number", "tests/mpi/test_float16.py"),
    ("weights that overflow bfloat16", "a warning with their number, at the start", "tests/mpi/test_float16.py"),
    ("noise that overflows bfloat16", "gives infinity, as torch has it", "tests/noise/test_noise.py"),
    ("NaN and infinity in bfloat16", "stay what they are", "tests/noise/test_noise.py"),
    ("NaN in the checkpoint", "refused at the start", "tests/mpi/test_float16.py"),
    ("logits of the base model that are NaN", "refused at the start", "tests/mpi/test_float16.py"),
    ("logits of a member that are NaN", "its completions have the reward they get", "tests/mpi/test_float16.py"),
    ("rows that are not finite, quantized", "stand for NaN", "tests/noise/test_quantization.py"),
    ("more ranks than members", "the others wait, and check theta", "tests/mpi/test_run.py"),
    ("a data set that is empty", "refused at the start", "tests/data/test_data_files.py"),
    ("a completion of no token but its end, or of none", "has its reward", "tests/engines/test_empty_completions.py"),
    ("a prompt that does not fit", "refused at the start, with its length", "tests/mpi/test_run.py"),
    ("more than 2^31 - 1 tokens of a member", "recorded as 2^31 - 1", "tests/es/test_population.py"),
    ("messages of several pieces, with a rest", "gathered", "tests/mpi/test_run.py"),
)
"""Numbers at the edge: what happens, and the test."""


MEASURED = Path(__file__).parent / "measured.json"


INTRODUCTION = """\
# What happens when something fails

This page is for people who want to know what a run loses if a process, a node or a file system fails at the worst
moment. In short: nothing that is committed is lost, and the same command resumes.

A run on two ranks is disturbed once in each way and phase, by the real program. In each case, the committed generations
must be those of an undisturbed run, and the same command must lead to the same theta and the same evaluations, bit for
bit, and leave no temporary files. The table is `tests/faults/matrix.py`, which writes this page. {num_cells} of its
cells can be tried so, and {num_measured} were, on {date}, on two cores that were busy with other programs. The usual
tests repeat a few of these, chosen by a seed; with `ESMPI_FAULTS=all` in the environment,
`python -m pytest tests/faults/test_matrix.py` tries all cells. Seconds are those from the fault to the end of the job,
and include the rest of the run where it goes on. A process was stopped for {pause_s} s.
"""


def page() -> str:
    """Return docs/faults.md."""
    measured = json.loads(MEASURED.read_text()) if MEASURED.exists() else {"cells": {}}
    tried = [cell for cell in cells() if cell.runs]
    num_measured = sum(cell.name in measured["cells"] for cell in tried)
    introduction = INTRODUCTION.format(
        num_cells=len(tried),
        num_measured=num_measured,
        date=measured.get("date", "no day yet"),
        pause_s=measured.get("pause_s", "?"),
    )
    lines = [
        introduction,
        "## Faults",
        "",
        "| fault | what it is |",
        "|---|---|",
        *(f"| {fault} | {meaning} |" for fault, meaning in MEANING.items()),
        "",
    ]
    by_row: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells():
        by_row.setdefault((cell.victim, cell.fault), []).append(cell)
    for victim in VICTIMS:
        lines += [
            f"## {victim if victim.startswith('vLLM') else victim.capitalize()}",
            "",
            "| fault | phases | what happens | s | the user reads |",
            "|---|---|---|---|---|",
        ]
        for fault in FAULTS:
            lines += _rows(by_row[victim, fault], measured["cells"])
        lines.append("")
    lines += ["## Numbers", "", "| what | what happens | test |", "|---|---|---|"]
    lines += [f"| {what} | {happens} | {test} |" for what, happens, test in NUMBERS]
    return "\n".join(lines).rstrip() + "\n"


def _rows(row: list[Cell], measured: dict[str, dict[str, object]]) -> Iterator[str]:
    """Yield lines of a table: phases in which the same happens are together."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in row:
        found = measured.get(cell.name)
        if cell.impossible:
            key = (f"cannot happen: {cell.impossible}", "")
        elif cell.elsewhere:
            key = (f"tried by {cell.elsewhere}", "")
        elif cell.untried:
            key = (f"not tried: {cell.untried}", "")
        elif found is None:
            key = (f"expected, not yet measured: {OUTCOMES[cell.outcome]}", "")
        else:
            key = (f"{OUTCOMES[cell.outcome]} (exit code {found['exit']})", str(found["says"]))
        groups.setdefault(key, []).append(cell)
    for (what, says), some in groups.items():
        seconds = [float(str(measured[cell.name]["seconds"])) for cell in some if cell.name in measured and cell.runs]
        took = " to ".join(dict.fromkeys(f"{time:.1f}" for time in (min(seconds), max(seconds)))) if seconds else ""
        phases = "all" if len(some) == len(PHASES) else ", ".join(cell.phase for cell in some)
        said = f"`{says}`" if says else ""
        yield f"| {some[0].fault} | {phases} | {what} | {took} | {said} |"


if __name__ == "__main__":
    sys.stdout.write(page())
