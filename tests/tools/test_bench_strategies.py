"""tools/bench_strategies.py: its arithmetic on figures that are easy to check, its settings, and runs that it keeps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

sys.path.append(str(ROOT / "tools"))

import bench_strategies
from bench_strategies import SETTINGS, Result

from esmpi.config.reader import load_config
from esmpi.errors import UserError
from esmpi.report.view import open_run

SMALL = ["es.generations=2", "es.population_size=4", "data.num_train=16", "data.num_eval=8", "data.batch_size=4"]


def result(*accuracies: float) -> Result:
    """Return a run that was evaluated every five generations, which took two seconds each."""
    return Result({5 * i: value for i, value in enumerate(accuracies)}, 1000, [2.0] * 5 * (len(accuracies) - 1))


def bench(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/bench_strategies.py", "--config", "configs/quickstart.yaml", "--seeds", "1"]
    command += ["--settings", "default", "log_rank", "--after", "2", "--folder", str(folder), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_differences_are_paired_by_run_seed() -> None:
    first = [result(0.1, 0.2, 0.4), result(0.1, 0.5, 0.7)]
    other = [result(0.1, 0.3, 0.5), result(0.1, 0.6, 0.8)]
    figures = bench_strategies.summary(other, first, [5, 10])
    assert figures["after"] == {5: [0.3, 0.6], 10: [0.5, 0.8]}
    assert figures["mean"] == pytest.approx([0.4, 0.7])
    for value, error in figures["differences"].values():
        assert value == pytest.approx(0.1)
        assert error == pytest.approx(0, abs=1e-9)  # each pair differs alike, however far the seeds are apart
    assert bench_strategies.paired([0.3, 0.1], [0.0, 0.0]) == pytest.approx((0.2, 0.1))
    assert bench_strategies.paired([0.3], [0.1]) == (pytest.approx(0.2), None)


def test_accuracy_after_seconds_is_interpolated_and_never_guessed() -> None:
    run = result(0.1, 0.2, 0.4)
    assert bench_strategies.median_seconds([run]) == 2.0
    assert run.at(7.5) == pytest.approx(0.3)
    assert run.at(10.1) is None
    assert bench_strategies.spread([0.3, None]) == "-"


def test_a_generation_without_an_evaluation_is_refused() -> None:
    with pytest.raises(UserError, match=r"after generations 0, 5, 10, not after 7"):
        bench_strategies.summary([result(0, 0, 0)], [result(0, 0, 0)], [7])


@pytest.mark.parametrize("config", ["quickstart", "bench_strategies"])
def test_settings_are_valid_and_differ(config: str) -> None:
    path = ROOT / "configs" / f"{config}.yaml"
    chosen = [(load_config(path, setting.keys), setting.step) for setting in SETTINGS.values()]
    made = [(each.es, each.guard, step) for each, step in chosen]
    assert all(made.count(one) == 1 for one in made)
    plain = load_config(path)
    assert made[0] == (plain.es, plain.guard, 1.0)


def test_finished_runs_are_kept(tmp_path: Path) -> None:
    def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["found"]
        return found

    first = figures(bench(tmp_path, "--keys", *SMALL))
    assert first["default"]["differences"]["mean"] == [0.0, None]
    es = open_run(tmp_path / "quickstart-log_rank-0").config["es"]
    assert (es["shaping"], es["alpha"]) == ("log_rank", pytest.approx(0.65 * 6e-3))
    files = sorted(tmp_path.glob("*/run.h5"))
    assert [path.parent.name for path in files] == ["quickstart-default-0", "quickstart-log_rank-0"]
    times = [path.stat().st_mtime_ns for path in files]

    assert figures(bench(tmp_path, "--keys", *SMALL)) == first
    assert [path.stat().st_mtime_ns for path in files] == times

    refused = bench(tmp_path, "--keys", *SMALL, "es.sigma=1e-3")
    assert refused.returncode == 1
    assert "es.sigma: 0.003 -> 0.001" in refused.stderr
