"""Seconds of a generation of the paper's public code and of esmpi, on the same work: figures that were measured once.

The public code is no part of this project, so this command repeats only esmpi's half, and the committed file has both
halves as they were measured on 2026-11-26, on two cores, esmpi right after the public code. To measure the other half:

1. Clone the public code of arXiv 2509.24372 beside this folder, and take its Countdown script for one device.
2. Edit a copy: the device is "cpu" where it says "cuda", the precision float32, the model SmolLM2-135M-Instruct
   (`python tools/get_smollm2.py`), 6 members, 32 prompts, 32 new tokens, 2 generations; leave out what asks for CUDA
   (synchronizing, emptying its cache, memory figures). Change nothing of what it computes.
3. Start it alone on the machine and take the seconds that it prints for each generation; then this command.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import COMMITTED, FOLDER, Results, Row, checked, esmpi_command, markdown, read_rows, run, scratch

NAME = "public_code"
CONFIG = FOLDER / "public_code.yaml"
ENGINES = {"hf": (), "vllm": ("engine.kind=vllm", "engine.max_model_len=512", "engine.enforce_eager=true")}
SMALL = ("model.path=esmpi:tiny_countdown", "es.generations=1", "data.batch_size=4", "data.num_eval=2")


def measure(results: Results, small: bool) -> None:
    """Measure esmpi's half, unless that is done; `small`: on the quickstart's model, one generation."""
    if results.path.parent.resolve() == COMMITTED:
        return  # it has figures of another day, which one half alone must not be added to
    from esmpi import open_run

    for engine, keys in ENGINES.items():
        if (small and engine != "hf") or not results.missing({"code": "esmpi", "engine": engine}):
            continue
        with scratch() as folder:
            _, spent = checked(esmpi_command(CONFIG, [*keys, *(SMALL if small else ()), f"run.output_dir={folder}"]))
            seconds = open_run(folder / NAME).generations["seconds_total"].tolist()
        found = {"seconds_of_generations": [round(value, 1) for value in seconds], "process": spent.row()}
        results.add({"code": "esmpi", "engine": engine}, found)


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table, and where its figures are from."""
    lines = [
        [row["run"]["code"], row["run"]["engine"], *(f"{value:.1f}" for value in row["seconds_of_generations"])]
        for row in rows
    ]
    head = ["code", "engine", *(f"generation {i}" for i in range(len(lines[0]) - 2))]
    return {"table": markdown(head, lines), "source": rows[0].get("source", ""), "date": rows[0]["made"]["date"]}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of each generation."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    with style():
        picture = new_figure(5.4, 2.0)
        axes = picture.subplots()
        axes.grid(visible=False)
        for y, row in enumerate(rows):
            color = LIGHT[color_of(0 if row["run"]["code"] == "esmpi" else 1)]
            values = row["seconds_of_generations"]
            axes.plot(values, [y] * len(values), "o", color=color)
            axes.text(max(values), y, "  " + ", ".join(f"{value:g}" for value in values), va="center")
        axes.set_yticks(range(len(rows)), [f"{row['run']['code']}, {row['run']['engine']}" for row in rows])
        highest = max(max(row["seconds_of_generations"]) for row in rows)
        axes.set(xlabel="seconds of a generation", xlim=(0, 1.3 * highest), ylim=(len(rows) - 0.5, -0.5))
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    assert read_rows(COMMITTED / f"{NAME}.jsonl")  # the figures that the page shows
    run(sys.modules[__name__])
