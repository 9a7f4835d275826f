"""All weights of a model, in this process or in workers: what the training loop perturbs, updates and compares."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, matrix_shape
from esmpi.noise.format import FULL, Noise

if TYPE_CHECKING:
    import torch

    from esmpi.weights.shard import Rectangle

Call = Callable[..., list[Any]]
"""Calls a method of every shard, `call(method, *arguments)`, and returns what each returns, in the shards' order."""


@dataclass(frozen=True)
class Perturbation:
    """What turns theta into a member's weights."""

    seed: int
    """Seed of the member's noise, 0 to 2^64 - 1."""
    scale: float
    """sign * sigma."""
    noise: Noise = FULL


class ModelWeights:
    """Theta and the live weights of an engine. The same class for every engine: only `call` differs.

    Parameters
    ----------
    base : BaseModel
    call : Call
        How the shards (`esmpi.weights.shard.WeightShard`) are reached.
    aliases : mapping of str to str, optional
        Names of tied tensors that are not canonical, with the canonical name of each.

    Raises
    ------
    UserError
        If the shards hold a tensor in part only, or hold parts that overlap without being the same.
    """

    def __init__(self, base: BaseModel, call: Call, aliases: Mapping[str, str] | None = None):
        self._base = base
        self._call = call
        held = [
            # from another process tuples come as lists
            [(name, tuple(rows), tuple(cols)) for name, rows, cols in shard]
            for shard in call("rectangles")
        ]
        self._counted = count_once(held, base)
        self.names: list[str] = list(dict.fromkeys(name for shard in held for name, _, _ in shard))
        """Canonical names of theta's tensors."""
        self.aliases = dict(aliases or {})
        """Names of tied tensors that are not canonical, with the canonical name of each."""
        self._shows_theta = False
        self._written: tuple[str, tuple[Any, ...]] | None = None
        """The call that wrote the live weights, with its arguments; None if theta, or a part of them, changed since."""

    @property
    def num_weights(self) -> int:
        """How many weights theta has."""
        return sum(self._base.tensors[name].num_elements for name in self.names)

    def perturb(self, wave: Sequence[Perturbation], only: Collection[str] | None = None) -> None:
        """Write the live weights of the members of a wave: live = cast(theta + scale * eps(seed)).

        With `only`, canonical names, no other tensors are touched.

        Raises
        ------
        ValueError
            If the wave has more than one member: the live weights are those of one.
        """
        if len(wave) != 1:
            raise ValueError(f"the live weights are those of one member, not of {len(wave)}: override Engine.perturb")
        member = wave[0]
        self._shows_theta = False
        noise = member.noise
        names = None if only is None else list(only)
        arguments = (member.seed, member.scale, names, noise.rank, noise.scales)
        self._call("perturb", *arguments)
        self._written = None if only is not None else ("perturb", arguments)

    def num_infinite(self) -> int:
        """Return how many live weights are infinite, as float16 makes those that are too large for it."""
        return sum(self._call("num_infinite"))

    def restore(self) -> None:
        """Write live = cast(theta), unless the live weights are just that."""
        if not self._shows_theta:
            self._call("restore")
            self._written = ("restore", ())
        self._shows_theta = True

    def update(self, seeds: np.ndarray, coefficients: np.ndarray, noise: Noise = FULL) -> None:
        """Add sum_i coefficient_i * eps_i to theta; the live weights follow at the next perturb or restore.

        `seeds` is (N,) uint64, `coefficients` (N,) float32.
        """
        self._shows_theta, self._written = False, None
        self._call("update", seeds, coefficients, noise.rank, noise.scales)

    def shrink(self, factor: float, noise: Noise = FULL) -> None:
        """Move theta towards the base model: theta = base + factor * (theta - base), of the tensors that have noise.

        Each operation is rounded to float32, and `factor` is a float32. The live weights follow as after an update.
        """
        self._shows_theta, self._written = False, None
        self._call("shrink", factor, noise.rank, noise.scales)

    def load(self, snapshot: Path | None) -> None:
        """Replace theta by a snapshot's, or by the base model's; the live weights follow as after an update.

        Raises
        ------
        UserError
            If the snapshot cannot be read here. Theta is then in part replaced: load another one, or the base.
        """
        self._shows_theta, self._written = False, None
        for error in self._call("load", None if snapshot is None else str(snapshot)):
            if error is not None:
                raise UserError(error)

    def show_base(self) -> None:
        """Write live = cast(base model), to compare with it; `restore` ends that. Theta stays."""
        self._shows_theta = False
        self._call("show_base")
        self._written = ("show_base", ())

    def distance(self, noise: Noise = FULL) -> float:
        """Return the Euclidean norm of theta minus the base model, of the tensors that have noise."""
        return math.sqrt(math.fsum(self._call("squared_distance", self._counted, noise.rank, noise.scales)))

    def digest(self) -> int:
        """Return the 64-bit digest of theta."""
        return sum(self._call("digest", self._counted)) % 2**64

    def tensor_digests(self) -> dict[str, int]:
        """Return each tensor's share of theta's digest, by canonical name."""
        found = dict.fromkeys(self.names, 0)
        for shares in self._call("tensor_digests", self._counted):
            for name, share in shares.items():
                found[name] = (found[name] + share) % 2**64
        return found

    def damaged(self) -> list[str]:
        """Return the names of tensors whose live weights are not what was last written there, and write them again.

        Writing is deterministic, so the live weights change only if something else has changed them, such as a
        defective memory. If theta was updated or replaced since, nothing is compared.
        """
        if self._written is None:
            return []
        method, arguments = self._written
        return sorted({name for names in self._call("rewrite", method, *arguments) for name in names})

    def tensors(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield theta: canonical name and float32 tensor of the canonical shape, on the CPU, not to be changed."""
        yield from self.by_name.items()

    @property
    def by_name(self) -> "Mapping[str, torch.Tensor]":
        """Theta, as `tensors` yields it. A tensor that is not in one piece here is put together each time."""
        return _ByName(self.names, lambda name: self._assemble(name, live=False))

    def live(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Yield the live weights: canonical name and tensor of the canonical shape, not to be changed.

        Quantized ones are the float32 values that they stand for.
        """
        for name in self.names:
            yield name, self._assemble(name, live=True)

    def close(self) -> None:
        """End what works on the weights; nothing else may be called afterwards."""
        self._call("close")

    def _assemble(self, name: str, live: bool) -> "torch.Tensor":
        shape = self._base.tensors[name].shape
        parts = [part for shard in self._call("parts", name, live) for part in shard]
        if len(parts) == 1:  # the whole tensor, perhaps theta's own memory, is not copied
            return parts[0][2].contiguous().view(shape)
        whole = parts[0][2].new_empty(matrix_shape(shape))
        for rows, cols, values in parts:
            whole[rows[0] : rows[1], cols[0] : cols[1]] = values
        return whole.view(shape)


class _ByName(Mapping[str, "torch.Tensor"]):
    """Tensors that are made when they are asked for, so that all of them need not be in memory together."""

    def __init__(self, names: Sequence[str], make: "Callable[[str], torch.Tensor]"):
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> "torch.Tensor":
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def count_once(held: "Sequence[Sequence[Rectangle]]", base: BaseModel) -> list[list[int]]:
    """Return, for each shard, the numbers of the views that count in the digest: each element exactly once.

    Raises
    ------
    UserError
        If a tensor is held in part only, or rectangles overlap without being the same.
    """
    seen: dict[str, set[tuple[Any, Any]]] = defaultdict(set)
    counted: list[list[int]] = []
    for shard in held:
        counted.append([])
        for number, (name, rows, cols) in enumerate(shard):
            if (rows, cols) not in seen[name]:
                seen[name].add((rows, cols))
                counted[-1].append(number)
    for name, rectangles in seen.items():
        num_rows, num_cols = matrix_shape(base.tensors[name].shape)
        columns_held = np.zeros(num_rows, np.int64)
        for (row, end), (col, stop) in rectangles:
            columns_held[row:end] += stop - col
        if (columns_held != num_cols).any():
            raise UserError(f"engine: its workers do not hold each element of {name} exactly once")
    return counted
