"""Reading answers: the last number, the last box; the last tagged answer is tested with Countdown."""

import re
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.tasks.answers import MAX_DIGITS, last_boxed, last_number, last_tagged


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("the answer is 72", 72),
        ("72.", 72),
        ("3 then 72 apples", 72),
        ("72.50", Fraction(145, 2)),
        ("$1,234,567.5", Fraction(2469135, 2)),
        ("-5", -5),
        ("x=-5", -5),
        ("12-5", 5),
        ("12 - 5", 5),
        ("2^-5", -5),
        ("(3)-5", 5),
        ("**18**", 18),
        ("7%", 7),
        ("1, 2, 3", 3),
        ("1,2345", 2345),
        ("007", 7),
        ("-$3", -3),
        ("", None),
        ("none", None),
        ("\u0667\u0668", None),  # digits of other scripts
        ("\u00b2", None),
        ("9" * (MAX_DIGITS + 1), None),
        ("." * 50, None),
    ],
)
def test_last_number(text: str, number: Fraction | int | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**30), 10**30), st.text("abc \n.,:", max_size=5))
def test_any_integer_is_read(number: int, around: str) -> None:
    assert last_number(f"4 {around} {number} ") == number
    assert last_number(f"4 {around} {number:,} ") == number


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{ 7 }.", "7"),
        (r"\boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1} and \boxed{2", None),  # cut off: no answer was given
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{}", ""),
        (r"\fbox{7}", None),
        (r"\boxed 7", None),
        (r"\boxed{a\\}", r"a\\"),
        ("", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@given(st.lists(st.sampled_from(["<answer>", "</answer>", " 1 ", "x", "\n"]), max_size=12).map("".join))
def test_last_tagged_is_what_a_non_greedy_pattern_finds(text: str) -> None:
    found = re.findall("<answer>(.*?)</answer>", text, re.DOTALL)
    assert last_tagged(text) == (found[-1].strip() if found else None)


@pytest.mark.parametrize("piece", ["1", "1,", "1,234", ",234", "$", "-", "1.", r"\boxed{", "{", "}", "\\", "<answer>"])
def test_reading_takes_linear_time(piece: str) -> None:
    text = r"\boxed{" + piece * 200_000
    started = time.perf_counter()
    for read in (last_number, last_boxed, last_tagged):
        read(text)
    assert time.perf_counter() - started < 5
