"""Plans, shards, and the check of what the ranks say."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.comm import Comm
from esmpi.dispatch import Dynamic
from esmpi.noise import member_seed
from esmpi.population import RECORD_DTYPE, ExchangeError, check, idle_seconds, pad, plan, shard

DIGEST = 0xFEDCBA9876543210


def exchange(members: np.ndarray, size: int) -> np.ndarray:
    """What an undisturbed exchange between `size` ranks gathers."""
    rows = []
    for rank in range(size):
        blank = np.zeros(1, RECORD_DTYPE)
        blank["digest"], blank["rank"] = DIGEST, rank
        mine = members[list(shard(len(members), rank, size))]
        records = np.repeat(blank, len(mine))
        for name in ("member", "seed", "sign"):
            records[name] = mine[name]
        records["fitness"] = mine["member"] / 8
        rows.append(pad(records, -(-len(members) // size), blank))
    return np.stack(rows)


def test_plan_has_the_seeds_of_the_noise_format() -> None:
    members = plan(42, 3, 7, antithetic=False)
    assert members["member"].tolist() == list(range(7))
    assert members["seed"].tolist() == [member_seed(42, 3, member) for member in range(7)]
    assert members["seed"][5] == 0x189BE986910AF917
    assert (members["sign"] == 1).all()


def test_antithetic_members_are_pairs_of_one_seed() -> None:
    members = plan(42, 3, 12, antithetic=True)
    assert members["seed"].tolist() == [member_seed(42, 3, member // 2) for member in range(12)]
    assert members["seed"][10] == members["seed"][11] == 0x189BE986910AF917
    assert members["sign"].tolist() == [1, -1] * 6


def test_generations_and_runs_have_seeds_of_their_own() -> None:
    seeds = [s for run in (0, 1, 2) for g in (0, 1, 2) for s in plan(run, g, 30, antithetic=False)["seed"].tolist()]
    assert len(set(seeds)) == 270


@given(st.integers(1, 300), st.integers(1, 64))
def test_shards_hold_every_member_once_and_are_even(population_size: int, size: int) -> None:
    shards = [shard(population_size, rank, size) for rank in range(size)]
    assert [member for part in shards for member in part] == list(range(population_size))
    lengths = [len(part) for part in shards]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # a rank without members is one of the last


@given(st.integers(2, 40), st.integers(1, 50))
def test_undisturbed_exchange_passes_in_order(population_size: int, size: int) -> None:
    members = plan(0, 0, population_size, antithetic=False)
    gathered = exchange(members, size)
    assert gathered.shape == (size, max(1, -(-population_size // size)))
    records = check(gathered, members)
    assert records["member"].tolist() == list(range(population_size))
    assert records["fitness"].tolist() == [member / 8 for member in range(population_size)]


@given(st.permutations(range(10)), st.integers(1, 5))
def test_members_may_come_from_any_rank_in_any_order(order: list[int], size: int) -> None:
    members = plan(0, 0, 10, antithetic=True)
    gathered = exchange(members[order], size)
    assert (check(gathered, members)["seed"] == members["seed"]).all()


def test_padding_says_the_digest_but_is_no_member() -> None:
    gathered = exchange(plan(0, 0, 2, antithetic=False), 4)
    assert gathered["member"][:, 0].tolist() == [0, 1, -1, -1]
    assert (gathered["digest"] == DIGEST).all()


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_another_theta_is_named_with_its_ranks(rank: int) -> None:
    """Rank 3 has no member, yet its theta counts."""
    members = plan(0, 0, 3, antithetic=False)
    gathered = exchange(members, 4)
    gathered["digest"][rank] = 0xAB
    with pytest.raises(ExchangeError) as caught:
        check(gathered, members)
    rest = [other for other in range(4) if other != rank]
    assert f"00000000000000ab on ranks [{rank}]" in str(caught.value)
    assert f"{DIGEST:016x} on ranks {rest}" in str(caught.value)


def test_missing_double_and_unknown_members_are_named() -> None:
    members = plan(0, 0, 6, antithetic=False)
    missing = exchange(members, 3)
    missing["member"][1, 0] = -1
    with pytest.raises(ExchangeError, match=r"missing \[2\], more than once or unknown \[\]"):
        check(missing, members)
    double = exchange(members, 3)
    double[1, 0] = double[2, 1]
    with pytest.raises(ExchangeError, match=r"missing \[2\], more than once or unknown \[5\]"):
        check(double, members)
    unknown = exchange(members, 3)
    unknown["member"][1, 0] = 6
    with pytest.raises(ExchangeError, match=r"missing \[2\], more than once or unknown \[6\]"):
        check(unknown, members)
    twice = np.concatenate([exchange(members, 3), exchange(members, 3)[:1]])
    with pytest.raises(ExchangeError, match=r"missing \[\], more than once or unknown \[0, 1\]"):
        check(twice, members)


@pytest.mark.parametrize(("field", "value"), [("seed", 5), ("sign", -1)])
def test_another_seed_or_sign_is_named_with_its_rank(field: str, value: int) -> None:
    members = plan(0, 0, 6, antithetic=False)
    gathered = exchange(members, 3)
    gathered[field][2, 1] = value
    with pytest.raises(ExchangeError, match=rf"rank 2 evaluated member 5 with {field} {value}"):
        check(gathered, members)


def test_ranks_are_idle_for_as_long_as_the_busiest_one_is_at_it() -> None:
    ranks, seconds = np.array([2, 0, 2, 0, 3], np.int32), np.array([1, 2, 4, 0.5, 1])
    assert idle_seconds(ranks, seconds, 5).tolist() == [2.5, 5, 0, 4, 5]


def test_the_longest_members_come_first_and_each_once() -> None:
    dispatch = Dynamic(Comm())
    assert dispatch.most_members(4, 3) == 3
    for seconds, order in (([1, 5, 3, 5], [0, 1, 2, 3]), ([9, 1, 1, 2], [1, 3, 2, 0]), ([0, 0, 0, 0], [0, 3, 1, 2])):
        with dispatch.members(4) as mine:
            assert list(mine) == order
        dispatch.learn(np.array(seconds, float))
