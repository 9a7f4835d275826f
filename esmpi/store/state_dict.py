"""Take over a checkpoint of the public ES code: a .pth of the weights, with the names that vLLM gives them."""

from pathlib import Path

import torch

from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, matrix_shape

_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What vLLM keeps as one tensor, one part below the other."""
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 8


def read_state_dict(path: Path, base: BaseModel) -> dict[str, torch.Tensor]:
    """Return the weights of a .pth file, float32, under the base model's names and in its shapes.

    Raises
    ------
    UserError
        If the file is no state dict, holds anything but tensors, or does not fit the base; it names what does not.
    """
    try:
        # weights_only: unpickling anything else could run code from the file
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever unpickling raises
        raise UserError(f"{path} is no torch file of tensors alone, so it is not loaded: {error}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise UserError(f"{path} is not a state dict: it must map names to tensors")
    if odd := [str(name) for name, value in stored.items() if not _is_plain(value)]:
        raise UserError(
            f"{path} is not a state dict of weights: {odd[0]} is sparse, quantized, complex or without values"
        )
    values: dict[str, torch.Tensor] = {}
    wrong: list[str] = []
    for name, tensor in stored.items():
        plain = str(name)
        for wrapper in _WRAPPERS:
            plain = plain.removeprefix(wrapper)
        for part, value in _split(plain, tensor, base).items():
            if part not in base.tensors:
                if part != "lm_head.weight":  # tied ones are often stored twice
                    wrong.append(f"{part}: the base model has no such tensor")
            elif tuple(value.shape) != base.tensors[part].shape:
                wrong.append(f"{part}: shape {tuple(value.shape)}, the base model has {base.tensors[part].shape}")
            else:
                values[part] = value.to(torch.float32)
    tied = {"lm_head.weight"} if base.config.get("tie_word_embeddings") else set()
    wrong += [f"{name}: missing in the file" for name in sorted(base.tensors.keys() - values.keys() - tied)]
    if wrong:
        rest = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(f"{path} does not fit {base.folder}:\n  " + "\n  ".join(wrong[:_SHOWN]) + rest)
    return values


def _is_plain(tensor: torch.Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized
    return is_dense and not tensor.is_complex() and tensor.device.type == "cpu"


def _split(name: str, tensor: torch.Tensor, base: BaseModel) -> dict[str, torch.Tensor]:
    """Return the parts of a fused tensor under their own names, and without rows that only pad the vocabulary."""
    if name in base.tensors:
        num_rows = matrix_shape(base.tensors[name].shape)[0]
        padded = name.endswith(("embed_tokens.weight", "lm_head.weight")) and tensor.ndim > 0 and len(tensor) > num_rows
        return {name: tensor[:num_rows] if padded else tensor}
    for fused, parts in _FUSED.items():
        names = [name.replace(fused, part) for part in parts]
        if f".{fused}." in name and all(part in base.tensors for part in names):
            sizes = [base.tensors[part].shape[0] for part in names]
            if tensor.ndim > 0 and sum(sizes) == len(tensor):
                return dict(zip(names, tensor.split(sizes), strict=True))
    return {name: tensor}
