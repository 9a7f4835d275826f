"""What ES does to the weights that one process holds. An engine with several worker processes has a shard in each."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.snapshot import opened
from esmpi.noise.format import Noise
from esmpi.noise.quantization import numbers_per_scale
from esmpi.weights.host import Weights
from esmpi.weights.probe import fingerprint
from esmpi.weights.views import View, rows_are_stretches

Rectangle = tuple[str, tuple[int, int], tuple[int, int]]
"""Canonical name, rows and columns of what a view holds."""

_COUNTED_AT_ONCE = 1 << 22
"""Elements, so that counting needs little memory on a GPU, where the engine has taken nearly all."""


class WeightShard:
    """The weights of one process, as `esmpi.weights.model_weights.ModelWeights` asks for them.

    Arguments and results are of types that can go to another process and back, so an error of the user's is returned
    as its text: from another process it would arrive as some RuntimeError.

    Parameters
    ----------
    weights : Weights
        What this process holds.
    base : BaseModel
    rank : int
        Which of the shards this is.
    """

    def __init__(self, weights: Weights, base: BaseModel, rank: int = 0):
        self._weights = weights
        self._base = base
        self._rank = rank

    def rectangles(self) -> list[Rectangle]:
        """Return what the views hold, in their order."""
        return [(view.name, view.rows, view.cols) for view in self._weights.views]

    def perturb(
        self,
        seed: int,
        scale: float,
        only: Collection[str] | None,
        rank: int,
        scales: Mapping[str, float] | None,
    ) -> None:
        """Write live = cast(theta + scale * eps(seed)), of these tensors only if there is a choice.

        `rank` and `scales` are those of the noise (`esmpi.noise.format.Noise`).
        """
        self._weights.perturb(seed, scale, only, Noise(rank, scales))

    def num_infinite(self) -> int:
        """Return how many live weights are infinite; views that several shards hold count in each."""
        total = 0
        for view in self._weights.views:
            if view.live is None:
                continue
            if view.scales is not None:
                infinite = torch.isinf(view.scales).view(len(view.scales), -1).sum(0).tolist()
                each = numbers_per_scale(view.live.dtype, view.cols[1])
                total += sum(count * min(each, view.cols[1] - each * i) for i, count in enumerate(infinite))
            else:
                num_rows = max(1, _COUNTED_AT_ONCE // max(1, view.live.shape[1]))
                parts = (part for rows in view.live.split(num_rows) for part in rows.split(_COUNTED_AT_ONCE, dim=1))
                total += sum(int(torch.isinf(part).sum()) for part in parts)
        return total

    def restore(self) -> None:
        """Write live = cast(theta)."""
        self._weights.restore()

    def update(
        self,
        seeds: Sequence[int] | np.ndarray,
        coefficients: Sequence[float] | np.ndarray,
        rank: int,
        scales: Mapping[str, float] | None,
    ) -> None:
        """Add the members' noise, times their coefficients, to theta: (N,) uint64 and (N,) float32."""
        noise = Noise(rank, scales)
        self._weights.update(np.asarray(seeds, np.uint64), np.asarray(coefficients, np.float32), noise)

    def shrink(self, factor: float, rank: int, scales: Mapping[str, float] | None) -> None:
        """Move theta towards the base model; `rank` and `scales` are those of the noise."""
        self._weights.shrink(self._read_base, factor, Noise(rank, scales))

    def load(self, snapshot: str | None) -> str | None:
        """Replace theta by a snapshot's or the base model's; return what is wrong, None if nothing is."""
        try:
            path = None if snapshot is None else Path(snapshot)
            with self._weights.alone(), opened(path, self._base) as source:
                self._weights.load(lambda view: source.read(view.name, view.rows, view.cols))
        except UserError as error:
            return str(error)
        return None

    def show_base(self) -> None:
        """Write live = cast(base model)."""
        self._weights.show(self._read_base)

    def squared_distance(
        self, counted: Sequence[Sequence[int]], rank: int, scales: Mapping[str, float] | None
    ) -> float:
        """Return this shard's part of the squared norm of theta minus the base model, of the tensors that have noise.

        `counted` is as in `digest`.
        """
        noise = Noise(rank, scales)
        views = self._weights.views
        chosen = {i for i in counted[self._rank] if noise.scale(views[i].name, views[i].shape)}
        return self._weights.squared_distance(self._read_base, chosen)

    def digest(self, counted: Sequence[Sequence[int]]) -> int:
        """Return this shard's part of the digest; `counted` has, by rank, the numbers of the views that count."""
        return self._weights.digest(set(counted[self._rank]))

    def tensor_digests(self, counted: Sequence[Sequence[int]]) -> dict[str, int]:
        """Return this shard's part of each tensor's share of the digest; `counted` is as in `digest`."""
        found: dict[str, int] = {}
        for number in counted[self._rank]:
            name = self._weights.views[number].name
            found[name] = (found.get(name, 0) + self._weights.digest({number})) % 2**64
        return found

    def rewrite(self, method: str, *arguments: Any) -> list[str]:
        """Write the live weights again, by the method that wrote them; return the names of those that change."""
        before = [_fingerprint(view) for view in self._weights.views]
        getattr(self, method)(*arguments)
        views = zip(self._weights.views, before, strict=True)
        return list(dict.fromkeys(view.name for view, value in views if _fingerprint(view) != value))

    def parts(self, name: str, live: bool) -> list[tuple[tuple[int, int], tuple[int, int], torch.Tensor]]:
        """Return the rectangles of a tensor, of theta or the live weights: (rows, columns, values on the CPU).

        Quantized weights are returned as the float32 values that they stand for.
        """
        return [
            (view.rows, view.cols, (theta if not live or shown is None else shown).cpu())
            for view, theta in self._weights.theta()
            if view.name == name
            for shown in [view.shown() if live else None]
        ]

    def close(self) -> None:
        """End what works on the weights."""
        self._weights.close()

    def _read_base(self, view: View) -> torch.Tensor:
        return self._base.read(view.name, view.rows, view.cols)


def _fingerprint(view: View) -> int:
    """Return a 64-bit sum over the bits of a view's live weights: another one if a bit is flipped."""
    if view.live is None:
        return 0
    live = view.live if rows_are_stretches(view.live) else view.live.t()
    num_rows = max(1, _COUNTED_AT_ONCE // max(1, live.shape[1]))
    parts = [*live.split(num_rows), *([] if view.scales is None else [view.scales])]
    return sum(map(fingerprint, parts)) % 2**64


def call_here(shard: WeightShard) -> Any:
    """Return how an engine without worker processes calls its only shard; see `ModelWeights`."""

    def call(method: str, *arguments: Any) -> list[Any]:
        return [getattr(shard, method)(*arguments)]

    return call
