"""Suites of lm-evaluation-harness: the same as the harness measures itself, whatever the ranks; and what is refused."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, TINY_RUN, Run, read, require, samples

from esmpi.__main__ import main
from esmpi.config.problems import HarnessSuite
from esmpi.config.reader import ConfigError, load_config
from esmpi.config.sections import ModelConfig
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.errors import UserError
from esmpi.harness import check_harness
from esmpi.launch.dry_run import check_inputs
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Comm, Place
from esmpi.store.run_file import RunFile

TASKS = Path(__file__).parent / "tasks"
NAMES = ("countdown_choice", "countdown_sum", "countdown_text")
SMALL = ("es.population_size=2", "es.generations=1", "data.num_eval=3", "data.batch_size=2", "run.export_dtype=none")


@pytest.fixture(scope="module", autouse=True)
def lm_eval() -> None:
    """Skip the tests where the library is missing."""
    require("lm-eval", find_spec("lm_eval") is not None, "pip install 'esmpi[lm-eval]'")


def suite_of(name: str, **keys: Any) -> dict[str, Any]:
    return {"lm_eval": name, "include_path": str(TASKS)} | keys


def overrides(**suites: dict[str, Any]) -> str:
    """Return the override that names suites; JSON is YAML, too."""
    return f"eval.suites={json.dumps(suites)}"


def open_engine(path: str) -> HfEngine:
    folder = find_model(path)
    assert folder is not None
    place = Place(host="here", local_rank=0, num_local_ranks=1, cores=(0,))
    return HfEngine(ModelConfig(path=path, dtype="float32"), HfConfig(device="cpu"), BaseModel(folder), place)


@pytest.fixture(scope="module")
def engine() -> HfEngine:
    return open_engine("esmpi:tiny_countdown")


def theirs(path: str, names: Sequence[str], **keys: Any) -> dict[str, Any]:
    """Return what the harness measures of a model with its own engine for transformers."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model = HFLM(pretrained=str(find_model(path)), dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = simple_evaluate(model, tasks=list(names), task_manager=manager, bootstrap_iters=0, **keys)
    assert found is not None
    return dict(found)


def compare(engine: HfEngine, found: dict[str, Any], name: str, **keys: Any) -> set[str]:
    """Compare our results of a task with those of the harness; return the names of the metrics."""
    from esmpi.harness.suite import Suite

    suite = Suite(name, HarnessSuite(**suite_of(name, **keys)))
    suite.check(engine)
    answers = suite.ask(engine, Comm(), 7, 0)
    outcome = suite.score(answers)
    expected = {
        key.replace(",none", "").replace(",", "@"): value
        for key, value in found["results"][name].items()
        if isinstance(value, float) and "stderr" not in key
    }
    assert outcome.figures == pytest.approx(expected, rel=1e-5)
    by_problem = {row["doc_id"]: row for row in found["samples"][name]}
    flat = [response[0] for _, row in sorted(by_problem.items()) for response in row["resps"]]
    asked = [list(pair) for _, row in sorted(by_problem.items()) for pair in row["arguments"]]
    ours = [request[1] for problem in suite.examples for request in problem["requests"]]
    assert ours == json.loads(json.dumps(asked))
    assert len(flat) == len(answers)
    for answer, said in zip(answers, flat, strict=True):
        if answer.logprob is None:
            assert answer.text == said
        else:
            assert answer.logprob == pytest.approx(said[0], abs=2e-4)
            assert answer.is_greedy in (None, said[1])
    return set(outcome.figures)


def test_the_harness_measures_the_same(engine: HfEngine) -> None:
    found = theirs("esmpi:tiny_countdown", NAMES)
    metrics = {name: compare(engine, found, name) for name in NAMES}
    assert metrics == {
        "countdown_choice": {"acc", "acc_norm", "acc_mutual_info"},
        "countdown_sum": {"acc", "perplexity"},
        "countdown_text": {"exact_match@strict", "exact_match@flexible"},
    }
    # neither all right nor all wrong, which any mistake might give
    for name, metric in (("countdown_choice", "acc,none"), ("countdown_sum", "acc,none")):
        assert 0.1 < found["results"][name][metric] < 0.9
    assert found["results"]["countdown_text"]["exact_match,flexible"] > 0.1


def test_solved_examples_are_those_of_the_harness(engine: HfEngine) -> None:
    found = theirs("esmpi:tiny_countdown", ["countdown_choice"], num_fewshot=2)
    compare(engine, found, "countdown_choice", num_fewshot=2)


def test_the_harness_can_ask_the_engine_itself(engine: HfEngine) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from esmpi.harness.model import EngineModel

    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = simple_evaluate(
        EngineModel(engine, Comm(), 8), tasks=["countdown_both"], task_manager=manager, bootstrap_iters=0, limit=6
    )
    assert found is not None
    from esmpi.harness.suite import Suite

    suite = Suite("both", HarnessSuite(**suite_of("countdown_both", limit=6)))
    outcome = suite.score(suite.ask(engine, Comm(), 8, 0))
    assert outcome.accuracy == pytest.approx(found["results"]["countdown_both"]["acc,none"])
    assert len(outcome.samples) == 12


def test_smollm2_has_the_same_log_probabilities() -> None:
    path = str(ROOT / "models" / "SmolLM2-135M-Instruct")
    require("smollm2", Path(path).is_dir(), "python tools/get_smollm2.py")
    found = theirs(path, ["countdown_sum"], limit=2)
    compare(open_engine(path), found, "countdown_sum", limit=2)


@pytest.fixture(scope="module")
def run(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose steps are so long that the model forgets all; its guard watches two suites of the harness."""
    output = tmp_path_factory.mktemp("forgetful")
    suites = overrides(sums=suite_of("countdown_sum", limit=9), texts=suite_of("countdown_text", limit=5))
    guard = ("eval.every=1", "eval.retention=[sums]", "guard.max_retention_drop=0.05", "es.generations=3")
    size = ("es.sigma=0.5", "es.alpha=0.5")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", *SMALL, *guard, *size, suites], 0)
    assert done.returncode == 0, done.stderr
    return output / "tiny"


def test_a_run_evaluates_the_suites_and_its_guard_sees_what_is_forgotten(run: Path) -> None:
    file = RunFile.open(run / "run.h5")
    first, last = (file.evaluations["sums"][place] for place in (0, -1))
    assert 0.3 < first["accuracy"] < 1
    assert (first["acc"], last["accuracy"]) == (first["accuracy"], 0)
    assert first["perplexity"] < last["perplexity"]
    assert first["num_problems"] == 9
    assert {"exact_match@strict", "exact_match@flexible"} < file.evaluations["texts"][0].keys()
    [event] = file.attributes["events"]
    assert event["action"] == "stop"
    assert [row["generation"] for row in file.evaluations["texts"]] == list(range(event["generation"] + 1))
    assert "accuracy of sums fell from" in event["reason"]
    assert file.attributes["provenance"][0]["packages"]["lm_eval"]
    lines = [json.loads(line) for line in samples(run)["g000000.texts.jsonl"].splitlines()]
    assert lines[0]["completion"].endswith("<answer>(18+11)+3")
    assert lines[0]["correct"]


def read_suites(run: Path) -> Any:
    return RunFile.open(run / "run.h5").attributes["config"]["eval"]["suites"]


def test_three_ranks_evaluate_as_one_does(launch: Run, run: Path, tmp_path: Path) -> None:
    words = ["-m", "esmpi", "eval", run, "--generation", "0", "--out", tmp_path / "out"]
    refused = launch(words, 0)  # the folder of tasks may hold code, which only the run file names
    assert refused.returncode == 2
    assert "add eval.suites={...} with the same value" in refused.stderr
    done = launch([*words, f"eval.suites={json.dumps(read_suites(run))}"], 3)
    assert done.returncode == 0, done.stderr
    for name in ("g000000.sums.jsonl", "g000000.texts.jsonl"):
        assert samples(tmp_path / "out")[name] == samples(run)[name]
    said = json.loads((tmp_path / "out" / "eval" / "g000000.sums.json").read_text())
    columns = read(run)
    for column in ("accuracy", "perplexity", "tokens_mean"):
        assert said[column] == columns[f"evaluations/sums/{column}"][0]
    assert "%|" not in done.stderr  # no progress bars


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("countdown_choices", {}, "did you mean countdown_choice?"),
        ("countdown_perplexity", {}, "perplexity"),
        ("countdown_executed", {}, "executes what the model writes"),
        ("countdown_choice", {"metric": "f1"}, "metric: the task has no f1"),
        ("countdown_sum", {"metric": "perplexity"}, "better if it is lower"),
        ("countdown_sum", {"num_fewshot": 2}, "its own num_fewshot is 0"),
        ("countdown_choice", {"num_fewshot": 9}, "cannot make its prompts"),
        ("countdown_from_hub", {}, "without internet: load it once"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, keys: dict[str, Any], message: str
) -> None:
    from huggingface_hub import constants

    from esmpi.harness.suite import Suite

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 has it
    with pytest.raises(UserError, match=r"^eval\.suites: own: ") as caught:
        Suite("own", HarnessSuite(**suite_of(name, **keys)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("countdown_long", "250 new ones are more than the model's 256 positions"),
        ("countdown_beams", "its generation_kwargs have num_beams"),
    ],
)
def test_what_an_engine_cannot_answer_is_said_at_the_start(engine: HfEngine, name: str, message: str) -> None:
    from esmpi.harness.suite import Suite

    suite = Suite("own", HarnessSuite(**suite_of(name)))
    with pytest.raises(UserError, match=r"^eval\.suites: own: ") as caught:
        suite.check(engine)
    assert message in str(caught.value)


def test_what_a_config_says_of_a_suite_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"eval.suites: own: limt: unknown key, did you mean limit\?"):
        load_config(TINY_RUN, [overrides(own=suite_of("countdown_sum", limt=3))])
    with pytest.raises(ConfigError, match="limit: must be at least 1"):
        load_config(TINY_RUN, [overrides(own=suite_of("countdown_sum", limit=0))])
    with pytest.raises(ConfigError, match="lm_eval"):
        load_config(TINY_RUN, [overrides(own={"limit": 3})])
    config = load_config(TINY_RUN, [overrides(own={"lm_eval": "countdown_sum", "include_path": "no/folder"})])
    with pytest.raises(UserError, match="include_path: no folder no/folder"):
        check_inputs(config)


def test_a_missing_library_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'esmpi\[lm-eval\]'"):
        check_harness({"own": HarnessSuite(lm_eval="arc_easy")})


def test_another_metric_is_another_suite(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suites = overrides(
        sums=suite_of("countdown_sum", limit=9),
        texts=suite_of("countdown_text", limit=5, metric="exact_match,flexible"),
    )
    before = os.listdir(run / "eval")
    assert main(["eval", str(run), "--generation", "0", suites]) == 2
    assert "eval.suites: texts: " in capsys.readouterr().err
    assert os.listdir(run / "eval") == before
