"""The multiplication table, a task that a small language model half knows: `7 * 8 =`, and the answer in a few tokens.

Reward 1 for the right product, 0.2 for any other number that is said at once, 0 for anything else.
"""

import itertools
import random
import re
from typing import Any

PROBLEMS = [{"prompt": f"{a} * {b} =", "answer": a * b} for a, b in itertools.product(range(2, 16), range(2, 13))]
random.Random(0).shuffle(PROBLEMS)
evaluation, train = PROBLEMS[:54], PROBLEMS[54:]


def reward(completion: str, example: dict[str, Any]) -> dict[str, float]:
    """Return the reward of a completion, and whether it is right."""
    said = re.match(r"\s*(\d+)", completion)
    right = said is not None and int(said[1]) == example["answer"]
    return {"reward": 1.0 if right else 0.2 * (said is not None), "correct": right}
