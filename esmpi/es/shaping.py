"""From fitness to coefficients: float64 arithmetic that gives the same bits on every machine."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from esmpi import plugins
from esmpi.errors import SharedError

if TYPE_CHECKING:
    from esmpi.config.search import EsConfig


@dataclass(frozen=True)
class Shaping:
    """A way to turn the fitness of members into shaped fitness."""

    shape: Callable[[np.ndarray], np.ndarray]
    """Returns the shaped fitness of members, (N,) float64, from their fitness, (N,) float64 without NaN; or, with
    `by_prompt`, from their rewards for each prompt, (N, prompts), NaN where a member has none for a prompt."""
    by_prompt: bool
    """Whether it needs the rewards for each prompt."""


def find_shaping(name: str, es: "EsConfig | None" = None) -> Shaping:
    """Return a way to shape fitness by its name; raise KeyError if there is none.

    A module of `esmpi.es.shapings` has a function `shape`, or `shape_by_prompt`. Keyword arguments of this function are
    keys of section `es`.
    """
    module = importlib.import_module(plugins.modules("esmpi.es.shapings")[name])
    by_prompt = hasattr(module, "shape_by_prompt")
    function = module.shape_by_prompt if by_prompt else module.shape
    keys = function.__kwdefaults__ or {}
    return Shaping(partial(function, **{key: getattr(es, key) for key in keys} if es is not None else {}), by_prompt)


def coefficients(fitness: np.ndarray, signs: np.ndarray, shaping: Shaping, alpha: float) -> np.ndarray:
    """Return what multiplies each member's eps in the update: alpha / N * shaped fitness * sign.

    Parameters
    ----------
    fitness : (N,) or (N, prompts) float64
        As the shaping takes it. NaN, in all columns, for members without a fitness: they take no part in the shaping
        and get 0.
    signs : (N,) int8
    shaping : Shaping
    alpha : float

    Returns
    -------
    (N,) float32
        Computed in float64, rounded once. All 0 if all members failed: theta then stays as it is.

    Raises
    ------
    SharedError
        If rewards are so large that a coefficient is infinite or not a number: theta would be, too.
    """
    good = ~np.isnan(fitness).reshape(len(fitness), -1).all(1)
    shaped = np.zeros(len(fitness), np.float64)
    try:
        with np.errstate(over="raise", invalid="raise"):
            if good.any():
                shaped[good] = shaping.shape(fitness[good])
            made: np.ndarray = (alpha / len(fitness) * shaped * signs).astype(np.float32)
        finite = bool(np.isfinite(made).all())
    except (OverflowError, FloatingPointError):  # of the machine's arithmetic, or of Python's
        finite = False
    if not finite:
        low, high = fitness[good].min(), fitness[good].max()
        raise SharedError(
            f"es.shaping: with fitness from {low:g} to {high:g}, the update would not be finite. Nothing of it is "
            f"committed: return smaller rewards, or set es.shaping=centered_rank"
        )
    return made
