"""Measure waves: members of low-rank noise in one batch against one after another. The last line is one JSON object.

For each number of prompts two engines are opened, each in a process of its own. One evaluates members in waves, the
other has no adapters: it writes each member's noise into the weights and completes the prompts with them, and it then
completes the prompts of all members in one batch without any noise, which is what a wave cannot be faster than. All
complete the same prompts with the same number of new tokens, and the end of text does not end a completion.

    python tools/bench_waves.py models/SmolLM2-135M-Instruct --kind vllm --prompts 2 8 32
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

SIGMA = 1e-3


def main() -> None:
    """Run the benchmark, or, in a process of its own, one engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or esmpi:tiny_countdown")
    parser.add_argument("--kind", default="hf", choices=["hf", "vllm"], help="engine (default: %(default)s)")
    parser.add_argument("--prompts", type=int, nargs="+", default=[2, 8, 32], help="default: 2 8 32")
    parser.add_argument("--members", type=int, default=16, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=32, help="new tokens of a completion (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=1, help="of the noise (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s; their medians are shown")
    parser.add_argument("--dtype", default="float32", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--only", choices=["waves", "alone"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments)))
        return
    found = []
    for prompts in arguments.prompts:
        seconds: dict[str, float] = {}
        for only in ("alone", "waves"):
            command = [sys.executable, __file__, *sys.argv[1:], "--only", only, "--prompts", str(prompts)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            seconds |= json.loads(done.stdout.splitlines()[-1])
        completions = arguments.members * prompts
        row = {"prompts": prompts, "wave_size": min(arguments.members, int(seconds.pop("wave_size")))}
        row |= {f"{name}_s": round(value, 3) for name, value in seconds.items()}
        row["gain"] = round(seconds["alone"] / seconds["waves"], 2)
        row["of_bare_inference"] = round(seconds["batch"] / seconds["waves"], 2)
        print(
            f"{prompts:4d} prompts x {arguments.members} members: {completions / seconds['alone']:7.1f} completions/s "
            f"one by one, {completions / seconds['waves']:7.1f} in waves of {row['wave_size']} (x {row['gain']}), "
            f"{completions / seconds['batch']:7.1f} as one batch without noise"
        )
        found.append(row)
    print(json.dumps({key: value for key, value in vars(arguments).items() if key != "only"} | {"found": found}))


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Open an engine and return the seconds of all members' completions, one way or the other."""
    from esmpi.config.reader import parse_config
    from esmpi.engines import Request, Sampling, Waves, engine_config
    from esmpi.model.base_model import BaseModel
    from esmpi.model.find import fetch_model
    from esmpi.mpi.comm import Comm
    from esmpi.noise.format import Noise
    from esmpi.weights.model_weights import Perturbation

    [prompts] = arguments.prompts
    own = {"max_model_len": 256, "max_num_seqs": 512, "self_test": False} if arguments.kind == "vllm" else {}
    engine_keys = {"kind": arguments.kind, "num_threads": arguments.threads, **own}
    config = parse_config(
        {
            "run": {"name": "waves"},
            "model": {"path": arguments.model, "dtype": arguments.dtype},
            "engine": engine_keys | ({"wave_size": 1} if arguments.only == "alone" else {}),
            "es": {"generations": 1, "noise": "low_rank"},
            "task": {"name": "countdown"},
        }
    )
    base = BaseModel(fetch_model(arguments.model))
    noise = Noise(arguments.rank)
    waves = Waves(noise=noise, num_prompts=prompts, num_members=arguments.members)
    engine: Any = engine_config(config).open(config.model, base, Comm().place(), waves)
    without_end(engine, arguments.kind)
    text = "Once upon a time, number {}, there was a long list of animals, countries and colours, and they all"
    requests = [Request(prompt=text.format(i)) for i in range(prompts)]
    sampling = Sampling(max_tokens=arguments.tokens)
    members = [Perturbation(i + 1, SIGMA, noise) for i in range(arguments.members)]
    size = engine.wave_size(requests, sampling, noise)
    count = -(-len(members) // size)  # as static dispatch: waves whose sizes differ by at most one
    parts = [members[len(members) * i // count : len(members) * (i + 1) // count] for i in range(count)]

    def in_parts() -> int:
        tokens = 0
        for part in parts:
            engine.perturb(part)
            asked = [replace(request, member=i) for i in range(len(part)) for request in requests]
            tokens += sum(completion.num_tokens for completion in engine.generate(asked, sampling))
        return tokens

    def batch() -> int:
        return sum(completion.num_tokens for completion in engine.generate(requests * len(members), sampling))

    found = {arguments.only: seconds_of(in_parts, arguments)}
    if arguments.only == "alone":
        engine.weights.restore()
        return found | {"batch": seconds_of(batch, arguments)}
    return found | {"wave_size": size}


def seconds_of(work: Callable[[], int], arguments: argparse.Namespace) -> float:
    """Return the median seconds of some work, after a warm-up, that must make as many tokens as are asked for."""
    times = []
    for _ in range(arguments.rounds + 1):
        begin = time.perf_counter()
        tokens = work()
        times.append(time.perf_counter() - begin)
        assert tokens == arguments.members * arguments.prompts[0] * arguments.tokens, tokens
    return statistics.median(times[1:])


def without_end(engine: Any, kind: str) -> None:
    """Make an engine go on until it has all new tokens."""
    if kind == "hf":
        engine._ends = [-1]  # a token that no model makes
        return
    original = engine._vllm.SamplingParams
    engine._vllm.SamplingParams = lambda **keys: original(**keys, ignore_eos=True)


if __name__ == "__main__":
    main()
