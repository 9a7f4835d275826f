"""The command `esmpi run`: the main program, `python -m esmpi.run`."""

from esmpi.run import add_arguments, process

__all__ = ["HELP", "add_arguments", "process"]

HELP = "train; the same as python -m esmpi.run"
