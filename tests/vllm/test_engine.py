"""Engine vllm against engine hf: the same weights, bit for bit, whatever the layout; and what is refused."""

import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import state
from safetensors.torch import load_file, save_file
from support import ROOT, VLLM_SMALL, require

sys.path.append(str(ROOT / "tools"))

from architectures import make

from esmpi.engines import Waves
from esmpi.engines.vllm import VllmConfig
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.noise.format import Noise
from esmpi.tasks.countdown import PROMPT

STATE = Path(__file__).parent / "state.py"
TINY = "esmpi:tiny_countdown"
PROMPTS = [
    PROMPT.format(numbers=numbers, target=target)
    for numbers, target in [("3 7 12", 22), ("1 1 1", 1), ("20 19 18", 21), ("5 10 2", 13)]
]

State = dict[str, Any]


# Importing vLLM takes longer than what is done with it here: one process does it, and each engine gets a fork of that.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "transformers", "state"])


def run_state(
    kind: str,
    path: str = TINY,
    dtype: str = "float32",
    prompts: list[str] = PROMPTS,
    fault: str | None = None,
    launcher: tuple[str, ...] = (),
    max_tokens: int = 30,
    rank: int = 0,
    scale: float = 0.02,
    exclude: tuple[str, ...] = (),
    harness: bool = False,
    quantization: str = "none",
    **engine: Any,
) -> State:
    """Return what state.py says of an engine in a process of its own."""
    engine = ({} if kind == "hf" else VLLM_SMALL) | {"num_threads": 1} | engine
    asked = {"kind": kind, "path": path, "dtype": dtype, "engine": engine, "prompts": prompts, "fault": fault}
    asked |= {"max_tokens": max_tokens, "rank": rank, "scale": scale, "exclude": exclude, "harness": harness}
    asked |= {"quantization": quantization}
    if launcher:
        command = [*launcher, sys.executable, str(STATE), json.dumps(asked)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-4000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.json"
        process = FORKS.Process(target=state.answer, args=(asked, str(said)))
        process.start()
        process.join(600)
        assert process.exitcode == 0
        return dict(json.loads(said.read_text()))


@pytest.fixture(scope="module")
def tiny_hf() -> State:
    return run_state("hf", harness=True)


@pytest.fixture(scope="module")
def tiny_vllm(vllm: None) -> State:
    return run_state("vllm", harness=True)


WEIGHTS = ("num_weights", "perturbed", "restored", "digest", "updated_digest", "updated_perturbed", "theta", "updated")


def same_weights(one: State, other: State) -> None:
    for key in WEIGHTS:
        assert one[key] == other[key], key
    for each in (one, other):
        assert each["loaded"] == [each["digest"], each["updated_digest"]]
        # the base model shown beside theta, and theta's live weights back, bit for bit
        assert each["shown"] == each["restored"] != each["updated"]
        assert each["unshown"] == each["updated"]
        assert each["logprobs_again"] == each["logprobs"]
        assert each["damaged"] == [0, 1, 0], "a flipped bit of the live weights is found, and written again"
    assert one["distance"] == pytest.approx(other["distance"], rel=1e-9)
    assert one["perturbed"] != one["restored"]
    assert one["digest"] != one["updated_digest"]


def test_tiny_model_has_the_same_weights_and_says_the_same(tiny_hf: State, tiny_vllm: State) -> None:
    same_weights(tiny_vllm, tiny_hf)
    assert len(tiny_hf["perturbed"]) == 50
    assert tiny_vllm["says"] == tiny_hf["says"] == tiny_vllm["restored_says"]
    assert tiny_vllm["perturbed_says"] == tiny_hf["perturbed_says"] != tiny_hf["says"]


def test_log_probabilities_are_those_of_engine_hf(tiny_hf: State, tiny_vllm: State) -> None:
    for key in ("logprobs", "base_logprobs"):
        for one, other in zip(tiny_vllm[key], tiny_hf[key], strict=True):
            assert one == pytest.approx(other, abs=2e-5)
    assert [len(one) for one in tiny_hf["logprobs"]] == [1, 2, 3, 4]
    assert tiny_hf["logprobs"][3] != pytest.approx(tiny_hf["base_logprobs"][3], abs=1e-2)


def test_lm_evaluation_harness_gets_the_same_answers(tiny_hf: State, tiny_vllm: State) -> None:
    require("lm-eval", tiny_hf["harness"] is not None, "pip install 'esmpi[lm-eval]'")
    for one, other in zip(tiny_vllm["harness"], tiny_hf["harness"], strict=True):
        assert (one.pop("logprob") or 0) == pytest.approx(other.pop("logprob") or 0, abs=1e-4)
        assert one == other
    assert [one["is_greedy"] for one in tiny_hf["harness"]] == [False] * 5 + [None] * 4 + [True]


def test_a_bfloat16_base_stands_for_theta_in_live_weights_only(tiny_vllm: State) -> None:
    vllm, hf = (run_state(kind, theta_placement="host+bf16") for kind in ("vllm", "hf"))
    same_weights(vllm, hf)
    # the model is stored in bfloat16: until the first update its theta is its own base
    for key in ("digest", "perturbed", "updated_digest", "theta"):
        assert vllm[key] == tiny_vllm[key], key
    assert vllm["updated_perturbed"] != tiny_vllm["updated_perturbed"]


def test_tensor_parallel_workers_hold_the_same_weights(tiny_vllm: State, mpiexec: list[str]) -> None:
    two = run_state("vllm", tensor_parallel_size=2, num_threads=2, launcher=(*mpiexec, "-n", "1"))
    same_weights(two, tiny_vllm)
    assert two["says"] == tiny_vllm["says"]
    processes = [worker[0] for worker in two["environment"]]
    assert len(set(processes)) == 2
    assert [worker[1:] for worker in two["environment"]] == [[], []], "the launcher's variables leak into workers"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2_has_the_same_weights(smollm2: str, dtype: str) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    # in bfloat16, in which a CPU is slow and engines round differently, what they say is not compared
    length = 30 if dtype == "float32" else 2
    hf = run_state("hf", smollm2, dtype, prompts, max_tokens=length)
    vllm = run_state("vllm", smollm2, dtype, prompts, max_tokens=length)
    same_weights(vllm, hf)
    assert len(hf["perturbed"]) == 272
    if dtype == "float32":
        assert vllm["says"] == hf["says"]


def test_a_stale_prefix_cache_is_reset() -> None:
    shared = "1 " * 80  # more than a block of the CPU's cache, which holds 128 tokens
    prompts = [shared + prompt[-20:] for prompt in PROMPTS]
    plain = run_state("vllm", prompts=prompts)
    assert plain["perturbed_says"] != plain["says"]
    cached = run_state("vllm", prompts=prompts, prefix_caching=True)
    for key in ("says", "perturbed_says", "restored_says"):
        assert cached[key] == plain[key], key
    stale = run_state("vllm", prompts=prompts, prefix_caching=True, fault="no reset", self_test=False)
    assert stale["perturbed_says"] != plain["perturbed_says"], "this test would not see a stale cache"


def test_packed_weights_are_refused_by_name() -> None:
    refused = run_state("vllm", fault="keep packing")["refused"]
    assert "is empty" in refused
    assert "_proj" in refused


def test_batch_invariance_is_refused_on_a_cpu() -> None:
    refused = run_state("vllm", batch_invariant=True)["refused"]
    assert refused.startswith("engine.batch_invariant: vLLM has batch-invariant kernels for GPUs only")


def test_weights_that_do_not_count_fail_the_self_test() -> None:
    refused = run_state("vllm", fault="miss a kind")["refused"]
    assert refused.endswith("no output of vLLM, so ES would train nothing there: model.layers.*.mlp.down_proj.weight")


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3", "phi3"])
def test_dense_architectures_have_the_same_weights(tmp_path: Path, name: str) -> None:
    path = make(name, tmp_path / "model")
    hf, vllm = run_state("hf", path), run_state("vllm", path)
    same_weights(vllm, hf)
    assert vllm["says"] == vllm["restored_says"] != vllm["perturbed_says"]


@pytest.mark.parametrize(("name", "kind"), [("llama", "int8"), ("phi3", "fp8"), ("phi3", "int4")])
def test_quantized_live_weights_are_those_of_engine_hf(tmp_path: Path, name: str, kind: str) -> None:
    """Fused layers with biases, and tensors that the checkpoint stores fused."""
    path = make(name, tmp_path / "model")
    dtype = "bfloat16" if kind == "fp8" else "float32"
    hf = run_state("hf", path, dtype, quantization=kind)
    vllm = run_state("vllm", path, dtype, quantization=kind)
    same_weights(vllm, hf)
    assert vllm["says"] == vllm["restored_says"] != vllm["perturbed_says"]
    for one, other in zip(vllm["logprobs"], hf["logprobs"], strict=True):
        assert one == pytest.approx(other, abs=0.5 if kind == "fp8" else 2e-5)
    assert hf["restored"] != run_state("hf", path)["restored"]


def test_members_in_slots_of_quantized_layers() -> None:
    """Theta is quantized, and the noise, which is added to outputs, is not."""
    found, hf = (run_state(kind, rank=1, quantization="int4") for kind in ("vllm", "hf"))
    for each in (found, hf):
        same_wave(each)
    assert found["wave_size"] == 3
    assert found["digest"] == hf["digest"]


def test_shards_of_a_fused_tensor_and_shared_heads(tmp_path: Path) -> None:
    """At two workers Phi-3's stored qkv and gate_up are dealt out in pieces, and both hold its one key head."""
    path = make("phi3", tmp_path / "model")
    two = run_state("vllm", path, tensor_parallel_size=2, num_threads=2)
    same_weights(two, run_state("hf", path))


def without_half_characters(state: State) -> list[str]:
    """What a model says, without the bytes of a character that is not complete at the end: vLLM leaves them out."""
    return [text.rstrip("\ufffd") for text in state["says"]]


# transposed matrices; experts, and latent attention, which has a matrix in two forms
@pytest.mark.parametrize("name", ["gpt2", "deepseek_v2"])
def test_rearranged_weights_are_the_same(tmp_path: Path, name: str) -> None:
    path = make(name, tmp_path / "model")
    hf, vllm = run_state("hf", path), run_state("vllm", path)
    same_weights(vllm, hf)
    assert without_half_characters(vllm) == without_half_characters(hf)
    assert vllm["says"] == vllm["restored_says"] != vllm["perturbed_says"]


def test_outputs_that_depend_on_the_batch_fail_the_self_test(tmp_path: Path) -> None:
    """vLLM runs this architecture by transformers' own code, and differs from it by more than a member does."""
    refused = run_state("vllm", make("gpt_neox", tmp_path / "model"))["refused"]
    assert refused == (
        "engine: what vLLM makes of a prompt depends on the other prompts of its batch, so a member's fitness would, "
        "too: choose engine.kind=hf"
    )


def test_outputs_that_are_not_numbers_are_told_before_the_self_test(tmp_path: Path) -> None:
    model = Path(make("llama", tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert "in float32 are not numbers (NaN)" in run_state("vllm", str(model))["refused"]


def test_a_copy_that_only_generation_uses_fails_the_self_test(tmp_path: Path) -> None:
    refused = run_state("vllm", make("deepseek_v2", tmp_path / "model"), fault="decode with a copy")["refused"]
    assert refused == (
        "engine: vLLM reads prompts with these weights, but generates with a copy that does not follow: "
        "model.layers.*.self_attn.kv_b_proj.weight: choose engine.kind=hf"
    )


def same_wave(one: State) -> None:
    assert one["theta"] == one["theta_again"] == one["theta_at_last"]
    assert one["digest"] == one["digest_at_last"]
    count = len(one["theta"])
    members = [one["together"][i * count : (i + 1) * count] for i in range(3)]
    assert len({tuple(said) for said in (one["theta"], *members)}) == 4, "members say the same"
    assert one["some"] == [said[-1] for said in members]


@pytest.fixture(scope="module")
def tiny_wave() -> State:
    return run_state("hf", rank=2)


# without compilation, and with it; rank 2 has slots of rank 8
@pytest.mark.parametrize("engine", [{}, {"enforce_eager": False, "prefix_caching": True}])
def test_members_in_slots_say_what_they_say_on_engine_hf(tiny_wave: State, engine: dict[str, Any]) -> None:
    found = run_state("vllm", rank=2, **engine)
    for each in (tiny_wave, found):
        same_wave(each)
        assert each["wave_size"] == (3 if each is found else 32)
    # sampled texts are each engine's own
    assert found["digest"] == tiny_wave["digest"]
    assert found["written"] == found["together"]


def test_workers_of_one_engine_have_the_same_noise_in_their_slots() -> None:
    one, two = run_state("vllm", rank=1), run_state("vllm", rank=1, tensor_parallel_size=2, num_threads=2)
    same_wave(two)
    assert two == one


@pytest.mark.parametrize(("name", "scale"), [("llama", 0.4), ("gemma3", 0.1), ("phi3", 1.0), ("smollm3", 0.2)])
def test_slots_of_other_architectures(tmp_path: Path, name: str, scale: float) -> None:
    """An untied head, a scaled embedding, matrices that are stored fused, and vLLM's transformers backend."""
    found = run_state("vllm", make(name, tmp_path / "model"), rank=1, scale=scale, max_tokens=12)
    assert found["wave_size"] == 3
    same_wave(found)
    assert found["written"] == found["together"]


def test_one_member_at_a_time_where_there_are_no_slots(tmp_path: Path) -> None:
    refused = run_state("vllm", make("gpt2", tmp_path / "model"), rank=1)["refused"]
    assert refused.endswith("does not support LoRA yet: set engine.wave_size=1 to evaluate members one at a time")
    # without slots for the head, which is tied to an embedding that has some
    few = {"lora_target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens"]}
    for engine in ({"wave_size": 1}, {"vllm_args": few}):
        found = run_state("vllm", rank=1, **engine)
        assert found["wave_size"] == 1
        same_wave(found)
    # that is no matter if the embedding has no noise
    found = run_state("vllm", rank=1, scale=0.05, exclude=("*embed_tokens*",), vllm_args=few)
    assert found["wave_size"] == 3
    same_wave(found)
    assert found["written"] == found["together"]


def test_slots_without_the_noise_fail_the_self_test() -> None:
    refused = run_state("vllm", rank=1, fault="empty slots")["refused"]
    assert "noise in vLLM's slots for adapters makes other outputs than noise in the weights" in refused


def test_a_request_without_a_slot_that_gets_one_fails_the_self_test() -> None:
    refused = run_state("vllm", rank=1, fault="slot for all")["refused"]
    assert refused == "engine: requests without a slot get the noise of one: set engine.wave_size=1"


def test_slots_only_where_there_is_more_than_one_member() -> None:
    """A wave of one gains nothing over writing the weights, and vLLM has no adapters for all models."""
    config, base = VllmConfig(max_num_seqs=16), tiny()
    assert config.slots(Waves(noise=Noise(1), num_prompts=16, num_members=30), base) == 0
    assert config.slots(Waves(noise=Noise(1), num_prompts=4, num_members=30), base) == 4
    assert config.slots(Waves(noise=Noise(1), num_prompts=4, num_members=3), base) == 3
    assert config.slots(Waves(noise=Noise(0), num_prompts=4, num_members=30), base) == config.slots(None, base) == 0
    assert VllmConfig(wave_size=7).slots(Waves(noise=Noise(1), num_prompts=400, num_members=30), base) == 7


def test_a_gpu_has_as_many_slots_as_take_a_tenth_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    base, config = tiny(), VllmConfig()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    each = sum(sum(tensor.shape) for tensor in base.tensors.values() if len(tensor.shape) == 2)
    for rank in (1, 2):
        slots = config.slots(Waves(noise=Noise(rank), num_prompts=200, num_members=1000), base)
        assert slots == base.num_weights // (10 * rank * each) > 1
    # a wave has 256 completions in any case, and no more members than there are
    assert config.slots(Waves(noise=Noise(1), num_prompts=4, num_members=1000), base) == 64
    assert config.slots(Waves(noise=Noise(1), num_prompts=200, num_members=3), base) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert config.slots(Waves(noise=Noise(1), num_prompts=200, num_members=1000), base) == 0


def tiny() -> BaseModel:
    """Return the tiny model's tensors."""
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    return BaseModel(folder)
