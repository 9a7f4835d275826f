"""Texts of models and strangers: on a terminal, in a page, in a table and in a model card they act nowhere."""

import csv
import io
import logging
import re
import sys
from pathlib import Path

import pytest
from made_runs import make_run
from strangers import change, config, of_json

from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Comm
from esmpi.record.sinks.csv import Csv
from esmpi.report.card import model_card
from esmpi.report.compare import compare
from esmpi.report.summary import summarize
from esmpi.setup import start_logging
from esmpi.store.run_file import RunFile
from esmpi.wording import visible, visible_line

ACTING = "\x1b[2J\x1b]0;title\x07\x9b31m\x08\r\u202eevil\u2066\u200b\ufeff\U000e0041\n[rank 0] all is well"
SCRIPT = '<script>alert(1)</script><img src=x onerror="alert(2)">]]>--><!--'
MARKDOWN = "[click](javascript:alert(1)) `code` ![x](http://x/y) | a |\n# title\n---\n```"
NAMES = (ACTING, SCRIPT, MARKDOWN)

_ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "run"
    file = make_run(folder, texts=NAMES, generations=8, num_problems=6)
    for section, key in (("run", "name"), ("model", "path"), ("task", "name"), ("model", "revision")):
        change(file.path, config(section, key, "".join(NAMES)))
    change(file.path, of_json("provenance", lambda starts: starts[0].update(host=ACTING, packages={ACTING: ACTING})))
    change(file.path, of_json("events", lambda events: events[0].update(action=ACTING)))
    fork = {"run_uuid": ACTING, "generation": 1, "path": ACTING, "config": {"es": {}}}
    change(file.path, of_json("forks", lambda _: [fork]))
    for name in ("run_uuid", "creator", "data_digest", "task_digest"):
        change(file.path, lambda image, name=name: image.attrs.__setitem__(name, ACTING + SCRIPT))
    return folder


@pytest.mark.parametrize(
    "words",
    [["inspect"], ["inspect", "--json"], ["report"], ["report", "--no-plot"], ["watch", "--once"]],
    ids=" ".join,
)
def test_commands_show_them(words: list[str], run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, str(run)]) in (0, 1)
    out, err = capfd.readouterr()
    assert not _ACTS.search(out + err)
    assert "evil" in out
    assert not re.search(r"^\[rank 0\] all is well", out, re.MULTILINE)  # a name does not look like a further line


def test_several_runs(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "\x1b[2Jother")
    assert main(["report", str(run), str(tmp_path / "\x1b[2Jother"), "--out", str(tmp_path / "page.html")]) == 0
    assert main(["watch", "--once", str(run), str(tmp_path / "\x1b[2Jother")]) == 0
    assert not _ACTS.search("".join(capfd.readouterr()))
    assert not _ACTS.search((tmp_path / "page.html").read_text())
    assert not _ACTS.search(compare([run, tmp_path / "\x1b[2Jother"]))


def test_errors_and_messages_show_them(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run / "no\x1b[31msuch")]) == 2
    logger, before = logging.getLogger("esmpi"), logging.getLogger("esmpi").handlers
    try:
        start_logging("info", Comm())
        logger.handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
        logger.warning("the model wrote %s", ACTING)
        assert not _ACTS.search(str(UserError(ACTING)))
    finally:
        logger.handlers, logger.propagate = before, True
        logger.setLevel(logging.NOTSET)
    assert not _ACTS.search("".join(capfd.readouterr()))


def test_tracebacks_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise KeyError(ACTING.encode(), ACTING) from ValueError(ACTING)
    except KeyError:
        Comm().report_failure()
    err = capsys.readouterr().err
    assert "evil" in err
    assert "\nTraceback" in err
    assert not _ACTS.search(err)


def test_the_page_shows_them(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert not _ACTS.search(page)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_model_card_shows_them(run: Path) -> None:
    folder = find_model("esmpi:tiny_countdown")
    assert folder is not None
    card = model_card(RunFile.open(run / "run.h5"), 8, BaseModel(folder))
    assert not _ACTS.search(card)
    _, _, body = card.partition("---\n\n")
    # code is shown as it is: blocks within fences, indented lines, and spans
    text = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", body, flags=re.MULTILINE | re.DOTALL)
    assert "## Config" in text
    text = re.sub(r"`[^`\n]*`|^    .*$", "", text, flags=re.MULTILINE)
    assert "evil" in text
    assert not re.search(r"<|\]\(|!\[|```", text)
    [title] = [line for line in card.splitlines() if line.startswith("# ")]
    assert title.endswith(", generation 8")


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", '=HYPERLINK("http://x")', "\t=1", "a\x1b[2J", "a\nb"])
def test_no_cell_is_a_formula(name: str, tmp_path: Path) -> None:
    sink = Csv(tmp_path, {}, 0)
    sink.write(name, 0, {name: -1.5})
    sink.close()
    text = (tmp_path / "figures.csv").read_text()
    [_, row] = csv.reader(io.StringIO(text))
    assert not row[0].startswith(("=", "+", "-", "@", "\t"))
    assert not row[2].startswith(("=", "+", "-", "@", "\t"))
    assert (row[1], row[3]) == ("0", "-1.5")
    assert not _ACTS.search(text.replace("\r\n", ""))


def test_what_people_write_stays() -> None:
    for text in ("naïve café", "中文 日本語", "שלום עולם", "👩‍👩‍👧 ️", "नमस्ते", "a\tb", "−½ ∑ √2"):
        assert visible(text) == visible_line(text) == text
    assert visible("a\nb") == "a\nb"
    assert visible_line("a\nb") == "a\\nb"


def test_a_summary_has_only_its_own_lines(run: Path) -> None:
    for line in summarize(RunFile.open(run / "run.h5")).split("\n"):
        assert not line.startswith("[rank 0]")
