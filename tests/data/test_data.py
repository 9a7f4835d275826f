"""Problems: files and their errors, generated ones, and which of them a generation sees."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from esmpi.config.problems import DataConfig
from esmpi.config.reader import parse_config
from esmpi.data.batch import batch
from esmpi.data.problems import Problems, check_files, load_problems
from esmpi.errors import UserError
from esmpi.es.random_streams import stream, stream_seed
from esmpi.identity import digest_of
from esmpi.tasks import Example, make_task
from esmpi.tasks.countdown import Countdown, CountdownConfig

TASK = Countdown(CountdownConfig(num_numbers=(3,), number_range=(1, 20), target_range=(1, 99)))
EXAMPLES: list[Example] = [{"id": i, "numbers": [i, 2], "target": i + 2} for i in range(10)]


def load(**keys: Any) -> Problems:
    return load_problems(DataConfig(**{"batch_size": 1, "num_eval": None} | keys), TASK, run_seed=keys.pop("seed", 0))


def write(path: Path, examples: list[Example]) -> str:
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return str(path)


def keys_of(examples: list[Example]) -> list[Any]:
    return [TASK.key(example) for example in examples]


def test_files_are_read_in_order_with_all_their_keys(tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "train.jsonl", EXAMPLES), write(tmp_path / "eval.jsonl", EXAMPLES[7:])
    problems = load(train=train, eval=held_out)
    assert problems == Problems(EXAMPLES, {"held_out": EXAMPLES[7:]})
    assert load(train=train, eval=held_out, num_train=4, num_eval=2) == Problems(
        EXAMPLES[:4], {"held_out": EXAMPLES[7:9]}
    )


def test_blank_lines_and_a_missing_last_newline_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n" + json.dumps(EXAMPLES[0]) + "\r\n  \n" + json.dumps(EXAMPLES[1]))
    assert load(train=str(path), num_eval=1).train == EXAMPLES[:2]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\u00e4", "\U0001f600"])
def test_a_line_ends_at_a_newline_and_nowhere_else(tmp_path: Path, character: str) -> None:
    """JSON allows these inside of strings as they are; `str.splitlines` cuts at some of them."""
    path = tmp_path / "train.jsonl"
    example = EXAMPLES[3] | {"note": f"a{character}b"}
    path.write_text(json.dumps(example, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(train=str(path), num_eval=1).train == [example]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "Expecting property name"),
        ('{"numbers": [1], "target": 1} x', "Extra data"),
        ("[1, 2]", "not an object"),
        ("3", "not an object"),
        ('{"target": 3}', "`numbers` must be a list of integers, got None"),
        ('{"numbers": [1, 2]}', "`target` must be a number"),
        ('{"numbers": [1, "2"], "target": 3}', "`numbers` must be integers from 0 on, got '2'"),
    ],
)
@pytest.mark.parametrize("part", ["train", "eval"])
def test_a_bad_line_is_named(tmp_path: Path, line: str, expected: str, part: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f"{json.dumps(EXAMPLES[0])}\n\n{json.dumps(EXAMPLES[1])}\n{line}\n")
    with pytest.raises(UserError) as caught:
        load(**{part: str(path)})
    assert str(caught.value).startswith(f"data.{part}: {path} line 4: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_beyond_those_asked_for_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(f"{json.dumps(EXAMPLES[0])}\nbroken\n")
    assert load(train=str(path), num_train=1, num_eval=1).train == EXAMPLES[:1]


def test_too_few_problems_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", EXAMPLES)
    with pytest.raises(UserError, match=r"data\.num_train: 11 problems wanted, .* has 10"):
        load(train=train, num_train=11)
    with pytest.raises(UserError, match=r"data\.num_eval: 1 problems wanted, .* has 0"):
        load(eval=write(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match=r"data\.batch_size: 11 prompts wanted, but there are 10 to train on"):
        load(train=train, batch_size=11, num_eval=1)
    assert len(load(train=train, batch_size=10, num_eval=1).train) == 10


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train: cannot read .*none\.jsonl: .*No such file"):
        load(train=str(tmp_path / "none.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"data\.eval: cannot read .*binary\.jsonl"):
        load(eval=str(tmp_path / "binary.jsonl"))


def test_missing_files_are_found_out_beforehand(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", EXAMPLES)
    check_files(DataConfig(train=train))
    check_files(DataConfig())
    with pytest.raises(UserError) as caught:
        check_files(DataConfig(eval=str(tmp_path / "trian.jsonl")))
    assert str(caught.value) == f"data.eval: no file {tmp_path / 'trian.jsonl'}, did you mean {train}?"
    with pytest.raises(UserError, match=r"data\.train: no file generatde, did you mean generated\?"):
        check_files(DataConfig(train="generatde"))


def test_generated_parts_are_disjoint_and_without_repetition() -> None:
    problems = load(num_train=600, num_eval=300)
    train, held_out = set(keys_of(problems.train)), set(keys_of(problems.held_out))
    assert (len(train), len(held_out)) == (600, 300)
    assert not train & held_out


def test_generated_parts_avoid_those_of_a_file(tmp_path: Path) -> None:
    made = load(num_train=300, num_eval=100)
    train = load(train=write(tmp_path / "a.jsonl", made.held_out), num_eval=100)
    assert not set(keys_of(train.train)) & set(keys_of(train.held_out))
    held_out = load(eval=write(tmp_path / "b.jsonl", made.train), num_train=300)
    assert not set(keys_of(held_out.train)) & set(keys_of(held_out.held_out))


def test_a_suite_takes_its_problems_from_training_and_leaves_the_held_out_ones(tmp_path: Path) -> None:
    config = DataConfig(batch_size=1, num_train=300, num_eval=100)
    alone = load_problems(config, TASK, 0)
    shared = [alone.train[3], alone.held_out[5]]
    problems = load_problems(config, TASK, 0, {"more": write(tmp_path / "more.jsonl", shared)})
    assert problems.suites == {"held_out": alone.held_out, "more": shared}
    assert alone.train[3] not in problems.train
    assert len(problems.train) == 300
    other = load_problems(config, TASK, 0, {"more": write(tmp_path / "more.jsonl", alone.held_out[:9])})
    assert other.train == alone.train


def test_generated_problems_are_the_run_seeds() -> None:
    def made(seed: int, **keys: int) -> Problems:
        return load_problems(DataConfig(batch_size=1, **{"num_train": 50, "num_eval": 20} | keys), TASK, seed)

    assert made(0) == made(0)
    assert made(0).train != made(1).train
    assert made(0).held_out != made(1).held_out
    assert made(0, num_eval=30).held_out[:20] == made(0).held_out
    assert len(made(0, num_train=1).train) == 1


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("countdown", "184baace2b7eb20676c015a42fd26673"),
        ("multiplication", "ea349c2ae45b325f03d0948726dac643"),
        ("sudoku", "616cd07eff38866fd6b60537f90dfd19"),
    ],
)
def test_generated_problems_never_change(name: str, digest: str) -> None:
    """A run could not be resumed by an esmpi that generates others."""
    tree = {"run": {"name": "x"}, "model": {"path": "m"}, "es": {"generations": 1}, "task": {"name": name}}
    config = parse_config(tree | {"data": {"num_train": 30, "num_eval": 10, "batch_size": 5}})
    problems = load_problems(config.data, make_task(config.task), 7)
    assert digest_of([problems.train, problems.held_out]) == digest


def test_defaults_are_the_documented_counts() -> None:
    problems = load()
    assert (len(problems.train), len(problems.held_out)) == (1000, 400)


def test_a_task_with_too_few_different_problems_says_so() -> None:
    few = Countdown(CountdownConfig(num_numbers=(2,), number_range=(1, 2), target_range=(1, 4)))
    with pytest.raises(UserError, match=r"data\.num_eval: task countdown has only about \d+ different problems"):
        load_problems(DataConfig(batch_size=1, num_eval=30), few, 0)


def ids(config: DataConfig, generation: int, seed: int = 0, count: int = 10) -> list[int]:
    return [example["id"] for example in batch(config, EXAMPLES[:count], seed, generation)]


def test_order_fixed_is_always_the_first_ones() -> None:
    config = DataConfig(order="fixed", batch_size=4)
    assert all(ids(config, generation, seed) == [0, 1, 2, 3] for generation in range(5) for seed in range(3))


def test_order_random_draws_anew_without_repetition() -> None:
    config = DataConfig(order="random", batch_size=6)
    draws = [ids(config, generation) for generation in range(300)]
    assert all(len(set(draw)) == 6 for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 290
    counts = Counter(i for draw in draws for i in draw)  # 180 expected, standard deviation 8.5
    assert all(140 < counts[i] < 220 for i in range(10))


@pytest.mark.parametrize("batch_size", [1, 3, 5, 7, 10])
def test_order_epochs_shows_each_problem_once_an_epoch(batch_size: int) -> None:
    config = DataConfig(order="epochs", batch_size=batch_size)
    seen = [i for generation in range(10) for i in ids(config, generation)]
    epochs = [seen[start : start + 10] for start in range(0, len(seen), 10)]
    assert len(epochs) == batch_size
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert epochs[0] != list(range(10))


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_order_is_the_run_seeds_and_the_generations(order: str) -> None:
    config = DataConfig(order=order, batch_size=7)  # type: ignore[arg-type]
    forward = [ids(config, generation) for generation in range(8)]
    assert [ids(config, generation) for generation in reversed(range(8))] == forward[::-1]  # as after a restart
    assert all(ids(config, generation, seed=1) != forward[generation] for generation in range(8))


def test_streams_have_their_purposes_and_indices() -> None:
    places = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    seeds = [stream_seed(*place) for place in places]  # type: ignore[arg-type]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [stream_seed(*place) for place in places]  # type: ignore[arg-type]
    one, other = stream(0, "a").normal(size=10_000), stream(0, "b").normal(size=10_000)
    assert abs((one * other).mean()) < 0.045
