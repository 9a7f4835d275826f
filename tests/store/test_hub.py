"""`esmpi export --push`, against a stand-in for the hub: what is uploaded, how private it is, and what is told."""

import shutil
import socket
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from hub_server import TOKEN, Hub, Repository, hub
from support import TINY_RUN

from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.store.hub import check_links, check_push, push


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub, which this process has a token for."""
    from huggingface_hub import constants

    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, in a library of its own
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_a_model_is_exported_and_pushed(server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("es.generations=1", "es.population_size=2", "data.num_eval=4", "run.export_dtype=none")
    assert main(["run", str(TINY_RUN), f"run.output_dir={tmp_path}", *small]) == 0
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "tiny"), "--out", str(out), "--push", "someone/counts"]
    assert main(words) == 0
    assert f"pushed to {server.url}/someone/counts (private)" in capsys.readouterr().out
    repository = server.repositories["someone/counts"]
    assert (repository.private, repository.commits) == (True, 1)
    assert {name for name in repository.files if name != ".gitattributes"} == {path.name for path in out.iterdir()}
    assert all(repository.files[path.name] == path.read_bytes() for path in out.iterdir())
    assert {"model.safetensors", "README.md", "curve.png", "esmpi.json", "tokenizer.json"} <= set(repository.files)
    assert main(words) == 2
    assert "someone/counts exists and has files, such as README.md" in capsys.readouterr().err
    assert repository.commits == 1


def test_no_file_that_is_a_link_to_elsewhere_is_uploaded(
    server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "models--org--x" / "snapshots" / "1"
    shutil.copytree(str(files("esmpi") / "assets" / "tiny_countdown"), model)
    blobs = model.parent.parent / "blobs"
    blobs.mkdir()
    (model / "config.json").rename(blobs / "0")
    (model / "config.json").symlink_to("../../blobs/0")  # as in the hub's cache
    check_links(model)
    (tmp_path / "key").write_text("private")
    (model / "LICENSE").symlink_to(tmp_path / "key")
    small = ("es.generations=1", "es.population_size=2", "data.num_eval=4", "run.export_dtype=none")
    assert main(["run", str(TINY_RUN), f"run.output_dir={tmp_path}", f"model.path={model}", *small]) == 0
    assert main(["export", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--push", "someone/x"]) == 2
    assert f"{model / 'LICENSE'} leads out of the model's folder, to {tmp_path / 'key'}" in capsys.readouterr().err
    assert "someone/x" not in server.repositories


def test_a_repository_is_public_if_asked_for_and_an_empty_one_is_filled(server: Hub, folder: Path) -> None:
    assert push(folder, "org/open", True).endswith("/org/open (public)")
    assert server.repositories["org/open"].private is False
    server.fails = "/commit/"
    with pytest.raises(UserError, match=r"org/mine is not complete: .*storage is full") as caught:
        push(folder, "org/mine", False)
    assert f"hf upload org/mine {folder}" in str(caught.value)
    assert (folder / "model.safetensors").stat().st_size == 1000
    server.fails = ""
    check_push("org/mine", False)
    assert push(folder, "org/mine", False).endswith("(private)")
    assert len(server.repositories["org/mine"].files["model.safetensors"]) == 1000


def test_nothing_private_gets_into_a_public_repository(server: Hub, folder: Path) -> None:
    server.repositories["org/seen"] = Repository(private=False)
    for attempt in (lambda: check_push("org/seen", False), lambda: push(folder, "org/seen", False)):
        with pytest.raises(UserError, match="org/seen exists and is public: add --public, or choose another name"):
            attempt()
    assert set(server.repositories["org/seen"].files) == {".gitattributes"}


def test_what_is_missing_is_told_before_the_work(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(UserError, match="'counts' is no name of a repository: write ORG/NAME"):
        check_push("counts", False)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match=r"does not let esmpi in: .*Invalid"):
        check_push("org/new", False)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no token for the hub: run `hf auth login`, or set HF_TOKEN"):
        check_push("org/new", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match=f"the hub at http://127.0.0.1:{port} does not let esmpi in: .*[Cc]onnect"):
        check_push("org/new", False)


def test_options_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(tmp_path), "--out", str(tmp_path / "x")]
    assert main([*words, "--public"]) == 2
    assert main([*words, "--log-only", "--push", "org/x"]) == 2
    said = capsys.readouterr().err
    assert "--public is for --push ORG/NAME" in said
    assert "--push uploads a model folder: leave out --log-only" in said
