"""Whose code runs, and whose secrets are kept: `esmpi eval RUN` of a stranger's run, and the secrets of one's own."""

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from strangers import change, config, of_json
from support import ROOT, TINY_RUN

from esmpi.__main__ import main
from esmpi.config.reader import load_config, parse_config
from esmpi.errors import UserError
from esmpi.identity import recorded
from esmpi.launch.dry_run import describe
from esmpi.launch.jobs import script
from esmpi.masking import MASK, masked, masked_text, names_a_secret
from esmpi.mpi.comm import Comm
from esmpi.provenance import provenance
from esmpi.setup import start_logging
from esmpi.store.run_file import RunFile
from esmpi.trust import check_agreed

CODE = """
from pathlib import Path
Path({mark!r}).write_text("executed")
train = evaluation = [{{"prompt": "1+1="}}]
def reward(completion, example):
    return 1.0
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a stranger's run in it, and a file that tells if it is executed."""
    make_run(tmp_path / "run", generations=2, every=2)
    (tmp_path / "rewards.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def began_with(place: Path, path: str) -> None:
    """Make the run one of a task's file."""
    digest = hashlib.blake2b((place / path).read_bytes(), digest_size=16).hexdigest()
    change(place / "run" / "run.h5", config("task", "name", f"{path}:reward"))
    change(place / "run" / "run.h5", lambda file: file.attrs.__setitem__("task_digest", digest))


@pytest.mark.parametrize("command", ["eval", "inspect", "report", "watch", "compare"])
@pytest.mark.parametrize("where", ["task", "engine", "environment"])
def test_no_file_that_only_a_run_names_is_executed(
    command: str, where: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section, key, name = {
        "task": ("task", "name", "rewards.py:reward"),
        "environment": ("task", "name", "env:rewards.py:reward"),
        "engine": ("engine", "kind", "rewards.py:Engine"),
    }[where]
    change(place / "run" / "run.h5", config(section, key, name))
    make_run(place / "other", generations=2, every=2)
    words = {"watch": ["watch", "--once", "run"], "compare": ["report", "run", "other"]}.get(command, [command, "run"])
    code = main(words)
    assert not (place / "mark").exists()
    if command == "eval":
        assert code == 2
        assert f"add {section}.{key}={name}" in capsys.readouterr().err


def test_a_task_file_is_compared_before_it_is_executed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began_with(place, "rewards.py")
    run = RunFile.open(place / "run" / "run.h5")
    check_agreed(run, ())
    with (place / "rewards.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="is not the file that"):
        check_agreed(run, ())
    assert main(["eval", "run"]) == 2
    assert "rewards.py is not the file that run was begun with: it is not executed" in capsys.readouterr().err
    assert not (place / "mark").exists()
    check_agreed(run, ["task.name=rewards.py:reward"])
    (place / "rewards.py").unlink()
    with pytest.raises(UserError, match=r"no file rewards\.py"):
        check_agreed(run, ())


def test_a_task_file_that_came_with_the_run_needs_a_word(place: Path) -> None:
    (place / "rewards.py").rename(place / "run" / "rewards.py")
    began_with(place, "run/rewards.py")
    run = RunFile.open(place / "run" / "run.h5")
    with pytest.raises(UserError, match="came with the run"):
        check_agreed(run, ())
    check_agreed(run, ["task.name=run/rewards.py:reward"])


@pytest.mark.parametrize(
    ("section", "key", "value", "word"),
    [
        ("model", "trust_remote_code", True, "model.trust_remote_code=true"),
        ("eval", "suites", {"s": {"lm_eval": "x", "include_path": "tasks"}}, "eval.suites={}"),
        ("engine", "kind", "mine.py:Engine", "engine.kind=mine.py:Engine"),
    ],
)
def test_other_code_needs_a_word(section: str, key: str, value: Any, word: str, place: Path) -> None:
    change(place / "run" / "run.h5", config(section, key, value))
    run = RunFile.open(place / "run" / "run.h5")
    with pytest.raises(UserError, match=rf"^{section}\.{key}: .*If you trust"):
        check_agreed(run, ())
    check_agreed(run, [word])


SECRET = "hunter2-and-more-0123456789"
GIVEN = [
    *("engine.kind=vllm", f'engine.vllm_args={{"hf_token": "{SECRET}", "max_logprobs": 4}}'),
    f"data.train=https://someone:{SECRET}@host/train.jsonl",
]


@pytest.fixture
def clean_log() -> Iterator[None]:
    logger = logging.getLogger("esmpi")
    before = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_no_secret_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_config(TINY_RUN, GIVEN)
    assert SECRET in json.dumps(made.to_dict())  # the engine gets it
    assert SECRET not in json.dumps(recorded(made))
    assert recorded(made)["engine"]["vllm_args"] == {"hf_token": MASK, "max_logprobs": 4}
    monkeypatch.setattr("sys.argv", ["esmpi", "run", "tiny.yaml", *GIVEN, f"--api-key={SECRET}"])
    assert SECRET not in json.dumps(provenance(1, ()))
    assert "esmpi run tiny.yaml" in " ".join(provenance(1, ())["command"])
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRET)
    monkeypatch.setattr("sys.argv", ["esmpi", f"task.template={SECRET}"])  # wherever the shell has put it
    assert provenance(1, ())["command"] == ["esmpi", f"task.template={MASK}"]


def test_no_secret_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], clean_log: None
) -> None:
    made = load_config(TINY_RUN, GIVEN[:2])
    assert SECRET not in describe(load_config(TINY_RUN, [f"model.revision=hf_{SECRET}"]), 1)
    with pytest.raises(UserError, match=r"engine\.vllm_args: holds a token, key or password") as refused:
        script([made], "job")
    assert SECRET not in str(refused.value)
    assert SECRET not in str(UserError(f"cannot load https://me:{SECRET}@host/x"))
    start_logging("info", Comm())
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    logging.getLogger("esmpi").warning("the judge was asked with %s", SECRET)
    assert SECRET not in "".join(capsys.readouterr())


def test_what_an_older_esmpi_recorded_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = make_run(tmp_path / "run", generations=2, every=2)
    change(file.path, config("engine", "vllm_args", {"api_key": SECRET}))
    change(file.path, of_json("provenance", lambda starts: starts[0].update(command=["esmpi", *GIVEN])))
    assert SECRET in file.path.read_bytes().decode("latin-1")
    for words in (["inspect"], ["inspect", "--json"], ["report"]):
        main([*words, str(tmp_path / "run")])
    assert SECRET not in "".join(capsys.readouterr())
    assert SECRET not in (tmp_path / "run" / "report.html").read_text()
    run = RunFile.open(file.path)
    run.write()  # as the next commit does
    assert SECRET not in file.path.read_bytes().decode("latin-1")
    with pytest.raises(UserError, match=r"engine\.vllm_args: held a token, key or password"):
        check_agreed(run, ())
    check_agreed(run, ['engine.vllm_args={"api_key": "x"}'])


def test_a_run_keeps_no_secret(tmp_path: Path) -> None:
    """A run, resumed, with a secret in its words and its environment: no file and no line has it."""
    words = [TINY_RUN, f"run.output_dir={tmp_path}", "es.population_size=2", "data.num_eval=2", "data.batch_size=2"]
    words += ["log.sinks=[csv, jsonl]", "log.samples=1", f"model.revision={SECRET}"]
    environment = os.environ | {"MY_PASSWORD": SECRET}
    for generations in (1, 2):
        command = [sys.executable, "-m", "esmpi.run", *map(str, words), f"es.generations={generations}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert RunFile.open(tmp_path / "tiny" / "run.h5").num_generations == 2
    files = [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()]
    assert {"run.h5", "README.md", "figures.csv"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        *(("hf_token", True), ("WANDB_API_KEY", True), ("apiKey", True), ("password", True), ("authorization", True)),
        *(("PGPASSWORD", True), ("SLURM_JWT", True), ("api_keys", True), ("SSH_PASSPHRASE", True)),
        *(("DB_PASS", True), ("MYSQL_PWD", True), ("PWD", False), ("OLDPWD", False), ("first_pass_tokens", False)),
        *(("max_tokens", False), ("pad_token", False), ("stop_token_ids", False), ("key", False), ("tokenizer", False)),
    ],
)
def test_names_of_secrets(name: str, is_secret: bool) -> None:
    assert names_a_secret(name) == is_secret


@pytest.mark.parametrize(
    "value",
    [
        *({"api_key": ["SECRET", "SECRET"]}, {"password": 5432154321}, {"auth": {"user": "SECRET"}}),
        *("https://host/x?a=1&token=SECRET", "https://host/x?X-Amz-Signature=SECRET&x=1", "https://host/x?sig=SECRET"),
        *('{"password": "SECRET, a SECRET"}', "api_key: [SECRET, SECRET]", "hf_token = 'SECRET SECRET'"),
        *("authorization: Basic SECRET", "engine.vllm_args={api_key: SECRET}", 'x={"token": "SECRET SECRET"}'),
    ],
    ids=str,
)
def test_forms_of_secrets(value: Any) -> None:
    found = str(masked(value))
    assert MASK in found
    assert not re.search("SECRET|54321", found)
    assert masked(masked(value)) == masked(value)


def test_what_is_no_secret_stays() -> None:
    tree = parse_config({}, ["run.name=x", "model.path=org/m", "es.generations=1", "task.name=countdown"]).to_dict()
    assert masked(tree) == json.loads(json.dumps(tree))
    for text in ("https://host/a@b", "git@github.com:x", "sampling.max_tokens=5", "the secret: none", "pad_token=</s>"):
        assert masked_text(text) == text
