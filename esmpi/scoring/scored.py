"""The scores of completions, and what they are worth together."""

from dataclasses import dataclass, field

import numpy as np

from esmpi.es.fitness import Fitness, mean_of_prompts
from esmpi.es.population import FAILURES
from esmpi.tasks import Score


@dataclass(kw_only=True)
class Scored:
    """The scores of one list of completions."""

    scores: list[Score]
    answers: list[str | None] = field(default_factory=list)
    """What the task reads as each completion's answer; all None if the scorer was not asked for answers."""
    failures: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FAILURES, 0))
    """How many completions have the failure reward, by kind."""
    failed: dict[int, tuple[str, str]] = field(default_factory=dict)
    """By place, the kind of failure and what went wrong."""
    error: str | None = None
    """What went wrong with the first completion that has the failure reward; None if there is none."""
    spans: list[tuple[float, float]] = field(default_factory=list)
    """When a process began and ended with a part of it, by `time.perf_counter`."""

    @property
    def num_failed(self) -> int:
        """Completions whose reward could not be computed."""
        return sum(self.failures.values())

    @property
    def num_scored(self) -> int:
        """Completions with a reward that could be computed."""
        return sum(score.reward is not None for score in self.scores) - self.num_failed

    def prompt_rewards(self, how: Fitness) -> np.ndarray:
        """Return the reward of each prompt, (prompts,) float64.

        NaN where no completion of a prompt has a reward; all NaN if none of any prompt could be computed. The samples
        of a prompt stand side by side.
        """
        if self.num_scored == 0:
            return np.full(len(self.scores) // how.num_samples, np.nan)
        rewards, correct = [score.reward for score in self.scores], [score.correct for score in self.scores]
        return how.of_prompts(rewards, correct, self.answers)

    def fitness(self, how: Fitness) -> float:
        """Return the mean reward of the prompts that have one, exactly rounded; NaN if there is none."""
        return mean_of_prompts(self.prompt_rewards(how))
