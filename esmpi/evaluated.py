"""A member that was evaluated, and what is recorded of it besides its fitness: completions, and further numbers."""

import math
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from esmpi.batches import Batch
from esmpi.engines import Completion
from esmpi.episodes import first_prompts
from esmpi.es.exact_sums import mean_and_std
from esmpi.es.fitness import Fitness
from esmpi.es.population import Results
from esmpi.es.random_streams import stream
from esmpi.evaluate import means_of, recorded
from esmpi.scoring import Scored

if TYPE_CHECKING:
    from esmpi.session import Session


@dataclass(slots=True)
class Evaluated:
    """A member that this rank has evaluated. Columns of `esmpi.es.member_columns.SENT` are attributes here."""

    member: int
    seed: int
    sign: int
    seconds: float
    """Of perturbing and generating; an equal share of its wave's."""
    tokens: int
    scores: "Future[Scored]"
    how: Fitness
    """How the rewards become its fitness."""
    kept: list[dict[str, Any]] = field(default_factory=list)
    """What is recorded of its first completions, without their scores."""

    def keep(self, batch: Batch, completions: Sequence[Completion], count: int) -> None:
        """Keep the first completions, as evaluations record them."""
        num_samples = self.how.num_samples
        prompts = first_prompts(batch.requests, completions)
        for i, (prompt, example, one) in enumerate(zip(prompts, batch.examples, completions, strict=True)):
            if i == count:
                break
            said = {"index": i // num_samples, "sample": i % num_samples, "example": example, "prompt": prompt}
            self.kept.append(said | {"completion": one.text, "tokens": one.num_tokens, "truncated": one.truncated})

    @property
    def figures(self) -> dict[str, float]:
        """Means of the further numbers of its rewards."""
        return means_of(score.figures for score in self.scores.result().scores)

    @property
    def prompt_rewards(self) -> np.ndarray:
        """Reward of each prompt, (prompts,) float64; NaN if no completion could be scored."""
        return self.scores.result().prompt_rewards(self.how)

    @property
    def fitness(self) -> float:
        """Mean reward of the prompts, NaN if no completion could be scored."""
        return self.scores.result().fitness(self.how)


def gather_figures(
    session: "Session", mine: Sequence[Evaluated], messages: np.ndarray, results: Results
) -> dict[str, float]:
    """Collective. Return the further numbers of the rewards: for each its mean over the members, and its spread.

    The spread is the standard deviation (ddof 0) of the members' means. Members without the number, or with an
    infinite one, do not count.

    Parameters
    ----------
    session : Session
    mine : sequence of Evaluated
        This rank's members.
    messages : (ranks,) of message_dtype
        They say whether any rank has such numbers.
    results : Results
    """
    if not messages["figures"].any():
        return {}
    own = [member.figures for member in mine]
    gathered = session.comm.allgather_object(sorted({name for figures in own for name in figures}))
    names = sorted({name for some in gathered for name in some})
    sent = np.full((session.dispatch.most_members(len(results), len(mine)), len(names)), np.nan)
    for row, figures in zip(sent, own, strict=False):
        row[:] = [figures.get(name, math.nan) for name in names]
    found: dict[str, float] = {}
    for name, column in zip(names, results.by_member(session.comm.allgather_array(sent)).T, strict=True):
        known = column[np.isfinite(column)]
        spread = mean_and_std(known) if len(known) else (math.nan, math.nan)
        found[name], found[f"{name.removesuffix('_mean')}_std"] = spread
    return found


def gather_samples(session: "Session", mine: Sequence[Evaluated], results: Results) -> list[dict[str, Any]]:
    """Collective. Return the first `log.samples` completions of the best, the worst and a random member.

    Each is as an evaluation records it, with `which` of the three, `member` and `fitness`. There are none if no member
    has a fitness.
    """
    fitness = results["fitness"]
    known = np.flatnonzero(~np.isnan(fitness))
    if not session.config.log.samples or not len(known):
        return []
    chosen = {
        "best": int(known[fitness[known].argmax()]),
        "worst": int(known[fitness[known].argmin()]),
        "random": int(stream(session.config.run.seed, "logged member", session.generation).choice(known)),
    }
    by_member = {member.member: member for member in mine}
    rows = [
        {"which": which, "member": member, "fitness": float(fitness[member])} | row | recorded(score)
        for which, member in chosen.items()
        if member in by_member
        for row, score in zip(by_member[member].kept, by_member[member].scores.result().scores, strict=False)
    ]
    order = list(chosen)
    gathered = [row for part in session.comm.allgather_object(rows) for row in part]
    return sorted(gathered, key=lambda row: (order.index(row["which"]), row["index"], row["sample"]))
