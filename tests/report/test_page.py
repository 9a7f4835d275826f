"""The page as a text: complete, small, and without anything of a stranger that could act."""

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_runs import make_run

from esmpi.__main__ import main
from esmpi.errors import UserError
from esmpi.report.facts import settings
from esmpi.report.member_samples import choose_generations
from esmpi.report.page import page_of_run, page_of_runs
from esmpi.report.samples import KINDS, choose, kind_of, marked, pairs, read_samples
from esmpi.report.view import open_run
from esmpi.store.run_file import RunFile, member_samples_path, samples_path
from esmpi.wording import visible

VOID = {"meta", "link", "input", "rect", "path", "use"}


class Elements(HTMLParser):
    """The elements of a page, with their attributes; complains if they are not well nested."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


HOSTILE = [
    "</pre></script><script>window.acted = 1</script>",
    '<img src=x onerror="window.acted = 1">',
    "<style>body{display:none}</style><link rel=stylesheet href=http://127.0.0.1:9/x.css>",
    '"><a href="javascript:window.acted=1" onclick="window.acted=1">here</a><svg onload="window.acted=1">',
    "{{ 7 * 7 }} {% raw %} ]]> <!-- --> &lt;script&gt; </style></title>",
    "\x00\x1b[31m\u202egnp.exe \ud800 \u2028 " + "z\u0301" * 40,
    '<iframe src="http://127.0.0.1:9/"></iframe><form action=http://127.0.0.1:9/><button>send</button>',
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run in which everything is hostile that a stranger can write."""
    run = make_run(tmp_path_factory.mktemp("hostile") / "run", texts=HOSTILE)
    attack = " ".join(HOSTILE)
    config = run.attributes["config"]
    config["run"]["name"] = config["model"]["path"] = config["task"]["name"] = attack
    config["task"][attack] = {attack: [attack]}
    run.attributes |= {"creator": attack, "run_uuid": attack, "data_digest": attack}
    run.attributes["forks"] = [{"generation": 2, "path": attack, "run_uuid": attack, "config": {}}]
    run.attributes["provenance"][0] |= {"host": attack, "packages": {attack: attack}, "slurm": {attack: attack}}
    for row in run.evaluations["held_out"]:
        row[f"{attack}_mean"] = 0.5
    return page_of_run(run)


def test_a_page_has_everything_that_a_reader_may_ask_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "es.sigma=0.02", "run.profile=true")
    page = page_of_run(run)
    elements = Elements(page)
    text = " ".join(" ".join(elements.text).split())
    sections = {attributes.get("id") for tag, attributes in elements.found if tag == "section"}
    assert {
        "result",
        "events",
        "evaluations",
        "completions",
        "members",
        "profile",
        "config",
        "provenance",
        "rebuild",
        "cite",
    } <= sections
    assert "es.sigma 0.02 0.001" in text
    assert "When each rank did what in generation 1" in text
    assert "generate 33.3 %" in text
    assert f"{run.theta_digest:016x}" in text
    assert f"esmpi export {tmp_path / 'run'} --generation 12 --out model" in text
    assert "arXiv:2509.24372" in text
    assert "shrink accuracy fell" in text
    assert "held-out 12 75.0 %" in text
    assert "secret" not in page, "solutions are no problem's text"


def test_nothing_of_a_stranger_becomes_an_element(hostile: str) -> None:
    elements = Elements(hostile)
    tags = {tag for tag, _ in elements.found}
    assert {found.get("href", "")[:1] for tag, found in elements.found if tag == "a"} == {"#"}, "parts of the page"
    assert not tags & {"img", "iframe", "form", "object", "embed", "base", "audio", "video", "foreignobject"}
    names = {name for _, attributes in elements.found for name in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("style", "srcset", "srcdoc", "formaction")}
    addresses = [attributes[name] for _, attributes in elements.found for name in ("src", "href") if name in attributes]
    assert all(str(address).startswith(("data:image/svg+xml,", "#")) for address in addresses)
    scripts = [attributes for tag, attributes in elements.found if tag == "script"]
    assert [attributes for attributes in scripts if attributes.get("type") != "application/json"] == [{}]
    assert sum(tag == "style" for tag, _ in elements.found) == 1
    shown = "".join(elements.text)
    assert all(text in shown for text in HOSTILE if text.isprintable())
    hostile.encode()  # no half of a character


def test_nor_in_a_page_of_several_runs_or_in_a_notebook(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"<img src=x onerror=a()>{i}", "data.batch_size=6", seed=i) for i in range(2)]
    for run, text in zip(runs, HOSTILE, strict=False):
        run.attributes["config"]["run"]["name"] = run.attributes["data_digest"] = text
        run.attributes["config"]["task"]["operators"] = text
    elements = Elements(page_of_runs(runs, HOSTILE))
    assert {found.get("href", "")[:1] for tag, found in elements.found if tag == "a"} == {"#"}, "parts of the page"
    assert not {tag for tag, _ in elements.found} & {"img", "iframe", "form", "base"}
    assert HOSTILE[0] in "".join(elements.text)
    shown = Elements(open_run(runs[0].path.parent)._repr_html_())
    assert {tag for tag, _ in shown.found} <= {"table", "caption", "tr", "th", "td"}


def test_the_policy_names_the_page_s_own_script_and_style_only(hostile: str) -> None:
    [policy] = [a["content"] for tag, a in Elements(hostile).found if a.get("http-equiv") == "Content-Security-Policy"]
    assert re.fullmatch(
        r"default-src 'none'; img-src data:; style-src 'sha256-[\w+/]+='; script-src 'sha256-[\w+/]+='; "
        r"base-uri 'none'; form-action 'none'",
        str(policy),
    )


def test_what_is_not_shown_has_a_code() -> None:
    assert visible("a\tb\nc \x1b[0m \u202ex \ud800 é 漢 \x00") == "a\tb\nc \\x1b[0m \\u202ex \\ud800 é 漢 \\x00"


def test_the_words_that_differ_are_marked() -> None:
    before, after = marked("we add 3 and 5", "we add 3 to 5 now")
    assert "".join(text for _, text in before) == "we add 3 and 5"
    assert "".join(text for _, text in after) == "we add 3 to 5 now"
    assert next(text for changed, text in after if changed) == "to"
    assert marked("same text", "same text") == ([(False, "same text")], [(False, "same text")])


def test_kinds_are_counted_and_a_page_has_some_of_each(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", num_problems=400)
    found = pairs(*(read_samples(run, "held_out", generation) for generation in (0, 12)))
    kinds = [kind_of(pair) for pair in found]
    assert [kinds.count(kind) for kind in KINDS] == [240, 1, 80, 79]
    shown = choose(found, 20_000)
    assert 10 < len(shown) < 100
    assert {one.kind for one in shown} == set(KINDS)
    assert [one.kind for one in shown] == sorted((one.kind for one in shown), key=KINDS.index)
    assert "are in" in page_of_run(make_run(tmp_path / "many", num_problems=1500, texts=["long " * 200]))


def test_other_problems_are_not_compared(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = samples_path(run.path, "held_out", 12)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[3]["example"] = {"question": "another one"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert pairs(*(read_samples(run, "held_out", generation) for generation in (0, 12))) == []
    assert "Completions, before" not in page_of_run(run)
    path.write_text("{}\n")
    with pytest.raises(UserError, match="is damaged: a line is no sample"):
        page_of_run(run)


def test_members_completions_are_of_as_many_generations_as_have_room(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=40)
    assert [one.generation for one in choose_generations(run, 10**6)] == list(range(40))
    some = choose_generations(run, 20_000)
    assert 3 <= len(some) < 20
    assert sum(one.size for one in some) <= 20_000
    assert (some[0].generation, some[-1].generation) == (0, 39)
    best, worst, _ = some[-1].members
    assert (best.which, best.fitness, worst.which, worst.fitness) == ("best", 0.9, "worst", 0.1)
    assert [sample.reward for sample in best.samples] == ["reward 0, format 0.25", "reward 1, format 0.25"]
    assert "secret" not in best.samples[0].problem
    member_samples_path(run.path, 40).write_text("half of a commit that was never made")
    assert "The page has" not in page_of_run(run)
    path = member_samples_path(run.path, 39)
    path.write_text('{"which": "best"}\n')
    with pytest.raises(UserError, match="is damaged: KeyError: 'member'"):
        page_of_run(run)


def test_only_what_differs_from_the_defaults_is_in_the_short_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "sampling.max_tokens=77", "es.sigma=0.02")
    rows = {row.name: row for row in settings(run.attributes["config"]) if row.differs}
    assert {"run.name", "model.path", "es.generations", "task.name", "es.sigma", "sampling.max_tokens"} <= set(rows)
    assert "es.alpha" not in rows, "half of sigma is its default"
    assert "engine.kind" not in rows
    assert (rows["es.sigma"].value, rows["es.sigma"].default) == ("0.02", "0.001")
    gone = {**run.attributes["config"], "task": {**run.attributes["config"]["task"], "name": "/gone/task.py:reward"}}
    assert "sampling.max_tokens" in {row.name for row in settings(gone) if row.differs}


def test_a_run_without_evaluations_or_generations_or_as_a_log_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", generations=0, every=1)
    Elements(page_of_run(run))
    run = make_run(tmp_path / "other")
    run.evaluations.clear()
    Elements(page_of_run(run))
    log = make_run(tmp_path / "third").cut(tmp_path / "log.h5", 12)
    log.attributes |= {"log_only": True, "provenance": []}
    log.write()
    page = page_of_run(RunFile.open(tmp_path / "log.h5"))
    assert "log-only" in page
    assert 'id="fitness"' not in page
    assert 'id="accuracy"' in page


def test_pages_stay_small(tmp_path: Path) -> None:
    """A long run of many members; and twenty runs."""
    run = make_run(
        tmp_path / "long", generations=1000, members=50, every=100, num_problems=700, texts=["漢字 <\x1b " * 200]
    )
    page = page_of_run(run)
    assert len(page.encode()) < 3e6
    runs = [
        make_run(tmp_path / f"r{i}", f"es.sigma={1 + i // 2}", seed=i % 2, generations=300, members=4, every=50)
        for i in range(20)
    ]
    page = page_of_runs(runs, ["no run file x"])
    assert len(page.encode()) < 3e6
    assert "no run file x" in page
    assert len({attributes["id"] for tag, attributes in Elements(page).found if tag == "figure"}) == 8


def test_the_command_writes_the_page_and_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (make_run(tmp_path / "runs" / name, seed=seed) for seed, name in enumerate("ab"))
    for run in (one, other):
        run.evaluations.clear()
        run.write()
    assert main(["report", str(tmp_path / "runs" / "a"), "--figures", str(tmp_path / "figures")]) == 0
    assert f"page: {tmp_path / 'runs' / 'a' / 'report.html'}" in capsys.readouterr().out
    assert Elements((tmp_path / "runs" / "a" / "report.html").read_text()).found
    assert (tmp_path / "runs" / "a" / "report.png").stat().st_size > 10_000
    names = ("failures", "fitness", "idle", "idle_over_time", "length", "member_parts", "settings", "speed", "time")
    written = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert written == [f"{name}.{form}" for name in names for form in ("png", "svg")]
    assert main(["report", *(str(tmp_path / "runs" / name) for name in "ab")]) == 0
    assert "comparison.html" in capsys.readouterr().out
    page = (tmp_path / "runs" / "comparison.html").read_text()
    assert sum(tag == "figure" for tag, _ in Elements(page).found) == 3
    assert main(["report", str(tmp_path / "runs" / "a"), "--no-plot", "--figures", "x"]) == 2
    assert "leave it out" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["report", str(tmp_path / "runs" / "a"), "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "choose another place with --out" in capsys.readouterr().err


def test_nothing_but_a_page_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run file that is named by mistake is lost otherwise, and so is a device, for root."""
    run = make_run(tmp_path / "run", generations=2, every=2).path
    before = run.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    assert main(["report", str(run.parent), "--out", str(run)]) == 2
    assert f"{run} exists and is not a page: choose another place with --out" in capsys.readouterr().err
    assert main(["report", str(run.parent), "--out", str(tmp_path / "pipe")]) == 2
    assert run.read_bytes() == before
    (tmp_path / "page.html").touch()
    for _ in range(2):
        assert main(["report", str(run.parent), "--out", str(tmp_path / "page.html")]) == 0
