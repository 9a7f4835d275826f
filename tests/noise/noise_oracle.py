"""The noise format a second time, in plain NumPy and from its definition alone, to hold the kernels against.

`python tests/noise/noise_oracle.py` writes `golden_noise.json`. It needs to run again only for a new version of
the format: a difference otherwise is a bug.
"""

import functools
import hashlib
import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).with_name("golden_noise.json")
TABLE_SHA256 = "6fef2870d37df5780fec1041dbc1c55f2fccd7709511ee2562029554560914fe"

U32 = np.uint64(0xFFFFFFFF)
Array64 = NDArray[np.uint64]


def philox(counter: list[Array64], key: tuple[int, int], rounds: int = 10) -> list[Array64]:
    """Philox-4x32 (Salmon et al. 2011) on four arrays of 32-bit words, kept in uint64."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = np.uint64(0xD2511F53) * x0, np.uint64(0xCD9E8D57) * x2
        x0, x1, x2, x3 = (
            (product1 >> np.uint64(32)) ^ x1 ^ np.uint64(k0),
            product1 & U32,
            (product0 >> np.uint64(32)) ^ x3 ^ np.uint64(k1),
            product0 & U32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [x0, x1, x2, x3]


@functools.cache
def table() -> NDArray[np.float32]:
    """Phi^-1(0.5 + (j + 0.5) / 8192), mean square scaled to 1 in float64, then rounded."""
    normal = NormalDist()
    values = [normal.inv_cdf(0.5 + (j + 0.5) / 8192) for j in range(4096)]
    scale = math.sqrt(math.fsum(value * value for value in values) / 4096)
    return np.array([value / scale for value in values]).astype(np.float32)


def seed_of(run_seed: int, generation: int, pair: int) -> int:
    state = np.random.SeedSequence(run_seed, spawn_key=(generation, pair)).generate_state(1, np.uint64)
    return int(state[0])


def key_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8"), digest_size=64).digest()[:8], "little")


def blocks(seed: int, key: int, block: Array64) -> list[Array64]:
    """The four Philox words of each block."""
    words = [block & U32, block >> np.uint64(32), np.uint64(key & 0xFFFFFFFF), np.uint64(key >> 32)]
    counter = [np.broadcast_to(word, block.shape).astype(np.uint64) for word in words]
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32))


def eps(seed: int, key: int, elements: NDArray[np.int64]) -> NDArray[np.float32]:
    """The noise of any elements of a tensor."""
    e = np.asarray(elements).astype(np.uint64)
    tile, h, lane = e >> np.uint64(8), (e >> np.uint64(5)) & np.uint64(7), e & np.uint64(31)
    words = np.stack(blocks(seed, key, np.uint64(32) * tile + lane))
    word = np.take_along_axis(words, (h >> np.uint64(1)).astype(np.int64)[np.newaxis], axis=0)[0]
    u = np.where(h % np.uint64(2) == 0, word & np.uint64(0xFFFF), word >> np.uint64(16))
    z = table()[(u >> np.uint64(4)).astype(np.int64)]
    return np.where(u % np.uint64(2) == 1, -z, z).astype(np.float32)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of the nearest bfloat16, ties to even, found by comparing distances in float64. Finite values only."""
    bits = values.view(np.uint32)
    down = bits & np.uint32(0xFFFF0000)
    exact = values.astype(np.float64)
    below = down.view(np.float32).astype(np.float64)
    up = down + np.uint32(0x10000)
    above = up.view(np.float32).astype(np.float64)
    # Beyond the largest bfloat16 comes, for rounding, the next power of two.
    above = np.where(np.isinf(above), np.copysign(2.0**128, exact), above)
    to_below, to_above = np.abs(exact - below), np.abs(above - exact)
    even = (down >> np.uint32(16)) % 2 == 0
    take_down = (to_below < to_above) | ((to_below == to_above) & even)
    return (np.where(take_down, down, up) >> np.uint32(16)).astype(np.uint16)


def perturbed(theta: NDArray[np.float32], noise: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    return theta + np.float32(scale) * noise


def updated(
    theta: NDArray[np.float32], noises: list[NDArray[np.float32]], coefficients: list[float]
) -> NDArray[np.float32]:
    total = np.zeros_like(theta)
    for noise, coefficient in zip(noises, coefficients, strict=True):
        total = total + np.float32(coefficient) * noise
    return theta + total


def digest(theta: NDArray[np.float32], key: int, elements: NDArray[np.int64]) -> int:
    """Sum of MurmurHash3's finalizer of (key + element * golden ratio) xor bits, modulo 2^64."""
    mask, total = 2**64 - 1, 0
    for bits, element in zip(theta.view(np.uint32).ravel().tolist(), np.ravel(elements).tolist(), strict=True):
        x = ((key + element * 0x9E3779B97F4A7C15) & mask) ^ bits
        x = ((x ^ (x >> 33)) * 0xFF51AFD7ED558CCD) & mask
        x = ((x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53) & mask
        total += x ^ (x >> 33)
    return total & mask


NAMES = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.11.mlp.down_proj.weight",
    "model.embed_tokens.weight",
    "gewicht.größe",
]
MEMBERS = [(42, 3, 5), (0, 0, 0), (0, 0, 1), (1, 0, 0), (2**63 - 1, 499, 29), (7, 10**6, 12345)]
POSITIONS = [0, 30, 62, 254, 511, 1023, 2**20 - 1, 2**31 - 2, 2**32 - 1, 2**33, 2**37 - 2, 2**40 + 12345]


def probe_theta(count: int) -> NDArray[np.float32]:
    """Weights without a random generator: an integer hash spread over -0.05 ... 0.05, with a few odd values."""
    mixed = np.arange(count, dtype=np.uint64) * np.uint64(2654435761) & U32
    theta = ((mixed.astype(np.float64) / 2**32 - 0.5) / 10).astype(np.float32)
    theta[:6] = [0.0, -0.0, 1.0, -3.0e38, 1e-40, 256.5]
    return theta


def make_golden() -> dict[str, Any]:
    def bits(values: NDArray[Any]) -> list[str]:
        width = 2 * values.dtype.itemsize
        kind = np.dtype(f"u{values.dtype.itemsize}")
        return [f"{bits:0{width}x}" for bits in np.ascontiguousarray(values).view(kind).tolist()]

    noise = []
    for run_seed, generation, pair in MEMBERS:
        for name in NAMES:
            seed, key = seed_of(run_seed, generation, pair), key_of(name)
            noise.append(
                {
                    "run_seed": run_seed,
                    "generation": generation,
                    "pair": pair,
                    "name": name,
                    "seed": f"{seed:016x}",
                    "key": f"{key:016x}",
                    "philox_block_0": [f"{int(word[0]):08x}" for word in blocks(seed, key, np.zeros(1, np.uint64))],
                    "eps": {str(p): bits(eps(seed, key, np.arange(p, p + 4))) for p in POSITIONS},
                }
            )
    seed, key = seed_of(42, 3, 5), key_of(NAMES[0])
    elements = np.arange(250, 250 + 24)
    theta = probe_theta(24)
    live = perturbed(theta, eps(seed, key, elements), 1e-3)
    coefficients = [2e-4, -1e-4, 5e-5, -3.3e-4, 1e-6]
    seeds = [seed_of(42, 3, member) for member in range(5)]
    after = updated(theta, [eps(s, key, elements) for s in seeds], coefficients)
    return {
        "noise_version": 1,
        "table_sha256": TABLE_SHA256,
        "noise": noise,
        "weights": {
            "name": NAMES[0],
            "first": 250,
            "theta": bits(theta),
            "sigma": 1e-3,
            "perturbing_seed": f"{seed:016x}",
            "perturbed_float32": bits(live),
            "perturbed_bfloat16": bits(to_bfloat16(live)),
            "seeds": [f"{s:016x}" for s in seeds],
            "coefficients": coefficients,
            "updated": bits(after),
            "digest_before": f"{digest(theta, key, elements):016x}",
            "digest_after": f"{digest(after, key, elements):016x}",
            "digest_at_2**33": f"{digest(theta, key, elements + 2**33):016x}",
        },
    }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_golden(), indent=1) + "\n")
