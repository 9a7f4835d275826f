"""What is recorded of members besides their fitness, by hand; tests/mpi has it in whole runs."""

import math
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np

from esmpi.es.fitness import Fitness
from esmpi.es.population import Results, message_dtype
from esmpi.evaluated import Evaluated, gather_figures
from esmpi.scoring import Scored
from esmpi.tasks import Score


def member(number: int, *figures: dict[str, float]) -> Evaluated:
    scores: Future[Scored] = Future()
    scores.set_result(Scored(scores=[Score(reward=1.0, correct=True, figures=one) for one in figures]))
    return Evaluated(number, 0, 1, 0.0, 0, scores, Fitness())


def test_members_without_a_figure_do_not_count() -> None:
    mine = [
        member(0, {"a": 1.0, "b": 2.0}, {"a": 3.0}),
        member(1, {}, {"b": 4.0, "c": math.inf}),
        member(2, {"a": 5.0, "d": math.nan}),
    ]
    messages = np.zeros(1, message_dtype(3))
    alone: Any = SimpleNamespace(
        comm=SimpleNamespace(allgather_object=lambda value: [value], allgather_array=lambda array: array[np.newaxis]),
        dispatch=SimpleNamespace(most_members=lambda size, count: count),
    )
    results = Results(messages, np.arange(3))
    assert gather_figures(alone, mine, messages, results) == {}, "no rank says that there are any"
    messages["figures"] = 1
    found = gather_figures(alone, mine, messages, results)
    assert list(found) == [f"{name}_{what}" for name in "abcd" for what in ("mean", "std")]
    assert [found[name] for name in ("a_mean", "a_std", "b_mean", "b_std")] == [3.5, 1.5, 3.0, 1.0]
    assert all(math.isnan(found[name]) for name in ("c_mean", "c_std", "d_mean", "d_std"))
