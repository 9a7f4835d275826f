"""The figures of a run, made from its run file and, for the spread of samples, its evaluations' files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.report.certainty import LEVEL
from esmpi.report.figure import COMPLETIONS, COST, LEARNING, MODEL, Curve, Figure
from esmpi.report.of_ranks import figures_of_ranks
from esmpi.report.outcome import Result
from esmpi.report.palette import NUM_COLORS
from esmpi.report.samples import samples_of_all
from esmpi.store.format import GENERATION_DTYPE
from esmpi.store.history import History

_PHASES = (
    # name, column, colour
    ("generate", "seconds_generate", 0),
    ("perturb", "seconds_perturb", 1),
    ("update", "seconds_update", 2),
    ("exchange, with waiting", "seconds_exchange", 4),
    ("waiting for rewards", "seconds_wait", 3),
)
_FAILURES = (
    ("members that failed", "num_failed", 1),
    ("rewards that raised", "num_score_raised", 0),
    ("rewards out of time", "num_score_timed_out", 4),
    ("rewards whose process died", "num_score_died", 3),
)
_OWN = {"reward_mean", "tokens_mean", "characters_mean", "member_accuracy_mean"}
"""Columns of evaluations that are no part of the task's reward, though their names end as those of parts do."""

_LABELS = {
    "kl_per_token": "KL divergence on held-out problems",
    "theta_distance": "norm of theta - theta of generation 0",
}

Rows = Sequence[Mapping[str, Any]]


def figures_of(run: History) -> list[Figure]:
    """Return the figures that the run has data for, in the order of a page."""
    trained = [] if run.attributes["log_only"] or not run.generations else [*_of_training(run)]
    figures = [*_of_evaluations(run), *trained]
    order = [LEARNING, COMPLETIONS, MODEL, COST]
    first = [figure for figure in figures if figure.name == "fitness"]
    rest = sorted((figure for figure in figures if figure not in first), key=lambda one: order.index(one.section))
    return [*first, *rest]


def rows_of(run: History, suite: str) -> list[dict[str, Any]]:
    """Return a suite's evaluations, ascending."""
    return sorted(run.evaluations.get(suite, ()), key=lambda row: int(row["generation"]))


def table_of(run: History) -> np.ndarray:
    """Return the generations, (G,) of GENERATION_DTYPE."""
    return np.array(run.generations, GENERATION_DTYPE)


def column(rows: Rows, name: str) -> np.ndarray:
    """Return a figure of evaluations, (n,) float64, NaN where there is none."""
    return np.array([row.get(name, np.nan) for row in rows], np.float64)


def accuracy_curve(rows: Rows, name: str = "accuracy", color: int = 0) -> Curve:
    """Return accuracy in per cent with its confidence interval."""
    results = [Result.of(row) for row in rows]
    y, low, high = (100 * np.array([getattr(one, name) for one in results]) for name in ("accuracy", "low", "high"))
    return Curve(name=name, x=column(rows, "generation"), y=y, low=low, high=high, color=color, markers=True)


def _of_training(run: History) -> Iterator[Figure]:
    table = table_of(run)
    x = table["generation"].astype(np.float64)
    yield _fitness(run, table, x)
    yield from _parts_of_members(run)
    yield from _settings(run, table, x)
    yield from _tokens_of_members(run, table, x)
    total = table["seconds_total"]
    # an older esmpi did not record how long rank 0 waited for rewards
    spent = [(name, np.nan_to_num(table[key]), color) for name, key, color in _PHASES]
    phases = [Curve(name=name, x=x, y=seconds, color=color) for name, seconds, color in spent]
    rest = np.maximum(0, total - sum(seconds for _, seconds, _ in spent))
    yield Figure(
        name="time",
        title="Time of a generation by phase",
        section=COST,
        kind="stack",
        y_label="s",
        curves=[
            *phases,
            Curve(name="the rest", x=x, y=rest, color=-1),
            Curve(name="computing rewards, in parallel", x=x, y=table["seconds_score"], color=5, dash=1),
        ],
        y_range=(0, None),
        note="On rank 0. The rest is keeping records, and theta's own completions (eval.control_every).",
    )
    rate = np.divide(table["tokens"], total, out=np.full(len(x), np.nan), where=total > 0)
    yield Figure(
        name="speed",
        title="Tokens per second",
        section=COST,
        y_label="tokens/s",
        curves=[Curve(name="all ranks together", x=x, y=rate)],
        y_range=(0, None),
    )
    yield from figures_of_ranks(run)
    failures = [
        Curve(name=name, x=x, y=table[key].astype(np.float64), color=color)
        for name, key, color in _FAILURES
        if table[key].any()
    ]
    if failures:
        yield Figure(
            name="failures",
            title="Failures",
            section=COST,
            kind="steps",
            y_label="per generation",
            curves=failures,
            y_range=(0, None),
        )


def _fitness(run: History, table: np.ndarray, x: np.ndarray) -> Figure:
    quartiles = np.full((3, len(x)), np.nan)
    for i, members in enumerate(run.members):
        fitness = members["fitness"][~np.isnan(members["fitness"])]
        if fitness.size:
            quartiles[:, i] = np.quantile(fitness, (0.25, 0.5, 0.75))
    curves = [
        Curve(name="lowest to highest member", x=x, low=table["fitness_min"], high=table["fitness_max"], color=-1),
        Curve(name="median, with quartiles", x=x, y=quartiles[1], low=quartiles[0], high=quartiles[2], color=0),
        Curve(name="mean", x=x, y=table["fitness_mean"], color=2, dash=1),
    ]
    known = ~np.isnan(table["fitness_theta"])
    if known.any():
        theta = table["fitness_theta"][known]
        curves.append(Curve(name="the model itself", x=x[known], y=theta, color=1, markers=True))
    return Figure(
        name="fitness",
        title="Fitness of the members",
        section=LEARNING,
        y_label="mean reward",
        curves=curves,
        events=events_of(run),
        note="Members are perturbed models, so most of them are worse than the model itself.",
    )


def _parts_of_members(run: History) -> Iterator[Figure]:
    """Yield the further numbers of the members' rewards, if there are any: for each its mean and its spread."""
    x = column(run.figures, "generation")
    names = sorted({name for row in run.figures for name in row if name.endswith("_mean")})
    curves = []
    for color, name in enumerate(names):
        mean, spread = column(run.figures, name), column(run.figures, f"{name.removesuffix('_mean')}_std")
        label = title_of(name.removesuffix("_mean"))
        band = {"low": mean - spread, "high": mean + spread}
        curves.append(Curve(name=label, x=x, y=mean, **band, color=color, dash=color // NUM_COLORS))
    if curves:
        yield Figure(
            name="member_parts",
            title="Parts of the members' rewards",
            section=LEARNING,
            y_label="mean",
            curves=curves,
            events=events_of(run),
            note="Mean over the members, and one standard deviation of the members' means.",
        )


def _settings(run: History, table: np.ndarray, x: np.ndarray) -> Iterator[Figure]:
    """Yield sigma and alpha, if they vary."""
    curves = []
    for color, name in enumerate(("sigma", "alpha")):
        values = table[name][~np.isnan(table[name])]
        if values.size and (values != values[0]).any():
            curves.append(Curve(name=name, x=x, y=table[name], color=color))
    if curves:
        yield Figure(
            name="settings",
            title=" and ".join(curve.name for curve in curves),
            section=MODEL,
            y_label="",
            curves=curves,
            events=events_of(run),
            y_range=(0, None),
        )
    if (table["shrink"] != 1).any():
        yield Figure(
            name="shrink",
            title="Pull towards the base model",
            section=MODEL,
            y_label="factor of the distance",
            curves=[Curve(name="shrink", x=x, y=table["shrink"].astype(np.float64))],
        )


def _tokens_of_members(run: History, table: np.ndarray, x: np.ndarray) -> Iterator[Figure]:
    config = run.attributes["config"]
    prompts = config.get("data", {}).get("batch_size"), config.get("sampling", {}).get("num_samples", 1)
    if not all(isinstance(number, int) and number > 0 for number in prompts):
        return
    each = np.array([np.count_nonzero(members["tokens"]) for members in run.members]) * prompts[0] * prompts[1]
    mean = np.divide(table["tokens"], each, out=np.full(len(x), np.nan), where=each > 0)
    curves = [Curve(name="members, in training", x=x, y=mean, color=0)]
    rows = rows_of(run, HELD_OUT)
    for name, key, color in (("held-out, mean", "tokens_mean", 1), ("held-out, longest", "tokens_max", 3)):
        lengths = column(rows, key)
        if not np.isnan(lengths).all():
            curves.append(Curve(name=name, x=column(rows, "generation"), y=lengths, color=color, markers=True))
    drawn = np.concatenate([curve.y for curve in curves if curve.y is not None])
    longest = float(np.fmax.reduce(drawn, initial=0))
    limit = config.get("sampling", {}).get("max_tokens")
    near = isinstance(limit, int) and limit <= 2 * longest  # a distant line would press the curves together
    yield Figure(
        name="length",
        title="Length of completions",
        section=COMPLETIONS,
        y_label="tokens",
        curves=curves,
        levels=[("limit", limit, -1)] if near else [],
        y_range=(0, None),
        note="" if near else f"The limit is {limit} tokens.",
    )


def events_of(run: History) -> list[int]:
    """Return the generations after which the guard did something."""
    return sorted({int(event["generation"]) for event in run.attributes["events"]})


def _of_evaluations(run: History) -> Iterator[Figure]:
    rows = rows_of(run, HELD_OUT)
    if rows:
        yield from _held_out(run, rows)
    others = [(suite, rows_of(run, suite)) for suite in sorted(run.evaluations) if suite != HELD_OUT]
    others = [(suite, found) for suite, found in others if len(found) > 1]
    if others:
        yield Figure(
            name="suites",
            title="Accuracy on other suites",
            section=LEARNING,
            y_label="%",
            note=_retention(run, [suite for suite, _ in others]),
            curves=[accuracy_curve(found, title_of(suite), i) for i, (suite, found) in enumerate(others)],
            levels=[
                (f"{title_of(suite)}, {_first(found)}", 100 * found[0]["accuracy"], i)
                for i, (suite, found) in enumerate(others)
            ],
            events=events_of(run),
        )


def _held_out(run: History, rows: Rows) -> Iterator[Figure]:
    x = column(rows, "generation")
    first = _first(rows)
    accuracies, quartiles = _spread(run)
    yield Figure(
        name="accuracy",
        title="Accuracy on held-out problems",
        section=LEARNING,
        y_label="%",
        curves=[*accuracies, accuracy_curve(rows, f"accuracy, with {100 * LEVEL:.0f} % interval")],
        levels=[(first, 100 * rows[0]["accuracy"], -1)],
        events=events_of(run),
    )
    yield Figure(
        name="reward",
        title="Reward on held-out problems",
        section=LEARNING,
        y_label="",
        curves=[*quartiles, Curve(name="mean", x=x, y=column(rows, "reward_mean"), color=1, markers=True)],
        levels=[(first, float(rows[0]["reward_mean"]), -1)],
        events=events_of(run),
    )
    names = sorted({name for row in rows for name in row})
    yield from _lines("pass_at_k", "pass@k", [n for n in names if n.startswith("pass_at_")], rows, LEARNING, 100, "%")
    parts = [name for name in names if name.endswith("_mean") and name not in _OWN]
    yield from _lines("parts", "Parts of the reward and other figures", parts, rows, LEARNING, 1, "mean")
    share = {**{"num_truncated": "cut off", "num_unparsed": "without an answer"}, "num_failed": "without a reward"}
    counted = [{"generation": row["generation"], **_shares(row, share)} for row in rows]
    title = "Completions without an end, an answer or a reward"
    yield from _lines("cut_off", title, list(share.values()), counted, COMPLETIONS, 1, "%")
    yield from _lines("kl", "KL divergence from the base model", ["kl_per_token"], rows, MODEL, 1, "nats per token")
    title = "Distance from the base model's weights"
    yield from _lines("distance", title, ["theta_distance"], rows, MODEL, 1, "Euclidean norm")


def _first(rows: Rows) -> str:
    """Return what the first evaluation is of, in words."""
    return "base model" if rows[0]["generation"] == 0 else f"generation {rows[0]['generation']}"


def _retention(run: History, suites: Sequence[str]) -> str:
    """Return which of the suites show what the model forgets, as a sentence."""
    retention = run.attributes["config"].get("eval", {}).get("retention") or ()
    named = [title_of(suite) for suite in suites if suite in retention]
    return f"What the model may forget (eval.retention): {', '.join(named)}." if named else ""


def _shares(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, float]:
    return {name: 100 * row.get(key, np.nan) / max(1, row.get("num_samples", 1)) for key, name in names.items()}


def _lines(
    name: str, title: str, columns: Sequence[str], rows: Rows, section: str, factor: float, unit: str
) -> Iterator[Figure]:
    curves = []
    for color, key in enumerate(columns):
        values = factor * column(rows, key)
        if not np.isnan(values).all():
            label = _LABELS.get(key) or title_of(key.removesuffix("_mean")).replace("pass-at-", "pass@")
            dash = color // NUM_COLORS
            x = column(rows, "generation")
            curves.append(Curve(name=label, x=x, y=values, color=color, dash=dash, markers=True))
    if curves:
        least = min(float(np.nanmin(curve.y)) for curve in curves if curve.y is not None)
        yield Figure(
            name=name,
            title=title,
            section=section,
            y_label=unit,
            curves=curves,
            y_range=(0 if least >= 0 else None, None),
        )


def _spread(run: History) -> tuple[list[Curve], list[Curve]]:
    """Return bands of the samples, each at most one.

    The first is from the lowest to the highest accuracy of the k-th samples of all problems, if there are several
    samples of a problem. The second one has the quartiles of the rewards.
    """
    accuracies, quartiles = [], []
    for generation, samples in samples_of_all(run, HELD_OUT):
        rewards = np.array([sample["reward"] for sample in samples])
        if not np.isnan(rewards).all():
            quartiles.append((generation, *np.nanquantile(rewards, (0.25, 0.75))))
        number = np.array([int(sample.get("sample", 0)) for sample in samples])
        right = np.array([sample["correct"] for sample in samples], np.float64)
        means = [100 * right[number == k].mean() for k in np.unique(number)]
        if len(means) > 1:
            accuracies.append((generation, min(means), max(means)))
    return _band("lowest to highest of the samples", accuracies), _band("quartiles of the samples", quartiles)


def _band(name: str, rows: Sequence[tuple[float, ...]]) -> list[Curve]:
    if not rows:
        return []
    x, low, high = np.array(sorted(rows), np.float64).T
    return [Curve(name=name, x=x, low=low, high=high, color=-1)]


def title_of(name: str) -> str:
    """Return the name of a column or suite as a title has it."""
    return name.replace("_", "-")
