"""Linear layers with quantized weights."""

from collections.abc import Collection, Mapping

import torch

from esmpi.model.quantization import require_quantized
from esmpi.noise.quantization import TYPES, dequantize, shapes


class QuantizedLinear(torch.nn.Module):
    """What `torch.nn.Linear` computes, with a weight that is dequantized at each use.

    Parameters
    ----------
    linear : torch.nn.Linear
        Which layer this stands for. The numbers are still to be written.
    kind : str
        "int8", "fp8" or "int4".
    """

    def __init__(self, linear: torch.nn.Linear, kind: str):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        """The type that the layer computes in."""
        self.shape = (linear.out_features, linear.in_features)
        """Shape of the weight that the numbers stand for."""
        numbers, scales = shapes(TYPES[kind], *self.shape)
        self.numbers = torch.nn.Parameter(torch.zeros(numbers, dtype=TYPES[kind]), requires_grad=False)
        self.scales: torch.Tensor
        self.register_buffer("scales", torch.zeros(scales, dtype=torch.float32))
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """The weights that the numbers stand for, (outputs, inputs), in the type that the model computes in."""
        return dequantize(self.numbers, self.scales, self.dtype, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


def quantize_layers(model: torch.nn.Module, names: Mapping[int, str], wanted: Collection[str], kind: str) -> None:
    """Put quantized layers, whose numbers are still to be written, in place of linear ones.

    Parameters
    ----------
    model : torch.nn.Module
    names : mapping of int to str
        Canonical names of its parameters, by their `id`.
    wanted : collection of str
        Canonical names of the weights to quantize.
    kind : str
        "int8", "fp8" or "int4".

    Raises
    ------
    UserError
        If the model uses one of the weights in any other way than a linear layer does.
    """
    layers = {
        module: QuantizedLinear(module, kind)
        for module in model.modules()
        if type(module) is torch.nn.Linear and names.get(id(module.weight)) in wanted
    }
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module in layers:
                setattr(parent, child, layers[module])
    left = {names[id(parameter)] for parameter in model.parameters() if id(parameter) in names}
    require_quantized({names[id(layer.weight)] for layer in layers} - left, set(wanted))


def layers_of(model: torch.nn.Module) -> dict[int, QuantizedLinear]:
    """Return a model's quantized layers, by the `id` of their numbers."""
    return {id(module.numbers): module for module in model.modules() if isinstance(module, QuantizedLinear)}
