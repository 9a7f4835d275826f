"""Try small models of many architectures on both engines: python tools/try_architectures.py [NAME ...] [--hf-only].

For each, a member's live weights are compared with cast(theta + sigma * eps), computed from the checkpoint here. Texts
must follow the weights and come back with theta, and an exported model must say in transformers what theta says. The
engines must have the same digests and texts. The table goes into docs/engines.md.
"""

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import MODELS, make

from esmpi.config.reader import parse_config
from esmpi.engines import Completion, Engine, Request, Sampling, Waves, engine_config
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel, matrix_shape
from esmpi.mpi.comm import Place
from esmpi.noise import member_seed, tensor_key
from esmpi.noise.format import Noise
from esmpi.store.export import export
from esmpi.weights.model_weights import Perturbation

Trial = dict[str, Any]

SEED, SCALE = member_seed(7, 1, 2), 0.05
PROMPTS = ["3+4=", "One, two, three, and then", "<think>", "7"]
_VLLM = {"max_model_len": 128, "max_num_seqs": 16, "enforce_eager": True}


def trial(kind: str, folder: str, rank: int = 1) -> Trial:
    """Return what was found of an engine with a model; with `rank`, waves of low-rank noise are tried, too."""
    try:
        return _trial(kind, folder, rank)
    except UserError as error:
        return {"refused": str(error)}


def _trial(kind: str, folder: str, rank: int) -> Trial:
    keys = _VLLM if kind == "vllm" else {}
    raw: dict[str, Any] = {"run": {"name": "trial"}, "es": {"generations": 1}, "task": {"name": "countdown"}}
    raw |= {"model": {"path": folder, "dtype": "float32"}, "engine": {"kind": kind, "num_threads": 1, **keys}}
    config, base = parse_config(raw), BaseModel(Path(folder))
    waves = Waves(noise=Noise(rank), num_prompts=len(PROMPTS), num_members=3) if rank else None
    place = Place(host="here", local_rank=0, num_local_ranks=1, cores=tuple(sorted(os.sched_getaffinity(0)))[:1])
    said: list[str] = []
    with _listening(said):
        engine = engine_config(config).open(config.model, base, place, waves)
        requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(PROMPTS)]
        sampling = Sampling(max_tokens=10)
        size = 1 if waves is None else engine.wave_size(requests, sampling, waves.noise)
    one_by_one = next((line.split(": ", 1)[1] for line in said if "one at a time: " in line), None)
    found: Trial = {"num_tensors": len(engine.weights.names), "digest": engine.weights.digest()}

    def say() -> list[list[int]]:
        return [list(completion.tokens) for completion in engine.generate(requests, sampling)]

    def judge() -> list[list[float]]:
        given = Completion(text="", num_tokens=4, truncated=False, tokens=(5, 9, 100, 20))
        return engine.logprobs(PROMPTS, [given] * len(PROMPTS))

    found["theta"], found["theta_logprobs"] = say(), judge()
    engine.weights.perturb([Perturbation(SEED, SCALE)])
    found["member"], found["member_logprobs"] = say(), judge()
    found["wrong"] = [name for name, live in engine.weights.live() if not torch.equal(live, _expected(base, name))]
    engine.weights.restore()
    found["theta_again"] = say()
    if waves is not None:
        found["waves"] = (
            f"one at a time, for {one_by_one or 'experts'}" if size == 1 else _compare_waves(engine, waves, requests)
        )
    seeds, coefficients = np.array([SEED, SEED + 1], np.uint64), np.array([0.02, -0.01], np.float32)
    engine.weights.update(seeds, coefficients)
    engine.weights.restore()
    return found | {
        "updated_digest": engine.weights.digest(),
        "updated": say(),
        "export": _export(engine, base, requests[1], kind),
    }


def _expected(base: BaseModel, name: str) -> torch.Tensor:
    """Return what a tensor of the member must be, from the checkpoint alone."""
    from esmpi.noise import cpu  # loads numba, over which vLLM's start trips

    shape = base.tensors[name].shape
    rows, columns = matrix_shape(shape)
    theta = base.read(name, (0, rows), (0, columns)).numpy().reshape(1, -1)
    made = np.empty_like(theta)
    cpu.perturb(made, theta, 0, 0, tensor_key(name), SEED, SCALE)
    return torch.from_numpy(made).view(shape)


def _compare_waves(engine: Engine, waves: Waves, requests: list[Request]) -> str:
    """Return whether members in one batch say what each says with its noise written into the weights."""
    sampling = Sampling(max_tokens=5)
    members = [Perturbation(member_seed(7, 1, i), 0.05 * (-1) ** i, waves.noise) for i in range(3)]

    def tokens(asked: list[Request]) -> list[tuple[int, ...]]:
        return [completion.tokens for completion in engine.generate(asked, sampling)]

    engine.perturb(members)
    try:
        together = tokens([replace(request, member=i) for i in range(3) for request in requests])
    except UserError as error:
        return f"refused: {error}"
    finally:
        engine.perturb([Perturbation(SEED, SCALE)])
    written = []
    for member in members:
        engine.weights.perturb([member])
        written += tokens(requests)
    engine.weights.restore()
    same = sum(one == other for one, other in zip(together, written, strict=True))
    return "yes" if same == len(written) else f"{same} of {len(written)} texts are the same"


def _export(engine: Engine, base: BaseModel, request: Request, kind: str) -> str:
    """Return whether transformers load an export of theta with the values that theta has."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "export"
        export(base, engine.weights.by_name, engine.weights.aliases, out, "float32", {"digest": 0})
        exported = BaseModel(out)
        for name, theta in engine.weights.tensors():
            rows, columns = matrix_shape(tuple(theta.shape))
            if not torch.equal(exported.read(name, (0, rows), (0, columns)), theta.view(rows, columns)):
                return f"{name} has other values"
        if kind == "vllm":  # which may have changed transformers' classes in this process
            return "yes"
        loader = AutoModelForImageTextToText if "vision_config" in base.config else AutoModelForCausalLM
        model, told = loader.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        if told["missing_keys"] or told["mismatched_keys"]:
            return f"misses {sorted(told['missing_keys'])}"
        asked = engine.tokenizer(request.prompt, return_tensors="pt")["input_ids"]
        logits = model.eval()(asked).logits[0, -1]
    [said] = engine.generate([request], Sampling(max_tokens=1))
    return "yes" if said.tokens[0] == int(logits.argmax()) else "says something else"


class _listening:  # noqa: N801 (used as a function)
    """Collect what esmpi logs as warnings."""

    def __init__(self, said: list[str]):
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> None:
        logging.getLogger("esmpi").addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("esmpi").removeHandler(self._handler)


def verdict(found: Trial) -> str:
    """Return what is wrong with a trial in a few words, "works" if nothing is."""
    if "refused" in found:
        return f"refused: {found['refused']}"
    faults = {
        f"live weights differ: {', '.join(found['wrong'][:2])}": bool(found["wrong"]),
        "outputs do not follow": found["theta_logprobs"] == found["member_logprobs"],
        "theta does not come back": found["theta"] != found["theta_again"],
        "the update does not move theta": found["digest"] == found["updated_digest"],
        f"export: {found['export']}": found["export"] != "yes",
    }
    return "; ".join(fault for fault, there in faults.items() if there) or "works"


def compared(hf: Trial, vllm: Trial) -> str:
    """Return in what the engines differ, empty if in nothing."""
    keys = ("digest", "updated_digest", "theta", "member", "updated")
    if "refused" in hf or "refused" in vllm:
        return ""
    return ", ".join(key for key in keys if hf[key] != vllm[key])


def apart(work: Callable[[], Trial]) -> Trial:
    """Return what a function returns in a process of its own."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["vllm.entrypoints.llm", "vllm.v1.worker.cpu_worker", "transformers"])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        process = forks.Process(target=_write, args=(work, str(file)))
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
        return dict(json.loads(file.read_text())) if file.exists() else {"refused": "the process died"}


def _write(work: Callable[[], Trial], file: str) -> None:
    os.dup2(2, 1)  # the table has the output for itself
    Path(file).write_text(json.dumps(work()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*MODELS], metavar="NAME")
    parser.add_argument("--hf-only", action="store_true")
    parser.add_argument("--waves", type=int, default=1, metavar="RANK", help="rank of the noise of waves, 0 for none")
    asked = parser.parse_args()
    for name in asked.names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            path = make(name, Path(folder) / "model")
            hf = apart(partial(trial, "hf", path, asked.waves))
            vllm = {"refused": "not tried"} if asked.hf_only else apart(partial(trial, "vllm", path, asked.waves))
            if "engine.wave_size=1" in vllm.get("refused", ""):
                waves = f"refused: {vllm['refused']}"
                vllm = apart(partial(trial, "vllm", path, 0)) | {"waves": waves}
        cells = [name, verdict(hf), hf.get("waves", ""), verdict(vllm), vllm.get("waves", ""), compared(hf, vllm)]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
