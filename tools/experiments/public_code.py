"""Processor seconds of a generation of the paper's public code and of esmpi, for the same model, problems and tokens.

The public code is no part of this project. Clone it, and name the folder in the environment:

    PUBLIC_CODE=es-fine-tuning-paper bash tools/reproduce.sh public_code

Without it, only esmpi's half is measured. Of its script for Countdown an edited copy runs: the number of members,
generations and new tokens are other ones, the model is on the CPU, and it is not saved at the end. Nothing of what is
computed in a generation is changed. Each program has one thread, and what all its processes take of a processor is
counted from the end of the start, or of a generation, to the end of the next: on a shared machine seconds by the clock
say little.
"""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import FOLDER, ROOT, Results, Row, checked, esmpi_command, made, markdown, processor_seconds, run, scratch

NAME = "public_code"
CONFIG = FOLDER / "public_code.yaml"
CODES = {
    "public code, transformers": None,
    "esmpi, hf": (),
    "esmpi, hf, rank 1 in waves": ("es.noise=low_rank", "engine.wave_size=8"),
    "esmpi, vllm": ("engine.kind=vllm", "engine.max_model_len=512", "engine.enforce_eager=true"),
}
WORKS = {"2 prompts": (8, 2), "16 prompts": (4, 16)}
"""Members and prompts."""
GENERATIONS, TOKENS = 2, 32
SMALL = ("model.path=esmpi:tiny_countdown", "es.generations=1", "es.population_size=2", "data.batch_size=4")
_STARTED = re.compile(r"held-out at generation 0:|Model loaded successfully")
_DONE = re.compile(r"generation \d+ .* done|Iteration \d+/\d+, Time")


def measure(results: Results, small: bool) -> None:
    """Measure what is missing and can be measured here; `small`: the quickstart's model, one generation."""
    theirs = Path(os.environ["PUBLIC_CODE"]).resolve() if "PUBLIC_CODE" in os.environ else None
    for work in list(WORKS)[: 1 if small else None]:
        for code in ("esmpi, hf",) if small else CODES:
            if not results.missing({"work": work, "code": code}) or (CODES[code] is None and theirs is None):
                continue
            with scratch() as folder:
                command = (
                    public_command(theirs, folder, work) if CODES[code] is None else own_command(folder, work, code)
                )
                seconds = seconds_of_generations([*command, *(SMALL if small else ())])
            results.add({"work": work, "code": code}, {"processor_seconds_of_generations": seconds})


def own_command(folder: Path, work: str, code: str) -> list[str]:
    """Return the command that trains with esmpi."""
    members, prompts = WORKS[work]
    keys = [f"es.population_size={members}", f"es.generations={GENERATIONS}", f"sampling.max_tokens={TOKENS}"]
    keys += [f"data.batch_size={prompts}", f"run.output_dir={folder}", *(CODES[code] or ())]
    return esmpi_command(CONFIG, keys)


def public_command(theirs: Path | None, folder: Path, work: str) -> list[str]:
    """Return the command that trains with an edited copy of the public code."""
    assert theirs is not None
    shutil.copytree(theirs / "countdown", folder / "copy")
    script = folder / "copy" / "es_fine-tuning_countdown.py"
    text, (members, prompts) = script.read_text(encoding="utf-8"), WORKS[work]
    values = {"POPULATION_SIZE": members, "NUM_ITERATIONS": GENERATIONS, "max_new_tokens": TOKENS}
    edits = [(rf"(?m)^{name} = \d+", f"{name} = {value}") for name, value in values.items()]
    edits += [
        (r"device_map=.*", 'device_map="cpu",'),
        (r"(?m)^( +)(original_model|tokenizer)\.save_pretrained\(.*", r"\1pass"),
    ]
    for pattern, instead in edits:
        text, count = re.subn(pattern, instead, text)
        if count == 0:
            raise SystemExit(f"the public code is another one than this experiment knows: it has no {pattern}")
    script.write_text(text, encoding="utf-8")
    model = ROOT / "models" / "SmolLM2-135M-Instruct"
    options = {"model_name": model, "precision": "fp32", "gpu_threads": 1, "data_sample": prompts}
    return [sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items())]


def seconds_of_generations(command: Sequence[str]) -> list[float]:
    """Run a program, and return what each of its generations took of a processor, in seconds."""
    marks: list[float] = []

    def watch(process: int, line: str) -> None:
        if (_DONE if marks else _STARTED).search(line):
            marks.append(processor_seconds(process))

    checked(command, watch)
    return [round(float(value), 1) for value in np.diff(marks)]


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table, with what is saved against the public code where that was measured."""
    lines = []
    for work, (members, prompts) in WORKS.items():
        own = [row for row in rows if row["run"]["work"] == work]
        theirs = [mean(row) for row in own if CODES[row["run"]["code"]] is None]
        for row in own:
            values = row["processor_seconds_of_generations"]
            ratio = f"{theirs[0] / mean(row):.2f}" if theirs else ""
            shown = ", ".join(f"{value:.1f}" for value in values)
            lines.append([row["run"]["code"], str(members), str(prompts), shown, ratio])
    head = ["code", "N", "prompts", "processor seconds of a generation", "public code over this"]
    return {"table": markdown(head, lines), "made": made(rows), "tokens": str(TOKENS)}


def mean(row: Row) -> float:
    """Return the mean of the generations of a run."""
    return float(np.mean(row["processor_seconds_of_generations"]))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of each generation."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    works = [work for work in WORKS if any(row["run"]["work"] == work for row in rows)]
    with style():
        picture = new_figure(7.4, 2.2)
        for axes, work in zip(picture.subplots(1, len(works), squeeze=False, sharey=True)[0], works, strict=True):
            axes.grid(visible=False)
            own = [row for row in rows if row["run"]["work"] == work]
            for y, row in enumerate(own):
                is_theirs = CODES[row["run"]["code"]] is None
                axes.barh(y, mean(row), color=LIGHT[color_of(1 if is_theirs else 0)])
                axes.text(mean(row), y, f" {mean(row):.0f}", va="center")
            axes.set_yticks(range(len(own)), [row["run"]["code"] for row in own])
            highest = max(map(mean, own))
            axes.set(xlabel="processor seconds of a generation", xlim=(0, 1.2 * highest), ylim=(len(own) - 0.5, -0.5))
            axes.set_title(f"N {WORKS[work][0]}, {work}")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
