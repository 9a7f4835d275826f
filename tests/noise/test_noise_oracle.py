"""The oracle itself: published vectors of Philox, the table's digest, the design's golden values."""

import hashlib

import noise_oracle as oracle
import numpy as np
import pytest
from scipy.special import ndtri


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_has_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    words = [np.array([int(word, 16)], np.uint64) for word in counter.split()]
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word[0]):08x}" for word in oracle.philox(words, (k0, k1))) == expected


def test_table_has_the_digest_of_the_format() -> None:
    assert hashlib.sha256(oracle.table().astype("<f4").tobytes()).hexdigest() == oracle.TABLE_SHA256


def test_table_is_the_normal_distribution_of_scipy() -> None:
    z = ndtri(0.5 + (np.arange(4096) + 0.5) / 8192)
    z /= np.sqrt(np.mean(z * z))
    np.testing.assert_allclose(oracle.table(), z, rtol=1e-7)


def test_oracle_has_the_golden_values_of_the_design() -> None:
    seed, key = oracle.seed_of(42, 3, 5), oracle.key_of("model.layers.0.self_attn.q_proj.weight")
    assert (seed, key) == (0x189BE986910AF917, 0x0D001A4CDC18D141)
    words = [int(word[0]) for word in oracle.blocks(seed, key, np.zeros(1, np.uint64))]
    assert words == [0xA48623E2, 0x04EF9ABA, 0x4619BF39, 0x660CD0AB]
    hexadecimal = ["0x1.69eb08p-3", "-0x1.7ac09ep+0", "-0x1.67905ep-1", "-0x1.205512p-1"]
    assert oracle.eps(seed, key, np.arange(4)).tolist() == [float.fromhex(value) for value in hexadecimal]
    for first, values in (
        (31, [0.2007044, 0.9205965, 1.5631708, 0.3095028]),
        (254, [-0.0715141, 0.2082037, 0.1820043, 1.2454242]),
        (2**33, [0.7946061, 0.8403379]),
    ):
        eps = oracle.eps(seed, key, np.arange(first, first + len(values)))
        np.testing.assert_allclose(eps, values, rtol=0, atol=5.1e-8)
