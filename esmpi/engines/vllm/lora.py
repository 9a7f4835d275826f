"""What esmpi changes in vLLM's adapters (LoRA). Runs inside a worker, before it loads a model."""

from typing import Any

import torch
from vllm.lora.layers import VocabParallelEmbeddingWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.platforms import current_platform


def extend() -> None:
    """Give adapters to the embedding and the head of all models, and let a CPU compute with them by `CpuWrapper`."""
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    original = LoRAModelRunnerMixin.load_lora_model

    def load_lora_model(self: Any, model: Any, *arguments: Any) -> Any:
        model.embedding_modules = {
            name.rpartition(".")[2]: ""
            for name, module in model.named_modules(remove_duplicate=False)
            if isinstance(module, VocabParallelEmbedding)
        }
        return original(self, model, *arguments)

    LoRAModelRunnerMixin.load_lora_model = load_lora_model
    embed = VocabParallelEmbeddingWithLoRA.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        # models of vLLM's transformers backend have a batch of one row here, and vLLM would take all of its tokens for
        # those of the first one's slot
        return embed(self, x.reshape(-1)).view(*x.shape, -1)

    VocabParallelEmbeddingWithLoRA.forward = forward
    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(lambda _: f"{__name__}.CpuWrapper")


class CpuWrapper(PunicaWrapperCPU):  # type: ignore[misc]  # vLLM has no types here
    """How a CPU multiplies each token with the factors of its own slot.

    vLLM's own functions copy a matrix for each token. Here all slots are multiplied with all tokens, which is a small
    part of the layer itself, and what is of other slots is set to 0. Tokens without a slot get nothing.
    """

    def _apply_shrink(self, y: torch.Tensor, x: torch.Tensor, w_t_all: torch.Tensor, scale: float) -> None:
        _shrink(y.view(-1, y.shape[-1]), x, w_t_all, self.token_lora_indices, scale)

    def _apply_expand(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        w_t_all: torch.Tensor,
        y_offset: int,
        y_slice_size: int,
        add_inputs: bool = True,
    ) -> None:
        _expand(y[:, y_offset : y_offset + y_slice_size], x, w_t_all, self.token_lora_indices, add_inputs)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **_: Any
    ) -> None:
        """Add x times each token's own factor to y."""
        _expand(y, x, lora_b_stacked, self.token_lora_indices, add_inputs)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        """Add x times each row's own factors to the logits y."""
        if self.no_lora:
            return  # also where there are more rows than requests: log probabilities of prompts
        inner = torch.zeros((len(x), lora_b_stacked.shape[-1]), dtype=torch.float32, device=x.device)
        _shrink(inner, x, lora_a_stacked, self.sampler_indices, scale)
        _expand(y[:, : lora_b_stacked.shape[2]], inner, lora_b_stacked, self.sampler_indices, True)


def _shrink(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, slots: torch.Tensor, scale: float) -> None:
    """Write y (tokens, rank) = scale * x A^T, with A, (slots, 1, rank, inputs), of each token's slot."""
    number, rank = a.shape[0], a.shape[-2]
    every = (x @ a.view(number * rank, -1).to(x.dtype).T).view(-1, number, rank)
    own = slots.clamp(min=0)[:, None, None].expand(-1, 1, rank)
    y.copy_(every.gather(1, own)[:, 0].mul_(scale))


def _expand(y: torch.Tensor, x: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, add: bool) -> None:
    """Add x B^T to y (tokens, outputs), with B, (slots, 1, outputs, rank), of each token's slot."""
    number, outputs, rank = b.shape[0], b.shape[-2], b.shape[-1]
    spread = torch.zeros((len(x), number, rank), dtype=y.dtype, device=y.device)
    own = slots.clamp(min=0)[:, None, None].expand(-1, 1, rank)
    there = (slots >= 0)[:, None]
    spread.scatter_(1, own, (x.to(y.dtype) * there)[:, None])
    added = spread.view(-1, number * rank) @ b.view(number, outputs, rank).transpose(1, 2).reshape(
        number * rank, outputs
    ).to(y.dtype)
    if add:
        y.add_(added)
    else:
        y.copy_(added)
