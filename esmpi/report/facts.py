"""What a page says of a run in words and tables: its config, its starts, how to rebuild its model, what to cite."""

import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esmpi.config.keys import default_of
from esmpi.config.reader import fields_of, parse_config
from esmpi.config.search import EsConfig
from esmpi.config.sections import EngineSection
from esmpi.errors import UserError
from esmpi.plugins import names_a_file
from esmpi.store.history import History

Tree = Mapping[str, Mapping[str, Any]]

_NO_DEFAULT = "-"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A key of a config."""

    name: str
    value: str
    default: str
    differs: bool


def settings(config: Tree) -> list[Setting]:
    """Return all keys of a resolved config, each with its default and whether it differs from that."""
    defaults = _defaults(config)
    found = []
    for section, keys in config.items():
        for key, value in keys.items() if isinstance(keys, Mapping) else ():
            known = key in defaults.get(section, {})
            default = defaults[section][key] if known else None
            found.append(
                Setting(
                    name=f"{section}.{key}",
                    value=_text(value),
                    default=_text(default) if known else _NO_DEFAULT,
                    differs=not known or value != default,
                )
            )
    return found


def _defaults(config: Tree) -> dict[str, dict[str, Any]]:
    """Return the defaults of a config's task and engine; of its fields alone if its task is not to be found here."""
    names = {"run": "name", "model": "path", "task": "name", "engine": "kind"}
    least: dict[str, dict[str, Any]] = {
        section: {key: config.get(section, {}).get(key)} for section, key in names.items()
    }
    # alpha is half of sigma unless it is set
    least["es"] = {key: config["es"][key] for key in ("generations", "sigma") if key in config["es"]}
    try:
        if names_a_file(str(least["engine"]["kind"])):
            raise UserError("a file that a run names is not executed to show the run")
        found: dict[str, dict[str, Any]] = parse_config(least).to_dict()
    except (UserError, KeyError, TypeError):  # such as a user's file that is no longer there, or a key it asks for
        found = {
            section: {key: default_of(field) for key, field in fields_of(section, config).items()} for section in config
        }
    for section, key in (*names.items(), ("es", "generations")):
        if (section, key) != ("engine", "kind"):
            found.get(section, {}).pop(key, None)
    found["es"]["sigma"], found["engine"]["kind"] = EsConfig.sigma, EngineSection.kind
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def starts(run: History) -> list[dict[str, str]]:
    """Return what is known of each start of a run, with names to show."""
    return [
        {
            "when (UTC)": utc(start.get("unix_time")),
            "host": str(start.get("host", "")),
            "ranks": str(start.get("ranks", "")),
            "command": _command(start.get("command")),
            "python": str(start.get("python", "")),
            "packages": ", ".join(f"{name} {version}" for name, version in (start.get("packages") or {}).items()),
            "slurm": ", ".join(f"{key}={value}" for key, value in (start.get("slurm") or {}).items()),
            "source of esmpi": str(start.get("source_sha256", ""))[:16],
        }
        for start in run.attributes["provenance"]
    ]


def _command(words: Any) -> str:
    return shlex.join(map(str, words)) if isinstance(words, list) else str(words or "")


def utc(unix_time: Any) -> str:
    """Return a time as text; empty if it is none."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(float(unix_time)))
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def identity(run: History, generation: int) -> dict[str, str]:
    """Return what identifies a run and theta of a generation."""
    attributes = run.attributes
    return {
        "run": attributes["run_uuid"],
        "made by": attributes["creator"],
        "base model": str(attributes["config"]["model"]["path"]),
        "digest of the base model": f"{run.digest_after(0):016x}",
        f"digest of theta of generation {generation}": f"{run.digest_after(generation):016x}",
        "digest of the problems": attributes["data_digest"],
        **({"digest of the task's file": attributes["task_digest"]} if attributes["task_digest"] else {}),
        **{
            f"forked at generation {fork['generation']} from": f"{fork['path']} ({fork['run_uuid']})"
            for fork in attributes["forks"]
        },
    }


def rebuild(run: History, generation: int) -> list[tuple[str, str]]:
    """Return commands that rebuild the model, each with what it does."""
    here = shlex.quote(str(run.path if run.attributes["log_only"] else run.path.parent))
    return [
        (
            "Write the model as a Hugging Face folder. Its weights have the same bits on any machine, without a GPU:",
            f"esmpi export {here} --generation {generation} --out model",
        ),
        (
            "Share the model without its weights: a log of some kilobytes, from which the same command rebuilds it:",
            f"esmpi export {here} --log-only --generation {generation} --out log.h5",
        ),
        ("Rebuild the weights and compare their digest:", f"esmpi replay {here} --generation {generation}"),
    ]


_METHOD = """\
@article{qiu2025evolution,
  title   = {Evolution Strategies at Scale: {LLM} Fine-Tuning Beyond Reinforcement Learning},
  author  = {Qiu, Xin and Gan, Yulu and Hayes, Conor F. and Liang, Qiyao and Meyerson, Elliot and Hodjat, Babak and
             Miikkulainen, Risto},
  journal = {arXiv preprint arXiv:2509.24372},
  year    = {2025}
}"""
_LOW_RANK = """\
@article{sarkar2025evolution,
  title   = {Evolution Strategies at the Hyperscale},
  author  = {Sarkar, Bidipta and others},
  journal = {arXiv preprint arXiv:2511.16652},
  year    = {2025}
}"""


def citations(run: History) -> list[tuple[str, str]]:
    """Return what a paper that uses the run should cite, each with a BibTeX entry or empty text."""
    config = run.attributes["config"]
    found = [("The method:", _METHOD)]
    if config["es"].get("noise") == "low_rank":
        found.append(("Noise of low rank:", _LOW_RANK))
    found.append((f"The program: {run.attributes['creator']}, run {run.attributes['run_uuid']}.", ""))
    found.append(
        (f"The base model, {config['model']['path']}, and the data of task {config['task']['name']}: their cards.", "")
    )
    return found
