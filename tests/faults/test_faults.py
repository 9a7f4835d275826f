"""Whenever the program dies, whatever the file system says: nothing committed is lost, the same command goes on.

It is the real program, from its first call to the file system to its last; see driver.py and faults.c.
"""

import random
import re
from typing import Any

import pytest
from driver import COUNT, FULL, HICCUP, KILL_BEFORE, KILL_HALFWAY, Drive
from support import sweep

NUM_KILLS = sweep(full=200, sample=40)
KILLS_A_CHAIN = 5
NUM_FAULTS = 10


@pytest.fixture(scope="module")
def undisturbed(drive: Drive) -> dict[str, Any]:
    """What a run sees that nothing happens to."""
    seen = drive([[(COUNT, 0)], [(COUNT, 0)]])[0]
    assert seen["starts"][0]["calls"] > 100
    assert seen["starts"][0]["announced"] == 3  # the log is read right: what it announced is what must be kept
    assert len(set(seen["digests"])) == 3
    assert "tiny/model/model.safetensors" in seen["files"]
    return dict(seen)


def check(seen: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    for start in seen["starts"]:
        assert start["kept"], start
        assert "Traceback" not in start["text"], start["text"]
    assert seen["starts"][-1]["exit"] == 0, seen["starts"][-1]["text"]
    assert seen["digests"] == undisturbed["digests"]
    # the same files in the end: none missing, and no leftovers
    ignored = re.compile(r"tiny/snapshots/")
    files, expected = ([f for f in part["files"] if not ignored.match(f)] for part in (seen, undisturbed))
    assert files == expected
    assert sum(file.startswith("tiny/snapshots/g") for file in seen["files"]) <= 1


def test_killed_at_many_points_it_resumes_to_the_same_theta(drive: Drive, undisturbed: dict[str, Any]) -> None:
    total = undisturbed["starts"][0]["calls"]
    rng = random.Random(0)
    num_chains = NUM_KILLS // (KILLS_A_CHAIN - 1)  # not every start of a chain gets as far as its kill
    chains = []
    for i in range(num_chains):
        # the first kill anywhere in the run, evenly; the next starts have less to do
        points = [1 + i * total // num_chains, *(rng.randrange(1, total // 4) for _ in range(KILLS_A_CHAIN - 1))]
        chains.append([(rng.choice((KILL_BEFORE, KILL_HALFWAY)), point) for point in points])
    kills = []
    for seen in drive(chains):
        check(seen, undisturbed)
        kills += [start for start in seen["starts"] if start["exit"] == -9]
        assert all(start["exit"] in (0, -9) for start in seen["starts"])
    assert len(kills) >= NUM_KILLS
    points = {(k["mode"], k["n"], k["before"], re.sub(r"\S*/tiny|\.\d+(?=\.)", "", k["call"])) for k in kills}
    assert len(points) > 0.75 * NUM_KILLS
    # in all kinds of calls, on all kinds of files
    assert {call.split()[0] for *_, call in points} >= {"open64", "write", "fsync", "rename", "mkdir", "unlink"}
    for part in ("run.h5", "eval/", "snapshots/", ".lock", "model"):
        assert any(part in call for *_, call in points), part


def test_a_full_disk_is_told_and_nothing_is_lost(drive: Drive, undisturbed: dict[str, Any]) -> None:
    total = undisturbed["starts"][0]["calls"]
    refused = 0
    for seen in drive([[(FULL, 1 + i * total // NUM_FAULTS)] for i in range(NUM_FAULTS)]):
        check(seen, undisturbed)
        start = seen["starts"][0]
        assert start["exit"] in (0, 2), start["text"]  # 0: only what the run can do without had no room
        if start["exit"] == 2:
            refused += 1
            said = (
                r"no room for [\d,]+ bytes at \S+ \(No space|cannot write (to |the run directory |the model folder )?/"
            )
            assert re.search(said, start["text"]), start["text"]
        elif start["call"] is not None:
            assert "the run continues without it" in start["text"], start
    assert refused > NUM_FAULTS // 2


def test_a_hiccup_of_the_file_system_is_got_over(drive: Drive, undisturbed: dict[str, Any]) -> None:
    total = undisturbed["starts"][0]["calls"]
    retried = 0
    for seen in drive([[(HICCUP, 1 + i * total // NUM_FAULTS)] for i in range(NUM_FAULTS)]):
        check(seen, undisturbed)
        start = seen["starts"][0]
        call = start["call"]
        if start["exit"] != 0:
            # at the very start or the very end the program says so, and the same command tries again
            assert re.search(r"cannot write", start["text"]), start["text"]
            assert call.endswith("/tiny") or "/.lock" in call or "model" in call, start
        retried += "once more in" in start["text"]
    assert retried > 3
