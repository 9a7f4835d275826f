"""`esmpi eval --ensemble`: who votes, how votes are counted, and what is written."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import TINY_RUN, Run, read, requests, samples

from esmpi.__main__ import main
from esmpi.config.sections import ModelConfig
from esmpi.engines import Sampling
from esmpi.engines.hf import HfConfig
from esmpi.engines.hf.engine import HfEngine
from esmpi.ensemble import count_votes
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Place
from esmpi.report.summary import summarize
from esmpi.store.inspection import inspect
from esmpi.store.run_file import RunFile
from esmpi.tasks.countdown import Countdown, CountdownConfig
from esmpi.weights.model_weights import Perturbation

SMALL = ("es.population_size=6", "es.generations=2", "data.num_eval=12", "data.batch_size=12", "run.export_dtype=none")


def make(launch: Run, output: Path, *keys: str) -> Path:
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", *SMALL, *keys], 0)
    assert done.returncode == 0, done.stderr
    return output / "tiny"


@pytest.fixture(scope="module")
def finished(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run. Not to be changed."""
    return make(launch, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_votes_counted_by_hand() -> None:
    ballots: list[list[tuple[int, str | None]]] = [
        [(0, "a"), (1, "x"), (2, None)],
        [(0, "b"), (1, "y"), (2, None)],
        [(0, "b"), (1, None), (2, None)],
        [(0, "c"), (1, "y"), (2, "z")],
        [(0, "a"), (1, "x"), (2, None)],
    ]
    first, second, third = count_votes(ballots, [5.0, 4.0, 3.5, 3.0, 2.0], 3)
    assert (first.voter, first.place) == (1, 0), "2 : 2 : 1 votes, 7 : 7.5 of fitness"
    assert first.votes == {"a": [0, 4], "b": [1, 2], "c": [3]}
    assert (second.voter, second.place) == (0, 1), "2 : 2 votes, 7 : 7 of fitness: the best member's"
    assert second.votes == {"x": [0, 4], "y": [1, 3]}
    assert (third.voter, third.place) == (3, 2), "the only one with an answer"
    # several completions of each member, in another order
    twice: list[list[tuple[int, str | None]]] = [[(1, "x"), (0, "a"), (0, "b")], [(0, "b"), (0, "b"), (1, "y")]]
    first, second = count_votes(twice, [2.0, 1.0], 2)
    assert (first.voter, first.place, first.votes) == (0, 2, {"a": [0], "b": [0, 1, 1]})
    assert (second.voter, second.place) == (0, 0)


def completions_of_members(run: RunFile, generation: int, held_out: list[dict[str, Any]]) -> list[list[str]]:
    """Return what each member completes, with an engine of one's own and one model at a time."""
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    place = Place(host="here", local_rank=0, num_local_ranks=1, cores=(0,))
    engine = HfEngine(
        ModelConfig(path="esmpi:tiny_countdown", dtype="float32"), HfConfig(device="cpu"), BaseModel(folder), place
    )
    for members in run.members[:generation]:
        engine.weights.update(members["seed"], members["coefficient"])
    assert engine.weights.digest() == run.digest_after(generation)
    found = []
    for member in run.members[generation]:
        engine.weights.perturb([Perturbation(int(member["seed"]), int(member["sign"]) * 3e-3)])
        made = engine.generate(requests([sample["prompt"] for sample in held_out]), Sampling(max_tokens=40))
        found.append([completion.text for completion in made])
    return found


def test_the_best_members_vote_as_models_of_their_own_would(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--ensemble", "4"]) == 0
    said = capsys.readouterr().out
    file, generation, task = RunFile.open(run / "run.h5"), 1, Countdown(CountdownConfig())
    theta = lines(run / "eval" / "g000000.held_out.jsonl")
    examples = [sample["example"] for sample in theta]
    texts = completions_of_members(file, generation, theta)
    fitness = file.members[generation]["fitness"]
    best = sorted(range(6), key=lambda member: (-fitness[member], member))[:4]
    right = {
        i: [task.score(text, example).correct for text, example in zip(texts[i], examples, strict=True)] for i in best
    }
    elected = lines(run / "eval" / "g000001.ensemble_4.jsonl")
    assert [sample["index"] for sample in elected] == list(range(12))
    differ = 0
    for index, (sample, example) in enumerate(zip(elected, examples, strict=True)):
        answers = {member: task.answer(texts[member][index], example) for member in best}
        votes = Counter(answer for answer in answers.values() if answer is not None)
        assert {answer: len(members) for answer, members in sample["votes"].items()} == votes
        assert all(answers[member] == answer for answer, members in sample["votes"].items() for member in members)
        differ += len(set(answers.values())) > 1
        if votes:
            most = [answer for answer, count in votes.items() if count == max(votes.values())]
            weight = {answer: sum(fitness[member] for member in best if answers[member] == answer) for answer in most}
            # the first of the best order decides where fitness does not
            expected = max(most, key=lambda answer: weight[answer])
            assert sample["answer"] == expected
            assert sample["member"] == next(member for member in best if answers[member] == expected)
        assert sample["completion"] == texts[sample["member"]][index]
        assert sample["correct"] == task.score(sample["completion"], example).correct
    assert differ > 2, "else the vote decides nothing"
    [row] = file.evaluations["ensemble_4"]
    assert row["generation"] == generation
    assert row["num_members"] == 4
    assert row["accuracy"] == np.mean([sample["correct"] for sample in elected])
    accuracies = [float(np.mean(right[member])) for member in best]
    assert row["member_accuracy_mean"] == pytest.approx(np.mean(accuracies))
    assert (row["member_accuracy_min"], row["member_accuracy_max"]) == (min(accuracies), max(accuracies))
    about = json.loads((run / "eval" / "g000001.ensemble_4.json").read_text())
    assert [member["member"] for member in about["members"]] == best
    assert [member["accuracy"] for member in about["members"]] == accuracies
    assert [member["fitness"] for member in about["members"]] == [fitness[member] for member in best]
    for member, accuracy in zip(best, accuracies, strict=True):
        assert f"member {member}, fitness {fitness[member]:.3f}: accuracy {100 * accuracy:.1f} %" in said
    assert f"ensemble-4 at generation 1: accuracy {100 * row['accuracy']:.1f} %" in said
    # theta alone, as `esmpi eval` has it
    assert main(["eval", str(run), "--generation", "1", "--out", str(run / "alone")]) == 0
    alone = json.loads((run / "alone" / "eval" / "g000001.held_out.json").read_text())
    assert row["theta_accuracy"] == alone["accuracy"]
    assert f"theta alone: accuracy {100 * alone['accuracy']:.1f} %" in said
    # what reads run directories knows it
    assert "ensemble-4" in summarize(file)
    assert not [entry for entry in inspect(file)["files"] if entry["trouble"] is not None]


@pytest.mark.parametrize("keys", [(), ("es.noise=low_rank", "es.antithetic=true")])
def test_any_number_of_ranks_and_any_wave_counts_alike(launch: Run, tmp_path: Path, keys: tuple[str, ...]) -> None:
    run = make(launch, tmp_path / "run", *keys)
    for ranks, override in ((0, "engine.wave_size=null"), (3, "engine.wave_size=1"), (6, "data.mini_batch_size=5")):
        out = tmp_path / str(ranks)
        command = ["-m", "esmpi", "eval", run, "--ensemble", "5", "--generation", "0", "--out", out, override]
        done = launch([*command, "eval.temperature=0.7", "eval.num_samples=2"], ranks)
        assert done.returncode == 0, done.stderr
    one, three, six = (samples(tmp_path / str(ranks)) for ranks in (0, 3, 6))
    name = "g000000.ensemble_5.jsonl"
    assert one[name] == three[name] == six[name]
    [about, *others] = [json.loads(found["g000000.ensemble_5.json"]) for found in (one, three, six)]
    for other in others:
        assert other["members"] == about["members"]
    assert len({member["accuracy"] for member in about["members"]}) > 1
    assert any(len(sample["votes"]) > 1 for sample in lines(tmp_path / "0" / "eval" / name))


def test_the_members_of_a_random_search_vote(launch: Run, tmp_path: Path) -> None:
    run = make(launch, tmp_path, "es.alpha=0", "es.generations=1")
    assert main(["eval", str(run), "--ensemble", "3"]) == 0
    [row] = RunFile.open(run / "run.h5").evaluations["ensemble_3"]
    assert row["generation"] == 0
    assert row["theta_accuracy"] == read(run)["evaluations/held_out/accuracy"][0]


def test_a_fork_knows_the_sigma_of_its_parent(launch: Run, finished: Path, tmp_path: Path) -> None:
    fork = make(launch, tmp_path / "fork", f"run.fork_from={finished}@1", "es.sigma=1e-4")
    file = RunFile.open(fork / "run.h5")
    assert (file.sigma(0), file.sigma(1)) == (3e-3, 1e-4)
    found = []
    for directory in (finished, fork):
        out = tmp_path / f"out{len(found)}"
        assert main(["eval", str(directory), "--ensemble", "3", "--generation", "0", "--out", str(out)]) == 0
        found.append(samples(out)["g000000.ensemble_3.jsonl"])
    assert found[0] == found[1]


def test_members_are_made_from_the_theta_that_the_guard_took_back(launch: Run, tmp_path: Path) -> None:
    guard = ("es.alpha=0.05", "es.generations=4", "eval.every=1", "guard.max_drop=0", "guard.action=restore")
    run = make(launch, tmp_path, *guard)
    file = RunFile.open(run / "run.h5")
    [event, *_] = [event for event in file.attributes["events"] if event["generation"] < 4]
    generation, to = event["generation"], event["to"]
    assert file.origin(generation) == to < generation
    assert main(["eval", str(run), "--ensemble", "3", "--generation", str(generation)]) == 0
    about = json.loads((run / "eval" / f"g{generation:06d}.ensemble_3.json").read_text())
    assert about["theta_digest"] == f"{file.digest_after(to):016x}" != f"{file.digest_after(generation):016x}"
    assert about["theta_accuracy"] == read(run)["evaluations/held_out/accuracy"][to]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--generation", "2"], "has no members of generation 2 yet"),
        (["--generation", "3"], "has generations 0 to 2"),
        (["--suite", "held_out"], "held_out is the name of theta's own results"),
        (["es.sigma=1"], "the members are those of the run: leave out es.sigma: 0.003 -> 1"),
        (["task.name=conciseness"], "--ensemble: task conciseness does not say what the answer of a completion is"),
    ],
)
def test_what_cannot_vote_is_refused(
    run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = samples(run)
    assert main(["eval", str(run), "--ensemble", "2", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert samples(run) == before


def test_who_cannot_vote_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--ensemble", "7"]) == 2
    assert "--ensemble: 6 members of generation 1" in capsys.readouterr().err
    assert main(["eval", str(TINY_RUN), "--ensemble", "2", "--out", str(tmp_path)]) == 2
    assert "--ensemble needs a run" in capsys.readouterr().err
    assert main(["export", str(run), "--log-only", "--out", str(tmp_path / "log.h5")]) == 0
    assert main(["eval", str(tmp_path / "log.h5"), "--ensemble", "2", "--out", str(tmp_path / "out")]) == 2
    assert "has only seeds and coefficients, no fitness" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["eval", str(run), "--ensemble", "0"])


def test_another_kind_does_not_get_the_name_of_an_ensemble(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(run), "--ensemble", "2"]) == 0
    for arguments in (
        ["eval.temperature=0.5", "--ensemble", "2"],
        ["--suite", "ensemble_2"],
        ["--ensemble", "3", "--suite", "ensemble_2"],
    ):
        assert main(["eval", str(run), *arguments]) == 2
        assert "ensemble_2 has results of other problems" in capsys.readouterr().err
    assert main(["eval", str(run), "--ensemble", "2", "--generation", "0"]) == 0
    rows = RunFile.open(run / "run.h5").evaluations["ensemble_2"]
    assert [row["generation"] for row in rows] == [0, 1]
