"""An engine as a model of lm-evaluation-harness. Importing this module imports the library."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from esmpi.data.batch import in_parts
from esmpi.engines import Completion, Engine, Request, Sampling
from esmpi.errors import UserError
from esmpi.mpi.comm import Comm
from esmpi.progress import Progress

_DEFAULT_MAX_TOKENS = 256
"""New tokens of a completion where the task says nothing, as with the harness's own models."""
_MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that tasks have for it; the first one counts most."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model says to a request, of types that JSON has."""

    text: str
    """The completion, or the continuation whose probability was asked for."""
    num_tokens: int
    truncated: bool = False
    logprob: float | None = None
    """Natural logarithm of the probability of a continuation; None for a completion."""
    is_greedy: bool | None = None
    """Whether greedy decoding would give this continuation; None for a completion, or where nobody asked."""

    @property
    def response(self) -> Any:
        """What the harness expects: a text, or a pair of log-probability and whether it is greedy."""
        # tasks with choices want some truth value, and only some of their metrics read it
        return self.text if self.logprob is None else (self.logprob, bool(self.is_greedy))


class EngineModel(LM):  # type: ignore[misc]  # the library has no types
    """An engine, with the weights that are live in it.

    Each method is collective: all ranks call it with the same requests, complete a share of them, and get the answers
    to all. Ranks take whole batches, so a request has the same neighbours however many ranks there are.

    Parameters
    ----------
    engine : Engine
    comm : Comm
    batch_size : int
        Most requests that the engine gets at once.
    seed : int
        Seed of the first request, for tasks that sample; the next one has the next seed.
    with_greedy : bool
        Whether to find out if continuations are greedy, for which the engine has to generate them.
    """

    def __init__(self, engine: Engine, comm: Comm, batch_size: int, seed: int = 0, with_greedy: bool = True):
        super().__init__()
        self._engine, self._comm, self._batch_size, self._seed = engine, comm, batch_size, seed
        self._with_greedy = with_greedy

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-probability and whether it is greedy."""
        return [answer.response for answer in self.answers(requests)]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the completion of each (context, keys of generation)."""
        return [answer.response for answer in self.answers(requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raise UserError: a perplexity is no accuracy."""
        raise UserError("lm-evaluation-harness: esmpi does not compute perplexities of whole texts")

    def answers(self, requests: Sequence[Instance]) -> list[Answer]:
        """Collective. Return the answer to each request, of type `loglikelihood` or `generate_until`."""
        groups: dict[Sampling | None, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[sampling_of(self._engine, request)].append(place)
        batches = [(how, part) for how, places in groups.items() for part in in_parts(places, self._batch_size)]
        mine = []
        with Progress("batches of lm-evaluation-harness answered") as progress:
            for number, (how, part) in enumerate(batches):
                if number % self._comm.size == self._comm.rank:
                    batch = [requests[place] for place in part]
                    found = self._score(batch) if how is None else self._complete(batch, how, part)
                    mine += [[place, asdict(answer)] for place, answer in zip(part, found, strict=True)]
                    progress(number + 1, len(batches))
        gathered = sorted(row for rows in self._comm.allgather_object(mine) for row in rows)
        return [Answer(**fields) for _, fields in gathered]

    def _complete(self, batch: Sequence[Instance], how: Sampling, places: Sequence[int]) -> list[Answer]:
        asked = [
            Request(prompt=request.args[0], seed=(self._seed + place) % 2**63)
            for request, place in zip(batch, places, strict=True)
        ]
        return [
            Answer(text=completion.text, num_tokens=completion.num_tokens, truncated=completion.truncated)
            for completion in self._engine.generate(asked, how)
        ]

    def _score(self, batch: Sequence[Instance]) -> list[Answer]:
        pairs = [split(self._engine, *request.args) for request in batch]
        continuations = [Completion(text="", num_tokens=len(ids), truncated=False, tokens=ids) for _, ids in pairs]
        logprobs = self._engine.logprobs([context for context, _ in pairs], continuations)
        greedy = self._greedy(pairs) if self._with_greedy else [None] * len(pairs)
        return [
            Answer(text=request.args[1], num_tokens=len(ids), logprob=sum(its), is_greedy=is_greedy)
            for request, (_, ids), its, is_greedy in zip(batch, pairs, logprobs, greedy, strict=True)
        ]

    def _greedy(self, pairs: Sequence[tuple[str, tuple[int, ...]]]) -> list[bool]:
        """Return whether greedy decoding after each context gives just these tokens."""
        found: dict[int, bool] = {}
        by_length: dict[int, list[int]] = defaultdict(list)
        for place, (_, ids) in enumerate(pairs):
            by_length[len(ids)].append(place)
        for length, places in by_length.items():
            asked = [Request(prompt=pairs[place][0]) for place in places]
            made = self._engine.generate(asked, Sampling(max_tokens=length))
            for place, completion in zip(places, made, strict=True):
                found[place] = completion.tokens == pairs[place][1]
        return [found[place] for place in range(len(pairs))]


def split(engine: Engine, context: str, continuation: str) -> tuple[str, tuple[int, ...]]:
    """Return a prompt and the tokens that follow it, so that together they are context and continuation.

    As in the harness, blanks at the end of the context belong to the continuation, whose tokens are those that the
    whole text has more than the context; and an empty context is the token that starts a text.

    Raises
    ------
    UserError
        If there is no token to score, or nothing that starts a text.
    """
    tokenizer = engine.tokenizer
    if not context.strip():
        continuation = context + continuation
        ids = tuple(tokenizer.encode(continuation, add_special_tokens=False))
        start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        prompt = next((text for text in ("", tokenizer.decode([start])) if tokenizer.encode(text) == [start]), None)
        if prompt is None:
            raise UserError("a context is empty, and the model's tokenizer has no text for its first token")
        ids = ids[1:] if ids[:1] == (start,) else ids
    else:
        prompt = context.rstrip()
        whole = tokenizer.encode(prompt + context[len(prompt) :] + continuation)
        ids = tuple(whole[len(tokenizer.encode(prompt)) :])
    if not ids:
        raise UserError(f"the continuation {continuation!r} has no token of its own after its context")
    return prompt, ids


def sampling_of(engine: Engine, request: Instance) -> Sampling | None:
    """Return how the harness's keys of generation sample with this engine; None if a request generates nothing.

    Raises
    ------
    UserError
        For a type of request, or a key, that esmpi does not have.
    """
    if request.request_type == "loglikelihood":
        return None
    if request.request_type != "generate_until":
        raise UserError(
            f"its requests are of type {request.request_type}, which has no accuracy: esmpi answers loglikelihood (so "
            f"multiple_choice, too) and generate_until"
        )
    keys = dict(request.args[1])
    max_tokens = [value for value in (keys.pop(name, None) for name in _MAX_TOKENS) if value is not None]
    until = keys.pop("until", None) or []
    # as in the harness: without do_sample, the temperature decides
    temperature = float(keys.pop("temperature", None) or (1.0 if keys.get("do_sample") else 0.0))
    if not keys.pop("do_sample", temperature > 0):
        temperature = 0.0
    further = {name: keys.pop(name) for name in ("top_p", "top_k", "min_p", "repetition_penalty") if name in keys}
    if temperature == 0:
        further = {name: value for name, value in further.items() if name == "repetition_penalty"}
    if keys:
        raise UserError(f"its generation_kwargs have {', '.join(map(str, keys))}, which esmpi does not have")
    stop = list(dict.fromkeys(text for text in ([until] if isinstance(until, str) else until) if text))
    # a special token is not part of a completion's text
    special = {
        token.content: number
        for number, token in getattr(engine.tokenizer, "added_tokens_decoder", {}).items()
        if token.special
    }
    return Sampling(
        max_tokens=int(max_tokens[0]) if max_tokens else _DEFAULT_MAX_TOKENS,
        temperature=temperature,
        stop=tuple(text for text in stop if text not in special),
        stop_token_ids=tuple(special[text] for text in stop if text in special),
        **further,
    )


def check(engine: Engine, requests: Sequence[Instance]) -> None:
    """Raise UserError for a request that an engine cannot answer, or that the model has no room for."""
    if getattr(engine, "tokenizer", None) is None:
        raise UserError("the engine has no tokenizer, by which the harness's requests are counted in tokens")
    for how in {sampling_of(engine, request) for request in requests}:
        if how is not None:
            engine.check(how)
    limit = engine.max_length
    for request in requests:
        how = sampling_of(engine, request)
        if how is None:
            prompt, ids = split(engine, *request.args)
            num_new, what = len(ids) + 1, "those of the continuation"  # vLLM makes one more token than it scores
        else:
            prompt, num_new, what = request.args[0], how.max_tokens, f"{how.max_tokens} new ones"
        length = len(engine.tokenizer.encode(prompt))
        if not length:
            raise UserError("a prompt is empty")
        if limit is not None and length + num_new > limit:
            raise UserError(
                f"a prompt of {length} tokens and {what} are more than the model's {limit} positions: lower "
                f"num_fewshot, or max_gen_toks in the task's generation_kwargs"
            )
