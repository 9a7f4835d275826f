"""`esmpi report A B`: only keys that make runs different ones have a column, and "before" is the base model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from esmpi.config.reader import parse_config
from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.report.compare import compare
from esmpi.store.run_file import GENERATION_DTYPE, RunFile

TREE: dict[str, Any] = {
    "run": {"name": "x"},
    "model": {"path": "esmpi:tiny_countdown"},
    "es": {"generations": 3},
    "task": {"name": "countdown"},
}


def make(
    folder: Path, *overrides: str, model: int = 1, data: str = "d", accuracy: dict[int, float] | None = None
) -> str:
    """Write a run file of three generations; return its directory."""
    config = parse_config(TREE, overrides).to_dict()
    run = RunFile.create(folder / "run.h5", config, model, data, ["w"], {})
    for generation in range(3):
        row = np.zeros(1, GENERATION_DTYPE)[0]
        row["generation"] = generation
        run.commit(row, np.zeros(2, MEMBER_DTYPE))
    for generation, value in (accuracy or {}).items():
        run.add_evaluation("held_out", {"generation": generation, "accuracy": value, "reward_mean": value})
    return str(folder)


def head(*runs: str) -> list[str]:
    """Return the columns of the table of some runs that stand before their results."""
    columns = compare(runs).splitlines()[0].split()
    return columns[1 : columns.index("generations")]


def test_what_changes_no_result_is_no_difference(tmp_path: Path) -> None:
    one = make(tmp_path / "one")
    other = make(
        tmp_path / "other",
        *(
            "snapshot.every=5",
            "run.profile=true",
            "engine.kind=vllm",
            "engine.max_model_len=512",
            "es.dispatch=dynamic",
        ),
        *("eval.every=1", "log.level=debug", "scoring.num_processes=4", "es.generations=9", "run.name=y"),
    )
    assert head(one, other) == []


def test_what_changes_the_result_has_a_column(tmp_path: Path) -> None:
    one, other = make(tmp_path / "one"), make(tmp_path / "other", "es.sigma=2e-3", "sampling.max_tokens=7")
    assert head(one, other) == ["alpha", "sigma", "sampling.max_tokens"]


@pytest.mark.parametrize(("override", "what"), [("model.path=other/model", "model"), ("data.train=x.jsonl", "data")])
def test_where_something_lies_counts_if_it_is_something_else(tmp_path: Path, override: str, what: str) -> None:
    one = make(tmp_path / "one", "data.num_train=300")
    same = make(tmp_path / "same", "data.num_train=300", override)
    changed: dict[str, Any] = {"model": {"model": 2}, "data": {"data": "e"}}[what]
    different = make(tmp_path / "different", "data.num_train=300", override, **changed)
    assert head(one, same) == []
    assert head(one, different) == [override.partition("=")[0]]


def test_a_key_that_a_run_lacks_has_its_default(tmp_path: Path) -> None:
    new, old = make(tmp_path / "new", "es.shaping=centered_rank"), make(tmp_path / "old")
    file = RunFile.open(Path(old) / "run.h5")
    del file.attributes["config"]["es"]["shaping"]
    file.write()
    lines = [line.split() for line in compare([new, old]).splitlines()]
    assert [line[1] for line in lines] == ["shaping", "centered_rank", "zscore"]
    assert [line.split()[1] for line in compare([old, new]).splitlines()] == ["shaping", "zscore", "centered_rank"]


@pytest.mark.parametrize(
    ("attributes", "column"),
    [
        ({"model_digest": 2**60}, "model.digest"),
        ({"data_digest": "e"}, "data.digest"),
        ({"task_digest": "beef"}, "task.digest"),
        ({"suite_digests": {"held_out": "a", "math": "c"}}, "eval.digest"),
    ],
)
def test_other_contents_under_the_same_name_have_a_column(
    tmp_path: Path, attributes: dict[str, Any], column: str
) -> None:
    runs = [make(tmp_path / name) for name in ("one", "same", "other")]
    for run in runs:
        file = RunFile.open(Path(run) / "run.h5")
        file.attributes |= {"task_digest": "cafe", "suite_digests": {"held_out": "a", "math": "b"}}
        file.attributes |= attributes if run == runs[2] else {}
        file.write()
    assert head(*runs[:2]) == []
    assert head(*runs) == [column]
    first, same, other = (line.split()[1] for line in compare(runs).splitlines()[1:])
    assert first == same != other


def test_before_is_the_base_model_or_a_dash(tmp_path: Path) -> None:
    with_base = make(tmp_path / "a", accuracy={0: 0.1, 2: 0.4})
    without = make(tmp_path / "b", accuracy={1: 0.2, 3: 0.3})
    first, second = (line.split() for line in compare([with_base, without]).splitlines()[1:])
    assert first[-7:] == ["10.0", "%", "40.0", "%", "40.0", "%", "2"]
    assert second[-6:] == ["-", "30.0", "%", "30.0", "%", "3"]


def test_a_directory_without_a_run_has_a_line(tmp_path: Path) -> None:
    table = compare([make(tmp_path / "a"), tmp_path / "nothing"])
    assert "no run file" in table.splitlines()[-1]
    with pytest.raises(UserError, match="no run file"):
        compare([tmp_path / "nothing"])
