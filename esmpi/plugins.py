"""Find plug-ins by name: a module of a room, a class in a Python file, or an installed package's entry point.

A room of plug-ins is a package such as `esmpi.engines`, in which every public module is one plug-in. Adding a plug-in
is adding a module: there is no list to extend.
"""

import ast
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from esmpi.errors import UserError, nearest, said

_CONTRACT = "base"
"""Name of the module that says what the plug-ins of a room are."""


@cache
def modules(package: str) -> dict[str, str]:
    """Return the plug-ins of a room: the full name of the module by the plug-in's name.

    A module whose name starts with an underscore and `base`, which states the contract, are not plug-ins. A trailing
    underscore, which avoids Python's keywords (`import_`), is not part of the name.
    """
    spec = importlib.util.find_spec(package)  # which does not import the package itself
    assert spec is not None
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    names = sorted(module.name for module in found if not module.name.startswith("_") and module.name != _CONTRACT)
    return {name.removesuffix("_"): f"{package}.{name}" for name in names}


@cache
def classes(package: str, base: type) -> tuple[type, ...]:
    """Return the subclasses of `base` that the plug-ins of a room define, in the order of their modules."""
    found = []
    for name in modules(package).values():
        module = importlib.import_module(name)
        found += [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == name
        ]
    return tuple(found)


def from_entry_point(key: str, group: str, name: str, base: type) -> Any:
    """Return the class that an installed package offers under a name, None if none does.

    Raises
    ------
    UserError
        If it cannot be loaded, or is no subclass of `base`. The message starts with `key`, the key of the config.
    """
    for entry in entry_points(group=group, name=name):
        try:
            found = entry.load()
        except Exception as error:  # whatever the package raises
            raise UserError(f"{key}: the entry point {name} of {group} cannot be loaded: {said(error)}") from error
        if not (isinstance(found, type) and issubclass(found, base)):
            raise UserError(
                f"{key}: the entry point {name} of {group} is not a subclass of {base.__module__}.{base.__qualname__}"
            )
        return found
    return None


def names_a_file(name: str) -> bool:
    """Return whether a name is of the form `path/to/file.py:object`."""
    return name.rpartition(":")[0].endswith(".py")


def file_named_by(name: str) -> str | None:
    """Return the path of the Python file that a task's or an engine's name means, None if it means none."""
    # an environment's file stands behind the word `env:`
    return name.rpartition(":")[0].removeprefix("env:") if names_a_file(name) else None


def source_of(key: str, path: str) -> bytes:
    """Return the contents of a Python file that a config names; raise UserError if there is no such file.

    Parameters
    ----------
    key : str
        Key of the config that names the file; error messages start with it.
    path : str
    """
    try:
        return Path(path).expanduser().read_bytes()
    except FileNotFoundError:
        names = [str(entry) for entry in Path(path).parent.glob("*.py")]
        raise UserError(f"{key}: no file {path}{nearest(path, names)}") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}") from error


def digest_of_code(path: str, source: bytes) -> str:
    """Return a digest of a Python file and of the modules in its folder that it imports.

    Modules from elsewhere are not part of it, nor are those whose names are only known when the file runs. A file that
    imports nothing of its folder has the digest of its contents.

    Parameters
    ----------
    path : str
    source : bytes
        The contents of the file.

    Returns
    -------
    str
        BLAKE2b, 16 bytes, in hexadecimal.
    """
    folder = Path(path).expanduser().resolve().parent
    digest = hashlib.blake2b(source, digest_size=16)
    left, found = [(source, folder)], dict[Path, bytes]()
    while left:
        code, package = left.pop()
        for file in _imported(code, folder, package):
            if file not in found:
                try:
                    found[file] = file.read_bytes()
                except OSError as error:
                    raise UserError(f"{path} imports {file}, which cannot be read: {error.strerror}") from error
                left.append((found[file], file.parent))
    for file, code in sorted(found.items()):
        name = file.relative_to(folder).as_posix()
        digest.update(f"\0{name}\0{len(code)}\0".encode() + code)
    return digest.hexdigest()


def _imported(code: bytes, folder: Path, package: Path) -> Iterator[Path]:
    """Yield the files in a folder that code imports: modules, and a package's `__init__.py` and modules.

    `package` is where the code's own file is, which relative imports start from.
    """
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # whoever executes it says so
    for node in ast.walk(tree):
        names, start = [], folder
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = package.joinpath(*[".."] * (node.level - 1)).resolve()
            stem = [node.module] if node.module else []
            names = [*stem, *(".".join([*stem, alias.name]) for alias in node.names)]
        for name in names:
            for depth in range(1, name.count(".") + 2):
                place = start.joinpath(*name.split(".")[:depth])
                for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                    if _is_file(file) and file.resolve().is_relative_to(folder):
                        yield file.resolve()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for one
        return False


def execute_file(key: str, path: str, source: bytes) -> ModuleType:
    """Execute a Python file as a module of its own.

    Parameters
    ----------
    key : str
        Key of the config that names the file; error messages start with it.
    path : str
    source : bytes
        The contents of the file, perhaps as another process read them: see `source_of`.

    Raises
    ------
    UserError
        If it raises.
    """
    file = Path(path).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(f"esmpi_{key.partition('.')[0]}_{file.stem}", file)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # As for a script, modules in the same folder can be imported.
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[spec.name] = module  # dataclasses and pickle look a module up there
    try:
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        advice = ""
        if isinstance(error, ImportError) and "relative import" in str(error):
            advice = ". It is a module of a package: import what you need from it in a file of your own"
        text = str(error) if isinstance(error, UserError) else said(error)
        raise UserError(f"{key}: {path} cannot be run: {text}{advice}") from error
    return module
