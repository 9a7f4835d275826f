"""A run as text: results before and after, and sample completions."""

import json
from typing import Any

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.report.of_ranks import idle_times
from esmpi.report.samples import KINDS, kind_of, pairs, read_samples
from esmpi.store.run_file import RunFile
from esmpi.wording import counted, visible_line

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
        f"seed {config['run'].get('seed', '-')}",
        f"{run.num_generations} of {counted(config['es']['generations'], 'generation')}, "
        f"{counted(config['es']['population_size'], 'member')}, sigma {config['es']['sigma']:g}, "
        f"theta {run.theta_digest:016x}",
    ]
    if run.generations:
        seconds = sum(float(row["seconds_total"]) for row in run.generations)
        tokens = sum(int(row["tokens"]) for row in run.generations)
        lines.append(f"{seconds:.1f} s of training, {tokens:,} tokens generated")
        lines += _idle(run)
    for suite, rows in sorted(run.evaluations.items(), key=lambda item: item[0] != HELD_OUT):
        ordered = sorted(rows, key=lambda row: row["generation"])
        lines += ["", *_table(suite, ordered[0], ordered[-1]), *_samples(run, suite, ordered[0], ordered[-1])]
    return "\n".join(map(visible_line, lines))


def _idle(run: RunFile) -> list[str]:
    """Return lines on how long ranks waited for the busiest one; none for a run with a single rank."""
    idle, there = idle_times(run)
    if len(idle) < 2:
        return []
    share = 100 * idle / there
    shown = np.sort(np.argsort(-share, kind="stable")[:_MAX_RANKS]).tolist()
    each = ", ".join(f"rank {rank} {share[rank]:.1f} %" for rank in shown)
    more = f"; of {len(share)} ranks the most idle" if len(share) > len(shown) else ""
    return [f"{100 * idle.sum() / there.sum():.1f} % of the ranks' time idle, waiting for the busiest{more}: {each}"]


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
    found = pairs(*(read_samples(run, suite, int(row["generation"])) for row in (first, last)))
    if not found:
        return []
    order = sorted(found, key=lambda pair: kind_of(pair) != KINDS[0])
    became_right, became_wrong = (sum(kind_of(pair) == kind for pair in found) for kind in KINDS[:2])
    what = "completions" if any(sample.get("sample") for _, sample in found) else "problems"
    lines = ["", f"{became_right} {what} became right, {became_wrong} became wrong; for example:"]
    for pair in order[:NUM_SAMPLES]:
        example = pair[1]["example"]
        if isinstance(example, dict):
            example = {key: value for key, value in example.items() if key != "solution"}
        lines.append(f"  {json.dumps(example)}")
        for head, sample in zip(("before", "after"), pair, strict=True):
            verdict = "right" if sample["correct"] else "wrong"
            text = sample["completion"]
            text = text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + " ..."
            reward = "none" if sample["reward"] is None else f"{sample['reward']:.2f}"
            lines.append(f"    {head:6s} {verdict}, reward {reward}: {json.dumps(text)}")
    return lines
