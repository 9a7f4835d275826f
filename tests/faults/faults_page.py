"""Writes docs/faults.md: python tests/faults/faults_page.py > docs/faults.md.

It is made from the matrix and from what was measured.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matrix import ENDS, FAULTS, LIMIT_S, MEANING, NUMBERS, PHASES, REFUSES, STOPS, SURVIVES, VICTIMS, Cell, cells

MEASURED = Path(__file__).parent / "measured.json"

HAPPENS = {
    (ENDS, None): "the job ends with an error",
    (STOPS, None): "the run commits its generation and stops",
    (STOPS, 0): "the run is at its end, and ends as always",
    (SURVIVES, None): "the run goes on",
    (REFUSES, None): "the run ends with a message",
}
"""What happens, by the outcome and the exit code; None stands for the others."""

VARIES = (
    (r"^(esmpi: )?(\[?rank \d+( of \d+)?( on HOST\])?:? )?", ""),
    (r"^.*(?=MemoryError$)", ""),
    (r"^\w*Error: (?=engine:)", ""),
    (r"theta of generation \d+", "theta of generation N"),
    (r"[\d,]+ bytes", "N bytes"),
    (r"asked to stop by SIG\w+|asked to stop(?=:)", "asked to stop"),
)
"""What differs from one line to the next that the user reads, and what stands for it here."""
LONGEST = 130

INTRODUCTION = """\
# What happens when something fails

This page is for people who want to know what a run loses if a process, a node or a file system fails at the worst
moment. In short: nothing that is committed is lost, unless the run directory itself is deleted, and the same command
resumes the run and leads to the same theta.

In runs of the real program, each part was disturbed once in each way and in each phase. A run that ends must end
within {limit_s} s and leave no process behind. The generations that it has committed must be those of an undisturbed
run, and the same command must then lead to the same theta and to the same evaluations, bit for bit, and leave no
temporary files. {share} {num_cells} runs were made, the last on {date}, on two cores that were busy
with other programs. `s` are the seconds from the fault to the end of the job, which includes the rest of the run
where it goes on. A process was stopped for {pause_s:.0f} s.

The tables are in `tests/faults/matrix.py`. The usual tests repeat a few of the runs, chosen by a seed; with
`ESMPI_FAULTS=all` in the environment, `python -m pytest tests/faults/test_matrix.py` makes all of them. Rows that name
a test were tried by that test instead, in one phase.
"""


def page() -> str:
    """Return docs/faults.md."""
    measured = json.loads(MEASURED.read_text())
    tried = [cell for cell in cells() if cell.runs]
    num_measured = sum(cell.name in measured["cells"] for cell in tried)
    introduction = INTRODUCTION.format(
        limit_s=LIMIT_S,
        num_cells=len(tried),
        share="All" if num_measured == len(tried) else f"{num_measured} of",
        date=measured["date"],
        pause_s=measured["pause_s"],
    )
    lines = [introduction, "## Faults", "", "| fault | what it is |", "|---|---|"]
    lines += [f"| {fault} | {meaning} |" for fault, meaning in MEANING.items()]
    for victim in VICTIMS:
        lines += ["", f"## {victim if victim.startswith('vLLM') else victim.capitalize()}", ""]
        lines += _about(victim, measured["cells"])
    lines += ["", "## Numbers", "", "| what | what happens | test |", "|---|---|---|"]
    lines += [f"| {what} | {happens} | {test} |" for what, happens, test in NUMBERS]
    return "\n".join(lines).rstrip() + "\n"


def _about(victim: str, measured: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield what is said of a part of a run."""
    mine = [cell for cell in cells() if cell.victim == victim]
    yield "| fault | phases | what happens | s | the user reads, most often |"
    yield "|---|---|---|---|---|"
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for fault in FAULTS:
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in mine:
            if cell.fault == fault and (cell.runs or cell.elsewhere):
                groups.setdefault(_row_of(cell, measured.get(cell.name)), []).append(cell)
        for (happens, reads), some in groups.items():
            found = [measured[cell.name] for cell in some if cell.runs and cell.name in measured]
            seconds = [one["seconds"] for one in found]
            took = " to ".join(dict.fromkeys(f"{time:.0f}" for time in (min(seconds), max(seconds)))) if seconds else ""
            said = reads or _most_common(one["says"] for one in found)
            rows.setdefault((_phases(some), happens, took, said and f"`{said}`"), []).append(fault)
    yield from (f"| {', '.join(faults)} | {' | '.join(row)} |" for row, faults in rows.items())
    for title, attribute in (("Not tried", "untried"), ("Cannot happen", "impossible")):
        reasons: dict[str, list[Cell]] = {}
        for cell in mine:
            if reason := getattr(cell, attribute):
                reasons.setdefault(reason, []).append(cell)
        if reasons:
            yield ""
            yield f"{title}:"
            yield ""
            yield from (f"- {_faults(some)}: {reason}." for reason, some in reasons.items())


def _row_of(cell: Cell, found: dict[str, Any] | None) -> tuple[str, str]:
    """Return what happens, and what the user reads if it is not in the measurements. Cells with the same are a row."""
    if cell.elsewhere:
        return f"{cell.happens} ({cell.elsewhere})", cell.reads
    if found is None:
        return f"expected, but not yet tried: {HAPPENS[cell.outcome, None]}", ""
    code = found["exit"]
    return f"{HAPPENS.get((cell.outcome, code)) or HAPPENS[cell.outcome, None]}: exit code {code}", ""


def _most_common(said: Iterator[str]) -> str:
    """Return the line that was read most often, without what varies."""
    lines = Counter(map(_plain, said))
    return lines.most_common(1)[0][0] if lines else ""


def _plain(line: str) -> str:
    for pattern, stands in VARIES:
        line = re.sub(pattern, stands, line)
    sentences, end, _ = f"{line} "[:LONGEST].rpartition(". ")
    return line if len(line) <= LONGEST else sentences + end.strip() or line[:LONGEST].rpartition(" ")[0] + " ..."


def _phases(some: Sequence[Cell]) -> str:
    phases = [cell.phase for cell in some]
    missing = [phase for phase in PHASES if phase not in phases]
    if some[0].elsewhere and not missing:
        return "any"
    if len(missing) <= 2:
        return f"all but {' and '.join(missing)}" if missing else "all"
    return ", ".join(phases)


def _faults(some: Sequence[Cell]) -> str:
    """Return the faults of cells, with their phases if they are not those of all phases."""
    by_fault: dict[str, list[Cell]] = {}
    for cell in some:
        by_fault.setdefault(cell.fault, []).append(cell)
    by_phases: dict[str, list[str]] = {}
    for fault, its in by_fault.items():
        by_phases.setdefault("" if len(its) == len(PHASES) else f" ({_phases(its)})", []).append(fault)
    return "; ".join(", ".join(faults) + phases for phases, faults in by_phases.items())


if __name__ == "__main__":
    sys.stdout.write(page())
