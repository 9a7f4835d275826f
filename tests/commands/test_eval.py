"""`esmpi eval`: where results go, and that nothing that stands in a run directory is lost or mixed up by it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import TINY_RUN, Run, samples

import esmpi.setup  # noqa: F401 (before a test puts another `locked` where it imports it from)
from esmpi import files
from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.model.find import find_model
from esmpi.store.run_file import RunFile, samples_path

SMALL = ("es.population_size=2", "es.generations=2", "data.num_eval=3", "data.batch_size=2", "snapshot.every=1")


@pytest.fixture(scope="module")
def finished(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run. Not to be changed."""
    output = tmp_path_factory.mktemp("finished")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", "run.export_dtype=none", *SMALL], 0)
    assert done.returncode == 0, done.stderr
    return output / "tiny"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("suite", ["a/b", "../../pwn", "", ".", "a b"])
def test_no_other_name_for_a_suite_than_a_config_takes(
    run: Path, suite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run.parent)
    assert main(["eval", str(run), "--suite", suite]) == 2
    assert "letters, digits, _ and - only" in capsys.readouterr().err
    assert contents(run.parent) == before
    file = RunFile.open(run / "run.h5")
    with pytest.raises(UserError, match="cannot be the name of a suite"):
        file.add_evaluation(suite, {"generation": 0})
    with pytest.raises(UserError, match="cannot be the name of a suite"):
        samples_path(run / "run.h5", suite, 0)
    assert contents(run.parent) == before


def test_a_target_that_does_not_exist_is_neither_a_run_nor_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tmp_path / "nope")]) == 2
    assert "nope does not exist: name a run directory, a run file or a config" in capsys.readouterr().err


def test_what_was_committed_before_the_lock_was_taken_stays(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, really_locked = run / "run.h5", files.locked

    @contextmanager
    def locked(directory: Path) -> Iterator[None]:
        other = RunFile.open(path)
        row = other.generations[-1].copy()
        row["generation"] = 2
        other.commit(row, other.members[-1])
        with really_locked(directory):
            yield

    monkeypatch.setattr(files, "locked", locked)
    assert main(["eval", str(run), "--generation", "1", "--suite", "once_more"]) == 0
    after = RunFile.open(path)
    assert after.num_generations == 3
    assert [row["generation"] for row in after.evaluations["once_more"]] == [1]


def test_two_ranks_evaluate_as_one_does(launch: Run, run: Path, tmp_path: Path) -> None:
    done = launch(["-m", "esmpi", "eval", run, "--generation", "2", "--out", tmp_path / "out"], 2)
    assert done.returncode == 0, done.stderr
    assert samples(tmp_path / "out")["g000002.held_out.jsonl"] == samples(run)["g000002.held_out.jsonl"]


def test_beside_a_log_only_file_nothing_is_written_or_removed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, log = tmp_path / "home", tmp_path / "home" / "log.h5"
    home.mkdir()
    (home / ".thesis.tmp").mkdir()
    (home / ".thesis.tmp" / "chapter").write_text("years of work")
    assert main(["export", str(finished), "--log-only", "--out", str(log)]) == 0
    before = contents(home)
    assert main(["eval", str(log)]) == 2
    assert "--out DIR is needed" in capsys.readouterr().err
    assert main(["eval", str(log), "--out", str(tmp_path / "out")]) == 0
    assert contents(home) == before
    assert sorted(entry.name for entry in home.iterdir()) == [".thesis.tmp", "log.h5"]
    assert samples(tmp_path / "out")["g000002.held_out.jsonl"] == samples(finished)["g000002.held_out.jsonl"]


@pytest.mark.parametrize("suite", [(), ("--suite", "held_out")])
@pytest.mark.parametrize("change", ["run.seed=77", "scoring.failure_reward=-1.0", "data.num_eval=2"])
def test_results_of_another_kind_do_not_get_the_names_of_the_run(
    run: Path, suite: tuple[str, ...], change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert main(["eval", str(run), *suite, change]) == 2
    said = capsys.readouterr().err
    assert "--suite NAME is needed" in said
    assert change.split("=", maxsplit=1)[0] + ":" in said
    assert contents(run) == before


def test_further_suites_keep_their_problems(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"numbers": [1, 2, 3], "target": 6}\n')
    suites = [f"eval.suites={{extra: {tmp_path}/{name}.jsonl}}" for name in ("one", "two")]
    overrides = (f"run.output_dir={run.parent}", "run.export_dtype=none", *SMALL)
    assert main(["run", str(TINY_RUN), *overrides, suites[0]]) == 0
    before = contents(run)
    assert main(["eval", str(run), suites[1]]) == 2
    assert "eval.suites: extra: " in capsys.readouterr().err
    assert main(["eval", str(run), "--suite", "extra"]) == 2
    assert "extra is the name of other problems" in capsys.readouterr().err
    assert contents(run) == before
    # of another kind, and so only the one that has a name of its own
    assert main(["eval", str(run), "--suite", "hot", "run.seed=77"]) == 0
    assert {name for name in contents(run) if name not in before} == {"eval/g000002.hot.jsonl"}
    assert contents(run)["eval/g000002.extra.jsonl"] == before["eval/g000002.extra.jsonl"]
    # nor may two kinds, or the same file with other problems, share a name
    after = contents(run)
    assert main(["eval", str(run), "--suite", "hot", "--generation", "1"]) == 2
    assert "hot has results of other problems, or of another task" in capsys.readouterr().err
    (tmp_path / "one.jsonl").write_text('{"numbers": [1, 2, 4], "target": 7}\n')
    assert main(["eval", str(run), "--generation", "1"]) == 2
    assert "extra has results of other problems" in capsys.readouterr().err
    assert contents(run) == after


def test_a_model_gets_a_place_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert main(["eval", str(TINY_RUN), f"run.output_dir={run.parent}"]) == 2
    assert "--out DIR is needed" in capsys.readouterr().err
    model = find_model("esmpi:tiny_countdown")
    assert main(["eval", str(model)]) == 2
    assert f"model.path={model} --out DIR" in capsys.readouterr().err
    assert contents(run) == before


def test_mini_batches_change_nothing_where_evaluations_sample(tmp_path: Path) -> None:
    start = ["run", str(TINY_RUN), "run.export_dtype=none", *SMALL, "es.generations=1", "eval.temperature=0.7"]
    assert main([*start, f"run.output_dir={tmp_path / 'whole'}"]) == 0
    assert main([*start, f"run.output_dir={tmp_path / 'parts'}", "data.mini_batch_size=1"]) == 0
    whole, parts = (tmp_path / name / "tiny" / "eval" for name in ("whole", "parts"))
    names = sorted(path.name for path in whole.iterdir())
    assert names
    for name in names:
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
