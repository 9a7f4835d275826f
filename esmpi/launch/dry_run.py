"""What a run will cost, told before anything heavy is loaded: `--dry-run`."""

from dataclasses import asdict

from esmpi.config.sections import Config
from esmpi.data.problems import check_files
from esmpi.engines import engine_config
from esmpi.errors import UserError, nearest
from esmpi.es.population import share
from esmpi.harness import check_harness, harness_suites
from esmpi.masking import masked_text
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.noise_settings import NoiseSettings
from esmpi.tasks import check_file as check_task_file
from esmpi.weights.placement import size
from esmpi.wording import counted


def check_inputs(config: Config) -> BaseModel | None:
    """Look for model, data files and task file; return the model if it is on this machine, None if on the hub.

    Raises
    ------
    UserError
        If something is missing.
    """
    check_task_file(config.task)
    check_files(config.data, config.eval.sources)
    check_harness(harness_suites(config.eval))
    if config.run.fork is not None and not (config.directory / "run.h5").exists():  # then the fork is still to be made
        parent = config.run.fork[0]
        names = [str(entry) for entry in parent.parent.iterdir()] if parent.parent.is_dir() else []
        if not parent.exists():
            raise UserError(f"run.fork_from: no run directory {parent}{nearest(str(parent), names)}")
    folder = find_model(config.model.path, config.model.revision)
    return None if folder is None else BaseModel(folder)


def describe(config: Config, num_ranks: int) -> str:
    """Return the resolved config and the plan of a run on `num_ranks` ranks.

    Raises
    ------
    UserError
        If the model or the data are missing.
    """
    return f"{masked_text(config.to_yaml())}\n" + "\n".join(f"# {line}" for line in plan_lines(config, num_ranks))


def plan_lines(config: Config, num_ranks: int) -> list[str]:
    """Return the plan: members of each rank, memory, and tokens of a generation."""
    model = check_inputs(config)
    es, data = config.es, config.data
    shares = [len(share(es.population_size, rank, num_ranks)) for rank in range(num_ranks)]
    who = f"each evaluates {_range(shares)} of {counted(es.population_size, 'member')}"
    if es.dispatch == "dynamic":
        who = f"whichever is free evaluates the next of {counted(es.population_size, 'member')}"
    num_samples = config.sampling.num_samples
    completions = es.population_size * config.completions_per_member
    samples = f" x {counted(num_samples, 'sample')}" if num_samples > 1 else ""
    lines = [
        f"run directory   {config.directory}",
        f"ranks           {num_ranks}, {who}",
        f"a generation    {counted(completions, 'completion')} ({counted(es.population_size, 'member')} x "
        f"{counted(data.batch_size, 'prompt')}{samples}), "
        f"at most {counted(completions * config.sampling.max_tokens, 'new token')}",
        f"the run         {counted(es.generations, 'generation')}, sigma {es.sigma:g}, alpha {es.step_size:g}",
    ]
    if shares[-1] == 0:
        lines.append(f"warning         {shares.count(0)} ranks have no member: they only wait")
    if model is None:
        return [*lines, "memory          not known before the model is downloaded"]
    noise = NoiseSettings.of(asdict(es))
    lines.append(f"noise           {noise.describe(model)}")
    return lines + engine_config(config).plan(config, model) + _snapshots(config, model)


def _snapshots(config: Config, model: BaseModel) -> list[str]:
    if config.snapshot.every is None and not config.snapshot.best:
        return []
    count = config.snapshot.keep * (config.snapshot.every is not None) + config.snapshot.best
    theta = 4 * model.num_weights
    return [
        f"snapshots       at most {count} of {size(theta)}; rank 0 has a copy of theta in memory while it writes one"
    ]


def _range(counts: list[int]) -> str:
    return f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[-1]} to {counts[0]}"
