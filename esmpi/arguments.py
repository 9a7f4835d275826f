"""Arguments that several commands take, and how a command line is parsed."""

import argparse
from collections.abc import Sequence


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a config."""
    parser.add_argument("config", help="YAML file of the run, such as configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="change the config, such as es.sigma=2e-3"
    )


def positive(text: str) -> int:
    """Return the number that an argument must be: 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments, with overrides allowed after options, which argparse alone does not accept."""
    arguments, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments
