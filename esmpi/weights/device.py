"""Weights whose live part is on a GPU, with theta beside it. The bits are those of a CPU."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch

from esmpi.noise.gpu import DeviceBlock, DeviceBlocks, to_device
from esmpi.weights.host import Weights
from esmpi.weights.views import Block, View

ALL = 1 << 62
"""More elements than a view has: blocks of this size are whole views."""


class DeviceWeights(Weights):
    """Theta on the GPU, beside the live weights: perturbing, updating and digest are one launch each."""

    def _hold(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(device_of(self.views))

    def _prepare(self) -> None:
        self._blocks = self._split(ALL)
        self._tables = tables_of(self._blocks)

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None) -> None:
        tables = self._tables if only is None else tables_of(self._chosen(only))
        device = device_of(self.views)
        member = to_device(np.array([seed], np.uint64), np.array([scale], np.float32), device)
        for table in tables:
            table.perturb(*member)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # so that the time counts as perturbing

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray) -> None:
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


def tables_of(blocks: Iterable[Block]) -> list[DeviceBlocks]:
    """Return the blocks as the kernels take them: those with the same types together."""
    groups: dict[object, list[DeviceBlock]] = defaultdict(list)
    for block in blocks:
        if block.theta.numel():
            assert block.live is not None
            groups[block.live.dtype].append(DeviceBlock(block.theta, block.live, block.first, block.stride, block.key))
    return [DeviceBlocks(group) for group in groups.values()]
