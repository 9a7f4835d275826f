"""Forecast what the experiments of arXiv 2509.24372 cost: each config of configs/paper on eight H100s, by arithmetic.

Nothing is run: the configs are read, and tools/forecast.py makes seconds and GPU-hours of them, without evaluations.
Settings are those of the configs. Sizes of the models are published; lengths of prompts and completions are assumed,
and GPU-hours grow almost in proportion to the mean length of the completions.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from common import ROOT, Results, Row, made, markdown, run

sys.path.append(str(ROOT / "tools"))

import forecast

from esmpi.config.reader import load_config

NAME = "paper"
CONFIGS = ROOT / "configs" / "paper"
GPUS = 8
MODELS = {
    "Qwen/Qwen2.5-0.5B-Instruct": (0.494e9, 24, 128),
    "Qwen/Qwen2.5-1.5B-Instruct": (1.544e9, 28, 256),
    "Qwen/Qwen2.5-3B-Instruct": (3.086e9, 36, 256),
    "Qwen/Qwen2.5-7B-Instruct": (7.616e9, 28, 512),
    "Qwen/Qwen2.5-7B": (7.616e9, 28, 512),
    "Qwen/Qwen2.5-Math-7B": (7.616e9, 28, 512),
    "Qwen/Qwen2.5-14B-Instruct": (14.77e9, 48, 1024),
    "meta-llama/Llama-3.2-1B-Instruct": (1.236e9, 16, 512),
    "meta-llama/Llama-3.2-3B-Instruct": (3.213e9, 28, 1024),
    "meta-llama/Llama-3.1-8B-Instruct": (8.030e9, 32, 1024),
    "google/gemma-3-1b-it": (1.000e9, 26, 256),
}
"""Weights, layers, and elements of a layer's keys for each token, as the models' own configs have them."""
TOKENS = {
    "countdown": (150, 250),
    "conciseness": (30, 30),
    "math": (200, 800),
    "sudoku": (200, 200),
    "arc": (3000, 400),
    "multiplication": (40, 150),
}
"""Tokens of a prompt and mean tokens of a completion: assumed, not measured."""


def measure(results: Results, small: bool) -> None:
    """Compute the forecast of each config that is missing; `small` makes no difference."""
    for path in sorted(CONFIGS.glob("*.yaml")):
        if results.missing({"config": path.name}):
            results.add({"config": path.name}, forecast_of(path))


def forecast_of(path: Path) -> Row:
    """Return the forecast of a config."""
    config = load_config(path)
    weights, layers, width = MODELS[config.model.path]
    prompt, mean = TOKENS[config.task.name]
    parallel = getattr(config.engine, "tensor_parallel_size", 1)
    one = forecast.GPUS["H100"]
    # the GPUs of a rank as one that is as many times as fast: parallelism without a loss, so the least that it can cost
    gpu = replace(one, bytes_per_s=parallel * one.bytes_per_s, flops=parallel * one.flops, memory=parallel * one.memory)
    work = forecast.Run(
        name=path.stem,
        weights=weights,
        layers=layers,
        kv_width=width,
        members=config.es.population_size,
        prompts=config.data.batch_size * config.sampling.num_samples,
        prompt_tokens=prompt,
        mean_tokens=mean,
        max_tokens=config.sampling.max_tokens,
        generations=config.es.generations,
    )
    seconds = forecast.generation(work, gpu, GPUS // parallel, seed=0)["dynamic"]
    return {
        "model": config.model.path,
        "members": work.members,
        "prompts": work.prompts,
        "mean_tokens": mean,
        "max_tokens": work.max_tokens,
        "generations": work.generations,
        "gpus_of_a_rank": parallel,
        "seconds_of_a_generation": round(seconds, 2),
        "hours": round(seconds * work.generations / 3600, 1),
        "gpu_hours": round(seconds * work.generations * GPUS / 3600, 1),
    }


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table of all configs."""
    keys = ("members", "prompts", "mean_tokens", "generations", "gpus_of_a_rank", "seconds_of_a_generation")
    lines = [
        [
            f"`{row['run']['config']}`",
            *(f"{row[key]:,}" for key in keys),
            f"{row['hours']:,}",
            f"{row['gpu_hours']:,}",
        ]
        for row in rows
    ]
    head = ["config in `configs/paper/`", "N", "prompts", "tokens of a completion (assumed)", "generations"]
    head += ["GPUs of a rank", "seconds of a generation", "hours", "GPU-hours"]
    return {"table": markdown(head, lines), "gpus": str(GPUS), "made": made(rows)}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the GPU-hours of each config."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT

    with style():
        picture = new_figure(7.4, 0.7 + 0.26 * len(rows))
        axes = picture.subplots()
        axes.grid(visible=False)
        hours = [row["gpu_hours"] for row in rows]
        names = [row["run"]["config"].removesuffix(".yaml") for row in rows]
        low = 10 ** np.floor(np.log10(min(hours)))
        bars = axes.barh(range(len(rows)), hours, color=LIGHT["c0"])
        axes.bar_label(bars, [f"{value:,.1f}" for value in hours], padding=3)
        axes.set_yticks(range(len(rows)), names)
        axes.set(xscale="log", xlabel="GPU-hours on eight H100s, forecast", xlim=(low, 3 * max(hours)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.invert_yaxis()
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
