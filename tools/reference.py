#!/usr/bin/env python3
"""Write the reference pages: docs/config.md from the fields of the config, docs/commands.md from the commands,
docs/memory.md from the rule that places theta, docs/notebook.ipynb from docs/notebook.md, and docs/experiments.md from
the results in tools/experiments.

python tools/reference.py            # writes the pages
python tools/reference.py --check    # fails if a page is not up to date
"""

import argparse
import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path

from memory_page import memory_page
from notebook_page import notebook

from esmpi.commands import commands
from esmpi.config.keys import default_of, key_of
from esmpi.config.problems import EvalConfig, HarnessSuite
from esmpi.config.sections import Config, EngineSection, TaskConfig
from esmpi.engines import engine_types
from esmpi.tasks import task_types

sys.path.append(str(Path(__file__).parent / "experiments"))
from page import experiments_page

DOCS = Path(__file__).parents[1] / "docs"
CONFIG_HEAD = """# Config reference

<!-- made by tools/reference.py from the fields in esmpi/; do not edit -->

This page lists every key of a config. A config is a YAML file of sections; any key can be overridden on the command
line, as in `es.sigma=2e-3`. A key without a default must be given. An unknown key, a wrong type or an impossible value
is refused in one line, with the nearest valid choice, before anything is loaded. `esmpi run CONFIG --dry-run` prints
the resolved config.

The column "another run" says whether another value makes another run, which cannot be resumed in the same directory:
*no*; *yes*; *by digest*, if what is read there is something else; *if sampled*, only where completions are sampled.
"""
COMMANDS_HEAD = """# Commands

<!-- made by tools/reference.py from esmpi/commands/; do not edit -->

This page lists the commands of `esmpi` with their arguments. `python -m esmpi.run` is `esmpi run`; use it under
`mpiexec` and `srun`. Overrides such as `es.sigma=2e-3` may come before or after options. The exit code is 0 if all is
well, 2 for an error that you have to mend, and 75 if a run was stopped before its last generation.
"""
ANOTHER_RUN = {"yes": "yes", "no": "no", "by_digest": "by digest", "if_sampled": "if sampled"}


def docs_of(section: type) -> dict[str, str]:
    """Return what the docstrings below the fields of a class and its bases say, by field."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, after in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                doc = after.value if isinstance(after, ast.Expr) else None
                if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
                    found[field.target.id] = " ".join(doc.value.split())
    return found


def rows(section: type, name: str, without: type | None = None) -> Iterator[str]:
    """Yield the table of a section's keys, without those of a base class that has a table of its own."""
    docs, hints = docs_of(section), typing.get_type_hints(section)
    left_out = {field.name for field in dataclasses.fields(without)} if without else set()
    fields = [field for field in dataclasses.fields(section) if field.name not in left_out]
    if not fields:
        yield "No keys of its own."
        return
    yield "| key | values | default | description | another run |"
    yield "|---|---|---|---|---|"
    for field in fields:
        known = key_of(field)
        required = field.default is dataclasses.MISSING is field.default_factory
        values = ", ".join(filter(None, [type_text(hints[field.name]), bounds(field)]))
        cells = [
            f"`{name}.{field.name}`",
            values + (f"; unit {known.unit}" if known.unit else ""),
            "required" if required else f"`{yaml_text(default_of(field))}`",
            docs.get(field.name, ""),
            ANOTHER_RUN[known.changes_result],
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def bounds(field: "dataclasses.Field[typing.Any]") -> str:
    """Return the bounds or the names of a key in words."""
    known = key_of(field)
    if known.plugins is not None:
        return " or ".join(known.choices())
    has_bounds = any(bound is not None for bound in (known.minimum, known.above, known.maximum, known.below))
    return known.range() if has_bounds else ""


def type_text(hint: typing.Any) -> str:
    """Return a type as a reader of YAML would call it."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    arguments = typing.get_args(hint)
    if HarnessSuite in arguments:
        return "text or suite of lm-evaluation-harness"
    if type(None) in arguments:
        return " or ".join([*(type_text(one) for one in arguments if one is not type(None)), "null"])
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    if typing.get_origin(hint) in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping to {type_text(arguments[1])}"
    return names.get(hint, "any value" if hint is typing.Any else getattr(hint, "__name__", str(hint)))


def yaml_text(value: typing.Any) -> str:
    """Return a default as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_text(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def config_page() -> str:
    """Return the page of all config keys."""
    lines = [CONFIG_HEAD]
    for field in dataclasses.fields(Config):
        section = typing.cast(type, field.type)
        lines += [f"## {field.name}", "", inspect.cleandoc(section.__doc__ or ""), "", *rows(section, field.name), ""]
        if section is EngineSection:
            for kind, engine in engine_types().items():
                lines += [f"### engine: {kind}", "", *rows(engine, "engine", EngineSection), ""]
        if section is EvalConfig:
            lines += ["### A suite of lm-evaluation-harness", "", inspect.cleandoc(HarnessSuite.__doc__ or ""), ""]
            lines += [*rows(HarnessSuite, "eval.suites.NAME"), ""]
        if section is TaskConfig:
            for task in task_types():
                lines += [f"### task: {task.name}", "", *rows(task.config_type, "task", TaskConfig), ""]
                sampling = ", ".join(f"`sampling.{key}={value:g}`" for key, value in task.default_sampling.items())
                lines += [f"Defaults for other sections: {sampling}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def commands_page() -> str:
    """Return the page of all commands."""
    lines = [COMMANDS_HEAD]
    for name, command in commands().items():
        parser = argparse.ArgumentParser(prog=f"esmpi {name}", add_help=False)
        command.add_arguments(parser)
        positional = [action for action in parser._actions if not action.option_strings]
        words = [f"[{word_of(action)} ...]" if action.nargs == "*" else word_of(action) for action in positional]
        lines += [f"## esmpi {name}", "", f"{command.HELP[0].upper()}{command.HELP[1:]}.", ""]
        lines += ["```text", " ".join([f"esmpi {name}", *words, "[options]"]), "```", ""]
        lines += ["| argument | description |", "|---|---|"]
        for action in parser._actions:
            shown = action.option_strings[-1] if action.option_strings else word_of(action)
            if action.option_strings and action.nargs != 0:
                shown += f" {word_of(action)}"
            text = (action.help or "").replace("%(default)s", str(action.default)).replace("|", "\\|")
            lines.append(f"| `{shown}` | {text[:1].upper()}{text[1:]} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def word_of(action: argparse.Action) -> str:
    """Return what stands for an argument's value."""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def main() -> int:
    """Write or check the pages; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the reference pages in docs/.")
    parser.add_argument("--check", action="store_true", help="fail if a page is not up to date")
    check = parser.parse_args().check
    code = 0
    pages = {"config.md": config_page(), "commands.md": commands_page(), "memory.md": memory_page()}
    pages |= {"notebook.ipynb": notebook(), "experiments.md": experiments_page()}
    for path, text in ((DOCS / name, page) for name, page in pages.items()):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"docs/{path.name} is not up to date: run python tools/reference.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
