"""Rewards that are coroutines: many at once, each with a time limit of its own, and again if they fail."""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from esmpi.config.problems import ScoringConfig
from esmpi.scoring import Scored, Scorer
from esmpi.tasks import Calls, OutOfTimeError, Progress, Sample, Score, make_task
from esmpi.tasks.python import PythonTaskConfig

FILE = """\
import asyncio, os, time

async def alone(completion, example):
    what, *times = completion.split()
    if what == "sleep":
        await asyncio.sleep(float(times[0]))
    if what == "block":
        time.sleep(1000)
    if what == "die":
        os._exit(7)
    if what == "raise":
        raise LookupError("oh")
    if what == "exit":
        raise SystemExit("no more")
    if what == "fork" and (child := os.fork()):
        os.waitpid(child, 0)  # and the child goes on here, as the parent does
    if what == "deaf":
        while True:
            try:
                await asyncio.sleep(1000)
            except BaseException:
                pass
    if what == "print":
        print("x" * 10**7)
        os.write(2, b"y" * 10**7)
    if what == "flaky":
        with open(example["tries"], "a+") as file:
            file.write("x")
            file.flush()
            if file.tell() < 2:
                raise ConnectionError("refused")
    return {"reward": 1, "process": os.getpid()}

async def lists(completions, prompts, **kwargs):
    async def one(text):
        return (await alone(text, {}))["reward"]
    return await asyncio.gather(*map(one, completions))

def short(completion, example):
    return len(completion)

def returns_one(completion, example):
    return alone(completion, example)

def returns_one_of_lists(completions, prompts, **kwargs):
    return lists(completions, prompts)
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(FILE)
    return str(path)


def make_scorer(file: str, function: str = "alone", rewards: dict[str, float] | None = None, **keys: Any) -> Scorer:
    config = PythonTaskConfig(name=f"{file}:{function}", rewards=rewards or {})
    task = make_task(config)
    assert task.is_async
    settings = ScoringConfig(**{"failure_reward": -1, "time_limit_s": 2} | keys)
    return Scorer(partial(make_task, config, task.source), settings, scope=task.scope, is_async=True)


def score(scorer: Scorer, texts: Sequence[str], **columns: Any) -> Scored:
    samples = [Sample(completion=text, example={"prompt": "p"} | columns) for text in texts]
    return scorer.submit(samples).result(timeout=60)


@pytest.fixture
def scorer(file: str) -> Iterator[Scorer]:
    one = make_scorer(file)
    yield one
    one.close()


def rewards(scored: Scored) -> list[float | None]:
    return [one.reward for one in scored.scores]


def test_many_take_as_long_as_one(file: str) -> None:
    for keys in ({"concurrency": 32, "num_processes": 2}, {"function": "lists"}):
        scorer = make_scorer(file, **keys)
        score(scorer, ["x"] * 4)  # the processes are up
        started = time.perf_counter()
        assert rewards(score(scorer, ["sleep 0.5"] * 64)) == [1] * 64
        seconds = time.perf_counter() - started
        scorer.close()
        assert 0.5 <= seconds < 2.5, keys


def test_concurrency_is_a_limit(file: str) -> None:
    scorer = make_scorer(file, concurrency=4)
    score(scorer, ["x"])
    started = time.perf_counter()
    score(scorer, ["sleep 0.2"] * 12)
    assert time.perf_counter() - started >= 3 * 0.2
    scorer.close()


@pytest.mark.parametrize(
    ("bad", "kind", "said"),
    [
        ("raise", "raised", "LookupError: oh (own.py, line "),
        ("exit", "raised", "SystemExit: no more (own.py, line "),
        ("sleep 100", "timed_out", "no reward after 2 s"),
        ("deaf", "timed_out", "no reward after 2 s"),
    ],
)
def test_one_that_fails_costs_itself_only(scorer: Scorer, bad: str, kind: str, said: str) -> None:
    texts = ["x", bad, *["sleep 0.1"] * 20]
    scored = score(scorer, texts)
    assert rewards(scored) == [-1 if text == bad else 1 for text in texts]
    assert scored.failures == {"raised": 0, "timed_out": 0, "died": 0} | {kind: 1}
    assert str(scored.error).startswith(said)
    assert len({one.figures["process"] for one in scored.scores if one.figures}) == 1, "no process was lost"


def test_one_that_blocks_its_process_costs_those_under_way(file: str) -> None:
    scorer = make_scorer(file, concurrency=3)
    scored = score(scorer, ["x", "x", "x", "block", "sleep 1", "sleep 1", "x", "x"])
    scorer.close()
    assert rewards(scored) == [1, 1, 1, -1, -1, -1, 1, 1]
    assert scored.failures["timed_out"] == 3


def test_one_that_ends_its_process_costs_itself_only(file: str) -> None:
    """Those under way beside it are scored once more, each alone."""
    scorer = make_scorer(file, concurrency=3)
    scored = score(scorer, ["x", "x", "x", "die", "sleep 0.2", "sleep 0.2", "x", "x"])
    scorer.close()
    assert rewards(scored) == [1, 1, 1, -1, 1, 1, 1, 1]
    assert scored.failures["died"] == 1


def test_a_child_that_comes_back_does_not_answer_for_its_parent(scorer: Scorer) -> None:
    assert rewards(score(scorer, ["fork", "x", "sleep 0.1"])) == [1, 1, 1]
    assert rewards(score(scorer, ["raise", "raise", "x"])) == [-1, -1, 1]


def test_what_it_prints_is_bounded(
    file: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = make_scorer(file, time_limit_s=60)
    assert rewards(score(scorer, ["x", *["print"] * 3])) == [1] * 4
    scorer.close()
    printed = capfd.readouterr()
    # what is in the pipes when a completion is scored counts for the next one
    assert 4096 <= len(printed.out) + len(printed.err) <= 65536 + 4 * 4096
    assert caplog.text.count("a reward prints more than 4096 bytes at once: the rest is left out") == 1


def test_a_coroutine_over_lists_fails_for_all_of_them(file: str) -> None:
    scorer = make_scorer(file, "lists")
    assert rewards(score(scorer, ["x", "sleep 0.1"])) == [1, 1]
    for bad, kind in (("raise", "raised"), ("sleep 100", "timed_out"), ("die", "died")):
        scored = score(scorer, ["x", bad, "x"])
        assert rewards(scored) == [-1, -1, -1]
        assert scored.failures[kind] == 3
    scorer.close()


def test_coroutines_beside_plain_functions(file: str) -> None:
    scorer = make_scorer(file, rewards={"alone": 1, "short": 0.5, "lists": 2})
    assert rewards(score(scorer, ["x", "xx"])) == [1 + 0.5 + 2, 1 + 1 + 2]
    scorer.close()


def test_plain_functions_that_return_a_coroutine(file: str, tmp_path: Path) -> None:
    scorer = make_scorer(file, rewards={"alone": 1, "returns_one": 2, "returns_one_of_lists": 4})
    assert rewards(score(scorer, ["x", "xx"])) == [7, 7]
    scorer.close()
    scorer = make_scorer(file, rewards={"alone": 1, "returns_one": 2}, retries=1)
    assert rewards(score(scorer, ["x", "raise", "flaky"], tries=str(tmp_path / "tries"))) == [3, -1, 3]
    scorer.close()


def test_one_that_fails_is_tried_again(file: str, tmp_path: Path) -> None:
    scorer = make_scorer(file, retries=1)
    scored = score(scorer, ["flaky", "raise"], tries=str(tmp_path / "tries"))
    scorer.close()
    assert rewards(scored) == [1, -1]
    assert (tmp_path / "tries").read_text() == "xx"


class Counted:
    """A coroutine that notes when it is called, and raises at first."""

    def __init__(self, num_failures: int, error: type[BaseException] = ConnectionError):
        self.times: list[float] = []
        self.left, self.error = num_failures, error

    async def __call__(self) -> float:
        self.times.append(time.perf_counter())
        self.left -= 1
        if self.left >= 0:
            raise self.error("refused")
        return 1.0


def test_waits_between_attempts_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esmpi.tasks.calls._FIRST_WAIT_S", 0.05)
    monkeypatch.setattr("esmpi.tasks.calls._LONGEST_WAIT_S", 0.1)
    good, bad = Counted(3), Counted(99)

    async def run() -> None:
        assert await Calls(1, 9, retries=3)(good) == 1
        with pytest.raises(ConnectionError):
            await Calls(1, 9, retries=3)(bad)

    asyncio.run(run())
    for one in (good, bad):
        gaps = [after - before for before, after in zip(one.times, one.times[1:], strict=False)]
        assert len(gaps) == 3
        assert all(gap >= least for gap, least in zip(gaps, (0.05, 0.1, 0.1), strict=True))


def test_a_rate_limit_spaces_calls_out() -> None:
    one = Counted(0)

    async def run() -> None:
        call = Calls(100, 9, per_second=20)
        await asyncio.gather(*(call(one) for _ in range(9)))

    asyncio.run(run())
    gaps = [after - before for before, after in zip(one.times, one.times[1:], strict=False)]
    assert min(gaps) > 0.03
    assert one.times[-1] - one.times[0] >= 8 * 0.05 - 0.01


def test_a_call_that_is_cancelled_may_not_listen() -> None:
    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(0.3)
                return
            except asyncio.CancelledError:
                continue

    async def run() -> None:
        with pytest.raises(OutOfTimeError, match=r"no reward after 0\.05 s"):
            await Calls(1, 0.05)(deaf)

    started = time.perf_counter()
    asyncio.run(run())
    assert time.perf_counter() - started < 5


def test_the_scores_are_those_of_a_task(file: str) -> None:
    task = make_task(PythonTaskConfig(name=f"{file}:alone"))

    async def run() -> Any:
        return await task.score_async([Sample(completion="x", example={"prompt": "p"})], Progress(), Calls(1, 9))

    [one] = asyncio.run(run())
    assert isinstance(one, Score)
    assert (one.reward, dict(one.figures)) == (1, {"process": os.getpid()})
