"""Teach SmolLM2-135M the multiplication table from nothing but rewards, greedy and sampled, and watch what it forgets.

The held-out products are never trained on. A suite of sums, which no reward asks for, is the retention suite: the model
is asked `3 + 4 =`. Training decodes greedily, or it samples two completions of each prompt at temperature 1, with half
as many prompts. Evaluation is greedy.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import FOLDER, Results, Row, checked, esmpi_command, made, markdown, run, scratch

NAME = "smollm2"
CONFIG = FOLDER / "smollm2.yaml"
SUMS = FOLDER / "sums.jsonl"
SUITES = (f"eval.suites={{sums: {SUMS}}}", "eval.retention=[sums]", "eval.divergence=true")
DECODING = {
    "greedy": (),
    "sampled": ("sampling.temperature=1", "sampling.num_samples=2", "data.batch_size=4"),
}
SMALL = ("model.path=esmpi:tiny_countdown", "es.generations=1", "es.population_size=4", "data.batch_size=2")


def measure(results: Results, small: bool) -> None:
    """Train with each decoding that is missing; `small`: one generation of the quickstart's model, greedy."""
    from esmpi import open_run

    for decoding, keys in list(DECODING.items())[: 1 if small else None]:
        setting = {"decoding": decoding, "seed": 0}
        if not results.missing(setting):
            continue
        with scratch() as folder:
            given = [*SUITES, *keys, *(SMALL if small else ()), f"run.output_dir={folder}"]
            _, spent = checked(esmpi_command(CONFIG, given))
            rows = open_run(folder / NAME).evaluations.to_dict("records")
        curve = [
            {"suite": row["suite"], "generation": int(row["generation"])}
            | {name: round(float(row[name]), 4) for name in ("accuracy", "reward_mean", "kl_per_token")}
            for row in rows
        ]
        results.add(setting, {"curve": json.loads(json.dumps(curve).replace("NaN", "null")), "process": spent.row()})


def series(row: Row, suite: str, name: str = "accuracy") -> tuple[list[int], list[float]]:
    """Return generations and a figure of a suite."""
    points = [point for point in row["curve"] if point["suite"] == suite]
    return [point["generation"] for point in points], [point[name] for point in points]


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table: products and sums at the beginning, at best and at last."""
    lines = []
    for row in rows:
        generations, held_out = series(row, "held_out")
        sums, rewards = series(row, "sums")[1], series(row, "held_out", "reward_mean")[1]
        shown = [100 * held_out[0], 100 * max(held_out), 100 * held_out[-1], 100 * sums[0], 100 * sums[-1]]
        cells = [row["run"]["decoding"], str(generations[-1]), *(f"{value:.1f}" for value in shown)]
        lines.append([*cells, f"{rewards[0]:.3f}", f"{rewards[-1]:.3f}", f"{row['process']['processor_seconds']:.0f}"])
    head = ["training decodes", "generations", "products: base, %", "best, %", "last, %", "sums: base, %", "last, %"]
    head += ["reward: base", "last", "processor seconds"]
    return {"table": markdown(head, lines), "made": made(rows)}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the accuracy of products and sums."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    with style():
        picture = new_figure(5.4, 2.8)
        axes = picture.subplots()
        for number, row in enumerate(rows):
            for suite, words, dash in (("held_out", "held-out products", "-"), ("sums", "sums (retention)", "--")):
                x, y = series(row, suite)
                label = f"{words}, {row['run']['decoding']}"
                axes.plot(x, 100 * np.array(y), dash, color=LIGHT[color_of(number)], marker="o", label=label)
        axes.set(xlabel="generation", ylabel="accuracy, %")
        axes.legend()
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
