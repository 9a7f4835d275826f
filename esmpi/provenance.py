"""Provenance of a run: user, host, software and hardware."""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from esmpi.masking import masked

_PACKAGES = ("esmpi", "numpy", "numba", "torch", "h5py", "mpi4py")


def installed_versions(engine_packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each installed package that what a run computes depends on; engines name their own."""
    found = {}
    for name in (*_PACKAGES, *engine_packages):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def provenance(num_ranks: int, engine_packages: Sequence[str]) -> dict[str, Any]:
    """Return the provenance of this start: user, host, software and hardware."""
    slurm = {key: value for key, value in os.environ.items() if key in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT")}
    return {
        "unix_time": time.time(),
        "command": masked(sys.argv),
        "host": platform.node(),
        "ranks": num_ranks,
        "python": platform.python_version(),
        "packages": installed_versions(engine_packages),
        "slurm": slurm,
        "source_sha256": source_digest(),
    }


def source_digest() -> str:
    """Return a digest of esmpi's own source: two runs with the same one ran the same program."""
    root = os.path.dirname(__file__)
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".py"):
                with open(os.path.join(folder, name), "rb") as file:
                    digest.update(json.dumps([os.path.relpath(file.name, root)]).encode() + file.read())
    return digest.hexdigest()
