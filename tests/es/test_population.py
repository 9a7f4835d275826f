"""Plans, shares, and the check of what the ranks say."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.es.dispatch import Dynamic, Static
from esmpi.es.member_columns import SENT
from esmpi.es.population import (
    DesyncError,
    ExchangeError,
    Members,
    Results,
    check,
    idle_seconds,
    message_dtype,
    message_of,
    plan,
    share,
)
from esmpi.mpi.comm import Comm
from esmpi.noise import member_seed

DIGEST = 0xFEDCBA9876543210


def exchange(members: Members, size: int, order: Sequence[int] = ()) -> np.ndarray:
    """What an undisturbed exchange between `size` ranks gathers, if they evaluate the members in this order."""
    order = order or range(len(members))
    messages = np.zeros(size, message_dtype(-(-len(order) // size)))
    messages["digest"], messages["member"] = DIGEST, -1
    for rank, message in enumerate(messages):
        mine = [order[place] for place in share(len(order), rank, size)]
        for name, column in (("member", mine), ("seed", members.seeds[mine]), ("sign", members.signs[mine])):
            message[name][: len(mine)] = column
        message["fitness"][: len(mine)] = np.array(mine) / 8
    return messages


def test_plan_has_the_seeds_of_the_noise_format() -> None:
    members = plan(42, 3, 7, antithetic=False)
    assert members.seeds.tolist() == [member_seed(42, 3, member) for member in range(7)]
    assert members.seeds[5] == 0x189BE986910AF917
    assert members.signs.tolist() == [1] * 7


def test_antithetic_members_are_pairs_of_one_seed() -> None:
    members = plan(42, 3, 12, antithetic=True)
    assert members.seeds.tolist() == [member_seed(42, 3, member // 2) for member in range(12)]
    assert members.seeds[10] == members.seeds[11] == 0x189BE986910AF917
    assert members.signs.tolist() == [1, -1] * 6


def test_generations_and_runs_have_seeds_of_their_own() -> None:
    seeds = [s for run in (0, 1, 2) for g in (0, 1, 2) for s in plan(run, g, 30, antithetic=False).seeds.tolist()]
    assert len(set(seeds)) == 270


@given(st.integers(1, 300), st.integers(1, 64))
def test_shards_hold_every_member_once_and_are_even(population_size: int, size: int) -> None:
    shares = [share(population_size, rank, size) for rank in range(size)]
    assert [member for part in shares for member in part] == list(range(population_size))
    lengths = [len(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # a rank without members is one of the last


@given(st.integers(2, 40), st.integers(1, 50))
def test_undisturbed_exchange_passes_in_order(population_size: int, size: int) -> None:
    members = plan(0, 0, population_size, antithetic=False)
    gathered = exchange(members, size)
    results = check(gathered, members)
    assert results["member"].tolist() == list(range(population_size))
    assert results["fitness"].tolist() == [member / 8 for member in range(population_size)]
    ranks = [rank for rank in range(size) for _ in share(population_size, rank, size)]
    assert results.ranks.tolist() == ranks


@given(st.permutations(range(10)), st.integers(1, 5))
def test_members_may_come_from_any_rank_in_any_order(order: list[int], size: int) -> None:
    members = plan(0, 0, 10, antithetic=True)
    results = check(exchange(members, size, order), members)
    assert results["fitness"].tolist() == [member / 8 for member in range(10)]
    assert results.ranks.tolist() == [
        next(rank for rank in range(size) if order.index(member) in share(10, rank, size)) for member in range(10)
    ]


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_another_theta_is_named_with_its_ranks(rank: int) -> None:
    """Rank 3 has no member, yet its theta counts."""
    members = plan(0, 0, 3, antithetic=False)
    gathered = exchange(members, 4)
    gathered["digest"][rank] = 0xAB
    with pytest.raises(DesyncError) as caught:
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
    double["member"][1, 0] = 5
    with pytest.raises(ExchangeError, match=r"missing \[2\], more than once or unknown \[5\]"):
        check(double, members)
    for member in (6, 2**31 - 1):
        unknown = exchange(members, 3)
        unknown["member"][1, 0] = member
        with pytest.raises(ExchangeError, match=rf"missing \[2\], more than once or unknown \[{member}\]"):
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
        with dispatch.waves(4, 1) as mine:
            assert list(mine) == [[member] for member in order]
        messages = np.zeros(1, message_dtype(4))
        messages["seconds"] = seconds
        dispatch.learn(Results(messages, np.arange(4)))


def test_waves_have_at_most_as_many_members_as_a_rank_takes() -> None:
    with Static(Comm()).waves(10, 4) as mine:
        assert [list(wave) for wave in mine] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    with Static(Comm()).waves(2, 4) as mine:
        assert [list(wave) for wave in mine] == [[0, 1]]
    dispatch = Dynamic(Comm())
    for _ in range(2):
        with dispatch.waves(10, 4) as mine:
            assert list(mine) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_is_of_a_rank_is_not_taken_for_a_members() -> None:
    members = plan(0, 0, 2, antithetic=False)
    messages = exchange(members, 2)
    messages["score_died"] = 3, 4
    results = check(messages, members)
    assert results.total("score_died") == 7
    with pytest.raises(KeyError, match="score_died is of a rank"):
        results["score_died"]


@pytest.mark.parametrize(("tokens", "sent"), [(7, 7), (2**31 - 1, 2**31 - 1), (2**31, 2**31 - 1), (2**40, 2**31 - 1)])
def test_more_tokens_than_a_column_holds_are_its_largest_number(tokens: int, sent: int) -> None:
    columns = {column.name: [0] for column in SENT} | {"tokens": [tokens], "seed": [2**64 - 1]}
    message = message_of(2, DIGEST, False, {}, columns)
    assert message["tokens"].tolist() == [sent, 0]
    assert message["seed"].tolist() == [2**64 - 1, 0]
