"""Problems from files of each kind, folders saved by `datasets` and the hub: the same examples, or one line."""

import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TINY_RUN, require

from esmpi.config.problems import DataConfig, EvalConfig
from esmpi.config.reader import load_config, parse_config
from esmpi.data.problems import Problems, check_files, load_problems
from esmpi.data.shots import with_shots
from esmpi.errors import UserError
from esmpi.tasks import Example
from esmpi.tasks.countdown import Countdown, CountdownConfig

TASK = Countdown(CountdownConfig())
EXAMPLES: list[Example] = [
    {"numbers": [i, 2, 7], "target": i + 9, "note": f'ä "{i}",\nand [more' if i else "plain"} for i in range(12)
]


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real library, with a cache of its own."""
    try:
        import datasets
    except ImportError:
        require("data", False, "pip install 'esmpi[data]'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def load(task: Any = TASK, **keys: Any) -> Problems:
    suites = keys.pop("suites", None)
    return load_problems(DataConfig(**{"batch_size": 1, "num_eval": None} | keys), task, 0, suites)


def complaint(**keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(**keys)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write_jsonl(path: Path, rows: list[Example]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[Example]) -> None:
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_csv(path: Path, rows: list[Example]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})


def write_parquet(path: Path, rows: list[Example]) -> None:
    from datasets import Dataset

    Dataset.from_list(rows).to_parquet(str(path))


WRITERS: dict[str, Callable[[Path, list[Example]], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_same_problems_in_any_file(datasets: Any, tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"train{suffix}", EXAMPLES)
    WRITERS[suffix](tmp_path / f"eval{suffix}", EXAMPLES[8:])
    keys = {"train": str(tmp_path / f"train{suffix}"), "eval": str(tmp_path / f"eval{suffix}")}
    check_files(DataConfig(batch_size=1, **keys))
    problems = load(**keys)
    assert problems.train == EXAMPLES
    assert problems.held_out == EXAMPLES[8:]
    assert [TASK.prompt(example) for example in problems.train] == [TASK.prompt(example) for example in EXAMPLES]
    json.dumps(problems.train)
    assert load(**keys, num_train=5).train == EXAMPLES[:5]


def test_a_folder_with_two_splits(datasets: Any, tmp_path: Path) -> None:
    parts = {"train": EXAMPLES, "test": EXAMPLES[8:], "extra": EXAMPLES[2:4]}
    folder = str(tmp_path / "saved")
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(folder)
    check_files(DataConfig(train=folder, batch_size=1))
    problems = load(train=folder, eval=folder)
    assert (problems.train, problems.held_out) == (EXAMPLES, EXAMPLES[8:])
    problems = load(train=folder, eval=folder, train_split="extra", suites={"more": folder})
    assert problems.train == EXAMPLES[2:4]
    assert problems.suites == {"held_out": EXAMPLES[8:], "more": EXAMPLES[8:]}
    assert complaint(train=folder, train_split="tarin", eval=folder) == (
        f"data.train: {folder} has no split 'tarin', did you mean train?"
    )
    assert complaint(train=folder, suites={"more": folder}, eval_split="x").startswith("eval.suites: more: ")
    single = str(tmp_path / "single")  # without splits
    datasets.Dataset.from_list(EXAMPLES).save_to_disk(single)
    assert load(train=single).train == EXAMPLES


def test_columns_of_other_names(tmp_path: Path) -> None:
    rows = [{"nums": e["numbers"], "result": e["target"], "target": "not this"} for e in EXAMPLES]
    path = tmp_path / "train.jsonl"
    write_jsonl(path, rows)
    columns = {"numbers": "nums", "target": "result"}
    problems = load(train=str(path), columns=columns)
    assert [(e["numbers"], e["target"]) for e in problems.train] == [(e["numbers"], e["target"]) for e in EXAMPLES]
    text = complaint(train=str(path), columns=columns | {"target": "resutl"})
    assert text == (f"data.train: {path} line 1: no column 'resutl', which data.columns names, did you mean result?")


def test_split_holds_some_of_the_training_problems_out(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_jsonl(path, EXAMPLES)
    problems = load(train=str(path), eval="split", num_eval=4)
    assert len(problems.held_out) == 4
    assert problems.held_out != EXAMPLES[:4]
    # both in their order, and together what was there
    for part in (problems.train, problems.held_out):
        assert part == [example for example in EXAMPLES if example in part]
    assert sorted(e["target"] for e in problems.train + problems.held_out) == [e["target"] for e in EXAMPLES]
    assert load(train=str(path), eval="split", num_eval=4) == problems
    fewer = load(train=str(path), eval="split", num_eval=4, num_train=3)
    assert (fewer.held_out, fewer.train) == (problems.held_out, problems.train[:3])
    assert "leave none to train on" in complaint(train=str(path), eval="split", num_eval=12)
    assert complaint(train=str(path), eval="split", num_eval=4, num_train=9).endswith("8 are left to train on")
    write_jsonl(path, EXAMPLES * 3)
    tripled = load(train=str(path), eval="split", num_eval=4)
    held_out = {TASK.key(example) for example in tripled.held_out}
    assert not held_out & {TASK.key(example) for example in tripled.train}, "a problem's twin is trained on"
    assert len(tripled.train) == 3 * (12 - len(held_out))


def test_splits_without_a_meaning_are_refused() -> None:
    for keys in ({"train": "split"}, {"train": "generated", "eval": "split"}):
        with pytest.raises(ValueError, match="split"):
            DataConfig(**keys)
    for source in ("generated", "split"):
        with pytest.raises(ValueError, match="suites: more: "):
            EvalConfig(suites={"more": source})


def test_few_shot_examples_stand_in_front(tmp_path: Path) -> None:
    shots = [{"prompt": "Q: 1+1?\nA:", "completion": " 2"}, {"prompt": "Q: 2+2?\nA:", "completion": " 4"}]
    path = tmp_path / "shots.json"
    write_json(path, shots)
    problems = load(few_shot=str(path))
    assert problems.shots == shots
    assert with_shots("Q: 3+3?\nA:", problems.shots) == "Q: 1+1?\nA: 2\n\nQ: 2+2?\nA: 4\n\nQ: 3+3?\nA:"
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+3?"}
    turns = [
        {"role": "user", "content": "Q: 1+1?\nA:"},
        {"role": "assistant", "content": " 2"},
        {"role": "user", "content": "Q: 2+2?\nA:"},
        {"role": "assistant", "content": " 4"},
    ]
    assert with_shots([system, user], problems.shots) == [system, *turns, user]
    assert with_shots([user], problems.shots) == [*turns, user]
    assert with_shots("x", []) == "x"
    write_json(path, [*shots, {"prompt": "x", "completion": 3}])
    assert complaint(few_shot=str(path)) == (
        f"data.few_shot: {path} row 3: must have `prompt` and `completion`, both text"
    )
    with pytest.raises(UserError, match=r"data\.few_shot: no file .*shot\.json, did you mean .*shots\.json\?"):
        check_files(DataConfig(few_shot=str(tmp_path / "shot.json")))


def test_a_wrong_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("{}")
    with pytest.raises(UserError) as caught:
        check_files(DataConfig(train=str(tmp_path / "train.txt")))
    assert str(caught.value) == (
        f"data.train: {tmp_path / 'train.txt'} must end with one of .jsonl, .json, .csv, .parquet"
    )


@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_files_are_refused(datasets: Any, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"train{suffix}"
    path.write_bytes(b'{"numbers": [1\xff\x00')
    assert complaint(train=str(path)).startswith(f"data.train: cannot read {path}: ")
    path.unlink()
    path.mkdir()  # what cannot be read as a file, for root as well
    assert complaint(train=str(path)).startswith(f"data.train: cannot read {path}: ")


@pytest.mark.parametrize(("text", "expected"), [("{}", "must hold a list of objects"), ("[1]", "row 1: not an object")])
def test_json_of_another_shape_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "train.json").write_text(text)
    assert complaint(train=str(tmp_path / "train.json")).endswith(expected)


def test_values_that_json_has_not(datasets: Any, tmp_path: Path) -> None:
    """Problems go into files and between ranks: dates become text, what has none is refused."""
    day = datetime.datetime(2026, 1, 2, 3, 4)
    path = tmp_path / "train.parquet"
    write_parquet(path, [example | {"when": day, "more": [{"on": day.date()}]} for example in EXAMPLES])
    problems = load(train=str(path))
    assert (problems.train[3]["when"], problems.train[3]["more"]) == ("2026-01-02T03:04:00", [{"on": "2026-01-02"}])
    write_parquet(tmp_path / "bytes.parquet", [example | {"picture": b"\x89PNG"} for example in EXAMPLES])
    text = complaint(train=str(tmp_path / "bytes.parquet"))
    assert "row 1: a value of type bytes" in text


def test_words_in_a_table_are_words(datasets: Any, tmp_path: Path) -> None:
    """Readers of tables like to take some of them for nothing."""
    words = ["None", "NA", "null", "nan", "a", ""]
    write_csv(tmp_path / "train.csv", [{"numbers": [1, 2], "target": 3, "answer": word} for word in words])
    found = [example["answer"] for example in load(train=str(tmp_path / "train.csv")).train]
    assert found == [*words[:-1], None]


def test_digits_of_a_table_survive(tmp_path: Path) -> None:
    """A column is numbers only if each of them is written as it would be written again."""
    path = tmp_path / "train.csv"
    columns = {
        "number": (["6", "-70", ""], [6, -70, None]),
        "share": (["0.5", "6", "1e-05"], [0.5, 6, 1e-05]),
        "phone": (["007", "8", "9"], ["007", "8", "9"]),
        "size": (["1e3", "8", "9"], ["1e3", "8", "9"]),
        "price": (["1.50", "2", "3"], ["1.50", "2", "3"]),
        "long": (["9" * 20, "1", "2"], [int("9" * 20), 1, 2]),
        "too_long": (["9" * 5000, "1", "2"], ["9" * 5000, "1", "2"]),
        "word": (["inf", "nan", "1_000"], ["inf", "nan", "1_000"]),
        "truth": (["True", "False", ""], ["True", "False", None]),
        "mixed": (["[1]", "2", "[0, 1)"], [[1], "2", "[0, 1)"]),
    }
    rows = [{"numbers": [1, 2], "target": 3} | {k: cells[i] for k, (cells, _) in columns.items()} for i in range(3)]
    write_csv(path, rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheets begin it
    found = load(train=str(path)).train
    for name, (_, values) in columns.items():
        assert [example[name] for example in found] == values
        assert [type(example[name]) for example in found] == [type(value) for value in values], name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is empty"),
        ("numbers,target\n", "1 problems wanted"),
        ("numbers,numbers\n1,2\n", "two columns are called 'numbers'"),
        ("numbers,target\n[1],2\n[1],2,3\n", "row 2: 3 cells for 2 columns (numbers, target)"),
        ("numbers,target\n[1]\n", "row 1: 1 cells for 2 columns"),
        ('numbers,target\n"[1],2\n', "unexpected end of data"),
        ("nums,target\n[1],2\n", "(columns: nums, target; data.columns renames them)"),
    ],
)
def test_tables_of_another_shape_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "train.csv").write_text(text)
    assert expected in complaint(train=str(tmp_path / "train.csv"))


def test_json_that_is_no_problem_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"numbers": ' + "[" * 100_000)
    assert complaint(train=str(path)).endswith("line 1: brackets too deep inside one another")
    path.write_text('{"numbers": [1], "target": 1, "note": "\\ud800"}\n')
    assert "half a character" in complaint(train=str(path))
    path.write_bytes(b'\xef\xbb\xbf{"numbers": [1], "target": 1}\r\n')
    assert load(train=str(path)).train == [{"numbers": [1], "target": 1}]
    write_jsonl(tmp_path / "train.json", EXAMPLES)
    assert complaint(train=str(tmp_path / "train.json")).endswith("with an object on each line it is a .jsonl file")


def test_a_file_that_changed_is_read_anew(datasets: Any, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    write_csv(path, EXAMPLES)
    assert load(train=str(path)).train == EXAMPLES
    write_csv(path, EXAMPLES[::-1])
    os.utime(path, (1, 1))
    assert load(train=str(path)).train == EXAMPLES[::-1]


def test_a_hub_id_without_the_hub_is_one_line(tmp_path: Path) -> None:
    code = (
        "from esmpi.config.problems import DataConfig\n"
        "from esmpi.data.problems import check_files, load_problems\n"
        "from esmpi.errors import UserError\n"
        "from esmpi.tasks.countdown import Countdown, CountdownConfig\n"
        "config = DataConfig(train='nobody/none-such:main', batch_size=1)\n"
        "check_files(config)\n"
        "try:\n"
        "    load_problems(config, Countdown(CountdownConfig()), 0)\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("data.train: cannot read nobody/none-such:main: ")
    assert lines[0].endswith("save_to_disk(FOLDER), and name the folder here")


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # Python's way to say: not installed
    (tmp_path / "train.parquet").write_text("")
    assert complaint(train=str(tmp_path / "train.parquet")).endswith("pip install 'esmpi[data]'")


def test_few_shot_examples_cannot_stand_in_a_chat_written_as_text() -> None:
    tree = load_config(TINY_RUN).to_dict() | {"task": {"name": "gsm8k", "chat_format": "chatml"}}
    with pytest.raises(UserError, match=r"data\.few_shot: cannot stand .* chatml; choose none or model"):
        parse_config(tree, ["data.few_shot=shots.jsonl"])
    assert parse_config(tree, ["data.few_shot=shots.jsonl", "task.chat_format=model"]).data.few_shot == "shots.jsonl"
