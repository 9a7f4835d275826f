"""The command `esmpi replay`: rebuild theta from the log and check its digest."""

import argparse

from esmpi.commands import _theta

HELP = "rebuild theta from the log and check its digest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    _theta.add_arguments(parser)
    parser.add_argument(
        "--verify", action="store_true", help="replay from the base model, and check every generation's digest"
    )


def process(arguments: argparse.Namespace) -> int:
    """Rebuild theta and print its digest; return the exit code."""
    _theta.rebuild(arguments, verify=arguments.verify)
    return 0
