"""Forecast the seconds of a generation and the GPU-hours of a run on GPUs, by arithmetic.

    python tools/forecast.py                     # the paper's runs on H100s, 1 to 1,000 GPUs
    mpiexec -n 2 python tools/forecast.py --check     # the same model of time against a real run on this machine

A step of decoding makes one token for every completion that is not finished. It takes the larger of two times, and a
constant for the host: reading the live weights and the cache of all completions, and computing 2 operations per weight
and completion. The peaks are published ones (NVIDIA's data sheets), of which programs reach `REACHED`; perturbing and
updating take what reading the compiled kernels leads us to expect (docs/gpu.md). Lengths of completions are drawn from
a log-normal distribution with the given mean, cut off at `max_tokens`; each member has a mean of its own, a little
around it. The cache has what theta and the live weights leave of 90 % of a GPU's memory, and so many completions are
decoded at once. A rank is one GPU. Ways to share out the members: `static` and `dynamic` (es.dispatch), one member
after another; and with low-rank noise `waves`, of so many members that they have --wave completions, each wave after
the other, and `batched`: all members of a rank in one batch, as vLLM has them if there are slots for all.

The check fits the two constants of a step (per step, per completion in it) to half of the members of a real run, then
forecasts the other half and the generation. The last line is one JSON object.
"""

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

Lengths = np.ndarray
"""(completions,) int64: new tokens of each completion of a batch."""


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU."""

    name: str
    bytes_per_s: float
    flops: float
    """Dense bfloat16 operations a second."""
    memory: float
    """Bytes."""
    most_at_once: int
    """vLLM's default of `max_num_seqs` on it."""


GPUS = {
    "A100": Gpu("A100 80 GB", 2.04e12, 312e12, 85e9, 256),
    "H100": Gpu("H100 SXM", 3.35e12, 989e12, 85e9, 1024),
    "H200": Gpu("H200 SXM", 4.8e12, 989e12, 150e9, 1024),
}
REACHED = 0.6
"""Share of a peak that decoding reaches."""
HOST_S = 3e-3
"""Seconds of a step that no GPU is needed for."""
PERTURB_S, UPDATE_S, DIGEST_S = 3e-12, 1.5e-12, 2e-12
"""Seconds per weight; an update also per member."""
FIXED_S = 0.02
"""Seconds of a generation for the exchange, the commit and starting the first member."""


@dataclass(frozen=True)
class Run:
    """A run of arXiv 2509.24372, or of a similar size."""

    name: str
    weights: float
    layers: int
    kv_width: int
    """Elements of a key, or of a value, of a layer and token."""
    members: int
    prompts: int
    prompt_tokens: int
    mean_tokens: float
    max_tokens: int
    generations: int


RUNS = (
    Run("Countdown, Qwen2.5-1.5B", 1.54e9, 28, 256, 30, 200, 150, 250, 1024, 500),
    Run("Countdown, Qwen2.5-7B", 7.62e9, 28, 512, 30, 200, 150, 250, 1024, 500),
    Run("math, Qwen2.5-7B", 7.62e9, 28, 512, 30, 1024, 200, 800, 3000, 336),
    Run("conciseness, Qwen2.5-7B", 7.62e9, 28, 512, 30, 2, 30, 30, 100, 1000),
    Run("Countdown with 2,000 members, 1.5B", 1.54e9, 28, 256, 2000, 16, 150, 250, 1024, 500),
)


def main() -> None:
    """Print the forecast, or check the model of time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H100", help="default: %(default)s")
    parser.add_argument("--ranks", default="1,8,64,1000", help="numbers of GPUs (default: %(default)s)")
    parser.add_argument("--wave", type=int, default=256, help="completions of a wave (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="compare with a real run on the CPU")
    arguments = parser.parse_args()
    if arguments.check:
        check()
        return
    found = []
    ways = "".join(f"{way:>10s}" for way in ("static", "dynamic", "waves", "batched"))
    print(f"{'run':36s} {'GPUs':>5s}{ways}   GPU-hours: dynamic   batched")
    for run in RUNS:
        for ranks in map(int, arguments.ranks.split(",")):
            seconds = generation(run, GPUS[arguments.gpu], ranks, arguments.seed, arguments.wave)
            hours = {way: value * run.generations * ranks / 3600 for way, value in seconds.items()}
            columns = "".join(f"{value:8.1f} s" for value in seconds.values())
            print(f"{run.name:36s} {ranks:5d}{columns} {hours['dynamic']:20,.1f} {hours['batched']:9,.1f}")
            found.append({"run": run.name, "ranks": ranks} | {way: round(value, 3) for way, value in seconds.items()})
    print(json.dumps({"gpu": arguments.gpu, "seconds": found}))


def generation(run: Run, gpu: Gpu, ranks: int, seed: int, wave: int = 256) -> dict[str, float]:
    """Return the seconds of a generation for each way to share out the members; `wave` is in completions."""
    lengths = draw(run, np.random.default_rng(seed))
    token_bytes = 4 * run.layers * run.kv_width
    # theta and the live weights are on the GPU, and the rest of 90 % of its memory is the cache
    room = 0.9 * gpu.memory - 6 * run.weights
    most = int(max(1, min(gpu.most_at_once, room / token_bytes / (run.prompt_tokens + run.mean_tokens))))

    def step(active: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        cache = (active * run.prompt_tokens + tokens) * token_bytes
        reading = (2 * run.weights + cache) / (REACHED * gpu.bytes_per_s)
        computing = 2 * run.weights * active / (REACHED * gpu.flops)
        return np.maximum(reading, computing) + HOST_S

    def batch(of: Sequence[Lengths]) -> float:
        prefill = 2 * run.weights * run.prompt_tokens * sum(map(len, of)) / (REACHED * gpu.flops)
        return prefill + decoding(np.concatenate(of), step, most) + run.weights * PERTURB_S

    members = [batch([one]) for one in lengths]
    shares = [range(run.members * rank // ranks, run.members * (rank + 1) // ranks) for rank in range(ranks)]
    size = max(1, wave // run.prompts)

    def in_waves(share: range) -> float:
        waves = [share[start : start + size] for start in range(0, len(share), size)]
        return sum(batch([lengths[i] for i in one]) for one in waves)

    rest = run.weights * (UPDATE_S * run.members + DIGEST_S) + FIXED_S
    return {
        "static": max(sum(members[i] for i in share) for share in shares) + rest,
        "dynamic": listed(members, ranks) + rest,
        "waves": max(map(in_waves, shares)) + rest,
        "batched": max(batch([lengths[i] for i in share]) if share else 0.0 for share in shares) + rest,
    }


def draw(run: Run, rng: np.random.Generator) -> list[Lengths]:
    """Return the lengths of each member's completions."""
    means = run.mean_tokens * rng.lognormal(-0.02, 0.2, run.members)
    return [
        np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6, run.prompts), 1, run.max_tokens).astype(np.int64)
        for mean in means
    ]


def decoding(lengths: Lengths, step: Callable[[np.ndarray, np.ndarray], np.ndarray], most: int = 2**31) -> float:
    """Return the seconds of decoding a batch, of which at most `most` are decoded at once.

    `step` takes how many completions each step decodes, and how many tokens they have so far, all together.
    """
    free = [0] * min(most, len(lengths))
    begins = np.array([heapq.heapreplace(free, free[0] + int(length)) for length in lengths])
    ends = begins + lengths
    steps = np.arange(ends.max())
    begun, ended = (np.searchsorted(np.sort(edges), steps, side="right") for edges in (begins, ends))
    # of those that are decoded at a step, the sum of the steps since each began
    begin_sums = (
        np.append(0, np.cumsum(np.sort(begins)))[begun] - np.append(0, np.cumsum(begins[np.argsort(ends)]))[ended]
    )
    active = begun - ended
    return float(step(active, active * steps - begin_sums).sum())


def listed(seconds: Sequence[float], ranks: int) -> float:
    """Return when the last is done if whoever is free takes the next."""
    free = [0.0] * ranks
    for one in seconds:
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def check() -> None:
    """Collective. Train two generations of the quickstart and compare their seconds with the model's."""
    from esmpi.config.reader import load_config
    from esmpi.mpi.comm import Comm
    from esmpi.setup import open_session, start_logging
    from esmpi.stop.signals import StopFlag
    from esmpi.stopwatch import Stopwatch
    from esmpi.train import run_generation

    comm = Comm()
    with ExitStack() as stack:
        folder = comm.allgather_object(stack.enter_context(tempfile.TemporaryDirectory()))[0]
        overrides = [f"run.output_dir={folder}", "run.export_dtype=none", "data.num_eval=2"]
        config = load_config("configs/quickstart.yaml", overrides)
        start_logging("warning", comm)
        session = open_session(config, comm, stack, StopFlag())
        recorded: list[tuple[Lengths, float]] = []
        generate: Any = session.engine.generate

        def timed(requests: Any, sampling: Any) -> Any:
            began = time.perf_counter()
            made = generate(requests, sampling)
            recorded.append((np.array([one.num_tokens for one in made]), time.perf_counter() - began))
            return made

        session.engine.generate = timed  # type: ignore[method-assign]
        run_generation(session, Stopwatch())  # which warms up
        recorded.clear()
        comm.barrier()
        began = time.perf_counter()
        run_generation(session, Stopwatch())
        seconds = time.perf_counter() - began
        everyone = comm.allgather_object([[lengths.tolist(), took] for lengths, took in recorded])
        rows = [] if session.run is None else session.run.generations
        perturbing = float(rows[-1]["seconds_perturb"]) if rows else 0.0
    if not comm.is_root:
        return
    pairs = [(np.array(lengths), took) for rank in everyone for lengths, took in rank]
    fitted, rest = pairs[::2], pairs[1::2]
    sums = np.array([[lengths.max(), lengths.sum()] for lengths, _ in fitted], float)
    per_step, per_token = np.linalg.lstsq(sums, np.array([took for _, took in fitted]), rcond=None)[0]

    def of(lengths: Lengths) -> float:
        return decoding(lengths, lambda active, _: per_step + per_token * active)

    forecast, took = sum(of(lengths) for lengths, _ in rest), sum(took for _, took in rest)
    whole = max(sum(of(np.array(lengths)) for lengths, _ in rank) for rank in everyone) + perturbing
    found = {"seconds_members": took, "forecast_members": forecast, "seconds_generation": seconds}
    found |= {"forecast_generation": whole, "ranks": comm.size}
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
