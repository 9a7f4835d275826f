"""Load an engine, put it through its paces, and print what its weights are: python state.py JSON.

The JSON object has `kind`, `path`, `dtype`, `quantization`, `engine` (further keys of the engine section), `prompts`,
`max_tokens`, `rank`, `scale` and `exclude` (of the noise of a wave; rank 0 for none), `harness` (whether
lm-evaluation-harness asks something) and `fault` (what to break, or null). One JSON object is the last line of the
output. An engine needs a process of its own.
"""

import hashlib
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from esmpi.config.reader import parse_config
from esmpi.config.sections import Config
from esmpi.engines import Completion, Engine, Request, Sampling, Waves, engine_config
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import fetch_model
from esmpi.model.noise_settings import NoiseSettings
from esmpi.mpi.comm import Comm
from esmpi.noise import member_seed
from esmpi.store.snapshot_writer import write_snapshot
from esmpi.weights.model_weights import Perturbation

SEED, SCALE = member_seed(7, 1, 2), -0.02
SEEDS = np.array([member_seed(7, 0, member) for member in range(5)], np.uint64)
COEFFICIENTS = np.array([1e-3, -2e-3, 0, 5e-4, 3e-3], np.float32)


def answer(asked: dict[str, Any], file: str) -> None:
    """Write what is found into a file, as JSON."""
    Path(file).write_text(json.dumps(find(asked)))


def find(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the engine that is asked for, or `refused`: what it says against it."""
    config = parse_config(
        {
            "run": {"name": "state"},
            "model": {"path": asked["path"], "dtype": asked["dtype"], "quantization": asked["quantization"]},
            "engine": {"kind": asked["kind"], **asked["engine"]},
            "es": {"generations": 1, "noise": "low_rank" if asked["quantization"] == "int4" else "full"},
            "task": {"name": "countdown"},
        }
    )
    try:
        return state(config, asked)
    except UserError as error:
        return {"refused": str(error)}


def state(config: Config, asked: dict[str, Any]) -> dict[str, Any]:
    checkpoint = BaseModel(fetch_model(config.model.path))
    if asked["fault"] == "miss a kind":
        break_perturb()
    if asked["fault"] == "decode with a copy":
        decode_with_a_copy()
    if asked["fault"] == "keep packing":
        os.environ["ESMPI_KEEP_PACKING"] = "1"
    if asked["fault"] == "empty slots":
        from esmpi.engines.vllm.engine import VllmEngine

        call = VllmEngine._rpc
        VllmEngine._rpc = lambda self, name, *rest: [] if name == "esmpi_prepare" else call(self, name, *rest)  # type: ignore[method-assign]
    if asked["fault"] == "slot for all":
        from esmpi.engines.vllm.engine import VllmEngine

        generate = VllmEngine.complete

        def in_a_slot(self, prompts, parameters, slots=()):  # type: ignore[no-untyped-def]
            return generate(self, prompts, parameters, [slot or 0 for slot in slots])

        VllmEngine.complete = in_a_slot  # type: ignore[method-assign]
    rank, prompts = asked["rank"], asked["prompts"]
    noise = NoiseSettings(rank, exclude=tuple(asked["exclude"])).noise(checkpoint)
    waves = Waves(noise=noise, num_prompts=len(prompts), num_members=3) if rank else None
    engine = engine_config(config).open(config.model, checkpoint, Comm().place(), waves)
    if waves is not None:
        sampling = Sampling(max_tokens=asked["max_tokens"], temperature=1)
        return compare_wave(engine, waves, prompts, sampling, asked["scale"])
    if asked["fault"] == "no reset":
        engine._llm.reset_prefix_cache = lambda: True  # type: ignore[attr-defined]
    sampling = Sampling(max_tokens=asked["max_tokens"])

    def say() -> list[str]:
        return [
            completion.text
            for completion in engine.generate([Request(prompt=one) for one in asked["prompts"]], sampling)
        ]

    found: dict[str, Any] = {"num_weights": engine.weights.num_weights, "environment": worker_environment(engine)}
    found["says"] = say()
    engine.weights.perturb([Perturbation(SEED, SCALE)])
    found["perturbed"] = hashes(engine)
    found["perturbed_says"] = say()
    engine.weights.restore()
    found["restored"] = hashes(engine)
    found["restored_says"] = say()
    if asked["harness"]:
        found["harness"] = ask_harness(engine, prompts)
    found["digest"] = engine.weights.digest()
    engine.weights.update(SEEDS, COEFFICIENTS)
    found["updated_digest"] = engine.weights.digest()
    found |= compare_with_base(engine, asked["prompts"])
    engine.weights.perturb([Perturbation(SEED, SCALE)])
    found["updated_perturbed"] = hashes(engine)
    found["theta"] = {name: digest_of(tensor) for name, tensor in engine.weights.tensors()}
    found["damaged"] = flip_and_compare(engine)
    found["loaded"] = load_and_digest(engine)
    return found


def flip_and_compare(engine: Engine) -> list[int]:
    """Flip a bit of the live weights in the last worker; return how many tensors each of three looks finds damaged."""
    engine.weights.perturb([Perturbation(SEED, SCALE)])
    found = [len(engine.weights.damaged())]
    if hasattr(engine, "_llm"):
        engine._llm.collective_rpc(flip_in_worker)
    else:
        flip_bit(engine._model)  # type: ignore[attr-defined]
    return [*found, len(engine.weights.damaged()), len(engine.weights.damaged())]


def flip_in_worker(worker: Any) -> None:
    if worker.rank == worker.parallel_config.world_size - 1:
        flip_bit(worker.model_runner.model)


def flip_bit(model: Any) -> None:
    """Flip a bit of one weight of a layer."""
    layers = (
        tensor
        for name, tensor in model.named_parameters()
        if tensor.dim() == 2 and not any(part in name for part in ("emb", "wte", "wpe"))
    )
    weight = next(layers)
    weight.data.view({1: torch.int8, 2: torch.int16, 4: torch.int32}[weight.element_size()])[1, 2] ^= 64


def ask_harness(engine: Engine, prompts: list[str]) -> list[dict[str, Any]] | None:
    """Return the answers to requests of lm-evaluation-harness; None where it is not installed."""
    if find_spec("lm_eval") is None:
        return None
    from lm_eval.api.instance import Instance

    from esmpi.harness.model import EngineModel, check

    keys = {"until": ["</answer>", "<eos>"], "max_gen_toks": 30}
    arguments = [(prompt + " ", f"{i}+7=10") for i, prompt in enumerate(prompts)] + [("", "12+3=15")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in arguments]
    requests += [Instance("generate_until", {}, (prompt, keys), 0) for prompt in prompts]
    # what greedy decoding says is a continuation, too
    [said] = engine.generate([Request(prompt=prompts[0])], Sampling(max_tokens=3))
    requests.append(Instance("loglikelihood", {}, (prompts[0], said.text), 0))
    check(engine, requests)
    return [asdict(answer) for answer in EngineModel(engine, Comm(), 5).answers(requests)]


def compare_wave(engine: Engine, waves: Waves, prompts: list[str], sampling: Sampling, scale: float) -> dict[str, Any]:
    """Return what three members say in a wave and with their weights written, and what theta says before and after."""
    requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(prompts)]
    wave = [Perturbation(member_seed(7, 1, i), (-1) ** i * scale, waves.noise) for i in range(3)]

    def say(asked: list[Request]) -> list[str]:
        return [completion.text for completion in engine.generate(asked, sampling)]

    found: dict[str, Any] = {"wave_size": engine.wave_size(requests, sampling, waves.noise)}
    found |= {"digest": engine.weights.digest(), "theta": say(requests)}
    size = found["wave_size"]
    together, some = [], []
    for start in range(0, 3, size):
        engine.perturb(wave[start : start + size])
        members = range(len(wave[start : start + size]))
        together += say([replace(request, member=member) for member in members for request in requests])
        some += say([replace(requests[-1], member=member) for member in members])
    found |= {"together": together, "some": some}
    engine.weights.restore()
    found["theta_again"] = say(requests)
    found["written"] = []
    for member in wave:
        engine.weights.perturb([member])
        found["written"] += say(requests)
    engine.weights.restore()
    return found | {"theta_at_last": say(requests), "digest_at_last": engine.weights.digest()}


def compare_with_base(engine: Engine, prompts: list[str]) -> dict[str, Any]:
    """Return what evaluation's divergence is made of, for made-up completions, and the live weights."""
    vocabulary = 60
    completions = [
        Completion(
            text="", num_tokens=n, truncated=False, tokens=tuple((11 * i + 3 * n) % vocabulary for i in range(n))
        )
        for n in range(1, len(prompts) + 1)
    ]
    engine.weights.restore()
    found: dict[str, Any] = {"updated": hashes(engine), "logprobs": engine.logprobs(prompts, completions)}
    engine.weights.show_base()
    found |= {"shown": hashes(engine), "base_logprobs": engine.logprobs(prompts, completions)}
    found["distance"] = engine.weights.distance()
    engine.weights.restore()
    return found | {"unshown": hashes(engine), "logprobs_again": engine.logprobs(prompts, completions)}


def load_and_digest(engine: Engine) -> list[int]:
    """Replace theta by the base model's, and then by that of a snapshot of what it was; return both digests."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.h5"
        origin = {"generation": 1, "theta_digest": engine.weights.digest(), "run_uuid": "", "config": {}}
        write_snapshot(path, {name: tensor.clone() for name, tensor in engine.weights.tensors()}, origin)
        digests = []
        for source in (None, path):
            engine.weights.load(source)
            digests.append(engine.weights.digest())
        path.unlink()
        try:
            engine.weights.load(path)
            digests.append(0)
        except UserError:
            return digests
    return digests


def hashes(engine: Engine) -> dict[str, str]:
    return {name: digest_of(tensor) for name, tensor in engine.weights.live()}


def digest_of(tensor: torch.Tensor) -> str:
    bits = tensor.contiguous().view(torch.uint8 if tensor.dim() else torch.int32)
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()[:16]


def worker_environment(engine: Engine) -> list[list[str]]:
    """Return, for each vLLM worker, its process and the launcher's variables that it can see."""
    if not hasattr(engine, "_llm"):
        return []
    return [list(part) for part in engine._llm.collective_rpc(see_environment)]


def see_environment(worker: Any) -> list[str]:
    names = [key for key in os.environ if key.startswith(("PMI", "MPI_", "OMPI_", "SLURM", "HYDRA"))]
    return [str(os.getpid()), *sorted(names)]


def break_perturb() -> None:
    """Make the worker forget one kind of weight, as a hidden copy inside the engine would."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from esmpi.engines.vllm.worker import WorkerExtension

    call = WorkerExtension.esmpi_call

    def forgetful(self: Any, method: str, *arguments: Any) -> Any:
        if method == "perturb":
            seed, scale, only, *noise = arguments
            arguments = (seed, scale, [name for name in only or [] if "down_proj" not in name], *noise)
        return call(self, method, *arguments)

    WorkerExtension.esmpi_call = forgetful  # type: ignore[method-assign]


def decode_with_a_copy() -> None:
    """Let latent attention generate with copies of its matrix that are no parameters, as some of vLLM's kernels do."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm.model_executor.layers.attention.mla_attention import MLAAttention

    prepare = MLAAttention.process_weights_after_loading

    def copying(self: Any, *arguments: Any) -> None:
        prepare(self, *arguments)
        for name in ("W_UV", "W_UK_T"):
            copy = getattr(self, name).detach().clone()
            delattr(self, name)
            setattr(self, name, copy)

    MLAAttention.process_weights_after_loading = copying  # type: ignore[method-assign]


if __name__ == "__main__":
    print(json.dumps(find(json.loads(sys.argv[1]))))
