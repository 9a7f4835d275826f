"""Environments of the library verifiers, as `env:verifiers:<name>`: programs that ask the model by the endpoint."""

from __future__ import annotations

import copy
import json
import reprlib
from collections.abc import Hashable
from functools import cache
from typing import Any, ClassVar

from esmpi.data.problem import Example, Part
from esmpi.errors import UserError, said
from esmpi.tasks.base import load_extra
from esmpi.tasks.programs import ModelClient, Program

PREFIX = "verifiers:"


class VerifiersEnvironment(Program):
    """An episode is a rollout, and its reward is that of the environment's rubric. Subclasses say which environment.

    Raises
    ------
    UserError
        If verifiers is not installed, or it cannot load the environment with these parameters.
    """

    environment: ClassVar[str]
    """Name of a package or module with `load_environment`."""

    def __init__(self, **params: Any):
        super().__init__(**params)
        self._loaded = _load(self.environment, json.dumps(params, sort_keys=True))

    def problems(self, part: Part) -> list[Example]:
        data = self._loaded.dataset if part == "train" else self._loaded.eval_dataset
        if data is None:
            raise ValueError(
                f"{self.environment} has no data set for this"
                + (": set data.eval=split, which holds some of its problems out" if part == "eval" else "")
            )
        examples = [dict(row) for row in data]
        try:
            json.dumps(examples)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the data set of {self.environment} has values that JSON cannot hold: {error}") from None
        return examples

    def key(self, example: Example) -> Hashable:
        # verifiers numbers the rows of each data set
        return json.dumps({name: value for name, value in example.items() if name not in ("id", "example_id")})


def as_verifiers_environment(name: str) -> type[VerifiersEnvironment]:
    """Return the environment of esmpi whose episodes are rollouts of an environment of verifiers."""

    async def roll_out(client: ModelClient, example: Example, **params: Any) -> dict[str, Any]:
        return await _roll_out(_load(name, json.dumps(params, sort_keys=True)), client, example)

    body = {"environment": name, "function": staticmethod(roll_out)}
    return type("VerifiersEnvironmentOf", (VerifiersEnvironment,), body)


@cache
def _load(name: str, params: str) -> Any:
    """Return an environment of verifiers; one object plays all episodes, as it does there."""
    verifiers = load_extra("verifiers", "env")
    try:
        loaded = verifiers.load_environment(name, **json.loads(params))
    except Exception as error:  # the environment's own code: whatever it raises is about its name and parameters
        raise UserError(f"task.name: verifiers cannot load {name} with {params}: {said(error)}") from error
    if not hasattr(loaded, "rubric") or not hasattr(loaded.rubric, "score_rollout"):
        raise UserError(f"task.name: {name} is {reprlib.repr(loaded)}, which is no environment of verifiers")
    return loaded


async def _roll_out(environment: Any, client: ModelClient, example: Example) -> dict[str, Any]:
    import openai

    its = {
        "prompt": copy.deepcopy(example["prompt"]),
        "answer": example.get("answer") or "",
        "task": example.get("task") or "default",
        "info": _info(example.get("info")),
    }
    if getattr(environment, "oai_tools", None):
        its["info"].setdefault("oai_tools", environment.oai_tools)  # as the library does when it generates
    own = openai.AsyncOpenAI(
        base_url=client.base_url,
        api_key=client.api_key,
        timeout=None,
        max_retries=0,  # a request that fails must not become two turns
        # this machine's own address needs neither certificates, which take long to load, nor a proxy
        http_client=openai.DefaultAsyncHttpxClient(verify=False, trust_env=False),
    )
    async with own:
        sampling = copy.deepcopy(environment.sampling_args)
        completion, state = await environment.rollout(own, "esmpi", **its, sampling_args=sampling)
        score = await environment.rubric.score_rollout(**its | {"completion": completion, "state": state})
    return {**{name: float(value) for name, value in score.metrics.items()}, "reward": float(score.reward)}


def _info(info: Any) -> dict[str, Any]:
    known: dict[str, Any] = json.loads(info) if isinstance(info, str) else dict(info or {})
    return known
