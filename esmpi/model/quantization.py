"""Which tensors of a model are quantized with `model.quantization`, and what the live weights then take."""

import math
from collections.abc import Sequence, Set

from esmpi.config.sections import INT4_NEEDS_LOW_RANK, ModelConfig
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, kinds_of, matrix_shape
from esmpi.noise.format import Noise, is_matrix

_KEPT = ("embed", "lm_head", "wte", "wpe")
"""Parts of the names of embeddings and heads."""
_SCALE_BYTES = 4


def quantized_names(model: ModelConfig, base: BaseModel) -> set[str]:
    """Return the canonical names of the tensors that are quantized: all matrices but embeddings and the head."""
    if model.quantization == "none":
        return set()
    return {
        name
        for name in base.canonical_names()
        if is_matrix(base.tensors[name].shape) and not any(part in name for part in _KEPT)
    }


def require_quantized(quantized: Set[str], wanted: Set[str]) -> None:
    """Raise UserError if an engine has not quantized just the tensors that were to be."""
    if others := sorted(quantized ^ wanted):
        raise UserError(
            f"model.quantization: only the weights of linear layers can be quantized, and not the head. The engine "
            f"uses these otherwise: {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}: set "
            f"model.quantization=none"
        )


def live_bytes(model: ModelConfig, base: BaseModel) -> int:
    """Return how many bytes the live weights take: scales included, and what is tied counted once."""
    if model.quantization == "none":
        return model.bytes_per_weight * base.num_weights
    from esmpi.noise.quantization import TYPES, shapes  # loads torch

    quantized = [matrix_shape(base.tensors[name].shape) for name in quantized_names(model, base)]
    elements = sum(rows * columns for rows, columns in quantized)
    taken = 0
    for rows, columns in quantized:
        numbers, scales = shapes(TYPES[model.quantization], rows, columns)
        taken += math.prod(numbers) + _SCALE_BYTES * math.prod(scales)
    return taken + model.bytes_per_weight * (base.num_weights - elements)


def require_noise_in_outputs(noise: Noise, unreached: Sequence[str]) -> None:
    """Raise UserError if an engine with int4 weights cannot add noise to the outputs of all layers.

    Parameters
    ----------
    noise : Noise
    unreached : sequence of str
        The matrices with noise to whose layers' outputs it cannot be added.
    """
    if noise.rank == 0:
        raise UserError(f"model.quantization: {INT4_NEEDS_LOW_RANK}")
    if unreached:
        raise UserError(
            f"model.quantization: with int4, noise is added to the outputs of layers, which this engine cannot do for "
            f"{', '.join(kinds_of(unreached))}: leave them out with es.exclude, or set model.quantization=int8"
        )
