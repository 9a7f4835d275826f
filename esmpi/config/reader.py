"""Read a config: YAML and `section.key=value` overrides, checked into the dataclasses of `esmpi.config.sections`.

Importing this module is cheap: no torch, no MPI.
"""

import dataclasses
import importlib
import json
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from esmpi.config.keys import PlugIn, default_of, key_of
from esmpi.config.overrides import YAML_ERRORS, ConfigError, Overrides, overrides_of, read_yaml
from esmpi.config.sections import Config
from esmpi.errors import UserError, nearest
from esmpi.plugins import names_a_file

_ROOMS = {"engine": ("esmpi.engines", "kind"), "task": ("esmpi.tasks", "name")}
"""Sections whose keys belong to a plug-in: the room that it is in, and the key that names it.

The rooms stand above the config and are known here by their names alone. Each has `find_plug_in(name)`, which returns
a `PlugIn` or None, `plug_ins()`, those that ship with esmpi by their names, and `valid_names()`, for messages.
"""


_MOST_BYTES = 4 * 2**20
"""Of a config's file. What is longer may have no end, such as a device."""
_agreed: set[str] = set()
"""Names of plug-ins in configs that were read to be run, in this process: their files have been executed."""


def load_config(path: str | Path, overrides: Overrides = (), notes: list[str] | None = None) -> Config:
    """Read a YAML file, apply overrides, and check everything.

    Parameters
    ----------
    path : path
    overrides : sequence of str or mapping
        Words such as "es.sigma=2e-3", or sections such as ``{"es": {"sigma": 2e-3}}``.
    notes : list of str, optional
        Receives a line for each group of the file's keys that an override left unused: see `parse_config`.

    Raises
    ------
    ConfigError
        With one line that says what is wrong, where, and the nearest valid choice.
    """
    return parse_config(read_tree(path), overrides, notes)


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return what a YAML file of a config says, unchecked; raise ConfigError if it is no such file."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path} has more than {_MOST_BYTES:,} bytes, which is no config")
        tree = read_yaml(content.decode())
    except OSError as error:
        siblings = [str(path.parent / entry.name) for entry in path.parent.glob("*.yaml")]
        raise ConfigError(f"cannot read config {path}: {error.strerror}{nearest(str(path), siblings)}") from None
    except YAML_ERRORS as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections: {', '.join(_sections())}")
    return tree


def parse_config(tree: Mapping[str, Any], overrides: Overrides = (), notes: list[str] | None = None) -> Config:
    """Check a tree of plain types, as YAML or JSON gives it, into a Config; see `load_config`.

    An override that names another engine or task than the tree drops those keys of the tree that the new one does not
    have, and says so in `notes`.
    """
    changes = overrides_of(overrides)
    sections = _sections()
    for name, keys in tree.items():
        if name not in sections:
            raise ConfigError(f"{name}: unknown section{nearest(str(name), sections)}")
        if not isinstance(keys, dict | None):
            raise ConfigError(f"{name}: must be a section with keys of its own, got {reprlib.repr(keys)}")
    for change in changes:
        if change.section not in sections:
            raise ConfigError(f"{change.section}: unknown section{nearest(change.section, sections)}")
    parsed = {}
    defaults: dict[str, dict[str, Any]] = {}
    for name, plain_type in sections.items():
        section_type = plain_type
        old = tree.get(name) or {}
        new = {change.key: change.value for change in changes if change.section == name}
        keys = {**old, **new}
        if name in _ROOMS:
            plug_in = _find_plug_in(name, keys)
            section_type = plug_in.section
            defaults |= plug_in.defaults
            keys = _own_keys(name, plug_in, old, new, notes if notes is not None else [])
        parsed[name] = _parse_section(name, section_type, defaults.get(name, {}) | keys)
    try:
        config = Config(**parsed)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    form = getattr(config.task, "chat_format", "none")
    if config.data.few_shot is not None and form not in ("none", "model"):
        raise ConfigError(f"data.few_shot: cannot stand in a prompt of task.chat_format: {form}; choose none or model")
    return config


def check_stored(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the keys of a run file's config have values of their types, within their bounds.

    Keys that it lacks, because an older esmpi wrote it, and those of plug-ins are not looked at.
    """
    for name, section_type in _sections().items():
        keys = config.get(name, {})
        if not isinstance(keys, dict):
            raise ValueError(f"{name} of the config is no section")
        hints = typing.get_type_hints(section_type)
        for key, field in _fields(section_type).items():
            if key not in keys:
                continue
            try:
                value = msgspec.convert(keys[key], hints[key])
            except msgspec.ValidationError as error:
                raise ValueError(f"{name}.{key} of the config: {error}") from None
            if trouble := key_of(field).trouble(value):
                raise ValueError(f"{name}.{key} of the config: {trouble}")


def fields_of(section: str, *configs: Mapping[str, Any]) -> "dict[str, dataclasses.Field[Any]]":
    """Return the fields that a section has in resolved configs, by their keys.

    A section of a plug-in has those of the plug-ins that the configs name, where the last config's count most, and
    those of all plug-ins that ship with esmpi. Executes no file that the user's own config has not named: the configs
    may be those of a stranger's run.
    """
    if section not in _sections():
        return {}
    fields = {field.name: field for field in dataclasses.fields(_sections()[section])}
    if section not in _ROOMS:
        return fields
    room, name_key = _room(section)
    for plug_in in room.plug_ins().values():
        fields |= plug_in.fields
    for config in configs:
        name = str(config.get(section, {}).get(name_key))
        if section == "engine" and names_a_file(name) and name not in _agreed:
            continue
        with suppress(UserError):  # a user's file that no longer exists
            if plug_in := room.find_plug_in(name):
                fields |= plug_in.fields
    return fields


def plug_in_key(section: str) -> str | None:
    """Return the key of a section that names its plug-in; None if it is not the section of one."""
    return _ROOMS[section][1] if section in _ROOMS else None


def common_keys(section: str) -> set[str]:
    """Return the keys of a section that do not depend on a plug-in."""
    return {field.name for field in dataclasses.fields(_sections()[section])} if section in _sections() else set()


def _sections() -> dict[str, type]:
    return {field.name: typing.cast(type, field.type) for field in dataclasses.fields(Config)}


def _room(section: str) -> tuple[Any, str]:
    """Return the room of a section's plug-ins, and the key that names one."""
    module, name_key = _ROOMS[section]
    return importlib.import_module(module), name_key


def _name(section: str, keys: Mapping[str, Any]) -> Any:
    """Return the name of the plug-in that a section chooses; None if it names none and there is no default."""
    name_key = _ROOMS[section][1]
    return keys.get(name_key, getattr(_sections()[section], name_key, None))


def _find_plug_in(section: str, keys: Mapping[str, Any]) -> PlugIn:
    room, name_key = _room(section)
    name = _name(section, keys)
    found: PlugIn | None = room.find_plug_in(name) if isinstance(name, str) else None
    if found is not None:
        _agreed.add(str(name))
    if found is None:
        what = f"unknown {section} {name!r}"
        if name is None:
            what = "must be a name, got null" if name_key in keys else "missing key"
        if str(name).endswith(".py"):
            raise ConfigError(f"{section}.{name_key}: {name}: which object in it? Write {name}:NAME")
        raise ConfigError(f"{section}.{name_key}: {what}{nearest(str(name), room.valid_names())}")
    return found


def _own_keys(
    section: str, plug_in: PlugIn, old: Mapping[str, Any], new: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """Return the keys of a config, `old`, changed by the overrides `new`, without those that the plug-in does not have.

    Where the overrides chose another plug-in than the config, the config's keys that it lacks are dropped, and `notes`
    says so. A key of another plug-in that has its default has no effect, and stands in the run files of older
    versions. Any other is an error.
    """
    room, name_key = _room(section)
    keys, own = {**old, **new}, plug_in.fields
    chosen = _name(section, keys)
    if chosen != _name(section, old):
        dropped = [key for key in old if key not in own and key not in new]
        if dropped:
            names = ", ".join(f"{section}.{key}" for key in dropped)
            notes.append(f"{section}.{name_key}={chosen} does not use these keys of the config: {names}")
        for key in dropped:
            del keys[key]
    others = room.plug_ins()
    for key in [key for key in keys if key not in own]:
        owners = [name for name, other in others.items() if key in other.fields]
        if owners and keys[key] == default_of(others[owners[0]].fields[key]):
            del keys[key]
        elif owners:
            raise ConfigError(
                f"{section}.{key}: is only for {section}.{name_key}: {' or '.join(owners)}. Remove the key, or set "
                f"{section}.{name_key}={owners[0]}"
            )
    return keys


def _parse_section(section: str, section_type: type, keys: dict[str, Any]) -> Any:
    fields = _fields(section_type)
    hints = typing.get_type_hints(section_type)
    for key, value in keys.items():
        if key not in fields:
            raise ConfigError(f"{section}.{key}: unknown key{nearest(str(key), fields)}")
        if not _is_text(value):
            raise ConfigError(f"{section}.{key}: must be text in UTF-8: {reprlib.repr(value)}")
        choices, names = _choices(hints[key]), key_of(fields[key]).choices()
        if (choices and value not in choices) or (names and isinstance(value, str) and value not in names):
            raise ConfigError(
                f"{section}.{key}: must be one of {', '.join(choices or names)}; got {reprlib.repr(value)}"
            )
        _check_inner(f"{section}.{key}", hints[key], value)
        for name in value if names and isinstance(value, list) else ():
            if name not in names:
                raise ConfigError(f"{section}.{key}: must be among {', '.join(names)}; got {reprlib.repr(name)}")
    for key, field in fields.items():
        if key not in keys and field.default is dataclasses.MISSING is field.default_factory:
            raise ConfigError(f"{section}.{key}: missing; it has no default")
    try:
        return msgspec.convert(keys, section_type)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        if not place:  # a check in __post_init__, which names its key first
            raise ConfigError(f"{section}.{message}") from None
        key = re.split(r"[.\[`]", place.removeprefix("."))[0]
        if not key:
            raise ConfigError(f"{section}.{message}") from None
        if message == "Expected `array`, got `str`":
            example = json.dumps(keys[key].strip("[]"))
            raise ConfigError(f"{section}.{key}: must be a list: '{section}.{key}=[{example}]'") from None
        raise ConfigError(f"{section}.{key}: {message.replace('`', '')}: {reprlib.repr(keys.get(key))}") from None


def _is_text(value: Any) -> bool:
    """Return whether the texts in a value can be encoded: a word with other bytes on a command line cannot."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    inner = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return all(map(_is_text, inner))


def _check_inner(place: str, hint: Any, value: Any) -> None:
    """Raise ConfigError for an unknown key of a section that is a value of a mapping, such as `eval.suites`."""
    if typing.get_origin(hint) is not dict or not isinstance(value, dict):
        return
    valid = typing.get_args(hint)[1]
    own = {
        name
        for part in typing.get_args(valid)
        if isinstance(part, type) and dataclasses.is_dataclass(part)
        for name in _fields(part)
    }
    for name, inner in value.items():
        for key in inner if own and isinstance(inner, dict) else ():
            if key not in own:
                raise ConfigError(f"{place}: {name}: {key}: unknown key{nearest(str(key), own)}")


def _fields(section_type: type) -> "dict[str, dataclasses.Field[Any]]":
    return {field.name: field for field in dataclasses.fields(section_type)}


def _choices(hint: Any) -> tuple[str, ...]:
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) is types.UnionType:
        return tuple(choice for part in typing.get_args(hint) for choice in _choices(part))
    return ()


__all__ = [
    "ConfigError",
    "check_stored",
    "common_keys",
    "fields_of",
    "load_config",
    "parse_config",
    "plug_in_key",
    "read_tree",
]
