"""`esmpi sweep`: a grid of runs, each a process of its own; failures, resuming, and what is checked before."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, TINY_RUN, read_digests

from esmpi.__main__ import main
from esmpi.config.reader import load_config
from esmpi.launch.sweep import last_words, plan_sweep
from esmpi.store.run_file import RunFile

LIMIT_S = 300
SMALL = ("es.generations=2", "es.population_size=4", "data.num_eval=10")
GRID = ("es.sigma=2e-3,3e-3", "es.shaping=zscore,raw")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def sweep(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `esmpi sweep` on the tiny config in a folder."""
    command = [sys.executable, "-m", "esmpi", "sweep", str(TINY_RUN), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=LIMIT_S)


def table(said: str) -> dict[str, list[str]]:
    """Return the table that a sweep prints, without its head, by the first column."""
    lines = re.search(r"^\S+ +finished .*\n((.+\n)+)", said, re.MULTILINE)
    assert lines is not None, said
    return {line.split()[0]: line.split()[1:] for line in lines[1].splitlines()}


def write_problems(path: Path, *, good: bool) -> None:
    """Write training problems that the task can use, or not."""
    rows = [{"numbers": [i, 2, 3], "target": str(i + 5)} if good else {"question": "?"} for i in range(4, 12)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_grid_is_trained_and_a_run_that_fails_does_not_end_it(tmp_path: Path, mpiexec: list[str]) -> None:
    write_problems(tmp_path / "good.jsonl", good=True)
    write_problems(tmp_path / "bad.jsonl", good=False)
    words = ["data.train=bad.jsonl,good.jsonl", "data.num_train=8", "run.seed=0,5", *SMALL]
    done = sweep(tmp_path, *words, "--ranks", "2")
    assert done.returncode == 1, done.stderr + done.stdout
    shown = table(done.stdout)
    assert shown["good.jsonl"][0] == "2/2"
    assert shown["bad.jsonl"] == ["0/2", *["-"] * 5]
    for seed in (0, 5):
        line = (
            f"tiny_train=bad.jsonl_seed={seed}: unfinished, 0 of 2 generations: esmpi: data.train: bad.jsonl line 1: "
        )
        assert f"\n{line}" in done.stdout
    place = tmp_path / "runs" / "tiny_sweep"
    assert (place / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert "\npage: runs/tiny_sweep/comparison.html" in done.stdout
    page = (place / "comparison.html").read_text()
    assert 'figure id="accuracy"' in page
    assert "tiny_train=bad.jsonl_seed=5: unfinished, 0 of 2 generations" in page
    assert not list(place.glob("*/model")), "no models, unless they are asked for"
    # a run of a sweep is what the same settings give anywhere
    made = place / "tiny_train=good.jsonl_seed=5"
    again = [sys.executable, "-m", "esmpi.run", TINY_RUN, *words[1:], "data.train=good.jsonl", "run.seed=5"]
    assert subprocess.run(again, cwd=tmp_path, env=ENVIRONMENT, capture_output=True).returncode == 0
    assert read_digests(made) == read_digests(tmp_path / "runs" / "tiny")

    write_problems(tmp_path / "bad.jsonl", good=True)
    before = {path: path.stat().st_mtime_ns for path in place.glob("*good*/run.h5")}
    done = sweep(tmp_path, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is finished is left alone"
    assert [cells[0] for cells in table(done.stdout).values()] == ["2/2", "2/2"]
    rows = [RunFile.open(place / f"tiny_train=bad.jsonl_seed={seed}" / "run.h5").best() for seed in (0, 5)]
    mean = sum(row["reward_mean"] for row in rows if row is not None) / 2
    assert f"{mean:.3f}" in table(done.stdout)["bad.jsonl"]
    shown_again = sweep(tmp_path, *words, "--show", "--no-plot")
    assert table(shown_again.stdout) == table(done.stdout)
    assert "plot" not in shown_again.stdout
    assert "page" not in shown_again.stdout


def test_a_signal_stops_the_sweep_after_a_generation_and_it_resumes(tmp_path: Path) -> None:
    words = ["es.sigma=2e-3,3e-3", *SMALL, "es.generations=300"]
    command = [sys.executable, "-m", "esmpi", "sweep", str(TINY_RUN), *words]
    first = tmp_path / "runs" / "tiny_sweep" / "tiny_sigma=0.002_seed=0"
    log = tmp_path / "runs" / "tiny_sweep" / "logs" / f"{first.name}.log"
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + LIMIT_S
        while not (log.exists() and " 2/300 done" in log.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75
    assert "\nstopped; rerun the same command to resume\n" in said
    made = read_digests(first)
    assert len(made) >= 2
    assert re.search(rf"{first.name}: unfinished, {len(made)} of 300 generations: asked to stop by SIGUSR1", said)
    assert "tiny_sigma=0.003_seed=0: not started" in said

    done = sweep(tmp_path, *words[:-1], f"es.generations={len(made) + 1}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"resuming from generation {len(made)}" in log.read_text()
    assert read_digests(first)[:-1] == made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["es.sigma=1e-3,2e-3,0"], r"setting 3 of 3 \(sigma=0\): es\.sigma: must be at least 1e-12"),
        (["es.sigma=1e-3", "es.sgima=1,2"], r"setting 1 of 2 \(sgima=1\): es\.sgima: unknown key, did you mean sigma"),
        (["es.sigma=1e-3,1e-3"], r"2 runs would have the name tiny_sigma=0\.001_seed=0: give each value once"),
        (["run.seed=0,a"], r"run\.seed: .*int.*'a'"),
        (["run.seed=0,1", "--seeds", "2"], r"--seeds: run\.seed has several values already"),
        (["data.eval=generated,none.jsonl"], r"tiny_eval=none\.jsonl_seed=0: data\.eval: no file none\.jsonl"),
        (["model.path=esmpi:tiny_countdown,./x"], r"tiny_path=\.-x_seed=0: model\.path: no folder \./x"),
        (["es.sigma=log:1e-4:1e-2"], r"es\.sigma: values of a range are drawn: say how many settings, with --random"),
        (["es.sigma=1,2", "--random-seed", "3"], r"--random-seed: nothing is drawn without --random"),
        (["es.sigma=1,2", "--nodes", "3"], r"--nodes: is for jobs of Slurm, with --slurm"),
        (["es.sigma=1,2", "--slurm", "--ranks", "3"], r"--ranks is for runs on this machine"),
        (["es.sigma=1,2", "--write-config", "2"], r"--write-config: no run 2: 2 runs in .* sbatch --array=0-1"),
    ],
)
def test_all_is_checked_before_the_first_run_starts(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(TINY_RUN), *words]) == 2
    said = capsys.readouterr().err
    assert re.match(f"esmpi: {message}", said), said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(TINY_RUN), *GRID, "--seeds", "2", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "8 runs in runs/tiny_sweep: 4 settings x 2 seeds",
        *(
            f"  tiny_shaping={shaping}_sigma={sigma}_seed={seed}: not started"
            for sigma in ("0.002", "0.003")
            for shaping in ("zscore", "raw")
            for seed in (0, 1)
        ),
    ]
    assert main(["sweep", str(TINY_RUN), "es.sigma=log:1e-4:1e-2", "--random", "3", "--dry-run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert main(["sweep", str(TINY_RUN), *GRID, "--show"]) == 0
    assert capsys.readouterr().out.count("not started") == 4
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_other_settings_under_a_name_of_the_sweep_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [first, _] = plan_sweep(TINY_RUN, ["es.sigma=2e-3,3e-3"]).runs
    RunFile.create(first.config.directory / "run.h5", first.config.to_dict(), 1, "d", ["w"], {}).write()
    assert main(["sweep", str(TINY_RUN), "es.sigma=2e-3,3e-3", "es.population_size=6", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"esmpi: {first.name}: runs/tiny_sweep/{first.name} holds a run with another config" in said
    assert "es.population_size: 7 -> 6" in said
    assert main(["sweep", str(TINY_RUN), "es.sigma=2e-3,3e-3", "es.population_size=6", "--show"]) == 2
    assert main(["sweep", str(TINY_RUN), "es.sigma=2e-3,3e-3", "--show"]) == 0


def test_models_are_written_if_they_are_asked_for(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    for text, words, expected in (
        (TINY_RUN.read_text(), [], "none"),
        (TINY_RUN.read_text(), ["run.export_dtype=bfloat16"], "bfloat16"),
        (TINY_RUN.read_text().replace("name: tiny", "name: tiny\n  export_dtype: float32"), [], "float32"),
    ):
        config.write_text(text)
        [run, _] = plan_sweep(config, ["es.sigma=2e-3,3e-3", *words]).runs
        assert run.config.run.export_dtype == expected


def test_the_config_of_one_run_is_for_a_job_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(TINY_RUN), *GRID, "--write-config", "2"]) == 0
    written = load_config(capsys.readouterr().out.strip())
    assert written == plan_sweep(TINY_RUN, GRID).runs[2].config
    assert (written.es.sigma, written.es.shaping) == (3e-3, "zscore")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("one\n\ntwo  \n\n", "two"),
        ("esmpi: rank 1: no room\nBAD TERMINATION\nexit codes\n", "esmpi: rank 1: no room"),
        ('Traceback ...\n  File "a.py"\nValueError: shapes differ\n=====\n', "ValueError: shapes differ"),
        ("torch.OutOfMemoryError: CUDA out of memory\nsee above\n", "torch.OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_the_last_words_are_the_last_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log").write_text(text)
    assert last_words(tmp_path / "log") == words
    assert last_words(tmp_path / "none") == ""


def test_a_run_without_its_model_is_not_finished(tmp_path: Path) -> None:
    """A kill between the last evaluation and the export leaves such a run."""
    words = [f"run.output_dir={tmp_path}", "es.generations=0", "run.export_dtype=float32"]
    [run] = plan_sweep(TINY_RUN, words).runs
    file = RunFile.create(run.config.directory / "run.h5", run.config.to_dict(), 1, "d", ["w"], {})
    file.add_evaluation("held_out", {"generation": 0, "accuracy": 0.5, "reward_mean": 0.5})
    assert not run.is_finished(run.read())
    (run.config.directory / "model").mkdir()
    assert run.is_finished(run.read())
    shutil.rmtree(run.config.directory)
    assert not run.is_finished(run.read())


def test_a_run_that_its_guard_ends_is_finished(tmp_path: Path) -> None:
    # nothing is learned with so little noise, so that one evaluation after the first is no better
    words = ["es.sigma=1e-9,2e-9", "es.alpha=1e-9", "eval.every=1", "guard.patience=1", *SMALL, "es.generations=9"]
    done = sweep(tmp_path, *words)
    assert done.returncode == 0, done.stderr + done.stdout
    assert {cells[0] for cells in table(done.stdout).values()} == {"1/1"}
    assert len(read_digests(tmp_path / "runs" / "tiny_sweep" / "tiny_sigma=1e-09_seed=0")) == 1
    assert sweep(tmp_path, *words).stdout.count(": finished\n") == 2
