"""Scoring: a reward that fails, hangs or crashes costs one completion, not the run."""

import logging
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from plain_task import PlainTask

from esmpi.config.problems import ScoringConfig
from esmpi.errors import UserError
from esmpi.es.fitness import Fitness
from esmpi.scoring import Scored, Scorer
from esmpi.scoring.process import serve
from esmpi.tasks import Example, Sample, Score, TaskConfig


class MuteError(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError


class Fragile(PlainTask):
    """A task whose reward does what the completion says."""

    name = "fragile"

    def score(self, completion: str, example: Example) -> Score:
        if completion == "raise":
            raise ZeroDivisionError("out of reach")
        if completion == "recurse":
            return self.score(completion, example)
        if completion == "hang":
            time.sleep(1000)
        if completion == "die":
            os._exit(7)
        if completion == "crash":
            os.kill(os.getpid(), 11)
        if completion == "exit":
            sys.exit("I give up")
        if completion == "fork" and (child := os.fork()):
            os.waitpid(child, 0)  # and the child goes on here, as the parent does
        if completion == "mute":
            raise MuteError
        if completion.startswith("/"):
            with open(completion, "w") as file:
                file.write(str(subprocess.Popen(["sleep", "1000"]).pid))
            time.sleep(1000)
        if completion == "eat":
            bytearray(2**31)
        if completion == "nothing":
            none: Any = None
            return none
        return Score(reward=float(completion) * example["weight"], correct=float(completion) > 0)


class Killed(PlainTask):
    """A task that waits to be killed when it scores for the first time."""

    name = "killed"

    def score(self, completion: str, example: Example) -> Score:
        if completion:
            path = Path(completion)
            with path.open("a") as file:
                file.write(f"{os.getpid()}\n")
            while len(path.read_text().splitlines()) < 2:
                time.sleep(0.01)
        return Score(reward=5.0, correct=True)


class Answering(Fragile):
    """Reads the first word as the answer."""

    def answer(self, completion: str, example: Example) -> str | None:
        if completion == "4 no answer":
            raise LookupError("no answer")
        return completion.split(maxsplit=1)[0] if completion else None

    def score(self, completion: str, example: Example) -> Score:
        return super().score(completion.split(maxsplit=1)[0], example)


def make_scorer(**settings: Any) -> Scorer:
    return Scorer(partial(Fragile, TaskConfig(name="fragile")), ScoringConfig(**settings))


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    one = make_scorer(time_limit_s=2, memory_gib=1, failure_reward=-1)
    yield one
    one.close()


def score(scorer: Scorer, texts: list[str], weights: list[float] | None = None) -> Scored:
    return scorer.submit(samples(texts, weights)).result()


def samples(texts: list[str], weights: list[float] | None = None) -> list[Sample]:
    pairs = zip(texts, weights or [1] * len(texts), strict=True)
    return [Sample(completion=text, example={"weight": weight}) for text, weight in pairs]


def test_scores_come_in_order_and_fitness_is_their_mean(scorer: Scorer) -> None:
    scored = score(scorer, ["1", "-0.5", "0.25"], [2, 2, 2])
    assert [s.reward for s in scored.scores] == [2.0, -1.0, 0.5]
    assert [s.correct for s in scored.scores] == [True, False, True]
    assert scored.num_failed == 0
    assert scored.fitness(Fitness()) == 0.5
    assert all(started <= ended for started, ended in scored.spans)
    assert len(scored.spans) == 1


def test_each_completion_meets_its_own_example(scorer: Scorer) -> None:
    many = [float(i) for i in range(100)]  # more than a process gets at once
    assert [s.reward for s in score(scorer, ["1"] * 100, many).scores] == many


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        *(
            (text, "raised")
            for text in ("raise", "recurse", "nothing", "nan", "inf", "-inf", "-1e300", "no number", "exit", "mute")
        ),
        *(("eat", "raised"), ("hang", "timed_out"), ("die", "died"), ("crash", "died")),
    ],
)
def test_one_bad_completion_costs_itself_only(scorer: Scorer, bad: str, kind: str) -> None:
    scored = score(scorer, ["1", bad, "3"])
    assert [s.reward for s in scored.scores] == [1, -1, 3]
    assert not scored.scores[1].correct
    assert scored.failures == {"raised": 0, "timed_out": 0, "died": 0} | {kind: 1}
    assert scored.fitness(Fitness()) == 1.0


def test_a_completion_whose_process_is_killed_from_outside_is_scored_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise theta would depend on when a node is short of memory."""
    path = tmp_path / "processes"
    path.touch()
    scorer = Scorer(partial(Killed, TaskConfig(name="killed")), ScoringConfig(num_processes=1))
    future = scorer.submit(samples(["", str(path), ""]))
    while not path.read_text().endswith("\n"):
        time.sleep(0.01)
    os.kill(int(path.read_text()), signal.SIGKILL)
    scored = future.result()
    scorer.close()
    assert [s.reward for s in scored.scores] == [5, 5, 5]
    assert scored.num_failed == 0
    assert caplog.text.count("a process that computed a reward ended with -9: 1 completion is scored once more") == 1


def test_a_signal_to_all_processes_does_not_end_those_that_are_starting() -> None:
    """As Slurm's before the end of a job: the run stops after its generation, which needs them."""
    before = multiprocessing.active_children()
    scorer = make_scorer(num_processes=2)
    starting: list[Any] = []
    while len(starting) < 2:
        starting = [process for process in multiprocessing.active_children() if process not in before]
    for process in starting:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGUSR1)
        os.kill(process.pid, signal.SIGTERM)
    scored = score(scorer, ["1", "2"])
    scorer.close()
    assert [one.reward for one in scored.scores] == [1, 2]


def test_answers_come_with_the_scores_if_they_are_wanted() -> None:
    texts = ["1", "die", "2 or so", "4 no answer", "raise", *["3"] * 40]
    for wanted in (False, True):
        scorer = Scorer(partial(Answering, TaskConfig(name="x")), ScoringConfig(failure_reward=-1), with_answers=wanted)
        scored = score(scorer, texts)
        scorer.close()
        four = -1 if wanted else 4
        assert [s.reward for s in scored.scores] == [1, -1, 2, four, -1, *[3] * 40]
        assert scored.answers == (["1", None, "2", None, None, *["3"] * 40] if wanted else [None] * 45)
        assert scored.failures == {"raised": 1 + wanted, "timed_out": 0, "died": 1}


def test_the_rewards_of_prompts_and_a_failed_sample_among_them(scorer: Scorer) -> None:
    scored = score(scorer, ["1", "raise", "3", "2"])
    assert scored.prompt_rewards(Fitness(num_samples=2)).tolist() == [0.0, 2.5]
    assert scored.fitness(Fitness(num_samples=2)) == 1.25
    assert scored.prompt_rewards(Fitness(kind="best_of", num_samples=2)).tolist() == [1.0, 3.0]
    assert scored.prompt_rewards(Fitness(kind="pass_at_k", num_samples=2, k=1)).tolist() == [0.5, 1.0]


def test_a_child_that_comes_back_does_not_answer_for_its_parent(scorer: Scorer) -> None:
    """Its answers would be taken for those of the completions that follow."""
    scored = score(scorer, ["fork", "1", "2", "3"])
    assert [s.reward for s in scored.scores] == [-1, 1, 2, 3]  # "fork" is no number
    assert scored.num_failed == 1
    assert [s.reward for s in score(scorer, ["4", "5", "6", "7"]).scores] == [4, 5, 6, 7]


def test_what_a_reward_has_started_ends_with_it(scorer: Scorer, tmp_path: Path) -> None:
    scored = score(scorer, ["1", str(tmp_path / "pid"), "3"])
    assert [s.reward for s in scored.scores] == [1, -1, 3]
    process = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    deadline = time.monotonic() + 20
    while process.exists() and process.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "a process of a reward that hung is still there"
        time.sleep(0.05)


def test_all_bad_completions_leave_no_fitness(scorer: Scorer) -> None:
    scored = score(scorer, ["nan", "raise", "nothing"])
    assert scored.num_failed == 3
    assert math.isnan(scored.fitness(Fitness()))


def test_time_lost_is_the_limit_for_each_that_hangs_shared_by_the_processes() -> None:
    scorer = make_scorer(num_processes=2, time_limit_s=1)
    texts = ["hang" if i % 10 == 3 else "die" if i == 17 else "1" for i in range(64)]
    score(scorer, ["1"] * 64)  # both processes are up
    started = time.perf_counter()
    scored = score(scorer, texts)
    seconds = time.perf_counter() - started
    assert scored.failures == {"raised": 0, "timed_out": 7, "died": 1}
    assert [s.reward for s in scored.scores] == [float(text == "1") for text in texts]
    # 4 of 7 in the worse half, and a process to start after each
    assert 3 <= seconds < 4 * 1 + 5 * 3
    scorer.close()


def test_failures_are_logged_once_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    scorer = make_scorer()
    with caplog.at_level(logging.WARNING, "esmpi.scoring.pool"):
        score(scorer, ["raise", "nan", "raise", "inf", "1", "die", "die"])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    assert "ended with 7: 1 completion is scored once more" in messages[0]
    assert "ZeroDivisionError: out of reach (test_scoring.py, line " in messages[1]
    assert "ValueError: reward is nan" in messages[2]
    assert "ended with 7, for the completion 'die'" in messages[3]
    scorer.close()


def test_a_task_that_cannot_be_made_is_an_error_and_no_hang() -> None:
    scorer = Scorer(partial(Fragile, 1, 2, 3), ScoringConfig())  # type: ignore[arg-type]  # too many arguments
    with pytest.raises(UserError, match=r"a process for rewards cannot start: TypeError: .*positional argument"):
        score(scorer, ["1"])
    scorer.close()
    scorer = Scorer(partial(os._exit, 3), ScoringConfig())  # type: ignore[arg-type]  # makes no task
    with pytest.raises(UserError, match="a process for rewards cannot start: it ended with 3"):
        score(scorer, ["1"])
    scorer.close()


def test_a_task_that_takes_too_long_to_start_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.scoring.process._START_LIMIT_S", 1.0)
    scorer = Scorer(partial(time.sleep, 60), ScoringConfig())  # type: ignore[arg-type]  # never makes a task
    with pytest.raises(UserError, match="cannot start: it was not ready after 1 s"):
        score(scorer, ["1"])
    scorer.close()


def test_fitness_does_not_depend_on_the_order_of_the_completions(scorer: Scorer) -> None:
    rewards = ["0.1", "1e16", "0.3", "-1e16", "0.7"]
    assert score(scorer, rewards).fitness(Fitness()) == pytest.approx(1.1 / 5)
    assert score(scorer, rewards).fitness(Fitness()) == score(scorer, rewards[::-1]).fitness(Fitness())


def test_huge_rewards_leave_a_status_not_a_crash(scorer: Scorer) -> None:
    fitness = score(scorer, ["1e308", "1e308"]).fitness(Fitness())
    assert math.isnan(fitness) or fitness > 0


def test_failure_in_one_member_leaves_the_scorer_usable(scorer: Scorer) -> None:
    futures = [scorer.submit(samples([text])) for text in ("raise", "3", "die", "4")]
    fitness = [future.result().fitness(Fitness()) for future in futures]
    assert [fitness[1], fitness[3]] == [3, 4]
    assert math.isnan(fitness[0])
    assert math.isnan(fitness[2])


def test_a_process_whose_run_is_gone_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(theirs, partial(Fragile, TaskConfig(name="fragile")), ScoringConfig(), 1, os.getpid())
    )
    process.start()
    theirs.close()
    assert ours.poll(60)
    ours.close()  # with what it has said unread, as when the run is killed
    process.join(60)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
