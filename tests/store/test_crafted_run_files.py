"""A run file whose parts are of another kind or shape than the format says is refused in a line."""

from pathlib import Path

import numpy as np
import pytest
from run_files import editing, make

from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.store.run_file import MEMBER_DTYPE, RunFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.h5"


@pytest.mark.parametrize(
    ("name", "value"), [("config", "[1]"), ("tensors", "5"), ("provenance", "{}"), ("model_digest", "x")]
)
def test_attributes_of_another_kind_are_refused(path: Path, name: str, value: str) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = value
    with pytest.raises(UserError, match=f"attribute {name} is no"):
        RunFile.open(path)


def test_parts_that_do_not_belong_together_are_refused(path: Path) -> None:
    make(path)
    with editing(path) as file:
        for name in list(file["members"]):
            column = file["members"][name][:2]
            del file["members"][name]
            file["members"][name] = column
    with pytest.raises(UserError, match="2 rows of members for 3 generations"):
        RunFile.open(path)
    make(path)
    with editing(path) as file:
        del file["evaluations/held_out/accuracy"]
    with pytest.raises(UserError, match="an evaluation lacks a column"):
        RunFile.open(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", "{}"),
        ("config", '{"run": 5}'),
        ("forks", "[{}]"),
        ("events", "[1]"),
        ("events", '[{"generation": 2, "action": "restore", "reason": "r"}]'),
        ("events", '[{"generation": 2, "action": "restore", "reason": "r", "to": 3}]'),
        ("forks", '[{"run_uuid": "u", "generation": "1", "path": "p", "config": {}}]'),
        ("provenance", "[1]"),
        ("provenance", '[{"packages": []}]'),
        ("tensors", "[1]"),
        ("segments", "[{}]"),
        ("segments", "5"),
        ("run_uuid", 5),
    ],
)
def test_crafted_attributes_are_refused(
    path: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = value
    _assert_refused_in_a_line(path, capsys)


@pytest.mark.parametrize("shrink", [-0.5, 1.5, np.nan, np.inf])
def test_a_crafted_shrink_is_refused(path: Path, shrink: float, capsys: pytest.CaptureFixture[str]) -> None:
    make(path)
    with editing(path) as file:
        file["generations/shrink"][1] = shrink
    _assert_refused_in_a_line(path, capsys)


@pytest.mark.parametrize(
    "place",
    ["members/coefficient", "members/seed", "generations/generation", "evaluations/held_out/generation"],
)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (10**7, 10**7)], ids=str)
def test_crafted_shapes_are_refused(
    path: Path, place: str, shape: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    make(path)
    with editing(path) as file:
        del file[place]
        chunks = (1000, 1000) if len(shape) == 2 and shape[0] > 1000 else None
        file.create_dataset(place, shape, np.int64, chunks=chunks)
    _assert_refused_in_a_line(path, capsys)


def test_all_columns_of_a_crafted_shape_are_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(path)
    with editing(path) as file:
        for name in list(file["members"]):
            del file["members"][name]
            file["members"].create_dataset(name, (10**7, 10**7), MEMBER_DTYPE[name], chunks=(1000, 1000))
    _assert_refused_in_a_line(path, capsys)


@pytest.mark.parametrize(
    ("column", "value"), [("generation", [0, 9]), ("generation", [-1, 3]), ("accuracy", [b"a"] * 2)]
)
def test_crafted_evaluations_are_refused(
    path: Path, column: str, value: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    make(path)
    with editing(path) as file:
        del file["evaluations/held_out"][column]
        file["evaluations/held_out"][column] = value
    _assert_refused_in_a_line(path, capsys)


@pytest.mark.parametrize("text", ["[]", "5", "{}", '{"run_uuid": null}', "x"])
def test_a_model_folder_with_a_crafted_origin_is_trouble(
    path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(path)
    (path.parent / "model").mkdir()
    (path.parent / "model" / "esmpi.json").write_text(text)
    assert main(["inspect", str(path)]) == 1
    assert "exported model" in capsys.readouterr().out


def _assert_refused_in_a_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("esmpi: ")
    assert said.count("\n") == 1
    assert str(path) in said
