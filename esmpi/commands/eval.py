"""The command `esmpi eval`: evaluate a run at a generation, or any model; alone, under mpiexec or under srun."""

import argparse
import json
import logging
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.arguments import add_generation, add_overrides, positive, print_notes
from esmpi.config.problems import HELD_OUT, is_suite_name
from esmpi.errors import UserError
from esmpi.mpi.launcher import speaks_for_all
from esmpi.mpi.world import on_all_ranks

if TYPE_CHECKING:
    from esmpi.config.sections import Config
    from esmpi.ensemble import Ensemble
    from esmpi.mpi.comm import Comm
    from esmpi.record.evaluation import Evaluation
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
    parser.add_argument(
        "--ensemble",
        type=positive,
        metavar="K",
        help="let the K best members of a generation, by default the last one that has members, vote on the held-out "
        "problems; the results get the name ensemble_K",
    )
    parser.add_argument("--out", type=Path, help="folder for results and samples; default: the run directory")


def process(arguments: argparse.Namespace) -> int:
    """Evaluate on all ranks; return the exit code."""
    if arguments.ensemble is not None and arguments.suite is None:
        arguments.suite = f"ensemble_{arguments.ensemble}"
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
    from esmpi.trust import check_agreed

    with suppress(UserError):
        path = run_file_path(arguments.target)
        if path.is_file() and path.suffix == ".h5":
            run = RunFile.open(path)
            check_agreed(run, arguments.overrides)
            config = parse_config(run.attributes["config"], arguments.overrides)
        else:
            config = load_config(arguments.target, arguments.overrides)
        engine_config(config).prepare()


def _evaluate(arguments: argparse.Namespace, comm: "Comm") -> int:
    """Collective. Evaluate what the arguments name, and write the results."""
    from esmpi.config.reader import parse_config
    from esmpi.ensemble import Ensemble, evaluate_ensemble, log_members
    from esmpi.evaluate import evaluate
    from esmpi.identity import check_same_problems, digest_of_kind
    from esmpi.record.recorder import log_evaluation
    from esmpi.resume import take_theta
    from esmpi.setup import agreed_digests, open_setup, start_logging
    from esmpi.store.snapshot_keeper import good_snapshots

    with ExitStack() as stack:
        target = None
        with comm.together():
            if comm.is_root:
                target = _open(arguments, stack)
        said = None
        if target is not None:
            said = [target.theta, target.config.to_dict(), asdict(target.ensemble) if target.ensemble else None]
        generation, tree, members = comm.allgather_object(said)[0]
        config, ensemble = parse_config(tree), Ensemble.from_json(members) if members else None
        start_logging(config.log.level, comm)
        if ensemble is None:
            setup = open_setup(config, comm, stack)
        else:
            waves_of = partial(ensemble.waves, config, comm.size)
            setup = open_setup(config, comm, stack, waves_of, ensemble.noise, voting="--ensemble")
        run = None if target is None else target.run
        digests = agreed_digests(setup)
        kept = run is not None and arguments.out is None
        names = {name: digest for name, digest in digests.suites.items() if arguments.suite is None or name == HELD_OUT}
        if arguments.suite not in (None, HELD_OUT):
            names = {arguments.suite: digest_of_kind(config, digests, arguments.ensemble)}
        with comm.together():
            if run is not None and kept:
                check_same_problems(run, names, digests)
        digest = take_theta(setup, run, generation, good_snapshots(run, generation) if run else iter(()))
        for suite in setup.problems.suites:
            if arguments.suite is not None and suite != HELD_OUT:
                continue
            name, further = arguments.suite or suite, dict[str, Any]()
            if ensemble is not None:
                result, samples, members = evaluate_ensemble(setup, ensemble)
                log_members(result, members)
                further["members"] = members
            else:
                result, samples = evaluate(setup, suite, generation)
            log_evaluation(name, generation, result)
            if target is not None:
                further |= {"suite": name, "theta_digest": f"{digest:016x}"}
                _write(target, name, names[name] if kept else None, result, samples, further)
    return 0


def _write(
    target: "_Target",
    name: str,
    kind: str | None,
    result: "Evaluation",
    samples: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    """Write a result: into the run file if `kind`, the digest of what it depends on, is given; else into a file.

    The members of an ensemble are in a file in any case.
    """
    from esmpi.files import write_whole
    from esmpi.record.recorder import write_samples
    from esmpi.store.run_file import RUN_FILE, samples_path

    write_samples(target.directory / RUN_FILE, name, target.generation, samples)
    row = {"generation": target.generation} | result.to_row()
    if kind is not None:
        assert target.run is not None
        target.run.attributes["suite_digests"] = target.run.attributes["suite_digests"] | {name: kind}
        target.run.add_evaluation(name, row)
    if kind is None or target.ensemble is not None:
        path = target.directory / "eval" / f"g{target.generation:06d}.{name}.json"
        about = about | {"model": target.config.model.path} | row
        write_whole(path, json.dumps(about, indent=2).encode())
    log.info("samples: %s", samples_path(target.directory / RUN_FILE, name, target.generation))


@dataclass(frozen=True, kw_only=True)
class _Target:
    run: "RunFile | None"
    """None if the target is a config, whose model is evaluated."""
    generation: int
    """Under which results are recorded: that of theta, or of the members that vote."""
    config: "Config"
    directory: Path
    """Where results go; this process holds its lock."""
    ensemble: "Ensemble | None" = None
    """The members that vote; None if theta itself is evaluated."""

    @property
    def theta(self) -> int:
        """Generation of theta."""
        return self.generation if self.ensemble is None else self.ensemble.theta


def _open(arguments: argparse.Namespace, stack: ExitStack) -> _Target:
    """Read what to evaluate, on rank 0, and lock the directory until `stack` is closed."""
    from esmpi.config.reader import load_config, parse_config
    from esmpi.ensemble import best_members
    from esmpi.files import locked
    from esmpi.identity import check_comparable
    from esmpi.store.run_file import RUN_FILE, RunFile, run_file_path
    from esmpi.trust import check_agreed

    notes: list[str] = []
    target, path = Path(arguments.target), run_file_path(arguments.target)
    if not target.exists() and target.suffix not in (".yaml", ".yml"):  # of a config, the reader names the nearest
        raise UserError(f"{target} does not exist: name a run directory, a run file or a config (.yaml)")
    if not path.is_file() or path.suffix != ".h5":
        if arguments.generation is not None or arguments.best:
            raise UserError(f"--generation and --best need a run, and {arguments.target} is not one")
        if arguments.ensemble is not None:
            raise UserError(f"--ensemble needs a run, and {arguments.target} is not one")
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
    check_agreed(run, arguments.overrides)
    config = parse_config(run.attributes["config"], arguments.overrides, notes)
    print_notes(notes)
    _check_suite_is_free(arguments.suite, run.attributes["config"])
    if arguments.suite in (None, HELD_OUT):
        check_comparable(run, config)
    ensemble = None
    generation = run.choose_generation(arguments.generation, arguments.best)
    if arguments.ensemble is not None:
        if arguments.generation is None and not arguments.best:
            generation = max(0, generation - 1)  # no member has been made of the last theta yet
        _check_members_are_known(run, config, arguments.suite)
        ensemble = best_members(run, generation, arguments.ensemble)
    return _Target(run=run, generation=generation, config=config, directory=directory, ensemble=ensemble)


def _check_members_are_known(run: "RunFile", config: "Config", suite: str) -> None:
    from esmpi.config.differences import differences

    if suite == HELD_OUT:
        raise UserError(f"--suite: {HELD_OUT} is the name of theta's own results: choose another name")
    changed = [change for change in differences(run.attributes["config"], config.to_dict()) if change.section == "es"]
    if changed:
        raise UserError(f"--ensemble: the members are those of the run: leave out {', '.join(map(str, changed))}")


def _check_suite_is_free(suite: str | None, config: dict[str, Any]) -> None:
    if suite in config["eval"].get("suites", {}):
        raise UserError(f"--suite: {suite} is the name of other problems (eval.suites): choose another name")
