"""The recorder: generations are made durable beside the loop, in order, and what goes wrong is not lost."""

import logging
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import LEAST_CONFIG

from esmpi.es.population import Results, message_dtype
from esmpi.files import FullError
from esmpi.record.evaluation import Evaluation
from esmpi.record.recorder import Recorder, Step
from esmpi.stopwatch import Stopwatch
from esmpi.store.run_file import RunFile

EVALUATION = Evaluation(
    accuracy=0.5,
    reward_mean=0.5,
    num_samples=2,
    num_problems=2,
    num_truncated=0,
    tokens_mean=1.0,
    tokens_max=1,
    characters_mean=1.0,
    num_failed=0,
    num_unparsed=0,
    seconds=0.1,
)


class SlowRunFile(RunFile):
    """A run file on a server that answers a thread's writes one by one, as they are let; notes who has written."""

    def __init__(self, path: Path, attributes: dict[str, object]):
        super().__init__(path, attributes)
        self.may_write = threading.Semaphore(0)
        self.writers: list[str] = []

    def _write(self, image: memoryview) -> None:
        writer = threading.current_thread()
        if writer is not threading.main_thread():
            self.may_write.acquire()
        super()._write(image)
        self.writers.append(writer.name.partition("_")[0])


class FullRunFile(RunFile):
    """A run file on a full disk."""

    def _write(self, image: memoryview) -> None:
        raise FullError("no room")


def make(kind: type[RunFile], folder: Path) -> RunFile:
    return kind.create(folder / "run.h5", LEAST_CONFIG, 1, "", ["w"], {})


def commit(recorder: Recorder, generation: int, watch: Stopwatch | None = None) -> None:
    messages = np.zeros(1, message_dtype(2))
    messages["fitness"] = generation, generation + 1
    step = Step(coefficients=np.array([-1, 1], np.float32), sigma=0.1, alpha=0.05, digest=generation + 7)
    recorder.commit(generation, Results(messages, np.arange(2)), step, watch or Stopwatch())


def test_a_commit_does_not_hold_up_what_comes_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = make(SlowRunFile, tmp_path)
    assert isinstance(run, SlowRunFile)
    recorder = Recorder(run, 3)
    commit(recorder, 0)
    assert not run.path.exists()
    assert "1/3 done" not in caplog.text  # it is said when it is so
    run.may_write.release()
    recorder.wait()
    assert RunFile.open(run.path).num_generations == 1
    assert "1/3 done" in caplog.text
    recorder.close()


def test_there_is_one_commit_at_a_time_and_all_else_comes_after_it(tmp_path: Path) -> None:
    run = make(SlowRunFile, tmp_path)
    assert isinstance(run, SlowRunFile)
    recorder = Recorder(run, 3)
    commit(recorder, 0)
    threading.Timer(0.3, run.may_write.release).start()
    started = time.monotonic()
    commit(recorder, 1)
    assert time.monotonic() - started > 0.2
    threading.Timer(0.3, run.may_write.release).start()
    recorder.add_evaluation("held_out", 2, EVALUATION, [])
    assert run.writers == ["esmpi-commit", "esmpi-commit", "MainThread"]
    assert [int(row["theta_digest"]) for row in RunFile.open(run.path).generations] == [7, 8]
    recorder.close()


def test_waiting_for_rewards_is_shown_if_it_is_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder(make(RunFile, tmp_path), 3)
    for generation, waited in enumerate((0.05, 0.5)):
        watch = Stopwatch()
        watch.started -= 1  # a generation of a second
        watch.add("wait", 0.0, waited)
        commit(recorder, generation, watch)
        recorder.wait()
    recorder.close()
    lines = [line for line in caplog.text.splitlines() if "done, left" in line]
    assert "waiting" not in lines[0]
    assert re.search(r"waiting for rewards (50|4\d) %  2/3 done", lines[1])  # a little more than a second has passed


def test_what_rewards_cost_is_shown_beside_generation_if_it_is_much(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder(make(RunFile, tmp_path), 3)
    for generation, scored in enumerate((0.19, 0.21, 7.0)):
        watch = Stopwatch()
        watch.started -= 10
        watch.add("generate", 0.0, 2.0)
        watch.add("score", 1.0, 1.0 + scored)
        commit(recorder, generation, watch)
        recorder.wait()
    recorder.close()
    lines = [line for line in caplog.text.splitlines() if "done, left" in line]
    assert "generating" not in lines[0]
    assert "  generating 2.0 s, rewards 0.2 s  2/3 done" in lines[1]
    assert "  generating 2.0 s, rewards 7.0 s  3/3 done" in lines[2]


def test_what_cannot_be_written_ends_the_run_at_the_next_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorder = Recorder(make(FullRunFile, tmp_path), 3)
    commit(recorder, 0)
    with pytest.raises(FullError, match="no room"):
        commit(recorder, 1)
    commit(recorder, 1)
    time.sleep(0.5)
    with pytest.raises(FullError, match="no room"):
        recorder.check()  # as before each member
    recorder.close()
    assert "generation" not in caplog.text


def test_what_cannot_be_written_is_said_if_something_else_ends_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(make(FullRunFile, tmp_path), 3)
    commit(recorder, 0)
    recorder.close()
    assert "the last generation is not committed: no room" in caplog.text


def test_generations_without_a_signal_say_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = make(RunFile, tmp_path)
    recorder = Recorder(run, 30)
    for generation in range(22):
        messages = np.zeros(1, message_dtype(2))
        messages["fitness"] = [0.5, 0.25] if generation == 10 else [0.5, 0.5]
        coefficients = np.array([1, -1] if generation == 10 else [0, 0], np.float32)
        step = Step(coefficients=coefficients, sigma=0.1, alpha=0.05, digest=0)
        recorder.commit(generation, Results(messages, np.arange(2)), step, Stopwatch())
    recorder.close()
    said = [record.getMessage() for record in caplog.records]
    lines = [line for line in said if line.startswith("generation")]
    assert [i for i, line in enumerate(lines) if "no signal" not in line] == [10]
    assert lines[0].endswith("no signal: all members have the same fitness")
    assert [line.split()[0] for line in said if "nothing is learned" in line] == ["10", "10"]


def test_theta_stands_beside_its_members_when_it_was_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    written: list[Any] = []
    monkeypatch.setattr(Recorder, "_write_to_sinks", lambda self, group, generation, figures: written.append(figures))
    recorder = Recorder(make(RunFile, tmp_path), 30)
    for generation, fitness in enumerate((math.nan, 0.4125)):
        messages = np.zeros(1, message_dtype(2))
        messages["fitness"] = 0.25, 0.5
        factors = np.array([-1, 1], np.float32)
        step = Step(coefficients=factors, sigma=0.1, alpha=0.05, digest=7, theta_fitness=fitness)
        recorder.commit(generation, Results(messages, np.arange(2)), step, Stopwatch())
    recorder.close()
    first, second = (record.getMessage() for record in caplog.records)
    assert "fitness mean 0.375 best 0.500  " in first
    assert "fitness mean 0.375 best 0.500 theta 0.412  " in second
    assert ["fitness_theta" in figures for figures in written] == [False, True]
    assert written[1]["fitness_theta"] == 0.4125
    assert [row["fitness_theta"] for row in RunFile.open(tmp_path / "run.h5").generations][1] == 0.4125
