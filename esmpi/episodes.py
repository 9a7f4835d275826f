"""Episodes: completions of several turns, between which a task answers. All episodes of a batch take turns together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from esmpi.config.sections import Config
from esmpi.data.problem import Prompt
from esmpi.engines import Completion, Engine, Request, Sampling
from esmpi.errors import UserError
from esmpi.scoring import RemoteScorer, Scored, Scorer
from esmpi.tasks import Example, Sample, Score, Task, Turns

_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of an episode's turns: requests side by side have seeds side by side."""


@dataclass(frozen=True, kw_only=True)
class Episode(Completion):
    """What was said after one prompt in all turns. `text` is everything after that prompt, with the task's answers."""

    turns: tuple[tuple[str, Completion], ...]
    """Prompt and completion of each turn."""
    score: Score
    failure: tuple[str, str] | None = None
    """The kind of failure, and what went wrong; None if the score could be computed."""
    spans: tuple[tuple[float, float], ...] = ()
    """When processes worked on answers, by `time.perf_counter`; each is with one episode of a batch."""


class Player(Protocol):
    """What episodes are played with: see `esmpi.session.Setup`."""

    config: Config
    engine: Engine
    scorer: Scorer | RemoteScorer
    task: Task

    def render(self, prompt: Prompt) -> str:
        """Return the text of a prompt."""


@dataclass
class _Open:
    """An episode that is not over."""

    place: int
    request: Request
    example: Example
    turns: list[tuple[str, Completion]] = field(default_factory=list)
    prompt: str = ""
    cut: bool = False
    """Whether a limit ends it here."""
    spans: list[tuple[float, float]] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(completion.num_tokens for _, completion in self.turns)

    def as_sample(self) -> Sample:
        said = tuple(completion.text for _, completion in self.turns)
        turns = Turns(seed=self.request.seed, completions=said, is_over=self.cut, place=self.place)
        return Sample(completion=said[-1] if said else "", example=self.example, turns=turns)

    def next_request(self) -> Request:
        seed = (self.request.seed + len(self.turns) * _STRIDE) % 2**63
        return replace(self.request, prompt=self.prompt, seed=seed)

    def close(self, score: Score, failure: tuple[str, str] | None) -> Episode:
        return Episode(
            text=_transcript(self.turns),
            num_tokens=self.num_tokens,
            truncated=self.cut or any(completion.truncated for _, completion in self.turns),
            turns=tuple(self.turns),
            score=score,
            failure=failure,
            spans=tuple(self.spans),
        )


def play(player: Player, requests: Sequence[Request], examples: Sequence[Example], sampling: Sampling) -> list[Episode]:
    """Play an episode for each request, all at once, until each is over.

    Parameters
    ----------
    player : Player
    requests : sequence of Request
        Their prompts are not used: the task begins each episode.
    examples : sequence of dict
        The problem of each request.
    sampling : Sampling
        Of each turn.
    """
    done: dict[int, Episode] = {}
    left = {place: _Open(place, *both) for place, both in enumerate(zip(requests, examples, strict=True))}
    while left:
        answers = player.scorer.submit([episode.as_sample() for episode in left.values()]).result()
        next(iter(left.values())).spans.extend(answers.spans)
        for place, (number, score) in enumerate(zip(list(left), answers.scores, strict=True)):
            failure = answers.failed.get(place)
            if failure is not None or score.goes_on is None:
                done[number] = left.pop(number).close(score, failure)
                continue
            try:
                left[number].prompt = player.render(score.goes_on)
            except UserError as error:  # the chat template refuses what the environment said
                failed = Score(reward=player.config.scoring.failure_reward, correct=False)
                done[number] = left.pop(number).close(failed, ("raised", str(error)))
        _cut(player, list(left.values()), sampling)
        asked = [episode for episode in left.values() if not episode.cut]
        completions = player.engine.generate([episode.next_request() for episode in asked], sampling) if asked else []
        for episode, completion in zip(asked, completions, strict=True):
            episode.turns.append((episode.prompt, completion))
    return [done[place] for place in range(len(requests))]


def scored(episodes: Sequence[Episode]) -> Scored:
    """Return what episodes are worth, as what scores completions does."""
    failures = [episode.failure for episode in episodes if episode.failure is not None]
    result = Scored(scores=[episode.score for episode in episodes], answers=[None] * len(episodes))
    result.failures.update(Counter(kind for kind, _ in failures))
    result.error = failures[0][1] if failures else None
    result.failed = {place: one.failure for place, one in enumerate(episodes) if one.failure is not None}
    result.spans = [span for episode in episodes for span in episode.spans]
    return result


def spoken(prompts: Sequence[str], completions: Sequence[Completion]) -> tuple[list[str], list[Completion]]:
    """Return prompts and completions as the engine saw them: those of each turn, where these are episodes."""
    turns = [
        turn
        for prompt, completion in zip(prompts, completions, strict=True)
        for turn in (completion.turns if isinstance(completion, Episode) else ((prompt, completion),))
    ]
    return [prompt for prompt, _ in turns], [completion for _, completion in turns]


def first_prompts(requests: Sequence[Request], completions: Sequence[Completion]) -> list[str]:
    """Return what the engine saw first for each request."""
    return [
        completion.turns[0][0] if isinstance(completion, Episode) and completion.turns else request.prompt
        for request, completion in zip(requests, completions, strict=True)
    ]


def _cut(player: Player, episodes: Sequence[_Open], sampling: Sampling) -> None:
    """Mark the episodes that have no room for another turn, or all the tokens that they may have."""
    most, room = player.task.max_episode_tokens, player.engine.max_length
    lengths = player.engine.prompt_lengths([episode.prompt for episode in episodes]) if episodes and room else []
    for place, episode in enumerate(episodes):
        is_full = room is not None and lengths[place] + sampling.max_tokens > room
        episode.cut = is_full or (most is not None and episode.num_tokens >= most)


def _transcript(turns: Sequence[tuple[str, Completion]]) -> str:
    """Return all that was said after the first prompt."""
    if not turns:
        return ""
    (first, _), (last, completion) = turns[0], turns[-1]
    if last.startswith(first):
        return last.removeprefix(first) + completion.text
    # a chat template may leave out parts of earlier turns, such as thoughts
    return "\n\n".join(completion.text for _, completion in turns)
