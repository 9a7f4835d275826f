"""Teach SmolLM2-135M the multiplication table from nothing but rewards, greedy and sampled, and watch what it forgets.

The held-out products are never trained on. Two suites show what else changes: sums, which are asked for in the same
form, and capitals. Training decodes greedily, or it samples at temperature 1; or it decodes greedily while alpha falls
to a tenth, in as many generations or in half as many. Evaluations during training are greedy; the base model and the
last generation are also evaluated with samples at temperature 1.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import FOLDER, Results, Row, checked, esmpi_command, made, markdown, run, scratch

NAME = "smollm2"
CONFIG = FOLDER / "smollm2.yaml"
SEEDS = 3
DECODING = {
    "greedy": (),
    "sampled": ("sampling.temperature=1",),
    "greedy, alpha falls": ("es.alpha_schedule=cosine", "es.generations=24"),
    "greedy, alpha falls slowly": ("es.alpha_schedule=cosine",),
}
SAMPLED = ("eval.temperature=1", "eval.num_samples=4")
SUITES = {"held_out": "held-out products", "sums": "sums (not trained)", "capitals": "capitals (not trained)"}
SMALL = ("model.path=esmpi:tiny_countdown", "es.generations=1", "es.population_size=4", "data.batch_size=2")


def measure(results: Results, small: bool) -> None:
    """Do the runs that are missing, seed by seed; `small`: one generation of the quickstart's model, greedy."""
    for seed in range(1 if small else SEEDS):
        for decoding in list(DECODING)[: 1 if small else None]:
            once(results, decoding, seed, small)


def once(results: Results, decoding: str, seed: int, small: bool) -> None:
    """Train with a decoding, unless that is done, and add its curves."""
    from esmpi import open_run

    setting = {"decoding": decoding, "seed": seed}
    if not results.missing(setting):
        return
    with scratch() as folder:
        keys = [*DECODING[decoding], *(SMALL if small else ()), f"run.seed={seed}", f"run.output_dir={folder}"]
        _, spent = checked(esmpi_command(CONFIG, keys))
        last = int(open_run(folder / NAME).evaluations["generation"].max())
        for generation in (0, last):
            which = ("--generation", str(generation), "--suite", "sampled", *SAMPLED)
            checked([sys.executable, "-m", "esmpi", "eval", folder / NAME, *which])
        found = open_run(folder / NAME)
        tokens, rows = int(found.generations["tokens"].sum()), found.evaluations.to_dict("records")
    curve = [
        {"suite": row["suite"], "generation": int(row["generation"])}
        | {name: round(float(row[name]), 4) for name in ("accuracy", "reward_mean")}
        for row in rows
    ]
    results.add(setting, {"curve": curve, "tokens": tokens, "process": spent.row()})


def series(row: Row, suite: str, name: str = "accuracy") -> tuple[list[int], list[float]]:
    """Return generations and a figure of a suite."""
    points = sorted((point["generation"], point[name]) for point in row["curve"] if point["suite"] == suite)
    return [generation for generation, _ in points], [value for _, value in points]


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the tables, one line a run: the suites before, at the best generation, and at last; and what it cost."""
    lines, costs = [], []
    order = list(DECODING)
    for row in sorted(rows, key=lambda row: (order.index(row["run"]["decoding"]), row["run"]["seed"])):
        which = [f"{row['run']['decoding']}, seed {row['run']['seed']}"]
        generations, accuracies = series(row, "held_out")
        best = int(np.argmax(accuracies))
        shown = [(suite, (0, best, -1)) for suite in SUITES] + [("sampled", (0, -1))]
        cells = [" → ".join(f"{100 * series(row, suite)[1][i]:.1f}" for i in places) for suite, places in shown]
        lines.append([*which, str(generations[best]), str(generations[-1]), *cells])
        spent = row["process"]
        figures = [f"{spent[name]:,.0f}" for name in ("processor_seconds", "seconds", "peak_mib")]
        costs.append([*which, f"{row['tokens'] / 1000:.0f}", *figures])
    head = ["training", "best generation", "last", "products, %", "sums, %", "capitals, %", "products, sampled, %"]
    cost = ["training", "thousand tokens", "processor seconds", "seconds", "peak MiB"]
    return {"table": markdown(head, lines), "costs": markdown(cost, costs), "made": made(rows)}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the greedy accuracy on products and on the other suites, by generation."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    with style():
        picture = new_figure(9.0, 2.8)
        for axes, (suite, title) in zip(picture.subplots(1, len(SUITES), sharey=True), SUITES.items(), strict=True):
            for number, decoding in enumerate(DECODING):
                for row in (row for row in rows if row["run"]["decoding"] == decoding):
                    x, y = series(row, suite)
                    label = None if row["run"]["seed"] else decoding
                    dash = ("-", "--", ":")[row["run"]["seed"] % 3]
                    axes.plot(x, 100 * np.array(y), dash, color=LIGHT[color_of(number)], label=label)
            axes.set(title=title, xlabel="generation", ylim=(0, 100))
            if suite == "held_out":
                axes.set_ylabel("accuracy, %")
                axes.legend(loc="lower right")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
