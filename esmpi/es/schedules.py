"""Sigma and alpha by generation."""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from esmpi.config.search import EsConfig


def sigma_at(es: "EsConfig", generation: int) -> float:
    """Return the scale of a generation's perturbations, which the first `sigma_warmup` generations approach."""
    return (
        es.sigma
        * _risen(es.sigma_warmup, generation)
        * _decay(es.sigma_schedule, es.sigma_end, _progress(es, generation))
    )


def alpha_at(es: "EsConfig", generation: int) -> float:
    """Return the step size of a generation, which the first `warmup` generations approach."""
    return (
        es.step_size
        * _risen(es.warmup, generation)
        * _decay(es.alpha_schedule, es.alpha_end, _progress(es, generation))
    )


def _risen(warmup: int, generation: int) -> float:
    """Return the share that `warmup` equal steps have reached in a generation."""
    return min(1.0, (generation + 1) / warmup) if warmup else 1.0


def _progress(es: "EsConfig", generation: int) -> float:
    """Return how far a generation is in the schedule: 0 for the first generation, 1 for the last."""
    return min(1.0, generation / max(1, es.schedule_length - 1))


def _decay(schedule: str, end: float, progress: float) -> float:
    if schedule == "constant":
        return 1.0
    # rounded, so that mathematical libraries which differ in the last bit lead to the same number
    left = 1 - progress if schedule == "linear" else round(0.5 * (1 + math.cos(math.pi * progress)), 12)
    return end + (1 - end) * left
