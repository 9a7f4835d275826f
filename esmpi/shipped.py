"""Files that ship with esmpi beside its code: configs and job scripts."""

from pathlib import Path

from esmpi.errors import UserError


def shipped_files(folder: str) -> dict[str, Path]:
    """Return the files of a folder that ships with esmpi, `configs` or `slurm`, by their names.

    Raises
    ------
    UserError
        If this installation has no such files.
    """
    here = Path(__file__).parents
    clone = [here[1] / folder] if (here[1] / "setup.cfg").is_file() else []
    # a wheel has them below `share/esmpi` of its environment, or of the folder of `pip install --target`
    installed = [root / "share" / "esmpi" / folder for root in (here[1], here[min(4, len(here) - 1)])]
    for place in (*clone, *installed):
        if place.is_dir():
            return {path.name: path for path in sorted(place.iterdir()) if path.is_file()}
    raise UserError(f"this installation of esmpi has no folder {folder}: install it from its wheel or from a clone")
