"""Low-rank noise of several members in one batch, in vLLM's own slots for LoRA adapters. Runs inside a worker.

Each member has a slot. Its B and A are written into the slots of all layers in place: nothing is loaded, and vLLM
takes the slot of each request by its number.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from vllm.lora.layers import BaseLayerWithLoRA, LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from esmpi.noise.format import Noise
from esmpi.weights.factors import factors
from esmpi.weights.views import View

_ELEMENTS_AT_ONCE = 1 << 22
"""Elements of B and A that are made at a time: 16 MiB."""


class Adapters:
    """The slots of a worker's layers.

    Parameters
    ----------
    manager : LoRAModelManager
        vLLM's.
    model : torch.nn.Module
    views : sequence of View
        All that this worker holds.
    """

    def __init__(self, manager: Any, model: torch.nn.Module, views: Sequence[View]):
        self._targets: list[_Target] = []
        for name, module in manager.modules.items():
            self._targets += _targets(module, model.get_submodule(name), views)
        reached = {target.view.name for target in self._targets} - _partly_reached(manager, model, views)
        self.unreached = sorted({view.name for view in views if len(view.shape) == 2} - reached)
        """Names of matrices that have no slots: vLLM has no adapters for their layers."""
        for number in range(manager.lora_slots):
            # an adapter for no layer at all, which takes slot `number` and keeps it
            nothing = LoRALayerWeights("esmpi", 1, 1, torch.zeros(1, 1), torch.zeros(1, 1))
            manager.add_adapter(LoRAModel(number + 1, 1, {"esmpi": nothing}))
            manager.activate_adapter(number + 1)

    def prepare(self, seeds: np.ndarray, scales: np.ndarray, noise: Noise) -> None:
        """Write the noise of a wave's members, (M,) uint64 and (M,) float32, into the first M slots.

        The noise is of the same kind each time: slots of tensors without any stay empty.
        """
        for target in self._targets:
            factor = noise.scale(target.view.name, target.view.shape)
            if factor:
                target.write(seeds, scales * np.float32(factor / np.sqrt(noise.rank)), noise.rank)


class _Target:
    """Slots that take the noise of a view.

    Parameters
    ----------
    view : View
    b : (slots, rows, rank) Tensor
    a : (slots, rank, columns) Tensor
        What multiplies inputs first, then what multiplies that, as vLLM holds them, seen as B and A of the view.
    """

    def __init__(self, view: View, b: torch.Tensor, a: torch.Tensor):
        self.view = view
        self._b, self._a = b, a

    def write(self, seeds: np.ndarray, scales: np.ndarray, rank: int) -> None:
        """Write the noise of members into the first slots, a few at a time: a GPU has little room beside the engine."""
        elements = rank * (self._b.shape[1] + self._a.shape[2])
        few = max(1, _ELEMENTS_AT_ONCE // elements)
        for begin in range(0, len(seeds), few):
            self._write(begin, seeds[begin : begin + few], scales[begin : begin + few], rank)

    def _write(self, begin: int, seeds: np.ndarray, scales: np.ndarray, rank: int) -> None:
        view = self.view
        b, a = factors(self._b.device, view.name, seeds, rank, view.shape[1], view.rows, view.cols)
        # half of the scale on either side, so that no factor leaves the range of float16
        roots = torch.from_numpy(np.sqrt(np.abs(scales)))[:, None, None].to(b.device)
        signs = torch.from_numpy(np.sign(scales))[:, None, None].to(b.device)
        slots = slice(begin, begin + len(seeds))
        self._b[slots, :, :rank] = b * (roots * signs)
        self._a[slots, :rank] = a * roots


def _targets(module: Any, layer: Any, views: Sequence[View]) -> Iterator[_Target]:
    """Yield the slots of a layer, each with the view that its noise is of.

    `module` has the slots. It stands in the place of `layer`, except for a head, whose slots the module that makes
    logits has.
    """
    if isinstance(module, LogitsProcessorWithLoRA):
        head = layer
        for view, _ in _inside(getattr(head, "base_layer", head).weight, views):
            # the logits of all workers are gathered before the noise is added, so each worker has that of all rows
            whole = View(view.name, view.shape, (0, view.shape[0]), view.cols, None)
            yield _Target(whole, module.lora_b_stacked[:, 0, : view.shape[0]], module.lora_a_stacked[:, 0])
            return
    elif isinstance(module, VocabParallelEmbeddingWithLoRA):
        for view, _ in _inside(module.base_layer.weight, views):
            whole = View(view.name, view.shape, (0, view.shape[0]), view.cols, None)
            yield _Target(whole, module.lora_a_stacked, module.lora_b_stacked[:, 0].transpose(1, 2))
            return
    elif isinstance(getattr(module, "lora_a_stacked", None), tuple):
        names: dict[int, str] = {}
        for view, row in _inside(module.base_layer.weight, views):
            begin = 0
            for part, length in enumerate(module.output_slices):
                # a matrix that the checkpoint stores fused is in several slots, with the same A
                first, last = max(begin, row), min(begin + length, row + view.rows[1] - view.rows[0])
                if first < last:
                    if names.setdefault(part, view.name) != view.name:
                        return  # two matrices of the checkpoint would share a slot
                    held = (view.rows[0] + first - row, view.rows[0] + last - row)
                    rows = slice(first - begin, last - begin)
                    shown = View(view.name, view.shape, held, view.cols, None)
                    yield _Target(shown, module.lora_b_stacked[part][:, 0, rows], module.lora_a_stacked[part][:, 0])
                begin += length


def _partly_reached(manager: Any, model: torch.nn.Module, views: Sequence[View]) -> set[str]:
    """Return the names of embeddings and heads without slots of their own, though they share a weight that has some."""
    adapted = {id(getattr(module, "base_layer", None)) for module in manager.modules.values()}
    adapted |= {
        id(getattr(layer, "base_layer", layer))
        for name, module in manager.modules.items()
        if isinstance(module, LogitsProcessorWithLoRA)
        for layer in [model.get_submodule(name)]
    }
    layers = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    heads = [module for module in manager.modules.values() if isinstance(module, LogitsProcessorWithLoRA)]
    if not heads and not any(isinstance(layer, ParallelLMHead) for layer in layers):
        adapted.clear()  # an embedding is the head, too, and has no slots as such
    return {view.name for layer in layers if id(layer) not in adapted for view, _ in _inside(layer.weight, views)}


def _inside(weight: torch.Tensor, views: Sequence[View]) -> Iterator[tuple[View, int]]:
    """Yield the views that are parts of a parameter, with the row at which each begins."""
    row_bytes = weight.stride(0) * weight.element_size()
    for view in views:
        if view.live is not None and view.live.stride(0) == weight.stride(0):
            row, rest = divmod(view.live.data_ptr() - weight.data_ptr(), row_bytes)
            if rest == 0 and 0 <= row < len(weight):
                yield view, row


@contextmanager
def without_adapters(model: torch.nn.Module) -> Iterator[None]:
    """Put the layers themselves in place of those with adapters, for a while: vLLM's loaders know no others."""
    replaced = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if isinstance(child, BaseLayerWithLoRA) and not isinstance(parent, BaseLayerWithLoRA)
    ]
    for parent, name, child in replaced:
        setattr(parent, name, child.base_layer)
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
