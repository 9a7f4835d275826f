"""Weights whose live part is on a GPU, with theta beside it. The bits are those of a CPU."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
import triton

from esmpi.errors import UserError
from esmpi.noise import low_rank_gpu
from esmpi.noise.format import LowRank, member_seeds
from esmpi.noise.gpu import DeviceBlock, DeviceBlocks, to_device
from esmpi.noise.low_rank import rectangles
from esmpi.weights.host import Weights
from esmpi.weights.views import Block, View

_CHECKED_ROWS, _CHECKED_COLUMNS = 59, 339
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
        on_device = to_device(seeds, coefficients, device_of(self.views))
        if low_rank is not None:
            update_low_rank(self._blocks, self.views, *on_device, low_rank)
            return
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
    theta = torch.linspace(-3, 3, _CHECKED_ROWS * _CHECKED_COLUMNS).pow(3).view(_CHECKED_ROWS, _CHECKED_COLUMNS)
    seeds, coefficients = member_seeds(0, 0, 7), np.linspace(-0.01, 0.02, 7, dtype=np.float32)

    def history(
        kind: type[Weights], where: torch.device, live: torch.dtype, noise: LowRank | None
    ) -> list[torch.Tensor]:
        view = View.whole("checked", torch.empty_like(theta, dtype=live).to(where))
        weights = kind([view], lambda _: theta.clone(), 1)
        weights.update(seeds, coefficients, noise)
        weights.perturb(int(seeds[0]), 0.003, None, noise)
        assert view.live is not None
        found = [
            torch.from_numpy(np.array([weights.digest()], np.uint64).view(np.int64)),
            view.live.cpu(),
            *(part.cpu() for _, part in weights.theta()),
        ]
        weights.close()
        return found

    noises = (None, LowRank(1, frozenset({"checked"})), LowRank(3, frozenset({"checked"})))
    for live, noise in itertools.product((torch.float32, torch.bfloat16, torch.float16), noises):
        on_gpu = history(DeviceWeights, device, live, noise)
        on_cpu = history(Weights, torch.device("cpu"), live, noise)
        for name, made, expected in zip(("digest", "perturbation", "update"), on_gpu, on_cpu, strict=True):
            if not torch.equal(made, expected):
                what = f"{name} of {live} with {'low-rank' if noise else 'full'} noise"
                raise UserError(
                    f"engine: Triton {triton.__version__} makes other bits on this GPU than esmpi does on a CPU "
                    f"({what}): use another version of Triton, or engine.device=cpu, and report this"
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
    member = None
    for block in blocks:
        assert block.live is not None
        view = views[block.view]
        if view.name not in low_rank.names:
            block.live.copy_(block.theta)
            continue
        if member is None:
            member = to_device(np.array([seed], np.uint64), np.array([scale], np.float32), block.live.device)
        width = view.shape[1]
        parts = (rectangles(part, block.first, block.stride, width) for part in (block.live, block.theta))
        for (live, row, column), (theta, _, _) in zip(*parts, strict=True):
            low_rank_gpu.perturb(live, theta, row, column, view.name, width, low_rank.rank, member)


def update_low_rank(
    blocks: Iterable[Block], views: Sequence[View], seeds: torch.Tensor, coefficients: torch.Tensor, low_rank: LowRank
) -> None:
    """Add the members' low-rank noise, times their coefficients, to theta; they are on the device."""
    for block in blocks:
        view = views[block.view]
        if view.name in low_rank.names:
            for theta, row, column in rectangles(block.theta, block.first, block.stride, view.shape[1]):
                place = (row, column, view.name, view.shape[1])
                low_rank_gpu.update(theta, *place, low_rank.rank, seeds, coefficients)
