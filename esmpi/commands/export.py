"""The command `esmpi export`: write theta as a Hugging Face model folder, or the log from which it can be rebuilt."""

import argparse
from pathlib import Path

from esmpi.commands import _theta
from esmpi.errors import UserError

HELP = "write theta as a Hugging Face model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    _theta.add_arguments(parser)
    parser.add_argument("--out", required=True, type=Path, help="folder to write; with --log-only a file")
    parser.add_argument("--push", metavar="ORG/NAME", help="also upload the folder to this new repository of the hub")
    parser.add_argument("--public", action="store_true", help="let everyone see the repository; default: private")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="type of the weights; default: float32"
    )
    parser.add_argument(
        "--log-only",
        action="store_true",
        help="write only seeds and coefficients: a small file that, with the base model, is the tuned model",
    )


def process(arguments: argparse.Namespace) -> int:
    """Write the model folder, or the log; return the exit code."""
    if arguments.public and arguments.push is None:
        raise UserError("--public is for --push ORG/NAME")
    if arguments.log_only:
        if arguments.push is not None:
            raise UserError("--push uploads a model folder: leave out --log-only")
        _export_log(arguments)
    else:
        _export_model(arguments)
    return 0


def _export_model(arguments: argparse.Namespace) -> None:
    from esmpi.report.card import card_files
    from esmpi.store.export import check_target, export
    from esmpi.store.hub import check_links, check_push, push

    check_target(arguments.out)  # before the work of minutes
    if arguments.push is not None:
        check_push(arguments.push, arguments.public)
    file, base, weights, generation = _theta.rebuild(arguments)
    if arguments.push is not None:
        check_links(base.folder)
    theta = {view.name: tensor.view(view.shape) for view, tensor in weights.theta()}
    files = card_files(file, generation, base, arguments.best)
    export(base, theta, file.attributes["aliases"], arguments.out, arguments.dtype, file.describe(generation), files)
    print(f"written to {arguments.out} ({arguments.dtype})", flush=True)
    if arguments.push is not None:
        print(f"pushed to {push(arguments.out, arguments.push, arguments.public)}")


def _export_log(arguments: argparse.Namespace) -> None:
    from esmpi.store.run_file import RunFile, run_file_path

    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists: choose another file")
    file = RunFile.open(run_file_path(arguments.run))
    generation = file.choose_generation(arguments.generation, arguments.best)
    log = file.cut(arguments.out, generation)
    log.attributes |= {"log_only": True, "provenance": []}
    try:
        log.write()
    except OSError as error:
        raise UserError(f"cannot write {arguments.out}: {error.strerror}") from error
    size = arguments.out.stat().st_size
    print(f"the log up to generation {generation}, theta {file.digest_after(generation):016x}: {size:,} bytes")
