"""Score completions beside generation: one member's are scored while the engine makes the next one's."""

import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from esmpi.engines.base import Completion
from esmpi.tasks import Example, Score, Task

log = logging.getLogger(__name__)

_LARGEST_REWARD = 1e100
"""A reward from here on is a mistake; sums of smaller ones cannot overflow."""

FAILURE_SCORE = Score(reward=0.0, correct=False)
"""What a completion gets whose reward could not be computed."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The scores of one list of completions."""

    scores: list[Score]
    failures: int
    """Completions whose reward raised or is no reasonable number; they have `FAILURE_SCORE`."""
    seconds: float

    @property
    def fitness(self) -> float:
        """Mean reward, exactly rounded; NaN if no completion could be scored."""
        if self.failures == len(self.scores):
            return math.nan
        return math.fsum(score.reward for score in self.scores) / len(self.scores)


class Scorer:
    """Scores in a thread of its own."""

    def __init__(self, task: Task):
        self._task = task
        self._thread = ThreadPoolExecutor(1, "esmpi-scorer")
        self._seen: set[str] = set()

    def submit(self, completions: Sequence[Completion], examples: Sequence[Example]) -> "Future[Scored]":
        """Start scoring completions, one for each example."""
        return self._thread.submit(self._score_all, completions, examples)

    def _score_all(self, completions: Sequence[Completion], examples: Sequence[Example]) -> Scored:
        started = time.perf_counter()
        scores: list[Score] = []
        failures = 0
        for completion, example in zip(completions, examples, strict=True):
            try:
                score = self._task.score(completion.text, example)
                if not abs(score.reward) < _LARGEST_REWARD:  # NaN, too, is not
                    raise ValueError(f"reward is {score.reward}")
            except Exception as error:  # a reward may raise anything; it costs one completion, not the run
                self._log_once(error)
                score = FAILURE_SCORE
                failures += 1
            scores.append(score)
        return Scored(scores=scores, failures=failures, seconds=time.perf_counter() - started)

    def _log_once(self, error: Exception) -> None:
        kind = type(error).__name__
        if kind not in self._seen:
            self._seen.add(kind)
            log.warning("reward of task %s failed (shown once a kind): %s: %s", self._task.name, kind, error)
