"""A task with a reward that any model earns.

SmolLM2 solves no Countdown problem in a few tokens, and where all rewards are zero no weight moves.
"""

import zlib
from typing import Any

from esmpi.tasks.countdown import PROMPT

NUMBERS = ((3, 18, 11), (6, 7, 19), (13, 6, 8), (2, 9, 15))
train = [{"prompt": PROMPT.format(numbers=f"{a} {b} {c}", target=a + b + c)} for a, b, c in NUMBERS]
evaluation = [{"prompt": "The capital of France is"}]


def checksum(completion: str, example: dict[str, Any]) -> float:
    """Return another reward for any other text, so that equal fitness means equal completions."""
    return zlib.crc32(completion.encode()) / 2**32
