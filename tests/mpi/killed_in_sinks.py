"""Run esmpi until it kills itself: python killed_in_sinks.py GROUP GENERATION SINKS CONFIG [overrides].

That is when it has committed these figures and has shown them to so many of its sinks. The rest is the program as it
is.
"""

import os
import signal
import sys
from typing import Any

from esmpi import run


def main() -> int:
    from esmpi.record.sinks import Sinks

    group, generation, most, *arguments = sys.argv[1:]
    each, shown = Sinks._try, 0

    def killing(self: Sinks, name: str, write: Any) -> None:
        nonlocal shown
        if wanted and shown == int(most):
            os.kill(os.getpid(), signal.SIGKILL)
        shown += wanted
        each(self, name, write)

    really_write, wanted = Sinks.write, False

    def noticing(self: Sinks, *what: Any) -> None:
        nonlocal wanted
        wanted = what[:2] == (group, int(generation))
        really_write(self, *what)

    Sinks._try, Sinks.write = killing, noticing  # type: ignore[method-assign]
    return run.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
