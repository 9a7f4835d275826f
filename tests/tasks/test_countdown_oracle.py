"""Countdown's verdict on answers, right and spoiled, against an independent oracle; and a fuzz of its evaluator."""

import ast
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from esmpi.tasks.answers import last_tagged
from esmpi.tasks.countdown import Countdown, CountdownConfig, answer_is_right, evaluate

NUM_PAIRS = 20_000
NUM_FUZZ = int(os.environ.get("ESMPI_FUZZ", "20000"))
"""Inputs of the fuzz; ESMPI_FUZZ=1000000 for the long one."""
SLOW_S = 0.01


def oracle(answer: str, numbers: list[int], target: str) -> bool:
    """Judge by Python's own parser, walking its tree: no code is shared with the task."""
    text = answer.strip(" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029")
    if not set(text) <= set("0123456789+-*/() \t"):
        return False
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    used: list[int] = []

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp):
            operand = value(node.operand)
            return -operand if isinstance(node.op, ast.USub) else operand
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Mult):
                return left * right
            if isinstance(node.op, ast.Div):
                return left / right
        raise ValueError(f"{ast.dump(node)} is not allowed")

    try:
        result = value(tree)
    except (ValueError, ZeroDivisionError):
        return False
    return Counter(used) == Counter(numbers) and abs(result - Fraction(target)) < Fraction(1, 100_000)


def _swap(pattern: str, new: Callable[[random.Random, str], str]) -> Callable[[random.Random, str], str]:
    """Return what replaces one match of the pattern, at random, in a text."""

    def spoil(rng: random.Random, text: str) -> str:
        matches = list(re.finditer(pattern, text))
        if not matches:
            return text + "+0"
        match = rng.choice(matches)
        return text[: match.start()] + new(rng, match.group()) + text[match.end() :]

    return spoil


SPOILERS: dict[str, Callable[[random.Random, str], str]] = {
    "another number": _swap(r"\d+", lambda rng, old: str(int(old) + rng.choice([1, 2, 10]))),
    "a number less": _swap(r" [-+*/] \d+", lambda rng, old: ""),
    "a number more": lambda rng, text: f"{text} {rng.choice('+-*/')} {rng.randint(0, 99)}",
    "a number twice": lambda rng, text: f"{text} + {rng.choice(re.findall(r'[0-9]+', text))} - 0",
    "another operator": _swap(r"[-+*/]", lambda rng, old: rng.choice("+-*/".replace(old, ""))),
    "power": _swap(r"[-+*/]", lambda rng, old: "**"),
    "floor division": _swap(r"[-+*/]", lambda rng, old: "//"),
    "an equation": lambda rng, text: f"{text} = {rng.randint(1, 99)}",
    "a bracket less": lambda rng, text: text.replace("(", "", 1) if "(" in text else "(" + text,
    "a bracket more": lambda rng, text: text + ")" * rng.randint(1, 3),
    "an operator less": _swap(r"[-+*/]", lambda rng, old: ""),
    "an operator at the end": lambda rng, text: text + rng.choice(["+", "-", "*", "/", " ("]),
    "a leading zero": _swap(r"\d+", lambda rng, old: "0" + old),
    "digits of another script": _swap(r"\d", lambda rng, old: rng.choice("\u0660\uff10\u0966\U0001d7ce\u00b2")),
    "a letter": lambda rng, text: f"{text} {rng.choice(['x', '.', 'e1', 'j', '_', 'abs(1)', '%', '^ 1', ',', '#'])}",
}
ALWAYS_WRONG = set(SPOILERS) - {"another number", "another operator", "power", "floor division"}


def harmless(rng: random.Random, text: str) -> str:
    """Write a right answer another way."""
    text = rng.choice([text, text.replace(" ", ""), text.replace(" ", "  "), text.replace(" ", "\t")])
    return rng.choice([text, f"({text})", f"+({text})", f"-(-({text}))", f"\n{text} ", re.sub(r"(\d+)", r"(\1)", text)])


def test_20_000_answers_are_judged_as_by_the_oracle() -> None:
    assert len(SPOILERS) == 15
    rng = random.Random(5)
    draw = Countdown(CountdownConfig(num_numbers=(2, 3, 4, 5, 6))).generator(np.random.default_rng(5))
    task = Countdown(CountdownConfig())
    verdicts: Counter[tuple[str, bool]] = Counter()
    kinds = ["valid", *SPOILERS]
    for i in range(NUM_PAIRS):
        if i % 4 == 0:
            example = draw()
        kind = kinds[i % len(kinds)]
        solution = example["solution"]
        answer = harmless(rng, solution) if kind == "valid" else SPOILERS[kind](rng, solution)
        completion = f" x </think>\n<answer>{answer}</answer>"
        expected = oracle(answer, example["numbers"], str(example["target"]))
        score = task.score(completion, example)
        assert score.correct == expected, (kind, answer, example)
        assert score.reward == pytest.approx(0.1 + expected), (kind, answer, example)
        verdicts[kind, expected] += 1
    assert all(verdicts[kind, True] + verdicts[kind, False] == NUM_PAIRS / 16 for kind in kinds)
    assert verdicts["valid", False] == 0
    assert all(verdicts[kind, True] == 0 for kind in ALWAYS_WRONG)
    # a product and a quotient can be alike: of the other spoiled ones a few are right all the same
    assert all(verdicts[kind, False] > 0.9 * NUM_PAIRS / 16 for kind in SPOILERS)


_TOKENS = [
    *("0", "1", "7", "12", "98", "007", "9" * 30, "+", "-", "*", "/", "(", ")", " ", "\t", "\n", "**", "//", "%"),
    *(".", "_", "e", "=", ",", "x", "<answer>", "</answer>", "</think>", "<", "\0", "\u0663", "\u00b2", "\ud800"),
    *("__import__('os')", "9**9**9**9", "lambda:0", "\U0001f600", "inf", "nan", "0x10", "1e999999999", "\\", '"'),
]


def _fuzz_text(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return "".join(rng.choices("0123456789+-*/() ", k=rng.randint(0, 40)))
    if kind < 0.8:
        return "".join(rng.choices(_TOKENS, k=rng.randint(0, 25)))
    if kind < 0.9:
        return "".join(map(chr, rng.choices(range(0x3000), k=rng.randint(0, 40))))
    if kind < 0.97:
        return rng.choice(_TOKENS) * rng.randint(1, 400)
    return rng.choice(["(", "-", "9*", "9/", "(9-", "<answer>", "1+", "((1)+"]) * rng.randint(1, 20_000)


def test_fuzz_no_input_crashes_or_is_slow() -> None:
    rng = random.Random(11)
    slow, values, right = [], 0, 0
    for _ in range(NUM_FUZZ):
        text = _fuzz_text(rng)
        numbers = list(map(int, re.findall("[0-9]{1,20}", text)[:10])) if rng.random() < 0.5 else [7, 12]
        seconds = []
        for _attempt in range(3):  # the machine may have been busy otherwise: an input is slow if it always is
            started = time.perf_counter()
            try:
                value = evaluate(text)
            except ValueError:
                value = None
            judged = answer_is_right(text, numbers, "7")
            seconds.append(time.perf_counter() - started)
            if seconds[-1] < SLOW_S:
                break
        values += value is not None
        right += judged
        assert judged is False or (value is not None and abs(value - 7) < Fraction(1, 100_000)), text
        if min(seconds) >= SLOW_S:
            slow.append((min(seconds), text[:60], len(text)))
    assert not slow, slow[:5]
    # the fuzz is no fuzz if nothing gets through
    assert values > NUM_FUZZ / 50
    assert right > 0


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "(" * 10_000,
        "(" * 10_000 + "9" + ")" * 10_000,
        "\u0669+\u0669",
        "\uff19*\uff19",
        "__import__('os').system('false')",
        "9" * 10_000,
        "-" * 10_000 + "9",
    ],
    ids=lambda text: ascii(text)[:20],
)
@pytest.mark.parametrize("form", ["{}", "<answer>{}</answer>", " x </think>\n<answer>{}</answer>"])
def test_hostile_text_scores_nothing_at_once(text: str, form: str) -> None:
    task = Countdown(CountdownConfig())
    completion, example = form.format(text), {"numbers": [9, 9, 9, 9], "target": 9}
    times = []
    for _ in range(5):
        started = time.perf_counter()
        score = task.score(completion, example)
        times.append(time.perf_counter() - started)
    assert min(times) < SLOW_S
    assert not score.correct
    assert score.reward == pytest.approx(0.1 * score.figures["format"])
    assert score.parsed == (last_tagged(completion) is not None)
