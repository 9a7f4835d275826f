"""Evaluate theta on suites of held-out problems, shared out over the ranks."""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from esmpi.data.batch import in_parts
from esmpi.engines import Completion, Engine, Request, Sampling
from esmpi.es.fitness import pass_at_k
from esmpi.es.random_streams import stream_seed
from esmpi.record.evaluation import Evaluation
from esmpi.scoring import Scored
from esmpi.tasks import Example

if TYPE_CHECKING:
    from esmpi.config.sections import Config
    from esmpi.session import Setup

_LARGEST_RATIO = 500.0


_LEAST_BATCH = 32
"""Least number of prompts in a call, even where a generation has fewer: engines are slow with small batches."""


_COLUMNS = {field.name for field in fields(Evaluation)}


@dataclass(frozen=True)
class Completed:
    """Completions that were made in one call."""

    items: Sequence[tuple[int, int]]
    """For each the problem's number, and which of its completions this is."""
    prompts: Sequence[str]
    completions: Sequence[Completion]
    scored: "Future[Scored]"

    def samples(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Return what is recorded of each completion, once all are scored; `examples` are all problems."""
        rows = zip(self.items, self.prompts, self.completions, self.scored.result().scores, strict=True)
        samples = []
        for (index, k), prompt, completion, score in rows:
            said: dict[str, Any] = {"index": index, "sample": k, "example": examples[index], "prompt": prompt}
            said |= {"completion": completion.text, "tokens": completion.num_tokens, "truncated": completion.truncated}
            samples.append(said | asdict(score))
        return samples


def evaluate(setup: "Setup", suite: str, generation: int) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Collective. Complete and score a suite's problems with theta itself; return the result and every sample.

    Ranks take whole batches, so a prompt has the same neighbours however many ranks there are.
    """
    started = time.perf_counter()
    config, comm = setup.config, setup.comm
    examples = setup.problems.suites[suite]
    setup.engine.weights.restore()
    mine = [
        _complete(setup, suite, generation, items)
        for number, items in enumerate(calls(setup.config, len(examples)))
        if number % comm.size == comm.rank
    ]
    divergence = _divergence(setup.engine, mine) if config.eval.divergence else []
    samples = [sample for batch in mine for sample in batch.samples(examples)]
    num_failed = sum(batch.scored.result().num_failed for batch in mine)
    gathered = comm.allgather_object([samples, num_failed, divergence])
    samples = sorted(
        (sample for part in gathered for sample in part[0]), key=lambda sample: (sample["index"], sample["sample"])
    )
    figures: dict[str, float] = {}
    if config.eval.num_samples > 1:
        figures |= _pass_at([sample["correct"] for sample in samples], config.eval.num_samples)
    if config.eval.divergence:
        terms = [term for part in gathered for term in part[2]]
        figures["kl_per_token"] = math.fsum(terms) / max(1, len(terms))
        figures["theta_distance"] = setup.engine.weights.distance()
    num_failed = sum(part[1] for part in gathered)
    return evaluation_of(samples, len(examples), num_failed, started, figures), samples


def evaluation_of(
    samples: Sequence[Mapping[str, Any]], num_problems: int, num_failed: int, started: float, figures: dict[str, float]
) -> Evaluation:
    """Return the result that samples make, in a fixed order; `started` is when that began, by `time.perf_counter`."""
    count = len(samples)
    return Evaluation(
        accuracy=sum(sample["correct"] for sample in samples) / count,
        reward_mean=math.fsum(sample["reward"] for sample in samples) / count,
        num_samples=count,
        num_problems=num_problems,
        num_truncated=sum(sample["truncated"] for sample in samples),
        tokens_mean=sum(sample["tokens"] for sample in samples) / count,
        tokens_max=max(sample["tokens"] for sample in samples),
        characters_mean=sum(len(sample["completion"]) for sample in samples) / count,
        num_failed=num_failed,
        num_unparsed=sum(not sample["parsed"] for sample in samples),
        seconds=time.perf_counter() - started,
        figures=_means(sample["figures"] for sample in samples) | figures,
    )


def most_at_once(config: "Config") -> int:
    """Return the most prompts that are completed in a call; each sample of a prompt counts."""
    return config.data.mini_batch_size or max(config.data.batch_size, _LEAST_BATCH)


def calls(config: "Config", num_problems: int) -> list[list[tuple[int, int]]]:
    """Return what is completed in each call: numbers of problems, each with the number of the sample."""
    items = [(index, k) for k in range(config.eval.num_samples) for index in range(num_problems)]
    return [list(part) for part in in_parts(items, most_at_once(config))]


def sampling_of(config: "Config") -> Sampling:
    """Return how completions are sampled in evaluations."""
    return Sampling.at(config.eval.temperature, config.sampling)


def make_requests(setup: "Setup", suite: str, items: Sequence[tuple[int, int]], seed: int) -> list[Request]:
    """Return the requests of a call, `items` as `calls` gives them; `seed` is that of the first problem.

    Each has a seed of its own, so that mini-batches change nothing.
    """
    examples = setup.problems.suites[suite]
    seed += items[0][1] * len(examples) + items[0][0]
    return [
        Request(prompt=setup.prompt(examples[index]), seed=(seed + i) % 2**63) for i, (index, _) in enumerate(items)
    ]


def _complete(setup: "Setup", suite: str, generation: int, items: list[tuple[int, int]]) -> Completed:
    config, examples = setup.config, setup.problems.suites[suite]
    seed = stream_seed(config.run.seed, f"evaluation of {suite}", generation)
    requests = make_requests(setup, suite, items, seed)
    completions = setup.engine.generate(requests, sampling_of(config))
    scored = setup.scorer.submit(
        [completion.text for completion in completions], [examples[index] for index, _ in items]
    )
    return Completed(items, [request.prompt for request in requests], completions, scored)


def _divergence(engine: Engine, batches: Sequence[Completed]) -> list[float]:
    """Return an estimate of the KL divergence from the base model for each new token.

    It is q / p - log(q / p) - 1, with p the tuned model's and q the base model's probability of the token (Schulman,
    "Approximating KL divergence", 2020): never negative, and unbiased for tokens that the tuned model sampled.
    """
    tuned = [engine.logprobs(batch.prompts, batch.completions) for batch in batches]
    engine.weights.show_base()
    base = [engine.logprobs(batch.prompts, batch.completions) for batch in batches]
    engine.weights.restore()
    ratios = [
        base_logprob - tuned_logprob
        for base_batch, tuned_batch in zip(base, tuned, strict=True)
        for base_tokens, tuned_tokens in zip(base_batch, tuned_batch, strict=True)
        for base_logprob, tuned_logprob in zip(base_tokens, tuned_tokens, strict=True)
    ]
    # a token that the tuned model all but rules out gives a huge term, but must not overflow
    return [math.expm1(min(ratio, _LARGEST_RATIO)) - ratio for ratio in ratios]


def _means(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    columns: dict[str, list[float]] = defaultdict(list)
    for each in figures:
        for name, value in each.items():
            # a slash would make a group of the run file's column
            column = re.sub(r"[^\w.@-]", "_", f"{name}_mean")
            columns[f"task_{column}" if column in _COLUMNS else column].append(value)
    # samples come in one order whatever the layout; unlike `sum`, `fsum` raises for infinities
    return {name: sum(column) / len(column) for name, column in columns.items()}


def _pass_at(correct: Sequence[bool], n: int) -> dict[str, float]:
    """Return pass@k for k = 1, 2, 4, ... and n; `correct` has n neighbours for each problem."""
    right = [sum(correct[start : start + n]) for start in range(0, len(correct), n)]
    powers = [2**i for i in range(n.bit_length()) if 2**i < n]
    return {f"pass_at_{k}": math.fsum(pass_at_k(n, c, k) for c in right) / len(right) for k in [*powers, n]}
