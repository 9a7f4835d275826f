"""Vary N, sigma, alpha, rank, the number of prompts and the size of the model, at equal numbers of completions.

Each setting changes one thing of tiny.yaml, or two where the first has to be made up for, and trains until it has made
2,880 completions. Settings whose model is missing are left out; models of other sizes are made by

    python tools/make_tiny_model.py --hidden-size 64 --output models/tiny_0.2M     # 256: tiny_3M, 448: tiny_10M
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import FOLDER, ROOT, Results, Row, checked, json_line, made, markdown, run, scratch

NAME = "scaling"
CONFIG = FOLDER / "tiny.yaml"
SEEDS = 5
EVALUATIONS = 3


@dataclass(frozen=True)
class Setting:
    """What differs from the config."""

    group: str
    """The curve of the figure to which it belongs; the base setting belongs to all."""
    keys: tuple[str, ...] = ()
    members: int = 30
    prompts: int = 8

    @property
    def generations(self) -> int:
        """How many generations make 2,880 completions."""
        return 2880 // (self.members * self.prompts)


BASE = "N 30, sigma 3e-3, alpha 6e-3, rank 1, 8 prompts"
SETTINGS = {
    BASE: Setting(""),
    "N 10": Setting("N", members=10),
    "N 120": Setting("N", members=120),
    "N 10, alpha 2e-3": Setting("N, alpha in proportion", ("es.alpha=2e-3",), members=10),
    "N 120, alpha 2.4e-2": Setting("N, alpha in proportion", ("es.alpha=2.4e-2",), members=120),
    "sigma 1e-3": Setting("sigma", ("es.sigma=1e-3",)),
    "sigma 1e-2": Setting("sigma", ("es.sigma=1e-2",)),
    "alpha 2e-3": Setting("alpha", ("es.alpha=2e-3",)),
    "alpha 1.2e-2": Setting("alpha", ("es.alpha=1.2e-2",)),
    "alpha 2.4e-2": Setting("alpha", ("es.alpha=2.4e-2",)),
    "2 prompts": Setting("prompts", prompts=2),
    "32 prompts": Setting("prompts", prompts=32),
    "2 prompts, alpha 1.5e-3": Setting("prompts, alpha in proportion", ("es.alpha=1.5e-3",), prompts=2),
    "32 prompts, alpha 2.4e-2": Setting("prompts, alpha in proportion", ("es.alpha=2.4e-2",), prompts=32),
    "rank 16": Setting("rank", ("es.rank=16",)),
    "full rank": Setting("rank", ("es.noise=full",)),
    "model of 0.2 M weights": Setting("size", ("model.path=models/tiny_0.2M",)),
    "model of 3 M weights": Setting("size", ("model.path=models/tiny_3M",)),
    "model of 10 M weights": Setting("size", ("model.path=models/tiny_10M",)),
}
SMALL = ("es.population_size=4", "data.batch_size=4", "data.num_train=32", "data.num_eval=8", "es.generations=3")


def measure(results: Results, small: bool) -> None:
    """Do the runs that are missing, seed by seed; `small`: one setting, one seed."""
    for seed in range(1 if small else SEEDS):
        for name, setting in list(SETTINGS.items())[: 1 if small else None]:
            paths = [key.partition("=")[2] for key in setting.keys if key.startswith("model.path")]
            if all((ROOT / path).exists() for path in paths):
                once(results, name, setting, seed, small)
            elif seed == 0:
                print(f"left out: {name}: {', '.join(paths)} is not there; the head of {__file__} says how to make it")


def once(results: Results, name: str, setting: Setting, seed: int, small: bool) -> None:
    """Train with a setting, unless that is done, and add its curve."""
    if not results.missing({"setting": name, "seed": seed}):
        return
    keys = [f"run.seed={seed}", *setting.keys, f"es.population_size={setting.members}"]
    keys += [f"data.batch_size={setting.prompts}", f"es.generations={setting.generations}"]
    keys += [f"eval.every={setting.generations // EVALUATIONS}", *(SMALL if small else ())]
    with scratch() as folder:
        command: list[str | Path] = [FOLDER / "curve_es.py", CONFIG, *keys, f"run.output_dir={folder}"]
        output, spent = checked([sys.executable, *command])
    curve = json_line(output)
    results.add({"setting": name, "seed": seed}, {"curve": curve, "process": spent.row()})


def by_setting(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the runs of each setting that has any, in the order of SETTINGS."""
    found = {name: [row for row in rows if row["run"]["setting"] == name] for name in SETTINGS}
    return {name: own for name, own in found.items() if own}


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table of all settings."""
    lines = []
    for name, own in by_setting(rows).items():
        curves = [row["curve"] for row in own]
        parts = [[100 * curve[i]["accuracy"] for curve in curves] for i in range(len(curves[0]))]
        tokens = np.mean([curve[-1]["tokens"] for curve in curves]) / 1000
        seconds = np.mean([curve[-1]["processor_seconds"] for curve in curves])
        lines.append(
            [
                name,
                str(curves[0][-1]["step"]),
                *(f"{np.mean(part):.1f}" for part in parts),
                " ".join(f"{value:.1f}" for value in parts[-1]),
                f"{tokens:.0f}",
                f"{seconds:.1f}",
            ]
        )
    head = ["setting", "generations", "base", "a third", "two thirds", "all", "all, by seed"]
    return {
        "table": markdown([*head, "thousand tokens", "processor seconds"], lines),
        "runs": str(len(rows)),
        "made": made(rows),
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw, for each thing that was varied, accuracy over completions: the mean of the seeds, and each of them."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    found = by_setting(rows)
    groups = list(dict.fromkeys(SETTINGS[name].group for name in found if SETTINGS[name].group)) or ["base"]
    with style():
        picture = new_figure(7.4, 2.5 * -(-len(groups) // 2))
        places = picture.subplots(-(-len(groups) // 2), 2, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in places[len(groups) :]:
            axes.axis("off")
        for axes, group in zip(places, groups, strict=False):
            shown = [name for name in found if SETTINGS[name].group in ("", group)]
            for number, name in enumerate(shown):
                curves = [row["curve"] for row in found[name]]
                x = [point["completions"] for point in curves[0]]
                y = 100 * np.mean([[point["accuracy"] for point in curve] for curve in curves], axis=0)
                label = "base" if name == BASE else name
                color = LIGHT[color_of(number - 1)]
                for curve in curves:
                    axes.plot(x, [100 * point["accuracy"] for point in curve], color=color, alpha=0.25, linewidth=0.8)
                axes.plot(x, y, label=label, color=color, marker="o")
            axes.set_title(group)
            axes.legend(loc="lower right")
        for axes in places[::2]:
            axes.set_ylabel("held-out accuracy, %")
        for axes in places[-2:]:
            axes.set_xlabel("completions")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
