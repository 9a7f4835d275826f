"""Where a model of transformers keeps its checkpoint's tensors.

Most are parameters of the same name and shape. Where a model renames tensors when they are loaded, or fuses them as it
does with experts, its own loader is asked what it makes of them.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from esmpi.engines.hf.quantized import QuantizedLinear, layers_of
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.weights.probe import derive_views
from esmpi.weights.views import View, rows_are_stretches


@dataclass(frozen=True)
class Found:
    """The views of a model's parameters, and their names."""

    views: list[View]
    names: dict[int, str]
    """Canonical name of each parameter that is one tensor of the checkpoint, by its `id`."""


def find_views(model: Any, base: BaseModel) -> Found:
    """Return where a model keeps what of its checkpoint; of a model with images or sound, the part that makes text.

    Raises
    ------
    UserError
        If a parameter is not filled from the checkpoint, or its values are changed on the way.
    """
    layers = layers_of(model)
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in (*_parameters(model, remove_duplicate=False), *_stored_buffers(model, base)):
        # a checkpoint of the model without its head has names without the prefix
        names[id(parameter)] += [name, name.removeprefix(f"{model.base_model_prefix}.")]
    text = {id(tensor) for module in _text_modules(model) for tensor in (*module.parameters(), *module.buffers())}
    parameters = {
        name: parameter
        for name, parameter in (*_parameters(model), *_stored_buffers(model, base))
        if id(parameter) in text
    }
    stored = {
        name: next((other for other in names[id(parameter)] if _holds(base, other, _shape(parameter, layers))), None)
        for name, parameter in parameters.items()
    }
    if None in stored.values() and layers:
        raise UserError(
            "model.quantization: transformers renames or rearranges tensors of this model when it loads them, so its "
            "layers cannot be quantized: set model.quantization=none"
        )
    if None in stored.values():
        views = _probed(model, parameters, base)
    else:
        views = [
            View.whole(
                str(stored[name]),
                parameter,
                layers[id(parameter)].scales if id(parameter) in layers else None,
                _shape(parameter, layers),
            )
            for name, parameter in parameters.items()
        ]
    places = {id(parameter): (parameter.data_ptr(), _shape(parameter, layers)) for parameter in parameters.values()}
    whole = {
        (view.live.data_ptr(), view.shape): view.name
        for view in views
        if view.live is not None and rows_are_stretches(view.live)
    }
    return Found(views, {key: whole[place] for key, place in places.items() if place in whole})


def _parameters(model: Any, remove_duplicate: bool = True) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters by their names; the numbers of a quantized layer by that of the weight they stand for."""
    numbers = layers_of(model).keys()
    return [
        (name.removesuffix("numbers") + "weight" if id(parameter) in numbers else name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=remove_duplicate)
    ]


def _stored_buffers(model: Any, base: BaseModel) -> list[tuple[str, torch.Tensor]]:
    """Return the buffers that a checkpoint has under their names, such as those that balance experts."""
    kept = model.state_dict().keys()
    return [
        (name, buffer)
        for name, buffer in model.named_buffers()
        if name in kept and _holds(base, name, tuple(buffer.shape))
    ]


def _holds(base: BaseModel, name: str, shape: tuple[int, ...]) -> bool:
    """Return whether a checkpoint has a tensor of this name and shape."""
    return name in base.tensors and base.tensors[name].shape == shape


def _shape(parameter: torch.Tensor, layers: Mapping[int, QuantizedLinear]) -> tuple[int, ...]:
    """Return the shape of a parameter; of a quantized layer's numbers that of the weight that they stand for."""
    layer = layers.get(id(parameter))
    return tuple(parameter.shape) if layer is None else layer.shape


def _text_modules(model: Any) -> list[torch.nn.Module]:
    """Return the parts of a model that make text of text: all of it, unless its config has a section for them."""
    if model.config.get_text_config() is model.config:
        return [model]
    parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    return [part for part in parts if part is not None]


def _probed(model: Any, parameters: Mapping[str, torch.Tensor], base: BaseModel) -> list[View]:
    """Return the views that the model's own loader tells of made-up tensors; the parameters are left as they were."""

    def load(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        config = copy.deepcopy(model.config)
        made, told = type(model).from_pretrained(
            None, config=config, state_dict=dict(tensors), dtype=model.dtype, output_loading_info=True
        )
        filled = {**dict(made.named_parameters()), **dict(made.named_buffers())}
        for name in parameters.keys() - told["missing_keys"]:
            parameters[name].copy_(filled[name])

    kept = {name: parameter.to("cpu", copy=True) for name, parameter in parameters.items()}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a report on each of the models that are made
    try:
        with torch.no_grad():
            return derive_views(parameters, load, list(base.tensors.values()))
    finally:
        logging.set_verbosity(verbosity)
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
