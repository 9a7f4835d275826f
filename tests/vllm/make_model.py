"""Make a small model with random weights of an architecture: python make_model.py NAME FOLDER."""

import shutil
import sys
from pathlib import Path

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TOKENIZER = Path(__file__).parents[2] / "esmpi" / "assets" / "tiny_countdown"
# a head size of 32 is the least that vLLM's CPU attention has
SIZES = {
    **{"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 256},
    **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
}
PHI3 = {key: value for key, value in SIZES.items() if key != "head_dim"} | {
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": None}
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=64, query_pre_attn_scalar=32)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**PHI3)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=2, n_positions=256, eos_token_id=1, bos_token_id=2)
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**PHI3, head_dim=32, num_local_experts=4, num_experts_per_tok=2)
    ),
}


def main() -> None:
    name, folder = sys.argv[1:]
    torch.manual_seed(0)
    model = MODELS[name]().to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)


if __name__ == "__main__":
    main()
