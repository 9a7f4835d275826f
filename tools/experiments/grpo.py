"""Compare Evolution Strategies with GRPO of TRL: the same model, problems, reward, decoding budget and completions.

Two works: the quickstart's tiny model on Countdown, and SmolLM2-135M on the multiplication table. Each side is tuned by
the same number of trials, all of which the page lists, with a run seed that the comparison does not use; the trial with
the highest mean accuracy over training wins. The runs of the comparison have two cores, for two ranks of esmpi, or two
threads of TRL, and nothing else should run beside them, as seconds by the clock are compared. The trials have one core,
as only their accuracy counts. esmpi evaluates its members in waves of rank 1. Evaluations do not count. A short run of
GRPO with SmolLM2 computes activations again, as TRL does by default, instead of keeping them.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import FOLDER, ROOT, Results, Row, Spent, checked, json_line, made, markdown, on_ranks, run, scratch

NAME = "grpo"
TRIAL_SEED = 100
WORKS: dict[str, dict[str, Any]] = {
    "tiny": {"seeds": 5, "keys": ("eval.every=1",)},
    "smollm2": {
        "seeds": 5,
        "keys": ("model.dtype=float32", "es.population_size=30", "es.generations=12", "eval.every=1"),
    },
}
STEPS, EVERY = 45, 3
"""GRPO's steps, of 64 completions each, make as many completions as esmpi's 12 generations of 30 x 8. It is evaluated
after each 192 completions, esmpi after each 240."""
CHECKPOINTING = "activations computed again"
TRIALS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "tiny": {
        "ES": {
            "sigma 3e-3, alpha 6e-3": ("es.sigma=3e-3", "es.alpha=6e-3"),
            "sigma 3e-3, alpha 1.2e-2": ("es.sigma=3e-3", "es.alpha=1.2e-2"),
            "std, sigma 0.1, alpha 0.2": ("es.sigma_per_tensor=std", "es.sigma=0.1", "es.alpha=0.2"),
            "std, sigma 0.1, alpha 0.4": ("es.sigma_per_tensor=std", "es.sigma=0.1", "es.alpha=0.4"),
        },
        "GRPO": {f"learning rate {rate}": ("--learning-rate", rate) for rate in ("1e-5", "3e-5", "6e-5", "1e-4")},
    },
    "smollm2": {
        "ES": {
            "sigma 6e-3, alpha 6e-3": ("es.sigma=6e-3", "es.alpha=6e-3"),
            "sigma 1e-2, alpha 5e-3": ("es.sigma=1e-2", "es.alpha=5e-3"),
            "std, sigma 0.05, alpha 0.05": ("es.sigma_per_tensor=std", "es.sigma=0.05", "es.alpha=0.05"),
            "std, sigma 0.05, alpha 0.1": ("es.sigma_per_tensor=std", "es.sigma=0.05", "es.alpha=0.1"),
        },
        "GRPO": {f"learning rate {rate}": ("--learning-rate", rate) for rate in ("1e-6", "3e-6", "1e-5", "3e-5")},
    },
}
SMALL = ("es.generations=2", "es.population_size=4", "data.batch_size=4", "data.num_train=32", "data.num_eval=8")


def measure(results: Results, small: bool) -> None:
    """Do the trials and runs that are missing; `small`: one run of each side, without trials."""
    works = ["tiny", *(["smollm2"] if (ROOT / "models" / "SmolLM2-135M-Instruct").exists() else [])]
    for work in works[:1] if small else works:
        trials = TRIALS[work]
        for side, names in trials.items():
            for name in () if small else names:
                once(results, work, side, name, TRIAL_SEED, small)
        for seed in range(1 if small else WORKS[work]["seeds"]):
            for side, names in trials.items():
                once(results, work, side, next(iter(names)) if small else chosen(results.rows, work, side), seed, small)
    setting = {"work": "smollm2", "side": "GRPO", "setting": CHECKPOINTING, "seed": 0}
    if "smollm2" in works and not small and results.missing(setting):
        command = grpo_command("smollm2", chosen(results.rows, "smollm2", "GRPO"), 0, 2, 2 * EVERY)
        add(results, setting, 2, *checked([*command, "--checkpointing"]))


def once(results: Results, work: str, side: str, name: str, seed: int, small: bool) -> None:
    """Train with a setting, unless that is done, and add its curve."""
    setting = {"work": work, "side": side, "setting": name, "seed": seed}
    if not results.missing(setting):
        return
    cores = 1 if seed == TRIAL_SEED else 2
    if side == "GRPO":
        add(results, setting, cores, *checked(grpo_command(work, name, seed, cores, *((2, 1, SMALL) if small else ()))))
        return
    with scratch() as folder:
        keys = [*keys_of(work, seed), *TRIALS[work][side][name], *(SMALL if small else ()), f"run.output_dir={folder}"]
        output, spent = checked([*on_ranks(cores), FOLDER / "curve_es.py", FOLDER / f"{work}.yaml", *keys])
    add(results, setting, cores, output, spent)


def keys_of(work: str, seed: int) -> list[str]:
    """Return the keys of a work's config that both sides have."""
    return [f"run.seed={seed}", *WORKS[work]["keys"]]


def grpo_command(
    work: str, name: str, seed: int, cores: int, steps: int = STEPS, every: int = EVERY, keys: Sequence[str] = ()
) -> list[str | Path]:
    """Return the command that trains with TRL."""
    command: list[str | Path] = [sys.executable, FOLDER / "curve_grpo.py", FOLDER / f"{work}.yaml"]
    command += [*keys_of(work, seed), *keys, *TRIALS[work]["GRPO"][name]]
    return [*command, f"--threads={cores}", f"--steps={steps}", f"--every={every}"]


def add(results: Results, setting: Row, cores: int, output: str, spent: Spent) -> None:
    """Add a run with its curve."""
    results.add(setting, {"cores": cores, "curve": json_line(output), "process": spent.row()})


def of(rows: Sequence[Row], work: str, side: str, trials: bool) -> list[Row]:
    """Return the trials, or the runs of the comparison, of a side."""
    found = [row for row in rows if row["run"]["work"] == work and row["run"]["side"] == side]
    found = [row for row in found if row["run"]["setting"] != CHECKPOINTING]
    return [row for row in found if (row["run"]["seed"] == TRIAL_SEED) == trials]


def compared(rows: Sequence[Row], work: str) -> bool:
    """Return whether both sides have runs of a work."""
    return all(of(rows, work, side, trials=False) for side in TRIALS[work])


def over_training(row: Row) -> float:
    """Return the mean accuracy over all completions, by trapezoids: however often a side was evaluated."""
    completions, accuracy = ([point[key] for point in row["curve"]] for key in ("completions", "accuracy"))
    return float(np.trapezoid(accuracy, completions) / completions[-1])


def chosen(rows: Sequence[Row], work: str, side: str) -> str:
    """Return the name of the trial that won."""
    return str(max(of(rows, work, side, trials=True), key=over_training)["run"]["setting"])


def first_at(row: Row, accuracy: float, axis: str) -> float:
    """Return where a curve first has an accuracy, which it must reach."""
    return float(next(point[axis] for point in row["curve"] if point["accuracy"] >= accuracy))


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the tables of trials and of the comparison, for each work that was measured."""
    found = {"made": made(rows)}
    for work in WORKS:
        own = [row for row in rows if row["run"]["work"] == work]
        if own:
            found[f"trials_{work}"] = markdown(
                ["side", "trial", "mean over training", "last", ""], list(trial_lines(rows, work))
            )
        if compared(rows, work):
            found[f"table_{work}"] = markdown(*comparison(rows, work))
    if trained := of(rows, "tiny", "GRPO", trials=True):
        seconds = [row["curve"][-1]["processor_seconds"] for row in trained]
        found["one_thread_tiny"] = f"{np.mean(seconds):.0f}"
    for row in rows:
        if row["run"]["setting"] == CHECKPOINTING:
            last = row["curve"][-1]
            same = next(one for one in of(rows, "smollm2", "GRPO", trials=False) if one["run"]["seed"] == 0)
            kept = next(point["seconds"] for point in same["curve"] if point["step"] == last["step"])
            found["checkpointing"] = (
                f"{last['step']} steps take {last['seconds']:.0f} s instead of {kept:.0f} s, and "
                f"{row['process']['peak_mib']:,} MiB instead of {same['process']['peak_mib']:,}"
            )
    return found


def trial_lines(rows: Sequence[Row], work: str) -> list[list[str]]:
    """Return a line for each trial."""
    lines = []
    for side in TRIALS[work]:
        for row in of(rows, work, side, trials=True):
            name = row["run"]["setting"]
            won = "chosen" if name == chosen(rows, work, side) else ""
            last = row["curve"][-1]["accuracy"]
            lines.append([side, name, f"{100 * over_training(row):.1f} %", f"{100 * last:.1f} %", won])
    return lines


def comparison(rows: Sequence[Row], work: str) -> tuple[list[str], list[list[str]]]:
    """Return head and lines of the table of a work: accuracies along the way, tokens and seconds, memory."""
    sides = {side: of(rows, work, side, trials=False) for side in TRIALS[work]}
    target = min(max(point["accuracy"] for point in row["curve"]) for own in sides.values() for row in own)
    target = int(target * 50) / 50
    lines = []
    for side, own in sides.items():
        reached = {axis: [first_at(row, target, axis) for row in own] for axis in ("tokens", "seconds")}
        peak = max(row["process"]["peak_mib"] for row in own)
        last = [row["curve"][-1] for row in own]
        lines.append(
            [
                side,
                str(len(own)),
                spread([100 * over_training(row) for row in own]),
                spread([100 * point["accuracy"] for point in last]),
                spread([point["tokens"] / 1000 for point in last]),
                spread([point["seconds"] for point in last]),
                spread([point["processor_seconds"] for point in last]),
                spread([value / 1000 for value in reached["tokens"]]),
                spread(reached["seconds"]),
                f"{own[0]['cores']} x {peak:,}" if side == "ES" else f"{peak:,}",
            ]
        )
    to = f"to {100 * target:.0f} %"
    head = ["", "seeds", "mean over training, %", "last, %", "thousand tokens", "seconds", "processor seconds"]
    return [*head, f"thousand tokens {to}", f"seconds {to}", "peak MiB"], lines


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{deviation}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw accuracy over tokens and over seconds by the clock: each seed, and the mean at the same evaluation."""
    from matplotlib.ticker import LogLocator

    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    works = [work for work in WORKS if compared(rows, work)]
    words = {"tokens": "tokens generated in training", "seconds": "seconds of training on two cores"}
    with style():
        picture = new_figure(7.4, 2.9 * len(works))
        places = picture.subplots(len(works), 2, squeeze=False, sharey="row")
        for line, work in zip(places, works, strict=True):
            for axes, axis in zip(line, words, strict=True):
                for number, side in enumerate(TRIALS[work]):
                    curves = [row["curve"] for row in of(rows, work, side, trials=False)]
                    x, y = (
                        np.array([[point[key] for point in curve[1:]] for curve in curves])
                        for key in (axis, "accuracy")
                    )
                    color = LIGHT[color_of(number)]
                    axes.plot(x.T, 100 * y.T, color=color, alpha=0.25, linewidth=0.8)
                    label = f"{side}, mean of {len(curves)} seeds"
                    axes.plot(x.mean(axis=0), 100 * y.mean(axis=0), color=color, label=label, linewidth=1.8)
                both = [row for side in TRIALS[work] for row in of(rows, work, side, trials=False)]
                base = np.mean([row["curve"][0]["accuracy"] for row in both])
                axes.axhline(100 * base, color="gray", linestyle=":", linewidth=1, label="base model")
                axes.set(xscale="log", xlabel=words[axis])
                axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.xaxis.set_major_formatter("{x:,g}")
                axes.xaxis.set_minor_formatter("")
                axes.set_title({"tiny": "Tiny model, Countdown", "smollm2": "SmolLM2-135M, multiplication table"}[work])
            line[0].set_ylabel("held-out accuracy, %")
            line[0].legend(loc="lower right")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
