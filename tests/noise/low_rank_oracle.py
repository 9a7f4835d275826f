"""Low-rank noise, version 2 of the format, a second time: in plain NumPy and from its definition alone.

`python tests/noise/low_rank_oracle.py` writes `golden_low_rank.json`. It needs to run again only for a new version of
the format: a difference otherwise is a bug.
"""

import json
import math
from pathlib import Path
from typing import Any

import noise_oracle as oracle
import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden_low_rank.json")
NAME = "model.layers.0.self_attn.q_proj.weight"
ROWS, COLUMNS = 5, 9
RANKS = (1, 2, 3, 8)


def eps(seed: int, name: str, rank: int, rows: int, columns: int) -> NDArray[np.float32]:
    """The noise of a whole matrix, (rows, columns)."""
    b = oracle.eps(seed, oracle.key_of(f"{name}/B"), np.arange(rows * rank)).reshape(rows, rank)
    a = oracle.eps(seed, oracle.key_of(f"{name}/A"), np.arange(rank * columns)).reshape(rank, columns)
    made = np.zeros((rows, columns), np.float32)
    for m in range(rows):
        for n in range(columns):
            total = b[m, 0] * a[0, n]
            for k in range(1, rank):
                total = total + b[m, k] * a[k, n]
            made[m, n] = total if rank == 1 else total * np.float32(1 / math.sqrt(rank))
    return made


def make_golden() -> dict[str, Any]:
    seed = oracle.seed_of(42, 3, 5)
    found: dict[str, Any] = {"noise_version": 2, "name": NAME, "seed": f"{seed:016x}"}
    found |= {f"key_{part}": f"{oracle.key_of(f'{NAME}/{part}'):016x}" for part in "AB"}
    for rank in RANKS:
        made = eps(seed, NAME, rank, ROWS, COLUMNS)
        found[f"eps_rank_{rank}"] = [[f"{word:08x}" for word in row] for row in made.view(np.uint32).tolist()]
    return found


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_golden(), indent=1) + "\n")
