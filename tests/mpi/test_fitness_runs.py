"""Runs with several completions of a prompt, with prompts of each member's own, with theta as a control."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import TINY_RUN, Run, assert_same_run, read, train

from esmpi.__main__ import main
from esmpi.report.plot import draw
from esmpi.store.run_file import RunFile
from esmpi.store.seal import seal
from esmpi.tasks.countdown import Countdown, CountdownConfig

SMALL = (
    *("es.generations=2", "es.population_size=6", "data.num_eval=4", "data.batch_size=6"),
    *("eval.every=1", "run.export_dtype=none"),
)
SAMPLED = ("sampling.temperature=1.0", "sampling.num_samples=4")
KINDS = {
    "mean": (),
    "best_of": (),
    "pass_at_k": ("es.fitness_k=2",),
    "majority": (),
}


@pytest.fixture(scope="module")
def by_kind(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directories of unbroken runs of one process, by the kind of fitness."""
    found = {}
    for kind, keys in KINDS.items():
        output = tmp_path_factory.mktemp(kind)
        train(launch, output, 0, *SMALL, *SAMPLED, f"es.fitness={kind}", *keys)
        found[kind] = output / "tiny"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_changes_no_bit_of_any_fitness(
    launch: Run, by_kind: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    keys = (*SMALL, *SAMPLED, f"es.fitness={kind}", *KINDS[kind], "data.mini_batch_size=5")
    train(launch, tmp_path, 0, *keys, "es.generations=1")
    train(launch, tmp_path, 3, *keys, "es.dispatch=dynamic")
    assert_same_run(tmp_path / "tiny", by_kind[kind])
    assert main(["replay", str(tmp_path / "tiny"), "--verify"]) == 0


def test_each_kind_is_another_run(by_kind: dict[str, Path]) -> None:
    runs = {kind: read(path) for kind, path in by_kind.items()}
    assert len({run["generations/theta_digest"][-1] for run in runs.values()}) == len(KINDS)
    # the same completions, as the members of generation 0 have the same noise and seeds
    first = {kind: run["members/fitness"][0] for kind, run in runs.items()}
    assert len({tuple(run["members/tokens"][0]) for run in runs.values()}) == 1
    assert (first["best_of"] >= first["mean"]).all()
    assert (first["best_of"] > first["mean"]).any()
    assert (first["best_of"] >= first["majority"]).all()
    # with 6 prompts and 4 samples pass@2 is a multiple of 1 / 36
    assert np.allclose(first["pass_at_k"] * 36, np.round(first["pass_at_k"] * 36))


def test_another_kind_in_the_same_directory_is_refused(
    by_kind: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["run", str(TINY_RUN), f"run.output_dir={by_kind['mean'].parent}", *SMALL]
    for changes, said in (
        ((*SAMPLED, "es.fitness=best_of"), "es.fitness: 'mean' -> 'best_of'"),
        (("sampling.temperature=1.0", "sampling.num_samples=3"), "sampling.num_samples: 4 -> 3"),
        ((*SAMPLED, "data.prompts=per_member"), "data.prompts: 'shared' -> 'per_member'"),
    ):
        assert main([*start, *changes]) == 2
        assert said in capsys.readouterr().err


def test_a_run_of_an_esmpi_without_these_keys_resumes(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path, 0, *SMALL, "es.generations=1")
    unbroken = train(launch, tmp_path / "unbroken", 0, *SMALL)
    path = tmp_path / "tiny" / "run.h5"
    run = RunFile.open(path)
    config = run.attributes["config"]
    for section, key in (
        ("es", "fitness"),
        ("es", "fitness_k"),
        ("data", "prompts"),
        ("sampling", "num_samples"),
        ("eval", "control_every"),
    ):
        del config[section][key]
    run.write()
    resumed = train(launch, tmp_path, 0, *SMALL)
    np.testing.assert_array_equal(resumed["generations/theta_digest"], unbroken["generations/theta_digest"])


@pytest.mark.parametrize("noise", ["full", "low_rank"])
def test_members_with_prompts_of_their_own_on_any_layout(launch: Run, tmp_path: Path, noise: str) -> None:
    keys = (*SMALL, "data.prompts=per_member", "es.antithetic=true", f"es.noise={noise}")
    shared = train(launch, tmp_path / "shared", 0, *keys, "data.prompts=shared", "es.generations=1")
    alone = train(launch, tmp_path / "alone", 0, *keys)
    train(launch, tmp_path / "parts", 0, *keys, "es.generations=1", "data.mini_batch_size=4", "engine.wave_size=1")
    train(launch, tmp_path / "parts", 3, *keys, "es.dispatch=dynamic")
    assert_same_run(tmp_path / "parts" / "tiny", tmp_path / "alone" / "tiny")
    assert (shared["members/fitness"][0] != alone["members/fitness"][0]).any()
    assert (alone["members/fitness"].std(axis=1) > 0).all()


def test_the_control_is_theta_on_the_prompts_of_the_generation(launch: Run, tmp_path: Path) -> None:
    config = CountdownConfig(num_numbers=(3,), number_range=(1, 20), target_range=(1, 99), operators="+-")
    draw_example = Countdown(config).generator(np.random.default_rng(1))
    lines = [json.dumps(draw_example()) for _ in range(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "first.jsonl").write_text("\n".join(lines[:6]))
    keys = (
        *SMALL,
        "es.generations=3",
        f"data.train={tmp_path / 'train.jsonl'}",
        "data.num_train=null",
        "data.order=fixed",
        "es.alpha=3e-2",
        f"eval.suites={{first: {tmp_path / 'first.jsonl'}}}",
    )
    without = train(launch, tmp_path / "without", 0, *keys)
    # without an evaluation of generation 1, the live weights are those of the last member
    controlled = train(launch, tmp_path / "with", 2, *keys, "eval.every=2", "eval.control_every=1")
    np.testing.assert_array_equal(without["generations/theta_digest"], controlled["generations/theta_digest"])
    # the suite has the very prompts of all generations, and both decode greedily
    expected = without["evaluations/first/reward_mean"][:3].tolist()
    assert len(set(expected)) == 3
    assert controlled["generations/fitness_theta"].tolist() == pytest.approx(expected, rel=1e-12)
    assert np.isnan(without["generations/fitness_theta"]).all()
    # it may begin and end at any time
    resumed = train(launch, tmp_path / "without", 0, *keys, "es.generations=5", "eval.control_every=2")
    assert np.isfinite(resumed["generations/fitness_theta"]).tolist() == [False, False, False, False, True]
    for name in ("with", "without"):
        left = draw(RunFile.open(tmp_path / name / "tiny" / "run.h5")).axes[0]
        dots = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))["the model itself"]
        known = np.isfinite(read(tmp_path / name / "tiny")["generations/fitness_theta"])
        assert dots.get_xdata().tolist() == np.flatnonzero(known).tolist()


def test_a_run_file_of_before_has_no_control_and_the_sigma_of_its_config(
    by_kind: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "run.h5"
    shutil.copyfile(by_kind["mean"] / "run.h5", path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 2
        del file.attrs["events"]
        for column in ("fitness_theta", "sigma", "alpha", "shrink"):
            del file[f"generations/{column}"]
    image = bytearray(path.read_bytes())
    seal(memoryview(image))
    path.write_bytes(image)
    old, run = RunFile.open(path), RunFile.open(by_kind["mean"] / "run.h5")
    assert np.isnan([row["fitness_theta"] for row in old.generations]).all()
    assert [row["fitness_mean"] for row in old.generations] == [row["fitness_mean"] for row in run.generations]
    assert old.sigma(1) == run.sigma(1) == 3e-3


def test_a_step_size_of_zero_leaves_theta_and_records_the_members(launch: Run, tmp_path: Path) -> None:
    run = train(launch, tmp_path, 0, *SMALL, "es.alpha=0")
    with h5py.File(tmp_path / "tiny" / "run.h5") as file:
        assert set(run["generations/theta_digest"].tolist()) == {int(file.attrs["model_digest"])}
    assert not run["members/coefficient"].any()
    assert (run["members/fitness"].std(axis=1) > 0).all()
    assert len(np.unique(run["members/seed"])) == 12
    assert main(["replay", str(tmp_path / "tiny"), "--verify"]) == 0
