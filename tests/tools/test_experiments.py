"""tools/experiments: each experiment in the small, and a page whose numbers all come from the committed results."""

import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support import ROOT, require

from esmpi.config.reader import load_config
from esmpi.data.problems import load_problems
from esmpi.tasks import make_task

sys.path.append(str(ROOT / "tools" / "experiments"))

import common
import exactness
import grpo
import page
import paper
import products
import public_code
from common import COMMITTED, Results, descendants, execute, read_rows

FOLDER = ROOT / "tools" / "experiments"
WITH_RESULTS = sorted(path.stem for path in COMMITTED.glob("*.jsonl"))
TEMPLATE = page.TEMPLATE.read_text(encoding="utf-8")
NAMES = {
    "SmolLM2-135M": "a model",
    "H100": "a GPU",
    "bfloat16": "a type",
    "float32": "a type",
    "3 + 4": "an example of a problem",
    "7 * 8": "an example of a problem",
    "arXiv 2509.24372": "the paper",
}
"""What has digits in the template, and is a name."""


def small(name: str, results: Path) -> list[dict[str, Any]]:
    """Repeat an experiment in the small by its command, and return its result file."""
    # tools/reproduce.sh itself sets up an environment first; the program behind it is what it starts
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--small", "--results", results],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    picture = (results / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 3000
    assert "| --- |" in done.stdout
    return read_rows(results / f"{name}.jsonl")


def test_exactness_in_the_small_is_killed_and_has_one_theta(tmp_path: Path) -> None:
    results = Results(tmp_path / "exactness.jsonl")
    for ranks, dispatch, end in ((1, "static", "unbroken"), (2, "dynamic", "killed"), (1, "static", exactness.OTHER)):
        setting = {"engine": "hf", "ranks": ranks, "dispatch": dispatch, "end": end}
        exactness.once(results, setting, ("hf", "hf"), small=True)
    one, other, changed = results.rows
    assert (one["starts"], other["starts"]) == (1, 2)
    assert len(other["members_by_rank"]) == 2
    assert one["theta"] == other["theta"]
    assert len(set(one["theta"])) == 3
    assert one["fitness_sha256"] == other["fitness_sha256"]
    assert one["replay_agrees"]
    assert other["replay_agrees"]
    assert one["processor_seconds"] > 0
    assert other["processor_seconds"] > 0
    exactness.draw(results.rows, tmp_path / "exactness.png")
    facts = exactness.facts(results.rows)
    assert (facts["runs"], facts["different"], facts["shared"]) == ("2", "1", "0")
    changed["theta"][1] = one["theta"][2]
    assert exactness.facts(results.rows)["shared"] == "1"


def test_grpo_in_the_small(tmp_path: Path) -> None:
    require("trl", importlib.util.find_spec("trl") is not None, "pip install trl==1.16.0")
    rows = small("grpo", tmp_path)
    curves = {row["run"]["side"]: row["curve"] for row in rows}
    # both start from the same model and grade the same problems alike
    first, other = (curves[side][0] for side in ("ES", "GRPO"))
    assert (first["accuracy"], first["reward"], first["tokens"]) == (other["accuracy"], other["reward"], 0)
    for curve in curves.values():
        assert (curve[0]["step"], curve[-1]["step"]) == (0, 2)
        for name in ("tokens", "seconds", "processor_seconds"):
            assert curve[-1][name] > 0


def test_public_code_in_the_small(tmp_path: Path) -> None:
    [row] = small("public_code", tmp_path)
    for name in ("seconds_of_generations", "processor_seconds_of_generations", "tokens_of_generations"):
        [value] = row[name]
        assert value > 0


def test_public_code_and_esmpi_train_on_the_same_problems(tmp_path: Path) -> None:
    data = tmp_path / "theirs" / "countdown" / "data" / "countdown.json"
    data.parent.mkdir(parents=True)
    problem = {"context": "Using the numbers [1 2 3] ...", "numbers": [1, 2, 3], "solution": "1 + 2 + 3"}
    data.write_text(json.dumps([problem | {"target": str(target)} for target in (6, 7, 8)]))
    command = public_code.own_command(tmp_path / "theirs", tmp_path, "2 prompts", "esmpi, hf")
    config = load_config(command[3], command[4:])
    task = make_task(config.task)
    problems = load_problems(config.data, task, config.run.seed, {})
    assert [(one["numbers"], one["target"]) for one in problems.train] == [([1, 2, 3], 6), ([1, 2, 3], 7)]


def test_public_code_is_edited_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "theirs" / "countdown" / "es_fine-tuning_countdown.py"
    script.parent.mkdir(parents=True)
    known = "POPULATION_SIZE = 30\nNUM_ITERATIONS = 500 # many\nmax_new_tokens = 9\nload(\n  device_map=0,\n)\n"
    script.write_text(f"{known}  outputs = model.generate(input_ids)\n  tokenizer.save_pretrained(folder)\nrest = 30\n")
    (tmp_path / "copy").mkdir()
    command = public_code.public_command(tmp_path / "theirs", tmp_path / "copy", "2 prompts")
    edited = Path(command[1]).read_text()
    assert edited.splitlines()[:3] == ["POPULATION_SIZE = 8", "NUM_ITERATIONS = 2 # many", "max_new_tokens = 32"]
    assert edited.splitlines()[4:7] == ['  device_map="cpu",', ")", "  outputs = model.generate(input_ids)"]
    assert edited.splitlines()[-2:] == ["  pass", "rest = 30"]
    # the count of new tokens, of a row that has ended and one that has not
    names = {"outputs": torch.tensor([[5, 6, 7, 8], [5, 6, 7, 0]]), "input_ids": torch.tensor([[5], [5]])}
    exec(textwrap.dedent("\n".join(edited.splitlines()[7:9])), names | {"tokenizer": SimpleNamespace(pad_token_id=0)})
    assert capsys.readouterr().out == "new tokens 6\n"
    script.write_text(known)
    (tmp_path / "other").mkdir()
    with pytest.raises(SystemExit, match="another one than this experiment knows"):
        public_code.public_command(tmp_path / "theirs", tmp_path / "other", "2 prompts")


def test_smollm2_in_the_small(tmp_path: Path) -> None:
    [row] = small("smollm2", tmp_path)
    suites = [(point["suite"], point["generation"]) for point in row["curve"]]
    assert sorted(suites) == [(name, i) for name in ("capitals", "held_out", "sampled", "sums") for i in (0, 1)]
    assert row["tokens"] > 0


def test_products_are_held_out_with_their_mirror_images() -> None:
    def factors(problems: list[dict[str, str]]) -> set[tuple[int, ...]]:
        return {tuple(sorted(map(int, re.findall(r"\d+", problem["prompt"])))) for problem in problems}

    assert len(products.train) + len(products.evaluation) == 14 * 14
    assert factors(products.train).isdisjoint(factors(products.evaluation))


def test_a_closer_product_is_worth_more() -> None:
    example = {"prompt": "Multiply: 7 * 8 =", "answer": "56"}
    said = [products.reward(text, example) for text in (" 56\n", " 55", " 28.", " 560", " 200", " It is 56")]
    assert [round(one["reward"], 2) for one in said] == [1, 0.49, 0.25, 0, 0, 0]
    assert [one["correct"] for one in said] == [True, False, False, False, False, False]
    capital = {"prompt": "The capital of Peru is", "answer": "Lima"}
    assert [products.reward(text, capital)["reward"] for text in (" Lima,", " Limassol", " 3")] == [1, 0, 0]


def test_scaling_in_the_small(tmp_path: Path) -> None:
    rows = small("scaling", tmp_path)
    assert len(rows) == 1
    assert small("scaling", tmp_path) == rows  # what is in the file is not run again


def test_the_forecasts_of_the_paper_are_those_of_its_configs(tmp_path: Path) -> None:
    committed = {row["run"]["config"]: row for row in read_rows(COMMITTED / "paper.jsonl")}
    assert set(committed) == {path.name for path in paper.CONFIGS.glob("*.yaml")}
    for name, row in committed.items():
        again = paper.forecast_of(paper.CONFIGS / name)
        assert {key: row[key] for key in again} == again, f"{name}: remove paper.jsonl and run the experiment again"


@pytest.mark.parametrize("name", WITH_RESULTS)
def test_committed_results_say_where_they_are_from(name: str) -> None:
    rows = read_rows(COMMITTED / f"{name}.jsonl")
    assert rows
    runs = [json.dumps(row["run"], sort_keys=True) for row in rows]
    assert len(set(runs)) == len(runs)
    for row in rows:
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["made"]["date"])
        assert row["made"]["commit"]
        assert re.search(r"\bcores?\b", row["made"]["machine"])
        assert "/" not in json.dumps(row).replace("Qwen/", "").replace("meta-llama/", "").replace("google/", "")
    assert (COMMITTED / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert f"results/{name}.png" in TEMPLATE


def test_numbers_of_the_page_come_from_results() -> None:
    """The template has no number of its own: outside code, links and names there are no digits."""
    text = re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)|\{\{\w+\.\w+\}\}", "", TEMPLATE, flags=re.DOTALL)
    for name in NAMES:
        text = text.replace(name, "")
    assert re.findall(r"[^\n]*\d[^\n]*", text) == []
    assert {name for name, _ in page.PLACE.findall(TEMPLATE)} == set(WITH_RESULTS)


def test_the_page_follows_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = page.experiments_page()
    assert before == (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    for path in COMMITTED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = read_rows(COMMITTED / "exactness.jsonl")
    rows[3]["theta"][-1] = "0" * 16
    (tmp_path / "exactness.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(page, "COMMITTED", tmp_path)
    assert page.experiments_page() != before
    assert "0" * 16 in page.experiments_page()


def test_a_program_that_fails_costs_what_it_has_used() -> None:
    code, output, spent = execute([sys.executable, "-c", "print('so far'); sum(range(10**7)); exit(3)"])
    assert (code, output) == (3, "so far\n")
    assert spent.processor_seconds > 0.05
    assert spent.peak_mib > 3


def runs(process: int) -> bool:
    """Return whether a process is there and has not ended."""
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_program_ends_with_the_experiment_that_has_started_it() -> None:
    def stop(process: int, line: str) -> None:
        found.extend([process, *descendants(process)])
        raise KeyboardInterrupt

    found: list[int] = []
    script = "import subprocess; child = subprocess.Popen(['sleep', '100']); print('started', flush=True); child.wait()"
    with pytest.raises(KeyboardInterrupt):
        execute([sys.executable, "-c", script], stop)
    assert len(found) == 2
    deadline = time.monotonic() + 20
    while left := [process for process in found if runs(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_few_and_short_runs_have_a_folder_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "ROOT", tmp_path)
    for words, folder in ((["--small"], "experiments-small"), ([], "experiments")):
        monkeypatch.setattr(sys, "argv", ["paper.py", *words])
        common.run(paper)
        assert len(read_rows(tmp_path / "runs" / folder / "paper.jsonl")) == len(list(paper.CONFIGS.glob("*.yaml")))
    path = tmp_path / "runs" / "experiments" / "paper.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SystemExit, match=r"paper\.jsonl has a line that is no JSON"):
        Results(path)


def test_the_numbers_of_the_readme_are_those_of_the_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [paragraph] = re.findall(r"\n\n(In our two small comparisons.*?)\n\n", readme, re.DOTALL)
    numbers = re.findall(r"\d[\d.,]*\d|\d", re.sub(r"\]\([^)]*\)|SmolLM2-135M|float32", "", paragraph))
    assert len(numbers) > 8
    found = page.facts("grpo")
    tables = found["table_tiny"] + found["table_smollm2"]
    assert [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", tables)] == []


def test_the_command_lists_its_experiments() -> None:
    done = subprocess.run(["bash", ROOT / "tools" / "reproduce.sh", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2
    lines = done.stderr.splitlines()[2:]
    assert [line.split()[0] for line in lines] == sorted(page.EXPERIMENTS)
    assert all(line.endswith(".") for line in lines)


def test_first_accuracies_and_chosen_trials() -> None:
    def row(setting: str, seed: int, *accuracies: float) -> dict[str, Any]:
        places = np.linspace(0, 100, len(accuracies))
        curve = [{"accuracy": value, "completions": x} for x, value in zip(places, accuracies, strict=True)]
        return {"run": {"work": "tiny", "side": "ES", "setting": setting, "seed": seed}, "curve": curve}

    rows = [row("a", 100, 0.2, 0.2, 0.2), row("b", 100, 0.2, 0.4), row("a", 0, 0.9, 0.9, 0.9)]
    assert grpo.chosen(rows, "tiny", "ES") == "b"  # other run seeds do not count
    finer = row("b", 100, 0.2, 0.25, 0.3, 0.35, 0.4)
    assert grpo.over_training(finer) == pytest.approx(grpo.over_training(rows[1]))
    assert grpo.first_at(rows[1], 0.3, "completions") == 100
    assert grpo.spread([1.0, 3.0]) == "2.0 ± 1.4"
