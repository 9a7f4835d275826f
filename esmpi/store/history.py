"""The history of a run: everything that its run file holds, in memory."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.errors import UserError
from esmpi.model.noise_settings import NoiseSettings


class History:
    """Generations, members and evaluations of a run, and the attributes that it began with.

    Attributes
    ----------
    path : Path
        Of the run file that holds it.
    attributes : dict
        The file's attributes as plain types; see docs/run-files.md.
    generations : list of void
        Rows of GENERATION_DTYPE, one a committed generation.
    members : list of ndarray
        For each generation (N,) of MEMBER_DTYPE; after a fork N may differ between generations.
    evaluations : dict of list of dict
        By suite; a row has `generation` and the figures of `esmpi.record.evaluation.Evaluation`.
    figures : list of dict
        A row for each generation whose rewards had further numbers: `generation`, and mean and spread of each.
    profile : ndarray or None
        (n,) of PROFILE_DTYPE: when each rank did what in the generation that was profiled last.
    """

    def __init__(self, path: Path, attributes: dict[str, Any]):
        self.path = path
        self.attributes = attributes
        self.generations: list[np.void] = []
        self.members: list[np.ndarray] = []
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        self.figures: list[dict[str, Any]] = []
        self.profile: np.ndarray | None = None

    @property
    def num_generations(self) -> int:
        """How many generations are committed."""
        return len(self.generations)

    @property
    def theta_digest(self) -> int:
        """Digest of theta after the last committed generation."""
        return self.digest_after(self.num_generations)

    def digest_after(self, generation: int) -> int:
        """Return the digest of theta of a generation; generation 0 is the base model."""
        if generation == 0:
            return int(self.attributes["model_digest"])
        return int(self.generations[generation - 1]["theta_digest"])

    def describe(self, generation: int) -> dict[str, Any]:
        """Return what identifies theta of a generation, for files that leave the run directory."""
        return {
            "run_uuid": self.attributes["run_uuid"],
            "run": self.attributes["config"]["run"]["name"],
            "generation": generation,
            "theta_digest": f"{self.digest_after(generation):016x}",
        }

    def noise(self, generation: int) -> NoiseSettings:
        """Return which noise the members of a generation had."""
        return NoiseSettings.of(self._config_of(generation)["es"])

    def num_ranks(self, generation: int) -> int:
        """Return how many ranks made a generation: those of the last start before it was committed."""
        committed = float(self.generations[generation]["unix_time"])
        starts = [start for start in self.attributes["provenance"] if start.get("unix_time", 0) <= committed]
        return int(starts[-1].get("ranks", 1)) if starts else 1

    def sigma(self, generation: int) -> float:
        """Return the scale of a generation's perturbations."""
        recorded = float(self.generations[generation]["sigma"])
        return float(self._config_of(generation)["es"]["sigma"]) if math.isnan(recorded) else recorded

    def _config_of(self, generation: int) -> dict[str, Any]:
        """Return the config that made a generation: that of a run that this one was forked from, or its own."""
        forks = self.attributes["forks"]
        config: dict[str, Any] = next(
            (fork["config"] for fork in forks if generation < fork["generation"]), self.attributes["config"]
        )
        return config

    def steps_to(self, generation: int) -> list[int]:
        """Return the generations whose updates lead from the base model to theta of a generation, in order.

        These are all before it, except for those after which the guard took theta back to an earlier one.
        """
        steps = []
        while generation > 0:
            steps.append(generation - 1)
            generation = self.origin(generation - 1)
        return steps[::-1]

    def origin(self, generation: int) -> int:
        """Return the generation whose theta the members of a generation were made from.

        It is the same number, unless the guard has taken theta back to an earlier one.
        """
        restored = (event for event in self.attributes["events"] if event["action"] == "restore")
        return next((int(event["to"]) for event in restored if event["generation"] == generation), generation)

    def best(self, suite: str = HELD_OUT) -> dict[str, Any] | None:
        """Return the best evaluation: highest accuracy, then highest mean reward, then earliest; None without any."""
        rows = self.evaluations.get(suite, ())
        return max(rows, key=lambda row: (row["accuracy"], row["reward_mean"], -row["generation"]), default=None)

    def cut(self, path: Path, generation: int) -> Self:
        """Return a copy of the first generations, up to theta of `generation`.

        Parameters
        ----------
        path : Path
            Of the copy, which is not written yet.
        generation : int

        Raises
        ------
        UserError
            If the run has fewer generations.
        """
        self.check_generation(generation)
        copy = type(self)(path, dict(self.attributes))
        copy.generations, copy.members = self.generations[:generation], self.members[:generation]
        copy.figures = [row for row in self.figures if row["generation"] < generation]
        for suite, rows in self.evaluations.items():
            if kept := [row for row in rows if row["generation"] <= generation]:
                copy.evaluations[suite] = kept
        return copy

    def choose_generation(self, generation: int | None, best: bool) -> int:
        """Return a generation: the given one, the best evaluated one, or the last.

        Parameters
        ----------
        generation : int or None
            None: the last one, or the best.
        best : bool
            Whether to take the best one by the held-out problems.

        Raises
        ------
        UserError
            If there is no such generation, or no evaluation to choose the best by.
        """
        if best:
            row = self.best()
            if row is None:
                raise UserError(f"--best: {self.path} has no evaluation")
            generation = int(row["generation"])
        chosen = self.num_generations if generation is None else generation
        self.check_generation(chosen)
        return chosen

    def check_generation(self, generation: int) -> None:
        """Raise UserError unless theta of a generation can be rebuilt from here."""
        if not 0 <= generation <= self.num_generations:
            raise UserError(f"generation {generation}: {self.path} has generations 0 to {self.num_generations}")


def steps_after(steps: Sequence[int], generation: int) -> Sequence[int]:
    """Return the steps of a path (`History.steps_to`) that are left from theta of a generation on the path."""
    return steps[steps.index(generation - 1) + 1 :] if generation else steps
