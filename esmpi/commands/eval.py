"""The command `esmpi eval`: evaluate a run at a generation, or any model; alone, under mpiexec or under srun."""

import argparse
import json
import logging
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.arguments import add_generation, add_overrides, print_notes
from esmpi.config.sections import HELD_OUT, is_suite_name
from esmpi.errors import UserError
from esmpi.mpi.launcher import speaks_for_all
from esmpi.mpi.world import on_all_ranks

if TYPE_CHECKING:
    from esmpi.config.sections import Config
    from esmpi.mpi.comm import Comm
    from esmpi.store.run_file import RunFile

HELP = "evaluate a run at a generation, or any model; also works under mpiexec and srun"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("target", help="run directory or log-only file; or a config, to evaluate its model as it is")
    add_overrides(parser, "change the config, such as data.eval=test.jsonl")
    add_generation(parser)
    parser.add_argument(
        "--suite", help="evaluate only the held-out problems, under this name; needed if settings differ from the run's"
    )
    parser.add_argument("--out", type=Path, help="folder for results and samples; default: the run directory")


def process(arguments: argparse.Namespace) -> int:
    """Evaluate on all ranks; return the exit code."""
    if arguments.suite is not None and not is_suite_name(arguments.suite):
        if speaks_for_all():
            print(f"esmpi: --suite: {arguments.suite!r}: letters, digits, _ and - only", file=sys.stderr)
        return 2
    _prepare(arguments)
    return on_all_ranks(partial(_evaluate, arguments))


def _prepare(arguments: argparse.Namespace) -> None:
    """Prepare the engine before MPI starts, if this rank can read the config; rank 0 says so if it cannot."""
    from esmpi.config.reader import load_config, parse_config
    from esmpi.engines import engine_config
    from esmpi.store.run_file import RunFile, run_file_path

    with suppress(UserError):
        path = run_file_path(arguments.target)
        if path.is_file() and path.suffix == ".h5":
            config = parse_config(RunFile.open(path).attributes["config"], arguments.overrides)
        else:
            config = load_config(arguments.target, arguments.overrides)
        engine_config(config).prepare()


def _evaluate(arguments: argparse.Namespace, comm: "Comm") -> int:
    """Collective. Evaluate what the arguments name, and write the results."""
    from esmpi.config.reader import parse_config
    from esmpi.evaluate import evaluate
    from esmpi.files import write_whole
    from esmpi.identity import check_same_problems, digest_of_kind
    from esmpi.record.recorder import log_evaluation, write_samples
    from esmpi.resume import take_theta
    from esmpi.setup import agreed_digests, open_setup, start_logging
    from esmpi.store.run_file import RUN_FILE, samples_path
    from esmpi.store.snapshot_keeper import good_snapshots

    with ExitStack() as stack:
        target = None
        with comm.together():
            if comm.is_root:
                target = _open(arguments, stack)
        said = None if target is None else [target.generation, target.config.to_dict()]
        generation, tree = comm.allgather_object(said)[0]
        config = parse_config(tree)
        start_logging(config.log.level, comm)
        setup = open_setup(config, comm, stack)
        run = None if target is None else target.run
        digests = agreed_digests(setup)
        kept = run is not None and arguments.out is None
        names = {name: digest for name, digest in digests.suites.items() if arguments.suite is None or name == HELD_OUT}
        if arguments.suite not in (None, HELD_OUT):
            names = {arguments.suite: digest_of_kind(config, digests)}
        with comm.together():
            if run is not None and kept:
                check_same_problems(run, names, digests)
        digest = take_theta(setup, run, generation, good_snapshots(run, generation) if run else iter(()))
        for suite in setup.problems.suites:
            if arguments.suite is not None and suite != HELD_OUT:
                continue
            result, samples = evaluate(setup, suite, generation)
            name = arguments.suite or suite
            log_evaluation(name, generation, result)
            if target is None:
                continue
            write_samples(target.directory / RUN_FILE, name, generation, samples)
            row = {"generation": generation} | result.to_row()
            if run is not None and kept:
                run.attributes["suite_digests"] = run.attributes["suite_digests"] | {name: names[name]}
                run.add_evaluation(name, row)
            else:
                about = {"suite": name, "model": config.model.path, "theta_digest": f"{digest:016x}"} | row
                path = target.directory / "eval" / f"g{generation:06d}.{name}.json"
                write_whole(path, json.dumps(about, indent=2).encode())
            log.info("samples: %s", samples_path(target.directory / RUN_FILE, name, generation))
    return 0


@dataclass(frozen=True, kw_only=True)
class _Target:
    run: "RunFile | None"
    """None if the target is a config, whose model is evaluated."""
    generation: int
    config: "Config"
    directory: Path
    """Where results go; this process holds its lock."""


def _open(arguments: argparse.Namespace, stack: ExitStack) -> _Target:
    """Read what to evaluate, on rank 0, and lock the directory until `stack` is closed."""
    from esmpi.config.reader import load_config, parse_config
    from esmpi.files import locked
    from esmpi.identity import check_comparable
    from esmpi.store.run_file import RUN_FILE, RunFile, run_file_path

    notes: list[str] = []
    target, path = Path(arguments.target), run_file_path(arguments.target)
    if not target.exists() and target.suffix not in (".yaml", ".yml"):  # of a config, the reader names the nearest
        raise UserError(f"{target} does not exist: name a run directory, a run file or a config (.yaml)")
    if not path.is_file() or path.suffix != ".h5":
        if arguments.generation is not None or arguments.best:
            raise UserError(f"--generation and --best need a run, and {arguments.target} is not one")
        if (target / "config.json").is_file():
            raise UserError(
                f"{arguments.target} is a model, and does not say what it is to do: give a config, "
                f"and with it model.path={arguments.target} --out DIR"
            )
        config = load_config(arguments.target, arguments.overrides, notes)
        print_notes(notes)
        _check_suite_is_free(arguments.suite, config.to_dict())
        directory = arguments.out or config.directory
        if arguments.out is None and (directory / RUN_FILE).exists():
            raise UserError(f"--out DIR is needed: {directory} holds a run, and this is not one of its generations")
        stack.enter_context(locked(directory))
        return _Target(run=None, generation=0, config=config, directory=directory)
    run, directory = RunFile.open(path), arguments.out or path.parent
    if arguments.out is None and (run.attributes["log_only"] or path.name != RUN_FILE):
        raise UserError(f"--out DIR is needed: {path} is a file of its own, without a run directory")
    stack.enter_context(locked(directory))
    # Read again: what another process committed before this one had the lock must not be overwritten.
    run = RunFile.open(path)
    config = parse_config(run.attributes["config"], arguments.overrides, notes)
    print_notes(notes)
    _check_suite_is_free(arguments.suite, run.attributes["config"])
    if arguments.suite in (None, HELD_OUT):
        check_comparable(run, config)
    generation = run.choose_generation(arguments.generation, arguments.best)
    return _Target(run=run, generation=generation, config=config, directory=directory)


def _check_suite_is_free(suite: str | None, config: dict[str, Any]) -> None:
    if suite in config["eval"].get("suites", {}):
        raise UserError(f"--suite: {suite} is the name of other problems (eval.suites): choose another name")
