"""What figures hold: numbers of the run file, no matter how many; and the files that they become."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_runs import make_run, sample_of

from esmpi.errors import UserError
from esmpi.record.recorder import write_samples
from esmpi.report.draw import draw, save
from esmpi.report.figure import Curve, Figure, thinned
from esmpi.report.inline import inline
from esmpi.report.of_run import figures_of
from esmpi.report.of_runs import figures_of_groups, groups_of
from esmpi.report.palette import DARK, LIGHT, NUM_COLORS
from esmpi.report.view import open_run
from esmpi.store.run_file import RunFile

ALL = {
    *("fitness", "accuracy", "reward", "suites", "parts", "length", "cut_off", "kl", "distance", "settings", "time"),
    *("speed", "idle", "idle_over_time", "failures", "member_parts"),
}


def test_a_run_has_each_figure_with_the_numbers_of_its_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    figures = {figure.name: figure for figure in figures_of(RunFile.open(run.path))}
    assert set(figures) == ALL
    fitness = {curve.name: curve for curve in figures["fitness"].curves}
    median = fitness["median, with quartiles"]
    expected = np.quantile(run.members[5]["fitness"], (0.5, 0.25, 0.75))
    assert median.low is not None
    assert median.high is not None
    np.testing.assert_allclose((median.y[5], median.low[5], median.high[5]), expected)
    assert fitness["the model itself"].x.tolist() == [0, 3, 6, 9]
    assert figures["fitness"].events == [8]
    assert figures["accuracy"].levels == [("base model", 100 * run.evaluations["held_out"][0]["accuracy"], -1)]
    # the second rank is busy for 1.2 s, the first one 0.4 s less, of 3 s
    np.testing.assert_allclose(figures["idle"].curves[0].y, [100 * 0.4 / 3, 0], rtol=1e-5)
    for curve, share in zip(figures["idle_over_time"].curves, (100 * 0.4 / 3, 0), strict=True):
        np.testing.assert_allclose(curve.y, share, rtol=1e-5)
    [part] = figures["member_parts"].curves
    means = [row["format_mean"] for row in run.figures]
    assert part.y is not None
    assert part.low is not None
    np.testing.assert_allclose(part.y, means)
    np.testing.assert_allclose(part.low, np.array(means) - 0.1)
    time = figures["time"].curves
    stacked = np.sum([curve.y for curve in time if not curve.dash], axis=0)
    np.testing.assert_allclose(stacked, 3)
    np.testing.assert_allclose(figures["speed"].curves[0].y, [row["tokens"] / 3 for row in run.generations])
    np.testing.assert_allclose(figures["length"].curves[0].y, [row["tokens"] / 40 for row in run.generations])
    assert {curve.name for curve in figures["parts"].curves} == {"format", "answer"}
    assert [curve.name for curve in figures["failures"].curves] == ["rewards that raised", "rewards out of time"]
    assert [curve.name for curve in figures["settings"].curves] == ["alpha"], "sigma does not vary"


def test_many_ranks_are_a_mean_and_a_band(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.attributes["provenance"][0]["ranks"] = 8  # of which two had members
    band, mean = next(figure for figure in figures_of(run) if figure.name == "idle_over_time").curves
    np.testing.assert_allclose((band.low[3], band.high[3]), (0, 100 * 1.2 / 3), rtol=1e-5)
    np.testing.assert_allclose(mean.y[3], 100 * (0.4 + 6 * 1.2) / 8 / 3, rtol=1e-5)


def test_the_quartiles_are_those_of_the_samples(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    [band, _] = next(figure for figure in figures_of(run) if figure.name == "reward").curves
    assert band.x.tolist() == [0, 4, 8, 12]
    assert (band.low[0], band.high[0], band.low[-1], band.high[-1]) == (0, 0, 0.75, 1)


def test_several_samples_of_a_problem_have_a_band_from_the_lowest_accuracy_to_the_highest(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for generation, right in ((0, (1, 3)), (12, (8, 6))):  # of ten problems, by the first and by the second samples
        lines = [
            sample_of(i, generation, False, np.random.default_rng(0), ()) | {"sample": k, "correct": i < right[k]}
            for k in range(2)
            for i in range(10)
        ]
        write_samples(run.path, "held_out", generation, lines)
    [band, curve] = next(figure for figure in figures_of(run) if figure.name == "accuracy").curves
    assert curve.y is not None
    assert [*zip(band.x.tolist(), band.low.tolist(), band.high.tolist(), strict=True)] == [(0, 10, 30), (12, 60, 80)]


def test_thinning_keeps_every_peak() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=5000)
    y[1234], y[4321] = 50, -50
    curve = thinned(Curve(name="x", x=np.arange(5000.0), y=y, low=y - 1, high=y + 1), 300)
    assert len(curve.x) <= 302
    assert {50, -50} <= set(curve.y.tolist())
    assert (curve.low.min(), curve.high.max()) == (-51, 51)
    np.testing.assert_array_equal(curve.y, y[curve.x.astype(int)])
    band = thinned(Curve(name="x", x=np.arange(5000.0), low=y - 1, high=y + 1), 300)
    assert (band.low.min(), band.high.max()) == (-51, 51)


def test_runs_that_differ_in_their_seed_alone_are_a_mean_and_a_band(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{sigma}-{seed}", f"es.sigma={sigma}", seed=seed) for sigma in (1, 2) for seed in (0, 1)
    ]
    groups = groups_of(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [
        ("alpha=0.5, sigma=1", 2),
        ("alpha=1, sigma=2", 2),
    ]
    fitness = next(figure for figure in figures_of_groups(groups) if figure.name == "fitness")
    means = np.array([[row["fitness_mean"] for row in run.generations] for run in runs[:2]])
    np.testing.assert_allclose(fitness.curves[0].y, means.mean(0))
    np.testing.assert_allclose(fitness.curves[0].high - means.mean(0), means.std(0, ddof=1))
    tokens = np.array([[row["tokens"] for row in run.generations] for run in runs[:2]])
    spent = np.concatenate([[0], np.cumsum(tokens.mean(0))])[:-1]
    np.testing.assert_allclose(fitness.on("tokens").curves[0].x, spent)
    np.testing.assert_allclose(fitness.on("seconds").curves[0].x, 3 * np.arange(12))
    assert fitness.on("seconds").x_label == "seconds of training"


def test_runs_of_different_settings_are_named_after_their_directories_or_settings(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i) / name, f"es.sigma={i + 1}") for i, name in enumerate(("x", "y", "x"))]
    assert [group.name for group in groups_of(runs[:2])] == ["x", "y"]
    assert [group.name for group in groups_of(runs)] == [f"alpha={i / 2:g}, sigma={i}" for i in (1, 2, 3)]
    assert [group.name for group in groups_of(runs[:1])] == ["x"]


def test_pictures_are_png_and_svg_with_the_texts_as_they_are(tmp_path: Path) -> None:
    name = "a $x$ <b>&"
    figure = Figure(
        name="f", title="t", y_label="", curves=[Curve(name=n, x=np.arange(3.0), y=np.ones(3)) for n in (name, "b")]
    )
    paths = save({"f": draw([figure])}, tmp_path)
    assert [path.name for path in paths] == ["f.png", "f.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    texts = [element.text for element in ElementTree.parse(paths[1]).iter("{http://www.w3.org/2000/svg}text")]
    assert name in texts


def test_a_figure_in_a_page_has_no_colour_of_its_own_and_no_style(tmp_path: Path) -> None:
    for number, figure in enumerate(figures_of(make_run(tmp_path / "run"))):
        svg = inline(figure, number)
        assert not re.search(r"style=|<script|<style|<image|https?:(?!//www\.w3\.org/2000/svg)", svg)
        assert not re.search(r"#[0-9a-f]{6}\b", svg), figure.name
        assert svg.count("<path") > 2
        ids, used = set(re.findall(r' id="([^"]+)"', svg)), set(re.findall(r"#(f\d+-[\w-]+)", svg))
        assert used <= ids, figure.name
        assert all(name.startswith(f"f{number}-") for name in ids)


def test_figures_of_a_notebook(tmp_path: Path) -> None:
    make_run(tmp_path / "run", texts=["<script>alert(1)</script>"])
    run = open_run(tmp_path / "run")
    assert set(run.figures) == ALL
    [axes] = run.plot("time").axes
    assert axes.get_title(loc="left") == "Time of a generation by phase"
    assert len(run.plot().axes) == 2
    assert run.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"no figure 'tim'.*time"):
        run.plot("tim")
    assert "12 of 12" in run._repr_html_()


def linear(color: str) -> np.ndarray:
    """Return a colour as linear RGB."""
    channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Return linear RGB as CIELAB."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(rgb, 0, 1) / (0.95047, 1, 1.08883)
    f = np.where(xyz > 0.008856, np.cbrt(np.maximum(xyz, 0)), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


SEEN_BY = {
    "everyone": np.eye(3),
    # Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009
    "protanopes": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopes": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopes": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_are_told_apart_by_everyone_and_from_the_ground(colors: dict[str, str]) -> None:
    def luminance(name: str) -> float:
        return float(np.array([0.2126, 0.7152, 0.0722]) @ linear(colors[name]))

    def contrast(name: str, ground: str) -> float:
        low, high = sorted((luminance(name), luminance(ground)))
        return (high + 0.05) / (low + 0.05)

    curves = [f"c{number}" for number in range(NUM_COLORS)]
    for name in (*curves, "grey"):
        assert contrast(name, "ground") >= 3, name
    for name in ("ink", "muted", "good", "bad"):
        for ground in ("ground", "page"):
            assert contrast(name, ground) >= 4.5, (name, ground)
    assert contrast("ink", "mark") >= 4.5
    for who, matrix in SEEN_BY.items():
        for one, other in itertools.combinations(curves, 2):
            distance = np.linalg.norm(lab(matrix @ linear(colors[one])) - lab(matrix @ linear(colors[other])))
            assert distance >= 10, (who, one, other, distance)
