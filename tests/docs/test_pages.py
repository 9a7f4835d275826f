"""Every page: its code runs, or says why not; its links lead somewhere; what is generated is up to date."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from forks import Forks
from pages import CELLS, PAGES, RUN_LANGUAGES, Block, anchors, blocks, links
from support import ROOT

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_CODE = [
    name
    for name in NAMES
    if any(block.language in RUN_LANGUAGES for block in blocks(ROOT / name))
    and CELLS not in (ROOT / name).read_text(encoding="utf-8")
]
LIMIT_S = 300


@pytest.fixture(scope="module")
def programs(forks: dict[str, Forks], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `python` and `esmpi` that start as forks, for the PATH."""
    folder = tmp_path_factory.mktemp("programs")
    for name, arguments in (("python", []), ("esmpi", ["-m", "esmpi"])):
        command = shlex.join(forks["hf"].command(arguments))
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that looks like a clone of the repository, with room for runs."""
    for name in ("configs", "slurm", "tests", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_blocks_say_what_they_are(name: str) -> None:
    for block in blocks(ROOT / name):
        assert block.language in (*RUN_LANGUAGES, "text", "toml"), f"{name}:{block.line}: {block.language}"
        if block.not_run is not None:
            assert len(block.not_run) > 10, f"{name}:{block.line}: the reason is missing"


def test_the_cells_of_a_notebook_run(place: Path) -> None:
    """The cells of docs/notebook.ipynb, which `test_the_reference_is_up_to_date` compares with docs/notebook.md."""
    book = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = "".join(f"{''.join(cell['source'])}\n" for cell in book["cells"] if cell["cell_type"] == "code")
    assert "esmpi.open_run" in cells
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-"], input=cells, cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", WITH_CODE)
def test_code_runs(name: str, place: Path, programs: Path) -> None:
    """The blocks of a page run one after another in one folder, as a reader would run them."""
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    for block in blocks(ROOT / name):
        if block.language not in (*RUN_LANGUAGES, "toml") or block.not_run is not None:
            continue
        if block.file is not None:
            (place / block.file).parent.mkdir(parents=True, exist_ok=True)
            (place / block.file).write_text(block.text)
            continue
        assert block.language in ("bash", "python"), f"{name}:{block.line}: a file needs its name in the first line"
        done = subprocess.run(
            command_of(block, place), cwd=place, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert done.returncode == 0, f"{name}:{block.line}\n{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def command_of(block: Block, place: Path) -> list[str]:
    """Return what runs a block."""
    if block.language == "python":
        script = place / f"block_{block.line}.py"
        script.write_text(block.text)
        return ["python", str(script)]
    return ["bash", "-euo", "pipefail", "-c", block.tested_as or block.text]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in links(page):
        target, _, anchor = link.partition("#")
        if link.startswith("https://"):
            continue
        path = page if not target else page.parent / target
        assert path.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(path), f"{name}: {link}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        targets = {(page.parent / link.partition("#")[0]).resolve() for page in new for link in links(page)}
        new = {target for target in targets if target.suffix == ".md" and target.exists()} - reached
    assert set(PAGES) <= reached


def test_the_reference_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "reference.py", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
