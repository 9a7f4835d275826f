"""Tasks of several turns, as `env:<name>`: an environment answers each completion until the episode is over.

The environment is one that ships with esmpi (`env:wordle`), a class in a file of the user's own
(`env:path/to/file.py:Class`), a coroutine function there that asks the model (`env:path/to/file.py:function`), or one
of the library verifiers (`env:verifiers:name`).
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

from esmpi import plugins
from esmpi.config.keys import key
from esmpi.data.problem import Example, Part, Prompt
from esmpi.errors import UserError, nearest, said
from esmpi.tasks import tools, verifiers_env
from esmpi.tasks._chance import seed_generators
from esmpi.tasks._speech import checked_messages, checked_text, is_tool_turn
from esmpi.tasks.base import Progress, Sample, Score, Task
from esmpi.tasks.chat import ChatFormat, ChatTaskConfig, chat, reply
from esmpi.tasks.environments.base import Environment
from esmpi.tasks.programs import as_environment

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

PREFIX = "env:"
_ROOM = "esmpi.tasks.environments"
_MOST_KEPT, _MOST_CHARACTERS = 10_000, 100_000_000
"""Episodes that a process keeps, and the length of all they said; an older one is played again from its beginning if it
goes on."""
_FOLLOWING = ("observation", "append", "prompt")


@dataclass(frozen=True, kw_only=True)
class EnvConfig(ChatTaskConfig):
    """Keys of all environments."""

    params: dict[str, Any] = field(default_factory=dict)
    """What the environment is made with, such as {num_guesses: 6}."""
    max_turns: int = key(10, minimum=1, maximum=10_000)
    """Most completions of an episode. The environment then says what the episode is worth so far."""
    max_tokens: int | None = key(None, minimum=1)
    """An episode ends with the completion by which it has this many new tokens. sampling.max_tokens limits each
    completion. null: no limit."""
    system: str = ""
    """System text, for environments that begin with a text and not with messages."""
    correct_from: float = 1.0
    """An episode counts as right, for accuracy, from this reward on, unless the environment says itself."""


class EnvTask(Task):
    """Examples are what the environment takes.

    Raises
    ------
    UserError
        If there is no such environment, or it does not take `task.params`.
    """

    name: ClassVar[str] = f"{PREFIX}<name>"
    config_type: ClassVar[type[EnvConfig]] = EnvConfig
    default_sampling: ClassVar[dict[str, Any]] = {"max_tokens": 256, "temperature": 0.0}
    takes_turns = True

    def __init__(self, config: EnvConfig, source: bytes = b""):
        """Find the environment; `source` is what another process has read from its file."""
        self.config = config
        self._type, self.source = _find(config.name.removeprefix(PREFIX), source)
        self.max_turns, self.max_episode_tokens = config.max_turns, config.max_tokens
        self.tools = tools.schemas(self._type.tools)
        self._pattern = self._open()
        self._kept: OrderedDict[Hashable, list[_Episode]] = OrderedDict()
        self._length = 0

    @classmethod
    def goes_by(cls, name: str) -> bool:
        return name.startswith(PREFIX)

    @classmethod
    def make(cls, config: EnvConfig, source: bytes) -> Task:
        return cls(config, source)

    def _open(self) -> Environment:
        try:
            return self._type(**copy.deepcopy(self.config.params))
        except UserError:
            raise
        except Exception as error:  # the user's own class: whatever it raises is about these parameters
            raise UserError(
                f"task.params: {self.config.name} does not take {self.config.params}: {said(error)}"
            ) from error

    def prompt(self, example: Example) -> Prompt:
        episode = self._begin(example, 0)
        episode.close()
        return episode.conversation

    def score(self, completion: str, example: Example) -> Score:
        raise TypeError("an episode of several turns is played, not scored")

    def score_together(self, samples: Sequence[Sample], progress: Progress) -> list[Score]:
        return [self._after(sample) for sample in samples]

    def _after(self, sample: Sample) -> Score:
        assert sample.turns is not None
        after = self.play(sample.example, sample.turns.seed, sample.turns.completions, sample.turns.is_over)
        return after if isinstance(after, Score) else Score(reward=None, correct=False, goes_on=after)

    def play(self, example: Example, seed: int, completions: Sequence[str], is_over: bool = False) -> Prompt | Score:
        """Return what follows the completions of an episode: the next prompt, with all that was said, or the score.

        This is a function of its arguments alone: the state of an episode is kept for speed only.

        Parameters
        ----------
        example : dict
        seed : int
        completions : sequence of str
            Those of all turns so far; of none, the first prompt follows.
        is_over : bool
            Whether a limit ends the episode here.
        """
        words = tuple(completions)
        identity = json.dumps(example, sort_keys=True), seed
        # a limit ends an episode that already has all these turns
        known = len(words) - (not is_over)
        episode = self._take((identity, words[:known])) if known >= 0 else None
        if episode is None:
            seed_generators(seed)
            episode, known = self._begin(example, seed), 0
        try:
            for turn, completion in enumerate(words[known:], known + 1):
                seed_generators(seed, words[:turn])  # as if all turns before had been played in this process
                episode.advance(completion, self.config.max_turns)
            if is_over and not episode.is_over:
                episode.stop()
        except BaseException:
            episode.close()
            raise
        if episode.is_over:
            episode.close()
            return episode.score(self.config.correct_from)
        self._keep((identity, words), episode)
        return episode.conversation

    def _keep(self, place: Hashable, episode: _Episode) -> None:
        self._kept.setdefault(place, []).append(episode)
        self._kept.move_to_end(place)
        self._length += episode.length
        while len(self._kept) > 1 and (len(self._kept) > _MOST_KEPT or self._length > _MOST_CHARACTERS):
            _, dropped = self._kept.popitem(last=False)
            for one in dropped:
                self._length -= one.length
                one.close()

    def _take(self, place: Hashable) -> _Episode | None:
        """Return an episode that was kept at this place, if there is one: all there are alike."""
        episodes = self._kept.get(place, [])
        episode = episodes.pop() if episodes else None
        self._length -= episode.length if episode is not None else 0
        if not episodes:
            self._kept.pop(place, None)
        return episode

    def _begin(self, example: Example, seed: int) -> _Episode:
        environment, config = self._open(), self.config

        def as_prompt(first: Prompt) -> Prompt:
            if not isinstance(first, str):
                return checked_messages(first)
            checked_text(first)
            # the model's own chat template describes the tools, if it can: see `esmpi.session`
            described = "" if config.chat_format == "model" else tools.described(self.tools)
            system = "\n\n".join(part for part in (config.system, described) if part)
            return chat(config.chat_format, first, system)

        return _Episode(environment, config.chat_format, as_prompt, environment.reset(copy.deepcopy(example), seed))

    def check(self, example: Example) -> None:
        try:
            self._pattern.check(example)
            environment = self._open()
            first = environment.reset(copy.deepcopy(example), 0)
            environment.close()
            checked_text(first) if isinstance(first, str) else checked_messages(first)
        except Exception as error:  # the user's own class: whatever it raises is about this example
            raise ValueError(f"no episode can begin with {reprlib.repr(example)}: {said(error)}") from None
        if not isinstance(first, str):
            if self.config.chat_format != "model":
                raise ValueError(
                    f"the prompt is messages, which go through the model's own chat template: set "
                    f"task.chat_format=model, not {self.config.chat_format}"
                )
            if self.config.system:
                raise ValueError(
                    "the prompt is messages, with a system turn of their own if any: leave task.system out"
                )

    def key(self, example: Example) -> Hashable:
        found = self._pattern.key(example)
        return json.dumps(example, sort_keys=True, default=str) if found is None else found

    def problems(self, part: Part) -> list[Example]:
        return self._pattern.problems(part)

    def generator(self, rng: np.random.Generator) -> Callable[[], Example]:
        return self._pattern.generator(rng)


class _Episode:
    """An environment with all that was said."""

    def __init__(
        self, environment: Environment, chat_format: ChatFormat, as_prompt: Callable[[Prompt], Prompt], first: Prompt
    ):
        self._environment = environment
        self._chat_format = chat_format
        self._first = as_prompt
        self.conversation = as_prompt(first)
        """The next prompt: a text, or messages."""
        self.is_over = False
        self._num_turns = 0
        self._rewards: list[float] = []
        self._has_none = False
        self._verdicts: dict[str, bool] = {}
        self._figures: dict[str, float] = {}

    def advance(self, completion: str, max_turns: int) -> None:
        """Take the completion of a turn to the environment."""
        self._num_turns += 1
        calls = tools.calls_in(completion) if self._environment.tools else []
        if calls:
            answer: Any = [{"role": "tool", "content": tools.result_of(self._environment, call)} for call in calls]
        else:
            answer = self._environment.step(completion)
        found = self._take("step", answer)
        if (observation := found.get("observation")) is not None:
            self._go_on(completion, observation)
        elif (more := found.get("append")) is not None:
            self._append(completion, more)
        elif (prompt := found.get("prompt")) is not None:
            self.conversation = self._first(prompt)
        else:
            self.is_over = True
            return
        if self._num_turns >= max_turns:
            self.stop()

    @property
    def length(self) -> int:
        """Characters of the conversation."""
        said = self.conversation
        return len(said) if isinstance(said, str) else sum(len(turn["content"]) for turn in said)

    def close(self) -> None:
        """Let the environment release what it holds; what goes wrong there changes no reward."""
        try:
            self._environment.close()
        except Exception as error:
            log.warning("`close` of an environment failed: %s", said(error))

    def stop(self) -> None:
        """End the episode at a limit."""
        self.is_over = True
        self._take("finish", self._environment.finish())

    def score(self, correct_from: float) -> Score:
        """Return what the episode is worth."""
        # as with several reward functions: None counts for nothing, and nothing but None means no reward
        reward = math.fsum(self._rewards) if self._rewards or not self._has_none else None
        return Score(
            reward=reward,
            correct=self._verdicts.get("correct", reward is not None and reward >= correct_from),
            parsed=self._verdicts.get("parsed", True),
            figures={"turns": float(self._num_turns)} | self._figures,
        )

    def _take(self, method: str, answer: Any) -> Mapping[str, Any]:
        """Add up what an answer of the environment says of the reward; return it as a dict."""
        if isinstance(answer, str | list):
            answer = {"observation": answer}
        if isinstance(answer, Real):
            answer = {"reward": answer}
        if not isinstance(answer, Mapping):
            raise TypeError(f"`{method}` returned {reprlib.repr(answer)}, which is no text, list, number or dict")
        following = [name for name in _FOLLOWING if answer.get(name) is not None]
        if len(following) > (method == "step"):
            raise TypeError(f"`{method}` returned {' and '.join(following)}: at most one of them may be, by `step`")
        for name, value in answer.items():
            self._record(method, name, value)
        return answer

    def _record(self, method: str, name: str, value: Any) -> None:
        if name in ("correct", "parsed"):
            # NumPy's truth values as well
            if not isinstance(value, bool) and getattr(getattr(value, "dtype", None), "kind", "") != "b":
                raise TypeError(f"`{name}` from `{method}` is {reprlib.repr(value)}, not true or false")
            self._verdicts[name] = bool(value)
        elif name == "turns":
            raise TypeError(f"`{method}` returned `turns`, which esmpi counts itself: give it another name")
        elif name == "reward" and value is None:
            self._has_none = True
        elif name not in _FOLLOWING:
            if not isinstance(value, Real):
                raise TypeError(f"`{name}` from `{method}` is {reprlib.repr(value)}, not a number")
            if name == "reward":
                self._rewards.append(float(value))
            else:
                self._figures[name] = float(value)

    def _go_on(self, completion: str, observation: Any) -> None:
        if isinstance(self.conversation, str):
            if observation and isinstance(observation, list) and all(is_tool_turn(turn) for turn in observation):
                observation = "\n".join(tools.response(turn["content"]) for turn in observation)
            if not isinstance(observation, str):
                checked_messages(observation)
                raise TypeError("`step` returned messages, but the conversation is a text: set task.chat_format=model")
            self.conversation += completion + reply(self._chat_format, checked_text(observation))
            return
        turns = [{"role": "user", "content": observation}] if isinstance(observation, str) else observation
        if not turns:
            raise TypeError("`step` returned no message")
        said = {"role": "assistant", "content": completion}
        self.conversation = [*self.conversation, said, *checked_messages(turns)]

    def _append(self, completion: str, more: str) -> None:
        if not isinstance(self.conversation, str):
            raise TypeError(
                "`append` goes on in the model's own turn, which its chat template has closed: set task.chat_format to "
                "none, chatml, llama3 or gemma"
            )
        self.conversation += completion + checked_text(more)


def _find(name: str, source: bytes) -> tuple[type[Environment], bytes]:
    """Return an environment by its name or its place, with the source of its file if it has one."""
    if name.startswith(verifiers_env.PREFIX):
        return verifiers_env.as_verifiers_environment(name.removeprefix(verifiers_env.PREFIX)), b""
    if not plugins.names_a_file(name):
        names = plugins.modules(_ROOM)
        if name not in names:
            raise UserError(f"task.name: no environment {name}: there are {', '.join(names)}")
        [found] = [one for one in plugins.classes(_ROOM, Environment) if one.__module__ == names[name]]
        return found, b""
    path, _, attribute = name.rpartition(":")
    source = source or plugins.source_of("task.name", path)
    module = plugins.execute_file("task.name", path, source)
    own = getattr(module, attribute, None)
    if inspect.iscoroutinefunction(own):
        return as_environment(own, module), source
    if not (isinstance(own, type) and issubclass(own, Environment)):
        there = [
            key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Environment)
        ]
        raise UserError(
            f"task.name: {path} has no class {attribute} that is a subclass of esmpi.Environment, and no function "
            f"`async def {attribute}`{nearest(attribute, there)}"
        )
    if missing := sorted(own.__abstractmethods__):
        raise UserError(f"task.name: {attribute} of {path} lacks {', '.join(missing)}")
    return own, source
