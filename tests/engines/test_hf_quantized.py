"""Engine hf with quantized weights computes what a plain model computes with the weights that they stand for."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import ROOT, requests
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

sys.path.append(str(ROOT / "tools"))

from architectures import make

from esmpi.config.reader import parse_config
from esmpi.config.sections import ModelConfig
from esmpi.engines import Sampling
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.errors import UserError
from esmpi.launch.dry_run import describe
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.quantization import live_bytes, quantized_names
from esmpi.mpi.comm import Place
from esmpi.noise.format import Noise
from esmpi.weights.model_weights import Perturbation

PLACE = Place(host="here", local_rank=0, num_local_ranks=1, cores=(0,))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with biases and a head of its own, and the tiny model's tokenizer."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = LlamaConfig(**sizes, **heads, attention_bias=True, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(path)
    return with_tokenizer(path)


def with_tokenizer(path: Path) -> Path:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder / name, path)
    return path


def load(path: Path, kind: str, dtype: str = "float32", wave_size: int | None = None) -> HfEngine:
    config = ModelConfig(path=str(path), dtype=dtype, quantization=kind)  # type: ignore[arg-type]
    return HfEngine(config, HfConfig(device="cpu", wave_size=wave_size), BaseModel(path), PLACE)


def logits(model: torch.nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        found: torch.Tensor = model(torch.randint(1, 60, (2, 20))).logits
    return found


@pytest.mark.parametrize(
    ("kind", "dtype"), [("int8", "float32"), ("fp8", "bfloat16"), ("int8", "float16"), ("int4", "bfloat16")]
)
def test_a_member_is_a_plain_model_with_the_dequantized_weights(llama: Path, kind: str, dtype: str) -> None:
    engine, plain = load(llama, kind, dtype), AutoModelForCausalLM.from_pretrained(llama, dtype=getattr(torch, dtype))
    theta = logits(plain)
    for member in (None, Perturbation(5, 0.01), Perturbation(5, -0.01, Noise(2))):
        engine.weights.restore() if member is None else engine.weights.perturb([member])
        live = {name: tensor.to(plain.dtype) for name, tensor in engine.weights.live()}
        plain.load_state_dict(live)
        assert torch.equal(logits(engine._model), logits(plain))
        assert not torch.equal(logits(plain), theta)
    base, model = BaseModel(llama), ModelConfig(path="", dtype=dtype, quantization=kind)  # type: ignore[arg-type]
    held = [
        *engine._model.parameters(),
        *(layer.scales for layer in engine._model.modules() if hasattr(layer, "scales")),
    ]
    assert sum(tensor.nbytes for tensor in held) == live_bytes(model, base)
    assert len(quantized_names(model, base)) == 2 * 7
    assert live_bytes(model, base) < 0.9 * live_bytes(replace(model, quantization="none"), base)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_wave_adds_the_noise_to_the_outputs_of_quantized_layers(llama: Path, kind: str) -> None:
    engine = load(llama, kind)
    wave = [Perturbation(seed, 0.05, Noise(1)) for seed in (3, 4)]
    asked = requests(["3 7 12", "1 1 1"])
    engine.perturb(wave)
    found = engine.generate([replace(one, member=i) for i in (0, 1) for one in asked], Sampling(max_tokens=8))
    assert engine.wave_size(asked, Sampling(max_tokens=8), Noise(1)) > 1
    # what is quantized is theta, as a model whose theta is already what the numbers stand for shows
    engine.weights.restore()
    folder = llama.parent / f"dequantized {kind}"
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    save_file(
        {name: tensor.clone() for name, tensor in engine.weights.live()}, folder / "model.safetensors", {"format": "pt"}
    )
    plain = load(folder, "none")
    plain.perturb(wave)
    assert plain.generate([replace(one, member=i) for i in (0, 1) for one in asked], Sampling(max_tokens=8)) == found
    assert found[:2] != found[2:]


def test_noise_far_below_a_step_of_int4_acts_and_is_not_written(llama: Path) -> None:
    """Also one member at a time: with a tenth of the noise, a tenth of the change in the outputs."""
    engine = load(llama, "int4", wave_size=1)
    numbers = {name: tensor.clone() for name, tensor in engine.weights.live()}
    steps = [layer.scales.median() for layer in engine._model.modules() if hasattr(layer, "scales")]
    theta = logits(engine._model)
    changes = []
    for sigma in (1e-4, 1e-5):
        assert sigma < min(steps) / 40
        engine.perturb([Perturbation(3, sigma, Noise(1))])
        with engine._adapters.applied(2):
            changes.append(logits(engine._model) - theta)
    assert torch.equal(logits(engine._model), theta)
    assert float(changes[0].abs().max()) > 1e-4
    assert float((changes[0] - 10 * changes[1]).abs().max()) < 0.1 * float(changes[0].abs().max())
    assert all(torch.equal(tensor, numbers[name]) for name, tensor in engine.weights.live())
    assert engine.wave_size(requests(["1"]), Sampling(max_tokens=1), Noise(1)) == 1


def test_int4_needs_noise_in_the_outputs_of_all_layers(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model.quantization: int4 needs noise .*set es.noise=low_rank"):
        load(llama, "int4").perturb([Perturbation(1, 1e-3)])
    positions = load(Path(make("opt", tmp_path / "opt")), "int4")
    message = r"cannot do for model\.decoder\.embed_positions\.weight: leave them out with es.exclude, or"
    with pytest.raises(UserError, match=message):
        positions.wave_size(requests(["1"]), Sampling(max_tokens=1), Noise(1))
    excluded = Noise(1, {name: float("positions" not in name) for name in positions.weights.names})
    assert positions.wave_size(requests(["1"]), Sampling(max_tokens=1), excluded) > 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mixtral", r"only the weights of linear layers .*experts\.0\.w1\.weight.*quantization=none$"),
        ("llava", "transformers renames or rearranges tensors of this model"),
    ],
)
def test_experts_and_renamed_tensors_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(Path(make(name, tmp_path / "model")), "int8")


def test_other_layers_are_refused_by_name(tmp_path: Path) -> None:
    """GPT-2 stores its matrices transposed, so that rows are not those of outputs."""
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=1, bos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"only the weights of linear layers .*c_attn\.weight.*quantization=none$"):
        load(with_tokenizer(tmp_path), "int8")


def test_what_cannot_be_combined_is_refused(llama: Path) -> None:
    def config(quantization: str = "int8", **engine: object) -> object:
        return parse_config(
            {
                "run": {"name": "x"},
                "model": {"path": str(llama), "quantization": quantization},
                "engine": engine,
                "es": {"generations": 1},
                "task": {"name": "countdown"},
            }
        )

    with pytest.raises(UserError, match=r"theta_placement: host\+bf16 keeps more on the GPU than model.quantization"):
        config(theta_placement="host+bf16")
    with pytest.raises(UserError, match=r"model.quantization: int4 needs noise .*: set es.noise=low_rank, or"):
        config("int4")
    with pytest.raises(UserError, match="quantization: int8 needs all of a row on one GPU"):
        describe(config(kind="vllm", tensor_parallel_size=2), 1)  # type: ignore[arg-type]


LLAMA_70B = {"layers": 80, "hidden": 8192, "kv": 1024, "inner": 28672, "vocabulary": 128256}


def test_the_dry_run_of_70_billion_weights_fits_on_a_gpu_of_80_gb(tmp_path: Path) -> None:
    """Of a checkpoint that has the shapes of Llama 3 70B and takes no disk: its file is one large hole."""
    n, hidden, kv, inner = (LLAMA_70B[name] for name in ("layers", "hidden", "kv", "inner"))
    shapes = dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (LLAMA_70B["vocabulary"], hidden))
    shapes["model.norm.weight"] = (hidden,)  # type: ignore[assignment]
    for layer in range(n):
        attention = {
            "q_proj": (hidden, hidden),
            "k_proj": (kv, hidden),
            "v_proj": (kv, hidden),
            "o_proj": (hidden, hidden),
        }
        mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for part, matrices in (("self_attn", attention), ("mlp", mlp)):
            shapes |= {f"model.layers.{layer}.{part}.{name}.weight": shape for name, shape in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (hidden,)  # type: ignore[assignment]
    write_hole(tmp_path, shapes)

    def plan(*model: tuple[str, str], noise: str = "full") -> str:
        es = {"generations": 1, "noise": noise}
        sections = {"run": {"name": "x"}, "es": es, "task": {"name": "countdown"}}
        model_section = {"path": str(tmp_path), **dict(model)}
        return describe(parse_config({**sections, "model": model_section, "engine": {"kind": "vllm"}}), 1)

    assert "70,553,706,496 weights; each rank: theta 262.8 GiB + live weights 131.4 GiB, over" in plan()
    said = plan(("quantization", "int8"))
    assert "theta 262.8 GiB + live weights 67.7 GiB (int8), over 1 GPU" in said
    assert "else in host memory of 262.8 GiB a rank and a GPU of 78.5 GiB" in said, "80 GB are 79.6 GiB on an H100"
    said = plan(("quantization", "int4"), noise="low_rank")
    assert "theta 262.8 GiB + live weights 39.8 GiB (int4), over 1 GPU" in said
    assert "else in host memory of 262.8 GiB a rank and a GPU of 47.5 GiB" in said


def write_hole(folder: Path, shapes: dict[str, tuple[int, int]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
