"""Low-rank noise of several members in one batch: each member's rows get the outputs of its own weights.

A layer's output is that of theta for all rows, plus `scale * (x A^T) B^T` for the rows of each member, as two batched
products over members. So a batch costs hardly more than the same batch without noise, and no weights are written.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.pytorch_utils import Conv1D

from esmpi.engines.hf.quantized import QuantizedLinear
from esmpi.errors import UserError
from esmpi.noise.format import Noise
from esmpi.weights.factors import factors
from esmpi.weights.model_weights import Perturbation

_Factors = tuple[torch.Tensor, torch.Tensor]
"""B, (M, rows, r), and A, (M, r, columns), of a wave's M members, in the type that the model computes in."""


class Adapters:
    """The matrices of a model, and the noise that a wave's members have on them.

    Parameters
    ----------
    model : torch.nn.Module
    names : mapping of int to str
        Canonical name of each parameter that is one matrix of the checkpoint, by its `id`.
    matrices : collection of str
        Canonical names of all matrices that the model holds, also of those that are parts of a parameter.
    """

    def __init__(self, model: torch.nn.Module, names: Mapping[int, str], matrices: Collection[str]):
        self._layers: list[tuple[torch.nn.Module, str, Callable[..., torch.Tensor]]] = []
        self._shapes: dict[str, tuple[int, int]] = {}
        refused = set()
        for module in model.modules():
            weight = module.numbers if isinstance(module, QuantizedLinear) else getattr(module, "weight", None)
            name = names.get(id(weight))
            if name is None or not isinstance(weight, torch.nn.Parameter):
                continue
            added = _ADDED.get(type(module).forward)
            if added is None and isinstance(module, torch.nn.Embedding) and hasattr(module, "embed_scale"):
                added = _embedded  # its forward is that of an embedding, times this factor
            if added is None:
                refused.add(name)
            else:
                self._layers.append((module, name, added))
                self._device = weight.device
                if isinstance(module, QuantizedLinear):
                    self._shapes[name], self._dtype = module.shape, module.dtype
                else:
                    self._shapes[name], self._dtype = (weight.shape[0], weight.shape[1]), weight.dtype
        self._unreached = refused | (set(matrices) - self._shapes.keys())
        self._factors: dict[str, _Factors] = {}
        self._scale = 0.0
        self._num_rows = self._num_tokens = 0
        self.num_members = 0
        """Members of the wave that is prepared."""

    def unreached(self, noise: Noise) -> list[str]:
        """Return the names of matrices whose layers are of no known kind, so that noise must be written into them."""
        return sorted(name for name in self._unreached if noise.scale(name, (0, 0)))

    def bytes_per_member(self, noise: Noise) -> int:
        """Return what B and A of a member take, while they are made: in float32, and in the type of the weights."""
        elements = noise.rank * sum(sum(shape) for name, shape in self._shapes.items() if noise.scale(name, shape))
        return int(elements * (4 + self._dtype.itemsize))

    def prepare(self, wave: Sequence[Perturbation]) -> None:
        """Make the noise of a wave's members, which all have the same kind of noise."""
        noise = wave[0].noise
        self.num_members = len(wave)
        self._scale = max(abs(member.scale) for member in wave)
        # the common scale is applied to sums, which are float32: a small sigma leaves the range of float16
        signs = np.array([member.scale / self._scale for member in wave], np.float32)
        seeds = np.array([member.seed for member in wave], np.uint64)
        self._factors.clear()
        for name, (rows, columns) in self._shapes.items():
            factor = noise.scale(name, (rows, columns))
            if factor == 0:
                continue
            b, a = factors(self._device, name, seeds, noise.rank, columns, (0, rows), (0, columns))
            b *= torch.from_numpy(signs * np.float32(factor / np.sqrt(noise.rank)))[:, None, None].to(b.device)
            self._factors[name] = b.to(self._dtype), a.to(self._dtype)

    @contextmanager
    def applied(self, num_rows: int) -> Iterator[None]:
        """Let the model compute with the wave's noise, in batches of `num_rows`: as many of each member, in order."""
        self._num_rows = self._num_tokens = num_rows
        hooks = [
            module.register_forward_hook(self._hook(name, added))
            for module, name, added in self._layers
            if name in self._factors or added is _embedded  # which tells how many tokens a batch has
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str, added: Callable[..., torch.Tensor]) -> Any:
        made = self._factors.get(name)

        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            scale = self._scale * float(getattr(module, "embed_scale", 1.0))
            if added is _embedded:
                ids = inputs[0]
                if made is None:
                    self._num_tokens = max(self._num_tokens, ids.numel())
                    return output
                if ids.shape[0] == 1:  # positions, which all rows share
                    ids = ids.expand(self._num_rows, -1)
                    output = output.expand(self._num_rows, -1, -1).contiguous()
                self._num_tokens = ids.numel()
                return added(output, ids, made, scale)
            assert made is not None
            num_tokens = inputs[0].numel() // inputs[0].shape[-1]
            if self.num_members > 1 and num_tokens not in (self._num_tokens, self._num_rows):
                raise UserError(f"engine.wave_size: the model mixes its rows before {name}: set engine.wave_size=1")
            return added(output, inputs[0], made, scale)

        return hook


def _multiplied(output: torch.Tensor, x: torch.Tensor, made: _Factors, scale: float) -> torch.Tensor:
    """Return output + scale * (x A^T) B^T: the weight is (outputs, inputs)."""
    b, a = made
    inner = torch.bmm(x.reshape(len(a), -1, x.shape[-1]), a.transpose(1, 2))
    return _added(output, inner, b.transpose(1, 2), scale)


def _multiplied_transposed(output: torch.Tensor, x: torch.Tensor, made: _Factors, scale: float) -> torch.Tensor:
    """Return output + scale * (x B) A: the weight is (inputs, outputs)."""
    b, a = made
    return _added(output, torch.bmm(x.reshape(len(b), -1, x.shape[-1]), b), a, scale)


def _embedded(output: torch.Tensor, ids: torch.Tensor, made: _Factors, scale: float) -> torch.Tensor:
    """Return output + scale * B[ids] A."""
    b, a = made
    rows = ids.reshape(len(b), -1, 1).expand(-1, -1, b.shape[2])
    return _added(output, torch.gather(b, 1, rows), a, scale)


def _added(output: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    whole = output.view(len(left), -1, output.shape[-1])
    if left.shape[2] == 1:
        return whole.addcmul_(left, right, value=scale).view(output.shape)  # several times faster than the product
    return whole.baddbmm_(left, right, alpha=scale).view(output.shape)


_ADDED: dict[Any, Callable[..., torch.Tensor]] = {
    torch.nn.Linear.forward: _multiplied,
    Conv1D.forward: _multiplied_transposed,
    torch.nn.Embedding.forward: _embedded,
    QuantizedLinear.forward: _multiplied,
}
"""What noise adds to a layer's output, by the layer's function."""
