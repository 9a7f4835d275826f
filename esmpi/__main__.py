"""The command `esmpi`: run a config, and work with what a run left behind."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from esmpi import run
from esmpi.arguments import add_config, parse
from esmpi.commands import eval as evaluate_command
from esmpi.errors import UserError
from esmpi.leave import leave
from esmpi.mpi.world import on_all_ranks
from esmpi.version import __version__

_EVAL = "evaluate a run at a generation, or any model; also under mpiexec or srun"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, or 2 for an error that is the user's to mend."""
    arguments = parse(_parser(), argv)
    try:
        return int(arguments.process(arguments))
    except UserError as error:
        print(f"esmpi: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="esmpi", description="Fine-tune language models with Evolution Strategies on a Slurm cluster."
    )
    parser.add_argument("--version", action="version", version=f"esmpi {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    run.add_arguments(commands.add_parser("run", help="train; the same as python -m esmpi.run"))

    evaluation = commands.add_parser("eval", help=_EVAL, description=_EVAL)
    evaluate_command.add_arguments(evaluation)
    evaluation.set_defaults(process=evaluate_command.process)

    submit = commands.add_parser("submit", help="submit a run to Slurm (by submitit), or an array of runs")
    add_config(submit)
    submit.add_argument("--nodes", type=int, default=1, help="default: 1")
    submit.add_argument("--gpus-per-node", type=int, default=0, help="default: 0")
    submit.add_argument("--tasks-per-node", type=int, help="ranks of a node; default: one for each GPU, or one")
    submit.add_argument("--cpus-per-task", type=int)
    submit.add_argument("--time", default="24:00:00", help="time limit, as Slurm writes it; default: 24:00:00")
    submit.add_argument(
        "--signal-delay", type=int, metavar="SECONDS", help="stop so long before the limit; default: 600, or a quarter"
    )
    submit.add_argument(
        "--array",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="a run for each value, such as sigma=1e-3,2e-3; given several times: for all combinations",
    )
    submit.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="another option, such as partition=gpu; may be given several times",
    )
    submit.add_argument("--dry-run", action="store_true", help="print the batch script; submit nothing")
    submit.set_defaults(process=_submit)

    doctor = commands.add_parser("doctor", help="look whether a run would find all it needs; also as srun esmpi doctor")
    doctor.add_argument("config", nargs="?", help="YAML file of the run: look for its model and directory, too")
    doctor.add_argument("overrides", nargs="*", metavar="section.key=value")
    doctor.set_defaults(process=_doctor)

    report = commands.add_parser("report", help="tell before and after, and draw report.png; compare several runs")
    report.add_argument(
        "runs", nargs="+", metavar="run", help="run directory, such as runs/quickstart; several: a table"
    )
    report.set_defaults(process=_report)
    report.add_argument("--no-plot", action="store_true", help="only the text (needs no matplotlib)")

    inspect = _add_run_command(
        commands, "inspect", "tell what a run directory holds, and whether it is whole", _inspect
    )
    inspect.add_argument("--json", action="store_true", help="for programs")

    replay = _add_run_command(commands, "replay", "rebuild theta from the log and check its digest", _replay)
    replay.add_argument(
        "--verify", action="store_true", help="from the base model, comparing every generation's digest"
    )
    export = _add_run_command(commands, "export", "write theta as a Hugging Face model folder", _export)
    for command in (replay, export):
        which = command.add_mutually_exclusive_group()
        which.add_argument("--generation", type=int, help="0 is the base model; default: the last one")
        which.add_argument("--best", action="store_true", help="the generation with the highest held-out accuracy")
        command.add_argument("--model", help="where the base model is now, if not where the config says")
        command.add_argument("--from-base", action="store_true", help="use no snapshot")
    export.add_argument("--out", required=True, type=Path, help="folder to write; with --log-only a file")
    export.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    export.add_argument(
        "--log-only",
        action="store_true",
        help="write seeds and coefficients alone: a small file that, with the base model, is the tuned model",
    )

    text = "make a Hugging Face model folder of a checkpoint of the public ES code (a .pth of weights)"
    import_ = commands.add_parser("import", help=text, description=text)
    import_.add_argument("checkpoint", type=Path, help=".pth file, a state dict")
    import_.add_argument("--model", required=True, help="the base model: folder, hub id, or esmpi:NAME")
    import_.add_argument("--out", required=True, type=Path, help="folder to write")
    import_.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default: bfloat16")
    import_.set_defaults(process=_import)
    return parser


def _add_run_command(commands, name, text, process):  # type: ignore[no-untyped-def]  # argparse's own types are private
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("run", help="run directory, such as runs/quickstart, or a log-only file")
    command.set_defaults(process=process)
    return command


def _submit(arguments: argparse.Namespace) -> int:
    from esmpi.launch.jobs import script, submit

    more = dict(_pairs("--sbatch", arguments.sbatch))
    for key in more:
        if "." in key:
            raise UserError(f"--sbatch: {key} is no option of sbatch; keys of the config stand without --sbatch")
    options = {
        "array": {key: values.split(",") for key, values in _pairs("--array", arguments.array)},
        "time_limit": arguments.time,
        "signal_delay_s": arguments.signal_delay,
        "nodes": arguments.nodes,
        "gpus_per_node": arguments.gpus_per_node,
        "tasks_per_node": arguments.tasks_per_node,
        "cpus_per_task": arguments.cpus_per_task,
        **more,
    }
    if arguments.dry_run:
        print(script(arguments.config, arguments.overrides, **options))
        return 0
    for job in submit(arguments.config, arguments.overrides, **options):
        run: Any = job.submission().function
        print(f"job {job.job_id}: {run.directory}, log {job.paths.stdout}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from esmpi.config.reader import load_config
    from esmpi.launch.doctor import examine

    config = None if arguments.config is None else load_config(arguments.config, arguments.overrides)
    return on_all_ranks(lambda comm: examine(comm, config))


def _pairs(option: str, words: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    for word, (key, _, value) in zip(words, pairs, strict=True):
        if not (key and value):
            raise UserError(f"{option}: {word!r} is not of the form key=value")
    return [(key, value) for key, _, value in pairs]


def _report(arguments: argparse.Namespace) -> int:
    from esmpi.report.plot import plot, plot_profile
    from esmpi.report.summary import summarize
    from esmpi.store.run_file import RunFile, run_file_path

    if len(arguments.runs) > 1:
        from esmpi.report.compare import compare

        print(compare(arguments.runs))
        return 0
    file = RunFile.open(run_file_path(arguments.runs[0]))
    print(summarize(file))
    if not arguments.no_plot:
        picture = file.path.parent / "report.png"
        plot(file, picture)
        print(f"\nplot: {picture}")
        if file.profile is not None:
            picture = file.path.parent / "profile.png"
            plot_profile(file, picture)
            print(f"profile of generation {file.profile['generation'][0] + 1}: {picture}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from esmpi.store.inspection import inspect, to_text
    from esmpi.store.run_file import RunFile, run_file_path

    found = inspect(RunFile.open(run_file_path(arguments.run)))
    print(json.dumps(found, indent=2) if arguments.json else to_text(found))
    return 1 if any(file["trouble"] for file in found["files"]) else 0


def _replay(arguments: argparse.Namespace) -> int:
    _rebuild(arguments)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    if arguments.log_only:
        return _export_log(arguments)
    from esmpi.store.card import card_files
    from esmpi.store.export import check_target, export

    check_target(arguments.out)
    arguments.verify = False
    file, base, weights, generation = _rebuild(arguments)
    theta = ((view.name, tensor.view(view.shape)) for view, tensor in weights.theta())
    texts = card_files(file, generation, base)
    export(base, theta, file.attributes["aliases"], arguments.out, arguments.dtype, file.describe(generation), texts)
    print(f"written to {arguments.out} ({arguments.dtype})")
    return 0


def _export_log(arguments: argparse.Namespace) -> int:
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
    return 0


def _import(arguments: argparse.Namespace) -> int:
    from esmpi.model.base_model import BaseModel, tied_embedding
    from esmpi.model.find import fetch_model
    from esmpi.store.export import check_target, export

    check_target(arguments.out)
    base = BaseModel(fetch_model(arguments.model))
    if not arguments.checkpoint.is_file():
        raise UserError(f"no file {arguments.checkpoint}")
    from esmpi.store.state_dict import read_state_dict

    values = read_state_dict(arguments.checkpoint, base)
    aliases = {}
    if "lm_head.weight" in base.tensors.keys() - values.keys():
        aliases["lm_head.weight"] = tied_embedding(values)
    origin = {"imported_from": str(arguments.checkpoint), "base": arguments.model}
    export(base, values.items(), aliases, arguments.out, arguments.dtype, origin)
    print(f"{len(values)} tensors written to {arguments.out} ({arguments.dtype})")
    return 0


def _rebuild(arguments):  # type: ignore[no-untyped-def]  # the types would import torch
    from esmpi.config.reader import parse_config
    from esmpi.store.run_file import RunFile, run_file_path

    file = RunFile.open(run_file_path(arguments.run))
    from esmpi.store.replay import base_model, replay  # takes seconds to import

    generation = file.choose_generation(arguments.generation, arguments.best)
    base = base_model(parse_config(file.attributes["config"]), arguments.model)

    def tell(verified: int) -> None:
        print(f"generation {verified}: theta {file.digest_after(verified):016x}, as the run file has it", flush=True)

    weights = replay(
        file,
        base,
        generation,
        len(os.sched_getaffinity(0)),
        from_base=arguments.from_base or arguments.verify,
        check=tell if arguments.verify else None,
    )
    if arguments.verify:
        print(f"all {generation} generations are what the run had")
    else:
        tell(generation)
    return file, base, weights, generation


if __name__ == "__main__":
    leave(main())
