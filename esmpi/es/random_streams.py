"""Random streams: each has a purpose, and comes from the run seed alone."""

import hashlib

import numpy as np


def stream(run_seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the generator of random numbers for a purpose ("train problems", ...) and indices.

    Streams of different purposes or indices are independent of one another and of the members' noise.
    """
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    # Members' noise has spawn keys of two 32-bit words; with the count in front these have at least three.
    return np.random.default_rng(np.random.SeedSequence(run_seed, spawn_key=(len(indices), key, *indices)))


def stream_seed(run_seed: int, purpose: str, *indices: int) -> int:
    """Return a seed, 0 to 2^63 - 1, for a generator that is not NumPy's."""
    return int(stream(run_seed, purpose, *indices).integers(2**63))
