"""The members of a generation: their seeds and signs, who evaluates whom, and what ranks send one another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from esmpi.errors import SharedError
from esmpi.es.member_columns import SENT, Column
from esmpi.noise import member_seeds
from esmpi.wording import listed


@dataclass(frozen=True)
class Members:
    """The members of a generation; a member's number is its place in these columns."""

    seeds: np.ndarray
    """(N,) uint64."""
    signs: np.ndarray
    """(N,) int8: 1, or -1 for the second of an antithetic pair, which has the seed of the first."""

    def __len__(self) -> int:
        return len(self.seeds)


FAILURES = ("raised", "timed_out", "died")
"""How the reward of a completion can fail: it raised (or returned no reasonable number), took too long, or ended its
process."""


def message_dtype(length: int) -> np.dtype:
    """Return the dtype of the message that a rank sends to the others: all that is ever exchanged in a generation.

    It is the same for all ranks, so `length` is the most members that a rank has. Each property of the members is a
    column, (length,), so that reading a single property reads consecutive memory.
    """
    return np.dtype(
        [
            ("digest", np.uint64),  # of theta before this generation's update
            *((f"score_{kind}", np.int64) for kind in FAILURES),  # completions whose reward could not be computed
            # the widest types first, so that alignment needs no padding
            *((column.name, column.dtype, (length,)) for column in sorted(SENT, key=_itemsize, reverse=True)),
            ("stop", np.uint8),  # 1: this rank was asked to stop after this generation
            ("figures", np.uint8),  # 1: the rewards of this rank's members have further numbers, which follow
        ],
        align=True,
    )


def _itemsize(column: Column) -> int:
    return np.dtype(column.dtype).itemsize


def message_of(
    length: int, digest: int, stop: bool, failures: Mapping[str, int], columns: Mapping[str, ArrayLike]
) -> np.ndarray:
    """Return the message of a rank, () of message_dtype(length).

    Parameters
    ----------
    length : int
        The most members that a rank has.
    digest : int
        Of theta before this generation's update.
    stop : bool
        Whether this rank was asked to stop after this generation.
    failures : mapping of str to int
        Completions of this rank whose reward could not be computed, by the kinds of `FAILURES`.
    columns : mapping of str to (n,) array
        What `esmpi.es.member_columns.SENT` asks for, of the n members that this rank evaluated.
    """
    message = np.zeros((), message_dtype(length))
    message["digest"], message["stop"] = digest, stop
    for kind in FAILURES:
        message[f"score_{kind}"] = failures.get(kind, 0)
    message["member"] = -1
    for column in SENT:
        values = _within(columns[column.name], np.dtype(column.dtype))
        message[column.name][: len(values)] = values
    return message


def _within(values: ArrayLike, dtype: np.dtype) -> np.ndarray:
    """Return values as a type; counts that are too large for it become its largest number."""
    if dtype == np.int32:
        limits = np.iinfo(np.int32)
        return np.clip(np.asarray(values, np.int64), limits.min, limits.max).astype(np.int32)
    return np.asarray(values, dtype)


class Results:
    """What the ranks sent, by member: `results["fitness"]` and each other column is (N,), in the order of the members.

    Parameters
    ----------
    messages : (ranks,) of message_dtype
    places : (N,) int64
        Where each member is among all that was sent: rank * length + position.
    """

    def __init__(self, messages: np.ndarray, places: np.ndarray):
        self._messages = messages
        self._places = places

    def __getitem__(self, column: str) -> np.ndarray:
        sent = self._messages[column]
        if sent.ndim != 2:
            raise KeyError(f"{column} is of a rank, not of its members: see `total`")
        return sent.reshape(-1).take(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def by_member(self, sent: np.ndarray) -> np.ndarray:
        """Return by member, (N, ...), what ranks sent besides, (ranks, length, ...), in the order of their members."""
        return sent.reshape(-1, *sent.shape[2:]).take(self._places, axis=0)

    @property
    def ranks(self) -> np.ndarray:
        """Who evaluated each member, (N,) int64."""
        return self._places // self._messages["member"].shape[1]

    def total(self, name: str) -> int:
        """Return the sum of what each rank sent of itself as a whole."""
        return int(self._messages[name].sum())


class ExchangeError(RuntimeError):
    """The ranks do not agree on what they computed, so the run must not continue."""


class DesyncError(SharedError):
    """The weights of a rank are not what they must be. All ranks raise it together."""

    exit_code = 1


ADVICE = (
    "A memory or processor may be defective. Nothing of it is committed: rerun the same command to resume, on other "
    "nodes if it happens again, or set run.on_desync=repair"
)
"""What to do after a DesyncError."""


def plan(run_seed: int, generation: int, population_size: int, antithetic: bool) -> Members:
    """Return the members of a generation. The same on every rank, without asking."""
    if antithetic:
        seeds = np.repeat(member_seeds(run_seed, generation, population_size // 2), 2)
        return Members(seeds, np.tile(np.array([1, -1], np.int8), population_size // 2))
    return Members(member_seeds(run_seed, generation, population_size), np.ones(population_size, np.int8))


def share(population_size: int, rank: int, size: int) -> range:
    """Return the members that a rank evaluates: neighbours, and no rank has two more than another."""
    each, rest = divmod(population_size, size)
    start = rank * each + min(rank, rest)
    return range(start, start + each + (rank < rest))


def check(messages: np.ndarray, members: Members) -> Results:
    """Check what all ranks sent against the plan, and return it by member.

    Parameters
    ----------
    messages : (ranks,) of message_dtype
    members : Members

    Raises
    ------
    DesyncError
        If digests of theta differ.
    ExchangeError
        If a member is missing, there twice, or has another seed or sign.
    """
    digests = messages["digest"]
    if (digests != digests[0]).any():
        raise DesyncError(f"before the update, {describe_digests(digests.tolist())}. {ADVICE}")
    expected = np.arange(len(members))
    sent = messages["member"].reshape(-1)
    places = np.flatnonzero(sent >= 0)
    sent = sent.take(places)
    if not np.array_equal(sent, expected):  # with dynamic dispatch, members arrive in any order
        order = np.argsort(sent, kind="stable")
        sent, places = sent[order], places[order]
    if not np.array_equal(sent, expected):
        counts = Counter(sent.tolist())
        missing = sorted(set(expected.tolist()) - counts.keys())
        wrong = sorted(member for member, count in counts.items() if count > 1 or member >= len(expected))
        raise ExchangeError(f"members evaluated other than once: missing {missing}, more than once or unknown {wrong}")
    results = Results(messages, places)
    for column, planned in (("seed", members.seeds), ("sign", members.signs)):
        said = results[column]
        if not np.array_equal(said, planned):
            member = int(np.flatnonzero(said != planned)[0])
            raise ExchangeError(
                f"rank {results.ranks[member]} evaluated member {member} with {column} {said[member]}, "
                f"the plan says {planned[member]}: do all ranks run the same esmpi and config?"
            )
    return results


def idle_seconds(ranks: np.ndarray, seconds: np.ndarray, num_ranks: int) -> np.ndarray:
    """Return for each rank, (num_ranks,), how much longer the busiest rank was at its members of a generation.

    Parameters
    ----------
    ranks : (N,) of int
        Who evaluated each member.
    seconds : (N,) of float
        How long that took.
    num_ranks : int
    """
    busy = np.bincount(ranks, weights=seconds, minlength=num_ranks)
    return np.asarray(busy.max() - busy)


def describe_digests(digests: Sequence[int], hosts: Sequence[str] = ()) -> str:
    """Return a message that names which ranks, on which hosts, have which digest of theta."""
    groups: dict[int, list[int]] = {}
    for rank, digest in enumerate(digests):
        groups.setdefault(digest, []).append(rank)
    parts = [
        f"{digest:016x} on ranks {ranks}" + (f" ({listed(sorted({hosts[rank] for rank in ranks}))})" if hosts else "")
        for digest, ranks in groups.items()
    ]
    return "theta differs between ranks: " + "; ".join(parts)
