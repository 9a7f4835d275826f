"""Seeds, keys and the table of normals: the parts of the noise format that are not a kernel."""

import functools
import hashlib
from importlib.resources import files

import numpy as np

NOISE_VERSION = 1
"""Written into every run file. Any change to a bit of eps is a new version."""

TILE = 256
"""Elements that 32 neighbouring Philox blocks make together."""

_TABLE_SHA256 = "6fef2870d37df5780fec1041dbc1c55f2fccd7709511ee2562029554560914fe"


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
    data = files("esmpi.noise").joinpath("normal_table.bin").read_bytes()
    if hashlib.sha256(data).hexdigest() != _TABLE_SHA256:
        raise RuntimeError("esmpi/noise/normal_table.bin is damaged: install esmpi again")
    return np.frombuffer(data, "<u4").astype(np.uint32)
