"""The table and the picture of a sweep: means and deviations over seeds, from run files."""

from pathlib import Path

import numpy as np
import pytest
from support import LEAST_CONFIG

from esmpi.config.reader import parse_config
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.report.sweep import Entry, draw_sweep, table_of_sweep
from esmpi.store.run_file import GENERATION_DTYPE, RunFile


def entry(
    folder: Path, sigma: str, seed: int, accuracy: dict[int, float], state: str = "finished", seconds: float = 2
) -> Entry:
    """Return a run with these accuracies by generation, and rewards that are 0.1 higher."""
    name = f"x_sigma={sigma}_seed={seed}"
    run = RunFile.create(folder / name / "run.h5", parse_config(LEAST_CONFIG).to_dict(), 1, "d", ["w"], {})
    for generation in range(2):
        row = np.zeros(1, GENERATION_DTYPE)[0]
        row["generation"], row["seconds_total"] = generation, seconds
        run.commit(row, np.zeros(2, MEMBER_DTYPE))
    for generation, value in accuracy.items():
        run.add_evaluation("held_out", {"generation": generation, "accuracy": value, "reward_mean": value + 0.1})
    return Entry(name=name, setting={"sigma": sigma}, file=RunFile.open(run.path), state=state)


def cells(table: str) -> list[list[str]]:
    """Return the lines of a table down to the first empty one, as cells."""
    lines = table.split("\n\n", maxsplit=1)[0].splitlines()
    return [line.replace(" ± ", "±").replace(" %", "%").replace(": ", ":").split() for line in lines]


def test_figures_are_means_and_sample_deviations_over_seeds(tmp_path: Path) -> None:
    entries = [
        entry(tmp_path, "1e-3", 0, {0: 0.1, 1: 0.5, 2: 0.3}, seconds=2),
        entry(tmp_path, "1e-3", 1, {0: 0.1, 1: 0.2, 2: 0.5}, seconds=3),
        entry(tmp_path, "3e-3", 0, {0: 0.1, 1: 0.6, 2: 0.7}),
        entry(tmp_path, "3e-3", 1, {0: 0.1, 1: 0.9}, state="unfinished, 1 of 2 generations: Error: broken"),
    ]
    table = table_of_sweep(entries)
    # last 30 and 50 %, best 50 and 50 %; seconds 4 and 6; sqrt(2) times half the distance
    assert cells(table) == [
        ["sigma", "finished", "accuracy:last", "best", "reward:last", "best", "seconds"],
        ["3e-3", "1/2", "70.0%", "70.0%", "0.800", "0.800", "4.0"],
        ["1e-3", "2/2", "40.0±14.1%", "50.0±0.0%", "0.500±0.141", "0.600±0.000", "5.0±1.4"],
    ]
    assert table.endswith("\n\nx_sigma=3e-3_seed=1: unfinished, 1 of 2 generations: Error: broken")


def test_a_setting_without_a_finished_run_is_last_and_has_dashes(tmp_path: Path) -> None:
    entries = [
        Entry(name="a", setting={"sigma": "1"}, file=None, state="not started"),
        entry(tmp_path, "2", 0, {0: 0.0}),
        entry(tmp_path, "3", 0, {0: 0.2}, state="running, 2 of 3 generations"),
    ]
    assert [line[:2] for line in cells(table_of_sweep(entries))[1:]] == [["2", "1/1"], ["1", "0/1"], ["3", "0/1"]]
    assert cells(table_of_sweep(entries))[2][2:] == ["-"] * 5


def test_equal_accuracy_is_ordered_by_reward_and_one_setting_needs_no_keys(tmp_path: Path) -> None:
    low, high = (entry(tmp_path, sigma, 0, {2: 0.0}) for sigma in ("1", "2"))
    assert high.file is not None
    high.file.evaluations["held_out"][0]["reward_mean"] = 0.7
    assert [line[0] for line in cells(table_of_sweep([low, high]))[1:]] == ["2", "1"]
    alone = Entry(name="x", setting={}, file=low.file, state="finished")
    assert cells(table_of_sweep([alone]))[1] == ["1/1", "0.0%", "0.0%", "0.100", "0.100", "4.0"]


def test_a_curve_is_the_mean_of_the_seeds_that_are_there(tmp_path: Path) -> None:
    entries = [
        entry(tmp_path, "1e-3", 0, {0: 0.1, 1: 0.5, 2: 0.3}),
        entry(tmp_path, "1e-3", 1, {0: 0.1, 1: 0.2}, state="running, 2 of 3 generations"),
        entry(tmp_path, "3e-3", 0, {0: 0.1}),
    ]
    rewards, accuracies = draw_sweep(entries, "x").axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in accuracies.lines if len(line.get_xdata())}
    curves = sorted(drawn.values(), key=len)
    np.testing.assert_allclose(curves[0], [[0, 10]])
    np.testing.assert_allclose(curves[1], [[0, 10], [1, 35], [2, 30]])
    [band] = accuracies.collections
    half = np.ptp(band.get_paths()[0].vertices[:, 1][band.get_paths()[0].vertices[:, 0] == 1]) / 2
    assert half == pytest.approx(100 * np.std([0.5, 0.2], ddof=1))
    assert max(rewards.lines, key=lambda line: len(line.get_xdata())).get_ydata()[1] == pytest.approx(0.45)
    labels = [text.get_text() for text in accuracies.get_legend().get_texts()]
    assert labels == ["sigma=1e-3", "sigma=3e-3"]


def test_many_settings_are_drawn_and_the_best_ten_are_named(tmp_path: Path) -> None:
    entries = [entry(tmp_path, str(sigma), 0, {0: 0.1, 2: sigma / 20}) for sigma in range(13)]
    axes = draw_sweep(entries, "x").axes[1]
    assert sum(len(line.get_xdata()) > 0 for line in axes.lines) == 13
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [*(f"sigma={sigma}" for sigma in range(12, 2, -1)), "3 other settings"]
