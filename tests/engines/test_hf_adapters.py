"""A wave: each member's rows get what the model says with that member's weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from esmpi.engines.hf.adapters import Adapters
from esmpi.errors import UserError
from esmpi.noise import low_rank
from esmpi.noise.format import Noise
from esmpi.weights.model_weights import Perturbation

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "qwen, tied": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "llama, untied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "gpt2, transposed": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4)
    ),
    "gemma, scaled embedding": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8)),
}
SIGMA = 0.05


def canonical(model: torch.nn.Module) -> tuple[dict[int, str], set[str]]:
    """The names of a model's matrices, by the parameters' `id`, and alone."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    return names, set(names.values())


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_each_member_has_its_own_weights(kind: str, rank: int) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval().requires_grad_(False)
    adapters = Adapters(model, *canonical(model))
    assert adapters.unreached(Noise(1)) == []
    wave = [
        Perturbation(7, SIGMA, Noise(rank)),
        Perturbation(7, -SIGMA, Noise(rank)),
        Perturbation(8, SIGMA / 2, Noise(rank)),
    ]
    ids = torch.randint(1, 50, (2, 9))
    before = logits(model, ids)
    adapters.prepare(wave)
    with adapters.applied(6):
        together = logits(model, ids.repeat(3, 1)).view(3, 2, 9, -1)
    assert torch.equal(logits(model, ids), before), "nothing is left of the wave"
    theta = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for member, found in zip(wave, together, strict=True):
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                live = np.empty(tuple(parameter.shape), np.float32)
                shape = (0, parameter.shape[1], name, parameter.shape[1])
                low_rank.perturb(live, theta[name].numpy(), *shape, rank, member.seed, member.scale)
                parameter.copy_(torch.from_numpy(live))
        alone = logits(model, ids)
        assert (alone - before).abs().max() > 0.01
        torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)
        for name, parameter in model.named_parameters():
            parameter.copy_(theta[name])


def test_small_noise_survives_in_half_precision() -> None:
    """Written into bfloat16 weights, noise of this size would be lost in the rounding of most of them."""
    torch.manual_seed(0)
    model = MODELS["llama, untied"]().eval().requires_grad_(False)
    ids = torch.randint(1, 50, (2, 9))
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = model.to(dtype)
        adapters = Adapters(model, *canonical(model))
        adapters.prepare([Perturbation(3, 1e-4, Noise(1))])
        b, _ = adapters._factors["model.layers.0.mlp.up_proj.weight"]
        assert (b.abs() > 0.01).float().mean() > 0.9, "the scale is not in B"
        with adapters.applied(2):
            found[dtype] = logits(model, ids).float()
    torch.testing.assert_close(found[torch.float32], found[torch.float16], rtol=0.01, atol=0.01)


def test_a_layer_of_another_kind_is_named() -> None:
    class Odd(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.odd = torch.nn.Linear(3, 2), Odd(2, 4)
            self.free = torch.nn.Parameter(torch.zeros(2, 2))

    model = Model()
    assert Adapters(model, *canonical(model)).unreached(Noise(1)) == ["free", "odd.weight"]


def test_layers_that_get_some_rows_only_are_refused() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.expert = torch.nn.Embedding(9, 3), torch.nn.Linear(3, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.embed(ids).view(-1, 3)
            hidden[:5] = self.expert(hidden[:5])
            return hidden

    model = Model().requires_grad_(False)
    adapters = Adapters(model, *canonical(model))
    ids = torch.arange(8).view(4, 2)
    adapters.prepare([Perturbation(1, 0.1, Noise(1)), Perturbation(2, 0.1, Noise(1))])
    with (
        adapters.applied(6),
        pytest.raises(UserError, match=r"engine\.wave_size: the model mixes its rows before expert\.weight"),
    ):
        model(ids.repeat(2, 1)[:6])
    adapters.prepare([Perturbation(1, 0.1, Noise(1))])
    with adapters.applied(4):
        model(ids)


def test_a_mixture_of_experts_is_not_reached() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    unreached = Adapters(model, *canonical(model)).unreached(Noise(1))
    assert unreached
    assert all(".mlp." in name for name in unreached), unreached
