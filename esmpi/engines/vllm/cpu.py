"""What esmpi changes in vLLM's CPU build. Runs inside a worker, before it loads a model.

That build packs weights into a form of its own and computes with the packed ones: edits of the weights would change
nothing, without any error. Here it computes with the weights themselves, as vLLM does on a GPU.
"""

from contextlib import suppress
from typing import Any

import torch


def compute_with_the_weights() -> None:
    """Replace the functions of linear layers and of experts; vLLM looks them up at each use."""
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _use_weight
    # a version that keeps its experts elsewhere packs them, which the check at the start finds
    with suppress(ImportError):
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        CPUUnquantizedExperts.process_weights_after_loading = lambda self, layer: None
        CPUUnquantizedExperts.apply = _apply_experts


def _use_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]  # vLLM sets any callable


def _apply_experts(
    self: Any,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: Any,
    *_: Any,
    apply_router_weight_on_input: bool = False,
    **__: Any,
) -> None:
    """Write what a mixture of experts makes of its inputs.

    `output` and `hidden_states` are (tokens, hidden), `w1` (experts, 2 * intermediate, hidden), `w2` (experts, hidden,
    intermediate), `topk_weights` and `topk_ids` (tokens, experts of a token).
    """
    output.zero_()
    for expert in topk_ids.unique().tolist():
        tokens, place = torch.where(topk_ids == expert)
        inner = torch.nn.functional.linear(hidden_states[tokens], w1[expert], _of(self.w1_bias, expert))
        active = inner.new_empty(len(tokens), w2.shape[2])
        self.activation(activation, active, inner)
        made = torch.nn.functional.linear(active, w2[expert], _of(self.w2_bias, expert))
        if not apply_router_weight_on_input:  # otherwise the inputs are multiplied already
            made = made * topk_weights[tokens, place, None]
        output.index_add_(0, tokens, made.to(output.dtype))


def _of(bias: torch.Tensor | None, expert: int) -> torch.Tensor | None:
    return None if bias is None else bias[expert]
