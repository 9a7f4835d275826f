"""Job arrays: a config for each combination of the values of some keys."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esmpi.config.overrides import Override, Overrides, overrides_of, plain
from esmpi.config.reader import load_config, parse_config
from esmpi.config.sections import Config
from esmpi.errors import UserError


def expand(
    config: str | Path | Mapping[str, Any],
    overrides: Overrides = (),
    array: Mapping[str, Sequence[Any]] | None = None,
    notes: list[str] | None = None,
) -> list[Config]:
    """Return a config for each combination of the values of `array`, the last key fastest, each with a name.

    `notes` takes a line for each group of keys that an override left without a use, as for `load_config`.
    """
    array = array or {}
    keys = [key if "." in key else f"es.{key}" for key in array]
    if "run.name" in keys:
        raise UserError("--array: run.name is made of the other keys and values; run.name=NAME gives its beginning")
    changes = overrides_of(overrides)
    name = _read(config, changes).run.name
    configs: list[Config] = []
    found: list[str] = []
    for values in itertools.product(*array.values()):
        words = [f"{key.partition('.')[2]}={value}" for key, value in zip(keys, values, strict=True)]
        whole = "_".join([name, *words]).replace("/", "-")  # as in the id of a model
        if any(whole == other.run.name for other in configs):
            raise UserError(f"--array: two runs would have the name {whole}: give each value once")
        pairs = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        chosen = [*changes, *overrides_of(pairs), Override("run", "name", whole)]
        configs.append(_read(config, chosen, found))
    if notes is not None:
        notes += dict.fromkeys(found)
    return configs


def _read(
    config: str | Path | Mapping[str, Any], overrides: Sequence[Override], notes: list[str] | None = None
) -> Config:
    if isinstance(config, Mapping):
        return parse_config(plain(config, "config"), overrides, notes)
    return load_config(config, overrides, notes)
