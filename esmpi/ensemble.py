"""Ensembles: the best members of a generation complete the held-out problems, and their answers vote.

No model is written: a member's weights are theta of its generation plus its noise, which its seed gives.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from esmpi.config.problems import HELD_OUT
from esmpi.config.sections import Config
from esmpi.data.batch import in_parts
from esmpi.engines import Waves
from esmpi.errors import UserError
from esmpi.es.fitness import elect
from esmpi.es.member_columns import OK
from esmpi.es.population import share
from esmpi.es.random_streams import stream_seed
from esmpi.evaluate import (
    Completed,
    Marking,
    calls,
    evaluate,
    evaluation_of,
    make_requests,
    mean_of_known,
    most_at_once,
    recorded,
    sampling_of,
)
from esmpi.model.noise_settings import NoiseSettings
from esmpi.noise.format import Noise
from esmpi.record.evaluation import Evaluation
from esmpi.store.run_file import RunFile
from esmpi.weights.model_weights import Perturbation
from esmpi.wording import counted

if TYPE_CHECKING:
    from esmpi.session import Setup

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Voter:
    """A member of an ensemble, of types that JSON has."""

    member: int
    fitness: float
    seed: int
    scale: float
    """sign * sigma."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Members that vote, the best first."""

    generation: int
    """Of the members."""
    theta: int
    """Generation of the theta that they were made from: the same, unless the guard had taken theta back."""
    noise: NoiseSettings
    voters: tuple[Voter, ...]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return an ensemble from its fields, of the types that JSON has."""
        noise = NoiseSettings.from_json(fields["noise"])
        return cls(**{**fields, "noise": noise, "voters": tuple(Voter(**voter) for voter in fields["voters"])})

    def waves(self, config: Config, num_ranks: int, noise: Noise) -> Waves:
        """Return what the engine of a rank will be asked to evaluate at once."""
        num_members = -(-len(self.voters) // num_ranks)
        return Waves(noise=noise, num_prompts=most_at_once(config), num_members=num_members)


def best_members(run: RunFile, generation: int, count: int) -> Ensemble:
    """Return the members of a generation with the highest fitness; of equal ones the first comes first.

    Raises
    ------
    UserError
        If the run file does not have so many.
    """
    if run.attributes["log_only"]:
        raise UserError(f"--ensemble: {run.path} has only seeds and coefficients, no fitness: name the run directory")
    run.check_generation(generation)
    if generation == run.num_generations:
        raise UserError(f"--ensemble: {run.path} has no members of generation {generation} yet")
    rows = run.members[generation]
    good = [member for member, status in enumerate(rows["status"].tolist()) if status == OK]
    if count > len(good):
        raise UserError(
            f"--ensemble: {counted(len(good), 'member')} of generation {generation} of {run.path} have a fitness, not "
            f"{count}"
        )
    fitness, seeds, signs = (rows[name].tolist() for name in ("fitness", "seed", "sign"))
    sigma = run.sigma(generation)
    voters = (
        Voter(member=i, fitness=fitness[i], seed=seeds[i], scale=signs[i] * sigma)
        for i in sorted(good, key=lambda member: -fitness[member])[:count]
    )
    return Ensemble(
        generation=generation, theta=run.origin(generation), noise=run.noise(generation), voters=tuple(voters)
    )


def evaluate_ensemble(
    setup: "Setup", ensemble: Ensemble
) -> tuple[Evaluation, list[dict[str, Any]], list[dict[str, Any]]]:
    """Collective. Let members complete the held-out problems and vote on the answer of each.

    The engine has the theta that the members were made from, and `setup` has their noise. Ranks share the members.

    Returns
    -------
    Evaluation
        Of the elected answers. Its figures have the accuracy of theta alone, and that of the members.
    list of dict
        For each problem the completion that gave the elected answer, as an evaluation records it, with `member`,
        `answer` and `votes`: the members that gave each answer.
    list of dict
        Number, fitness, accuracy and mean reward of each member, the best first.
    """
    theta, _ = evaluate(setup, HELD_OUT, ensemble.theta)
    voters = ensemble.voters
    started = time.perf_counter()
    comm, num_problems = setup.comm, len(setup.problems.suites[HELD_OUT])
    mine = share(len(voters), comm.rank, comm.size)
    completed, num_failed = _complete(setup, voters[mine.start : mine.stop], ensemble.generation)
    # the texts stay where they are: all ranks need only what decides the vote
    ballots = [[(sample["index"], sample["answer"]) for sample in its] for its in completed]
    marks = [[(sample["correct"], sample["reward"]) for sample in its] for its in completed]
    gathered = comm.allgather_object([ballots, marks, num_failed])
    ballots, marks = ([its for part in gathered for its in part[number]] for number in (0, 1))
    elected = [
        completed[vote.voter - mine.start][vote.place]
        | {"votes": {answer: [voters[i].member for i in who] for answer, who in vote.votes.items()}}
        for vote in count_votes(ballots, [voter.fitness for voter in voters], num_problems)
        if vote.voter in mine
    ]
    samples = [sample for part in comm.allgather_object(elected) for sample in part]
    samples.sort(key=lambda sample: int(sample["index"]))
    members = [
        {
            "member": voter.member,
            "fitness": voter.fitness,
            "accuracy": mean_of_known(None if reward is None else float(correct) for correct, reward in its),
            "reward_mean": mean_of_known(reward for _, reward in its),
        }
        for voter, its in zip(voters, marks, strict=True)
    ]
    accuracies = [member["accuracy"] for member in members]
    figures = {
        "num_members": len(members),
        "theta_accuracy": theta.accuracy,
        "member_accuracy_mean": math.fsum(accuracies) / len(members),
        "member_accuracy_min": min(accuracies),
        "member_accuracy_max": max(accuracies),
    }
    num_failed = sum(part[2] for part in gathered)
    return evaluation_of(samples, num_problems, num_failed, started, figures), samples, members


@dataclass(frozen=True)
class Vote:
    """The vote on a problem."""

    voter: int
    """Who gave the elected answer: the first who did."""
    place: int
    """Which of this voter's completions that is."""
    votes: dict[str, list[int]]
    """The voters that gave each answer."""


def count_votes(
    ballots: Sequence[Sequence[tuple[int, str | None]]], fitness: Sequence[float], num_problems: int
) -> list[Vote]:
    """Return the vote on each problem.

    The most frequent answer is elected; of equally frequent ones the one whose voters have the larger sum of fitness,
    then the one that was given first.

    Parameters
    ----------
    ballots : sequence of sequences of (int, str or None)
        For each voter the problem's number and the answer of each completion.
    fitness : sequence of float
        Of each voter.
    num_problems : int
    """
    cast: list[list[tuple[int, int, str | None]]] = [[] for _ in range(num_problems)]
    for voter, ballot in enumerate(ballots):
        for place, (problem, answer) in enumerate(ballot):
            cast[problem].append((voter, place, answer))
    votes = []
    for of_problem in cast:
        by_answer = defaultdict(list)
        for voter, _, answer in of_problem:
            if answer is not None:
                by_answer[answer].append(voter)
        weights = [fitness[voter] for voter, _, _ in of_problem]
        voter, place, _ = of_problem[elect([answer for _, _, answer in of_problem], weights)]
        votes.append(Vote(voter, place, dict(by_answer)))
    return votes


def log_members(result: Evaluation, members: Sequence[Mapping[str, Any]]) -> None:
    """Log the results of theta and of each member on a line each."""
    log.info("theta alone: accuracy %.1f %%", 100 * result.figures["theta_accuracy"])
    for member in members:
        log.info(
            "member %d, fitness %.3f: accuracy %.1f %%, mean reward %.3f",
            member["member"],
            member["fitness"],
            100 * member["accuracy"],
            member["reward_mean"],
        )


def _complete(setup: "Setup", voters: Sequence[Voter], generation: int) -> tuple[list[list[dict[str, Any]]], int]:
    """Let each of some members complete all held-out problems.

    Returns each member's completions, as an evaluation records them, with `member` and `answer`; and how many of all
    have no reward.
    """
    if not voters:
        return [], 0
    config, engine, examples = setup.config, setup.engine, setup.problems.suites[HELD_OUT]
    sampling = sampling_of(config)
    # prompts are made once; each member then has seeds of its own
    todo = [(items, make_requests(setup, HELD_OUT, items, 0)) for items in calls(config, len(examples))]
    made: list[tuple[list[Completed], Marking]] = []
    for wave in in_parts(voters, engine.wave_size(todo[0][1], sampling, setup.noise)):
        engine.perturb([Perturbation(voter.seed, voter.scale, setup.noise) for voter in wave])
        seeds = [stream_seed(config.run.seed, f"ensemble on {HELD_OUT}", generation, voter.member) for voter in wave]
        its: list[tuple[list[Completed], Marking]] = [([], Marking(setup, HELD_OUT, generation)) for _ in wave]
        for items, requests in todo:
            asked = [
                replace(request, seed=(request.seed + seed) % 2**63, member=place)
                for place, seed in enumerate(seeds)
                for request in requests
            ]
            prompts = [request.prompt for request in requests]
            for place, completions in enumerate(in_parts(engine.generate(asked, sampling), len(items))):
                done, marking = its[place]
                done.append(Completed(items, prompts, completions))
                if marking.at_once:
                    marking.begin(items, completions)
        for done, marking in its:
            if not marking.at_once:
                marking.begin_units({item: one for call in done for item, one in call.made()})
        made += its
    samples = []
    for voter, (done, marking) in zip(voters, made, strict=True):
        marks = marking.marks()
        rows = [row for call in done for row in call.samples(examples)]
        further = [marks[row["index"], row["sample"]] for row in rows]
        samples.append(
            [
                row | recorded(score) | {"member": voter.member, "answer": answer}
                for row, (score, answer) in zip(rows, further, strict=True)
            ]
        )
    return samples, sum(marking.num_failed for _, marking in made)
