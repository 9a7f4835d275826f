"""What an environment is: it begins an episode with a prompt and answers each completion until the episode is over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi.data.problem import Example, Part, Prompt

if TYPE_CHECKING:
    import numpy as np

Answer = Prompt | float | Mapping[str, Any]
"""What `Environment.step` returns; see there."""


class Environment(ABC):
    """An episode of several turns. For each episode there is one object.

    An environment must be deterministic: after the same `reset` and the same completions it is in the same state. When
    the process that it lives in is lost, its episodes are played again from the beginning in another one.

    Parameters
    ----------
    **params
        What the config's `task.params` says.
    """

    tools: ClassVar[Sequence[Callable[..., Any]]] = ()
    """Functions that the model may call, with type hints and a docstring in the style of Google that describes each
    argument. They are described to the model, and a completion with calls is answered by what they return, without
    `step`. Methods take the environment as their first argument."""

    @abstractmethod
    def reset(self, example: Example, seed: int) -> Prompt:
        """Begin an episode; return the first prompt, a text or messages (`role`, `content`).

        Parameters
        ----------
        example : dict
            The problem.
        seed : int
            For environments with chance, 0 to 2^63 - 1. It depends on the run's seed, the generation, the place of the
            problem in the batch and the number of the sample, and is the same for all members.
        """

    @abstractmethod
    def step(self, completion: str) -> Answer:
        """Answer a completion.

        Returns
        -------
        str, list, float or dict
            A text is the user's next message, and a list is several messages: the episode goes on. A number is a
            reward, and ends the episode. A dict may have `reward`, the reward of this turn, which is 0 without it;
            `correct` and `parsed`, the verdicts at the end; further numbers, which are logged; and `observation`, a
            text or messages, or `append`, a text that the model goes on from in the same turn, or `prompt`, which
            takes the place of the conversation. Without any of these three it ends the episode. The rewards of all
            turns are added up; None counts for nothing, and an episode with no reward but None is left out.
        """

    def finish(self) -> float | Mapping[str, Any]:
        """Return the reward of an episode that a limit ends: that of this moment, 0 by default, or a dict as above."""
        return 0.0

    def close(self) -> None:  # noqa: B027  # most need none
        """Release what the episode holds, such as files or a simulator, after its end.

        It may be called more than once. Nothing calls it in a process that is killed.
        """

    def check(self, example: Example) -> None:
        """Raise ValueError, saying what is wrong, if `reset` cannot use `example`."""
        return

    def key(self, example: Example) -> Hashable:
        """Return what makes two examples the same problem; by default, everything in them."""
        return None

    def problems(self, part: Part) -> list[Example]:
        """Return the problems of a part that come with the environment; ValueError if it has none."""
        raise ValueError(f"the environment comes with no problems of its own: name a file as data.{part}")

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        """Return a function that draws an example each time it is called; ValueError if there is none."""
        raise ValueError("the environment cannot generate problems: name files as data.train and data.eval")
