"""The matrix of faults: what happens to whom, when, and what a run does then.

`cells()` lists all of them. A cell has what is expected of it, and how it is tried: by `at_phase.py` in a real run, or
by a test elsewhere; or the reason why it cannot happen. faults_page.py writes docs/faults.md from this table and from
what was measured (measured.json).
"""

from collections.abc import Iterator
from dataclasses import dataclass

VICTIMS = (
    *("rank 0", "another rank", "vLLM worker", "scoring process"),
    *("judge endpoint", "batch shell", "slurmd", "whole node"),
)
FAULTS = (
    *("kill", "TERM", "STOP", "exception", "memory"),
    *("disk", "renamed", "deleted", "read-only", "network", "clock"),
)
ON_FILES = ("disk", "renamed", "deleted", "read-only")
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
    "renamed": "the run directory is renamed, and has its name back afterwards",
    "deleted": "the run directory is deleted; the same command begins anew afterwards",
    "read-only": "the run directory becomes read-only, and can be written again afterwards",
    "network": "the network is cut for a while",
    "clock": "Python's clock is set back by an hour in that process",
}

ENDS, STOPS, SURVIVES, REFUSES = "ends", "stops", "survives", "refuses"
"""What a run does: it fails; it commits its generation and stops, unless it was at its end already; it goes on; or it
ends with a message. See `faults_page.HAPPENS`."""
LIMIT_S = 30
"""How long an end may take on a machine that has other things to do, too. Runs that go on may take a few times that."""


@dataclass(frozen=True)
class Cell:
    """Something that happens to a part of a run in a phase."""

    victim: str
    fault: str
    phase: str
    outcome: str = ""
    """What is expected; empty if the cell cannot happen, or is tried elsewhere."""
    says: str = ""
    """A regular expression of what the user reads; empty if nothing need be said."""
    elsewhere: str = ""
    """The test that tries it, if it is not in the runs of `at_phase.py`."""
    happens: str = ""
    """What happens, according to that test."""
    reads: str = ""
    """What the user reads then; empty if nothing need be said."""
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
        "slurmd": _of_slurmd,
        "whole node": _of_node,
    }[victim](fault, phase)


CUT = {
    "elsewhere": "tests/mpi/test_two_hosts.py",
    "happens": "a cut of 5 s in a generation: the ranks wait for each other, and the run goes on to the same theta",
}
SHELL, OF_SLURM = "tests/slurm/test_job_scripts.py", "tests/slurm/test_faults_of_slurm.py"


def _of_rank(rank: int, fault: str, phase: str) -> dict[str, str]:
    if fault == "network":
        return CUT
    if rank and fault in ON_FILES:
        return {"impossible": "only rank 0 writes files"}
    if fault in ("exception", "memory"):
        what = "the fault of the test" if fault == "exception" else "MemoryError"
        return {"outcome": ENDS, "says": rf"\[rank {rank} of 2 on .*\] .*{what}"}
    gone = {"outcome": REFUSES, "says": "no longer the directory in which this run began"}
    return {
        "kill": {"outcome": ENDS},
        "TERM": {"outcome": STOPS},
        "STOP": {"outcome": SURVIVES},
        "clock": {"outcome": SURVIVES},
        "disk": {"outcome": REFUSES, "says": "no room for|cannot write"},
        "renamed": gone,
        "deleted": gone,
        "read-only": {"outcome": REFUSES, "says": "Read-only file system"},
    }[fault]


def _of_scoring(fault: str, phase: str) -> dict[str, str]:
    if fault in ON_FILES:
        return {"impossible": "it writes no files, unless the reward does"}
    if fault == "network":
        return {"impossible": "it talks to its rank by a pipe. If the reward uses a network, see the judge endpoint"}
    if phase == "load":
        return {"impossible": "it is started in this phase"}
    if fault in ("exception", "memory"):
        if phase in ("score", "evaluate"):
            return {
                "elsewhere": "tests/scoring/test_scoring.py",
                "happens": "that completion has `scoring.failure_reward`, all others have their own; the run goes on",
                "reads": {"exception": "ZeroDivisionError: out of reach", "memory": "MemoryError"}[fault],
            }
        return {"impossible": "it waits for completions, and executes nothing"}
    if fault == "clock":
        return {"impossible": "it measures no time: its rank does, by a clock that nobody can set"}
    return {"outcome": SURVIVES}


def _of_worker(fault: str, phase: str) -> dict[str, str]:
    if fault in ON_FILES:
        return {"impossible": "it writes no files of the run"}
    if fault == "network":
        return {"impossible": "the workers of a rank are on its node"}
    if fault == "clock":
        return {"impossible": "its time-outs go by a clock that nobody can set"}
    if fault == "kill":
        return {"outcome": ENDS, "says": "a worker process of vLLM has ended"}
    if fault in ("STOP", "TERM"):
        return {"outcome": SURVIVES}
    if phase not in ("load", "self-test", "generate", "update", "snapshot", "evaluate", "export"):
        return {"impossible": "it is asked for nothing in this phase"}
    if phase == "snapshot":
        return {"outcome": SURVIVES, "says": "no snapshot of generation"}
    return {
        "outcome": ENDS,
        "says": {"exception": "Worker failed.*the fault of the test", "memory": "MemoryError"}[fault],
    }


def _of_judge(fault: str, phase: str) -> dict[str, str]:
    if phase not in ("score", "evaluate"):
        return {"impossible": "nobody asks it in this phase"}
    fails = "the request is repeated, `scoring.retries` times; then that completion has `scoring.failure_reward`"
    return {
        "kill": {
            "elsewhere": "tests/rewards/test_judge.py",
            "happens": f"{fails}. The run goes on",
            "reads": "ENDPOINT cannot be reached: ConnectError",
        },
        "STOP": {
            "elsewhere": "tests/scoring/test_coroutines.py",
            "happens": "after `scoring.time_limit_s` that completion has `scoring.failure_reward`. The run goes on",
            "reads": "no reward after 2 s",
        },
        "exception": {
            "elsewhere": "tests/rewards/test_judge.py",
            "happens": f"an error of HTTP, or a reply without a reward: {fails}. The run goes on",
            "reads": "ValueError: the judge's reply has no reward: 'no idea'",
        },
        "network": {
            "elsewhere": "tests/scoring/test_coroutines.py",
            "happens": "an error of the connection is what `kill` is, and silence is what `STOP` is",
        },
    }.get(fault, {"impossible": "it is another program: whatever it is, it shows as an error or as silence"})


def _of_batch(fault: str, phase: str) -> dict[str, str]:
    if fault in ON_FILES:
        return {"impossible": "it writes no files of the run"}
    if fault == "clock":
        return {"impossible": "nothing goes by the time of day once the job has started"}
    return {
        "kill": {
            "elsewhere": OF_SLURM,
            "happens": "Slurm asks the ranks to stop. They commit their generation, and the job has failed within "
            "seconds. It is not put back into the queue: submit it again to resume",
            "reads": "asked to stop by SIGTERM: theta of generation N is committed; rerun the same command to resume",
        },
        "TERM": {
            "elsewhere": SHELL,
            "happens": "the ranks commit their generation; the job is put back into the queue, and resumes by itself",
            "reads": "stopped before its end: back into the queue",
        },
        "STOP": {
            "elsewhere": OF_SLURM,
            "happens": "the ranks go on. What Slurm asks of the shell meanwhile is done when it continues",
        },
        "network": {
            "elsewhere": SHELL,
            "happens": "Slurm's controller does not answer the job that wants to be put back into the queue: it asks "
            "again, up to four times in 40 s",
            "reads": "stopped before its end: back into the queue",
        },
    }.get(fault, {"impossible": "it is no program of esmpi's: whatever ends it is what `kill` is"})


def _of_slurmd(fault: str, phase: str) -> dict[str, str]:
    if fault in ON_FILES:
        return {"impossible": "it has no files of the run"}
    goes_on = "the ranks go on, and the job knows nothing of it, if the daemon is back within Slurm's `SlurmdTimeout`"
    gone = (
        "Otherwise Slurm ends the job's other ranks and puts it back into the queue, and it resumes on other nodes. "
        "Nothing that is committed is lost"
    )
    if fault == "TERM":
        return {"elsewhere": OF_SLURM, "happens": f"{goes_on}, as after an update"}
    if fault in ("kill", "STOP"):
        return {
            "elsewhere": OF_SLURM,
            "happens": f"{goes_on}. {gone}",
            "reads": "srun: error: Node failure on NODE",
        }
    if fault == "network":
        return {"untried": "to Slurm it is a daemon that does not answer: see `STOP`"}
    return {"impossible": "it is no program of esmpi's: whatever ends it is what `kill` is"}


def _of_node(fault: str, phase: str) -> dict[str, str]:
    if fault == "kill":
        return {
            "elsewhere": SHELL,
            "happens": "the job is put back into the queue by Slurm, and resumes on other nodes from the last "
            "committed generation",
            "reads": "resuming from generation N",
        }
    if fault == "network":
        return CUT
    return {"impossible": "it is what happens to its ranks and daemons: see there"}


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
