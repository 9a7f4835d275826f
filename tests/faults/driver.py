"""Runs the real program again and again, with a fault at some call to the file system: python driver.py PLAN.

Started with faults.c preloaded. All that is slow to import is imported once; each start of the program is a fork of
this process. PLAN is a JSON file: `config`, `overrides`, `folder`, and `chains`, each a list of faults (mode, n). The
starts of a chain share a run directory, and are followed by starts without a fault until the run is complete. For
every chain a line of JSON tells what was seen.
"""

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py

# The program's own imports are made inside functions: here they are made before the first fork.
from esmpi import run
from esmpi.config.reader import load_config
from esmpi.engines import engine_config
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.noise import cpu

OFF, KILL_BEFORE, KILL_HALFWAY, FULL, HICCUP, COUNT = range(6)

Faults = Sequence[tuple[int, int]]
Drive = Callable[[Sequence[Faults]], list[dict[str, Any]]]


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    # the processes that score would import this file again, and with it all that is slow
    del sys.modules["__main__"].__file__
    warm_up(plan["config"])
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
    for number, chain in enumerate(plan["chains"]):
        print(json.dumps(follow(plan, chain, Path(plan["folder"]) / f"chain{number}")), flush=True)


def warm_up(config: str) -> None:
    """Let libraries do what they do at first use."""
    model = load_config(config).model
    folder = find_model(model.path)
    assert folder is not None
    place = Place("here", 0, 1, (0,))
    engine = engine_config(load_config(config)).open(model, BaseModel(folder), place)
    engine.weights.close()
    cpu.warm_up()


def follow(plan: dict[str, Any], chain: list[tuple[int, int]], output: Path) -> dict[str, Any]:
    """Start the program with one fault after another, then without, and return what was seen."""
    output.mkdir(parents=True)
    starts: list[dict[str, Any]] = []
    seen: list[int] = []  # theta digests of committed generations
    for mode, n in [*chain, (COUNT, 0)]:
        started = time.perf_counter()
        start = {"mode": mode, "n": n, "before": len(seen)} | start_once(plan, output, mode, n)
        found = committed(output / "tiny" / "run.h5")
        start["kept"] = found[: len(seen)] == seen and (found or not seen) and len(found) >= start["announced"]
        start["committed"], start["seconds"] = len(found), time.perf_counter() - started
        seen = found
        starts.append(start)
        if start["exit"] == 0:
            break
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    return {"digests": seen, "starts": starts, "files": files}


def start_once(plan: dict[str, Any], output: Path, mode: int, n: int) -> dict[str, Any]:
    """Run the program in a child; return its exit code (negative: a signal) and what it said."""
    reading, writing = os.pipe()
    log = output.with_suffix(".log")
    child = os.fork()
    if child == 0:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faults = ctypes.CDLL(None)
        faults.fault_arm(os.fsencode(output), ctypes.c_long(n), mode, writing)
        code = 1
        try:
            code = run.main([plan["config"], f"run.output_dir={output}", *plan["overrides"]])
            faults.fault_count.restype = ctypes.c_long
            os.write(writing, f"calls {faults.fault_count()}\n".encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with open(reading) as pipe:
        said = pipe.read().splitlines()
    text = log.read_text()
    announced = [int(found) for found in re.findall(r"^generation .* (\d+)/\d+ done", text, re.MULTILINE)]
    calls = [int(line.split()[1]) for line in said if line.startswith("calls ")]
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "call": next((line for line in said if not line.startswith("calls ")), None),
        "calls": calls[0] if calls else None,
        "announced": max(announced, default=0),
        "text": text,
    }


def committed(path: Path) -> list[int]:
    """Return the digests of all committed generations, as a reader without esmpi sees them."""
    if not path.exists():
        return []
    with h5py.File(path, "r") as file:
        digests = file["generations/theta_digest"][()].tolist()
        for column in file["members"].values():
            assert len(column[()]) == len(digests)
        return [int(digest) for digest in digests]


if __name__ == "__main__":
    main()
