"""Rewards of every form that do what they should not: each costs what it scored, and nothing after it."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from esmpi.config.problems import ScoringConfig
from esmpi.scoring import RemoteScorer, Scored, Scorer
from esmpi.scoring.shared import Invitation
from esmpi.tasks import Sample, Task, TaskConfig, Turns, make_task
from esmpi.tasks.env import EnvConfig
from esmpi.tasks.python import PythonTaskConfig

FILE = """\
import asyncio, multiprocessing, os, pathlib, random, signal, subprocess, sys, threading, time
import numpy as np
import esmpi

HERE = pathlib.Path(__file__).parent

def say(text):
    match text:
        case "hang": time.sleep(1000)
        case "end": os._exit(7)
        case "exit": sys.exit("no more")
        case "interrupt": raise KeyboardInterrupt
        case "eat":
            kept = []
            while True:
                kept.append(bytearray(10**7))
        case "fork": os.fork()  # and the child goes on as its parent does
        case "children":
            for _ in range(20):
                if os.fork() == 0:
                    time.sleep(1000)
            with open(HERE / "children", "a") as file:
                print(subprocess.Popen(["sleep", "1000"]).pid, file=file)
        case "print":
            for _ in range(100):
                os.write(1, b"x" * 10**6)
        case "close":
            for number in range(3):
                os.close(number)
        case "close all": os.closerange(3, 1000)
        case "change":
            os.chdir("/")
            random.seed(0)
            np.random.seed(0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.alarm(1)
        case "terminate":
            sleeps = subprocess.Popen(["sleep", "1000"])
            sleeps.terminate()
            other = multiprocessing.Process(target=time.sleep, args=(1000,))
            other.start()
            other.terminate()
            other.join(60)
            if (sleeps.wait(60), other.exitcode) != (-15, -15):
                raise LookupError("they are still there")
        case "processes":
            with multiprocessing.Pool(2) as pool:
                return float(sum(pool.map(len, ["ab", "c"])))
        case "chance":
            # the order of a set of texts, two global generators, and the working directory
            order = "".join({"a", "b", "c", "d", "e", "f", "g"})
            return int(order, 17) / 17**7 + random.random() + np.random.random() + len(os.getcwd())
    return 1.0

def one(completion, example):
    return say(completion)

def lists(completions, prompts, **columns):
    return [say(text) for text in completions]

async def coroutine(completion, example):
    return say(completion)

async def coroutine_of_lists(completions, examples):
    return [say(text) for text in completions]

class Environment(esmpi.Environment):
    def reset(self, example, seed):
        return "Say something:"

    def step(self, completion):
        return say(completion)
"""

FORMS = (
    *("one", "lists, batch", "lists, group", "coroutine", "coroutine_of_lists", "Environment"),
    "lists, batch of another rank",
)
FATES = {
    "hang": "timed_out",
    "end": "died",
    **dict.fromkeys(("exit", "interrupt", "eat"), "raised"),
    **dict.fromkeys(("fork", "children", "print", "close", "change", "terminate", "processes"), "ok"),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("forms") / "own.py"
    path.write_text(FILE)
    return path


def config_of(file: Path, form: str) -> TaskConfig:
    function, _, scope = form.removesuffix(" of another rank").partition(", ")
    if function == "Environment":
        return EnvConfig(name=f"env:{file}:Environment")
    if scope == "group":
        return PythonTaskConfig(name=f"{file}:{function}", reward_scope="group")
    return PythonTaskConfig(name=f"{file}:{function}")


class Pool:
    """What scores completions by a reward of one of the forms."""

    def __init__(self, file: Path, form: str, stack: ExitStack, num_processes: int = 1):
        config = config_of(file, form)
        self.task: Task = make_task(config)
        settings = ScoringConfig(
            failure_reward=-1, time_limit_s=3.0, memory_gib=0.75, num_processes=num_processes, concurrency=4
        )
        make = partial(make_task, config, self.task.source)
        own = Scorer(
            make, settings, scope=self.task.scope, is_async=self.task.is_async, takes_turns=self.task.takes_turns
        )
        stack.callback(own.close)
        self.scorer: Scorer | RemoteScorer = own
        if form.endswith("of another rank"):
            invitation = stack.enter_context(Invitation(own, 1))
            self.scorer = RemoteScorer(invitation.address, invitation.key)
            stack.callback(self.scorer.close)

    def score(self, *texts: str) -> Scored:
        samples = [
            Sample(
                completion=text,
                example={"prompt": "p"},
                turns=Turns(seed=5, completions=(text,), place=place) if self.task.takes_turns else None,
            )
            for place, text in enumerate(texts)
        ]
        return self.scorer.submit(samples, 2).result(timeout=60)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("form", FORMS)
def test_what_a_reward_does_costs_what_it_scored_at_most(file: Path, form: str) -> None:
    with ExitStack() as stack:
        pool = Pool(file, form, stack)
        for fate, kind in FATES.items():
            scored = pool.score(fate)
            found = {name: count for name, count in scored.failures.items() if count}
            assert found == ({} if kind == "ok" else {kind: 1}), (fate, scored.error)
            [score] = scored.scores
            assert score.reward == (-1.0 if kind != "ok" else 3.0 if fate == "processes" else 1.0), fate
            assert [one.reward for one in pool.score("x", "x").scores] == [1.0, 1.0], f"after {fate}"
        # a process without its pipe may end, or be taken for one that hangs
        assert form != "one" or pool.score("close all", "x").num_failed == 1
    pids = [int(line) for line in (file.parent / "children").read_text().split()]
    deadline = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "what a reward has started is there after the run"
        time.sleep(0.05)


@pytest.fixture
def _no_hash_seed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    yield
    assert "PYTHONHASHSEED" not in os.environ


@pytest.mark.usefixtures("_no_hash_seed")
@pytest.mark.parametrize("form", ["one", "lists, group", "Environment"])
def test_chance_is_the_same_in_each_process_and_after_whatever_else(file: Path, form: str) -> None:
    random.seed(1)
    before = random.getstate()
    found = []
    for num_processes, texts in ((2, ["chance"]), (1, ["x", "change", "x", "x", "chance"])):
        with ExitStack() as stack:
            pool = Pool(file, form, stack, num_processes)
            for text in texts[:-1]:
                pool.score(text, text, text, text)
            scored = pool.score(texts[-1], texts[-1])
            assert not scored.num_failed, scored.error
            found.append([one.reward for one in scored.scores])
    assert found[0] == found[1]
    assert random.getstate() == before, "the run's own generator is another one"


def test_chance_depends_on_what_is_scored_and_on_the_generation(file: Path) -> None:
    from esmpi.tasks._chance import seed_generators

    drawn = []
    before = random.getstate()
    for what in ((0, ["a"]), (0, ["b"]), (1, ["a"]), (0, ["a"]), (0, ["\ud800"])):
        seed_generators(*what)
        drawn.append(random.random())
    random.setstate(before)
    assert len(set(drawn)) == 4
    assert drawn[0] == drawn[3]


GAME = """\
import random
import esmpi

class Dice(esmpi.Environment):
    def reset(self, example, seed):
        self.thrown = [random.randint(1, 10**6)]
        return str(self.thrown)

    def step(self, completion):
        self.thrown.append(random.randint(1, 10**6))
        return str(self.thrown)
"""


def test_an_episode_that_is_played_again_has_the_same_chance(tmp_path: Path) -> None:
    (tmp_path / "game.py").write_text(GAME)
    config = EnvConfig(name=f"env:{tmp_path}/game.py:Dice")
    kept, again = make_task(config), make_task(config)
    said = [kept.play(EXAMPLE, 7, ["a", "b", "c"][:turns]) for turns in range(4)]  # type: ignore[attr-defined]
    assert again.play(EXAMPLE, 7, ["a", "b", "c"]) == said[3]  # type: ignore[attr-defined]
    assert again.play(EXAMPLE, 8, ["a", "b", "c"]) != said[3]  # type: ignore[attr-defined]
    assert len(set(said)) == 4


EXAMPLE = {"prompt": "p"}
