"""Arguments that several commands take, and how a command line is parsed."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esmpi.config.sections import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `config` and `overrides`."""
    parser.add_argument("config", help="YAML file of the run, such as configs/quickstart.yaml")
    add_overrides(parser, "change the config, such as es.sigma=2e-3")


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the argument `overrides`, a list of words, with its help text."""
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument `run`, which names one run."""
    parser.add_argument("run", help="run directory, such as runs/quickstart, or a log-only file")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the arguments `generation` and `best`, for `RunFile.choose_generation`; at most one of them may be given."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--generation", type=int, help="which generation; 0 is the base model; default: the last one")
    which.add_argument("--best", action="store_true", help="take the generation with the highest held-out accuracy")


def read_config(arguments: argparse.Namespace) -> "Config":
    """Return the config that `add_config` has asked for; one rank prints which keys the overrides left unused.

    Raises
    ------
    UserError
        If the config is wrong.
    """
    from esmpi.config.reader import load_config

    notes: list[str] = []
    config = load_config(arguments.config, arguments.overrides, notes)
    print_notes(notes)
    return config


def print_notes(notes: Sequence[str]) -> None:
    """Print notes on a config, on one rank."""
    from esmpi.mpi.launcher import speaks_for_all

    if speaks_for_all():
        for note in notes:
            print(f"esmpi: {note}", file=sys.stderr)


def warn_of(notes: Sequence[str]) -> None:
    """Issue notes on a config as warnings, on one rank. For public functions: the warning points at their caller."""
    from esmpi.mpi.launcher import speaks_for_all

    if speaks_for_all():
        for note in notes:
            warnings.warn(note, stacklevel=3)


def positive(text: str) -> int:
    """Return an argument as a number of at least 1; for the `type` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def natural(text: str) -> int:
    """Return an argument as a number of at least 0; for the `type` of an argument."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"at least 0, got {number}")
    return number


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line.

    Overrides are allowed after options, which argparse alone does not accept.

    Parameters
    ----------
    parser : ArgumentParser
    argv : sequence of str or None
        Without the program's name; None: the command line of this process.
    """
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments
