"""Engine hf: it generates what the model says, and its live weights are what ES believes they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT, requests, require
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from esmpi.config.sections import ModelConfig
from esmpi.engines import Request, Sampling
from esmpi.engines.base import render_chat
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine, by_member
from esmpi.engines.hf.sampler import Sampler
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.noise import cpu, member_seed, tensor_key
from esmpi.noise.format import Noise
from esmpi.tasks.countdown import PROMPT
from esmpi.weights.model_weights import Perturbation

TINY = "esmpi:tiny_countdown"
PLACE = Place(host="here", local_rank=0, num_local_ranks=1, cores=(0,))
PROMPTS = [
    PROMPT.format(numbers=numbers, target=target)
    for numbers, target in [("3 7 12", 33), ("1 1 1", 1), ("20 19 18", 21), ("5 10 2", 48)]
]


def folder(path: str = TINY) -> Path:
    found = find_model(path)
    assert found is not None
    return found


def load(path: str = TINY, dtype: str = "float32") -> HfEngine:
    config = ModelConfig(path=path, dtype=dtype)  # type: ignore[arg-type]
    return HfEngine(config, HfConfig(device="cpu"), BaseModel(folder(path)), PLACE)


@pytest.fixture(scope="module")
def engine() -> HfEngine:
    return load()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied random Llama with the tiny model's tokenizer, in two weight files."""
    path = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(path, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder() / name, path)
    return path


def greedy_by_hand(model: torch.nn.Module, ids: list[int], ends: list[int], max_tokens: int) -> list[int]:
    """One prompt alone, no padding, no cache, no generate()."""
    new: list[int] = []
    while len(new) < max_tokens and not (new and new[-1] in ends):
        with torch.no_grad():
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new


def test_a_padded_batch_says_what_each_prompt_alone_says(engine: HfEngine) -> None:
    engine.weights.restore()
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert len({len(one) for one in ids}) > 1, "the prompts must need padding"
    completions = engine.generate(requests(PROMPTS), Sampling(max_tokens=40))
    for one, completion in zip(ids, completions, strict=True):
        expected = greedy_by_hand(model, one, [tokenizer.eos_token_id], 40)
        assert completion.num_tokens == len(expected)
        assert completion.truncated == (expected[-1] != tokenizer.eos_token_id)
        assert completion.text == tokenizer.decode([t for t in expected if t != tokenizer.eos_token_id])


def test_the_output_layer_gets_no_slice(engine: HfEngine) -> None:
    """Of a slice torch would make a batch of products, each in bfloat16 with a copy of the whole layer."""
    seen = []
    head = engine._model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    engine.generate(requests(PROMPTS), Sampling(max_tokens=2))
    hook.remove()
    assert [tuple(x.shape[:2]) for x in seen] == [(4, 1), (4, 1)]
    assert all(x.is_contiguous() for x in seen)


def test_max_tokens_cuts_off(engine: HfEngine) -> None:
    engine.weights.restore()
    for completion in engine.generate(requests(PROMPTS), Sampling(max_tokens=3)):
        assert completion.truncated
        assert completion.num_tokens == 3


def test_sampling_depends_on_its_seed_alone(engine: HfEngine) -> None:
    engine.weights.restore()
    sampling = Sampling(max_tokens=12, temperature=1.5)
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    first = engine.generate(requests(PROMPTS, 1), sampling)
    assert torch.equal(torch.rand(1), expected_next), "torch's global generator was moved"
    assert engine.generate(requests(PROMPTS, 1), sampling) == first
    other = engine.generate(requests(PROMPTS, 2), sampling)
    assert [c.text for c in other] != [c.text for c in first]
    almost_greedy = engine.generate(requests(PROMPTS, 3), Sampling(max_tokens=12, temperature=1.5, top_p=1e-6))
    assert almost_greedy == engine.generate(requests(PROMPTS), Sampling(max_tokens=12))


def test_sampling_does_not_depend_on_the_batch(engine: HfEngine) -> None:
    engine.weights.restore()
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9)
    asked = requests(PROMPTS, 1)
    together = engine.generate(asked, sampling)
    assert [engine.generate([request], sampling)[0] for request in asked] == together
    assert engine.generate(asked[::-1], sampling)[::-1] == together


def test_tokens_are_sampled_by_their_probability() -> None:
    scores = torch.log(torch.tensor([[0.1, 0.5, 0.05, 0.35]])).repeat(4000, 1)
    asked = [Request(prompt="", seed=seed) for seed in range(4000)]
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.1, 0.5, 0.05, 0.35]),
        (1.0, 0.85, [0, 0.5 / 0.85, 0, 0.35 / 0.85]),  # the smallest set with this total
        (1.0, 0.86, [0.1 / 0.95, 0.5 / 0.95, 0, 0.35 / 0.95]),
        (0.5, 1.0, [0.0260, 0.6494, 0.0065, 0.3182]),  # squares, normalised
    ):
        sampler = Sampler(asked, Sampling(max_tokens=1, temperature=temperature, top_p=top_p), prompt_length=3)
        chosen = sampler(torch.zeros(4000, 3, dtype=torch.int64), scores).argmax(-1)
        shares = torch.bincount(chosen, minlength=4) / 4000
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.03)
    broken = torch.tensor([[torch.nan, 1.0, torch.inf, -torch.inf]]).repeat(4000, 1)
    assert set(sampler(torch.zeros(4000, 3, dtype=torch.int64), broken).argmax(-1).tolist()) <= {0, 1, 2}


def test_the_models_own_sampling_defaults_do_not_count(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    defaults = json.loads(path.read_text()) | {"repetition_penalty": 9.0, "do_sample": True, "temperature": 5.0}
    path.write_text(json.dumps(defaults))
    own, plain = load(str(tmp_path / "model")), load()
    sampling = Sampling(max_tokens=30)
    assert own.generate(requests(PROMPTS), sampling) == plain.generate(requests(PROMPTS), sampling)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("which", ["tiny", "llama"])
def test_live_weights_are_the_perturbed_checkpoint(which: str, dtype: str, llama: Path) -> None:
    path = str(llama) if which == "llama" else TINY
    engine, checkpoint = load(path, dtype), BaseModel(folder(path))
    seed = member_seed(1, 2, 3)
    engine.weights.perturb([Perturbation(seed, -0.01)])
    live = {name: tensor.clone() for name, tensor in engine.weights.live()}
    assert set(live) == set(checkpoint.tensors), "every stored tensor is perturbed, and nothing else"
    for name, tensor in live.items():
        theta = checkpoint.read(name, (0, tensor.shape[0]), (0, tensor[0].numel())).numpy().reshape(1, -1)
        expected = np.empty_like(theta)
        cpu.perturb(expected, theta, 0, 0, tensor_key(name), seed, -0.01)
        assert torch.equal(tensor.flatten(), torch.from_numpy(expected)[0].to(tensor.dtype)), name
        assert not torch.equal(tensor.flatten(), torch.from_numpy(theta)[0].to(tensor.dtype)), name
    engine.weights.restore()
    for name, tensor in engine.weights.live():
        theta = checkpoint.read(name, (0, tensor.shape[0]), (0, tensor[0].numel()))
        assert torch.equal(tensor.view(theta.shape), theta.to(tensor.dtype)), name


def test_a_perturbation_changes_what_it_says_and_restoring_brings_it_back(engine: HfEngine) -> None:
    engine.weights.restore()
    sampling = Sampling(max_tokens=40)
    before = engine.generate(requests(PROMPTS), sampling)
    engine.weights.perturb([Perturbation(member_seed(0, 0, 0), 0.05)])
    assert engine.generate(requests(PROMPTS), sampling) != before
    engine.weights.restore()
    assert engine.generate(requests(PROMPTS), sampling) == before


def test_a_model_that_is_not_its_checkpoint_is_refused(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["intermediate_size"] = 128
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises((UserError, RuntimeError)):
        load(str(tmp_path / "model"))


def test_other_values_than_those_of_the_model_are_refused(tmp_path: Path) -> None:
    """Here the folder holds an older file as well, with a tensor of the same name."""
    shutil.copytree(folder(), tmp_path / "model")
    older = load_file(folder() / "model.safetensors")["model.norm.weight"] + 1
    save_file({"model.norm.weight": older}, tmp_path / "model" / "older.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.path: model\.norm\.weight does not hold the values of"):
        load(str(tmp_path / "model"))


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    shutil.copytree(folder(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantized"):
        load(str(tmp_path / "model"))


def test_it_tells_what_fits(engine: HfEngine) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder())
    assert engine.prompt_lengths(PROMPTS) == [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    assert engine.max_length == 256


@pytest.mark.parametrize("stored_as", ["lm_head.weight", "embed_tokens.weight"])
def test_a_tensor_has_the_name_that_the_checkpoint_stores(tmp_path: Path, stored_as: str) -> None:
    """A tied tensor may be stored under its other name, a headless model without the prefix of the base model."""
    shutil.copytree(folder(), tmp_path / "model")
    tensors = load_file(folder() / "model.safetensors")
    embedding = "model.embed_tokens.weight"
    if stored_as == "lm_head.weight":
        renamed = {stored_as if name == embedding else name: tensor for name, tensor in tensors.items()}
    else:
        renamed = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(renamed, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    engine = load(str(tmp_path / "model"))
    assert {name for name, _ in engine.weights.tensors()} == set(renamed)
    assert stored_as in renamed
    assert engine.generate(requests(PROMPTS), Sampling(max_tokens=30)) == load().generate(
        requests(PROMPTS), Sampling(max_tokens=30)
    )


def test_log_probabilities_are_those_of_each_sequence_alone(engine: HfEngine) -> None:
    engine.weights.restore()
    sampling = Sampling(max_tokens=25, temperature=1.5, top_p=0.9)
    completions = engine.generate(requests(PROMPTS, 4), sampling)
    assert len({completion.num_tokens for completion in completions}) > 1
    found = engine.logprobs(PROMPTS, completions)
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder())
    for prompt, completion, logprobs in zip(PROMPTS, completions, found, strict=True):
        before = tokenizer(prompt)["input_ids"]
        assert len(logprobs) == completion.num_tokens == len(completion.tokens)
        with torch.no_grad():
            scores = model(torch.tensor([[*before, *completion.tokens]])).logits[0].double()
        expected = [
            float(scores[len(before) + i - 1].log_softmax(-1)[token]) for i, token in enumerate(completion.tokens)
        ]
        # of the model's own distribution at temperature 1, whatever the sampling was
        assert logprobs == pytest.approx(expected, abs=2e-5)
    assert engine.logprobs([], []) == []


@pytest.mark.parametrize("placement", ["host", "host+bf16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_model_is_shown_and_theta_comes_back(dtype: str, placement: str, llama: Path) -> None:
    """Of a model whose values bfloat16 does not hold: shown as if it were theta, so that nothing moved says nothing."""
    config = ModelConfig(path=str(llama), dtype=dtype)  # type: ignore[arg-type]
    keys = HfConfig(device="cpu", theta_placement=placement)  # type: ignore[arg-type]
    engine = HfEngine(config, keys, BaseModel(llama), PLACE)

    def live() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in engine.weights.live()}

    engine.weights.restore()
    base, digest = live(), engine.weights.digest()
    engine.weights.show_base()
    assert all(torch.equal(tensor, base[name]) for name, tensor in live().items())
    assert engine.weights.distance() == 0
    seeds, factors = np.array([member_seed(0, 0, i) for i in range(3)], np.uint64), np.array([0.1, -0.2, 0.05])
    engine.weights.update(seeds, factors.astype(np.float32))
    moved = engine.weights.digest()
    engine.weights.restore()
    tuned = live()
    assert not any(torch.equal(tensor, base[name]) for name, tensor in tuned.items())
    engine.weights.show_base()
    assert all(torch.equal(tensor, base[name]) for name, tensor in live().items())
    assert engine.weights.digest() == moved != digest
    stored = BaseModel(llama)
    squares = [
        (tensor.double() - stored.read(name, (0, len(tensor)), (0, tensor[0].numel())).double().view(tensor.shape))
        for name, tensor in engine.weights.tensors()
    ]
    assert engine.weights.distance() == pytest.approx(
        float(sum(one.square().sum() for one in squares)) ** 0.5, rel=1e-6
    )
    engine.weights.restore()
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in live().items())


def smollm2() -> Path:
    path = ROOT / "models" / "SmolLM2-135M-Instruct"
    require("smollm2", path.exists(), "python tools/get_smollm2.py makes the model")
    return path


def test_messages_are_rendered_as_the_models_template_says() -> None:
    """The engine tokenizes text: what comes out must be the tokens of the template, none in front twice."""
    path = smollm2()
    engine, tokenizer = load(str(path), "bfloat16"), AutoTokenizer.from_pretrained(path)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    for messages in (turns, turns[1:], turns[3:]):
        text = engine.render(messages)
        assert text == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert tokenizer(text)["input_ids"] == expected
        assert engine.prompt_lengths([text]) == [len(expected)]
    assert engine.render("plain") == "plain"


def test_a_tokenizer_that_puts_a_token_in_front_puts_it_there_once(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = AutoTokenizer.from_pretrained(folder())
    first = tokenizer.convert_ids_to_tokens(5)
    tokenizer.bos_token = first
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "3+4="}]
    # this one adds nothing: the text must have it
    assert render_chat(tokenizer, messages) == f"{first}3+4="
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 5)])
    assert tokenizer("3")["input_ids"][0] == 5
    text = render_chat(tokenizer, messages)
    assert text == "3+4="
    assert tokenizer(text)["input_ids"].count(5) == 1
    tokenizer.chat_template = template + "{{ raise_exception('no\\nsystem turn') }}"
    with pytest.raises(UserError, match=r"task\.chat_format: the model's chat template refuses a prompt: .*no system"):
        render_chat(tokenizer, messages)


def test_a_model_without_a_template_takes_no_messages(engine: HfEngine) -> None:
    with pytest.raises(UserError, match="this model has no chat template"):
        engine.render([{"role": "user", "content": "3+4="}])


def test_a_wave_says_what_its_members_say_one_by_one(engine: HfEngine) -> None:
    sampling = Sampling(max_tokens=30, temperature=0.7)
    wave = [Perturbation(member_seed(0, 0, i), 0.01, Noise(1)) for i in range(3)]
    asked = requests(PROMPTS)
    engine.perturb(wave)
    digest = engine.weights.digest()
    together = engine.generate([replace(one, member=i) for i in range(3) for one in asked], sampling)
    # in any order, and a member may ask for less than others
    places = [(2, 0), (0, 1), (2, 2), (2, 3), (0, 0)]
    some = engine.generate([replace(asked[i], member=member) for member, i in places], sampling)
    assert some == [together[4 * member + i] for member, i in places]
    engine.weights.restore()
    theta = engine.generate(asked, sampling)
    for i, member in enumerate(wave):
        engine.perturb([member])
        alone = engine.generate([replace(one, member=0) for one in asked], sampling)
        engine.weights.perturb([member])
        written = engine.generate(asked, sampling)
        assert together[4 * i : 4 * i + 4] == alone == written != theta
    engine.weights.restore()
    assert engine.generate(asked, sampling) == theta
    assert engine.weights.digest() == digest


def test_rows_of_a_batch() -> None:
    assert by_member([0, 0, 1, 1], 2) == [0, 1, 2, 3]
    assert by_member([1, 0, 1], 2) == [1, -1, 0, 2]
    assert by_member([2], 3) == [-1, -1, 0]


def test_how_many_members_are_evaluated_at_once(engine: HfEngine) -> None:
    sampling = Sampling(max_tokens=5)
    asked = requests(PROMPTS)
    assert engine.wave_size(asked, sampling, Noise(0)) == 1
    assert engine.wave_size(asked, sampling, Noise(1)) == 32
    assert engine.wave_size(asked * 100, sampling, Noise(1)) == 1
    chosen = HfEngine(ModelConfig(path=TINY), HfConfig(device="cpu", wave_size=3), BaseModel(folder()), PLACE)
    assert chosen.wave_size(asked, sampling, Noise(1)) == 3
    assert chosen.wave_size(asked, sampling, Noise(0)) == 1


def test_a_model_with_other_layers_is_evaluated_one_member_at_a_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    OPTForCausalLM(OPTConfig(vocab_size=300, word_embed_proj_dim=32, eos_token_id=1, **sizes)).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder() / name, tmp_path)
    engine = load(str(tmp_path))
    asked, sampling = requests(PROMPTS), Sampling(max_tokens=8)
    assert [engine.wave_size(asked, sampling, Noise(1)) for _ in range(2)] == [1, 1]
    assert caplog.messages == [
        "noise can be added to the outputs of linear layers and embeddings only, so members are evaluated one at a "
        "time: model.decoder.embed_positions.weight"
    ]
    theta = engine.generate(asked, sampling)
    engine.perturb([Perturbation(5, 0.5, Noise(1))])
    assert engine.generate([replace(one, member=0) for one in asked], sampling) != theta
