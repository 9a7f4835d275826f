"""Seconds of a generation of the paper's public code and of esmpi, for the same model, problems and tokens.

The public code is no part of this project. Clone it, and name the folder in the environment:

    git clone https://github.com/VsonicV/es-fine-tuning-paper
    PUBLIC_CODE=es-fine-tuning-paper bash tools/reproduce.sh public_code

Both then train on the first problems of its data. Without it, only esmpi is measured, on problems of the same form. Of
the public script for Countdown an edited copy runs: the number of members, generations and new tokens are other ones,
the model is on the CPU and is not saved at the end, and the new tokens of each member are printed. Nothing of what is
computed in a generation is changed. Each program has one thread. The seconds are counted from the end of the start, or
of a generation, to the end of the next: by the clock, and what all processes of the program take of a processor.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import FOLDER, ROOT, Results, Row, checked, esmpi_command, made, markdown, processor_seconds, run, scratch

NAME = "public_code"
CONFIG = FOLDER / "public_code.yaml"
CODES = {
    "public code, transformers": None,
    "esmpi, hf": (),
    "esmpi, hf, rank 1 in waves": ("es.noise=low_rank",),
    "esmpi, vllm": ("engine.kind=vllm", "engine.max_model_len=512", "engine.enforce_eager=true"),
}
WORKS = {"2 prompts": (8, 2), "32 prompts": (6, 32)}
"""Members and prompts."""
GENERATIONS, TOKENS = 2, 32
SECONDS = {"seconds_of_generations": "seconds", "processor_seconds_of_generations": "processor seconds"}
SMALL = ("model.path=esmpi:tiny_countdown", "es.generations=1", "es.population_size=2", "data.batch_size=4")
_STARTED = re.compile(r"held-out at generation 0:|Model loaded successfully")
_DONE = re.compile(r"generation \d+ .* done|Iteration \d+/\d+, Time")
_TOKENS = re.compile(r"^new tokens (\d+)$")
# a row that has ended is filled with the end of text, which SmolLM2 also uses as padding: its first one counts
_COUNTED = r"\1\2\n\1new = outputs[:, input_ids.shape[1]:] != tokenizer.pad_token_id"
_COUNTED += r"\n\1print('new tokens', int(new.sum() + (~new).any(dim=1).sum()))"


def measure(results: Results, small: bool) -> None:
    """Measure what is missing and can be measured here; `small`: the quickstart's model, one generation."""
    theirs = Path(os.environ["PUBLIC_CODE"]).resolve() if "PUBLIC_CODE" in os.environ else None
    if theirs is None:
        print("Only esmpi is measured, as PUBLIC_CODE is not set:", __doc__)
    problems = "generated" if theirs is None else f"public code {commit_of(theirs)}"
    for work in list(WORKS)[: 1 if small else None]:
        for code in ("esmpi, hf",) if small else CODES:
            setting = {"work": work, "code": code, "problems": problems}
            if not results.missing(setting) or (CODES[code] is None and theirs is None):
                continue
            with scratch() as folder:
                if CODES[code] is None:
                    command = public_command(theirs, folder, work)
                else:
                    command = [*own_command(theirs, folder, work, code), *(SMALL if small else ())]
                found = generations_of(command)
                if CODES[code] is not None:
                    found["tokens_of_generations"] = tokens_of(folder / CONFIG.stem)
            results.add(setting, found)


def commit_of(theirs: Path) -> str:
    """Return the commit of the clone of the public code."""
    return checked(["git", "-C", theirs, "rev-parse", "--short=12", "HEAD"])[0].strip()


def own_command(theirs: Path | None, folder: Path, work: str, code: str) -> list[str]:
    """Return the command that trains with esmpi, on the problems of the public code if it is there."""
    members, prompts = WORKS[work]
    keys = [f"es.population_size={members}", f"es.generations={GENERATIONS}", f"sampling.max_tokens={TOKENS}"]
    keys += [f"data.batch_size={prompts}", f"run.output_dir={folder}", *(CODES[code] or ())]
    if theirs is not None:
        problems = json.loads((theirs / "countdown" / "data" / "countdown.json").read_text(encoding="utf-8"))[:prompts]
        lines = [json.dumps({"numbers": one["numbers"], "target": int(one["target"])}) for one in problems]
        (folder / "problems.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        keys += [f"data.train={folder / 'problems.jsonl'}", f"data.num_train={prompts}"]
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
        (r"(?m)^( +)(outputs = model\.generate\(.*)", _COUNTED),
    ]
    for pattern, instead in edits:
        text, count = re.subn(pattern, instead, text)
        if count == 0:
            raise SystemExit(f"the public code is another one than this experiment knows: it has no {pattern}")
    script.write_text(text, encoding="utf-8")
    model = ROOT / "models" / "SmolLM2-135M-Instruct"
    options = {"model_name": model, "precision": "fp32", "gpu_threads": 1, "data_sample": prompts}
    return [sys.executable, str(script), *(f"--{name}={value}" for name, value in options.items())]


def generations_of(command: Sequence[str]) -> Row:
    """Run a program; return what each of its generations took, in seconds, and the new tokens if it prints them."""
    marks: list[tuple[float, float]] = []
    tokens = [0]

    def watch(process: int, line: str) -> None:
        if counted := _TOKENS.match(line):
            tokens[-1] += int(counted[1])
        if (_DONE if marks else _STARTED).search(line):
            if marks:
                tokens.append(0)
            marks.append((time.perf_counter(), processor_seconds(process)))

    output, spent = checked(command, watch)
    if len(marks) < 2:
        raise SystemExit(f"the output does not say when a generation ends:\n{output}")
    seconds = np.diff(np.array(marks), axis=0).T.round(1).tolist()
    found: Row = dict(zip(("seconds_of_generations", "processor_seconds_of_generations"), seconds, strict=True))
    return found | ({"tokens_of_generations": tokens[:-1]} if any(tokens) else {}) | {"process": spent.row()}


def tokens_of(folder: Path) -> list[int]:
    """Return the new tokens of each generation of an esmpi run."""
    from esmpi import open_run

    return [int(tokens) for tokens in open_run(folder).generations["tokens"]]


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table, with what is saved against the public code where that was measured."""
    lines = []
    for work, (members, prompts) in WORKS.items():
        own = of(rows, work)
        for row in own:
            same = [one for one in own if one["run"]["problems"] == row["run"]["problems"]]
            theirs = [one for one in same if CODES[one["run"]["code"]] is None]
            ratios = [f"{mean(theirs[0], key) / mean(row, key):.2f}" if theirs else "" for key in SECONDS]
            shown = [", ".join(f"{value:.1f}" for value in row[key]) for key in SECONDS]
            tokens = ", ".join(map(str, row["tokens_of_generations"]))
            columns = [column for pair in zip(shown, ratios, strict=True) for column in pair]
            lines.append([row["run"]["code"], str(members), str(prompts), tokens, *columns])
    head = ["code", "N", "prompts", "new tokens of a generation"]
    head += [column for words in SECONDS.values() for column in (f"{words} of a generation", "times as fast")]
    problems = ", ".join(dict.fromkeys(row["run"]["problems"] for row in rows))
    return {"table": markdown(head, lines), "made": made(rows), "tokens": str(TOKENS), "problems": problems}


def of(rows: Sequence[Row], work: str) -> list[Row]:
    """Return the runs of a work, in the order of CODES."""
    own = [row for row in rows if row["run"]["work"] == work]
    return sorted(own, key=lambda row: list(CODES).index(row["run"]["code"]))


def mean(row: Row, key: str) -> float:
    """Return the mean of the generations of a run."""
    return float(np.mean(row[key]))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the seconds of each generation."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    works = [work for work in WORKS if any(row["run"]["work"] == work for row in rows)]
    with style():
        picture = new_figure(7.4, 2.2)
        for axes, work in zip(picture.subplots(1, len(works), squeeze=False, sharey=True)[0], works, strict=True):
            axes.grid(visible=False)
            own = of(rows, work)
            for y, row in enumerate(own):
                is_theirs = CODES[row["run"]["code"]] is None
                seconds = mean(row, "seconds_of_generations")
                axes.barh(y, seconds, color=LIGHT[color_of(1 if is_theirs else 0)])
                axes.text(seconds, y, f" {seconds:.0f}", va="center")
            axes.set_yticks(range(len(own)), [row["run"]["code"] for row in own])
            highest = max(mean(row, "seconds_of_generations") for row in own)
            axes.set(xlabel="seconds of a generation", xlim=(0, 1.2 * highest), ylim=(len(own) - 0.5, -0.5))
            axes.set_title(f"N {WORKS[work][0]}, {work}")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
