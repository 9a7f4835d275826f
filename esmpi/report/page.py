"""The report as a page: a single file of HTML that loads nothing, and that shows any text of a run as text.

Jinja escapes whatever is put into the page (it comes with torch, and is the usual choice in Python). Beyond that, the
page's own policy lets no style or script act but the two that it ships with, which it names by their digests.
"""

import base64
import hashlib
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esmpi.config.problems import HELD_OUT
from esmpi.errors import UserError
from esmpi.files import open_regular, write_whole
from esmpi.report import facts
from esmpi.report.compare import table
from esmpi.report.draw import style
from esmpi.report.figure import COMPLETIONS, COST, LEARNING, MODEL, X_LABELS, Figure
from esmpi.report.inline import inline, inline_picture, legend, values
from esmpi.report.member_samples import choose_generations, generations_with_samples
from esmpi.report.of_run import figures_of, rows_of
from esmpi.report.of_runs import Group, figures_of_groups, groups_of
from esmpi.report.outcome import Result, outcome_of, percent
from esmpi.report.palette import css
from esmpi.report.plot import draw_profile
from esmpi.report.samples import KINDS, choose, ends, kind_of, pairs, read_samples
from esmpi.report.tiles import Tile, tiles_of
from esmpi.store.run_file import RunFile
from esmpi.version import __version__
from esmpi.wording import counted, visible

if TYPE_CHECKING:
    from jinja2 import Template

_SECTIONS = {LEARNING: "learned", COMPLETIONS: "completions", MODEL: "model", COST: "cost"}
"""Parts of a page that have figures, in their order, with the names that the template has for them."""
_BEGIN = b"<!doctype html>"
_MOST_BYTES = 1_300_000
"""Of the completions of a page, with what marks them."""
_MOST_BYTES_OF_MEMBERS = 500_000
"""Of the completions of members, likewise."""
_MOST_INTERVALS = 3000
"""Of a profile that is in a page."""


def write_page(page: str, path: Path) -> None:
    """Write a page; raise UserError if it cannot be written, or would replace something else than a page."""
    try:
        if path.exists() and not path.is_dir() and not _is_page(path):
            raise UserError(f"{path} exists and is not a page: choose another place with --out")
        write_whole(path, page.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}: choose another place with --out") from error


def _is_page(path: Path) -> bool:
    """Return whether a file is a page, or empty: a run file that is named by mistake must stay."""
    with open_regular(path) as file:
        return file.read(len(_BEGIN)).lower() in (_BEGIN, b"")


def page_of_run(run: RunFile) -> str:
    """Return the page of a run.

    Raises
    ------
    UserError
        If Matplotlib is not installed, or a file of samples is damaged.
    """
    config = run.attributes["config"]
    outcome = outcome_of(run)
    notes = [outcome.caution] if outcome is not None and outcome.caution else []
    if run.attributes["log_only"]:
        notes.append("This is a log-only file: it has no figures of the training.")
    figures = figures_of(run)
    if not run.attributes["log_only"] and run.generations and not any(one.name == "failures" for one in figures):
        notes.append(f"No member and no reward failed in {counted(run.num_generations, 'generation')}.")
    rows = facts.settings(config)
    starts = facts.starts(run)
    events = [[event["generation"], _done(event), event["reason"]] for event in run.attributes["events"]]
    return _render(
        title=str(config["run"]["name"]),
        subtitle=f"{config['model']['path']} on task {config['task']['name']}, seed {config['run'].get('seed', '-')}",
        tiles=tiles_of(run, outcome),
        notes=notes,
        figures=figures,
        axes=["generations"],
        events=events,
        evaluations=_evaluations(run),
        samples=_samples(run),
        members=_members(run),
        profile=_profile(run),
        settings={
            "all": [(row.name, row.value, row.default) for row in rows],
            "changed": [(row.name, row.value, row.default) for row in rows if row.differs],
        },
        identity=list(facts.identity(run, run.num_generations).items()),
        starts={
            "title": f"{counted(len(starts), 'start')} of the program",
            "all": [[item for item in start.items() if item[1]] for start in starts],
        },
        rebuild=facts.rebuild(run, run.num_generations),
        citations=facts.citations(run),
        source=str(run.path),
    )


def page_of_runs(runs: Sequence[RunFile], unread: Sequence[str] = ()) -> str:
    """Return the page of several runs, with a note for each that could not be read; raise as `page_of_run` does."""
    groups = groups_of(runs)
    seeds = max(len(group.runs) for group in groups)
    cells = table(runs)
    return _render(
        title=counted(len(runs), "run"),
        subtitle=f"{counted(len(groups), 'setting')}, up to {counted(seeds, 'seed')} of each",
        tiles=_tiles_of_groups(groups),
        notes=list(unread),
        figures=figures_of_groups(groups),
        axes=list(X_LABELS),
        runs={"head": cells[0], "rows": cells[1:]},
        source=", ".join(str(run.path.parent) for run in runs),
    )


def _render(*, title: str, figures: Sequence[Figure], axes: Sequence[str], **context: Any) -> str:
    from markupsafe import Markup

    rules = css() + _asset("page.css")
    script = _asset("page.js")
    shown: list[dict[str, Any]] = []
    for figure in figures:
        number = len(shown) * len(axes)
        # safe: Matplotlib escapes texts, and `inline` keeps nothing but shapes and texts
        svgs = [(axis, Markup(inline(figure.on(axis), number + i))) for i, axis in enumerate(axes)]
        shown.append(
            {
                **{"name": figure.name, "title": figure.title, "unit": figure.y_label, "note": figure.note},
                **{"section": figure.section, "svgs": svgs, "legend": legend(figure) if figure.kind != "bars" else []},
                "data": values(figure, axes),
            }
        )
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_source(rules)}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return _template().render(
        title=title,
        axes=axes,
        sections=[
            {"title": title, "name": name, "figures": [one for one in shown if one["section"] == title]}
            for title, name in _SECTIONS.items()
        ],
        all_figures=shown,
        policy=policy,
        style=Markup(rules),
        script=Markup(script),
        creator=f"esmpi {__version__}",
        made=facts.utc(time.time()),
        **context,
    )


def _template() -> "Template":
    from jinja2 import Environment

    def plain(value: Any) -> Any:
        return visible(value) if type(value) is str else value

    environment = Environment(autoescape=True, finalize=plain, trim_blocks=False)
    return environment.from_string(_asset("page.html"))


def _asset(name: str) -> str:
    return files("esmpi").joinpath("assets", "report", name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _done(event: dict[str, Any]) -> str:
    return f"restore generation {event['to']}" if event["action"] == "restore" else str(event["action"])


def _profile(run: RunFile) -> dict[str, Any] | None:
    """Return the picture of the generation that was profiled; None if there is none, or if it is too large."""
    if run.profile is None or not 0 < run.profile.size <= _MOST_INTERVALS:
        return None
    from markupsafe import Markup

    with style():
        picture = draw_profile(run, titled=False)
    title = f"When each rank did what in generation {run.profile['generation'][0]}"
    return {"title": title, "svg": Markup(inline_picture(picture, title, "profile-"))}  # safe as in `_render`


def _tiles_of_groups(groups: Sequence[Group]) -> list[Tile]:
    """Return the best setting by the mean over its runs of their last held-out accuracy."""
    means = []
    for group in groups:
        last = [rows[-1]["accuracy"] for run in group.runs if (rows := rows_of(run, HELD_OUT))]
        if last:
            means.append((sum(last) / len(last), group))
    if not means:
        return []
    mean, best = max(means, key=lambda one: one[0])
    return [
        Tile("Highest accuracy at the end", percent(mean), f"{best.name}, mean of {counted(len(best.runs), 'run')}")
    ]


def _evaluations(run: RunFile) -> dict[str, Any] | None:
    """Return a table of the first and the last evaluation of each suite."""
    head = ["suite", "generation", "accuracy", "95 % interval", "mean reward", "tokens", "cut off", "problems"]
    lines = []
    for suite in sorted(run.evaluations, key=lambda name: (name != HELD_OUT, name)):
        rows = rows_of(run, suite)
        for row in rows[:1] + rows[1:][-1:]:
            result = _cells(row)
            lines.append([suite.replace("_", "-"), row["generation"], *result])
    return {"head": head, "rows": lines} if lines else None


def _cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of an evaluation."""
    result = Result.of(row)
    return [
        percent(result.accuracy),
        result.interval_text,
        f"{result.reward:.3f}",
        f"{row['tokens_mean']:.1f}" if "tokens_mean" in row else "-",
        f"{row['num_truncated']:,}" if "num_truncated" in row else "-",
        f"{result.num_problems:,}",
    ]


def _samples(run: RunFile) -> dict[str, Any] | None:
    """Return the completions of the first and the last evaluation, as many as a page has room for."""
    between = ends(run, HELD_OUT)
    if between is None:
        return None
    found = pairs(*(read_samples(run, HELD_OUT, generation) for generation in between))
    if not found:
        return None
    kinds = [kind_of(pair) for pair in found]
    shown = choose(found, _MOST_BYTES)
    problems = len({sample.get("index", i) for i, (sample, _) in enumerate(found)})
    of_what = "held-out problems" if problems == len(found) else f"{problems:,} held-out problems"
    some = (
        ""
        if len(shown) == len(found)
        else f" The page shows {len(shown):,} of them; all are in {run.path.parent}/eval."
    )
    return {
        "intro": f"{counted(len(found), 'completion')} of {of_what}, by generations {between[0]} and "
        f"{between[1]}. Words that only one of the two has are marked.{some}",
        "counts": [(kind, f"{kinds.count(kind):,}") for kind in KINDS if kind in kinds],
        "shown": shown,
    }


def _members(run: RunFile) -> dict[str, Any] | None:
    """Return the completions of members that `log.samples` kept, of as many generations as a page has room for."""
    shown = choose_generations(run, _MOST_BYTES_OF_MEMBERS)
    if not shown:
        return None
    known = len(generations_with_samples(run))
    some = "" if len(shown) == known else f" The page has {len(shown):,} of {known:,} generations."
    return {
        "intro": "The first completions of the best, the worst and a random member of a generation. All that were kept "
        f"are in {run.path.parent}/samples.{some}",
        "shown": shown,
    }
