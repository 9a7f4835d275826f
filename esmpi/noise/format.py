"""Seeds, keys and the table of normals: the parts of the noise format that are not a kernel."""

import functools
import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

NOISE_VERSIONS = (1, 2)
"""Written into run files: 1 for full-rank noise of the same scale on all tensors, else 2. Any change to a bit of eps is
a new version."""

TILE = 256
"""Elements that 32 neighbouring Philox blocks make together."""

_MASK = 0xFFFFFFFF
_TABLE_SHA256 = "6fef2870d37df5780fec1041dbc1c55f2fccd7709511ee2562029554560914fe"


@dataclass(frozen=True)
class Noise:
    """Which noise the members of a generation have, and on which tensors."""

    rank: int = 0
    """Of low-rank noise; 0 for full rank."""
    scales: Mapping[str, float] | None = None
    """What multiplies the noise of a tensor, and its update, by canonical name. A tensor that is not there has no
    noise. None: 1 for all tensors."""

    def scale(self, name: str, shape: tuple[int, ...]) -> float:
        """Return what multiplies the noise of a tensor, 0 if it has none; `shape` is that of the whole tensor."""
        if self.rank and not is_matrix(shape):
            return 0.0
        return 1.0 if self.scales is None else self.scales.get(name, 0.0)


FULL = Noise()
"""Full-rank noise on all tensors."""


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor of a checkpoint can have low-rank noise."""
    return len(shape) == 2


def member_seed(run_seed: int, generation: int, pair: int) -> int:
    """Return the 64-bit seed of a member's noise.

    Parameters
    ----------
    run_seed : int
        The run's seed, 0 or more.
    generation : int
        Counted from 0.
    pair : int
        The member, or member // 2 when antithetic: both members of a pair share their noise.
    """
    sequence = np.random.SeedSequence(run_seed, spawn_key=(generation, pair))
    return int(sequence.generate_state(1, np.uint64)[0])


def member_seeds(run_seed: int, generation: int, num_pairs: int) -> np.ndarray:
    """Return `member_seed` of pairs 0 to num_pairs - 1 at once, (num_pairs,) uint64.

    NumPy's SeedSequence takes 10 us a seed; this is its algorithm (O'Neill's seed_seq_fe, 2015) on arrays. Only the
    pair differs from seed to seed, and it is the last word that goes in.
    """
    if not (0 <= generation < 2**32 and num_pairs <= 2**32):
        raise ValueError(f"generation {generation}, {num_pairs} pairs: both must fit 32 bits")
    words = [run_seed >> shift & _MASK for shift in range(0, max(1, run_seed.bit_length()), 32)]
    words += [0] * (4 - len(words))
    pairs = np.arange(num_pairs, dtype=np.uint32)
    multiplier = 0x43B0D7E5

    # on 32-bit words: Python's, which the mask keeps so, or arrays
    def folded(value: Any) -> Any:
        return value ^ value >> 16

    def hashed(value: Any) -> Any:
        nonlocal multiplier
        value = value ^ multiplier
        multiplier = multiplier * 0x931E8875 & _MASK
        return folded(value * multiplier & _MASK)

    def mixed(x: int, y: Any) -> Any:
        return folded((x * 0xCA01F9DD & _MASK) - (y * 0x4973F715 & _MASK) & _MASK)

    pool: list[int] = [hashed(word) for word in words[:4]]
    for source, target in itertools.permutations(range(4), 2):
        pool[target] = mixed(pool[target], hashed(pool[source]))
    for word in [*words[4:], generation]:
        pool = [mixed(part, hashed(word)) for part in pool]
    # a seed takes two of the pool's four words
    halves = [mixed(part, hashed(pairs)) for part in pool[:2]]
    multiplier = 0x8B51F9DD
    for i, half in enumerate(halves):
        value = half ^ multiplier
        multiplier = multiplier * 0x58F38DED & _MASK
        halves[i] = folded(value * multiplier).astype(np.uint64)
    return np.asarray(halves[0] | halves[1] << 32)


@functools.cache
def tensor_key(name: str) -> int:
    """Return the 64-bit key of a tensor: the head of BLAKE2b of its canonical name."""
    return int.from_bytes(hashlib.blake2b(name.encode()).digest()[:8], "little")


@functools.cache
def normal_table_bits() -> np.ndarray:
    """Return the 4096 positive normals as the bits of float32, uint32 of shape (4096,).

    Entry j is Phi^-1(0.5 + (j + 0.5) / 8192), scaled so that the mean square is 1. It is data, not
    computed here, because no two mathematical libraries agree in the last bit.
    """
    data = files("esmpi.assets").joinpath("normal_table.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != _TABLE_SHA256:
        raise RuntimeError("esmpi/assets/normal_table.bin is damaged: install esmpi again")
    return np.frombuffer(data, "<u4").astype(np.uint32)
