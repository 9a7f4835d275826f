"""The command `esmpi inspect`: print what a run directory holds, and check its files."""

import argparse
import json

from esmpi.arguments import add_run

HELP = "show config and progress of a run, and check its files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_run(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def process(arguments: argparse.Namespace) -> int:
    """Print what was found; return the exit code, 1 if a file is damaged or missing."""
    from esmpi.store.inspection import inspect, to_text
    from esmpi.store.run_file import RunFile, run_file_path
    from esmpi.store.validation import shown

    file = RunFile.open(run_file_path(arguments.run))
    with shown(file.path):
        found = inspect(file)
        print(json.dumps(found, indent=2) if arguments.json else to_text(found))
    return 1 if any(file["trouble"] for file in found["files"]) else 0
