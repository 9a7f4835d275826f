"""The arithmetic of tools/forecast.py, on cases small enough to count by hand."""

import itertools
import sys

import numpy as np
from support import ROOT

sys.path.append(str(ROOT / "tools"))

import forecast


def steps_of(lengths: list[int], most: int = 99) -> list[tuple[int, int]]:
    """Return, for each step, how many completions it decodes and how many tokens they have so far."""
    seen: list[tuple[int, int]] = []

    def step(active: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        seen.extend(zip(active.tolist(), tokens.tolist(), strict=True))
        return np.ones(len(active))

    assert forecast.decoding(np.array(lengths), step, most) == len(seen)
    return seen


def test_a_batch_is_decoded_until_its_longest_completion_ends() -> None:
    assert steps_of([3, 1, 2]) == [(3, 0), (2, 2), (1, 2)]


def test_completions_that_have_no_place_wait_for_one() -> None:
    # the third begins when the second has ended, and the fourth with the third's end
    assert steps_of([4, 1, 2, 1], 2) == [(2, 0), (2, 1), (2, 3), (2, 3)]


def test_whoever_is_free_takes_the_next() -> None:
    assert forecast.listed([3.0, 1.0, 1.0, 2.0], 2) == 4.0
    assert forecast.listed([1.0] * 5, 1) == 5.0


def test_more_gpus_are_never_slower_and_batches_never_slower_than_one_by_one() -> None:
    run, gpu = forecast.RUNS[0], forecast.GPUS["H100"]
    found = [forecast.generation(run, gpu, ranks, 0) for ranks in (1, 4, 30, 64)]
    for fewer, more in itertools.pairwise(found):
        assert all(more[way] <= fewer[way] for way in fewer)
    assert all(seconds["batched"] <= seconds["dynamic"] <= seconds["static"] * 1.0001 for seconds in found)
    assert found[2] == found[3]  # a rank evaluates whole members
