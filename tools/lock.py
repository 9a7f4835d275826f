"""Write the versions of all packages of this environment, without esmpi itself, into .ci/constraints.txt.

CI gives that file to pip as PIP_CONSTRAINT. It has no local parts of versions, such as +cpu, so that it serves for
other builds of the same version, too.
"""

import re
from importlib.metadata import distributions
from pathlib import Path

PATH = Path(__file__).parents[1] / ".ci" / "constraints.txt"
HEAD = "# Made by tools/lock.py; docs/releases.md says when.\n"
LEFT_OUT = {"esmpi", "pip", "setuptools"}
"""What is not installed from an index, or is wanted in other versions by builds of packages."""


def main() -> None:
    """Write the file."""
    found = {re.sub(r"[-_.]+", "-", each.name).lower(): each.version.partition("+")[0] for each in distributions()}
    lines = [f"{name}=={version}\n" for name, version in sorted(found.items()) if name not in LEFT_OUT]
    PATH.write_text(HEAD + "".join(lines))
    print(f"{PATH}: {len(lines)} packages")


if __name__ == "__main__":
    main()
