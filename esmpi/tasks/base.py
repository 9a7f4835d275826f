"""What a task is: it turns an example into a prompt and a completion into a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from esmpi.config.sections import TaskConfig
from esmpi.data.problem import Example, Part, Prompt
from esmpi.errors import UserError
from esmpi.tasks.calls import Calls

if TYPE_CHECKING:
    import numpy as np

Scope = Literal["completion", "group", "batch"]
"""What a task scores at once: a completion; all completions of a prompt; or all of a member's in a generation, and in
evaluations all of `data.batch_size` problems. It depends on the config alone, not on ranks, waves or mini-batches."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What a model has said in an episode so far."""

    seed: int
    """For chance in the episode."""
    completions: tuple[str, ...]
    """Those of all turns; none at the beginning."""
    is_over: bool = False
    """Whether a limit ends the episode here."""
    place: int = 0
    """The episode's number in its batch."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion to score."""

    completion: str
    """The text after the prompt."""
    example: Example
    tokens: tuple[int, ...] = ()
    """The completion's tokens, if the task `needs_tokens`."""
    turns: Turns | None = None
    """The episode, if the task `takes_turns`."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, for rewards that change with it."""

    generation: int = 0
    """Of theta: how many updates it has had."""
    num_generations: int = 0
    """Length of the run, or that of its schedules."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one completion is worth. Reward and accuracy are never mixed."""

    reward: float | None
    """What ES maximises; higher is better. None: no reward applies, and the completion counts neither for the fitness
    nor for the accuracy."""
    correct: bool
    """Whether the answer is right: accuracy is the share of completions with `correct`."""
    parsed: bool = True
    """False if no answer could be read from the completion, right or wrong."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further numbers that are logged; a task gives the same names for each completion."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What is recorded with the completion alone, of types that JSON has."""
    goes_on: Prompt | None = None
    """If an episode is not over, what the engine completes next. There is no reward then."""


class Task(ABC):
    """A set of problems with their reward. Tasks know neither MPI nor engines."""

    name: ClassVar[str]
    """What `task.name` of the config says, or the form of it."""
    config_type: ClassVar[type[TaskConfig]]
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 1024, "temperature": 0.0}
    """Keys of the config's section `sampling` for what the config leaves open."""
    source: bytes = b""
    """The program, of the user's own, that computes the rewards; empty for a task of an installed package."""
    scope: Scope = "completion"
    """What `score_together` gets at once."""
    needs_tokens: bool = False
    """Whether samples come with their tokens."""
    is_async: bool = False
    """Whether `score_async` is called in place of `score_together`."""
    takes_turns: bool = False
    """Whether a completion is answered until an episode is over. `score_together` then gets the `turns` of each sample,
    and its scores say what `goes_on`."""
    max_turns: int = 1
    """Most completions of an episode."""
    max_episode_tokens: int | None = None
    """An episode ends with the turn by which it has this many new tokens. None: no limit."""
    tools: Sequence[Mapping[str, Any]] = ()
    """JSON schemas of functions that the model is told of."""

    @abstractmethod
    def __init__(self, config: Any):
        """Take the task's section of the config, an instance of `config_type`."""

    @classmethod
    def goes_by(cls, name: str) -> bool:
        """Return whether a `task.name` of the config means this task."""
        return name == cls.name

    @classmethod
    def make(cls, config: Any, source: bytes) -> Task:
        """Return the task of a config; `source` is what another process has read as `Task.source`."""
        return cls(config)

    @abstractmethod
    def prompt(self, example: Example) -> Prompt:
        """Return what the engine completes."""

    @abstractmethod
    def score(self, completion: str, example: Example) -> Score:
        """Score one completion (the text after the prompt). Text of a model is executed in `esmpi.sandbox` only."""

    def score_together(self, samples: Sequence[Sample], progress: Progress) -> Sequence[Score | BaseException]:
        """Score what belongs together by `scope`; override it for rewards that compare completions.

        Parameters
        ----------
        samples : sequence of Sample
            One, with the scope "completion". The samples of a prompt stand side by side.
        progress : Progress

        Returns
        -------
        sequence of Score or BaseException
            One for each sample: its score, or why it alone has none. What is raised is the fate of all samples.
        """
        return [self.score(sample.completion, sample.example) for sample in samples]

    async def score_async(
        self, samples: Sequence[Sample], progress: Progress, call: Calls
    ) -> Sequence[Score | BaseException]:
        """Score what belongs together, as `score_together` does, while other samples are being scored.

        It makes the calls that take time, such as of a server, by `call`, which limits and repeats them as the config
        says: `await call(lambda: ask(...))`.
        """
        raise NotImplementedError

    def prepare(self) -> None:  # noqa: B027  # most tasks need none
        """Load what scoring needs. Called once in each process that scores, before its first completion."""

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raise ValueError, saying what is wrong, if this task cannot use `example`."""

    @abstractmethod
    def key(self, example: Example) -> Hashable:
        """Return what makes two examples the same problem (train and held-out must not share one)."""

    def answer(self, completion: str, example: Example) -> str | None:
        """Return the answer that a completion gives, None if none can be read; called after `score`, where it runs.

        Completions vote by it, in `es.fitness: majority` and in ensembles. So equal answers must be equal texts, and
        completions with equal answers must be equally right.
        """
        raise NotImplementedError

    @property
    def has_answers(self) -> bool:
        """Whether the task says what a completion's answer is."""
        return type(self).answer is not Task.answer

    def problems(self, part: Part) -> list[Example]:
        """Return the problems of a part that come with the task (`data.train: builtin`).

        Raises
        ------
        ValueError
            If the task has none.
        """
        raise ValueError(f"task {self.name} comes with no problems of its own: name a file as data.{part}")

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        """Return a function that draws one example each time it is called.

        Raises
        ------
        ValueError
            If the task has no generator; its problems then come from files.
        """
        raise ValueError(
            f"task {self.name} cannot generate problems: name files as data.train and data.eval, or `builtin` for the "
            f"problems that come with a task"
        )


def load_extra(module: str, extra: str) -> ModuleType:
    """Import a library that a task needs and that is not one of esmpi's own requirements.

    Raises
    ------
    UserError
        If it is not installed, naming the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"{error}: this task needs {module}: pip install 'esmpi[{extra}]'") from None
