"""A run as text: results before and after, and sample completions."""

import json
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.es.population import idle_seconds
from esmpi.store.run_file import RunFile, samples_path
from esmpi.wording import counted

NUM_SAMPLES = 3
_MAX_CHARACTERS = 300

_MAX_RANKS = 8

_ROWS = (
    # title, evaluation's column, factor, format
    ("accuracy", "accuracy", 100, "{:.1f} %"),
    ("mean reward", "reward_mean", 1, "{:.3f}"),
    ("tokens a completion", "tokens_mean", 1, "{:.1f}"),
    ("cut off", "num_truncated", 1, "{:.0f}"),
    ("problems", "num_problems", 1, "{:.0f}"),
)


def summarize(run: RunFile) -> str:
    """Return tables of the first and the last evaluation of each suite, with sample completions."""
    config = run.attributes["config"]
    lines = [
        f"{config['run']['name']}: {config['model']['path']}, task {config['task']['name']}, "
        f"seed {config['run']['seed']}",
        f"{run.num_generations} of {counted(config['es']['generations'], 'generation')}, "
        f"{counted(config['es']['population_size'], 'member')}, sigma {config['es']['sigma']:g}, "
        f"theta {run.theta_digest:016x}",
    ]
    if run.generations:
        seconds = sum(float(row["seconds_total"]) for row in run.generations)
        tokens = sum(int(row["tokens"]) for row in run.generations)
        lines.append(f"{seconds:.1f} s of training, {tokens:,} tokens generated")
        lines += _idle(run)
    for suite, rows in run.evaluations.items():
        ordered = sorted(rows, key=lambda row: row["generation"])
        lines += ["", *_table(suite, ordered[0], ordered[-1]), *_samples(run, suite, ordered[0], ordered[-1])]
    return "\n".join(lines)


def _idle(run: RunFile) -> list[str]:
    """Return lines on how long ranks waited for the busiest one; none for a run with a single rank."""
    idle: dict[int, float] = {}
    there: dict[int, float] = {}
    for row, members in zip(run.generations, run.members, strict=True):
        waited = idle_seconds(members["rank"], members["seconds"], _num_ranks(run, float(row["unix_time"])))
        for rank, seconds in enumerate(waited.tolist()):
            idle[rank] = idle.get(rank, 0.0) + seconds
            there[rank] = there.get(rank, 0.0) + float(row["seconds_total"])
    if len(idle) < 2:
        return []
    share = {rank: 100 * idle[rank] / max(there[rank], 1e-9) for rank in idle}
    shown = sorted(share, key=lambda rank: -share[rank])[:_MAX_RANKS]
    each = ", ".join(f"rank {rank} {share[rank]:.1f} %" for rank in sorted(shown))
    more = f"; of {len(share)} ranks the most idle" if len(share) > len(shown) else ""
    mean = 100 * sum(idle.values()) / max(sum(there.values()), 1e-9)
    return [f"{mean:.1f} % of the ranks' time idle, waiting for the busiest{more}: {each}"]


def _num_ranks(run: RunFile, unix_time: float) -> int:
    """Return how many ranks made a generation: those of the last start before it was committed."""
    starts = [start for start in run.attributes["provenance"] if start["unix_time"] <= unix_time]
    return int(starts[-1]["ranks"]) if starts else 1


def _table(suite: str, first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    heads = [f"generation {first['generation']}", f"generation {last['generation']}"]
    lines = [f"{suite.replace('_', '-'):20s} {heads[0]:>14s} {heads[1]:>14s}"]
    for title, column, factor, form in _ROWS:
        # older run files have no column num_problems: there each problem was completed once
        before, after = (form.format(factor * row.get(column, row["num_samples"])) for row in (first, last))
        lines.append(f"{title:20s} {before:>14s} {after:>14s}")
    return lines


def _samples(run: RunFile, suite: str, first: dict[str, Any], last: dict[str, Any]) -> list[str]:
    """Show some problems before and after, first those that became right: the others look as they did."""
    before, after = (_read(samples_path(run.path, suite, row["generation"])) for row in (first, last))
    if not before or len(before) != len(after):
        return []
    order = sorted(range(len(after)), key=lambda i: (not (after[i]["correct"] and not before[i]["correct"]), i))
    became_right = sum(new["correct"] and not old["correct"] for old, new in zip(before, after, strict=True))
    became_wrong = sum(old["correct"] and not new["correct"] for old, new in zip(before, after, strict=True))
    what = "completions" if any(sample.get("sample") for sample in after) else "problems"
    lines = ["", f"{became_right} {what} became right, {became_wrong} became wrong; for example:"]
    for i in order[:NUM_SAMPLES]:
        example = {key: value for key, value in after[i]["example"].items() if key != "solution"}
        lines.append(f"  {json.dumps(example)}")
        for head, sample in (("before", before[i]), ("after", after[i])):
            verdict = "right" if sample["correct"] else "wrong"
            text = sample["completion"]
            text = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " ..."
            lines.append(f"    {head:6s} {verdict}, reward {sample['reward']:.2f}: {json.dumps(text)}")
    return lines


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except OSError:
        return []
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
