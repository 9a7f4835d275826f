"""Evaluate theta on suites of held-out problems, shared out over the ranks."""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from esmpi.data.batch import in_parts
from esmpi.engines import Completion, Engine, Request, Sampling
from esmpi.episodes import first_prompts, spoken
from esmpi.errors import SharedError
from esmpi.es.fitness import pass_at_k
from esmpi.es.random_streams import stream_seed
from esmpi.progress import Progress
from esmpi.record.evaluation import Evaluation
from esmpi.scoring import Scored
from esmpi.tasks import Example, Score

if TYPE_CHECKING:
    from esmpi.config.sections import Config
    from esmpi.session import Setup

_LARGEST_RATIO = 500.0


_LEAST_BATCH = 32
"""Least number of prompts in a call, even where a generation has fewer: engines are slow with small batches."""


_COLUMNS = {column.name for column in fields(Evaluation)}


Item = tuple[int, int]
"""A completion of a suite: the problem's number, and which of its completions this is."""


@dataclass(frozen=True)
class Completed:
    """Completions that were made in one call."""

    items: Sequence[Item]
    prompts: Sequence[str]
    completions: Sequence[Completion]

    def made(self) -> Iterable[tuple[Item, Completion]]:
        """Return each completion by what it is of."""
        return zip(self.items, self.completions, strict=True)

    def samples(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """Return what is recorded of each completion, without its score; `examples` are all problems."""
        samples = []
        for (index, k), prompt, completion in zip(self.items, self.prompts, self.completions, strict=True):
            said: dict[str, Any] = {"index": index, "sample": k, "example": examples[index], "prompt": prompt}
            said |= {"completion": completion.text, "tokens": completion.num_tokens, "truncated": completion.truncated}
            samples.append(said)
        return samples


@dataclass
class Marking:
    """The scoring of a suite's completions, or of this rank's part of them."""

    setup: "Setup"
    suite: str
    generation: int
    """Of theta."""
    parts: "list[tuple[Sequence[Item], Future[Scored]]]" = field(default_factory=list)

    @property
    def at_once(self) -> bool:
        """Whether each completion is scored by itself, so that scoring can begin when the first ones are there."""
        return self.setup.task.scope == "completion"

    def begin(self, items: Sequence[Item], completions: Sequence[Completion]) -> None:
        """Begin to score completions."""
        examples = self.setup.problems.suites[self.suite]
        its = [examples[index] for index, _ in items]
        num_samples = self.setup.config.eval.num_samples
        self.parts.append((items, self.setup.submit(completions, its, num_samples, self.generation)))

    def begin_units(self, made: Mapping[Item, Completion], rank: int = 0, size: int = 1) -> None:
        """Begin to score this rank's share of all completions, for rewards that compare them.

        They see those of `data.batch_size` problems, as in a generation. Neither ranks nor calls change that.
        """
        config = self.setup.config
        problems = range(len(self.setup.problems.suites[self.suite]))
        for number, part in enumerate(in_parts(problems, config.data.batch_size)):
            if number % size == rank:
                items = [(index, k) for index in part for k in range(config.eval.num_samples)]
                self.begin(items, [made[item] for item in items])

    def marks(self) -> dict[Item, tuple[Score, str | None]]:
        """Return the score and the answer of each completion, once all are scored."""
        found: dict[Item, tuple[Score, str | None]] = {}
        with Progress(f"batches of {_named(self.suite, self.generation)} have their rewards") as progress:
            for number, (items, future) in enumerate(self.parts, 1):
                scored = future.result()
                found |= zip(items, zip(scored.scores, scored.answers, strict=True), strict=True)
                progress(number, len(self.parts))
        return found

    @property
    def num_failed(self) -> int:
        """Completions whose reward could not be computed."""
        return sum(scored.result().num_failed for _, scored in self.parts)

    @property
    def errors(self) -> list[str | None]:
        """What went wrong, in each part."""
        return [scored.result().error for _, scored in self.parts]


def evaluate(setup: "Setup", suite: str, generation: int) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Collective. Complete and score a suite's problems with theta itself; return the result and every sample.

    Ranks take whole batches, so a prompt has the same neighbours however many ranks there are.
    """
    started = time.perf_counter()
    config, comm = setup.config, setup.comm
    examples = setup.problems.suites[suite]
    setup.engine.weights.restore()
    if suite in setup.harness:
        return _ask(setup, suite, generation, started)
    mine, marking = list[Completed](), Marking(setup, suite, generation)
    todo = calls(setup.config, len(examples))
    with Progress(f"batches of {_named(suite, generation)} completed") as progress:
        for number, items in enumerate(todo):
            if number % comm.size == comm.rank:
                mine.append(_complete(setup, suite, generation, items))
                if marking.at_once:
                    marking.begin(items, mine[-1].completions)
                progress(number + 1, len(todo))
    if not marking.at_once:
        marking.begin_units(_of_all_ranks(setup, mine), comm.rank, comm.size)
    divergence = []
    if config.eval.divergence:
        with Progress(f"computing the KL divergence of {_named(suite, generation)}"):
            divergence = _divergence(setup.engine, mine)
    rows = [sample for call in mine for sample in call.samples(examples)]
    marks = [[*item, recorded(score)] for item, (score, _) in marking.marks().items()]
    gathered = comm.allgather_object([rows, marks, marking.num_failed, divergence])
    scores = {(index, k): score for part in gathered for index, k, score in part[1]}
    samples = [
        row | scores[row["index"], row["sample"]]
        for row in sorted((row for part in gathered for row in part[0]), key=lambda row: (row["index"], row["sample"]))
    ]
    figures: dict[str, float] = {}
    if config.eval.num_samples > 1:
        figures |= _pass_at(samples, config.eval.num_samples)
    if config.eval.divergence:
        terms = [term for part in gathered for term in part[3]]
        figures["kl_per_token"] = math.fsum(terms) / max(1, len(terms))
        figures["theta_distance"] = setup.engine.weights.distance()
    num_failed = sum(part[2] for part in gathered)
    if sum(sample["reward"] is not None for sample in samples) == num_failed:
        require_rewards(setup, marking.errors, f"the evaluation of {suite} at generation {generation}")
    return evaluation_of(samples, len(examples), num_failed, started, figures), samples


def _named(suite: str, generation: int) -> str:
    return f"{suite.replace('_', '-')} at generation {generation}"


def _of_all_ranks(setup: "Setup", mine: Sequence[Completed]) -> dict[Item, Completion]:
    """Collective. Return the completions of all ranks."""
    made = [[*item, one.text, one.num_tokens, one.truncated, one.tokens] for call in mine for item, one in call.made()]
    return {
        (index, k): Completion(text=text, num_tokens=count, truncated=truncated, tokens=tuple(tokens))
        for part in setup.comm.allgather_object(made)
        for index, k, text, count, truncated, tokens in part
    }


def recorded(score: Score) -> dict[str, Any]:
    """Return what is recorded of a score."""
    said = asdict(score)
    del said["goes_on"]
    if not said["notes"]:
        del said["notes"]
    return said


def require_rewards(setup: "Setup", errors: Sequence[str | None], what: str) -> None:
    """Collective. Raise SharedError because no completion has a reward, unless the run is to continue without one.

    Parameters
    ----------
    setup : Setup
    errors : sequence of str or None
        What went wrong on this rank, if anything did.
    what : str
        What has no rewards.
    """
    if setup.config.scoring.on_failure == "continue":
        return
    mine = next((error for error in errors if error is not None), None)
    error = next((error for error in setup.comm.allgather_object(mine) if error is not None), None)
    raise SharedError(
        f"no completion in {what} got a reward: {error or 'every reward is None'}. Correct the reward, or set "
        f"scoring.on_failure=continue"
    )


def evaluation_of(
    samples: Sequence[Mapping[str, Any]], num_problems: int, num_failed: int, started: float, figures: dict[str, float]
) -> Evaluation:
    """Return the result that samples make, in a fixed order; `started` is when that began, by `time.perf_counter`.

    Samples whose reward is None count neither for the mean reward nor for the accuracy.
    """
    count = len(samples)
    rewards = [sample["reward"] for sample in samples]
    correct = [None if sample["reward"] is None else float(sample["correct"]) for sample in samples]
    if None in rewards:
        figures = figures | {"num_without_reward": rewards.count(None)}
    return Evaluation(
        accuracy=mean_of_known(correct),
        reward_mean=mean_of_known(rewards),
        num_samples=count,
        num_problems=num_problems,
        num_truncated=sum(sample["truncated"] for sample in samples),
        tokens_mean=sum(sample["tokens"] for sample in samples) / count,
        tokens_max=max(sample["tokens"] for sample in samples),
        characters_mean=sum(len(sample["completion"]) for sample in samples) / count,
        num_failed=num_failed,
        num_unparsed=sum(not sample["parsed"] for sample in samples),
        seconds=time.perf_counter() - started,
        figures=means_of(sample["figures"] for sample in samples) | figures,
    )


def mean_of_known(values: Iterable[float | None]) -> float:
    """Return the mean of the values that are not None, exactly rounded; NaN if all are."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


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
        Request(prompt=setup.first_prompt(examples[index]), seed=(seed + i) % 2**63)
        for i, (index, _) in enumerate(items)
    ]


def _complete(setup: "Setup", suite: str, generation: int, items: list[tuple[int, int]]) -> Completed:
    config = setup.config
    seed = stream_seed(config.run.seed, f"evaluation of {suite}", generation)
    requests = make_requests(setup, suite, items, seed)
    examples = [setup.problems.suites[suite][index] for index, _ in items]
    completions = setup.complete(requests, examples, sampling_of(config))
    return Completed(items, first_prompts(requests, completions), completions)


def _ask(setup: "Setup", suite: str, generation: int, started: float) -> tuple[Evaluation, list[dict[str, Any]]]:
    """Collective. Evaluate theta, which is live, on a suite of lm-evaluation-harness; see `evaluate`."""
    config, comm, harness = setup.config, setup.comm, setup.harness[suite]
    seed = stream_seed(config.run.seed, f"evaluation of {suite}", generation)
    answers = harness.ask(setup.engine, comm, most_at_once(config), seed)
    outcome = None
    with comm.together():
        if comm.is_root:  # a task's program may not give the same everywhere, and what the guard does depends on it
            outcome = asdict(harness.score(answers))
    found = comm.allgather_object(outcome)[0]
    result = evaluation_of(found["samples"], len(found["samples"]), 0, started, found["figures"])
    return replace(result, accuracy=found["accuracy"]), found["samples"]


def _divergence(engine: Engine, batches: Sequence[Completed]) -> list[float]:
    """Return an estimate of the KL divergence from the base model for each new token.

    It is q / p - log(q / p) - 1, with p the tuned model's and q the base model's probability of the token (Schulman,
    "Approximating KL divergence", 2020): never negative, and unbiased for tokens that the tuned model sampled.
    """
    said = [spoken(batch.prompts, batch.completions) for batch in batches]
    tuned = [engine.logprobs(*both) for both in said]
    engine.weights.show_base()
    base = [engine.logprobs(*both) for both in said]
    engine.weights.restore()
    ratios = [
        base_logprob - tuned_logprob
        for base_batch, tuned_batch in zip(base, tuned, strict=True)
        for base_tokens, tuned_tokens in zip(base_batch, tuned_batch, strict=True)
        for base_logprob, tuned_logprob in zip(base_tokens, tuned_tokens, strict=True)
    ]
    # a token that the tuned model all but rules out gives a huge term, but must not overflow
    return [math.expm1(min(ratio, _LARGEST_RATIO)) - ratio for ratio in ratios]


def means_of(figures: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure, under a name that a column can have; values that are NaN do not count."""
    columns: dict[str, list[float]] = defaultdict(list)
    for each in figures:
        for name, value in each.items():
            # a slash would make a group of the run file's column
            column = re.sub(r"[^\w.@-]", "_", f"{name}_mean")
            known = columns[f"task_{column}" if column in _COLUMNS else column]
            known.extend([] if math.isnan(value) else [value])
    # samples come in one order whatever the layout; unlike `sum`, `fsum` raises for infinities
    return {name: sum(column) / len(column) if column else math.nan for name, column in columns.items()}


def _pass_at(samples: Sequence[Mapping[str, Any]], n: int) -> dict[str, float]:
    """Return pass@k for k = 1, 2, 4, ... and n; `samples` has n neighbours for each problem.

    Problems with a sample whose reward is None are left out.
    """
    problems = [samples[start : start + n] for start in range(0, len(samples), n)]
    known = [its for its in problems if all(sample["reward"] is not None for sample in its)]
    right = [sum(sample["correct"] for sample in its) for its in known]
    powers = [2**i for i in range(n.bit_length()) if 2**i < n]
    return {
        f"pass_at_{k}": math.fsum(pass_at_k(n, c, k) for c in right) / len(right) if right else math.nan
        for k in [*powers, n]
    }
