"""Tasks of lm-evaluation-harness as a suite: its requests, and what the answers are worth.

Importing this module imports the library.
"""

import io
import json
import logging
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager

from esmpi.config.problems import HarnessSuite
from esmpi.data.files import hub_answers, offline
from esmpi.engines import Engine
from esmpi.errors import UserError, nearest, said
from esmpi.harness.model import Answer, EngineModel, check
from esmpi.mpi.comm import Comm

_FEWSHOT_SEED = 1234
"""With which the harness itself draws solved examples, if not told otherwise."""
_PREFERRED = ("acc", "exact_match")
"""Metrics that count as accuracy if a task has them and the config names none."""
_NO_FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the answers to all requests of a suite are worth, of types that JSON has."""

    accuracy: float
    figures: dict[str, float]
    """Every metric of the tasks: `METRIC`, or `METRIC@FILTER`."""
    samples: list[dict[str, Any]]
    """For each problem what an evaluation records."""


class Suite:
    """Tasks of the harness with the requests that they make of a model.

    The requests are made once: each evaluation of a run asks the same.

    Parameters
    ----------
    name : str
        Of the suite, for messages.
    config : HarnessSuite

    Raises
    ------
    UserError
        If there is no such task, it cannot be loaded, or esmpi cannot evaluate it.
    """

    def __init__(self, name: str, config: HarnessSuite):
        self._what = f"eval.suites: {name}"
        with _seeded(), _quiet():
            self._tasks = _load(self._what, config)
            for label, task in self._tasks.items():
                _check_task(self._what, label, task, config)
                _make_requests(self._what, label, task, config)
        self._metric, self._filter = self._choose_metric(config.metric)
        self._instances = [instance for task in self._tasks.values() for instance in task.instances]
        self._with_greedy = any(map(_needs_greedy, self._tasks.values()))

    @property
    def examples(self) -> list[dict[str, Any]]:
        """The problems, as JSON has them, with all that their results depend on besides the model."""
        return [
            {
                "task": label,
                "version": str(task.VERSION),
                "metric": [self._metric, self._filter],
                "doc": _plain(its[0].doc),
                "requests": [[one.request_type, _plain(one.args), one.repeats] for one in its],
            }
            for label, task in self._tasks.items()
            for its in _by_problem(task)
        ]

    def check(self, engine: Engine) -> None:
        """Raise UserError for requests that an engine cannot answer, or that the model has no room for."""
        try:
            check(engine, self._instances)
        except UserError as error:
            raise UserError(f"{self._what}: {error}") from None

    def ask(self, engine: Engine, comm: Comm, batch_size: int, seed: int) -> list[Answer]:
        """Collective. Have the live weights answer all requests, shared out over the ranks; see `EngineModel`."""
        model = EngineModel(engine, comm, batch_size, seed, self._with_greedy)
        return model.answers([one for one in self._instances for _ in range(one.repeats)])

    def score(self, answers: Sequence[Answer]) -> Outcome:
        """Return what the answers are worth, in the order of `ask`.

        Raises
        ------
        UserError
            If a task cannot score an answer, or its metric is no accuracy.
        """
        given = iter(answers)
        answered = {id(one): [next(given) for _ in range(one.repeats)] for one in self._instances}
        values: dict[str, dict[tuple[str, str], list[Any]]] = {}
        samples: list[dict[str, Any]] = []
        for label, task in self._tasks.items():
            columns = values[label] = defaultdict(list)
            try:
                with _seeded():
                    for row in _scored(task, answered):
                        for key, value in row.items():
                            columns[key].append(value)
            except Exception as error:  # it is the task's own program
                raise UserError(f"{self._what}: task {label} cannot score the answers: {said(error)}") from error
            marks = self._marks(label, columns)
            for its, mark in zip(_by_problem(task), marks, strict=True):
                samples.append(_sample(len(samples), its, [answered[id(one)][0] for one in its], mark))
        figures = self._figures(values)
        accuracy = figures[_column(self._metric, self._filter)]
        if not 0 <= accuracy <= 1:
            raise UserError(f"{self._what}: metric: {self._metric} is {accuracy:.4g}, which is no accuracy")
        return Outcome(accuracy=accuracy, figures=figures, samples=samples)

    def _marks(self, label: str, columns: dict[tuple[str, str], list[Any]]) -> list[float]:
        """Return the metric that counts, of each problem of a task."""
        found = columns.get((self._metric, self._filter))
        if found is None or not all(isinstance(value, int | float | np.number | np.bool_) for value in found):
            names = ", ".join(_name(*key) for key in columns)
            raise UserError(
                f"{self._what}: metric: task {label} gives no number {_name(self._metric, self._filter)} for each "
                f"problem; it has {names}"
            )
        return [float(value) for value in found]

    def _figures(self, values: dict[str, dict[tuple[str, str], list[Any]]]) -> dict[str, float]:
        """Return each metric that all tasks have; of several tasks the mean, weighted with their problems."""
        keys = set.intersection(*(set(columns) for columns in values.values()))
        figures = {}
        for key in sorted(keys):
            weighted = []
            for label, columns in values.items():
                weighted.append(self._aggregate(label, key[0], columns[key]) * len(columns[key]))
            figures[_column(*key)] = math.fsum(weighted) / sum(len(columns[key]) for columns in values.values())
        return figures

    def _aggregate(self, label: str, metric: str, values: list[Any]) -> float:
        aggregate = self._tasks[label].aggregation().get(metric, np.mean)
        try:
            return float(aggregate(values))
        except Exception as error:  # it may need a package of its own
            raise UserError(f"{self._what}: task {label} cannot compute {metric}: {said(error)}") from error

    def _choose_metric(self, wanted: str | None) -> tuple[str, str]:
        """Return name and filter of the metric that counts as accuracy."""
        first = next(iter(self._tasks.values()))
        filters = [each.name for each in first._filters]
        metrics = list(first.aggregation())
        names = [_name(metric, each) for each in filters for metric in metrics]
        if wanted is None:
            metric = next((metric for metric in _PREFERRED if metric in metrics), metrics[0])
        else:
            metric = wanted.partition(",")[0]
            if wanted not in (*names, *metrics):
                raise UserError(f"{self._what}: metric: the task has no {wanted}{nearest(wanted, names)}")
        for label, task in self._tasks.items():
            if metric not in task.aggregation():
                raise UserError(f"{self._what}: metric: task {label} has no {metric}")
            if not task.higher_is_better().get(metric, True):
                raise UserError(
                    f"{self._what}: metric: {metric} is better if it is lower, and so is no accuracy; name another "
                    f"one (the task has {', '.join(names)})"
                )
        return metric, (wanted or "").partition(",")[2] or filters[0]


def _load(what: str, config: HarnessSuite) -> dict[str, Task]:
    """Return the tasks of a name, by their own names."""
    name = config.lm_eval
    folder = None if config.include_path is None else str(Path(config.include_path).expanduser())
    if folder is not None:  # first without the fourteen thousand files of the harness, which take seconds
        own = TaskManager(include_path=folder, include_defaults=False)
        if name in own.all_subtasks:
            return _load_from(what, own, name)
        if name in own.all_tasks:
            with suppress(Exception), offline():  # it may name tasks of the harness
                return dict(own.load(name)["tasks"])
    manager = TaskManager(include_path=folder)
    if name not in manager.all_tasks:
        also = "" if folder is None else f", nor has {config.include_path}"
        raise UserError(f"{what}: lm-evaluation-harness has no task {name}{also}{nearest(name, manager.all_tasks)}")
    return _load_from(what, manager, name)


def _load_from(what: str, manager: TaskManager, name: str) -> dict[str, Task]:
    try:
        with offline():  # what is on this machine needs no network
            return dict(manager.load(name)["tasks"])
    except Exception as error:  # many libraries are involved
        if not hub_answers():
            raise UserError(
                f"{what}: task {name} cannot be loaded: {said(error).rstrip('.')}; without internet: load it once "
                f"where there is, with the same HF_HOME, or write a task with data of your own and name its folder as "
                f"include_path"
            ) from error
    try:
        return dict(manager.load(name)["tasks"])
    except Exception as error:
        raise UserError(f"{what}: task {name} cannot be loaded: {said(error)}") from error


def _check_task(what: str, label: str, task: Task, config: HarnessSuite) -> None:
    """Raise UserError for a task that esmpi does not evaluate."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"{what}: task {label} executes what the model writes, which esmpi does not do")
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"{what}: task {label} shows pictures or sounds to the model, which esmpi does not do")
    shots = task.get_config("num_fewshot")
    if config.num_fewshot is not None and shots == 0 and config.num_fewshot > 0:
        raise UserError(f"{what}: num_fewshot: task {label} allows no solved examples: its own num_fewshot is 0")


def _make_requests(what: str, label: str, task: Task, config: HarnessSuite) -> None:
    shots = task.get_config("num_fewshot") if config.num_fewshot is None else config.num_fewshot
    task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    try:
        task.build_all_requests(limit=config.limit)
    except Exception as error:  # templates of the user's own, too few examples to draw from, ...
        raise UserError(f"{what}: task {label} cannot make its prompts: {said(error)}") from error


def _needs_greedy(task: Task) -> bool:
    """Return whether a task may look at whether a continuation is greedy, which costs generating it."""
    if not isinstance(task, ConfigurableTask) or task.OUTPUT_TYPE != "multiple_choice":
        return True
    return callable(task.config.process_results) or "exact_match" in task.aggregation()


def _by_problem(task: Task) -> list[list[Instance]]:
    """Return the requests of each problem, in their order."""
    found: dict[int, list[Instance]] = defaultdict(list)
    for instance in task.instances:
        found[instance.doc_id].append(instance)
    return [sorted(its, key=lambda one: int(one.idx)) for its in found.values()]


def _scored(task: Task, answered: dict[int, list[Answer]]) -> Iterator[dict[tuple[str, str], Any]]:
    """Yield for each problem its metrics, by name and filter."""
    for instance in task.instances:
        instance.resps = [answer.response for answer in answered[id(instance)]]
        instance.filtered_resps = {}
    task.apply_filters()
    for its in _by_problem(task):
        yield {
            (metric, each): value
            for each in its[0].filtered_resps
            for metric, value in task.process_results(its[0].doc, [one.filtered_resps[each] for one in its]).items()
        }


def _sample(index: int, its: Sequence[Instance], answers: Sequence[Answer], mark: float) -> dict[str, Any]:
    """Return what is recorded of a problem: the completion, or the most probable of the continuations."""
    chosen = max(answers, key=lambda answer: -math.inf if answer.logprob is None else answer.logprob)
    said = {
        "index": index,
        "sample": 0,
        "example": _plain(its[0].doc),
        "prompt": its[answers.index(chosen)].args[0],
        "completion": chosen.text,
        "tokens": chosen.num_tokens,
        "truncated": chosen.truncated,
        "reward": mark,
        "correct": mark >= 1,
        "parsed": True,
        "figures": {},
    }
    return said if chosen.logprob is None else said | {"logprobs": [answer.logprob for answer in answers]}


def _name(metric: str, each: str) -> str:
    return metric if each == _NO_FILTER else f"{metric},{each}"


def _column(metric: str, each: str) -> str:
    # as in the run file's columns, where a slash would make a group
    return _name(metric, each).replace(",", "@").replace("/", "_").replace(" ", "_")


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return json.loads(json.dumps(value, default=str))


@contextmanager
def _seeded() -> Iterator[None]:
    """Draw as the harness's own program does, where a task draws from the generators that all share."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002  # the generator that its tasks use
    random.seed(0)
    np.random.seed(1234)  # noqa: NPY002  # as above
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002  # as above


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and remarks of the harness off the screen."""
    import datasets

    datasets.disable_progress_bars()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
