"""The run file: what goes in comes out, by esmpi and by plain h5py, and damage is told, not met."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import LEAST_CONFIG

from esmpi import files
from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.files import ForbiddenError, FullError, locked, replacing, write_whole
from esmpi.store import seal
from esmpi.store.run_file import GENERATION_DTYPE, MEMBER_DTYPE, RunFile, run_file_path, samples_path

CONFIG = LEAST_CONFIG | {"run": {"name": "ünïcode"}, "es": {"generations": 3, "sigma": 1e-3, "alpha": None}}
NUM_MEMBERS = 5


@contextmanager
def editing(path: Path) -> Iterator[h5py.File]:
    """Change a run file behind esmpi's back, but with the checksum made anew: as another version might write it."""
    with h5py.File(path, "a") as file:
        yield file
    image = bytearray(path.read_bytes())
    seal.seal(memoryview(image))
    path.write_bytes(image)


def row_of(generation: int) -> np.void:
    row = np.zeros(1, GENERATION_DTYPE)[0]
    for i, name in enumerate(GENERATION_DTYPE.names or ()):
        row[name] = generation + i
    row["generation"], row["theta_digest"] = generation, 2**64 - 1 - generation
    row["shrink"] = 0.5
    return row


def members_of(generation: int) -> np.ndarray:
    rng = np.random.default_rng(generation)
    members = np.zeros(NUM_MEMBERS, MEMBER_DTYPE)
    members["seed"] = rng.integers(2**63, 2**64, NUM_MEMBERS, np.uint64)
    members["sign"] = [1, -1, 1, -1, 1]
    members["status"][2] = 1
    members["fitness"] = rng.random(NUM_MEMBERS)
    members["fitness"][2] = np.nan
    members["coefficient"] = rng.normal(size=NUM_MEMBERS).astype(np.float32)
    members["tokens"] = 7
    return members


def evaluation_of(generation: int) -> dict[str, Any]:
    return {"generation": generation, "accuracy": 0.25, "reward_mean": 1 / 3, "num_samples": 40, "seconds": 1.5}


def make(path: Path, num_generations: int = 3, digest: int = 0xFEDCBA9876543210) -> RunFile:
    run = RunFile.create(path, CONFIG, digest, "d1", ["a.weight", "b.weight"], {"tied.weight": "a.weight"})
    run.attributes["provenance"].append({"host": "here", "unix_time": 1.5})
    run.write()
    for generation in range(num_generations):
        run.commit(row_of(generation), members_of(generation))
    run.add_evaluation("held_out", evaluation_of(0))
    run.add_evaluation("held_out", evaluation_of(num_generations))
    return run


def same_run(a: RunFile, b: RunFile) -> bool:
    return (
        a.attributes == b.attributes
        and a.evaluations == b.evaluations
        and np.array(a.generations, GENERATION_DTYPE).tobytes() == np.array(b.generations, GENERATION_DTYPE).tobytes()
        and np.array(a.members, MEMBER_DTYPE).tobytes() == np.array(b.members, MEMBER_DTYPE).tobytes()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "run.h5"


@pytest.mark.parametrize("num_generations", [0, 1, 3])
def test_what_was_written_is_read(path: Path, num_generations: int) -> None:
    run = make(path, num_generations)
    read = RunFile.open(path)
    assert same_run(read, run)
    assert read.num_generations == num_generations
    assert read.digest_after(0) == 0xFEDCBA9876543210
    assert read.theta_digest == (2**64 - num_generations if num_generations else 0xFEDCBA9876543210)
    assert read.attributes["config"] == CONFIG
    assert read.attributes["aliases"] == {"tied.weight": "a.weight"}
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]


@pytest.mark.parametrize("digest", [0, 5, 2**31 - 1, 2**31, 2**63, 2**64 - 1])
def test_any_digest_of_the_model_survives(path: Path, digest: int) -> None:
    make(path, 0, digest)
    assert RunFile.open(path).digest_after(0) == digest


def test_a_file_that_was_read_goes_on(path: Path) -> None:
    make(path, 2)
    run = RunFile.open(path)
    run.commit(row_of(2), members_of(2))
    run.add_evaluation("other", evaluation_of(3))
    again = RunFile.open(path)
    assert same_run(again, run)
    assert again.members[2]["seed"].tolist() == members_of(2)["seed"].tolist()
    assert set(again.evaluations) == {"held_out", "other"}


def test_plain_h5py_reads_the_documented_schema(path: Path) -> None:
    make(path)
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 4
        assert file.attrs["noise_version"] == 1
        assert file.attrs["creator"].startswith("esmpi ")
        assert len(file.attrs["run_uuid"]) == 36
        assert json.loads(file.attrs["config"]) == CONFIG
        assert file.attrs["model_digest"] == 0xFEDCBA9876543210
        assert json.loads(file.attrs["provenance"])[0]["host"] == "here"
        generations = {"generation", "fitness_mean", "fitness_std", "fitness_min", "fitness_max", "theta_digest"}
        generations |= {f"seconds_{p}" for p in ("generate", "score", "perturb", "update", "exchange", "total")}
        generations |= {"tokens", "num_failed", "unix_time"}
        assert generations <= set(file["generations"])
        assert all(file["generations"][name].shape == (3,) for name in generations)
        assert file["generations/theta_digest"].dtype == np.uint64
        assert file["generations/seconds_total"].attrs["unit"] == "s"
        types = {"seed": "u8", "sign": "i1", "status": "u1", "fitness": "f8", "coefficient": "f4"}
        for name, kind in types.items():
            assert file[f"members/{name}"].dtype == np.dtype(kind)
        assert {"rank", "seconds", "tokens"} <= set(file["members"])
        assert all(column.shape == (3, NUM_MEMBERS) for column in file["members"].values())
        assert (file["members/seed"][1] == members_of(1)["seed"]).all()
        assert file["evaluations/held_out/generation"][()].tolist() == [0, 3]
        assert file["evaluations/held_out/accuracy"][()].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(("name", "reads"), [("format_version", "1 and 2 and 3 and 4"), ("noise_version", "1 and 2")])
def test_other_versions_are_refused(path: Path, name: str, reads: str) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = 9
    with pytest.raises(UserError, match=rf"has {name} 9; this esmpi reads {reads}$"):
        RunFile.open(path)
    with editing(path) as file:
        del file.attrs[name]
    with pytest.raises(UserError, match=rf"is not a run file of esmpi: it has no attribute {name}"):
        RunFile.open(path)


def test_missing_foreign_and_cut_files_are_refused(path: Path) -> None:
    with pytest.raises(UserError, match="no run file"):
        RunFile.open(path)
    make(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|is not a run file"):
            RunFile.open(path)


@pytest.mark.parametrize(
    "place", ["generations", "members", "evaluations", "members/coefficient", "generations/tokens"]
)
def test_missing_parts_are_refused(path: Path, place: str) -> None:
    make(path)
    with editing(path) as file:
        del file[place]
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


@pytest.mark.parametrize("name", ["config", "provenance", "tensors", "aliases"])
def test_damaged_json_is_refused(path: Path, name: str) -> None:
    make(path)
    with editing(path) as file:
        file.attrs[name] = file.attrs[name][:-1] + "?"
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


def test_columns_of_unequal_length_are_refused(path: Path) -> None:
    make(path)
    with editing(path) as file:
        short = file["members/coefficient"][:2]
        del file["members/coefficient"]
        file["members/coefficient"] = short
    with pytest.raises(UserError, match="cannot be read as a run file"):
        RunFile.open(path)


def test_every_flipped_bit_is_refused(path: Path) -> None:
    make(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged|is not a run file"):
            RunFile.open(path)


def test_paths_beside_the_run_file(tmp_path: Path) -> None:
    assert run_file_path(tmp_path / "a.h5") == tmp_path / "a.h5" / "run.h5"
    (tmp_path / "run.h5").touch()
    assert run_file_path(tmp_path) == run_file_path(tmp_path / "run.h5") == tmp_path / "run.h5"
    assert samples_path(tmp_path / "run.h5", "held_out", 30) == tmp_path / "eval" / "g000030.held_out.jsonl"


class Killed(BaseException):
    """Stands for the death of the process at this point."""


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_commit_that_dies_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    run = make(path)
    before = path.read_bytes()

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, function, die)
        with pytest.raises(Killed):
            run.commit(row_of(3), members_of(3))
    assert path.read_bytes() == before
    assert RunFile.open(path).num_generations == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["run.h5"]
    run.write()
    assert RunFile.open(path).num_generations == 4


@pytest.mark.parametrize(
    ("number", "tries"), [(errno.EIO, 5), (errno.ESTALE, 2), (errno.EROFS, 1), (errno.EACCES, 1), (errno.EDQUOT, 1)]
)
def test_what_may_pass_is_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch, number: int, tries: int) -> None:
    """Two failures are got over, five are not; what will not pass is not tried again."""
    run = make(path)
    before, count, fsync = path.read_bytes(), 0, os.fsync
    failures = 5 if number == errno.EIO else 1
    monkeypatch.setattr(files, "_WAITS_S", (0.0,) * 4)

    def fail(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count <= failures:
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    if number == errno.ESTALE:
        run.commit(row_of(3), members_of(3))
        assert RunFile.open(path).num_generations == 4
        assert count == tries + 1  # the folder's, too
        return
    error, said = {
        errno.EIO: (OSError, os.strerror(number)),
        errno.EDQUOT: (FullError, "no room for"),
    }.get(number, (ForbiddenError, rf"run.h5 cannot be written any more \({os.strerror(number)}\)"))
    with locked(path.parent), pytest.raises(error, match=said):
        run.commit(row_of(3), members_of(3))
    assert count == tries
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".lock", "run.h5"]


def test_a_file_of_no_run_may_be_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a page, whose writer has its own words for it."""

    def fail(descriptor: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PermissionError):
        write_whole(tmp_path / "page.html", b"page")


def test_a_block_that_raises_replaces_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new folder" / "file"

    def write(text: str, error: BaseException | None = None) -> None:
        with replacing(target) as temporary:
            assert temporary.parent == target.parent
            temporary.write_text(text)
            if error is not None:
                raise error

    write("old")
    with pytest.raises(Killed):
        write("half of the n", Killed())
    assert target.read_text() == "old"
    assert [entry.name for entry in target.parent.iterdir()] == ["file"]
    write("new")
    assert target.read_text() == "new"


def test_a_kill_between_any_two_commits_leaves_a_whole_file(path: Path) -> None:
    """SIGKILL while a process commits as fast as it can; whatever it announced is there."""
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_run_file import *\n"
        "run = make(Path(sys.argv[1]), 0)\n"
        "for generation in range(10**6):\n"
        "    run.commit(row_of(generation), members_of(generation))\n"
        "    print(generation + 1, flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(path), *map(str, Path(__file__).parents[:2])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 20:
                break
        process.kill()
        announced = [int(line) for line in process.stdout]
    run = RunFile.open(path)
    last = announced[-1] if announced else 20
    assert run.num_generations in (last, last + 1)
    assert run.members[-1]["seed"].tolist() == members_of(run.num_generations - 1)["seed"].tolist()


def _commit_with_little_room(path: Path, size: int) -> None:
    import signal

    run = RunFile.open(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        run.commit(row_of(3), members_of(3))
    except FullError as error:
        os._exit(7 if "bytes at" in str(error) and "rerun the same command" in str(error) else 8)
    os._exit(0)


def test_a_full_disk_waits_once_for_what_makes_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(path)
    full, asked = True, 0
    fsync = os.fsync

    def sync(descriptor: int) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    def make_room() -> None:
        nonlocal full, asked
        full, asked = asked == 1, asked + 1

    monkeypatch.setattr(os, "fsync", sync)
    run.make_room = make_room
    run.commit(row_of(3), members_of(3))
    assert asked == 1
    assert RunFile.open(path).num_generations == 4
    full = True
    with pytest.raises(FullError):
        run.commit(row_of(4), members_of(4))
    assert asked == 2
    assert RunFile.open(path).num_generations == 4


@pytest.mark.parametrize("size", [0, 1000, 12_000])
def test_a_full_disk_leaves_the_old_file(path: Path, size: int) -> None:
    make(path)
    before = path.read_bytes()
    assert len(before) > 12_000
    process = multiprocessing.get_context("spawn").Process(target=_commit_with_little_room, args=(path, size))
    process.start()
    process.join(100)
    assert process.exitcode == 7
    assert path.read_bytes() == before
    assert RunFile.open(path).num_generations == 3


def _try_lock(directory: Path) -> str:
    program = (
        "import sys; from pathlib import Path\n"
        "from esmpi.files import locked; from esmpi.errors import UserError\n"
        "try:\n"
        "    with locked(Path(sys.argv[1])): print('held')\n"
        "except UserError as error: print('refused:', error)\n"
    )
    return subprocess.run([sys.executable, "-c", program, str(directory)], capture_output=True, text=True).stdout


def test_the_lock_refuses_a_second_process_and_says_who_has_it(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "one"
    with locked(directory):
        refusal = _try_lock(directory)
        assert refusal.startswith(f"refused: run directory {directory} is in use (by process {os.getpid()} on ")
        assert _try_lock(tmp_path / "runs" / "other") == "held\n"
    assert _try_lock(directory) == "held\n"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from esmpi.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"by process {process.pid} on "), locked(tmp_path):
            pass
        process.kill()
    with locked(tmp_path):
        pass


def test_a_run_directory_can_be_moved(path: Path, tmp_path: Path) -> None:
    run = make(path)
    shutil.move(path.parent, tmp_path / "elsewhere")
    assert same_run(RunFile.open(tmp_path / "elsewhere" / "run.h5"), run)


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


def test_the_best_evaluation_is_the_most_accurate_then_best_rewarded_then_first(path: Path) -> None:
    run = make(path)
    for generation, accuracy, reward in ((0, 0.5, 0.9), (1, 0.6, 0.1), (2, 0.6, 0.2), (3, 0.6, 0.2)):
        run.add_evaluation("held_out", {"generation": generation, "accuracy": accuracy, "reward_mean": reward})
    assert run.best() == {"generation": 2, "accuracy": 0.6, "reward_mean": 0.2}
    assert run.choose_generation(None, best=True) == 2
    assert run.best("other") is None
