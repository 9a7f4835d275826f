"""The evaluator of arithmetic against Python's own, on text that the test made."""

import re
import warnings
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esmpi.tasks.countdown import MAX_DEPTH, MAX_LENGTH, evaluate

blanks = st.sampled_from(["", "", " ", "  ", "\t"])


def _join(parts: tuple[str, str, str, str, str]) -> str:
    left, before, operator, after, right = parts
    # "5 - -3" needs its blank nowhere: "5--3" is the same to Python
    return f"{left}{before}{operator}{after}{right}"


expressions = st.recursive(
    st.integers(0, 120).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, blanks, st.sampled_from("+-*/"), blanks, inner).map(_join),
        st.tuples(blanks, inner, blanks).map(lambda parts: f"({''.join(parts)})"),
        st.tuples(st.sampled_from("+-"), inner).map("".join),
    ),
    max_leaves=12,
)


def python_value(expression: str) -> Fraction | None:
    """What Python makes of the text with exact numbers; None if it is no arithmetic of ours."""
    if "**" in expression or "//" in expression or re.search(r"(?<!\d)0\d", expression):
        return None
    exact = re.sub(r"\d+", lambda match: f"Fraction({match.group()})", expression)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = eval(exact, {"Fraction": Fraction, "__builtins__": {}})
    except (SyntaxError, TypeError, ZeroDivisionError):
        return None
    return value if isinstance(value, Fraction) else None


def our_value(expression: str) -> Fraction | None:
    try:
        return evaluate(expression)
    except ValueError:
        return None


@given(expressions)
def test_expressions_have_pythons_value(expression: str) -> None:
    assert our_value(expression) == python_value(expression)


@given(st.text("0123456789+-*/() \t", max_size=14))
def test_any_text_of_the_alphabet_has_pythons_value_or_none(text: str) -> None:
    assert our_value(text) == python_value(text)


@given(st.lists(st.sampled_from(["1", "2", "34", "0", "+", "-", "*", "/", "(", ")", " "]), max_size=12).map("".join))
def test_any_tokens_have_pythons_value_or_none(text: str) -> None:
    assert our_value(text) == python_value(text)


@given(st.text(max_size=30))
def test_other_text_is_a_value_error(text: str) -> None:
    if re.search(r"[^-+*/()0-9 \t]", text):
        with pytest.raises(ValueError, match="not allowed"):
            evaluate(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("20-3-4", 13),
        ("100/5/2", 10),
        ("2*-3", -6),
        ("--3", 3),
        ("1/3", Fraction(1, 3)),
    ],
)
def test_by_hand(text: str, value: Fraction) -> None:
    assert evaluate(text) == value


def test_depth_and_length_are_bounded() -> None:
    assert evaluate("(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH) == 7
    with pytest.raises(ValueError, match="too deep"):
        evaluate("(" * (MAX_DEPTH + 1) + "7" + ")" * (MAX_DEPTH + 1))
    with pytest.raises(ValueError, match="too deep"):
        evaluate("-" * (MAX_DEPTH + 1) + "7")
    assert evaluate("7" + " " * (MAX_LENGTH - 1)) == 7
    with pytest.raises(ValueError, match="too long"):
        evaluate("7" + " " * MAX_LENGTH)
