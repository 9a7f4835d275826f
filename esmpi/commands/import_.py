"""The command `esmpi import`: make a model folder of a checkpoint of the public ES code."""

import argparse
from pathlib import Path

from esmpi.errors import UserError

HELP = "convert a checkpoint of the public ES code (.pth) to a Hugging Face model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("checkpoint", type=Path, help=".pth file, a state dict")
    parser.add_argument("--model", required=True, help="the base model: folder, hub id, or esmpi:NAME")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: bfloat16")


def process(arguments: argparse.Namespace) -> int:
    """Write the model folder; return the exit code."""
    from esmpi.model.base_model import BaseModel, tied_embedding
    from esmpi.model.find import fetch_model
    from esmpi.store.export import check_target, export
    from esmpi.store.state_dict import read_state_dict

    check_target(arguments.out)
    base = BaseModel(fetch_model(arguments.model))
    if not arguments.checkpoint.is_file():
        raise UserError(f"no file {arguments.checkpoint}")
    values = read_state_dict(arguments.checkpoint, base)
    aliases = {}
    if "lm_head.weight" in base.tensors.keys() - values.keys():
        aliases["lm_head.weight"] = tied_embedding(values)
    origin = {"imported_from": str(arguments.checkpoint), "base": arguments.model}
    export(base, values, aliases, arguments.out, arguments.dtype, origin)
    print(f"{len(values)} tensors written to {arguments.out} ({arguments.dtype})")
    return 0
