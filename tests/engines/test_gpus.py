"""GPUs of a node and its ranks, without a GPU: what is too few, and what is used twice."""

import pytest

from esmpi.launch.gpus import shared_gpus, too_few


@pytest.mark.parametrize(
    ("visible", "per_rank", "ranks", "trouble"),
    [
        (8, 1, 8, None),
        (8, 4, 2, None),
        (1, 1, 8, None),  # Slurm bound one to each rank
        (2, 2, 4, None),
        (8, 8, 1, None),
        (8, 1, 1, None),
        (1, 2, 4, "uses 2 GPUs, but sees 1"),
        (0, 1, 1, "uses 1 GPUs, but sees 0"),
        (4, 1, 8, "8 ranks on this node with 1 GPUs each share 4 GPUs"),
        (8, 4, 3, "3 ranks on this node with 4 GPUs each share 8 GPUs"),
    ],
)
def test_there_are_enough_gpus(visible: int, per_rank: int, ranks: int, trouble: str | None) -> None:
    said = too_few(visible, per_rank, ranks)
    assert (said is None) if trouble is None else (said is not None and trouble in said)


def test_gpus_that_several_ranks_use_are_named() -> None:
    assert shared_gpus(["a", "a", "b", "b"], [["x"], ["y"], ["x"], ["y"]]) == []
    assert shared_gpus(["a", "a"], [[], []]) == []
    assert shared_gpus(["a", "a", "b"], [["x", "y"], ["z", "x"], ["x"]]) == ["ranks [0, 1] use the same GPU of a, x"]
