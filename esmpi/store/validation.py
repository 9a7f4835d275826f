"""Check that the parts of a run file, each well formed, fit together. A seal shows damage, but not a made-up file."""

from typing import Any

from esmpi.config.sections import is_suite_name
from esmpi.store.history import History

_KINDS = {
    **{"config": dict, "provenance": list, "tensors": list, "aliases": dict, "model_digest": int, "forks": list},
    **{"log_only": bool, "run_uuid": str, "creator": str, "data_digest": str, "task_digest": str},
    "suite_digests": dict,
    "events": list,
}
_FORK_KINDS = {"run_uuid": str, "generation": int, "path": str, "config": dict}
_EVENT_KINDS = {"generation": int, "action": str, "reason": str}
_MOST_RANKS = 10**6
_NAMED = (("run", "name"), ("es", "generations"), ("model", "path"), ("task", "name"))
"""The keys of the config that every run has; a command that needs others checks the config by itself."""


def check_contents(run: History) -> None:
    """Raise ValueError if the parts of a run file do not fit together."""
    _check_attributes(run.attributes)
    if len(run.members) != run.num_generations:
        raise ValueError(f"{len(run.members)} rows of members for {run.num_generations} generations")
    for generation, made in enumerate(run.generations):
        if not 0 <= made["shrink"] <= 1:
            raise ValueError(f"generation {generation} has shrink {made['shrink']}")
    if run.profile is not None:
        generations = run.profile["generation"]
        if not generations.size or not (0 <= generations.min() == generations.max() < run.num_generations):
            raise ValueError("the profile is not of one generation")
        if not (run.profile["rank"].min() >= 0 and run.profile["rank"].max() < _MOST_RANKS):
            raise ValueError("the profile has impossible ranks")
        if not (run.profile["seconds_start"] <= run.profile["seconds_end"]).all():
            raise ValueError("the profile has phases that end before they begin")
    for row in run.figures:
        _check_generation("further figures are", row, run.num_generations - 1)
    for suite, rows in run.evaluations.items():
        if not is_suite_name(suite):
            raise ValueError(f"{suite!r} cannot be the name of a suite")
        for row in rows:
            if not {"generation", "accuracy", "reward_mean"} <= row.keys():
                raise ValueError("an evaluation lacks a column")
            _check_generation("an evaluation is", row, run.num_generations)


def _check_generation(what: str, row: dict[str, Any], last: int) -> None:
    if not (isinstance(row.get("generation"), int) and 0 <= row["generation"] <= last):
        raise ValueError(f"{what} of generation {row.get('generation')}")


def _check_attributes(attributes: dict[str, Any]) -> None:
    for name, kind in _KINDS.items():
        if not isinstance(attributes[name], kind):
            raise ValueError(f"attribute {name} is no {kind.__name__}")
    for section, key in _NAMED:
        keys = attributes["config"].get(section)
        if not isinstance(keys, dict) or key not in keys:
            raise ValueError(f"attribute config has no {section}.{key}")
    names = (*attributes["tensors"], *attributes["aliases"].values())
    if not all(isinstance(name, str) for name in names):
        raise ValueError("attributes tensors and aliases: not all of them are names")
    for start in attributes["provenance"]:
        if not isinstance(start, dict) or not isinstance(start.get("packages", {}), dict):
            raise ValueError("attribute provenance is no list of starts")
    for fork in attributes["forks"]:
        if not isinstance(fork, dict) or not all(isinstance(fork.get(n), kind) for n, kind in _FORK_KINDS.items()):
            raise ValueError("attribute forks is no list of forks")
    for event in attributes["events"]:
        if not isinstance(event, dict) or not all(isinstance(event.get(n), kind) for n, kind in _EVENT_KINDS.items()):
            raise ValueError("attribute events is no list of events")
        # theta is only ever taken back: otherwise its path from the base model would have no end
        if event["action"] == "restore" and not (
            isinstance(event.get("to"), int) and 0 <= event["to"] <= event["generation"]
        ):
            raise ValueError(f"an event takes theta from generation {event['generation']} to {event.get('to')!r}")
