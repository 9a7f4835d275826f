"""What the words of a sweep mean: several values, lists as values, ranges, draws, and the names of runs."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.errors import UserError
from esmpi.launch.settings import Choice, Range, name_of, read_words, text_of


def values(word: str) -> tuple[Any, ...]:
    """Return the values that a word gives its key."""
    [axis] = read_words([word]).axes.values()
    assert isinstance(axis, Choice)
    return axis.values


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("es.sigma=1e-3,3e-3", (1e-3, 3e-3)),
        ("es.shaping=zscore, centered_rank", ("zscore", "centered_rank")),
        ("es.alpha=null,5e-4", (None, 5e-4)),
        ("es.antithetic=true,false", (True, False)),
        ("task.num_numbers=[3],[3, 4]", ([3], [3, 4])),
        ("data.columns={a: b, c: d},{a: e}", ({"a": "b", "c": "d"}, {"a": "e"})),
        ("log.sinks=[],['a,b']", ([], ["a,b"])),
        ('data.train="a,b.jsonl",c.jsonl', ("a,b.jsonl", "c.jsonl")),
        ("data.train=it's.jsonl,that's.jsonl", ("it's.jsonl", "that's.jsonl")),
        ("data.train=a[1].jsonl,b.jsonl", ("a[1].jsonl", "b.jsonl")),
        ("model.path=esmpi:tiny_countdown,org/model", ("esmpi:tiny_countdown", "org/model")),
    ],
)
def test_commas_separate_values(word: str, expected: tuple[Any, ...]) -> None:
    assert values(word) == expected


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("es.sigma=1e-3", 1e-3),
        ("task.num_numbers=[3, 4]", [3, 4]),
        ('data.train="a,b.jsonl"', "a,b.jsonl"),
        ("es.alpha=", None),
        ("task.name=f.py:reward", "f.py:reward"),
    ],
)
def test_a_single_value_is_an_override(word: str, value: Any) -> None:
    search = read_words([word])
    assert search.axes == {}
    assert [override.value for override in search.fixed] == [value]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sigma=1,2"], "'sigma=1' is not an override"),
        (["es.sigma=1e-3,"], "es.sigma=1e-3,: a value is missing beside a comma"),
        (["es.sigma=1e-3,2e-3", "es.sigma=3e-3"], "es.sigma: has one value and several"),
        (["es.sigma=1e-3,2e-3", "es.sigma=3e-3,4e-3"], "es.sigma: has several values twice"),
        (["run.name=a,b"], "run.name: has one value in a sweep"),
        (["run.seed=log:1:9"], "run.seed: seeds are not drawn"),
        (["es.sigma=log:1e-2:1e-3"], "es.sigma: log:1e-2:1e-3 is no range"),
        (["es.sigma=log:0:1e-3"], "both ends .* must be above 0"),
        (["es.sigma=uniform:a:b"], "es.sigma: uniform:a:b is no range"),
        (["es.sigma=log:1e-3:.inf"], "is no range"),
    ],
)
def test_what_means_nothing_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_words(words)


def test_a_grid_has_every_combination() -> None:
    search = read_words(["es.sigma=1e-3,3e-3", "run.seed=4,7", "es.generations=2", "es.shaping=zscore,raw"])
    assert search.seeds == (4, 7)
    assert search.settings(None, 0) == [
        {"es.sigma": sigma, "es.shaping": shaping} for sigma in (1e-3, 3e-3) for shaping in ("zscore", "raw")
    ]
    with pytest.raises(UserError, match=r"es\.sigma: values of a range are drawn: .* --random"):
        read_words(["es.sigma=log:1e-4:1e-2"]).settings(None, 0)


def test_draws_are_the_same_each_time_and_more_of_them_change_none() -> None:
    words = ["es.sigma=log:1e-4:1e-2", "es.population_size=uniform:10:50", "es.shaping=zscore,raw"]
    ten = read_words(words).settings(10, 0)
    assert ten == read_words(words[::-1]).settings(20, 0)[:10]
    assert ten != read_words(words).settings(10, 1)
    alone = read_words(words[:1]).settings(10, 0)
    assert [setting["es.sigma"] for setting in ten] == [setting["es.sigma"] for setting in alone]
    # what is on record: another number here is another sweep under the same command
    assert [setting["es.sigma"] for setting in alone[:3]] == [0.000354, 0.000432, 0.00123]


def test_draws_differ_from_each_other() -> None:
    search = read_words(["es.shaping=zscore,raw", "es.antithetic=true,false"])
    assert len({tuple(setting.values()) for setting in search.settings(4, 0)}) == 4
    with pytest.raises(UserError, match="5 settings wanted, but only 4 different ones"):
        search.settings(5, 0)
    with pytest.raises(UserError, match="no key has several values"):
        read_words(["es.sigma=1e-3"]).settings(2, 0)


def test_draws_fill_their_range() -> None:
    drawn = [Range(1e-4, 1e-2, True).at((i + 0.5) / 1000) for i in range(1000)]
    assert all(1e-4 <= value <= 1e-2 for value in drawn)
    assert sum(value < 1e-3 for value in drawn) == pytest.approx(500, abs=2)
    assert all(re.fullmatch(r"0\.0{1,3}\d{1,3}", f"{value:.7f}".rstrip("0")) for value in drawn), "three digits"
    whole = [Range(1, 6, False).at((i + 0.5) / 600) for i in range(600)]
    assert [whole.count(face) for face in range(1, 7)] == [100] * 6
    assert {type(value) for value in whole} == {int}


@given(
    ends=st.tuples(st.floats(1e-12, 1e3), st.floats(1e-12, 1e3)).filter(lambda ends: ends[0] < ends[1]),
    u=st.floats(0, 1, exclude_max=True),
    is_log=st.booleans(),
)
def test_a_draw_is_never_outside_of_its_range(ends: tuple[float, float], u: float, is_log: bool) -> None:
    value = Range(*ends, is_log).at(u)
    assert math.isfinite(value)
    assert ends[0] <= value <= ends[1]


def test_names_depend_on_the_settings_alone() -> None:
    [setting] = read_words(["es.sigma=1e-3,2e-3", "task.num_numbers=[3, 4],[3]"]).settings(None, 0)[:1]
    [same] = read_words(["task.num_numbers=[3,4],[3]", "es.sigma=0.001,0.002"]).settings(None, 0)[:1]
    assert name_of("base", setting, 0) == name_of("base", same, 0) == "base_sigma=0.001_num_numbers=3,4_seed=0"


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({}, "b_seed=1"),
        ({"model.path": "org/model"}, "b_path=org-model_seed=1"),
        ({"es.alpha": None, "es.antithetic": True}, "b_alpha=null_antithetic=true_seed=1"),
        ({"eval.temperature": 1, "sampling.temperature": 0.5}, "b_eval.temperature=1_sampling.temperature=0.5_seed=1"),
        ({"es.sigma": 1e-12}, "b_sigma=1e-12_seed=1"),
    ],
)
def test_names_can_be_names_of_runs(setting: dict[str, Any], name: str) -> None:
    assert name_of("b", setting, 1) == name


def test_long_values_are_cut_and_stay_apart() -> None:
    names = {name_of("b", {"data.train": "x" * 100 + end}, 0) for end in ("1", "2")}
    assert len(names) == 2
    assert all(len(name) < 90 for name in names)


def test_values_are_shown_as_an_override_has_them() -> None:
    for value in (1e-3, None, True, [3, 4], {"a": "b"}, "zscore", 7):
        [override] = read_words([f"x.y={text_of(value)}"]).fixed
        assert override.value == value
