"""Feed damaged and random input to readers and graders, in child processes with limits, and say what breaks them.

A reader may return or raise UserError, which a command prints in one line; a grader returns a score. All else counts:
another exception, a crash, more CPU time or memory than the limits, and an input that is slow. Each such input is
written into `--folder`. The last line is one JSON object; the exit code is 1 if anything broke. An input that was slow
is tried three times more, and the least time counts, as the machine may be busy.

    python tools/fuzz.py --seconds 3600 --seed 1
"""

import argparse
import faulthandler
import gc
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing import graders, readers
from fuzzing.inputs import Target

from esmpi.errors import UserError

CPU_S, MEMORY_BYTES = 100, 3 * 2**30
"""Limits of a child, which takes the inputs of one batch."""
BATCH = 20
_TRIES = 4
_MOST_KEPT = 20
"""Inputs of a target that are kept."""


@dataclass
class Found:
    """What was found of a target."""

    inputs: int = 0
    seconds: float = 0.0
    """That all inputs took, with the making of them."""
    slowest_ms: float = 0.0
    """CPU time of the slowest input."""
    broken: list[str] = field(default_factory=list)


def main() -> int:
    """Fuzz all targets in turn; return 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of targets, such as yaml")
    parser.add_argument("--list", action="store_true", help="print the names of the targets, and end")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzzed"), help="where inputs that break something are kept"
    )
    arguments = parser.parse_args()
    if arguments.list:
        with tempfile.TemporaryDirectory() as temporary:
            print("\n".join(targets(Path(temporary))))
        return 0
    found = fuzz(arguments.seed, arguments.seconds, arguments.folder, arguments.only)
    print(json.dumps({name: vars(one) for name, one in found.items()}))
    return 1 if any(one.broken for one in found.values()) else 0


def targets(folder: Path, only: list[str] | None = None) -> dict[str, Target]:
    """Return the targets by name; those that a part of this machine is missing for are left out, with a word why."""
    made = {}
    for name, make in {**readers.TARGETS, **graders.TARGETS}.items():
        if only and name not in only:
            continue
        own = folder / name.replace(" ", "_")
        own.mkdir()
        try:
            made[name] = make(own)
        except (UserError, ImportError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return made


def fuzz(seed: int, seconds: float, folder: Path, only: list[str] | None = None) -> dict[str, Found]:
    """Fuzz targets for so long, each for as long as the others; return what was found, by target."""
    with tempfile.TemporaryDirectory() as temporary:
        known = targets(Path(temporary), only)
        rngs = {name: random.Random(f"{seed} {name}") for name in known}
        found = {name: Found() for name in known}
        end = time.monotonic() + seconds
        while time.monotonic() < end or not all(one.inputs for one in found.values()):
            name = min(found, key=lambda name: found[name].seconds)
            target, one = known[name], found[name]
            began = time.monotonic()
            inputs = [target.make(rngs[name]) for _ in range(BATCH)]
            for data, trouble, took in _try_batch(inputs, target):
                one.slowest_ms = max(one.slowest_ms, round(1000 * took, 3))
                if trouble and len(one.broken) < _MOST_KEPT:
                    one.broken.append(_kept(folder, name, data, trouble))
            one.inputs += len(inputs)
            one.seconds = round(one.seconds + time.monotonic() - began, 3)
    return found


def _kept(folder: Path, name: str, data: bytes, trouble: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_')}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{path}: {trouble}", file=sys.stderr, flush=True)
    return f"{path}: {trouble}"


def _try_batch(inputs: list[bytes], target: Target) -> Iterator[tuple[bytes, str | None, float]]:
    """Check inputs in a child process; yield for each what is wrong, if anything is, and its CPU seconds.

    An input that ends the process costs itself alone: those that follow it go to another child.
    """
    while inputs:
        receiving, sending = os.pipe()
        if (child := os.fork()) == 0:
            try:
                _limit()
                for data in inputs:
                    os.write(sending, json.dumps(_tried(target, data)).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(sending)
        with open(receiving, "rb") as pipe:
            told = [json.loads(line) for line in pipe]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield from ((data, *said) for data, said in zip(inputs, told, strict=False))
        if len(told) == len(inputs):
            return
        yield inputs[len(told)], f"ended its process: {status}", 0.0
        inputs = inputs[len(told) + 1 :]


def _tried(target: Target, data: bytes) -> tuple[str | None, float]:
    """Return what is wrong with an input, and its CPU seconds: the least of several tries if it seems slow."""
    least = float("inf")
    for _ in range(_TRIES):
        before = _cpu_seconds()
        took = None
        try:
            took = target.check(data)
        except target.allowed:
            pass
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300], 0.0
        least = min(least, _cpu_seconds() - before if took is None else took)
        if least <= target.slow_s:
            return None, least
    return f"{len(data):,} bytes took {1000 * least:.1f} ms", least


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


def _limit() -> None:
    faulthandler.disable()
    gc.freeze()  # what the parent has is not this process's to look through
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    sys.exit(main())
