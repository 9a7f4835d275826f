"""Fitness: how the completions of a member become one number.

A member completes each prompt `num_samples` times. What these samples are worth together is the reward of the prompt,
and the member's fitness is the mean of its prompts' rewards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from esmpi.config.sections import Config

Answers = Sequence[str | None]
"""The answer of each sample, None if none could be read. Equal answers are equal texts."""


def mean(rewards: Sequence[float]) -> float:
    """Return the mean reward of the samples, exactly rounded."""
    return math.fsum(rewards) / len(rewards)


def best_of(rewards: Sequence[float]) -> float:
    """Return the best reward of the samples: what a user gets who can tell the best one (best-of-n sampling)."""
    return max(rewards)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return an unbiased estimate of the chance that at least one of k samples is right.

    The estimate is 1 - C(n - c, k) / C(n, k), with c of n samples right (Chen et al. 2021, arXiv 2107.03374, equation
    1). It needs k <= n.
    """
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def elect(answers: Answers, weights: Sequence[float] | None = None) -> int:
    """Return the place of the first sample that gives the most frequent answer.

    This is the vote of "Self-Consistency" (Wang et al. 2022, arXiv 2203.11171). Ties go to the answer with the larger
    sum of weights, then to the one that was given first. A sample without an answer has no vote. If none has one, the
    result is 0.

    Parameters
    ----------
    answers : sequence of str or None
    weights : sequence of float, optional
        One for each sample. They decide ties only.
    """
    voters: dict[str, list[int]] = {}
    for place, answer in enumerate(answers):
        if answer is not None:
            voters.setdefault(answer, []).append(place)
    weights = weights or [0.0] * len(answers)
    ranked = [(len(places), math.fsum(weights[place] for place in places), -places[0]) for places in voters.values()]
    return -max(ranked)[2] if ranked else 0


def majority(rewards: Sequence[float], answers: Answers) -> float:
    """Return the reward of the sample that `elect` chooses: what a user gets who takes the most frequent answer."""
    return rewards[elect(answers)]


@dataclass(frozen=True, kw_only=True)
class Fitness:
    """A choice of one of these functions."""

    kind: str = "mean"
    """`es.fitness` of the config."""
    num_samples: int = 1
    """Completions of each prompt."""
    k: int = 1
    """Of pass_at_k."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return what a config asks for."""
        num_samples = config.sampling.num_samples
        return cls(kind=config.es.fitness, num_samples=num_samples, k=config.es.fitness_k or num_samples)

    @property
    def needs_answers(self) -> bool:
        """Whether the task has to say what each completion's answer is."""
        return self.kind == "majority"

    def of_prompts(self, rewards: Sequence[float | None], correct: Sequence[bool], answers: Answers) -> np.ndarray:
        """Return the reward of each prompt, (prompts,) float64; NaN for a prompt none of whose samples has a reward.

        Parameters
        ----------
        rewards, correct, answers : sequences of prompts * num_samples
            Of each sample. The samples of a prompt stand side by side. One whose reward is None does not count: a
            prompt is then worth what its other samples are.
        """
        starts = range(0, len(rewards), self.num_samples)
        samples = [slice(start, start + self.num_samples) for start in starts]
        return np.array([self._of_prompt(rewards[some], correct[some], answers[some]) for some in samples], np.float64)

    def _of_prompt(self, rewards: Sequence[float | None], correct: Sequence[bool], answers: Answers) -> float:
        counting = [place for place, reward in enumerate(rewards) if reward is not None]
        if not counting:
            return math.nan
        known = [reward for reward in rewards if reward is not None]
        if self.kind == "best_of":
            return best_of(known)
        if self.kind == "pass_at_k":
            num_correct = sum(correct[place] for place in counting)
            return pass_at_k(len(known), num_correct, min(self.k, len(known)))
        if self.kind == "majority":
            return majority(known, [answers[place] for place in counting])
        return mean(known)


def mean_of_prompts(rewards: np.ndarray) -> float:
    """Return the mean of the prompts' rewards that are not NaN, exactly rounded; NaN if all are.

    Parameters
    ----------
    rewards : (prompts,) float64
    """
    known = rewards[~np.isnan(rewards)]
    return math.fsum(known) / len(known) if len(known) else math.nan
