"""Sample in many ways with an engine, and compare parts of vLLM with those of engine hf, in a process of its own."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from esmpi.config.reader import parse_config
from esmpi.engines import Request, Sampling, engine_config
from esmpi.engines.hf.processors import processors
from esmpi.engines.hf.sampler import Sampler
from esmpi.engines.hf.stop import StopStrings
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import fetch_model
from esmpi.mpi.comm import Comm
from esmpi.noise import member_seed
from esmpi.weights.model_weights import Perturbation

NUM_TEXTS = 400


def generate(asked: dict[str, Any], file: str) -> None:
    """Write the completions of each sampling, with theta and with perturbed weights, into a file, as JSON.

    `asked` has `path`, `engine`, `prompts` and `samplings`, keys of `Sampling`.
    """
    config = parse_config(
        {
            "run": {"name": "sampling"},
            "model": {"path": asked["path"], "dtype": "float32"},
            "engine": asked["engine"],
            "es": {"generations": 1},
            "task": {"name": "countdown"},
        }
    )
    engine = engine_config(config).open(config.model, BaseModel(fetch_model(config.model.path)), Comm().place())
    requests = [Request(prompt=prompt, seed=i) for i, prompt in enumerate(asked["prompts"])]
    found = []
    for scale in (0.0, 0.02):
        engine.weights.perturb([Perturbation(member_seed(1, 2, 3), scale)])
        for keys in asked["samplings"]:
            texts = {key: tuple(value) for key, value in keys.items() if isinstance(value, list)}
            sampling = Sampling(**keys | texts)
            engine.check(sampling)
            found.append([asdict(completion) for completion in engine.generate(requests, sampling)])
    said: dict[str, Any] = {"completions": found, "refused": ""}
    try:
        engine.check(Sampling(max_tokens=3, temperature=50))
    except UserError as error:
        said["refused"] = str(error)
    if config.engine.kind == "vllm":
        said |= {"stops": [stops(engine.tokenizer), stops(bytes_tokenizer())]}
        said |= {"kept": kept(), "penalties": penalties()}
    Path(file).write_text(json.dumps(said))


def bytes_tokenizer() -> Any:
    """Return a tokenizer with tokens for bytes, as Llama 2's and Gemma's.

    When bytes turn out to be no character, it takes back a character that was text already.
    """
    vocabulary = ["<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdé▁"]
    model = models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[], byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def stops(tokenizer: Any) -> list[int]:
    """End random texts at random stop strings, as vLLM's detokenizer does and as engine hf does.

    Returns how many ended, and how many of these were different.
    """
    from vllm import SamplingParams
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer

    random = np.random.default_rng(5)
    prompt, end, count = tokenizer.encode("The answer is: "), tokenizer.eos_token_id, 40
    characters = tokenizer.encode("aé€😀 \u0301", add_special_tokens=False)
    num_ended, different = 0, 0
    for number in range(NUM_TEXTS):
        # bytes of no character, whole characters, and special tokens, which are no text
        tokens = random.integers(0, len(tokenizer), count).tolist()
        if number % 2:
            tokens[10 : 10 + len(characters)] = characters
            tokens = tokens[:count]
        tokens = [token for token in tokens if token != end]
        text = tokenizer.decode(tokens)
        starts = random.integers(0, max(1, len(text) - 6), 3)
        stop = tuple(text[start : start + size] for start, size in zip(starts, (1, 3, 6), strict=True))
        stop = tuple(one for one in stop if one) or ("a",)
        min_tokens = int(random.choice([0, 5]))
        asked = SamplingParams(max_tokens=count, stop=list(stop), min_tokens=min_tokens)
        request = SimpleNamespace(request_id="0", sampling_params=asked, prompt_token_ids=prompt)
        theirs = IncrementalDetokenizer.from_new_request(tokenizer, request)
        expected = None
        for token in tokens:
            if reason := theirs.update([token], False):
                expected = theirs.num_output_tokens(), theirs.get_next_output_text(True, False), reason
                break
        for include_stop in (False, True):
            sampling = Sampling(max_tokens=count, stop=stop, min_tokens=min_tokens, include_stop=include_stop)
            ours = StopStrings(tokenizer, sampling, [end], 1, len(prompt))
            ids = torch.tensor([[*prompt, *tokens]])
            for length in range(len(prompt) + 1, ids.shape[1] + 1):
                if ours(ids[:, :length], torch.zeros(0))[0]:
                    break
            whole = None if expected is None else (expected[0], expected[1] + expected[2] * include_stop)
            different += ours.stopped.get(0) != whole
            num_ended += bool(ours.stopped)
    return [num_ended, different]


def kept() -> int:
    """Return for how many of many distributions the tokens that may be sampled are not those of vLLM."""
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    random = np.random.default_rng(6)
    num_draws, different = 2000, 0
    for _ in range(100):
        scores = torch.from_numpy(random.normal(0, 2, 50).astype(np.float32)).bfloat16().float()  # with ties
        sampling = Sampling(
            max_tokens=1,
            temperature=float(random.choice([0.5, 1.0, 1.5])),
            top_p=float(random.choice([0.5, 0.9, 1.0])),
            top_k=int(random.choice([0, 1, 4, 20])),
            min_p=float(random.choice([0.0, 0.05, 0.3])),
        )
        theirs = (scores / sampling.temperature)[None]
        min_p = object.__new__(MinPLogitsProcessor)
        min_p.min_p_count, min_p.min_p = 1, torch.tensor([[sampling.min_p]])
        k = torch.tensor([sampling.top_k or 50])
        theirs = apply_top_k_top_p_pytorch(min_p.apply(theirs), k, torch.tensor([sampling.top_p]))[0]
        chances = theirs.softmax(-1)
        sampler = Sampler([Request(prompt="")] * num_draws, sampling, 1)
        sampler._draws = ((torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws)[:, None]
        chosen = sampler(torch.zeros(num_draws, 1, dtype=torch.int64), scores.repeat(num_draws, 1)).argmax(-1)
        shares = torch.bincount(chosen, minlength=50) / num_draws
        # of tokens with the same score, another one may be the last that top_p keeps
        same = torch.allclose(shares.sort().values, chances.sort().values, atol=1.01 / num_draws)
        different += not same or not set(scores[shares > 0].tolist()) <= set(scores[chances > 0].tolist())
    return different


def penalties() -> float:
    """Return the largest difference of penalized scores from vLLM's."""
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    random = np.random.default_rng(7)
    largest = 0.0
    for num_new in (0, 1, 7, 30):
        prompts = torch.from_numpy(random.integers(0, 30, (3, 9)))
        mask = torch.ones(3, 9, dtype=torch.int64)
        mask[0, :4] = mask[2, :8] = 0
        new = random.integers(0, 30, (3, num_new))
        scores = torch.from_numpy(random.normal(0, 3, (3, 50)).astype(np.float32))
        for repetition, presence, frequency in ((1.3, 0.0, 0.0), (0.8, 1.5, -0.5), (1.0, -2.0, 2.0)):
            sampling = Sampling(
                max_tokens=99, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
            )
            [*found] = processors([], sampling, mask, [1], None)
            ours, ids = scores, torch.cat([prompts, torch.from_numpy(new)], 1)
            for processor in found:
                ours = processor(ids, ours)
            theirs = apply_all_penalties(
                scores.clone(),
                prompts.masked_fill(mask == 0, 50),  # their padding
                *(torch.full((3,), value) for value in (presence, frequency, repetition)),
                new.tolist(),
            )
            largest = max(largest, float((ours - theirs).abs().max()))
    return largest
