"""Quantized live weights in vLLM: a quantization method of esmpi's own, whose layout ES can write.

vLLM's own methods rearrange or pack their weights after loading, differently on each kind of GPU. This one keeps rows
of numbers and their scales, on a CPU as on a GPU, and dequantizes them at each use.
"""

from functools import partial
from typing import Any

import torch
from vllm.model_executor.layers import linear
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from esmpi.noise.quantization import TYPES, dequantize, shapes

SCALES = "esmpi_scales"
"""Name of a layer's buffer of scales, (rows,) or (rows, groups) float32."""


class EsmpiLinearMethod(linear.UnquantizedLinearMethod):  # type: ignore[misc]  # vLLM has no types here
    """A linear layer whose weight is numbers of a byte each, or of half a byte.

    Parameters
    ----------
    kind : str
        "int8", "fp8" or "int4".
    """

    def __init__(self, kind: str):
        super().__init__()
        self._type = TYPES[kind]

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        *sizes: Any,
        params_dtype: torch.dtype,
        **more: Any,
    ) -> None:
        (_, held), scales = shapes(self._type, sum(output_partition_sizes), input_size_per_partition)
        more["weight_loader"] = partial(_load_packed, more["weight_loader"], held)
        super().create_weights(layer, held, output_partition_sizes, *sizes, params_dtype=self._type, **more)
        # vLLM's default is the type of the model
        layer.register_buffer(SCALES, torch.ones(scales, dtype=torch.float32), persistent=False)

    def process_weights_after_loading(self, layer: Any) -> None:
        """Leave the weight as it is."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        weight = dequantize(layer.weight, getattr(layer, SCALES), x.dtype, x.shape[-1])
        return torch.nn.functional.linear(x, weight, bias)


def _load_packed(loader: Any, held: int, parameter: Any, loaded: torch.Tensor, *arguments: Any, **more: Any) -> None:
    """Load no more columns than a packed parameter has: their values only tell where the loader puts which row."""
    loader(parameter, loaded[..., :held], *arguments, **more)


# Which loader a layer uses depends on the name of its method's class.
linear.WEIGHT_LOADER_V2_SUPPORTED.append(EsmpiLinearMethod.__name__)


class _Quantization(QuantizationConfig):  # type: ignore[misc]  # as above
    kind: str

    @classmethod
    def get_name(cls) -> Any:
        return method_name(cls.kind)

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16, torch.float16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 70

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "_Quantization":
        return cls()

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> EsmpiLinearMethod | None:
        return EsmpiLinearMethod(self.kind) if isinstance(layer, linear.LinearBase) else None


@register_quantization_config("esmpi_int8")
class _Int8(_Quantization):
    kind = "int8"


@register_quantization_config("esmpi_fp8")
class _Fp8(_Quantization):
    kind = "fp8"


@register_quantization_config("esmpi_int4")
class _Int4(_Quantization):
    kind = "int4"


def method_name(kind: str) -> str:
    """Return vLLM's name of the method, for its argument `quantization`."""
    return f"esmpi_{kind}"


def scales_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the scales of a model's quantized layers, by the names of their weights."""
    end = f".{SCALES}"
    return {
        name.removesuffix(SCALES) + "weight": scales for name, scales in model.named_buffers() if name.endswith(end)
    }
