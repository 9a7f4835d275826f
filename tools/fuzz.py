"""Feed damaged and random input to readers and graders, in child processes with limits, and say what breaks them.

A reader may return or raise UserError (which a command prints in one line) or ValueError; a grader returns a score. All
else counts: another exception, a crash, more CPU time or memory than the limits, and a grader that takes longer than
`SLOW_S`. Each such input is written into `--folder`. The last line is one JSON object; the exit code is 1 if anything
broke.

    python tools/fuzz.py --seconds 3600 --seed 1
"""

import argparse
import faulthandler
import hashlib
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from esmpi.config.overrides import overrides_of
from esmpi.config.reader import load_config
from esmpi.data.files import read_rows
from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.model.base_model import BaseModel
from esmpi.shipped import __file__ as shipped
from esmpi.store.run_file import GENERATION_DTYPE, RunFile
from esmpi.store.seal import seal

CPU_S, MEMORY_BYTES = 30, 3 * 2**30
"""Limits of a child, which takes the inputs of one batch."""
BATCH = 50
SLOW_S = 0.5
"""CPU time after which a grader's input counts as slow."""

Check = Callable[[bytes], None]
_WORDS = [
    b"\0" * 8,
    b"\xff" * 8,
    b"\x7f" + b"\xff" * 7,
    b"{",
    b"[" * 50,
    b'"',
    b"&a ",
    b"*a",
    b"../",
    b"\x1b[2J",
    b"1e999",
]
_ANSWERS = [
    *(
        "<answer>",
        "</answer>",
        "<think>",
        "</think>",
        "\\boxed{",
        "}",
        "\\frac{1}{2}",
        "####",
        "sqrt(",
        ")",
        "^",
        "**",
        "9",
    ),
    *(
        "9" * 50,
        "1/0",
        "(1+2)*3",
        "\\text{",
        "$",
        "\\infty",
        "-",
        ",",
        "[[1,2],[3,4]]",
        "\n",
        "\u202e",
        "\0",
        "e9",
        "!",
        " ",
    ),
]


def main() -> int:
    """Fuzz all targets in turn; return 1 if anything broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of targets, such as yaml")
    parser.add_argument(
        "--folder", type=Path, default=Path("fuzzed"), help="where inputs that break something are kept"
    )
    arguments = parser.parse_args()
    found, broken = fuzz(arguments.seed, arguments.seconds, arguments.folder, arguments.only)
    print(json.dumps({"inputs": found, "broken": broken}))
    return 1 if broken else 0


def fuzz(seed: int, seconds: float, folder: Path, only: list[str] | None = None) -> tuple[dict[str, int], list[str]]:
    """Fuzz all targets in turn for so long; return the number of inputs by target, and what broke."""
    rng = random.Random(seed)
    count: Counter[str] = Counter()
    broken: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        targets = {name: target for name, target in _targets(Path(temporary)) if not only or name in only}
        end = time.monotonic() + seconds
        while time.monotonic() < end or not all(count[name] for name in targets):
            for name, (samples, check, random_text) in targets.items():
                inputs = [_text(rng) if random_text else _damaged(rng.choice(samples), rng) for _ in range(BATCH)]
                for data, trouble in _try_batch(inputs, check):
                    folder.mkdir(parents=True, exist_ok=True)
                    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
                    path.write_bytes(data)
                    broken.append(f"{path}: {trouble}")
                count[name] += len(inputs)
    return dict(count), broken


def _try_batch(inputs: list[bytes], check: Check) -> Iterator[tuple[bytes, str]]:
    """Check inputs in a child process; yield those that break something, and how. The rest goes to another child."""
    while inputs:
        receiving, sending = os.pipe()
        if (child := os.fork()) == 0:
            try:
                _limit()
                for data in inputs:
                    trouble = _trouble(check, data)
                    os.write(sending, json.dumps(trouble).encode() + b"\n")
            finally:
                os._exit(0)
        os.close(sending)
        with open(receiving, "rb") as pipe:
            told = [json.loads(line) for line in pipe]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        yield from ((data, trouble) for data, trouble in zip(inputs, told, strict=False) if trouble)
        if len(told) == len(inputs):
            return
        yield inputs[len(told)], f"ended its process: {status}"
        inputs = inputs[len(told) + 1 :]


def _trouble(check: Check, data: bytes) -> str | None:
    try:
        check(data)
    except (UserError, ValueError):
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:300]
    return None


def _limit() -> None:
    faulthandler.disable()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed) + 1)
        word = rng.choice((*_WORDS, rng.randbytes(rng.choice((1, 4, 8)))))
        kind = rng.random()
        if kind < 0.6:
            changed[at : at + len(word)] = word
        elif kind < 0.8:
            changed[at:at] = word
        elif kind < 0.95:
            del changed[at : at + rng.choice((1, 8, 64))]
        else:
            changed[at:at] = changed[: rng.randrange(200)]
    return bytes(changed)


def _text(rng: random.Random) -> bytes:
    """Return a completion: pieces of answers in disorder, sometimes very many of one."""
    pieces = rng.choices(_ANSWERS, k=rng.choice((1, 5, 20, 200)))
    if rng.random() < 0.1:
        pieces = pieces[:5] + [rng.choice(pieces)] * rng.choice((1000, 20_000)) + pieces[5:]
    return "".join(pieces).encode()


def _targets(folder: Path) -> Iterator[tuple[str, tuple[list[bytes], Check, bool]]]:
    """Yield by name: good inputs, what checks one, and whether inputs are texts of a model instead."""
    yield "run file", ([_run_file(folder)], _writing(folder / "run.h5", RunFile.open, resealed=True), False)
    configs = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))]
    yield "yaml", (configs, _writing(folder / "config.yaml", load_config), False)
    words = [b"es.sigma=1e-3", b'engine.vllm_args={"a": [1, 2]}', b"data.train=x.jsonl", b"run.name=x y"]
    yield "override", (words, lambda data: _walk(overrides_of([data.decode(errors="surrogateescape")])), False)
    rows = b'{"problem": "1 + 1", "answer": ["2"], "n": 1.5}\n' * 3
    for ending, sample in (
        ("jsonl", rows),
        ("json", b"[" + b",".join(rows.splitlines()) + b"]"),
        ("csv", b'a,b\n1,"x"\n'),
    ):
        yield ending, ([sample], _writing(folder / f"data.{ending}", _read_rows), False)
    tiny = Path(shipped).parent / "assets" / "tiny_countdown"
    for name in ("config.json", "model.safetensors"):
        model = folder / name / "model"
        model.mkdir(parents=True)
        for file in tiny.iterdir():
            if file.is_file():
                (model / file.name).write_bytes(file.read_bytes())
        sample = (model / name).read_bytes()
        head = sample[: 8 + int.from_bytes(sample[:8], "little")] if name.endswith("tensors") else sample
        rest = sample[len(head) :]

        def check(data: bytes, path: Path = model / name, rest: bytes = rest) -> None:
            path.write_bytes(data + rest)
            BaseModel(path.parent)

        yield name, ([head], check, False)
    yield from _graders()


def _graders() -> Iterator[tuple[str, tuple[list[bytes], Check, bool]]]:
    from esmpi.config.reader import parse_config
    from esmpi.tasks import Example, Task, find_task

    pair = {"input": [[1, 2]], "output": [[2, 1]]}
    grid: dict[str, Any] = {"train": [pair], "test": {"input": [[3]], "output": [[3]]}}
    examples: dict[str, dict[str, Any] | None] = {
        "countdown": {"numbers": [44, 19, 35], "target": 98},
        "gsm8k": {"question": "How many?", "answer": "#### 7"},
        "math": {"problem": "How many?", "answer": ["$\\frac{1}{2}$", "8"]},
        "arc": grid,
        "multiplication": None,
        "sudoku": None,
        "conciseness": {"question": "Which?", "answer": "Paris"},
    }
    for name, given in examples.items():
        least = {"run": {"name": "x"}, "model": {"path": "x"}, "es": {"generations": 1}, "task": {"name": name}}
        kind = find_task(name)
        assert kind is not None
        try:
            task = kind(parse_config(least).task)
            example = task.generator(np.random.default_rng(0))() if given is None else given
            task.check(example)
        except (UserError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue

        def check(data: bytes, task: Task = task, example: Example = example) -> None:
            text = data.decode()
            began = time.process_time()
            try:
                score = task.score(text, example)
            except ValueError as error:
                raise RuntimeError(f"a grader raised ValueError: {error}") from error
            if (took := time.process_time() - began) > SLOW_S:
                raise RuntimeError(f"a text of {len(text)} characters took {took:.2f} s")
            if score.reward is not None and not np.isfinite(score.reward):
                raise RuntimeError(f"reward {score.reward}")

        yield f"grader {name}", ([b""], check, True)


def _writing(path: Path, read: Callable[[Path], object], resealed: bool = False) -> Check:
    def check(data: bytes) -> None:
        whole = bytearray(data)
        if resealed and len(whole) > 1024:
            view = memoryview(whole)
            seal(view)
            view.release()
        path.write_bytes(whole)
        read(path)

    return check


def _walk(values: object) -> None:
    repr(values)


def _read_rows(path: Path) -> None:
    read_rows("data.train", str(path), "train", None)


def _run_file(folder: Path) -> bytes:
    """Return a run file with three generations, figures and an evaluation."""
    config = {"run": {"name": "x"}, "model": {"path": "m"}, "es": {"generations": 3}, "task": {"name": "countdown"}}
    run = RunFile.create(folder / "run.h5", config, 1, "d", ["a.weight"], {})
    for generation in range(3):
        row = np.zeros(1, GENERATION_DTYPE)[0]
        row["generation"] = generation
        run.begin_commit(row, np.zeros(4, MEMBER_DTYPE), {"format_mean": 0.5})()
    run.add_evaluation("held_out", {"generation": 3, "accuracy": 0.5, "reward_mean": 0.1, "num_samples": 2})
    return run.path.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
