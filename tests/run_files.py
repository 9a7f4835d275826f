"""Run files that tests write, change and compare."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from support import LEAST_CONFIG

from esmpi.store import seal
from esmpi.store.run_file import GENERATION_DTYPE, MEMBER_DTYPE, RunFile

CONFIG = LEAST_CONFIG | {"run": {"name": "ünïcode"}, "es": {"generations": 3, "sigma": 1e-3, "alpha": None}}
NUM_MEMBERS = 5


@contextmanager
def editing(path: Path) -> Iterator[h5py.File]:
    """Change a run file behind esmpi's back, but with the checksum made anew: as another version might write it."""
    with h5py.File(path, "a") as file:
        yield file
    image = bytearray(path.read_bytes())
    seal.seal(memoryview(image))
    path.write_bytes(image)


def row_of(generation: int) -> np.void:
    row = np.zeros(1, GENERATION_DTYPE)[0]
    for i, name in enumerate(GENERATION_DTYPE.names or ()):
        row[name] = generation + i
    row["generation"], row["theta_digest"] = generation, 2**64 - 1 - generation
    row["shrink"] = 0.5
    return row


def members_of(generation: int) -> np.ndarray:
    rng = np.random.default_rng(generation)
    members = np.zeros(NUM_MEMBERS, MEMBER_DTYPE)
    members["seed"] = rng.integers(2**63, 2**64, NUM_MEMBERS, np.uint64)
    members["sign"] = [1, -1, 1, -1, 1]
    members["status"][2] = 1
    members["fitness"] = rng.random(NUM_MEMBERS)
    members["fitness"][2] = np.nan
    members["coefficient"] = rng.normal(size=NUM_MEMBERS).astype(np.float32)
    members["tokens"] = 7
    return members


def evaluation_of(generation: int) -> dict[str, Any]:
    return {"generation": generation, "accuracy": 0.25, "reward_mean": 1 / 3, "num_samples": 40, "seconds": 1.5}


def make(path: Path, num_generations: int = 3, digest: int = 0xFEDCBA9876543210) -> RunFile:
    run = RunFile.create(path, CONFIG, digest, "d1", ["a.weight", "b.weight"], {"tied.weight": "a.weight"})
    run.attributes["provenance"].append({"host": "here", "unix_time": 1.5})
    run.write()
    for generation in range(num_generations):
        run.commit(row_of(generation), members_of(generation))
    run.add_evaluation("held_out", evaluation_of(0))
    run.add_evaluation("held_out", evaluation_of(num_generations))
    return run


def same_run(a: RunFile, b: RunFile) -> bool:
    return (
        a.attributes == b.attributes
        and a.evaluations == b.evaluations
        and np.array(a.generations, GENERATION_DTYPE).tobytes() == np.array(b.generations, GENERATION_DTYPE).tobytes()
        and np.array(a.members, MEMBER_DTYPE).tobytes() == np.array(b.members, MEMBER_DTYPE).tobytes()
    )
