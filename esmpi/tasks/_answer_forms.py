r"""Forms of an answer that math-verify takes for what they are not, or does not know. LaTeX texts without dollar signs.

It reads a word as the product of its letters, so that "east" and "seat" are equal; it rounds to six places after the
point, so that all tiny numbers are equal; it overlooks the base of 2516_8; and to it a list, a set and a pair in
parentheses are often the same.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any

TOLERANCE = 1e-4
"""Relative difference from which on numbers are different, however small they are."""

_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")
_BASED = re.compile(r"([0-9A-Za-z]+)_(?:\{(\d{1,2})\}|(\d))")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+")
_REWRITTEN = (
    (re.compile(r"\*\*(.*)\*\*"), r"\1"),  # bold, in Markdown
    (re.compile(r"(-?\d{1,20}) (\d{1,20})/(\d{1,20})"), r"\1\\frac{\2}{\3}"),
)
_SQUARE_ROOT = re.compile(r"(?<![a-zA-Z\\])sqrt\(([^()]*)\)")
_POINTS = (1.3, 2.7, 5.9)
"""Where expressions are compared if only their symbols' signs stand in the way."""


def rewritten(text: str) -> str:
    """Return an answer in LaTeX that math-verify reads as it is meant."""
    for pattern, form in _REWRITTEN:
        if found := pattern.fullmatch(text):
            text = found.expand(form).strip()
    return _SQUARE_ROOT.sub(r"\\sqrt{\1}", text).replace(r"\varnothing", r"\emptyset")


def by_text(gold: str, answer: str) -> bool | None:
    """Return whether two answers are the same as far as their form decides it; None if it does not."""
    one, other = _word(gold), _word(answer)
    if one is not None or (other is not None and _letters(gold)):
        return one == other
    one_based, other_based = _BASED.fullmatch(gold), _BASED.fullmatch(answer)
    if one_based and other_based:
        values = [_value(found) for found in (one_based, other_based)]
        return None if None in values else values[0] == values[1]
    if {_brackets(gold), _brackets(answer)} == {"(", "{"}:
        return False
    one_list, other_list = _items(gold), _items(answer)
    if one_list and other_list and len(one_list) != len(other_list) and len(set(other_list)) < len(other_list):
        return False
    return None


def differ_in_size(golds: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Return whether both are numbers that are farther apart than `TOLERANCE`."""
    pairs = [(one, other) for one, other in product(golds, answers) if _is_number(one) and _is_number(other)]
    return bool(pairs) and all(_are_far(one, other) for one, other in pairs)


def same_in_other_form(golds: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Return whether an answer is a gold one in a form that math-verify does not compare.

    These are an interval that is written as inequalities, and roots that are equal where their symbols are positive.
    """
    return any(_same_interval(one, other) or _same_roots(one, other) for one, other in product(golds, answers))


def _letters(text: str) -> bool:
    return re.fullmatch("[A-Za-z ]+", _TEXT.sub(r"\1", text).strip()) is not None


def _word(text: str) -> str | None:
    """Return a word in small letters; None for what may be a product of symbols, such as xy or ab."""
    text = " ".join(_TEXT.sub(r"\1", text).split()).rstrip(".").lower()
    if not re.fullmatch("[a-z]{2,}", text) or text == "pi":
        return None
    return text if re.search("[aeiou]" if len(text) > 2 else "[eou]", text) else None


def _value(based: re.Match[str]) -> int | None:
    """Return the value of digits in a base, None if they are none."""
    try:
        return int(based[1], int(based[2] or based[3]))
    except ValueError:
        return None


def _brackets(text: str) -> str:
    """Return the bracket around a list of several things; empty without one."""
    text = text.replace(r"\left", "").replace(r"\right", "").replace(" ", "")
    for start, end in (("(", ")"), (r"\{", r"\}")):
        inside = text[len(start) : -len(end)]
        if text.startswith(start) and text.endswith(end) and "," in inside and not re.search(r"[(){}]", inside):
            return start[-1]
    return ""


def _items(text: str) -> list[str]:
    """Return the items of a list without brackets; none if it is no list."""
    if "," not in text or re.search(r"[(){}\[\]]", text) or _GROUPED.fullmatch(text):
        return []
    return [" ".join(item.split()) for item in text.split(",")]


def _is_number(expression: Any) -> bool:
    from sympy import Expr

    return isinstance(expression, Expr) and bool(expression.is_number) and expression.is_extended_real is True


def _are_far(one: Any, other: Any) -> bool:
    one, other = one.evalf(), other.evalf()
    if not (one.is_finite and other.is_finite):
        return False
    return bool(abs(one - other) > TOLERANCE * max(abs(one), abs(other)))


def _same_interval(one: Any, other: Any) -> bool:
    from sympy import Interval

    if isinstance(other, Interval):
        one, other = other, one
    if not isinstance(one, Interval):
        return False
    found = _interval(other)
    return found is not None and bool(found == one)


def _interval(expression: Any) -> Any:
    """Return the interval that inequalities between one symbol and numbers mean, None for anything else."""
    from sympy import And, Interval, oo
    from sympy.core.relational import GreaterThan, LessThan, StrictGreaterThan, StrictLessThan

    parts = expression.args if isinstance(expression, And) else (expression,)
    kinds = (GreaterThan, LessThan, StrictGreaterThan, StrictLessThan)
    if len(getattr(expression, "free_symbols", ())) != 1 or not all(isinstance(part, kinds) for part in parts):
        return None
    found = Interval(-oo, oo)
    for part in parts:
        low, high = (part.lts, part.gts)
        strict = isinstance(part, StrictGreaterThan | StrictLessThan)
        if high.is_Symbol and low.is_number:
            found = found.intersect(Interval(low, oo, left_open=strict))
        elif low.is_Symbol and high.is_number:
            found = found.intersect(Interval(-oo, high, right_open=strict))
        else:
            return None
    return found


def _same_roots(one: Any, other: Any) -> bool:
    from sympy import Abs, Expr, Pow

    if not (isinstance(one, Expr) and isinstance(other, Expr) and one.free_symbols == other.free_symbols):
        return False
    if not one.free_symbols or one.has(Abs) or other.has(Abs):
        return False
    if not all(any(p.exp.is_Rational and not p.exp.is_Integer for p in e.atoms(Pow)) for e in (one, other)):
        return False
    symbols = sorted(one.free_symbols, key=str)
    for i, point in enumerate(_POINTS):
        values = {symbol: point + 0.7 * k + 0.1 * i * k for k, symbol in enumerate(symbols)}
        a, b = one.subs(values).evalf(), other.subs(values).evalf()
        if not (a.is_number and b.is_number and abs(a - b) <= 1e-9 * max(abs(a), abs(b))):
            return False
    return True
