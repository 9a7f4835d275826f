"""The command `esmpi sweep`: train with each of several settings and seeds, and compare them."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from esmpi.arguments import add_overrides, natural, positive, print_notes
from esmpi.commands import _jobs
from esmpi.errors import UserError

if TYPE_CHECKING:
    from esmpi.launch.sweep import Sweep, SweepRun

HELP = "train with each of several settings and seeds, and compare them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("config", help="YAML file of the runs, such as configs/quickstart.yaml")
    add_overrides(
        parser,
        "change the config; several values make a grid, as in es.sigma=1e-3,3e-3. Commas inside [], {} and quotes do "
        "not separate values: task.num_numbers=[3],[3,4] is two lists. With --random also log:LOW:HIGH and "
        "uniform:LOW:HIGH, which give whole numbers if both ends are",
    )
    parser.add_argument("--seeds", type=positive, help="number of seeds of each setting, from run.seed on; default: 1")
    parser.add_argument("--random", type=positive, metavar="NUMBER", help="draw so many settings instead of the grid")
    parser.add_argument(
        "--random-seed", type=natural, help="seed of the draws, which are the same each time; default: 0"
    )
    parser.add_argument(
        "--ranks", type=positive, help="start each run by mpiexec on so many ranks; default: without MPI"
    )
    parser.add_argument(
        "--no-plot", action="store_true", help="print only the table, without plot and page; needs no matplotlib"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="check all runs and list them; start nothing")
    instead.add_argument(
        "--show", action="store_true", help="print the table, draw the plot and write the page; start nothing"
    )
    instead.add_argument(
        "--write-config",
        type=natural,
        metavar="NUMBER",
        help="write the config of one run, counted from 0, and print its path; for job scripts like slurm/sweep.sh",
    )
    parser.add_argument(
        "--slurm", action="store_true", help="submit the runs as a job array (by submitit), with the options below"
    )
    _jobs.add_arguments(parser)


def process(arguments: argparse.Namespace) -> int:
    """Start the runs and print the table, or do what is asked for instead; return the exit code."""
    from esmpi.launch.start import run_serially
    from esmpi.launch.sweep import plan_sweep

    resources = _resources(arguments)
    if arguments.random_seed is not None and arguments.random is None:
        raise UserError("--random-seed: nothing is drawn without --random")
    notes: list[str] = []
    sweep = plan_sweep(
        arguments.config,
        arguments.overrides,
        num_seeds=arguments.seeds,
        num_draws=arguments.random,
        draw_seed=arguments.random_seed or 0,
        notes=notes,
    )
    print_notes(notes)
    sweep.check(None if arguments.show else arguments.ranks or 1)
    if arguments.show:
        _show(sweep, arguments.no_plot)
        return 0
    if arguments.write_config is not None:
        print(_chosen(sweep, arguments.write_config).write_config())
        return 0
    print(sweep, flush=True)
    if arguments.slurm or arguments.dry_run:
        _submit(sweep, arguments.dry_run, resources)
        return 0
    code = run_serially(sweep.runs, arguments.ranks)
    print()
    _show(sweep, arguments.no_plot)
    return code


def _submit(sweep: "Sweep", is_dry: bool, resources: dict[str, Any]) -> None:
    """Submit the runs that are not finished, running or in the queue, or list all runs; with their states or jobs."""
    from esmpi.launch.jobs import script
    from esmpi.launch.start import jobs_in_queue, submit_runs

    queue = jobs_in_queue()
    files = {run.name: run.read() for run in sweep.runs}
    states = {run.name: run.state(files[run.name], queue) for run in sweep.runs}
    left = [run for run in sweep.runs if run.wants_start(files[run.name], queue)]
    if not is_dry and left:
        jobs = submit_runs(left, sweep.name, **resources)
        states |= {name: f"job {job}" for name, job in jobs.items()}
    for run in sweep.runs:
        print(f"  {run.name}: {states[run.name]}")
    if is_dry and resources and left:
        print(script([run.config for run in left], sweep.name, **resources))


def _show(sweep: "Sweep", no_plot: bool) -> None:
    from esmpi.launch.start import jobs_in_queue
    from esmpi.report.compare import best_first
    from esmpi.report.page import page_of_runs, write_page
    from esmpi.report.sweep import Entry, plot_sweep, table_of_sweep

    queue = jobs_in_queue()
    entries, files = [], []
    for run in sweep.runs:
        file = run.read()
        entries.append(Entry(name=run.name, setting=run.setting, file=file, state=run.state(file, queue)))
        files += [file] if file is not None else []
    print(table_of_sweep(entries))
    if not no_plot and files:
        picture, page = sweep.folder / "sweep.png", sweep.folder / "comparison.html"
        try:
            plot_sweep(entries, sweep.name, picture)
            print(f"\nplot: {picture}")
            unfinished = [f"{entry.name}: {entry.state}" for entry in entries if entry.state != "finished"]
            write_page(page_of_runs(best_first(files), unfinished), page)
            print(f"page: {page}")
        except UserError as error:  # no matplotlib, which must not look as if a run had failed
            print(f"esmpi: {error}", file=sys.stderr)


def _chosen(sweep: "Sweep", number: int) -> "SweepRun":
    if number >= len(sweep.runs):
        raise UserError(
            f"--write-config: no run {number}: {sweep}, so an array of jobs is sbatch --array=0-{len(sweep.runs) - 1}"
        )
    return sweep.runs[number]


def _resources(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a job gets; empty without --slurm, where options for jobs are an error."""
    if arguments.slurm:
        if arguments.ranks is not None:
            raise UserError("--ranks is for runs on this machine; the ranks of a job are --nodes x --tasks-per-node")
        return _jobs.resources(arguments)
    unused = argparse.ArgumentParser()
    _jobs.add_arguments(unused)
    for name, default in vars(unused.parse_args([])).items():
        if getattr(arguments, name) != default:
            raise UserError(f"--{name.replace('_', '-')}: is for jobs of Slurm, with --slurm")
    return {}
