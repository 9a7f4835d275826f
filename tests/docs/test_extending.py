"""The examples of docs/extending: a new module in a room is a new plug-in, and nothing else is edited."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import blocks
from support import ROOT, TINY_RUN

SMALL = ("es.generations=1", "es.population_size=3", "data.num_eval=2")
PARROT = """
from esmpi.config.sections import TaskConfig
from esmpi.tasks.base import Score, Task


class Parrot(Task):
    name = "parrot"
    config_type = TaskConfig
    default_sampling = {"max_tokens": 4}

    def __init__(self, config):
        pass

    def prompt(self, example):
        return example["text"]

    def score(self, completion, example):
        return Score(reward=-len(completion), correct=False)

    def check(self, example):
        pass

    def key(self, example):
        return example["text"]

    def problems(self, part):
        return [{"text": f"{i}+{part}"} for i in range(4)]
"""
PARROT_DATA = "data.train=builtin data.eval=builtin data.num_train=4 data.num_eval=4 data.batch_size=2"


def example_of(page: str) -> tuple[str, str]:
    """Return the name and the text of the module that a page of docs/extending shows."""
    [block] = [one for one in blocks(ROOT / "docs" / "extending" / page) if one.file]
    return str(block.file).removesuffix(".py"), block.text


def run_with(folder: Path, room: str, name: str, text: str, commands: list[list[str]]) -> str:
    """Run commands of `esmpi` as if a module lay in a room's own folder; return what they print."""
    module = folder / "room" / f"{name}.py"
    module.parent.mkdir()
    module.write_text(text)
    # also in the processes that score
    (folder / "sitecustomize.py").write_text(
        f"import {room}\n{room}.__spec__.submodule_search_locations.append({str(module.parent)!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{folder}:{ROOT}"}
    said = ""
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "esmpi", *command],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        said += done.stdout
    return said


def train(folder: Path, *overrides: str) -> list[str]:
    """Return the command that trains the tiny config below a folder."""
    return ["run", str(TINY_RUN), f"run.output_dir={folder}", *SMALL, *overrides]


def test_a_shaping(tmp_path: Path) -> None:
    name, text = example_of("shaping.md")
    said = run_with(tmp_path, "esmpi.es.shapings", name, text, [train(tmp_path, f"es.shaping={name}")])
    assert "1/1 done" in said


def test_a_sink(tmp_path: Path) -> None:
    name, text = example_of("sink.md")
    run_with(tmp_path, "esmpi.record.sinks", name, text, [train(tmp_path, f"log.sinks=[{name}]")])
    lines = (tmp_path / "tiny" / "figures.csv").read_text().splitlines()
    written = list(dict.fromkeys(tuple(line.split(",")[:2]) for line in lines))
    assert written == [("held_out", "0"), ("generation", "0"), ("held_out", "1")]
    assert any(line.startswith("generation,0,fitness_mean,") for line in lines)


def test_a_command(tmp_path: Path) -> None:
    name, text = example_of("command.md")
    commands = [train(tmp_path), [name, str(tmp_path / "tiny")]]
    said = run_with(tmp_path, "esmpi.commands", name, text, commands)
    assert said.splitlines()[-1].startswith("0 0.")


def test_a_task_of_the_room(tmp_path: Path) -> None:
    said = run_with(
        tmp_path, "esmpi.tasks", "parrot", PARROT, [train(tmp_path, "task.name=parrot", *PARROT_DATA.split())]
    )
    assert "1/1 done" in said


@pytest.mark.parametrize("page", ["engine.md", "task.md"])
def test_entry_points_are_in_the_groups_that_are_searched(page: str) -> None:
    [toml] = [one.text for one in blocks(ROOT / "docs" / "extending" / page) if one.language == "toml"]
    assert f'[project.entry-points."esmpi.{page.removesuffix(".md")}s"]' in toml
