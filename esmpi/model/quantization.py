"""Which tensors of a model are quantized with `model.quantization`, and what the live weights then take."""

from collections.abc import Set

from esmpi.config.sections import ModelConfig
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, matrix_shape
from esmpi.noise.format import is_matrix

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
    quantized = quantized_names(model, base)
    elements = sum(base.tensors[name].num_elements for name in quantized)
    scales = _SCALE_BYTES * sum(matrix_shape(base.tensors[name].shape)[0] for name in quantized)
    return elements + scales + model.bytes_per_weight * (base.num_weights - elements)
