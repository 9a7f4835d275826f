"""Small models, and all that happens to their weights in a generation, to compare one layout with another."""

import itertools

import numpy as np
import torch

from esmpi.model.base_model import matrix_shape
from esmpi.noise import member_seed
from esmpi.weights.host import Weights
from esmpi.weights.views import View

SEEDS = np.array([member_seed(1, 0, member) for member in range(6)], np.uint64)
COEFFICIENTS = np.array([3e-3, -1e-3, 0.0, 2e-4, -2e-3, 1e-5], np.float32)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

Shape = tuple[int, ...]


def make_model(shapes: dict[str, Shape], seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.from_numpy(rng.normal(0, 0.03, shape).astype(np.float32)) for name, shape in shapes.items()}


def read_from(model: dict[str, torch.Tensor], view: View) -> torch.Tensor:
    whole = model[view.name].view(matrix_shape(view.shape))
    return whole[slice(*view.rows), slice(*view.cols)].clone()


def whole_weights(model: dict[str, torch.Tensor], dtype: torch.dtype, num_threads: int = 1) -> Weights:
    views = [View.whole(name, torch.empty(tensor.shape, dtype=dtype)) for name, tensor in model.items()]
    return Weights(views, lambda view: read_from(model, view), num_threads)


def sharded_views(
    model: dict[str, torch.Tensor], row_parts: int, col_parts: int, dtype: torch.dtype, turned: bool = False
) -> list[View]:
    """Views of a model's tensors cut into rectangles; `turned`: which the engine holds transposed."""
    views = []
    for name, tensor in model.items():
        rows, cols = matrix_shape(tuple(tensor.shape))
        for r in cut(rows, min(row_parts, rows)):
            for c in cut(cols, min(col_parts, cols)):
                shape = (r[1] - r[0], c[1] - c[0])
                live = torch.empty(shape[::-1], dtype=dtype).T if turned else torch.empty(shape, dtype=dtype)
                views.append(View(name, tuple(tensor.shape), r, c, live))
    return views


def live_of(weights: Weights) -> dict[str, torch.Tensor]:
    """The live weights, put together to whole canonical tensors."""
    whole: dict[str, torch.Tensor] = {}
    for view in weights.views:
        assert view.live is not None
        target = whole.setdefault(view.name, torch.full(matrix_shape(view.shape), torch.nan, dtype=view.live.dtype))
        target[slice(*view.rows), slice(*view.cols)] = view.live
    return whole


def theta_of(weights: Weights) -> dict[str, torch.Tensor]:
    whole: dict[str, torch.Tensor] = {}
    for view, theta in weights.theta():
        target = whole.setdefault(view.name, torch.full(matrix_shape(view.shape), torch.nan))
        target[slice(*view.rows), slice(*view.cols)] = theta
    return whole


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def history(weights: Weights) -> list[object]:
    """All that a layout could change: live weights of two members and of theta, theta, digests."""
    seen: list[object] = [weights.digest()]
    for seed, scale in ((int(SEEDS[0]), 1e-3), (int(SEEDS[1]), -1e-3)):
        weights.perturb(seed, scale)
        seen.append(live_of(weights))
    weights.update(SEEDS, COEFFICIENTS)
    weights.restore()
    return [*seen, live_of(weights), theta_of(weights), weights.digest()]


def assert_same_history(weights: Weights, reference: Weights) -> None:
    for got, expected in zip(history(weights), history(reference), strict=True):
        if isinstance(expected, dict):
            assert isinstance(got, dict)
            assert same(got, expected)
        else:
            assert got == expected


def cut(length: int, num_parts: int) -> list[tuple[int, int]]:
    borders = [round(i * length / num_parts) for i in range(num_parts + 1)]
    return list(itertools.pairwise(borders))
