"""Find plug-ins by name: a room of plug-ins is a package in which every public module is one.

Adding a plug-in is adding a module: there is no list to extend.
"""

import importlib.util
import pkgutil
from functools import cache

_CONTRACT = "base"
"""Name of the module that says what the plug-ins of a room are."""


@cache
def modules(package: str) -> dict[str, str]:
    """Return the plug-ins of a room: the full name of the module by the plug-in's name.

    A module whose name starts with an underscore helps others, and `base` states the contract: they are none. A
    trailing underscore, which keeps Python's own words free (`import_`), is not part of the name.
    """
    spec = importlib.util.find_spec(package)  # which does not import the package itself
    assert spec is not None
    found = pkgutil.iter_modules(spec.submodule_search_locations)
    names = sorted(module.name for module in found if not module.name.startswith("_") and module.name != _CONTRACT)
    return {name.removesuffix("_"): f"{package}.{name}" for name in names}
