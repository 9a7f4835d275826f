"""Train the same run on both engines, on one and three ranks, static and dynamic, unbroken and killed: compare theta.

A killed run is killed with SIGKILL, all its processes at once, when its second generation is committed, and the same
command resumes it. Two more runs are begun by one engine and resumed by the other. Each run is replayed from its log.
A last run has another alpha, larger by less than a millionth: its digests must differ.
"""

import hashlib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import (
    FOLDER,
    Results,
    Row,
    Spent,
    checked,
    esmpi_command,
    execute,
    kill,
    made,
    markdown,
    run,
    scratch,
)

NAME = "exactness"
CONFIG = FOLDER / "exactness.yaml"
ENGINES = {
    "hf": (),
    "vllm": ("engine.kind=vllm", "engine.max_model_len=256", "engine.max_num_seqs=24", "engine.enforce_eager=true"),
}
SMALL = ("es.generations=3", "es.population_size=6", "data.batch_size=16", "data.num_eval=2")
KILL_AFTER = 2
"""Generations that are committed when a run is killed."""
OTHER = "unbroken, other alpha"
OTHER_ALPHA = "es.alpha=6.000005e-3"


def measure(results: Results, small: bool) -> None:
    """Do the runs that are missing; `small`: only engine hf."""
    engines = ("hf",) if small else tuple(ENGINES)
    settings = itertools.product(engines, (1, 3), ("static", "dynamic"), ("unbroken", "killed"))
    for engine, ranks, dispatch, end in settings:
        once(results, {"engine": engine, "ranks": ranks, "dispatch": dispatch, "end": end}, (engine, engine), small)
    if not small:
        for first, second in itertools.permutations(ENGINES):
            setting = {"engine": f"{first}, then {second}", "ranks": 1, "dispatch": "static", "end": "resumed"}
            once(results, setting, (first, second), small)
    once(results, {"engine": "hf", "ranks": 1, "dispatch": "static", "end": OTHER}, ("hf", "hf"), small)


def once(results: Results, setting: Row, engines: tuple[str, str], small: bool) -> None:
    """Train with a setting, unless that is done, and add what came of it."""
    if not results.missing(setting):
        return
    with scratch() as folder:
        keys = [f"run.output_dir={folder}", f"es.dispatch={setting['dispatch']}", *(SMALL if small else ())]
        keys += [OTHER_ALPHA] if setting["end"] == OTHER else []
        first, last = (esmpi_command(CONFIG, [*keys, *ENGINES[engine]], setting["ranks"]) for engine in engines)
        spent = []
        if setting["end"] == "killed":
            spent.append(killed(first))
        elif setting["end"] == "resumed":
            spent.append(checked([*first, f"es.generations={KILL_AFTER}"])[1])
        spent.append(checked(last)[1])
        results.add(setting, {**outcome(folder / NAME), **total(spent).row()})


def killed(command: Sequence[str]) -> Spent:
    """Start a run and kill all its processes when generation `KILL_AFTER` is committed."""
    committed = re.compile(rf" {KILL_AFTER}/\d+ done")
    done: list[int] = []

    def watch(process: int, line: str) -> None:
        if not done and committed.search(line):
            done.append(process)
            kill(process)

    code, output, spent = execute(command, watch)
    if not done or code == 0:
        raise SystemExit(f"the run ended before it could be killed:\n{output}")
    return spent


def outcome(directory: Path) -> dict[str, Any]:
    """Return how often a run was started, its digests of theta and of all rewards, and whether a replay agrees."""
    from esmpi import open_run

    found = open_run(directory)
    digests = [f"{int(digest):016x}" for digest in found.generations["theta_digest"]]
    fitness = found.members["fitness"].to_numpy("<f8")
    replay, _ = checked([sys.executable, "-m", "esmpi", "replay", directory, "--verify"])
    return {
        "starts": len(found.attributes["provenance"]),
        "theta": digests,
        "fitness_sha256": hashlib.sha256(fitness.tobytes()).hexdigest(),
        "members_by_rank": [int((found.members["rank"] == rank).sum()) for rank in sorted(set(found.members["rank"]))],
        "replay_agrees": digests[-1] in replay,
    }


def total(spent: Sequence[Spent]) -> Spent:
    """Return what several programs cost together."""
    return Spent(
        sum(one.seconds for one in spent),
        sum(one.processor_seconds for one in spent),
        max(one.peak_mib for one in spent),
        spent[0].load_before,
    )


def facts(rows: Sequence[Row]) -> Mapping[str, str]:
    """Return the table of digests, and how many of them differ."""
    lines = [
        [
            *(row["run"][key] for key in ("engine", "ranks", "dispatch", "end")),
            "yes" if row["replay_agrees"] else "no",
            f"`{row['fitness_sha256'][:8]}`",
            f"`{row['theta'][-1]}`",
        ]
        for row in rows
    ]
    head = ["engine", "ranks", "dispatch", "end", "replay agrees", "digest of all rewards", "digest of theta"]
    same = [row for row in rows if row["run"]["end"] != OTHER]
    common = {digest for row in same for digest in row["theta"]}
    return {
        "table": markdown(head, lines),
        "runs": str(len(same)),
        "generations": str(len(rows[0]["theta"])),
        "different": str(len({tuple(row["theta"]) for row in same})),
        "shared": str(len([digest for row in rows if row not in same for digest in row["theta"] if digest in common])),
        "made": made(rows),
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the digest of each generation of each run; the same digest has the same colour."""
    from esmpi.report.draw import new_figure, style
    from esmpi.report.palette import LIGHT, color_of

    with style():
        generations = max(len(row["theta"]) for row in rows)
        picture = new_figure(8.4, 0.6 + 0.24 * len(rows))
        axes = picture.subplots()
        axes.grid(visible=False)
        for y, row in enumerate(rows):
            for x, digest in enumerate(row["theta"]):
                known = list(dict.fromkeys(one["theta"][x] for one in rows if x < len(one["theta"])))
                color = LIGHT[color_of(known.index(digest))]
                axes.text(x + 1, y, digest, color=color, ha="center", va="center", family="monospace", fontsize=7)
        axes.set(xlim=(0.5, generations + 0.5), ylim=(len(rows) - 0.4, -0.6), xticks=range(1, generations + 1))
        axes.set_yticks(range(len(rows)), [", ".join(map(str, row["run"].values())) for row in rows])
        axes.set_xlabel("generation")
        axes.set_title("Digest of theta: the same digest has the same colour")
        picture.savefig(path, dpi=110)


if __name__ == "__main__":
    run(sys.modules[__name__])
