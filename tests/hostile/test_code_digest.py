"""The digest of a task's file covers what the file imports of its own folder."""

import hashlib
from pathlib import Path

import pytest

from esmpi.plugins import digest_of_code

FILES = {
    "task.py": "import json\nimport near\nfrom kit import a\nfrom kit.deep import x\ndef reward(text): return 1\n",
    "near.py": "def f():\n    import further\n",
    "further.py": "VALUE = 1\n",
    "kit/__init__.py": "",
    "kit/a.py": "from . import b\n",
    "kit/b.py": "",
    "kit/deep.py": "x = 1\n",
    "unused.py": "",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def digest(folder: Path) -> str:
    path = folder / "task.py"
    return digest_of_code(str(path), path.read_bytes())


@pytest.mark.parametrize("name", FILES)
def test_a_change_of_an_imported_module_changes_it(folder: Path, name: str) -> None:
    before = digest(folder)
    (folder / name).write_text(FILES[name] + "# changed\n")
    assert (digest(folder) == before) == (name == "unused.py")


def test_a_file_alone_has_the_digest_of_its_contents(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("import os, numpy\nfrom ... import x\n")
    assert digest(tmp_path) == hashlib.blake2b((tmp_path / "task.py").read_bytes(), digest_size=16).hexdigest()
    (tmp_path / "task.py").write_text("this is no Python")
    assert digest(tmp_path) == hashlib.blake2b(b"this is no Python", digest_size=16).hexdigest()


def test_the_place_of_the_folder_does_not_matter(folder: Path, tmp_path: Path) -> None:
    before = digest(folder)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in FILES:
        (moved / name).parent.mkdir(exist_ok=True)
        (folder / name).rename(moved / name)
    assert digest(moved) == before
