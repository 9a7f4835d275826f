"""The main program on real MPI ranks: the layout does not matter, and what is committed is not lost."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from support import TINY_RUN, Columns, Run, assert_same_run, read, samples, train

from esmpi.report.summary import summarize
from esmpi.run import STOPPED
from esmpi.store.run_file import RunFile

FAULTY = Path(__file__).parent / "faulty.py"


@pytest.fixture(scope="module")
def serial_output(launch: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of one process without a launcher, with which others are compared."""
    output = tmp_path_factory.mktemp("serial")
    train(launch, output, 0)
    return output / "tiny"


@pytest.fixture(scope="module")
def serial(serial_output: Path) -> Columns:
    return read(serial_output)


@pytest.mark.parametrize(
    ("ranks", "dispatch"), [(1, "dynamic"), (2, "static"), (2, "dynamic"), (3, "dynamic"), (5, "static")]
)
def test_any_layout_gives_the_same_bits(
    launch: Run, serial_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, dispatch: str
) -> None:
    if ranks == 3:
        monkeypatch.setenv("MPIR_CVAR_NOLOCAL", "1")  # MPICH: as if each rank were on a node of its own
    run = train(launch, tmp_path, ranks, f"es.dispatch={dispatch}")
    assert_same_run(tmp_path / "tiny", serial_output)
    assert set(run["members/rank"].ravel()) == set(range(ranks))
    if dispatch == "static":
        assert (np.diff(run["members/rank"]) >= 0).all(), "neighbours"
    if ranks == 2:
        _check_idle(tmp_path / "tiny", run)
    assert list(samples(serial_output)) == ["g000000.held_out.jsonl", "g000003.held_out.jsonl"]


def _check_idle(directory: Path, run: Columns) -> None:
    """The report says what the members' columns say."""
    busy = [np.where(run["members/rank"] == rank, run["members/seconds"], 0).sum(axis=1) for rank in (0, 1)]
    idle = [(np.maximum(*busy) - one).sum() / run["generations/seconds_total"].sum() for one in busy]
    [line] = [line for line in summarize(RunFile.open(directory / "run.h5")).splitlines() if "idle" in line]
    assert [float(share) for share in re.findall(r"rank \d (\S+) %", line)] == pytest.approx(
        [100 * share for share in idle], abs=0.06
    )
    assert float(line.split()[0]) == pytest.approx(100 * np.mean(idle), abs=0.06)


def test_the_fitness_is_not_all_the_same(serial: Columns) -> None:
    """Else the comparisons above would compare nothing."""
    assert (serial["members/fitness"].std(axis=1) > 0).all()
    assert len(set(serial["generations/theta_digest"].tolist())) == 3


def test_more_ranks_than_members(launch: Run, tmp_path: Path) -> None:
    alone = train(launch, tmp_path / "alone", 0, "es.population_size=2", "es.generations=2")
    crowd = train(launch, tmp_path / "crowd", 3, "es.population_size=2", "es.generations=2", "es.dispatch=dynamic")
    np.testing.assert_array_equal(crowd["generations/theta_digest"], alone["generations/theta_digest"])


def test_a_killed_rank_ends_the_job_and_loses_nothing(launch: Run, serial: Columns, tmp_path: Path) -> None:
    stamp = tmp_path / "stamp"
    done = launch([FAULTY, "kill", "1", stamp, TINY_RUN, f"run.output_dir={tmp_path}"], 2)
    assert time.time() - float(stamp.read_text()) < 10
    assert done.returncode != 0
    run = read(tmp_path / "tiny")
    np.testing.assert_array_equal(run["generations/theta_digest"], serial["generations/theta_digest"][:1])
    # the same command goes on, on any number of ranks, which may share the members out otherwise
    run = train(launch, tmp_path, 3, "es.dispatch=dynamic")
    np.testing.assert_array_equal(run["generations/theta_digest"], serial["generations/theta_digest"])


@pytest.mark.parametrize(
    ("fault", "rank", "dispatch"), [("raise", 1, "dynamic"), ("raise", 0, "dynamic"), ("exit", 1, "static")]
)
def test_a_rank_that_fails_ends_the_job_with_its_error(
    launch: Run, tmp_path: Path, fault: str, rank: int, dispatch: str
) -> None:
    stamp = tmp_path / "stamp"
    mine = (f"run.output_dir={tmp_path}", f"es.dispatch={dispatch}")
    done = launch([FAULTY, fault, str(rank), stamp, TINY_RUN, *mine], 2)
    assert time.time() - float(stamp.read_text()) < 10
    assert done.returncode != 0
    assert f"[rank {rank} of 2" in done.stderr
    assert ("the engine of this rank broke" if fault == "raise" else "SystemExit: 3") in done.stderr


def test_a_rank_that_cannot_leave_is_no_hang(launch: Run, tmp_path: Path) -> None:
    overrides = (f"run.output_dir={tmp_path}", "es.generations=1", "data.num_eval=2")
    done = launch([FAULTY, "leave", "1", tmp_path / "stamp", TINY_RUN, *overrides], 2)
    assert done.returncode != 0
    assert "[rank 1 of 2" in done.stderr
    assert "this rank cannot leave" in done.stderr


def test_a_run_ends_at_once_and_may_be_one_of_several_in_a_process(
    launch: Run, tmp_path: Path, watched_end: None
) -> None:
    overrides = (f"run.output_dir={tmp_path}", "es.generations=1", "data.num_eval=2", "run.export_dtype=none")
    for ranks in (0, 2):
        done = launch(["-m", "esmpi.run", TINY_RUN, *overrides, f"run.name=on_{ranks}"], ranks)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("at exit") >= max(1, ranks)  # the processes that score say so, too
        assert "taken apart" not in done.stdout
    program = "import sys; from esmpi.run import main; print([main(sys.argv[1:]) for _ in range(2)])"
    done = launch(["-c", program, TINY_RUN, *overrides], 2)
    assert done.stdout.count("[0, 0]") == 2, done.stderr


SLOW_END = """
import os, sys, time

class Slow:
    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def flush(self):
        self._stream.flush()
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is not None and mpi.Is_finalized() and os.environ["PMI_RANK"] == "1":
            time.sleep(1)
            with open(os.environ["ENDED"], "a") as file:
                file.write("ended")

sys.stdout = Slow(sys.stdout)
"""


def test_ranks_with_different_configs_say_which_key_differs(launch: Run, tmp_path: Path) -> None:
    program = """
import sys
from esmpi import run
from esmpi.mpi.launcher import launcher

sys.exit(run.main([*sys.argv[1:], f"run.seed={launcher().rank}"]))
"""
    done = launch(["-c", program, TINY_RUN, f"run.output_dir={tmp_path}"], 2)
    assert done.returncode == 2
    assert done.stderr.count("rank 1 has another config than rank 0: run.seed") == 1
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_rank_may_take_longer_to_end_than_the_others(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SLOW_END)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("ENDED", str(tmp_path / "ended"))
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", "es.generations=0"], 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "ended").exists()  # mpiexec did not kill it


@pytest.mark.parametrize("fault", ["usr1", "term"])
def test_a_signal_to_any_rank_stops_all_after_the_generation(
    launch: Run, serial: Columns, tmp_path: Path, fault: str
) -> None:
    done = launch([FAULTY, fault, "1", tmp_path / "stamp", TINY_RUN, f"run.output_dir={tmp_path}"], 2)
    assert done.returncode == STOPPED, done.stderr
    assert "generation 2 is committed" in done.stdout
    run = read(tmp_path / "tiny")
    np.testing.assert_array_equal(run["generations/theta_digest"], serial["generations/theta_digest"][:2])
    assert not (tmp_path / "tiny" / "model").exists()
    run = train(launch, tmp_path, 0)
    np.testing.assert_array_equal(run["generations/theta_digest"], serial["generations/theta_digest"])


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_with_another_theta_stops_the_run_before_it_is_committed(
    launch: Run, serial: Columns, tmp_path: Path, rank: int
) -> None:
    done = launch([FAULTY, "corrupt", str(rank), tmp_path / "stamp", TINY_RUN, f"run.output_dir={tmp_path}"], 3)
    assert done.returncode != 0
    assert "theta differs between ranks" in done.stderr
    assert f"ranks [{rank}]" in done.stderr
    assert f"ranks {[other for other in range(3) if other != rank]}" in done.stderr
    run = train(launch, tmp_path, 2)
    np.testing.assert_array_equal(run["generations/theta_digest"], serial["generations/theta_digest"])


def test_a_rank_without_members_says_which_theta_it_has(launch: Run, tmp_path: Path) -> None:
    few = ["es.population_size=2", f"run.output_dir={tmp_path}"]
    done = launch([FAULTY, "stale", "2", tmp_path / "stamp", TINY_RUN, *few], 3)
    assert done.returncode != 0
    assert "theta differs between ranks" in done.stderr
    assert "on ranks [0, 1]; " in done.stderr
    assert "on ranks [2]" in done.stderr
    assert "before the update" in done.stderr
    assert len(read(tmp_path / "tiny")["generations/theta_digest"]) == 1


def test_every_way_to_run_gives_the_same_bits_on_any_ranks(launch: Run, tmp_path: Path) -> None:
    overrides = (
        *("es.population_size=4", "es.generations=2", "es.antithetic=true", "es.shaping=centered_rank"),
        *("sampling.temperature=1", "sampling.top_p=0.9", "data.mini_batch_size=3", "data.order=random"),
        *("model.dtype=bfloat16", "run.export_dtype=bfloat16", "eval.temperature=0.7", "eval.every=1"),
    )
    alone = train(launch, tmp_path / "alone", 0, *overrides)
    three = train(launch, tmp_path / "three", 3, *overrides)
    np.testing.assert_array_equal(alone["generations/theta_digest"], three["generations/theta_digest"])
    np.testing.assert_array_equal(alone["members/fitness"], three["members/fitness"])
    assert alone["members/sign"][0].tolist() == [1, -1, 1, -1]
    assert alone["members/seed"][0, 0] == alone["members/seed"][0, 1] != alone["members/seed"][0, 2]
    assert alone["evaluations/held_out/generation"].tolist() == [0, 1, 2]
    config = json.loads((tmp_path / "alone" / "tiny" / "model" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_other_problems_under_the_same_name_are_refused(launch: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"numbers": [i, 2, 3], "target": i + 5}) for i in range(1, 11)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    mine = (f"data.train={tmp_path / 'train.jsonl'}", "data.num_train=null")
    train(launch, tmp_path, 0, "es.generations=1", *mine)
    (tmp_path / "train.jsonl").write_text("\n".join(reversed(lines)))
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *mine], 0)
    assert done.returncode == 2
    assert "other problems" in done.stderr


def test_a_prompt_that_does_not_fit_is_refused_at_the_start(launch: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"numbers": [1, 2, 3], "target": i}) for i in range(9)]
    lines.append(json.dumps({"numbers": list(range(100)), "target": 1}))
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    mine = (f"data.train={tmp_path / 'train.jsonl'}", "data.num_train=null")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", *mine], 2)
    assert done.returncode == 2
    assert done.stderr.count("sampling.max_tokens: a prompt of") == 1
    assert not (tmp_path / "tiny" / "run.h5").exists()


def test_a_launcher_that_does_not_fit_the_library_is_refused(
    launch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what Open MPI's mpiexec tells a process, while the library here is another one or a world of one
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}"], 0)
    assert done.returncode == 2
    assert "MPI sees a world of 1" in done.stderr
    assert not (tmp_path / "tiny").exists()


def test_another_config_in_the_same_directory_is_refused(launch: Run, tmp_path: Path) -> None:
    train(launch, tmp_path, 0, "es.generations=1")
    before = (tmp_path / "tiny" / "run.h5").read_bytes()
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={tmp_path}", "es.sigma=2e-3"], 2)
    assert done.returncode == 2
    assert done.stderr.count("es.sigma: 0.003 -> 0.002") == 1
    assert (tmp_path / "tiny" / "run.h5").read_bytes() == before


def test_the_exported_model_is_theta_and_the_log_leads_to_it(launch: Run, tmp_path: Path) -> None:
    run = train(launch, tmp_path, 0)
    directory = tmp_path / "tiny"
    # replayed without MPI or engine, written by another process, loaded by transformers alone
    done = launch(["-m", "esmpi", "export", directory, "--out", tmp_path / "replayed"], 0)
    assert done.returncode == 0, done.stderr
    assert f"{run['generations/theta_digest'][-1]:016x}" in done.stdout
    script = (
        "import sys, json, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "live, replayed = (AutoModelForCausalLM.from_pretrained(path) for path in sys.argv[1:])\n"
        "same = [torch.equal(p, q) for p, q in zip(live.parameters(), replayed.parameters(), strict=True)]\n"
        "AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([all(same), len(same), str(live.dtype)]))\n"
    )
    done = launch(["-c", script, directory / "model", tmp_path / "replayed"], 0)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [True, 50, "torch.float32"]


def test_the_end_of_a_run_says_what_it_learned(launch: Run, serial_output: Path) -> None:
    done = launch(["-m", "esmpi.run", TINY_RUN, f"run.output_dir={serial_output.parent}"], 0)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    run = read(serial_output)
    before, after = (100 * run["evaluations/held_out/accuracy"][place] for place in (0, -1))
    [learned] = [line for line in lines if f"held-out accuracy {before:.1f} % -> {after:.1f} %, 95 % intervals" in line]
    assert f"{run['evaluations/held_out/num_problems'][0]} problems" in learned
    assert any("; paired sign test p" in line for line in lines)
    [files] = [line for line in lines if "files: run file" in line]
    assert all(Path(place).exists() for place in re.findall(r"/\S+[^,\s]", files.partition("files:")[2]))
    assert lines[-2].endswith(f"next: esmpi report {serial_output}")


def test_the_report_tells_before_and_after(launch: Run, serial_output: Path) -> None:
    done = launch(["-m", "esmpi", "report", serial_output], 0)
    assert done.returncode == 0, done.stderr
    samples = [
        [json.loads(line) for line in (serial_output / "eval" / name).read_text().splitlines()]
        for name in ("g000000.held_out.jsonl", "g000003.held_out.jsonl")
    ]
    before, after = (100 * sum(sample["correct"] for sample in part) / len(part) for part in samples)
    assert ["accuracy", f"{before:.1f}", "%", f"{after:.1f}", "%"] in [
        line.split() for line in done.stdout.splitlines()
    ]
    assert done.stdout.count("after  right") + done.stdout.count("after  wrong") == 3
    picture = (serial_output / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
