"""Task math: what counts as the same answer, and the gold answers of real suites against themselves."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, require
from test_tasks import make

from esmpi.tasks import Example
from esmpi.tasks.math import MAX_DEPTH, MAX_LENGTH, Math, _bare, _math_verify, _read, same_answer

DATA = Path(__file__).parents[3] / "shared" / "data" / "math"


@pytest.fixture(scope="module", autouse=True)
def task() -> Math:
    made = make("math")
    assert isinstance(made, Math)
    return made


def test_prompt_is_the_papers(task: Math) -> None:
    assert task.prompt({"problem": "What is 1+1?", "answer": "2"}) == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{14}{3}", "14/3"),
        ("\\frac{14}{3}", "\\dfrac{14}{3}"),
        ("$\\frac{1}{2 n+2}$", "\\frac{1}{2(n+1)}"),
        ("025", "25"),
        ("0.5", "\\frac12"),
        ("2^{1009}", "2^{1009}"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
        ("p - q", "-q+p"),
        ("\\text{Evelyn}", "\\text{Evelyn}"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("1,2,3", "3, 2, 1"),
        ("x^2+2x+1", "(x+1)^2"),
        ("10\\%", "10"),
        ("90^\\circ", "90"),
        ("1,000", "1000"),
        ("x=5", "5"),
        ("(2,3]", "(2, 3]"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ \\frac{4}{2} \\end{pmatrix}"),
        ("7.", "7"),
        ("4.5e33", "4.5 \\times 10^{33}"),
        ("1e-05", "10^{-5}"),
        ("1.6e+5", "160000"),
        ("$(-\\infty, 0) \\cup\\{1\\}$.", "\\{1\\} \\cup (-\\infty, 0)"),
    ],
)
def test_same_answers(gold: str, answer: str) -> None:
    assert same_answer(gold, answer)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{14}{3}", "\\frac{3}{14}"),
        ("7", "8"),
        ("7", "-7"),
        ("p - q", "p + q"),
        ("\\text{Evelyn}", "\\text{Carla}"),
        ("1,2,3", "1,2"),
        ("(2,3]", "[2,3]"),
        ("7", "\\text{the answer is 7}"),
        ("7", "x"),
        ("x^2", "2^x"),
        ("7", ""),
        ("4.5e33", "4.5 \\times 10^{32}"),
        ("2^{1009}", "2^{1010}"),
    ],
)
def test_other_answers(gold: str, answer: str) -> None:
    assert not same_answer(gold, answer)


def test_the_last_box_counts_and_any_gold_answer(task: Math) -> None:
    example: Example = {"problem": "?", "answer": ["$2$", "$3$"]}
    assert task.score(r"\boxed{7} no, \boxed{3}", example).correct
    assert task.score(r"\boxed{2}", example).correct
    assert not task.score(r"\boxed{3} no, \boxed{7}", example).correct
    assert not task.score(r"\boxed{2, 3}", example).correct
    for unread in ("3", "$3$", r"\boxed{3", r"\boxed{}", ""):
        score = task.score(unread, example)
        assert (score.reward, score.correct, score.parsed) == (0.0, False, False)
    assert task.score(r"\boxed{7}", example).parsed
    assert task.score(r"\boxed{7}", {"problem": "?", "answer": 7}).correct


@pytest.mark.parametrize("answer", [None, True, [], [None], "", " $ $", {"a": 1}])
def test_unusable_gold_answers_are_refused(task: Math, answer: object) -> None:
    with pytest.raises(ValueError, match="`answer` must"):
        task.check({"problem": "?", "answer": answer})


HOSTILE = [
    "9^{9^{9^{9}}}",
    "9**9**9**9",
    "2^{2^{100}}",
    "((10^{9999})^{9999})^{9999}",
    "2^{-10000000000}",
    "100000000!",
    "((99!)!)!",
    "\\binom{10^9}{5*10^8}",
    "\\sum_{k=1}^{1000000000} k",
    "\\prod_{i=1}^{100000} i",
    "\\int_0^1 x^x dx",
    "x^{1000000}+1",
    "(x+1)^{9999}",
    "(x+y+z+w)^{500}",
    "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{9999}",
    "(" * 5000,
    "(" * 19 + "1" + ")" * 19,
    "{" * 18 + "1" + "}" * 18,
    "\\frac{" * 18 + "1" + "}{2}" * 18,
    "|x" * 100,
    "1" * 5000,
    "-" * 400 + "1",
    "\\sqrt[10000000]{2}",
    "__import__('os').system('false')",
    "\ud800",
    "\0",
    "\u0667",
    "\\" * 300,
    "$" * 100,
]
_CHILD = """
import json, sys, time
from esmpi.tasks.math import Math, MathConfig
task = Math(MathConfig())
for answer in json.loads(sys.stdin.read()):
    started = time.perf_counter()
    for gold in ("7", "x^2+1", "(1,2)"):
        assert task.score("\\\\boxed{" + answer + "}", {"problem": "?", "answer": gold}).reward == 0
    print(json.dumps([answer[:40], time.perf_counter() - started]), flush=True)
"""


def test_hostile_answers_are_wrong_and_soon_judged() -> None:
    """In a process of its own: what is not refused beforehand could not be interrupted here."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input=json.dumps(HOSTILE), capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seconds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seconds) == len(HOSTILE)
    assert max(second for _, second in seconds) < 10, seconds


def test_limits_are_where_they_are_said_to_be() -> None:
    assert same_answer("7", "(" * MAX_DEPTH + "7" + ")" * MAX_DEPTH)
    assert not same_answer("7", "(" * (MAX_DEPTH + 1) + "7" + ")" * (MAX_DEPTH + 1))
    assert same_answer("8", "7" + "+0" * ((MAX_LENGTH - 3) // 2) + "+1")
    assert not same_answer("8", "7" + "+0" * (MAX_LENGTH // 2) + "+1")


def test_nothing_is_written_to_the_screen() -> None:
    """math-verify would warn, in each process, that its own time limits are off."""
    code = "from esmpi.tasks.math import same_answer; assert same_answer('1/2', '0.5')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# a name's subscript, prose, and a misprint
UNREADABLE = {r"m_{\max }=n^{2}-n-1", r"t(0,4]"}


@pytest.mark.parametrize(("suite", "count"), [("aime24", 30), ("math500", 500), ("olympiad_bench", 675)])
def test_gold_answers_of_the_suites_are_right(task: Math, suite: str, count: int) -> None:
    """Each as a completion's answer, and, as that one is the same to the letter, as math-verify reads it."""
    require("data", DATA.is_dir(), "the suites' files are not beside this checkout")
    examples = [json.loads(line) for line in (DATA / f"{suite}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert len(examples) == count
    wrong, unread, others, slowest = [], [], 0, 0.0
    for i, example in enumerate(examples):
        task.check(example)
        golds = example["answer"] if isinstance(example["answer"], list) else [example["answer"]]
        other = examples[(i * 7 + 3) % count]
        for gold in golds:
            completion = rf"\boxed{{1}} So the answer is \boxed{{{gold}}}."
            started = time.perf_counter()
            if not task.score(completion, example).correct:
                wrong.append(gold)
            read = _read(_bare(gold))
            if not (read and _math_verify().verify(list(read), list(read), timeout_seconds=None)):
                unread.append(_bare(gold))
            others += other is not example and task.score(completion, other).correct
            slowest = max(slowest, time.perf_counter() - started)
    assert not wrong
    assert all(gold in UNREADABLE or "where" in gold for gold in unread), unread
    assert others < 0.05 * count  # answers that two problems share
    assert slowest < 5
