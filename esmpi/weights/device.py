"""Weights whose live part is on a GPU, with theta beside it. The bits are those of a CPU."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
import triton

from esmpi.errors import UserError
from esmpi.noise.format import member_seeds
from esmpi.noise.gpu import DeviceBlock, DeviceBlocks, to_device
from esmpi.noise.low_rank import LowRank, factor_keys
from esmpi.weights.host import Weights
from esmpi.weights.views import Block, View

_CHECKED_ELEMENTS = 20_001
ALL = 1 << 62
"""More elements than a view has: blocks of this size are whole views."""


class DeviceWeights(Weights):
    """Theta on the GPU, beside the live weights: perturbing, updating and digest are one launch each."""

    def _hold(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(device_of(self.views))

    def _prepare(self) -> None:
        self._blocks = self._split(ALL)
        self._tables = tables_of(self._blocks)

    def perturb(
        self, seed: int, scale: float, only: Collection[str] | None = None, low_rank: LowRank | None = None
    ) -> None:
        device = device_of(self.views)
        if low_rank is not None:
            perturb_low_rank(self._blocks if only is None else self._chosen(only), self.views, seed, scale, low_rank)
        else:
            member = to_device(np.array([seed], np.uint64), np.array([scale], np.float32), device)
            for table in self._tables if only is None else tables_of(self._chosen(only)):
                table.perturb(*member)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # so that the time counts as perturbing

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray, low_rank: LowRank | None) -> None:
        if low_rank is not None:
            update_low_rank(self._blocks, self.views, seeds, coefficients, low_rank)
            return
        on_device = to_device(seeds, coefficients, device_of(self.views))
        for table in self._tables:
            table.update(*on_device)

    def digest(self, counted: Collection[int] | None = None) -> int:
        tables = self._tables
        if counted is not None and len(counted) < len(self.views):
            tables = tables_of([block for block in self._blocks if block.view in counted])
        return sum(table.digest() for table in tables) % 2**64

    def _chosen(self, names: Collection[str]) -> list[Block]:
        return [block for block in self._blocks if self.views[block.view].name in names]


def device_of(views: Sequence[View]) -> torch.device:
    """Return the device that the live weights of some views are on."""
    return next(view.live.device for view in views if view.live is not None)


def check_gpu(device: torch.device) -> None:
    """Compare what the kernels make on a GPU with what they make on the CPU, for some thousand elements.

    Raises
    ------
    UserError
        If a bit differs. A run on such a GPU could not be replayed elsewhere.
    """
    theta = torch.linspace(-3, 3, _CHECKED_ELEMENTS).pow(3)[None]
    seeds, coefficients = member_seeds(0, 0, 7), np.linspace(-0.01, 0.02, 7, dtype=np.float32)

    def history(kind: type[Weights], where: torch.device, live: torch.dtype) -> list[torch.Tensor]:
        view = View("checked", theta.shape, (0, 1), (0, theta.shape[1]), torch.empty_like(theta, dtype=live).to(where))
        weights = kind([view], lambda _: theta.clone(), 1)
        weights.update(seeds, coefficients)
        weights.perturb(int(seeds[0]), 0.003)
        assert view.live is not None
        found = [
            torch.from_numpy(np.array([weights.digest()], np.uint64).view(np.int64)),
            view.live.cpu(),
            *(part.cpu() for _, part in weights.theta()),
        ]
        weights.close()
        return found

    for live in (torch.float32, torch.bfloat16, torch.float16):
        on_gpu, on_cpu = history(DeviceWeights, device, live), history(Weights, torch.device("cpu"), live)
        for name, made, expected in zip(("digest", "perturbation", "update"), on_gpu, on_cpu, strict=True):
            if not torch.equal(made, expected):
                raise UserError(
                    f"engine: Triton {triton.__version__} makes other bits on this GPU than esmpi does on a CPU "
                    f"({name} of {live}): use another version of Triton, or engine.device=cpu, and report this"
                )


def tables_of(blocks: Iterable[Block]) -> list[DeviceBlocks]:
    """Return the blocks as the kernels take them: those with the same types together."""
    groups: dict[object, list[DeviceBlock]] = defaultdict(list)
    for block in blocks:
        if block.theta.numel():
            assert block.live is not None
            groups[block.live.dtype].append(DeviceBlock(block.theta, block.live, block.first, block.stride, block.key))
    return [DeviceBlocks(group) for group in groups.values()]


def perturb_low_rank(
    blocks: Iterable[Block], views: Sequence[View], seed: int, scale: float, low_rank: LowRank
) -> None:
    """Write live = cast(theta + scale * eps(seed)) with low-rank noise; of the other tensors live = cast(theta)."""
    for block in blocks:
        assert block.live is not None
        view = views[block.view]
        moved = block.theta.float()
        if view.name in low_rank.names:
            moved = moved + _low_rank_noise(block, view, low_rank.rank, seed).mul_(float(np.float32(scale)))
        block.live.copy_(moved)


def update_low_rank(
    blocks: Iterable[Block], views: Sequence[View], seeds: np.ndarray, coefficients: np.ndarray, low_rank: LowRank
) -> None:
    """Add the members' low-rank noise, times their coefficients, to theta."""
    for block in blocks:
        view = views[block.view]
        if view.name not in low_rank.names:
            continue
        total = torch.zeros_like(block.theta)
        for seed, coefficient in zip(seeds.tolist(), coefficients.tolist(), strict=True):
            total += _low_rank_noise(block, view, low_rank.rank, seed).mul_(coefficient)
        block.theta.add_(total)


def _low_rank_noise(block: Block, view: View, rank: int, seed: int) -> torch.Tensor:
    """Return a block's eps, of its shape. Each operation of torch rounds by itself, as the format demands."""
    width, device = view.shape[1], block.theta.device
    rows, cols = block.theta.shape
    begin, end = block.first // width, (block.first + (rows - 1) * block.stride + cols - 1) // width + 1
    key_b, key_a = factor_keys(view.name)
    b = _normals(key_b, seed, begin * rank, (end - begin) * rank, device).view(-1, rank)
    a = _normals(key_a, seed, 0, rank * width, device).view(rank, width)
    if rows == 1:  # a stretch of whole rows, perhaps with parts of rows at its ends
        noise = _product(b, a).view(1, -1)
        start = block.first - begin * width
        noise = noise[:, start : start + cols]
    else:  # the same columns of neighbouring rows
        start = block.first - begin * width
        noise = _product(b, a[:, start : start + cols])
    return noise.mul_(float(np.float32(1 / math.sqrt(rank)))) if rank > 1 else noise


def _product(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """Return b @ a, the terms added one after another."""
    total = b[:, :1] * a[:1]
    for k in range(1, len(a)):
        total += b[:, k : k + 1] * a[k : k + 1]
    return total


def _normals(key: int, seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
    """Return elements first to first + count - 1 of a tensor's noise by version 1's rules."""
    made = torch.empty((1, count), device=device)
    table = DeviceBlocks([DeviceBlock(torch.zeros((1, count), device=device), made, first, 0, key)])
    table.perturb(*to_device(np.array([seed], np.uint64), np.ones(1, np.float32), device))
    return made[0]
