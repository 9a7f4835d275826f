"""Guard rails: what a run does when its evaluations get worse. All of it follows from the evaluations so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esmpi.config.sections import GuardConfig

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


def events(guard: "GuardConfig", held_out: Results, retention: Mapping[str, Results]) -> list[Event]:
    """Return what the guard does in a run, in order.

    Parameters
    ----------
    guard : GuardConfig
    held_out : Results
        Of the held-out problems.
    retention : mapping of str to Results
        Of the suites that show what the model forgets.
    """
    found: list[Event] = []
    values = {generation: held_out[generation][guard.measure] for generation in sorted(held_out)}
    sound: dict[int, float] = {}  # the values of generations that nothing was wrong with
    reference, best = None, None
    for generation, value in values.items():
        if best is None or value > values[best]:
            best = generation
        reasons = [
            *_drop(guard, reference, value),
            *_divergence(guard, held_out[generation]),
            *_forgotten(guard, retention, generation),
        ]
        if not reasons:
            sound[generation] = value
            reference = value if reference is None else max(reference, value)
        else:
            target = max(sound, key=lambda one: (sound[one], -one), default=None)
            to = target if guard.action == "restore" else None
            found.append(Event(generation=generation, action=guard.action, reason="; ".join(reasons), to=to))
            # from here on, it is compared with what the next generations begin from
            reference = value if to is None else sound[to]
        since = sum(best < other <= generation for other in values)
        if guard.patience is not None and since >= guard.patience:
            reason = f"no better {guard.measure} than at generation {best} in {since} evaluations"
            found.append(Event(generation=generation, action="stop", reason=reason))
        if found and found[-1].action == "stop":
            break
    return found


def alpha_factor(guard: "GuardConfig", found: Sequence[Event]) -> float:
    """Return what multiplies alpha after some events."""
    return guard.factor ** sum(event.action in ("shrink", "restore") for event in found)


def _drop(guard: "GuardConfig", reference: float | None, value: float) -> list[str]:
    if guard.max_drop is None or reference is None or not value < reference - guard.max_drop:
        return []
    return [f"{guard.measure} fell from {reference:.4g} to {value:.4g}"]


def _divergence(guard: "GuardConfig", figures: Mapping[str, float]) -> list[str]:
    if guard.max_kl is None or not figures["kl_per_token"] > guard.max_kl:
        return []
    return [f"KL divergence of {figures['kl_per_token']:.4g} per token"]


def _forgotten(guard: "GuardConfig", retention: Mapping[str, Results], generation: int) -> list[str]:
    if guard.max_retention_drop is None:
        return []
    found = []
    for suite, results in retention.items():
        if generation in results:
            before, now = results[min(results)]["accuracy"], results[generation]["accuracy"]
            if now < before - guard.max_retention_drop:
                found.append(f"accuracy of {suite} fell from {before:.4g} to {now:.4g}")
    return found
