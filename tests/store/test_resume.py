"""Runs that stop and go on: from snapshots or from the log, on any ranks, or as a fork; and what their files say."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import LEAST_CONFIG, ROOT, TINY_RUN, Run
from transformers import AutoModelForCausalLM, AutoTokenizer

from esmpi.__main__ import main
from esmpi.config.reader import load_config
from esmpi.engines import Engine, engine_config
from esmpi.errors import UserError
from esmpi.es.member_columns import MEMBER_DTYPE
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.model.snapshot import Snapshot, SnapshotError
from esmpi.mpi.comm import Comm, Place
from esmpi.noise import member_seed
from esmpi.report.outcome import percent
from esmpi.run import STOPPED
from esmpi.store import members as member_table
from esmpi.store.replay import replay
from esmpi.store.run_file import GENERATION_DTYPE, RunFile
from esmpi.store.snapshot_keeper import check_snapshot

FAULTY = ROOT / "tests" / "mpi" / "faulty.py"
SMALL = (
    "run.seed=1",
    "es.population_size=4",
    "data.num_eval=4",
    "eval.every=1",
    "snapshot.every=1",
    "snapshot.best=true",
)


def train(launch: Run, output: Path, ranks: int, *overrides: str) -> str:
    """Train the tiny config in `output`/tiny and return what was printed."""
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", *SMALL, *overrides], ranks)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def digests(run: Path) -> list[int]:
    with h5py.File(run / "run.h5", "r") as file:
        return [int(digest) for digest in file["generations/theta_digest"][()]]


@pytest.fixture(scope="module")
def finished(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that was never stopped. Not to be changed."""
    output = tmp_path_factory.mktemp("finished")
    train(launch, output, 0)
    assert len(set(digests(output / "tiny"))) == 3
    return output / "tiny"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def base() -> BaseModel:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    return BaseModel(folder)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("snapshots", ["snapshot.every=1", "snapshot.every=null"])
def test_on_one_then_three_then_two_ranks(launch: Run, finished: Path, tmp_path: Path, snapshots: str) -> None:
    for generations, ranks in ((1, 0), (2, 3), (3, 2)):
        said = train(launch, tmp_path, ranks, f"es.generations={generations}", snapshots, "snapshot.best=false")
        from_snapshot = f"theta of generation {generations - 1} loaded from" in said
        assert from_snapshot == (generations > 1 and snapshots == "snapshot.every=1")
    assert digests(tmp_path / "tiny") == digests(finished)


def test_replay_snapshot_and_live_theta_are_the_same_bits(finished: Path, base: BaseModel) -> None:
    run = RunFile.open(finished / "run.h5")
    weights = replay(run, base, 3, 1)
    live = load_file(finished / "model" / "model.safetensors")
    with Snapshot(finished / "snapshots" / "g000003.h5") as snapshot:
        for view, theta in weights.theta():
            stored = snapshot.read(view.name, view.rows, view.cols)
            assert torch.equal(stored, theta), view.name
            assert torch.equal(stored.view(view.shape), live[view.name]), view.name
    assert weights.digest() == run.theta_digest


def test_an_export_says_in_transformers_what_the_evaluation_has(finished: Path, tmp_path: Path) -> None:
    """Theta is rebuilt from the log, without the engine that trained it."""
    assert main(["export", str(finished), "--from-base", "--out", str(tmp_path / "model")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    lines = (finished / "eval" / "g000003.held_out.jsonl").read_text().splitlines()
    assert len(lines) == 4
    for expected in map(json.loads, lines):
        prompt = tokenizer(expected["prompt"], return_tensors="pt")
        said = model.generate(**prompt, do_sample=False, max_new_tokens=40)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(said, skip_special_tokens=True) == expected["completion"]
    assert (finished / "eval" / "g000000.held_out.jsonl").read_text().splitlines() != lines


def test_the_last_snapshots_and_the_best_are_kept(finished: Path) -> None:
    run = RunFile.open(finished / "run.h5")
    best = run.best()
    assert best is not None
    names = {path.name for path in (finished / "snapshots").iterdir()}
    expected = {"g000002.h5", "g000003.h5"}
    assert names == expected | ({f"best-g{best['generation']:06d}.h5"} if best["generation"] else set())
    for name in names:
        check_snapshot(finished / "snapshots" / name, run)


def test_damaged_snapshots_are_named_and_the_one_before_is_taken(launch: Run, copied: Path) -> None:
    for path in (copied / "snapshots").iterdir():
        if "g000003" in path.name:
            damage(path)
    said = train(launch, copied.parent, 2, "es.generations=4")
    assert f"snapshot {copied}/snapshots/g000003.h5 is damaged: its checksum is wrong; it is not used" in said
    assert "theta of generation 2 loaded from" in said
    assert digests(copied)[:3] == digests(copied.parent / "tiny")[:3]
    run = RunFile.open(copied / "run.h5")
    assert {p.name for p in (copied / "snapshots").glob("g*.h5")} == {"g000003.h5", "g000004.h5"}
    check_snapshot(copied / "snapshots" / "g000003.h5", run)  # written anew
    check_snapshot(copied / "snapshots" / "g000004.h5", run)


def test_snapshots_of_what_was_there_before_make_room(launch: Run, copied: Path) -> None:
    """The run is begun anew, otherwise, among the snapshots of the old one, which are of later generations."""
    (copied / "run.h5").unlink()
    train(launch, copied.parent, 0, "run.seed=9", "es.generations=2", "snapshot.best=false")
    run = RunFile.open(copied / "run.h5")
    assert {path.name for path in (copied / "snapshots").iterdir()} == {"g000001.h5", "g000002.h5"}
    for path in (copied / "snapshots").iterdir():
        check_snapshot(path, run)


def test_a_directory_may_be_renamed(launch: Run, copied: Path) -> None:
    uuid = RunFile.open(copied / "run.h5").attributes["run_uuid"]
    copied.rename(copied.parent / "renamed")
    train(launch, copied.parent, 0, "run.name=renamed", "es.generations=4")
    run = RunFile.open(copied.parent / "renamed" / "run.h5")
    assert run.num_generations == 4
    assert run.attributes["run_uuid"] == uuid
    assert run.attributes["config"]["run"]["name"] == "renamed"


def test_ranks_are_sent_only_what_the_snapshot_lacks(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    broadcast = Comm.broadcast_array

    def watch(comm: Comm, array: np.ndarray) -> np.ndarray:
        sent.append(len(array))
        return broadcast(comm, array)

    monkeypatch.setattr(Comm, "broadcast_array", watch)
    (copied / "snapshots" / "g000003.h5").unlink()
    (copied / "snapshots" / "best-g000003.h5").unlink(missing_ok=True)
    assert main(["run", str(TINY_RUN), f"run.output_dir={copied.parent}", *SMALL]) == 0
    assert sent == [1, 1, 1]


def test_without_a_good_snapshot_the_base_model_is_taken(launch: Run, copied: Path, finished: Path) -> None:
    for path in (copied / "snapshots").iterdir():
        damage(path)
    said = train(launch, copied.parent, 0)
    assert said.count("it is not used") >= 2
    assert "loaded from" not in said
    assert "resuming from generation 3" in said
    assert digests(copied) == digests(finished)


def test_a_snapshot_of_another_theta_is_refused(copied: Path, base: BaseModel) -> None:
    """Its seal is good; it is just not what the run had."""
    run = RunFile.open(copied / "run.h5")
    shutil.copy(copied / "snapshots" / "g000002.h5", copied / "snapshots" / "g000001.h5")
    assert check_snapshot(copied / "snapshots" / "g000001.h5", run) == 2
    run.generations[1]["theta_digest"] += 1
    with pytest.raises(SnapshotError, match="is not theta of generation 2 of"):
        check_snapshot(copied / "snapshots" / "g000002.h5", run)


def opened(base: BaseModel) -> Engine:
    config = load_config(TINY_RUN)
    return engine_config(config).open(config.model, base, Place("here", 0, 1, (0,)))


def test_an_engine_takes_theta_from_a_snapshot_and_back(finished: Path, base: BaseModel) -> None:
    run = RunFile.open(finished / "run.h5")
    engine = opened(base)
    engine.weights.load(finished / "snapshots" / "g000003.h5")
    assert engine.weights.digest() == run.theta_digest
    engine.weights.restore()
    theta = dict(engine.weights.tensors())
    assert all(torch.equal(live, theta[name]) for name, live in engine.weights.live())
    engine.weights.load(None)
    assert engine.weights.digest() == run.digest_after(0)
    with pytest.raises(UserError, match="no snapshot"):
        engine.weights.load(finished / "snapshots" / "none.h5")


def test_a_stop_signal_writes_a_snapshot(launch: Run, tmp_path: Path) -> None:
    rest = (*SMALL, "snapshot.every=100", "snapshot.best=false")
    done = launch([FAULTY, "usr1", "1", tmp_path / "stamp", TINY_RUN, f"run.output_dir={tmp_path}", *rest], 2)
    assert done.returncode == STOPPED, done.stderr
    assert [path.name for path in (tmp_path / "tiny" / "snapshots").iterdir()] == ["g000002.h5"]
    assert check_snapshot(tmp_path / "tiny" / "snapshots" / "g000002.h5", RunFile.open(tmp_path / "tiny/run.h5")) == 2


def test_a_log_that_does_not_lead_to_the_recorded_theta_is_refused(launch: Run, copied: Path) -> None:
    """As after a machine that computed wrongly: the file is whole, but theta is not what it says."""
    run = RunFile.open(copied / "run.h5")
    run.members[1]["coefficient"][2] *= 1.5
    run.write()
    shutil.rmtree(copied / "snapshots")
    more = (f"run.output_dir={copied.parent}", *SMALL, "es.generations=4")
    done = launch(["-m", "esmpi.run", TINY_RUN, *more], 0)
    assert done.returncode == 2
    assert f"replaying {copied / 'run.h5'} gives theta" in done.stderr
    assert "a machine computed wrongly, then or now" in done.stderr
    assert RunFile.open(copied / "run.h5").num_generations == run.num_generations


def test_a_fork_begins_with_another_run_and_is_a_run_of_its_own(
    launch: Run, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = Path(shutil.copytree(finished, tmp_path / "parent"))
    fork = (f"run.fork_from={parent}@2", "run.seed=5", "es.population_size=6", "es.sigma=2e-3")
    said = train(launch, tmp_path, 2, *fork)
    assert f"theta of generation 2 loaded from {parent}" in said
    assert "held-out at generation 2" in said
    assert "held-out at generation 0" not in said
    first, whole = digests(finished), digests(tmp_path / "tiny")
    assert whole[:2] == first[:2]
    assert len(whole) == 3
    assert whole[2] != first[2]
    with h5py.File(tmp_path / "tiny" / "run.h5") as file, h5py.File(parent / "run.h5") as old:
        assert file["members/seed"].shape == (3, 6)
        np.testing.assert_array_equal(file["members/seed"][:2, :4], old["members/seed"][:2])
        assert file["members/status"][0].tolist() == [0, 0, 0, 0, 2, 2]
        forks = json.loads(file.attrs["forks"])
        assert [(f["run_uuid"], f["generation"]) for f in forks] == [(old.attrs["run_uuid"], 2)]
        assert forks[0]["config"] == json.loads(old.attrs["config"])
        assert file.attrs["run_uuid"] != old.attrs["run_uuid"]
    # the parent is needed no more, neither to go on nor to replay
    shutil.rmtree(parent)
    shutil.rmtree(tmp_path / "tiny" / "snapshots")
    said = train(launch, tmp_path, 0, *fork[1:], "es.generations=4")  # what it began with need not be said again
    assert "resuming from generation 3" in said
    said = train(launch, tmp_path, 0, *fork, "es.generations=4")  # but may
    assert "resuming from generation 4" in said
    assert digests(tmp_path / "tiny")[:3] == whole
    assert main(["replay", str(tmp_path / "tiny"), "--verify"]) == 0
    assert "all 4 generations are what the run had" in capsys.readouterr().out
    # its log alone has the seeds of its parent, which do not follow from its config
    log = tmp_path / "log.h5"
    assert main(["export", str(tmp_path / "tiny"), "--log-only", "--out", str(log)]) == 0
    assert main(["replay", str(log), "--verify"]) == 0
    assert "all 4 generations are what the run had" in capsys.readouterr().out


def test_what_cannot_be_forked_or_resumed_is_refused(launch: Run, finished: Path, tmp_path: Path) -> None:
    def refused(output: Path, *overrides: str) -> str:
        done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={output}", *SMALL, *overrides], 0)
        assert done.returncode == 2, done.stdout
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    before = (finished / "run.h5").read_bytes()
    said = refused(finished.parent, "es.sigma=2e-3", "run.seed=9")
    assert "es.sigma: 0.003 -> 0.002" in said
    assert "run.seed: 1 -> 9" in said
    assert f"run.fork_from={finished}@3" in said
    assert "generation 4: " in refused(tmp_path, f"run.fork_from={finished}@4")
    assert "es.generations: 1 in all" in refused(tmp_path, f"run.fork_from={finished}@2", "es.generations=1")
    assert "run.fork_from: no run directory" in refused(tmp_path, f"run.fork_from={tmp_path}/none@1")
    # the model that the run made is another base model
    said = refused(tmp_path, f"run.fork_from={finished}@2", f"model.path={finished / 'model'}")
    assert "another base model" in said
    assert not (tmp_path / "tiny" / "run.h5").exists()
    assert (finished / "run.h5").read_bytes() == before


def test_inspect_tells_all_and_finds_damage(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(copied), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["generations"] == found["generations_wanted"] == 3
    assert int(found["theta_digest"], 16) == digests(copied)[-1]
    assert found["config"]["es"]["population_size"] == 4
    assert len(found["provenance"]) == 1
    names = {file["file"] for file in found["files"]}
    assert {"run.h5", "snapshots/g000003.h5", "eval/g000000.held_out.jsonl", "model"} <= names
    damage(copied / "snapshots" / "g000002.h5")
    (copied / "eval" / "g000001.held_out.jsonl").write_text("{}\n")
    assert main(["inspect", str(copied)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("g000002.h5" in line and "is damaged" in line for line in lines)
    assert any("g000001.held_out" in line and "has 1 samples, not 4" in line for line in lines)
    damage(copied / "run.h5")
    assert main(["inspect", str(copied)]) == 2


def test_a_log_of_a_few_kilobytes_is_the_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.h5"
    assert main(["export", str(finished), "--log-only", "--out", str(log)]) == 0
    assert log.stat().st_size < 25_000
    assert RunFile.open(log).attributes["provenance"] == []  # who ran it, where and how, is nobody's business
    assert main(["replay", str(log), "--verify"]) == 0
    assert "all 3 generations are what the run had" in capsys.readouterr().out
    assert main(["inspect", str(log)]) == 0
    assert main(["export", str(log), "--out", str(tmp_path / "model")]) == 0
    live, rebuilt = (load_file(f / "model.safetensors") for f in (finished / "model", tmp_path / "model"))
    assert all(torch.equal(live[name], rebuilt[name]) for name in live)
    assert main(["export", str(finished), "--log-only", "--out", str(log)]) == 2


def test_the_best_generation_and_its_card(finished: Path, tmp_path: Path) -> None:
    run = RunFile.open(finished / "run.h5")
    best = run.best()
    assert best is not None
    assert main(["export", str(finished), "--best", "--out", str(tmp_path / "best")]) == 0
    origin = json.loads((tmp_path / "best" / "esmpi.json").read_text())
    assert origin["generation"] == best["generation"]
    card = (tmp_path / "best" / "README.md").read_text()
    assert run.attributes["run_uuid"] in card
    assert f"{run.digest_after(best['generation']):016x}" in card
    assert f"| accuracy | {percent(run.evaluations['held_out'][0]['accuracy'])} |" in card
    # of an earlier generation the card says nothing that came later
    assert main(["export", str(finished), "--generation", "1", "--out", str(tmp_path / "first")]) == 0
    first = (tmp_path / "first" / "README.md").read_text()
    assert "| generation 0 | generation 1 |" in first
    assert "generation 3" not in first
    chosen = json.loads((tmp_path / "best" / "generation_config.json").read_text())
    assert chosen["do_sample"] is False
    assert chosen["max_new_tokens"] == 40
    assert "eos_token_id" in chosen


def test_replay_tells_where_the_log_goes_wrong(copied: Path, base: BaseModel) -> None:
    run = RunFile.open(copied / "run.h5")
    run.members[1]["coefficient"][0] *= 2
    assert replay(run, base, 3, 1, from_base=False).digest() == run.theta_digest  # from the snapshot
    with pytest.raises(Exception, match="the log does not lead to theta of generation 2"):
        replay(run, base, 3, 1, check=lambda generation: None)


def test_readers_see_every_state_of_a_run_that_is_going(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "esmpi.run", str(TINY_RUN), f"run.output_dir={tmp_path}", *SMALL]
    path, seen = tmp_path / "tiny" / "run.h5", []
    with subprocess.Popen([*command, "es.generations=8"], stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        while process.poll() is None:
            if path.exists():
                with h5py.File(path, "r") as file:
                    count = len(file["generations/theta_digest"])
                    assert file["members/seed"].shape[0] == count
                    seen.append(count)
            time.sleep(0.003)
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert set(seen) >= set(range(2, 8))


def test_a_longer_log_replays_from_segments_and_as_a_log_only_file(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_table, "SEGMENT_BYTES", 10 * 30 * MEMBER_DTYPE.itemsize)
    engine = opened(base)
    names = [name for name, _ in engine.weights.tensors()]
    run = RunFile.create(tmp_path / "run.h5", LEAST_CONFIG, engine.weights.digest(), "d", names, engine.weights.aliases)
    rng = np.random.default_rng(0)
    for generation in range(40):
        members, row = np.zeros(30, MEMBER_DTYPE), np.zeros(1, GENERATION_DTYPE)[0]
        members["seed"] = [member_seed(0, generation, member) for member in range(30)]
        members["coefficient"] = 1e-4 * rng.normal(size=30)
        engine.weights.update(members["seed"], members["coefficient"])
        row["generation"], row["theta_digest"], row["shrink"] = generation, engine.weights.digest(), 1
        run.commit(row, members)
    assert len(run.segments) >= 3
    config = load_config(TINY_RUN).to_dict()
    logs = []
    for number, known in enumerate((config, LEAST_CONFIG)):  # what seeds follow from, or nothing
        log = run.cut(tmp_path / f"log{number}.h5", 40)
        log.attributes |= {"log_only": True, "config": known}
        log.write()
        logs.append(log.path)
        with h5py.File(log.path, "r") as file:
            assert set(file["members"]) == ({"coefficient"} if known is config else {"seed", "coefficient"})
    for path in (run.path, *logs):
        verified: list[int] = []
        weights = replay(RunFile.open(path), base, 40, 2, check=verified.append)
        assert verified == list(range(1, 41))
        for (_, replayed), (_, live) in zip(weights.theta(), engine.weights.tensors(), strict=True):
            assert torch.equal(replayed.view(live.shape), live)
