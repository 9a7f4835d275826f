"""Engines, found by name: what ships with esmpi, a class in a user's file, or an installed package's.

Each module or package here that defines an `EngineConfig` is an engine that ships with esmpi.
"""

from typing import Any, cast

from esmpi import plugins
from esmpi.config.sections import Config
from esmpi.engines.base import Completion, Engine, EngineConfig, Request, Sampling
from esmpi.errors import UserError, nearest

ENTRY_POINTS = "esmpi.engines"
"""Group of the entry points by which installed packages offer engines: each names a subclass of `EngineConfig`."""


def engine_types() -> dict[str, type[EngineConfig]]:
    """Return the configs of the engines that ship with esmpi, by `engine.kind`."""
    return {found.kind: found for found in cast(tuple[type[EngineConfig], ...], _classes())}


def find_engine(kind: str) -> type[EngineConfig] | None:
    """Return the config of the engine that `engine.kind` names, None if there is none.

    Raises
    ------
    UserError
        If a user's file or an entry point has no such engine.
    """
    if plugins.names_a_file(kind):
        return _from_file(kind)
    found: type[EngineConfig] | None = engine_types().get(kind)
    return found or plugins.from_entry_point("engine.kind", ENTRY_POINTS, kind, EngineConfig)


def engine_config(config: Config) -> EngineConfig:
    """Return the engine section of a checked config as what it is: the config of one engine."""
    assert isinstance(config.engine, EngineConfig)
    return config.engine


def find_section(name: str) -> tuple[type, dict[str, dict[str, Any]]] | None:
    """Return the type of an engine's section of the config, and its defaults for other sections: none."""
    engine = find_engine(name)
    return None if engine is None else (engine, {})


def sections() -> dict[str, tuple[type, dict[str, dict[str, Any]]]]:
    """Return what `find_section` returns of all engines that ship with esmpi, by their names."""
    return {kind: (engine, {}) for kind, engine in engine_types().items()}


def valid_names() -> list[str]:
    """Return the names of the engines that ship with esmpi, for messages."""
    return [*engine_types(), "file.py:Class"]


def _classes() -> tuple[type, ...]:
    return plugins.classes("esmpi.engines", EngineConfig)


def _from_file(kind: str) -> type[EngineConfig]:
    path, _, name = kind.rpartition(":")
    module, _ = plugins.run_file("engine.kind", path)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, EngineConfig)):
        own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
        there = [one.__name__ for one in own if isinstance(one, type) and issubclass(one, EngineConfig)]
        raise UserError(f"engine.kind: {path} has no subclass of EngineConfig called {name!r}{nearest(name, there)}")
    return found


__all__ = [
    "Completion",
    "Engine",
    "EngineConfig",
    "Request",
    "Sampling",
    "engine_config",
    "engine_types",
    "find_engine",
]
