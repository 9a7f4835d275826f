"""Which of the training problems a generation sees."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from esmpi.config.sections import DataConfig
from esmpi.data.problem import Example
from esmpi.es.random_streams import stream

_T = TypeVar("_T")


def batch(config: DataConfig, train: list[Example], run_seed: int, generation: int) -> list[Example]:
    """Return the prompts' examples of a generation; depends on nothing but the arguments, so it can be resumed."""
    if config.order == "fixed":
        return train[: config.batch_size]
    if config.order == "random":
        chosen = stream(run_seed, "batch", generation).choice(len(train), config.batch_size, replace=False)
        return [train[i] for i in chosen.tolist()]
    start = generation * config.batch_size
    positions = range(start, start + config.batch_size)
    orders = {
        epoch: stream(run_seed, "epoch", epoch).permutation(len(train))
        for epoch in {position // len(train) for position in positions}
    }
    return [train[orders[position // len(train)][position % len(train)]] for position in positions]


def in_parts(items: Sequence[_T], size: int | None) -> Iterator[Sequence[_T]]:
    """Yield neighbouring items, `size` at a time; all of them at once if there is no size."""
    step = size or max(1, len(items))
    for start in range(0, len(items), step):
        yield items[start : start + step]
