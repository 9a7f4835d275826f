"""Low-rank noise, version 2 of the format, a second time: in plain NumPy and from its definition alone.

`python tests/noise/low_rank_oracle.py` writes `golden_low_rank.json`. It needs to run again only for a new version of
the format: a difference otherwise is a bug.
"""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import noise_oracle as oracle
import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden_low_rank.json")
NAME = "model.layers.0.self_attn.q_proj.weight"
ROWS, COLUMNS = 5, 9
RANKS = (1, 2, 3, 8)
COEFFICIENTS = [1e-3, -2e-3, 0.5e-3, 7e-3, -1e-4, 3e-3]
"""Of the members whose update of `linspace(-0.1, 0.1)` the golden file has: pairs 0 to 5 of generation 3."""


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


def fused(x: np.float32, y: np.float32, z: np.float32) -> np.float32:
    """x * y + z, rounded once."""
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    near = np.float32(float(exact))  # rounded twice: right, or a neighbour of what is right
    candidates = (np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf)))
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.uint32)) & 1))


def updated(
    theta: NDArray[np.float32], name: str, rank: int, seeds: list[int], coefficients: list[float]
) -> NDArray[np.float32]:
    """Theta of a whole matrix after an update."""
    rows, columns = theta.shape
    total = np.zeros(theta.shape, np.float32)
    for seed, coefficient in zip(seeds, coefficients, strict=True):
        b = oracle.eps(seed, oracle.key_of(f"{name}/B"), np.arange(rows * rank)).reshape(rows, rank)
        a = oracle.eps(seed, oracle.key_of(f"{name}/A"), np.arange(rank * columns)).reshape(rank, columns)
        factor = np.float32(coefficient)
        if rank > 1:
            factor = factor * np.float32(1 / math.sqrt(rank))
        for k in range(rank):
            for m in range(rows):
                for n in range(columns):
                    total[m, n] = fused(factor * b[m, k], a[k, n], total[m, n])
    return theta + total


def make_golden() -> dict[str, Any]:
    seed = oracle.seed_of(42, 3, 5)
    found: dict[str, Any] = {"noise_version": 2, "name": NAME, "seed": f"{seed:016x}"}
    found |= {f"key_{part}": f"{oracle.key_of(f'{NAME}/{part}'):016x}" for part in "AB"}
    for rank in RANKS:
        made = eps(seed, NAME, rank, ROWS, COLUMNS)
        found[f"eps_rank_{rank}"] = _words(made)
        theta = np.linspace(-0.1, 0.1, ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
        after = updated(theta, NAME, rank, [oracle.seed_of(42, 3, pair) for pair in range(6)], COEFFICIENTS)
        found[f"updated_rank_{rank}"] = _words(after)
    return found


def _words(values: NDArray[np.float32]) -> list[list[str]]:
    return [[f"{word:08x}" for word in row] for row in values.view(np.uint32).tolist()]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_golden(), indent=1) + "\n")
