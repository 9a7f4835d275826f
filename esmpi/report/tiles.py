"""The figures of a run that are worth a large font: a page and a notebook begin with them."""

from typing import NamedTuple

from esmpi.config.problems import HELD_OUT
from esmpi.report.of_run import rows_of
from esmpi.report.outcome import Outcome, percent
from esmpi.store.history import History
from esmpi.wording import counted


class Tile(NamedTuple):
    """A figure with its name, and what else there is to say of it."""

    label: str
    value: str
    more: str = ""


def tiles_of(run: History, outcome: Outcome | None) -> list[Tile]:
    """Return the figures of a run; its outcome is None if it was not evaluated twice."""
    config = run.attributes["config"]
    tiles = []
    if outcome is not None:
        before, after = outcome.before, outcome.after
        tiles.append(
            Tile(
                "Accuracy on held-out problems",
                f"{percent(before.accuracy)} → {percent(after.accuracy)}",
                f"95 % intervals {before.interval_text} and {after.interval_text}, "
                f"{counted(after.num_problems, 'problem')}{_highest(run, after.generation)}",
            )
        )
        if outcome.change is not None:
            tiles.append(
                Tile(
                    "Problems that became better, worse",
                    f"{outcome.change.num_better:,}, {outcome.change.num_worse:,}",
                    outcome.test_text,
                )
            )
        tiles.append(Tile("Mean reward", f"{before.reward:.3f} → {after.reward:.3f}"))
    elif rows := rows_of(run, HELD_OUT):
        tiles.append(Tile("Accuracy on held-out problems", percent(rows[-1]["accuracy"]), "evaluated once"))
    planned = int(config["es"]["generations"])
    stopped = any(event["action"] == "stop" for event in run.attributes["events"])
    state = "stopped by the guard" if stopped else "finished" if run.num_generations >= planned else "not finished"
    members = config["es"].get("population_size", "-")
    tiles.append(Tile("Generations", f"{run.num_generations:,} of {planned:,}", f"{state}; {members} members each"))
    if run.generations and not run.attributes["log_only"]:
        seconds = sum(float(row["seconds_total"]) for row in run.generations)
        tokens = sum(int(row["tokens"]) for row in run.generations)
        tiles.append(
            Tile("Time of training", _duration(seconds), f"{seconds / run.num_generations:.3g} s a generation")
        )
        tiles.append(Tile("Tokens generated", f"{tokens:,}", f"{tokens / max(seconds, 1e-9):,.0f} tokens/s"))
    return [tile._replace(value=tile.value.replace(" %", "\u00a0%")) for tile in tiles]


def _highest(run: History, last: int) -> str:
    """Return where the accuracy was highest, if not at the end."""
    best = run.best()
    if best is None or int(best["generation"]) == last:
        return ""
    return f"; highest {percent(best['accuracy'])} at generation {best['generation']}"


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{minutes} min {int(seconds) % 60:02d} s"
