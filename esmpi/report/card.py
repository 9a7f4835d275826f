"""Files of an exported model beside its weights: its card with the curve, its licence, and how the run sampled."""

import io
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.files import open_regular
from esmpi.model.base_model import BaseModel
from esmpi.report.facts import citations
from esmpi.report.of_run import title_of
from esmpi.report.outcome import Result, outcome_of, percent
from esmpi.store.run_file import RunFile
from esmpi.wording import counted, visible, visible_line

log = logging.getLogger(__name__)

CURVE = "curve.png"
_MOST_CARD_BYTES = 100_000
"""Of a model's card, in which its metadata come first."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENSE_KEYS = ("license", "license_name", "license_link")
_LICENSE_FILES = re.compile(r"(licen[cs]e|notice|copying)([._-].*)?", re.IGNORECASE)


def card_files(run: RunFile, generation: int, base: BaseModel, chosen: bool = False) -> dict[str, str | bytes]:
    """Return the files that an export of theta of a generation gets, by file name.

    Parameters
    ----------
    run : RunFile
    generation : int
    base : BaseModel
    chosen : bool
        Whether this generation was chosen because it is the best one.
    """
    files: dict[str, str | bytes] = {
        path.name: path.read_bytes()
        for path in base.folder.iterdir()
        if _LICENSE_FILES.fullmatch(path.name) and path.is_file()
    }
    curve = curve_of(run)
    if curve is not None:
        files[CURVE] = curve
    files["README.md"] = model_card(run, generation, base, chosen, curve is not None)
    files["generation_config.json"] = json.dumps(generation_config(run, base), indent=2) + "\n"
    return files


def curve_of(run: RunFile) -> bytes | None:
    """Return the picture of a run as PNG; None if there is nothing to draw, or nothing to draw it with."""
    from esmpi.report.plot import draw

    if not run.generations or (run.attributes["log_only"] and not run.evaluations):
        return None
    file = io.BytesIO()
    try:
        draw(run).savefig(file, format="png", dpi=150)
    except UserError as error:  # no Matplotlib
        log.info("the model card has no curve: %s", error)
        return None
    return file.getvalue()


def model_card(run: RunFile, generation: int, base: BaseModel, chosen: bool = False, has_curve: bool = False) -> str:
    """Return the card, in Markdown, with the metadata that model hubs read."""
    config = run.attributes["config"]
    name, path, es = config["run"]["name"], config["model"]["path"], config["es"]
    is_on_hub = _HUB_ID.fullmatch(path) is not None and not Path(path).exists()
    license_of_base = license_of(base.folder)
    metadata = {**license_of_base, **({"base_model": path} if is_on_hub else {})}
    noise = "" if es.get("noise", "full") == "full" else f", {es['noise']} noise"
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- evolution-strategies"),
        *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()),
        *("---", ""),
        f"# {_text(name)}, generation {generation}",
        "",
        f"{_code(path)}, fine-tuned with Evolution Strategies on task {_code(config['task']['name'])} by "
        f"{_text(run.attributes['creator'])}: {counted(generation, 'generation')} of "
        f"{counted(es['population_size'], 'member')}, sigma {es['sigma']:g}, alpha {es['alpha']:g}{_text(noise)}.",
        "",
        *_results(run, generation, chosen),
        *([f"![Fitness and held-out accuracy over generations]({CURVE})", ""] if has_curve else []),
        "## Licence",
        "",
        _license_text(path, license_of_base),
        "",
        *_origin(run, generation),
        *_reproduction(run, generation),
        "## What to cite",
        "",
        *(part for what, entry in citations(run) for part in (_text(what), "", *_fenced("bibtex", entry))),
        "## Config",
        "",
        *_fenced("json", json.dumps(config, indent=1)),
    ]
    return visible("\n".join(lines))


def license_of(folder: Path) -> dict[str, str]:
    """Return what the card of a model folder says of its licence, by the keys of the hub's metadata; it may be empty.

    Only plain lines of the metadata are read, as the hub writes them.
    """
    try:
        with open_regular(folder / "README.md") as file:
            text = file.read(_MOST_CARD_BYTES).decode(errors="replace")
    except (OSError, UserError):
        return {}
    head = re.match(r"---[ \t\r]*\n(.*?)\n---", text, re.DOTALL)
    found = re.findall(rf"^({'|'.join(_LICENSE_KEYS)}):[ \t]*(\S.*?)[ \t]*$", head[1], re.MULTILINE) if head else []
    return {key: value.strip("'\"") for key, value in found if value[0] not in "[{|>&*!"}


def _license_text(path: str, found: Mapping[str, str]) -> str:
    if not found:
        return (
            f"The folder of the base model, {_code(path)}, names no licence. The terms of the base model apply to this "
            "model: see where it comes from."
        )
    text = ", ".join(_text(found[key]) for key in ("license_name", "license", "license_link") if key in found)
    return f"The licence of the base model, {_code(path)}, is {text}. Its terms apply to this model, too."


def _results(run: RunFile, generation: int, chosen: bool) -> list[str]:
    lines = []
    for suite, rows in run.evaluations.items():
        ordered = sorted((row for row in rows if row["generation"] <= generation), key=lambda row: row["generation"])
        if not ordered:
            continue
        shown = [Result.of(row) for row in ([ordered[0], *ordered[-1:]] if len(ordered) > 1 else ordered)]
        heads = "".join(f" generation {one.generation} |" for one in shown)
        figures = {
            "accuracy": [percent(one.accuracy) for one in shown],
            "95 % interval": [one.interval_text for one in shown],
            "mean reward": [f"{one.reward:.3f}" for one in shown],
            "problems": [f"{one.num_problems:,}" for one in shown],
        }
        lines += [f"| {_text(title_of(suite))} |{heads}", "|---" * (len(shown) + 1) + "|"]
        lines += [f"| {title} | {' | '.join(values)} |" for title, values in figures.items()]
        lines.append("")
    if not lines:
        return []
    try:
        outcome = outcome_of(run, generation, chosen)
    except UserError as error:  # damaged completions are no reason to write no model
        log.warning("the model card has no test of the problems: %s", error)
        outcome = None
    if outcome is not None and outcome.change is not None:
        better, worse = outcome.change.num_better, outcome.change.num_worse
        lines += [
            f"Held-out problems, one by one: {better:,} became better, {worse:,} became worse: {outcome.test_text}.",
            "",
        ]
    if outcome is not None and outcome.caution:
        lines += [outcome.caution, ""]
    return ["## Results", "", *lines]


def _origin(run: RunFile, generation: int) -> list[str]:
    attributes = run.attributes
    suites = attributes["suite_digests"].items()
    rows = {
        "run": attributes["run_uuid"],
        "theta, digest": f"{run.digest_after(generation):016x}",
        "base model, digest": f"{run.digest_after(0):016x}",
        "problems, digest": attributes["data_digest"],
        **{f"problems of suite {title_of(suite)}, digest": digest for suite, digest in suites},
        **({"file of the task, digest": attributes["task_digest"]} if attributes["task_digest"] else {}),
        **{f"forked at generation {fork['generation']} from": fork["run_uuid"] for fork in attributes["forks"]},
    }
    return [
        "## Provenance",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_text(key)} | {_text(value)} |" for key, value in rows.items()),
        "",
    ]


def _reproduction(run: RunFile, generation: int) -> list[str]:
    name = run.attributes["config"]["run"]["name"]
    return [
        "## Reproduce it",
        "",
        "The base model and the run file, or the few kilobytes of `esmpi export RUN --log-only --out log.h5`, give "
        "these weights again, bit for bit, without a GPU:",
        "",
        f"    esmpi export {shlex.quote(visible_line(f'runs/{name}'))} --generation {generation} --out model",
        "",
        "To train it again, save the config below as `config.yaml`, with paths of your own. The number of ranks does "
        "not matter. The weights have the same bits if the engine's completions are the same, which takes the same "
        "versions and hardware:",
        "",
        "    mpiexec -n 8 python -m esmpi.run config.yaml",
        "",
    ]


def _text(text: str) -> str:
    """Return a text that Markdown and HTML show as it is."""
    return re.sub(r"[\\`*_\[\]<>|#&~$!]", lambda found: f"&#{ord(found[0])};", visible_line(text))


def _code(text: str) -> str:
    """Return a text as Markdown's code; a backtick, which would end it, becomes an apostrophe."""
    shown = visible_line(text).replace("`", "'")
    return f"`{shown}`"


def _fenced(language: str, text: str) -> Sequence[str]:
    """Return a text as a block of code, whatever backticks it has."""
    if not text:
        return []
    fence = "`" * (2 + max([1, *(len(found) for found in re.findall("`+", text))]))
    return [f"{fence}{language}", text, fence, ""]


def generation_config(run: RunFile, base: BaseModel) -> dict[str, Any]:
    """Return how the run sampled when it evaluated, as transformers reads it, with the base model's special tokens.

    Other defaults of the base played no part in the run, and are left out; so is what transformers has no key for, and
    stop strings, with which it does not generate unless it is given the tokenizer, too.
    """
    name = "generation_config.json"
    own = base.read_json(name) if (base.folder / name).exists() else base.config
    tokens = {key: value for key, value in own.items() if key.endswith("token_id") and value is not None}
    sampling, temperature = run.attributes["config"]["sampling"], run.attributes["config"]["eval"]["temperature"]
    chosen = {"do_sample": temperature > 0, "max_new_tokens": sampling["max_tokens"]}
    if temperature > 0:
        chosen |= {"temperature": temperature, "top_p": sampling["top_p"], "top_k": sampling.get("top_k", 0)}
        if min_p := sampling.get("min_p"):
            chosen["min_p"] = min_p
    if (penalty := sampling.get("repetition_penalty", 1.0)) != 1:
        chosen["repetition_penalty"] = penalty
    if min_tokens := sampling.get("min_tokens"):
        chosen["min_new_tokens"] = min_tokens
    return tokens | chosen
