"""What tools/bench_forgetting.py trains: to name the largest of three numbers. And Countdown, as what may be forgotten.

The prompts of the new skill consist of pieces of Countdown's, with which the tiny model can read them.
"""

import random
import re

from esmpi.tasks.countdown import PROMPT, Countdown, CountdownConfig

BEGINNING = PROMPT.partition("{numbers}")[0]
countdown = Countdown(CountdownConfig(num_numbers=(3,), number_range=(1, 20), target_range=(1, 99), operators="+-"))


def problems(seed: int, count: int) -> list[dict[str, object]]:
    """Return problems of the new skill; no two are the same."""
    draw = random.Random(seed)
    found: dict[str, dict[str, object]] = {}
    while len(found) < count:
        numbers = draw.sample(range(1, 21), 3)
        prompt = f"{BEGINNING}{' '.join(map(str, numbers))}], say the largest number: "
        found[prompt] = {"prompt": prompt, "largest": max(numbers), "numbers": numbers}
    return list(found.values())


def train() -> list[dict[str, object]]:
    """Return the training problems."""
    return problems(0, 2400)[:2000]


def evaluation() -> list[dict[str, object]]:
    """Return the held-out problems."""
    return problems(0, 2400)[2000:]


def reward(completion: str, example: dict[str, object]) -> dict[str, object]:
    """Score a completion of the new skill: the largest number counts 1, another of the three 0.2."""
    number = re.match(r"\s*(\d+)\b", completion)
    said = None if number is None else int(number[1])
    correct, numbers = said == example["largest"], example["numbers"]
    assert isinstance(numbers, list)
    return {"reward": 1.0 if correct else 0.2 * (said in numbers), "correct": correct, "parsed": number is not None}


def countdown_prompt(doc: dict[str, object]) -> str:
    """Return the prompt of a problem of Countdown, for lm-evaluation-harness."""
    return str(countdown.prompt(doc))


def countdown_results(doc: dict[str, object], results: list[str]) -> dict[str, float]:
    """Return whether a completion solves a problem of Countdown, for lm-evaluation-harness."""
    return {"acc": float(countdown.score(results[0], doc).correct)}
