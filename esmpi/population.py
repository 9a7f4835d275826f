"""The members of a generation: their seeds and signs, who evaluates whom, and what ranks tell one another."""

from collections.abc import Sequence

import numpy as np

from esmpi.noise import member_seeds

OK, FAILED, ABSENT = 0, 1, 2
"""Status of a member: evaluated; not (then its fitness is NaN and its coefficient 0); or, in files, only padding of a
generation that has fewer members than others."""

PLAN_DTYPE = np.dtype([("member", np.int64), ("seed", np.uint64), ("sign", np.int8)])

RECORD_DTYPE = np.dtype(
    [
        ("member", np.int64),  # -1: padding of a rank that has fewer members than others
        ("seed", np.uint64),
        ("digest", np.uint64),  # of theta before this generation's update
        ("fitness", np.float64),
        ("seconds", np.float64),  # perturbing and generating
        ("tokens", np.int64),
        # completions whose reward could not be computed, by kind: see `esmpi.scoring.FAILURES`
        *((f"score_{kind}", np.int32) for kind in ("raised", "timed_out", "died")),
        ("rank", np.int32),
        ("sign", np.int8),
        ("status", np.uint8),
        ("stop", np.uint8),  # 1: this rank was asked to stop after this generation
    ],
    align=True,
)
"""What a rank tells the others about a member: all that is ever exchanged in a generation."""


class ExchangeError(RuntimeError):
    """The ranks do not agree on what they did; going on would train garbage."""


def plan(run_seed: int, generation: int, population_size: int, antithetic: bool) -> np.ndarray:
    """Return the members of a generation, (N,) of `PLAN_DTYPE`. The same on every rank, without asking."""
    members = np.zeros(population_size, PLAN_DTYPE)
    members["member"] = np.arange(population_size)
    if antithetic:
        members["seed"] = np.repeat(member_seeds(run_seed, generation, population_size // 2), 2)
        members["sign"] = np.tile([1, -1], population_size // 2)
    else:
        members["seed"] = member_seeds(run_seed, generation, population_size)
        members["sign"] = 1
    return members


def shard(population_size: int, rank: int, size: int) -> range:
    """Return the members that a rank evaluates: neighbours, and no rank has two more than another."""
    each, rest = divmod(population_size, size)
    start = rank * each + min(rank, rest)
    return range(start, start + each + (rank < rest))


def pad(records: np.ndarray, length: int, fill: np.ndarray) -> np.ndarray:
    """Return the records with padding up to the length that is the same for all ranks, at least 1."""
    padded = np.repeat(fill, max(1, length))
    padded["member"] = -1
    padded[: len(records)] = records
    return padded


def check(gathered: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Check what all ranks said against the plan, and return one record a member, in order.

    Parameters
    ----------
    gathered : (ranks, length) of RECORD_DTYPE
    members : (N,) of PLAN_DTYPE

    Raises
    ------
    ExchangeError
        If digests of theta differ, or a member is missing, there twice, or has another seed or sign.
    """
    digests = gathered["digest"][:, 0]
    if (gathered["digest"] != digests[0]).any():
        raise ExchangeError(describe_digests(digests.tolist()))
    records = gathered.reshape(-1)
    # take: indexing copies records field by field, thirty times as slowly
    if (padding := records["member"] < 0).any():
        records = records.take(np.flatnonzero(~padding))
    if (records["member"][1:] < records["member"][:-1]).any():  # whoever was free took the next member
        records = records.take(np.argsort(records["member"], kind="stable"))
    if not np.array_equal(records["member"], members["member"]):
        expected = set(members["member"].tolist())
        said = records["member"].tolist()
        raise ExchangeError(
            f"members evaluated other than once: missing {sorted(expected - set(said))}, "
            f"more than once or unknown {sorted({m for m in said if said.count(m) > 1 or m not in expected})}"
        )
    for field in ("seed", "sign"):
        wrong = np.flatnonzero(records[field] != members[field])
        if wrong.size:
            record = records[wrong[0]]
            raise ExchangeError(
                f"rank {record['rank']} evaluated member {record['member']} with {field} {record[field]}, "
                f"the plan says {members[field][wrong[0]]}: do all ranks run the same esmpi and config?"
            )
    return records


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


def describe_digests(digests: Sequence[int]) -> str:
    """Return a message that names which ranks have which digest of theta."""
    groups: dict[int, list[int]] = {}
    for rank, digest in enumerate(digests):
        groups.setdefault(digest, []).append(rank)
    parts = [f"{digest:016x} on ranks {ranks}" for digest, ranks in groups.items()]
    return "theta differs between ranks: " + "; ".join(parts)
