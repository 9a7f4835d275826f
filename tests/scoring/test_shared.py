"""A pool that several processes share: the same results as with a pool of one's own, and an end with its host."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Client, Connection
from multiprocessing.context import AuthenticationError
from pathlib import Path

import pytest
from plain_task import PlainTask

from esmpi.config.problems import ScoringConfig
from esmpi.errors import UserError
from esmpi.scoring import RemoteScorer, Scorer
from esmpi.scoring.shared import Invitation
from esmpi.tasks import Example, Sample, Score, TaskConfig


class Lengths(PlainTask):
    """A task whose reward is the completion's length; some completions end or block its process."""

    name = "lengths"

    def score(self, completion: str, example: Example) -> Score:
        if completion == "die":
            os._exit(7)
        if completion == "block":
            time.sleep(1000)
        return Score(reward=float(len(completion)), correct=False, figures={"process": os.getpid()})


def make_scorer() -> Scorer:
    config = ScoringConfig(failure_reward=-1.0, time_limit_s=60.0)
    return Scorer(partial(Lengths, TaskConfig(name="lengths")), config)


def samples(texts: list[str]) -> list[Sample]:
    return [Sample(completion=text, example={}) for text in texts]


@pytest.fixture
def own() -> Iterator[Scorer]:
    scorer = make_scorer()
    yield scorer
    scorer.close()


def test_all_get_their_own_results_from_the_same_processes(own: Scorer) -> None:
    with Invitation(own, 2) as invitation:
        guests = [RemoteScorer(invitation.address, invitation.key) for _ in range(2)]
    assert not Path(invitation.address).parent.exists()
    many = ["x" * i for i in range(50)]  # more than the process gets at once
    futures = [(part, one.submit(samples(part))) for part in (many, [], ["z"] * 3) for one in (own, *guests)]
    scores = [(part, future.result(60).scores) for part, future in futures]
    assert all([score.reward for score in its] == [len(text) for text in part] for part, its in scores)
    assert len({score.figures["process"] for _, its in scores for score in its}) == 1
    scored = guests[0].submit(samples([*many[:20], "die", *many])).result(60)
    assert [score.reward for score in scored.scores] == [*range(20), -1, *range(50)]
    assert scored.failures["died"] == 1
    assert list(scored.failed) == [20]
    for guest in guests:
        guest.close()
    assert own.submit(samples(["over"])).result(60).scores[0].reward == 4


def test_nobody_comes_without_the_key(own: Scorer) -> None:
    with Invitation(own, 2) as invitation:
        assert Path(invitation.address).parent.stat().st_mode & 0o77 == 0
        with pytest.raises(AuthenticationError):
            Client(invitation.address, "AF_UNIX", authkey=b"guessed")
        guest = RemoteScorer(invitation.address, invitation.key)
        assert guest.submit(samples(["abc"])).result(60).scores[0].reward == 3
        guest.close()
    with pytest.raises(UserError, match=r"scoring\.per_node: this rank cannot reach the processes for rewards"):
        RemoteScorer(invitation.address, invitation.key)


def host(pipe: Connection) -> None:
    scorer = make_scorer()
    with Invitation(scorer, 1) as invitation:
        pipe.send((invitation.address, invitation.key))
        pipe.recv()
    time.sleep(1000)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_end_of_the_host_is_the_end_of_what_was_submitted_and_of_the_processes() -> None:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=host, args=(theirs,))
    process.start()
    guest = RemoteScorer(*pipe.recv())
    pipe.send(None)
    pid = int(guest.submit(samples(["a"])).result(60).scores[0].figures["process"])
    assert is_alive(pid)
    waiting = guest.submit(samples(["block"]))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the first rank of this node, which has the processes for rewards, has"):
        waiting.result(60)
    with pytest.raises(RuntimeError, match="has ended"):  # and not a wait without end
        guest.submit(samples(["b"])).result(60)
    guest.close()
    process.join()
    ended = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < ended:
        time.sleep(0.05)
    assert not is_alive(pid)
