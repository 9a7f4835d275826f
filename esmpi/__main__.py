"""The command `esmpi`: run a config, and work with what a run left behind."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import esmpi
from esmpi import run
from esmpi.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, or 2 for an error that is the user's to mend."""
    arguments = run.parse(_parser(), argv)
    try:
        return int(arguments.process(arguments))
    except UserError as error:
        print(f"esmpi: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="esmpi", description=esmpi.__doc__)
    parser.add_argument("--version", action="version", version=f"esmpi {esmpi.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    run.add_arguments(commands.add_parser("run", help="train; the same as python -m esmpi.run"))

    report = _add_run_command(commands, "report", "tell before and after, and draw report.png", _report)
    report.add_argument("--no-plot", action="store_true", help="only the text (needs no matplotlib)")

    replay = _add_run_command(commands, "replay", "rebuild theta from the log and check its digest", _replay)
    export = _add_run_command(commands, "export", "write theta as a Hugging Face model folder", _export)
    for command in (replay, export):
        command.add_argument("--generation", type=int, help="0 is the base model; default: the last one")
        command.add_argument("--model", help="where the base model is now, if not where the config says")
    export.add_argument("--out", required=True, type=Path, help="folder to write")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    return parser


def _add_run_command(commands, name, text, process):  # type: ignore[no-untyped-def]  # argparse's own types are private
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("run", help="run directory, such as runs/quickstart")
    command.set_defaults(process=process)
    return command


def _report(arguments: argparse.Namespace) -> int:
    from esmpi.report.plot import plot
    from esmpi.report.summary import summarize
    from esmpi.store.run_file import RunFile, run_file_path

    file = RunFile.open(run_file_path(arguments.run))
    print(summarize(file))
    if not arguments.no_plot:
        picture = file.path.parent / "report.png"
        plot(file, picture)
        print(f"\nplot: {picture}")
    return 0


def _replay(arguments: argparse.Namespace) -> int:
    _rebuild(arguments)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from esmpi.store.export import check_target, export

    check_target(arguments.out)
    file, base, weights, generation = _rebuild(arguments)
    theta = ((view.name, tensor.view(view.shape)) for view, tensor in weights.theta())
    export(base, theta, file.attributes["aliases"], arguments.out, arguments.dtype, file.describe(generation))
    print(f"written to {arguments.out} ({arguments.dtype})")
    return 0


def _rebuild(arguments):  # type: ignore[no-untyped-def]  # the types would import torch
    from esmpi.config import parse_config
    from esmpi.store.run_file import RunFile, run_file_path

    file = RunFile.open(run_file_path(arguments.run))
    from esmpi.store.replay import base_model, replay  # takes seconds to import

    base = base_model(parse_config(file.attributes["config"]), arguments.model)
    generation = file.num_generations if arguments.generation is None else arguments.generation
    weights = replay(file, base, generation, len(os.sched_getaffinity(0)))
    print(f"generation {generation}: theta {weights.digest():016x}, as the run file has it")
    return file, base, weights, generation


if __name__ == "__main__":
    sys.exit(main())
