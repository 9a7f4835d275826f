"""Weights whose live part is on a GPU, with theta beside it. The bits are those of a CPU."""

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import triton

from esmpi.errors import UserError
from esmpi.noise import low_rank_gpu
from esmpi.noise.format import FULL, Noise, member_seeds
from esmpi.noise.gpu import DeviceBlock, DeviceBlocks, to_device
from esmpi.noise.low_rank import rectangles
from esmpi.noise.quantization import LARGEST, shapes
from esmpi.weights.host import Weights
from esmpi.weights.views import Block, View, by_rows, in_float32, rows_are_stretches, write

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
        self._grouped = Grouped(self._blocks, self.views, scratch_for(self._blocks, device_of(self.views)))

    def perturb(self, seed: int, scale: float, only: Collection[str] | None = None, noise: Noise = FULL) -> None:
        device = device_of(self.views)
        member = to_device(np.array([seed], np.uint64), np.array([scale], np.float32), device)
        grouped = self._grouped if only is None else self._grouped.only(only)
        grouped.perturb(noise, *member)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # so that the time counts as perturbing

    def _update(self, seeds: np.ndarray, coefficients: np.ndarray, noise: Noise) -> None:
        self._grouped.update(noise, *to_device(seeds, coefficients, device_of(self.views)))

    def digest(self, counted: Collection[int] | None = None) -> int:
        tables = self._tables
        if counted is not None and len(counted) < len(self.views):
            tables = tables_of([block for block in self._blocks if block.view in counted])
        return sum(table.digest() for table in tables) % 2**64


def device_of(views: Sequence[View]) -> torch.device:
    """Return the device that the live weights of some views are on."""
    return next(view.live.device for view in views if view.live is not None)


def scratch_for(blocks: Iterable[Block], device: torch.device) -> torch.Tensor | None:
    """Return float32 memory that any of some blocks has room in before it is quantized; None if none is quantized."""
    sizes = [block.theta.numel() for block in blocks if block.scales is not None]
    return torch.empty(max(sizes), device=device) if sizes else None


def check_gpu(device: torch.device) -> None:
    """Compare what the kernels make on a GPU with what they make on the CPU, for some thousand elements.

    Raises
    ------
    UserError
        If a bit differs. A run on such a GPU could not be replayed elsewhere.
    """
    theta = torch.linspace(-3, 3, _CHECKED_ROWS * _CHECKED_COLUMNS).pow(3).view(_CHECKED_ROWS, _CHECKED_COLUMNS)
    seeds, coefficients = member_seeds(0, 0, 7), np.linspace(-0.01, 0.02, 7, dtype=np.float32)

    def history(kind: type[Weights], where: torch.device, live: torch.dtype, noise: Noise) -> list[torch.Tensor]:
        form, of_scales = shapes(live, *theta.shape)
        scales = torch.empty(of_scales, device=where) if live in LARGEST else None
        view = View.whole("checked", torch.empty(form, dtype=live, device=where), scales, tuple(theta.shape))
        weights = kind([view], lambda _: theta.clone(), 1)
        weights.update(seeds, coefficients, noise)
        weights.perturb(int(seeds[0]), 0.003, None, noise)
        assert view.live is not None
        found = [
            torch.from_numpy(np.array([weights.digest()], np.uint64).view(np.int64)),
            view.live.view(torch.uint8).cpu(),
            torch.zeros(0) if scales is None else scales.cpu(),
            *(part.cpu() for _, part in weights.theta()),
        ]
        weights.close()
        return found

    noises = (FULL, Noise(1), Noise(3), Noise(1, {"checked": 0.3}))
    plain = itertools.product((torch.float32, torch.bfloat16, torch.float16), noises)
    for live, noise in (*plain, *((live, FULL) for live in LARGEST)):  # what is quantized was float32 before
        on_gpu = history(DeviceWeights, device, live, noise)
        on_cpu = history(Weights, torch.device("cpu"), live, noise)
        for name, made, expected in zip(("digest", "perturbation", "scale", "update"), on_gpu, on_cpu, strict=True):
            if not torch.equal(made, expected):
                what = f"{name} of {live} with {'low-rank' if noise.rank else 'full'} noise"
                raise UserError(
                    f"engine: Triton {triton.__version__} makes other bits on this GPU than esmpi does on a CPU "
                    f"({what}): use another version of Triton, or engine.device=cpu, and report this"
                )


def tables_of(blocks: Iterable[Block]) -> list[DeviceBlocks]:
    """Return the blocks as the kernels take them: those with the same types together.

    Of quantized ones, the kernels work on theta only.
    """
    groups: dict[object, list[DeviceBlock]] = defaultdict(list)
    for block in blocks:
        if block.theta.numel():
            live = block.live if block.scales is None else None
            kind = None if live is None else live.dtype
            groups[kind].append(DeviceBlock(block.theta, live, block.first, block.stride, block.key))
    return [DeviceBlocks(group) for group in groups.values()]


@dataclass(frozen=True)
class _Group:
    """Blocks whose noise has the same factor."""

    factor: float
    tables: list[DeviceBlocks]
    """Those that one launch perturbs: for full-rank noise, and neither transposed nor quantized."""
    single: list[Block]
    """The others, which are perturbed one by one."""


class Grouped:
    """Blocks, by what multiplies their noise. The groups of the noise that was used last are kept.

    Parameters
    ----------
    blocks : sequence of Block
        The tensors must stay where they are.
    views : sequence of View
        All views of the shard.
    scratch : Tensor, optional
        Of `scratch_for`, for these blocks or more.
    """

    def __init__(self, blocks: Sequence[Block], views: Sequence[View], scratch: torch.Tensor | None = None):
        self._blocks, self._views, self._scratch = blocks, views, scratch
        self._noise: Noise | None = None
        self._groups: list[_Group] = []

    def only(self, names: Collection[str]) -> "Grouped":
        """Return the same without the blocks of other tensors than these."""
        chosen = [block for block in self._blocks if self._views[block.view].name in names]
        return Grouped(chosen, self._views, self._scratch)

    def perturb(self, noise: Noise, seed: torch.Tensor, scale: torch.Tensor) -> None:
        """Write live = cast(theta + scale * eps); of tensors without noise live = cast(theta).

        `seed` is (1,) int64, `scale` (1,) float32, both on the device.
        """
        for group in self._of(noise):
            scaled = scale * group.factor  # a float32, as the factor is one
            for table in group.tables:
                table.perturb(seed, scaled)
            for block in group.single:
                assert block.live is not None
                if group.factor == 0:
                    write(block.live, block.scales, block.theta)
                    continue
                quantized = block.scales is not None
                with in_float32(block, self._scratch) if quantized else by_rows(block.live) as live:
                    self._perturb(replace(block, live=live, scales=None), noise, seed, scaled)

    def _perturb(self, block: Block, noise: Noise, seed: torch.Tensor, scale: torch.Tensor) -> None:
        """Perturb one block, whose rows are neighbours in memory."""
        if noise.rank == 0:
            for table in tables_of([block]):
                table.perturb(seed, scale)
            return
        view = self._views[block.view]
        width = view.shape[1]
        parts = (rectangles(part, block.first, block.stride, width) for part in (block.live, block.theta))
        for (out, row, column), (theta, _, _) in zip(*parts, strict=True):
            low_rank_gpu.perturb(out, theta, row, column, view.name, width, noise.rank, (seed, scale))

    def update(self, noise: Noise, seeds: torch.Tensor, coefficients: torch.Tensor) -> None:
        """Add the members' noise, times their coefficients, to theta.

        `seeds` is (M,) int64, `coefficients` (M,) float32, both on the device.
        """
        for group in self._of(noise):
            if group.factor == 0:
                continue
            scaled = coefficients * group.factor
            for table in group.tables if noise.rank else (*group.tables, *tables_of(group.single)):
                table.update(seeds, scaled)
            for block in group.single if noise.rank else ():
                view = self._views[block.view]
                for theta, row, column in rectangles(block.theta, block.first, block.stride, view.shape[1]):
                    low_rank_gpu.update(theta, row, column, view.name, view.shape[1], noise.rank, seeds, scaled)

    def _of(self, noise: Noise) -> list[_Group]:
        if noise != self._noise:
            by_factor: dict[float, list[Block]] = defaultdict(list)
            for block in self._blocks:
                view = self._views[block.view]
                by_factor[noise.scale(view.name, view.shape)].append(block)
            self._groups = []
            for factor, blocks in by_factor.items():
                in_one = [factor != 0 and noise.rank == 0 and _fits_a_launch(block) for block in blocks]
                together = itertools.compress(blocks, in_one)
                single = list(itertools.compress(blocks, (not one for one in in_one)))
                self._groups.append(_Group(factor, tables_of(together), single))
            self._noise = noise
        return self._groups


def _fits_a_launch(block: Block) -> bool:
    """Return whether a kernel can write the live weights of a block as they are."""
    return block.scales is None and rows_are_stretches(block.live)
