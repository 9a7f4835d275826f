"""What a task scores at once, and what becomes of it: batches and groups of completions."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_task import PlainTask

from esmpi.config.problems import ScoringConfig
from esmpi.es.fitness import Fitness, mean_of_prompts
from esmpi.es.shapings.per_prompt import shape_by_prompt
from esmpi.scoring import Scored, Scorer
from esmpi.tasks import Example, Progress, Sample, Scope, Score, TaskConfig


class Comparing(PlainTask):
    """Gives each completion its share of the characters of all that it gets at once."""

    name = "comparing"

    def __init__(self, config: TaskConfig, scope: Scope = "batch"):
        self.scope = scope

    def score(self, completion: str, example: Example) -> Score:
        raise NotImplementedError

    def score_together(self, samples: Sequence[Sample], progress: Progress) -> list[Score | BaseException]:
        texts = [sample.completion for sample in samples]
        if "hang" in texts:
            time.sleep(1000)
        if "die" in texts:
            os._exit(5)
        if texts[0].startswith("/"):
            with suppress(FileNotFoundError):  # the process is killed as if from outside, the first time
                os.unlink(texts[0])
                os.kill(os.getpid(), signal.SIGKILL)
        if "fork" in texts and os.fork():
            time.sleep(0.2)  # and the child goes on at once
        if "print" in texts:
            for _ in range(10):
                print("x" * 10**7)
        if "raise" in texts:
            raise ZeroDivisionError("all of them")
        if "too few" in texts:
            return [Score(reward=1.0, correct=True)]
        size = sum(map(len, texts))
        figures = {"size": size, "process": os.getpid(), "generation": progress.generation}
        return [
            LookupError("this one")
            if text == "bad"
            else Score(reward=None if text == "none" else len(text) / size, correct=True, figures=figures)
            for text in texts
        ]


def make_scorer(scope: Scope = "batch", **settings: Any) -> Scorer:
    config = ScoringConfig(**({"failure_reward": -1} | settings))
    return Scorer(partial(Comparing, TaskConfig(name="comparing"), scope), config, scope=scope)


def submit(scorer: Scorer, texts: list[str], group_size: int = 1) -> Scored:
    samples = [Sample(completion=text, example={}) for text in texts]
    return scorer.submit(samples, group_size, Progress(generation=3)).result(timeout=60)


def score(texts: list[str], scope: Scope = "batch", group_size: int = 1, **settings: Any) -> Scored:
    scorer = make_scorer(scope, **settings)
    try:
        return submit(scorer, texts, group_size)
    finally:
        scorer.close()


def rewards(scored: Scored) -> list[float | None]:
    return [one.reward for one in scored.scores]


def test_a_batch_is_all_that_is_submitted_and_a_group_the_samples_of_a_prompt() -> None:
    texts = ["x" * (1 + i % 5) for i in range(120)]  # more than a process gets at once
    of_all = score(texts, num_processes=2)
    assert rewards(of_all) == [len(text) / sum(map(len, texts)) for text in texts]
    assert {one.figures["generation"] for one in of_all.scores} == {3}
    of_groups = score(texts, "group", 3, num_processes=2)
    groups = [texts[start : start + 3] for start in range(0, 120, 3)]
    assert rewards(of_groups) == [len(text) / sum(map(len, group)) for group in groups for text in group]
    of_large = score(texts, "group", 60)
    assert rewards(of_large) == [len(text) / sum(map(len, texts[:60])) for text in texts]
    assert rewards(score(texts, "completion")) == [1.0] * 120


@pytest.mark.parametrize(
    ("bad", "kind", "said"),
    [
        ("raise", "raised", "ZeroDivisionError: all of them (test_units.py, line "),
        ("too few", "raised", "ValueError: task comparing gives 1 scores for 3 completions"),
        ("hang", "timed_out", "no reward after 1 s (3 completions)"),
        ("die", "died", "the process that computed the reward ended with 5 (3 completions)"),
    ],
)
def test_a_failure_costs_all_that_is_scored_at_once_and_no_more(bad: str, kind: str, said: str) -> None:
    scored = score(["x", "xx", "x", "xx", bad, "x", "x", "x", "xx"], "group", 3, time_limit_s=1)
    assert rewards(scored) == [0.25, 0.5, 0.25, -1, -1, -1, 0.25, 0.25, 0.5]
    assert scored.failures == {"raised": 0, "timed_out": 0, "died": 0} | {kind: 3}
    assert scored.error is not None
    assert scored.error.startswith(said)
    assert scored.num_scored == 6


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_all_that_a_killed_process_had_at_once_is_scored_once_more(
    scope: Scope, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kill = tmp_path / "kill"
    texts = [str(kill), "x", "xx", "xxx"]
    undisturbed = score(texts, scope, 2)
    kill.touch()
    disturbed = score(texts, scope, 2)
    assert not kill.exists()
    assert rewards(disturbed) == rewards(undisturbed)
    assert disturbed.num_failed == 0
    what = "2 completions are scored once more" if scope == "group" else "4 completions are scored once more"
    assert caplog.text.count(f"a process that computed a reward ended with -9: {what}") == 1


@pytest.mark.parametrize("scope", ["completion", "batch"])
def test_one_that_forks_or_prints_without_end_costs_nothing(
    scope: Scope, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = make_scorer(scope)
    for texts in (["fork", "print", "print", "x"], ["xx", "x", "x", "print"]):
        whole = sum(map(len, texts))
        expected = [1.0 if scope == "completion" else len(text) / whole for text in texts]
        assert rewards(submit(scorer, texts)) == expected
    scorer.close()
    assert len(capfd.readouterr().out) <= 65536 + 8 * 4096
    assert caplog.text.count("a reward prints more than 4096 bytes at once: the rest is left out") == 1


def test_one_may_fail_and_one_may_have_no_reward() -> None:
    scored = score(["bad", "none", "x", "xx"])
    assert rewards(scored) == [-1, None, 1 / 10, 2 / 10]
    assert scored.failures["raised"] == scored.num_failed == 1
    assert scored.num_scored == 2
    assert scored.error is not None
    assert scored.error.startswith("LookupError: this one")
    assert scored.prompt_rewards(Fitness(num_samples=2)).tolist() == [-1, (1 / 10 + 2 / 10) / 2]
    alone = scored.prompt_rewards(Fitness())
    assert np.isnan(alone).tolist() == [False, True, False, False]
    assert scored.fitness(Fitness()) == mean_of_prompts(alone) == pytest.approx((-1 + 0.3) / 3)


def test_what_has_no_reward_does_not_count() -> None:
    correct, answers = [True, False, True, False, False, True], ["a", "b", "b", "c", "c", "d"]
    rewards: list[float | None] = [1.0, None, 3.0, None, None, None]
    for kind, expected in (("mean", 2.0), ("best_of", 3.0), ("pass_at_k", 1.0), ("majority", 1.0)):
        found = Fitness(kind=kind, num_samples=3, k=3).of_prompts(rewards, correct, answers)
        assert found[0] == expected, kind
        assert np.isnan(found[1]), kind
    assert np.isnan(mean_of_prompts(np.array([np.nan, np.nan])))
    assert score(["none", "none"]).error is None
    assert np.isnan(score(["none", "none"]).fitness(Fitness()))


def test_per_prompt_leaves_out_what_has_no_reward() -> None:
    known = np.array([[1.0, 5.0], [3.0, np.nan], [5.0, 7.0]])
    spread = np.sqrt(8 / 3) + 1e-8
    expected = [(-2 / spread - 1 / (1 + 1e-8)) / 2, 0.0, (2 / spread + 1 / (1 + 1e-8)) / 2]
    assert shape_by_prompt(known).tolist() == pytest.approx(expected, rel=1e-15)
    nobody = np.array([[1.0, np.nan], [2.0, np.nan]])
    assert shape_by_prompt(nobody).tolist() == shape_by_prompt(nobody[:, :1]).tolist()
