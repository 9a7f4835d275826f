"""Evaluate theta on held-out problems, shared out over the ranks."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

from esmpi.comm import Comm
from esmpi.config import Config
from esmpi.engines import Engine, Sampling
from esmpi.scoring import Scorer
from esmpi.streams import stream_seed
from esmpi.tasks import Example, Task


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result of a suite. Reward and accuracy are two things, and both are given."""

    accuracy: float
    """Share of completions whose answer is right."""
    reward_mean: float
    num_samples: int
    num_truncated: int
    """Completions that `sampling.max_tokens` cut off."""
    tokens_mean: float
    """New tokens of a completion."""
    num_failed: int
    """Completions whose reward could not be computed."""
    seconds: float


def evaluate(
    config: Config,
    comm: Comm,
    engine: Engine,
    task: Task,
    scorer: Scorer,
    examples: list[Example],
    generation: int,
) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Collective. Complete and score the examples with theta itself; return the result and every sample.

    Ranks take whole batches, so a prompt has the same neighbours however many ranks there are.
    """
    started = time.perf_counter()
    engine.restore()
    size = config.data.mini_batch_size or config.data.batch_size
    batches = [examples[start : start + size] for start in range(0, len(examples), size)]
    samples: list[dict[str, Any]] = []
    failures = 0
    for number in range(comm.rank, len(batches), comm.size):
        sampling = Sampling(
            max_tokens=config.sampling.max_tokens,
            temperature=config.eval.temperature,
            top_p=config.sampling.top_p if config.eval.temperature > 0 else 1.0,
            seed=stream_seed(config.run.seed, "evaluation", generation, number),
        )
        prompts = [task.prompt(example) for example in batches[number]]
        completions = engine.generate(prompts, sampling)
        scored = scorer.submit(completions, batches[number]).result()
        failures += scored.failures
        for i, (completion, score) in enumerate(zip(completions, scored.scores, strict=True)):
            example = batches[number][i]
            samples.append(
                {"index": number * size + i, "example": example, "prompt": prompts[i]}
                | {
                    "completion": completion.text,
                    "tokens": completion.num_tokens,
                    "truncated": completion.truncated,
                }
                | asdict(score)
            )
    gathered = comm.allgather_object([samples, failures])
    samples = sorted((sample for part, _ in gathered for sample in part), key=lambda sample: sample["index"])
    count = len(samples)
    result = Evaluation(
        accuracy=sum(sample["correct"] for sample in samples) / count,
        reward_mean=math.fsum(sample["reward"] for sample in samples) / count,
        num_samples=count,
        num_truncated=sum(sample["truncated"] for sample in samples),
        tokens_mean=sum(sample["tokens"] for sample in samples) / count,
        num_failed=sum(part[1] for part in gathered),
        seconds=time.perf_counter() - started,
    )
    return result, samples
