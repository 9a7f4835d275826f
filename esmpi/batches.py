"""Batches: what the members of a generation complete."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from esmpi.data.batch import batch
from esmpi.engines import Request
from esmpi.es.random_streams import stream_seed
from esmpi.tasks import Example

if TYPE_CHECKING:
    from esmpi.session import Session


@dataclass(frozen=True)
class Batch:
    """What a member completes in a generation."""

    requests: list[Request]
    """One for each sample. The samples of a prompt stand side by side."""
    examples: list[Example]
    """The problem of each request."""


def batches(session: "Session") -> Callable[[int], Batch]:
    """Return a function that returns the batch of a member in the next generation.

    With `data.prompts: per_member` the two members of an antithetic pair have the same prompts, so that they differ by
    the sign of their noise alone.
    """
    config, generation, num_samples = session.config, session.generation, session.config.sampling.num_samples

    @cache
    def of_turn(turn: int) -> Batch:
        examples = batch(config.data, session.problems.train, config.run.seed, turn)
        return Batch(make_requests(session, examples), [example for example in examples for _ in range(num_samples)])

    if config.data.prompts == "shared":
        same = of_turn(generation)
        return lambda member: same
    pair_size = 2 if config.es.antithetic else 1
    first = generation * (config.es.population_size // pair_size)
    return lambda member: of_turn(first + member // pair_size)


def make_requests(session: "Session", examples: Sequence[Example]) -> list[Request]:
    """Return the requests of a member's prompts, with all samples of a prompt side by side.

    Their seeds are the same for every member: with the same prompts, the fitness of members differs by their weights
    alone. Each sample has a seed of its own, so that mini-batches change nothing.
    """
    seed = stream_seed(session.config.run.seed, "sampling", session.generation)
    return [
        Request(prompt=prompt, seed=(seed + sample * len(examples) + i) % 2**63)
        for i, prompt in enumerate(map(session.first_prompt, examples))
        for sample in range(session.config.sampling.num_samples)
    ]
