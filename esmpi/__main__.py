"""The command `esmpi`: find the command that is asked for, and run it. The commands are in `esmpi.commands`."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from esmpi.arguments import parse
from esmpi.commands import commands
from esmpi.errors import UserError
from esmpi.leave import leave, open_streams
from esmpi.stop.signals import signals_restored
from esmpi.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The command and its arguments; by default those of this process.

    Returns
    -------
    int
        The exit code: that of the command, or 2 after an error that is the user's to mend.
    """
    if argv is None:
        open_streams()
    arguments = parse(_parser(), argv)
    try:
        # a program that calls this goes on afterwards; a process of esmpi's own ignores signals until it ends
        with signals_restored() if argv is not None else nullcontext():
            return int(arguments.process(arguments))
    except UserError as error:
        print(f"esmpi: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever reads the output, such as `head`, has seen enough. Text that is still buffered must not raise either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esmpi",
        description="Fine-tune language models with Evolution Strategies on a Slurm cluster.",
        epilog="`esmpi run CONFIG` trains, `esmpi COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"esmpi {__version__}")
    choices = parser.add_subparsers(required=True, metavar="command")
    for name, command in commands().items():
        subparser = choices.add_parser(
            name, help=command.HELP, description=f"{command.HELP[0].upper()}{command.HELP[1:]}."
        )
        command.add_arguments(subparser)
        subparser.set_defaults(process=command.process)
    return parser


if __name__ == "__main__":
    leave(main())
