"""Guard rails: what a run does when its evaluations get worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esmpi.config.search import GuardConfig

Results = Mapping[int, Mapping[str, float]]
"""Evaluations of a suite: by generation, the numbers of `esmpi.record.evaluation.Evaluation`."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the guard does, after theta of a generation was evaluated and before the next update."""

    generation: int
    action: str
    """stop, shrink or restore."""
    reason: str
    to: int | None = None
    """For restore, the generation whose theta is taken."""


def decide(
    guard: "GuardConfig",
    held_out: Results,
    retention: Mapping[str, Results],
    past: Sequence[Event],
    generation: int,
) -> Event | None:
    """Return what the guard does after the evaluation of a generation, None if it does nothing.

    Parameters
    ----------
    guard : GuardConfig
    held_out : Results
        Of the held-out problems; later ones than of `generation` do not count.
    retention : mapping of str to Results
        Of the suites that show what the model forgets.
    past : sequence of Event
        What it did before.
    generation : int
    """
    values = {one: held_out[one][guard.measure] for one in sorted(held_out) if one <= generation}
    value, best = values[generation], max(values, key=lambda one: (values[one], -one))
    wrong = {event.generation for event in past}
    sound = {one: values[one] for one in values if one < generation and one not in wrong}
    last = past[-1] if past else None
    # compared with what has been best since the last event, and with what the generations after that began from
    since = [sound[one] for one in sound if last is None or one > last.generation]
    if last is not None:
        since.append(values.get(last.generation if last.to is None else last.to, values[generation]))
    # what alpha was reduced for may stay as it is: only what becomes worse than that counts
    before = last.generation if last is not None and last.to is None else None
    reasons = [
        *_drop(guard, max(since, default=None), value),
        *_divergence(guard, held_out, before, generation),
        *_forgotten(guard, retention, before, generation),
    ]
    num_worse = sum(best < one for one in values)
    if guard.patience is not None and num_worse >= guard.patience:
        reason = f"no better {guard.measure} than at generation {best} in {num_worse} evaluations"
        return Event(generation=generation, action="stop", reason=reason)
    if not reasons:
        return None
    reason, action = "; ".join(reasons), guard.action
    target = max(sound, key=lambda one: (sound[one], -one), default=None)
    if action == "restore" and target is None:
        action, reason = "shrink", f"{reason}; nothing was right before, so theta stays"
    return Event(generation=generation, action=action, reason=reason, to=target if action == "restore" else None)


def alpha_factor(guard: "GuardConfig", found: Sequence[Event]) -> float:
    """Return what multiplies alpha after some events."""
    factor = 1.0
    for event in found:
        factor *= guard.factor if event.action in ("shrink", "restore") else 1.0
    return factor


def _drop(guard: "GuardConfig", reference: float | None, value: float) -> list[str]:
    if guard.max_drop is None or reference is None or not value < reference - guard.max_drop:
        return []
    return [f"{guard.measure} fell from {reference:.4g} to {value:.4g}"]


def _divergence(guard: "GuardConfig", held_out: Results, before: int | None, generation: int) -> list[str]:
    if guard.max_kl is None:
        return []
    now = held_out[generation]["kl_per_token"]
    limit = guard.max_kl if before is None else max(guard.max_kl, held_out[before]["kl_per_token"])
    return [f"KL divergence of {now:.4g} per token"] if now > limit else []


def _forgotten(
    guard: "GuardConfig", retention: Mapping[str, Results], before: int | None, generation: int
) -> list[str]:
    found = []
    for suite, results in retention.items() if guard.max_retention_drop is not None else ():
        if generation in results:
            assert guard.max_retention_drop is not None
            first, now = results[min(results)]["accuracy"], results[generation]["accuracy"]
            limit = first - guard.max_retention_drop
            if before is not None and before in results:
                limit = min(limit, results[before]["accuracy"])
            if now < limit:
                found.append(f"accuracy of {suite} fell from {first:.4g} to {now:.4g}")
    return found
