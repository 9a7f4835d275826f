"""Small models with random weights, of architectures that people may bring: python tools/architectures.py NAME FOLDER.

Each is of a real config class of transformers, with the tokenizer of the tiny model. The sizes are such that vLLM's CPU
build serves them where it has the architecture at all: heads of 32 or more, and experts in multiples of 32.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

TOKENIZER = Path(__file__).parents[1] / "esmpi" / "assets" / "tiny_countdown"

_TOKENS = {"vocab_size": 300, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
_SIZES = {
    **_TOKENS,
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 256},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32},
}
_PLAIN = {key: value for key, value in _SIZES.items() if key != "head_dim"}
_WIDE = _SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2}
_GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 32}
_GPT2 = {**_TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED = _EXPERTS | {"shared_expert_intermediate_size": 32}
# the latent sizes are those of the real models: vLLM's CPU attention has no others
_LATENT = _SIZES | {
    **{"num_key_value_heads": 2, "q_lora_rank": 48, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
    **{"qk_nope_head_dim": 32, "v_head_dim": 32},
}
_DEEPSEEK = {
    **{key: value for key, value in _LATENT.items() if key != "head_dim"},
    **{"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
_MAMBA = {**_TOKENS, "hidden_size": 64, "num_hidden_layers": 2}
_NEXT = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 32, "linear_value_head_dim": 32},
}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
_PATCHES = _VISION | {"image_size": 28, "patch_size": 14}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _WIDE | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("qwen2", _SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", _WIDE | {"tie_word_embeddings": True}),
    "mistral": ("mistral", _WIDE | {"sliding_window": None}),
    "gemma": ("gemma", _SIZES),
    "gemma2": ("gemma2", _SIZES | _GEMMA),
    "gemma3": ("gemma3_text", _WIDE | _GEMMA),
    "phi": ("phi", _SIZES | {"num_key_value_heads": 2}),
    "phi3": ("phi3", _PLAIN | {"sliding_window": None}),
    "olmo": ("olmo", _SIZES),
    "olmo2": ("olmo2", _SIZES),
    "olmo3": ("olmo3", _SIZES | {"sliding_window": 64}),
    "granite": ("granite", _SIZES),
    "cohere": ("cohere", _SIZES),
    "cohere2": ("cohere2", _SIZES | {"sliding_window": 64}),
    "stablelm": ("stablelm", _SIZES),
    "starcoder2": ("starcoder2", _SIZES),
    "smollm3": ("smollm3", _SIZES),
    "glm4": ("glm4", _SIZES),
    "nemotron": ("nemotron", _SIZES),
    "exaone4": ("exaone4", _SIZES | {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "ernie4_5": ("ernie4_5", _SIZES),
    "gpt2": ("gpt2", _GPT2),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 16}),
    "gpt_neo": ("gpt_neo", _MAMBA | {"num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}),
    "gpt_neox": ("gpt_neox", _SIZES),
    "opt": ("opt", _SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("bloom", {**_TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 2}),
    "falcon": ("falcon", _PLAIN | {"new_decoder_architecture": False}),
    "mpt": ("mpt", {**_TOKENS, "d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 256}),
    "mixtral": ("mixtral", _SIZES | _EXPERTS),
    "qwen2_moe": ("qwen2_moe", _SIZES | _SHARED),
    "qwen3_moe": ("qwen3_moe", _SIZES | _EXPERTS),
    "olmoe": ("olmoe", _SIZES | _EXPERTS | {"intermediate_size": 32}),
    "granitemoe": ("granitemoe", _SIZES | _EXPERTS),
    "phimoe": ("phimoe", _SIZES | _EXPERTS),
    "gpt_oss": ("gpt_oss", _SIZES | _EXPERTS | {"sliding_window": 64}),
    "deepseek_v2": ("deepseek_v2", _DEEPSEEK),
    "deepseek_v3": ("deepseek_v3", _DEEPSEEK | {"topk_method": "noaux_tc"}),
    "minicpm3": ("minicpm3", _LATENT),
    "mamba": ("mamba", _MAMBA | {"state_size": 8}),
    "mamba2": ("mamba2", _MAMBA | {"state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1}),
    "jamba": (
        "jamba",
        _SIZES | {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "falcon_h1": (
        "falcon_h1",
        _SIZES | {"mamba_d_ssm": 64, "mamba_n_heads": 2, "mamba_d_head": 32, "mamba_d_state": 16},
    ),
    "lfm2": ("lfm2", _SIZES | {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("qwen3_next", _SIZES | _SHARED | _NEXT),
    "gemma3 with images": (
        "gemma3",
        {"image_token_index": 299, "boi_token_index": 298, "eoi_token_index": 297, "mm_tokens_per_image": 4}
        | {"text_config": _WIDE | _GEMMA, "vision_config": _PATCHES},
    ),
    "qwen2.5 with images": (
        "qwen2_5_vl",
        {"image_token_id": 299, "video_token_id": 298, "vision_start_token_id": 297, "vision_end_token_id": 296}
        | {"text_config": _SIZES | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}}
        | {"vision_config": {"depth": 1, "num_heads": 2, "out_hidden_size": 64} | _VISION},
    ),
    "llava": (
        "llava",
        {"image_token_index": 299, "text_config": _SIZES | {"model_type": "llama"}}
        | {"vision_config": _PATCHES | {"model_type": "clip_vision_model", "projection_dim": 16}},
    ),
}
"""Name: the model type of transformers, and the keys of its config."""


def make(name: str, folder: Path, dtype: torch.dtype = torch.bfloat16, shard: str = "1GB", **keys: Any) -> str:
    """Write a model with random weights into a folder, in files of at most `shard`; return the folder's path.

    `keys` replace keys of its config.
    """
    kind, sizes = MODELS[name]
    config = AutoConfig.for_model(kind, **sizes | keys)
    torch.manual_seed(0)
    causal = type(config) in AutoModelForCausalLM._model_mapping
    model = (AutoModelForCausalLM if causal else AutoModelForImageTextToText).from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # buffers stay as they are
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder, max_shard_size=shard)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / file, folder)
    return str(folder)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]))
