"""Whether a run is still the same run: its config, its base model, its problems, and the file of its task.

The field of each key says what a change of it means (`esmpi.config.keys.ChangesResult`). For a key that only says
where something is read from, a digest of what was read decides.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esmpi.config.differences import Difference, differences
from esmpi.config.keys import default_of
from esmpi.config.problems import GENERATED, HELD_OUT
from esmpi.config.reader import fields_of
from esmpi.config.sections import Config
from esmpi.errors import UserError
from esmpi.masking import masked
from esmpi.store.run_file import RunFile
from esmpi.wording import counted

_ADDED = {
    "task": {"chat_template_kwargs"},
    "sampling": {
        *("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "bad_words"),
        *("stop", "include_stop", "stop_token_ids"),
    },
}
"""Keys that are newer than the first run files, which have digests without them."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Digests of what a start of a run has read, besides the model."""

    data: str
    """Training and held-out problems and few-shot examples, on which training and the choice of the best depend."""
    suites: dict[str, str]
    """The problems of each suite."""
    task: str
    """The user's own file that computes the rewards; empty without one."""


def resumed_config(run: RunFile, config: Config) -> dict[str, Any]:
    """Return the config with which a run resumes: `run.fork_from` may be left out, and is taken from the run."""
    resumed = recorded(config)
    if config.run.fork_from is None:
        resumed["run"]["fork_from"] = run.attributes["config"]["run"].get("fork_from")
    return resumed


def recorded(config: Config) -> dict[str, Any]:
    """Return a config as a run file records it: without secrets."""
    tree: dict[str, Any] = masked(config.to_dict())
    return tree


def check_same_config(run: RunFile, config: Config) -> None:
    """Raise UserError unless a run can be resumed with this config, as far as the config shows."""
    here = run.path.parent
    if changed := _that_matter(run, resumed_config(run, config)):
        hint = ""
        if [difference.name for difference in changed] == ["es.schedule_generations"]:
            hint = f"\n  To prolong the run, add es.schedule_generations={changed[0].before}."
        raise UserError(
            f"{here} holds a run with another config. Choose another run.name, or restore the former values; or, "
            f"{_advice(run)}:\n  " + "\n  ".join(map(str, changed)) + hint
        )
    if run.num_generations > config.es.generations:
        raise UserError(
            f"es.generations: {here} already has {counted(run.num_generations, 'generation')}, more than "
            f"{config.es.generations}"
        )


def check_resumable(run: RunFile, config: Config, model_digest: int, digests: Digests) -> None:
    """Raise UserError unless a run can be resumed with this config, base model, problems and task."""
    check_same_config(run, config)
    here = run.path.parent
    if run.attributes["model_digest"] != model_digest:
        raise UserError(
            f"{here} holds a run of another base model: digest {run.attributes['model_digest']:016x}, "
            f"{config.model.path} has {model_digest:016x}; choose another run.name"
        )
    if (run.num_generations > 0 or run.evaluations) and _is_other_task(run, digests):
        raise UserError(
            f"task.name: {config.task.name} is not the file that {here} was begun with, and may give other rewards: "
            f"undo the change, or choose another run.name; or, {_advice(run)}"
        )
    if run.attributes["data_digest"] != digests.data:
        hint, now_suites = "", config.to_dict()["eval"]["suites"]
        if config.data.train == GENERATED and now_suites != run.attributes["config"]["eval"].get("suites", {}):
            hint = " (a suite that shares problems with the generated training problems changes these)"
        raise UserError(
            f"data.train, data.eval: {here} holds a run on other problems, or on the same in another order{hint}; "
            f"{_advice(run)}"
        )
    for suite in sorted(run.evaluations.keys() & digests.suites.keys()):
        if run.attributes["suite_digests"].get(suite, digests.suites[suite]) != digests.suites[suite]:
            raise UserError(
                f"eval.suites: {suite}: {here} has evaluations of other problems under this name: give the suite "
                f"a new one"
            )


def check_forkable(parent: RunFile, directory: Path, run: RunFile, generation: int, config: Config) -> None:
    """Raise UserError unless a run can begin with the first generations of another one, `parent`."""
    if parent.attributes["model_digest"] != run.attributes["model_digest"]:
        raise UserError(
            f"run.fork_from: {directory} is a run of another base model: digest "
            f"{parent.attributes['model_digest']:016x}, {config.model.path} has {run.attributes['model_digest']:016x}"
        )
    if generation > config.es.generations:
        raise UserError(f"es.generations: {config.es.generations} in all, but the fork is to begin with {generation}")


def check_comparable(run: RunFile, config: Config) -> None:
    """Raise UserError if results with this config could not be compared with the run's own of the same suites."""
    before, now = run.attributes["config"], recorded(config)
    changed = list(map(str, _that_matter(run, now)))
    known = before["eval"].get("suites", {})
    for name, source in now["eval"]["suites"].items():
        if known.get(name, source) != source:  # a suite that is new here may be evaluated, but not under a known name
            changed.append(f"eval.suites: {name}: {known[name]!r} -> {source!r}")
    if changed:
        raise UserError(
            "--suite NAME is needed, with a new name: the run's own evaluations were made with other settings, and "
            "results of another kind must not stand among them:\n  " + "\n  ".join(changed)
        )


def check_same_problems(run: RunFile, names: dict[str, str], digests: Digests) -> None:
    """Raise UserError if the run has results of other problems or of another kind under one of these names.

    Parameters
    ----------
    run : RunFile
    names : dict of str to str
        Names of suites, each with a digest of its problems, or, for a name that only an evaluation has given, of all
        that its results depend on (`digest_of_kind`).
    digests : Digests
    """
    own = run.attributes["config"]["eval"].get("suites", {}).keys() | {HELD_OUT}
    if names.keys() & own and _is_other_task(run, digests):
        raise UserError(
            "--suite NAME is needed, with a new name: the task file is not the one that the run was begun with"
        )
    for name, digest in names.items():
        if run.attributes["suite_digests"].get(name, digest) != digest:
            settings = "another task, sampling, seed, number of samples or of members"
            kind = "problems" if name in own else f"problems, or of {settings}"
            raise UserError(f"--suite NAME is needed, with a new name: {name} has results of other {kind}")


def differences_of_runs(run: RunFile, other: RunFile) -> list[Difference]:
    """Return the keys that make two runs different ones.

    Where the same keys led to different contents, such as two versions of one file, the key is called `digest`.
    """
    configs = run.attributes["config"], other.attributes["config"]
    changed = list(differences(*configs))
    found = [key for key in changed if key.matters]
    mine, theirs = _digests_by_section(run), _digests_by_section(other)
    common = run.attributes["suite_digests"].keys() & other.attributes["suite_digests"].keys() - {HELD_OUT}
    for owner, digests in ((run, mine), (other, theirs)):
        digests["eval"] = digest_of({suite: owner.attributes["suite_digests"][suite] for suite in common})
    for section, digest in mine.items():
        if digest and theirs[section] and digest != theirs[section]:
            sources = [key for key in changed if key.section == section and key.changes_result == "by_digest"]
            found += sources or [Difference(section, "digest", digest[:8], theirs[section][:8], "by_digest")]
    return found


def digest_of_kind(config: Config, digests: Digests, ensemble: int | None = None) -> str:
    """Return a digest of everything but theta that the results of a suite named by the user depend on.

    `ensemble` is the number of members, if they vote.
    """
    tree = config.to_dict()
    settings: dict[str, Any] = {name: _as_older(name, tree[name]) for name in ("task", "sampling")}
    del settings["sampling"]["num_samples"]  # of training
    settings["run"] = {"seed": config.run.seed}
    settings["eval"] = {name: tree["eval"][name] for name in ("num_samples", "temperature")}
    settings["scoring"] = {"failure_reward": config.scoring.failure_reward}
    if ensemble is not None:
        settings["ensemble"] = ensemble
    return digest_of([digests.suites[HELD_OUT], digests.task, tree["data"]["few_shot"], settings])


def _as_older(section: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of a section without those that were added later, where these have their defaults."""
    fields = fields_of(section)
    return {key: value for key, value in keys.items() if key not in _ADDED[section] or value != default_of(fields[key])}


def digest_of(value: Any) -> str:
    """Return a digest of a value that JSON has."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _advice(run: RunFile) -> str:
    here = run.path.parent
    return f"to continue from it with other settings, use run.name=NEW run.fork_from={here}@{run.num_generations}"


def _that_matter(run: RunFile, config: dict[str, Any]) -> list[Difference]:
    """Return the changed keys that make another run by themselves, without a digest."""
    return [difference for difference in differences(run.attributes["config"], config) if difference.matters]


def _digests_by_section(run: RunFile) -> dict[str, str]:
    """Return digests of what the keys of a section name; empty where an older esmpi kept none."""
    attributes = run.attributes
    return {
        "model": f"{attributes['model_digest']:016x}",
        "data": attributes["data_digest"],
        "task": attributes["task_digest"],
    }


def _is_other_task(run: RunFile, digests: Digests) -> bool:
    # a run of an esmpi that kept no such digest has none
    return run.attributes["task_digest"] not in ("", digests.task)
