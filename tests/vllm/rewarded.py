"""Run esmpi with a reward that any model earns: python rewarded.py CONFIG [overrides].

SmolLM2 solves no Countdown problem in a few tokens, and where all rewards are zero no weight moves. The rest is the
program as it is.
"""

import sys
import zlib
from typing import Any

from esmpi import run
from esmpi.tasks import Score
from esmpi.tasks.countdown import Countdown


def checksum(self: Countdown, completion: str, example: dict[str, Any]) -> Score:
    """Another reward for any other text, so that equal fitness means equal completions."""
    return Score(reward=zlib.crc32(completion.encode()) / 2**32, correct=False)


# not under the guard: the processes that score import this file, too
Countdown.score = checksum  # type: ignore[method-assign]

if __name__ == "__main__":
    sys.exit(run.main(sys.argv[1:]))
