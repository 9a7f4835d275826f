"""Examine a run directory: config, provenance, progress, and the state of its files. Needs no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esmpi.errors import UserError
from esmpi.files import leftovers, open_regular, read_json_lines
from esmpi.store.run_file import RUN_FILE, RunFile, samples_path
from esmpi.store.snapshot_keeper import check_snapshot, snapshots_beside
from esmpi.wording import counted, visible_line

_MOST_ORIGIN_BYTES = 100_000


def inspect(run: RunFile) -> dict[str, Any]:
    """Return what is known of a run, in the types that JSON has. Reads every file of the run."""
    attributes, config = run.attributes, run.attributes["config"]
    last = run.generations[-1] if run.generations else None
    whole = not attributes["log_only"]
    return {
        "run_file": str(run.path),
        **{name: attributes[name] for name in ("run_uuid", "creator", "format_version", "noise_version", "log_only")},
        "model_digest": f"{run.digest_after(0):016x}",
        "theta_digest": f"{run.theta_digest:016x}",
        "generations": run.num_generations,
        "generations_wanted": config["es"]["generations"],
        "seconds": sum(float(row["seconds_total"]) for row in run.generations) if whole else None,
        "tokens": sum(int(row["tokens"]) for row in run.generations) if whole else None,
        "last_commit_unix_time": float(last["unix_time"]) if last is not None and whole else None,
        "best": run.best(),
        "evaluations": run.evaluations,
        "forks": attributes["forks"],
        "events": attributes["events"],
        "files": list(_files(run)),
        "provenance": attributes["provenance"],
        "config": config,
    }


def _files(run: RunFile) -> Iterator[dict[str, Any]]:
    """Yield for each file of a run its name, size in bytes, kind, and what is wrong with it (None if nothing is)."""
    folder = run.path.parent

    def entry(path: Path, kind: str, trouble: str | None) -> dict[str, Any]:
        size = path.stat().st_size if path.is_file() else None
        return {"file": str(path.relative_to(folder)), "kind": kind, "bytes": size, "trouble": trouble}

    yield entry(run.path, "run file", None)  # it was read and checked when `run` was opened
    for segment in run.segments:
        yield entry(folder / segment.file, f"members of generations {segment.first} to {segment.end - 1}", None)
    for part in run.generation_segments:
        yield entry(folder / part.file, f"rows of generations {part.first} to {part.end - 1}", None)
    if run.path.name != RUN_FILE:
        return
    for path, generation, best in snapshots_beside(run.path):
        trouble = None
        try:
            check_snapshot(path, run)
        except UserError as error:
            if not path.exists():  # the run is still running, and has deleted it
                continue
            trouble = str(error)
        yield entry(path, f"snapshot of generation {generation}{', the best' if best else ''}", trouble)
    for suite, rows in run.evaluations.items():
        for row in rows:
            path = samples_path(run.path, suite, row["generation"])
            yield entry(path, f"samples of {suite} at generation {row['generation']}", _samples_trouble(path, row))
    if (folder / "model").is_dir():
        yield entry(folder / "model", "exported model", _model_trouble(folder / "model", run))
    for path in leftovers(folder):
        yield entry(path, "left by a writer that is at work or was killed; the next start removes it", None)


def _samples_trouble(path: Path, row: dict[str, Any]) -> str | None:
    try:
        count = sum(1 for _ in read_json_lines(path, inside=path.parent.parent))
    except OSError as error:
        return f"cannot be read: {error}"
    except UserError as error:
        return str(error)
    wanted = row.get("num_samples")
    return None if count == wanted else f"has {count} samples, not {wanted}"


def _model_trouble(folder: Path, run: RunFile) -> str | None:
    try:
        with open_regular(folder / "esmpi.json", inside=folder.parent) as file:
            origin = json.loads(file.read(_MOST_ORIGIN_BYTES))
        if origin["run_uuid"] != run.attributes["run_uuid"]:
            return "is of another run"
        same = origin["theta_digest"] == f"{run.digest_after(int(origin['generation'])):016x}"
    except UserError as error:
        return str(error)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, OverflowError) as error:
        return f"does not say what it is: {error!r}"
    return None if same else f"is not theta of generation {origin['generation']}"


def to_text(found: dict[str, Any]) -> str:
    """Return the result of `inspect` as text for people."""
    config, best = found["config"], found["best"]
    lines = [
        f"{config['run']['name']}: {config['model']['path']}, task {config['task']['name']}, run {found['run_uuid']}",
        f"{found['generations']} of {counted(found['generations_wanted'], 'generation')}, "
        f"theta {found['theta_digest']}, base model {found['model_digest']}",
        f"{found['creator']}, format {found['format_version']}, noise {found['noise_version']}",
    ]
    lines += [f"forked at generation {f['generation']} from {f['path']} ({f['run_uuid']})" for f in found["forks"]]
    if found["log_only"]:
        lines.append("log only: seeds, coefficients and digests")
    elif found["generations"]:
        lines.append(f"{found['seconds']:.1f} s of training, {found['tokens']:,} tokens generated")
    for event in found["events"]:
        to = "" if event["to"] is None else f" to generation {event['to']}"
        lines.append(f"guard at generation {event['generation']}: {event['action']}{to}: {event['reason']}")
    if best is not None:
        accuracy, reward = best["accuracy"], best["reward_mean"]
        lines.append(f"best: generation {best['generation']}, accuracy {accuracy:.1%}, mean reward {reward:.3f}")
    for start in found["provenance"]:
        packages = ", ".join(f"{name} {version}" for name, version in start.get("packages", {}).items())
        lines.append(f"started on {start.get('host')}, {counted(start.get('ranks', 1), 'rank')}: {packages}")
    lines.append("config")
    for section, keys in config.items():
        lines.append(f"  {section}: " + ", ".join(f"{key} {json.dumps(value)}" for key, value in keys.items()))
    lines.append("files")
    for file in found["files"]:
        size = "" if file["bytes"] is None else f"{file['bytes']:,}"
        lines.append(f"  {file['file']:40s} {size:>16s}  {file['trouble'] or 'good'}  ({file['kind']})")
    return "\n".join(map(visible_line, lines))
