"""The versions that CI installs: every package that setup.cfg asks for, within its bounds."""

import configparser

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support import ROOT


def test_every_requirement_is_locked_within_its_bounds() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(name == canonicalize_name(name) for name in locked)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    # vLLM for GPUs and its CPU build are installed under one name, and CI has no GPU
    extras = {name: text for name, text in setup["options.extras_require"].items() if name != "vllm"}
    asked = [setup["options"]["install_requires"], *extras.values()]
    requirements = [
        Requirement(line) for text in asked for line in text.splitlines() if line and not line.startswith("#")
    ]
    assert len(requirements) > 40
    for requirement in requirements:
        if requirement.name == "setuptools":
            continue  # left to the builds of packages
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}, but {version} is locked"
