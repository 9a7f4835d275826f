"""Run esmpi with a fault on one rank: python faulty.py FAULT RANK STAMP_FILE CONFIG [overrides].

The fault happens in the second generation, when the rank generates for its first member; the time is written to
the stamp file first. `corrupt` changes theta after the first update, `stale` what the rank says of theta in the second
generation; `leave` happens at the very end. The rest is the program as it is.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from esmpi import run
from esmpi.mpi.comm import Comm
from esmpi.mpi.launcher import launcher


def main() -> int:
    # not for the processes that score, which import this file, too
    from esmpi import train
    from esmpi.engines.hf.engine import HfEngine
    from esmpi.weights.model_weights import ModelWeights

    fault, rank, stamp, *arguments = sys.argv[1:]
    update, generate = ModelWeights.update, HfEngine.generate
    updates = 0

    def counting_update(self, seeds, coefficients, rank):  # type: ignore[no-untyped-def]
        nonlocal updates
        update(self, seeds, coefficients, rank)
        updates += 1
        if fault == "corrupt" and updates == 1:
            _, theta = next(self.tensors())
            theta.view(-1)[0] += 1.0

    def faulty_generate(self, prompts, sampling):  # type: ignore[no-untyped-def]
        if updates == 1 and fault != "corrupt" and not Path(stamp).exists():
            time.sleep(0.5)  # rank 0 is still writing the generation before
            Path(stamp).write_text(str(time.time()))
            if fault == "raise":
                raise RuntimeError("the engine of this rank broke")
            if fault == "exit":
                sys.exit(3)
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "usr1": signal.SIGUSR1, "term": signal.SIGTERM}[fault])
        return generate(self, prompts, sampling)

    def failing_barrier(_: Comm) -> None:  # there is but one, at the end
        raise RuntimeError("this rank cannot leave")

    started_by = launcher()

    def stale_exchange(session: Any, *rest: Any) -> np.ndarray:
        session.digest ^= session.generation  # 0 at first
        return exchange(session, *rest)

    exchange = train.exchange
    if fault == "stale" and started_by.rank == int(rank):
        train.exchange = stale_exchange
    elif fault == "leave" and started_by.rank == int(rank):
        Comm.barrier = failing_barrier
    elif (started_by.rank if started_by else 0) == int(rank):
        ModelWeights.update, HfEngine.generate = counting_update, faulty_generate
    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
