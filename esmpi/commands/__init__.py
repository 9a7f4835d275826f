"""The commands of `esmpi`: each module of this package is a command.

A command is a module with the three names of `Command`. Its name is the module's, without a trailing underscore, and
a module whose name starts with an underscore is no command. `esmpi --help` imports all of them, so whatever is slow to
import is imported inside `process`.
"""

import argparse
from importlib import import_module
from typing import Protocol, cast

from esmpi import plugins


class Command(Protocol):
    """What the module of a command defines."""

    HELP: str
    """One line of `esmpi --help`, without a full stop."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments to its parser."""

    def process(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code; raise UserError for an error that the user can correct."""


def commands() -> dict[str, Command]:
    """Return the commands by their names, in alphabetical order."""
    return {name: cast(Command, import_module(module)) for name, module in plugins.modules(__name__).items()}
