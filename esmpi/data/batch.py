"""Which of the training problems a generation sees."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeVar

from esmpi.config.problems import DataConfig
from esmpi.data.problem import Example
from esmpi.es.random_streams import stream

_T = TypeVar("_T")


def batch(config: DataConfig, train: list[Example], run_seed: int, turn: int) -> list[Example]:
    """Return the examples of a batch of prompts; depends on nothing but the arguments, so it can be resumed.

    `turn` counts batches from 0, over the whole run: generations, if their members share the prompts.
    """
    if config.order == "fixed":
        return train[: config.batch_size]
    if config.order == "random":
        chosen = stream(run_seed, "batch", turn).choice(len(train), config.batch_size, replace=False)
        return [train[i] for i in chosen.tolist()]
    size = len(train)
    start = turn * config.batch_size
    places = (divmod(position, size) for position in range(start, start + config.batch_size))
    return [train[_order(run_seed, epoch, size)[place]] for epoch, place in places]


@lru_cache(maxsize=8)
def _order(run_seed: int, epoch: int, size: int) -> list[int]:
    order: list[int] = stream(run_seed, "epoch", epoch).permutation(size).tolist()
    return order


def in_parts(items: Sequence[_T], size: int | None) -> Iterator[Sequence[_T]]:
    """Yield neighbouring items, `size` at a time; all of them at once if there is no size."""
    step = size or max(1, len(items))
    for start in range(0, len(items), step):
        yield items[start : start + step]
