"""The multiplication table, a task that SmolLM2-135M half knows: `Multiply: 7 * 8 =`, and the answer in a few tokens.

A completion that begins with the product has the reward 1. Another number is worth the less the farther it is off, at
most a half, and a completion that does not begin with a number is worth nothing. The suites that are not trained use
the same reward: there, an answer that is not a number is right or wrong.
"""

import itertools
import random
import re
from typing import Any

PAIRS = list(itertools.combinations_with_replacement(range(2, 16), 2))
HELD_OUT = set(random.Random(0).sample(PAIRS, 30))
"""A product is held out together with its mirror image: `8 * 7` does not give `7 * 8` away."""


def _problems(pairs: set[tuple[int, int]]) -> list[dict[str, Any]]:
    ordered = sorted(pairs | {(b, a) for a, b in pairs})
    random.Random(1).shuffle(ordered)
    return [{"prompt": f"Multiply: {a} * {b} =", "answer": str(a * b)} for a, b in ordered]


train = _problems(set(PAIRS) - HELD_OUT)
evaluation = _problems(HELD_OUT)


def reward(completion: str, example: dict[str, Any]) -> dict[str, float]:
    """Return the reward of a completion, and whether it is right."""
    answer = example["answer"]
    if re.match(rf"\s*{answer}\b", completion):
        return {"reward": 1.0, "correct": True}
    said = re.match(r"\s*(\d+)", completion) if answer.isdigit() else None
    off = abs(int(said[1]) / int(answer) - 1) if said else 1.0
    return {"reward": 0.5 * max(0.0, 1 - off), "correct": False}
