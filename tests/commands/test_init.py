"""`esmpi init`: what it writes runs, in a clone and from the wheel, and nothing that is there is overwritten."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT, Run

from esmpi.__main__ import main
from esmpi.config.reader import load_config
from esmpi.shipped import shipped_files

TRIAL = next(line for line in (ROOT / "configs" / "own.yaml").read_text().splitlines() if "-m esmpi.run" in line)
"""What the config for an own task says of a trial without a GPU."""


@pytest.mark.parametrize("task", ["own", "countdown", "math", "conciseness", "multiplication", "quickstart"])
def test_configs_that_ship_are_copied(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "new"), "--task", task]) == 0
    assert f"esmpi run {task}.yaml --dry-run" in capsys.readouterr().out
    assert load_config(tmp_path / "new" / f"{task}.yaml") == load_config(ROOT / "configs" / f"{task}.yaml")


@pytest.mark.parametrize(
    ("task", "train"),
    [("sudoku", "generated"), ("arc", "builtin"), ("gsm8k", "train.jsonl"), ("gym:basic_arithmetic", "generated")],
)
def test_other_tasks_have_a_config_of_their_own(tmp_path: Path, task: str, train: str) -> None:
    assert main(["init", str(tmp_path), "--task", task]) == 0
    config = load_config(tmp_path / f"{task.replace(':', '_')}.yaml")
    assert (config.task.name, config.data.train) == (task, train)


def test_the_own_task_trains(tmp_path: Path, launch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["init", str(tmp_path)]) == 0
    monkeypatch.chdir(tmp_path)
    small = ("es.generations=1", "es.population_size=3", "sampling.max_tokens=8")
    task = f"task.name={tmp_path / 'task.py'}:reward"
    done = launch(
        ["-m", "esmpi.run", tmp_path / "own.yaml", f"run.output_dir={tmp_path}", task, *TRIAL.split()[5:], *small], 0
    )
    assert done.returncode == 0, done.stderr
    assert "1/1 done" in done.stdout
    assert subprocess.run(["bash", "-n", "slurm/template.sh"], cwd=tmp_path).returncode == 0


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.py").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert "already has task.py: nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["task.py"]
    assert main(["init", str(tmp_path / "new"), "--task", "cuntdown"]) == 2
    assert "--task: unknown task 'cuntdown', did you mean countdown?" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_wheel_has_what_is_needed_without_a_clone(tmp_path: Path) -> None:
    sources = tmp_path / "sources"  # a copy, because building leaves files behind
    for name in ("esmpi", "configs", "slurm"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path, "."]
    done = subprocess.run(build, capture_output=True, text=True, cwd=sources)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    for folder in ("configs", "configs/paper", "slurm"):
        inside = {Path(name).name for name in names if str(Path(name).parent).endswith(f"/share/esmpi/{folder}")}
        assert inside == set(shipped_files(folder))
    assert {f"esmpi/assets/report/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", target, wheel]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-m", "esmpi", "init", "new", "--task", "countdown"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "slurm" / "template.sh").exists()
    assert (tmp_path / "new" / "countdown.yaml").read_text() == (ROOT / "configs" / "countdown.yaml").read_text()


def test_output_that_nobody_reads_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m esmpi run {ROOT}/configs/quickstart.yaml --dry-run | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 141)
    assert done.stderr == ""
