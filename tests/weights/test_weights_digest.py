"""The digest of theta: any difference that a run could make shows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esmpi.weights.host import Weights
from esmpi.weights.views import View

MODEL = {"a.weight": (24, 40), "b.bias": (33,)}


def digest_of(tensors: dict[str, torch.Tensor]) -> int:
    views = [View(name, tuple(t.shape), (0, t.shape[0]), (0, t[0].numel()), None) for name, t in tensors.items()]
    return Weights(views, lambda view: tensors[view.name].reshape(view.rows[1], view.cols[1]).clone(), 1).digest()


def theta() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(2)
    return {name: torch.from_numpy(rng.normal(0, 0.03, shape).astype(np.float32)) for name, shape in MODEL.items()}


DIGEST = digest_of(theta())


@given(st.sampled_from(list(MODEL)), st.integers(0, 10**6), st.integers(0, 31))
def test_any_single_bit_shows(name: str, element: int, bit: int) -> None:
    changed = theta()
    flat = changed[name].view(-1).view(torch.int32).numpy().view(np.uint32)
    flat[element % flat.size] ^= np.uint32(1 << bit)
    assert digest_of(changed) != DIGEST
    flat[element % flat.size] ^= np.uint32(1 << bit)
    assert digest_of(changed) == DIGEST


@given(st.integers(0, 959), st.integers(0, 959))
def test_swapped_elements_show(i: int, j: int) -> None:
    changed = theta()
    flat = changed["a.weight"].view(-1)
    flat[[i, j]] = flat[[j, i]]
    assert (digest_of(changed) == DIGEST) == (i == j)


def test_reordering_and_exchanging_tensors_show() -> None:
    original = theta()
    a, b = original["a.weight"], original["b.bias"]
    digests = [
        DIGEST,
        digest_of({"a.weight": a.flip(0), "b.bias": b}),
        digest_of({"a.weight": a.roll(1, 1), "b.bias": b}),
        digest_of({"c.weight": a, "b.bias": b}),
        digest_of({"a.weight": a}),
        digest_of({"a.weight": a, "b.bias": b[:-1]}),
        digest_of({"a.weight": torch.cat([b, b])[:64].view(2, 32), "b.bias": a.view(-1)[:33]}),
    ]
    assert len(set(digests)) == len(digests)


def test_order_of_the_tensors_does_not_matter() -> None:
    assert digest_of(dict(reversed(theta().items()))) == DIGEST


@pytest.mark.parametrize(("old", "new"), [(0.0, -0.0), (float("nan"), 1.0), (1e-45, 0.0)])
def test_bits_count_not_values(old: float, new: float) -> None:
    one, other = torch.full((3, 4), old), torch.full((3, 4), old)
    other[1, 2] = new
    assert digest_of({"w": one}) != digest_of({"w": other})
    assert digest_of({"w": one}) == digest_of({"w": one.clone()})
