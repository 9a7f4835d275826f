"""Measure what a model forgets while it learns something else, with and without anchors. The last line is JSON.

The tiny model is first trained on Countdown, as the quickstart does. From there each run trains it to name the largest
of three numbers, and is evaluated on both: Countdown, as a task of lm-evaluation-harness, is its retention suite, so
this needs `pip install 'esmpi[lm-eval]'`. Settings and run seeds are as in
tools/bench_strategies.py: a run with one thread each, kept in --folder, where the same command skips what is finished.

    python tools/bench_forgetting.py

The table has, in percent, the accuracy of the new skill and of Countdown after some generations, and at last the
distance of theta from the model that the runs began with; mean and standard deviation (ddof 1) over the run seeds.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from bench_strategies import ROOT, Job, finish, plus_minus, spread

from esmpi.config.problems import HELD_OUT
from esmpi.config.reader import load_config
from esmpi.data.problems import load_problems
from esmpi.errors import UserError
from esmpi.report.view import open_run
from esmpi.tasks import make_task

CONFIG = ROOT / "configs" / "quickstart.yaml"
TASK = ROOT / "tools" / "forgetting_task.py"
HARNESS_TASK = """task: countdown
dataset_path: json
dataset_kwargs: {{data_files: {{test: {problems}}}}}
output_type: generate_until
test_split: test
doc_to_text: !function forgetting_task.countdown_prompt
doc_to_target: target
process_results: !function forgetting_task.countdown_results
generation_kwargs: {{until: [], max_gen_toks: 40}}
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
OLD = "countdown"
SETTINGS = {
    "none": (),
    "anchor 3": ("es.anchor=3",),
    "anchor 10": ("es.anchor=10",),
    "distance 6": ("es.max_distance=6",),
    "alpha / 3": ("es.alpha=6e-3",),
}
"""What each setting adds to the config. Alpha is three times the quickstart's, with which less is forgotten."""


def main() -> None:
    """Run the benchmark."""
    arguments = parser().parse_args()
    try:
        start = first_model(arguments.folder)
        suite = old_problems(arguments.folder / "tasks")
        jobs = {
            name: [job_of(name, seed, start, suite, arguments) for seed in range(arguments.seeds)]
            for name in arguments.settings
        }
        for seed in range(arguments.seeds):
            for own in jobs.values():
                finish(own[seed])
    except UserError as error:
        raise SystemExit(f"bench_forgetting: {error}") from None
    found = {name: [result_of(job) for job in own] for name, own in jobs.items()}
    print(table(found, arguments.after))
    said = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    print(json.dumps(said | {"found": found}))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME")
    found.add_argument("--seeds", type=int, default=3, help="number of run seeds (default: %(default)s)")
    found.add_argument("--generations", type=int, default=20, help="default: %(default)s")
    found.add_argument("--after", type=int, nargs="+", default=[10, 20], help="multiples of 10 (10 20)")
    found.add_argument("--keys", nargs="+", default=[], metavar="section.key=value", help="overrides for all settings")
    found.add_argument("--folder", type=Path, default=Path("runs/bench_forgetting"), help="default: %(default)s")
    return found


def first_model(folder: Path) -> Path:
    """Return the model that all runs begin with, which has learnt Countdown."""
    keys = ["run.name=countdown", f"run.output_dir={folder}", "engine.num_threads=1", "es.generations=14"]
    finish(Job(load_config(CONFIG, keys), (sys.executable, "-m", "esmpi.run", str(CONFIG), *keys)))
    return folder / "countdown" / "model"


def old_problems(folder: Path) -> Path:
    """Return a folder with the held-out problems of Countdown as a task of lm-evaluation-harness."""
    config = load_config(CONFIG)
    problems = load_problems(config.data, make_task(config.task), config.run.seed).held_out
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f"{OLD}.jsonl").absolute()
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    shutil.copy(TASK, folder)
    (folder / f"{OLD}.yaml").write_text(HARNESS_TASK.format(problems=path))
    return folder


def job_of(name: str, seed: int, start: Path, suite: Path, arguments: argparse.Namespace) -> Job:
    """Return the run of a setting with a run seed."""
    keys = [f"model.path={start}", f"task.name={TASK}:reward", "data.train=builtin", "data.eval=builtin"]
    keys += [
        "data.num_train=2000",
        "data.num_eval=400",
        "data.batch_size=16",
        "sampling.max_tokens=4",
        "es.alpha=1.8e-2",
    ]
    keys += [f"eval.suites={{{OLD}: {{lm_eval: {OLD}, include_path: {suite}}}}}", f"eval.retention=[{OLD}]"]
    keys += ["eval.every=10", "eval.divergence=true", f"es.generations={arguments.generations}"]
    keys += [
        f"run.name={name.replace(' / ', '_').replace(' ', '_')}-{seed}",
        f"run.output_dir={arguments.folder}",
        f"run.seed={seed}",
    ]
    keys += ["run.export_dtype=none", "engine.num_threads=1", *arguments.keys, *SETTINGS[name]]
    return Job(load_config(CONFIG, keys), (sys.executable, "-m", "esmpi.run", str(CONFIG), *keys))


def result_of(job: Job) -> dict[str, dict[int, list[float]]]:
    """Return accuracy and distance of each suite's evaluations, by generation."""
    rows = open_run(job.config.directory).evaluations
    return {
        suite: {
            int(row["generation"]): [float(row["accuracy"]), float(row["theta_distance"])]
            for row in rows[rows["suite"] == suite].to_dict("records")
        }
        for suite in (HELD_OUT, OLD)
    }


def table(found: dict[str, list[dict[str, dict[int, list[float]]]]], after: list[int]) -> str:
    """Return the results as a table of Markdown."""
    generations = [0, *after]
    head = ["setting", *(f"{suite} {at}" for suite in ("new", OLD) for at in generations), "distance"]
    lines = [head, ["---"] * len(head)]
    for name, runs in found.items():
        cells = [spread([run[suite][at][0] for run in runs]) for suite in (HELD_OUT, OLD) for at in generations]
        distances = [run[HELD_OUT][after[-1]][1] / 100 for run in runs]  # `plus_minus` writes percents
        deviation = float(np.std(distances, ddof=1)) if len(runs) > 1 else None
        lines.append([name, *cells, plus_minus(float(np.mean(distances)), deviation)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
