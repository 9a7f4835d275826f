"""The command `esmpi init`: write a config, job scripts and, where one is wanted, a task file into a new folder."""

import argparse
import shutil
from pathlib import Path

from esmpi.errors import UserError, nearest

HELP = "write a config and job scripts to start from"

OWN = "own"
"""Stands in place of a task's name: `esmpi init` also writes a task file."""

_GENERIC = """\
# Task {task}. docs/config.md describes every key that may stand here; `esmpi run {name}.yaml --dry-run` shows all.
run:
  name: {name}
model:
  path: Qwen/Qwen2.5-1.5B-Instruct # a Hugging Face folder or hub id
  dtype: bfloat16 # of the weights that the engine computes with; float32 on a CPU
engine:
  kind: vllm # or hf: transformers, on a CPU or one GPU
es:
  population_size: 30 # members of a generation
  generations: 500
  sigma: 1e-3 # scale of the perturbation; alpha, the step size, is half of it
task:
  name: {task}
data:
  train: {train}
  eval: {eval}
  batch_size: 100 # prompts of a generation
eval:
  every: 20
snapshot:
  every: 50
  best: true
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("folder", type=Path, help="folder to write; it is created if it does not exist")
    parser.add_argument(
        "--task", default=OWN, help="a task that ships with esmpi, such as countdown; default: own, with a task file"
    )


def process(arguments: argparse.Namespace) -> int:
    """Write the files and say what to do next; return the exit code."""
    task, folder = arguments.task, arguments.folder
    files = _files(task)
    taken = sorted(name for name in files if (folder / name).exists())
    if taken:
        raise UserError(f"{folder} already has {', '.join(taken)}: nothing was written; choose another folder")
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    config = f"{_name(task)}.yaml"
    print("\n".join([f"{folder}:", *(f"  {name}" for name in files)]))
    print(
        f"\nNext, in {folder}:\n"
        f"  edit {config}: the model, and what else is marked\n"
        f"  esmpi run {config} --dry-run             # what the run needs; loads nothing\n"
        f"  esmpi doctor {config}                    # what is missing here\n"
        f"  python -m esmpi.run {config}             # here, on one rank\n"
        f"  sbatch slurm/template.sh {config}        # on a cluster; edit its first lines before"
    )
    return 0


def _files(task: str) -> dict[str, Path | str]:
    """Return what to write: the file to copy, or the text, for each name."""
    from esmpi.shipped import shipped_files

    configs, scripts = shipped_files("configs"), shipped_files("slurm")
    common = {f"slurm/{name}": scripts[name] for name in ("common.sh", "template.sh", "es_eval.sh", "sweep.sh")}
    name = f"{_name(task)}.yaml"
    if task == OWN:
        return {name: configs[name], "task.py": configs["own_task.py"], **common}
    return {name: configs[name] if name in configs else _generic(task), **common}


def _name(task: str) -> str:
    """Return the name of a task's config and run: the colon of `gym:x` is allowed in neither."""
    return task.replace(":", "_")


def _generic(name: str) -> str:
    """Return a config for a task without a config that ships with esmpi."""
    from esmpi.tasks import Task, find_task, task_types

    task = find_task(name)
    if task is None or name.endswith(".py"):
        names = [task.name for task in task_types() if task.name.isidentifier()]
        raise UserError(f"--task: unknown task {name!r}{nearest(name, [OWN, *names])}")
    source = "train.jsonl # a file to bring, with a problem a line"
    if task.generator is not Task.generator:
        source = "generated"
    elif task.problems is not Task.problems:
        source = "builtin"
    return _GENERIC.format(task=name, name=_name(name), train=source, eval=source.replace("train.jsonl", "eval.jsonl"))
