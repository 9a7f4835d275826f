"""Text files of an exported model: its model card, and the generation settings that it was tuned with."""

import json
import math
import re
import shlex
from typing import Any

from esmpi.model.base_model import BaseModel
from esmpi.store.run_file import RunFile
from esmpi.wording import counted, visible_line

_FIGURES = (
    # title, evaluation's column, format
    ("accuracy", "accuracy", "{:.1%}"),
    ("mean reward", "reward_mean", "{:.3f}"),
    ("problems", "num_samples", "{:.0f}"),
)


def card_files(run: RunFile, generation: int, base: BaseModel) -> dict[str, str]:
    """Return the texts that an export of theta of a generation gets, by file name."""
    return {
        "README.md": model_card(run, generation),
        "generation_config.json": json.dumps(generation_config(run, base), indent=2) + "\n",
    }


def model_card(run: RunFile, generation: int) -> str:
    """Return the card, in Markdown, with the metadata that model hubs read."""
    config = run.attributes["config"]
    name, es = config["run"]["name"], config["es"]
    lines = [
        *("---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- evolution-strategies"),
        *(f"base_model: {json.dumps(config['model']['path'])}", "---", ""),
        f"# {_text(name)}, generation {generation}",
        "",
        f"{_code(config['model']['path'])}, all weights fine-tuned with Evolution Strategies on task "
        f"{_code(config['task']['name'])} by {_text(run.attributes['creator'])}: "
        f"{counted(generation, 'generation')} of {counted(es['population_size'], 'member')}, "
        f"sigma {es['sigma']:g}, alpha {es['alpha']:g}.",
        "",
        "| | |",
        "|---|---|",
        f"| run | {_text(run.attributes['run_uuid'])} |",
        f"| theta, digest | {run.digest_after(generation):016x} |",
        f"| base model, digest | {run.digest_after(0):016x} |",
        *(f"| forked at generation {f['generation']} from | {_text(f['run_uuid'])} |" for f in run.attributes["forks"]),
        "",
        *_results(run, generation),
        "## Rebuild it",
        "",
        "The base model and the run file, or the few kilobytes of `esmpi export RUN --log-only --out log.h5`, give "
        "these weights again, bit for bit, without a GPU:",
        "",
        f"    esmpi export {shlex.quote(visible_line(f'runs/{name}'))} --generation {generation} --out model",
        "",
        "## Config",
        "",
        "```json",
        json.dumps(config, indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    """Return a text that Markdown and HTML show as it is."""
    return re.sub(r"[\\`*_\[\]<>|#&~$!]", lambda found: f"&#{ord(found[0])};", visible_line(text))


def _code(text: str) -> str:
    """Return a text as Markdown's code; a backtick, which would end it, becomes an apostrophe."""
    shown = visible_line(text).replace("`", "'")
    return f"`{shown}`"


def _results(run: RunFile, generation: int) -> list[str]:
    lines = []
    for suite, rows in run.evaluations.items():
        ordered = sorted((row for row in rows if row["generation"] <= generation), key=lambda row: row["generation"])
        if not ordered:
            continue
        shown = [ordered[0], *ordered[-1:]] if len(ordered) > 1 else ordered
        heads = "".join(f" generation {row['generation']} |" for row in shown)
        lines += [f"| {suite.replace('_', '-')} |{heads}", "|---" * (len(shown) + 1) + "|"]
        for title, column, form in _FIGURES:
            values = [row.get(column, math.nan) for row in shown]
            lines.append(f"| {title} |" + "".join(f" {form.format(value)} |" for value in values))
        lines.append("")
    return ["## Results", "", *lines] if lines else []


def generation_config(run: RunFile, base: BaseModel) -> dict[str, Any]:
    """Return how the run sampled when it evaluated, as transformers reads it, with the base model's special tokens.

    Other defaults of the base played no part in the run, and are left out; so is what transformers has no key for, and
    stop strings, with which it does not generate unless it is given the tokenizer, too.
    """
    path = base.folder / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else base.config
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
