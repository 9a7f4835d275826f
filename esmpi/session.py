"""Everything that a run works with. `esmpi.setup` makes it."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from esmpi.config.problems import HELD_OUT
from esmpi.config.sections import Config
from esmpi.data.problem import Prompt
from esmpi.data.problems import Problems
from esmpi.data.shots import with_shots
from esmpi.engines import Completion, Engine, Request, Sampling
from esmpi.episodes import Episode, play, scored
from esmpi.errors import UserError
from esmpi.es.dispatch import Dispatch
from esmpi.es.guard import Event
from esmpi.es.population import ADVICE, DesyncError, describe_digests
from esmpi.model.base_model import BaseModel
from esmpi.mpi.comm import Comm
from esmpi.mpi.nodes import host_name
from esmpi.noise.format import Noise
from esmpi.record.recorder import Recorder
from esmpi.report.card import card_files
from esmpi.report.outcome import exit_summary
from esmpi.scoring import RemoteScorer, Scored, Scorer
from esmpi.stop.signals import StopFlag
from esmpi.stop.time_limit import TimeLimit
from esmpi.store.export import export
from esmpi.store.run_file import RunFile
from esmpi.store.snapshot_keeper import SnapshotKeeper
from esmpi.tasks import Example, Progress, Sample, Task
from esmpi.tasks.tools import without_tool_turns
from esmpi.wording import listed

if TYPE_CHECKING:
    from esmpi.harness.suite import Suite

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Setup:
    """What completes and scores problems: the same on all ranks."""

    config: Config
    comm: Comm
    base: BaseModel
    engine: Engine
    task: Task
    problems: Problems
    scorer: Scorer | RemoteScorer
    noise: Noise
    """Of the members."""
    harness: "dict[str, Suite]" = field(default_factory=dict)
    """Those of the suites that are tasks of lm-evaluation-harness."""

    def prompt(self, example: Example) -> str:
        """Return the text that the engine completes for a problem, at first if there are several turns."""
        return self.render(self.task.prompt(example))

    def first_prompt(self, example: Example) -> str:
        """Return the text of a request; empty if the task begins each episode itself, in a process for rewards."""
        return "" if self.task.takes_turns else self.prompt(example)

    def render(self, prompt: Prompt) -> str:
        """Return the text of a prompt, with worked examples in front, and with the task's tools."""
        variables = dict(getattr(self.config.task, "chat_template_kwargs", {}))
        prompt = with_shots(prompt, self.problems.shots)
        if self.task.tools and isinstance(prompt, list):
            if self.engine.has_template_for("tools"):
                variables["tools"] = self.task.tools
            else:
                prompt = without_tool_turns(prompt, self.task.tools)
        return self.engine.render(prompt, **variables)

    def complete(
        self, requests: Sequence[Request], examples: Sequence[Example], sampling: Sampling
    ) -> Sequence[Completion]:
        """Complete requests with the engine, in as many turns as the task takes; `examples` are their problems."""
        if self.task.takes_turns:
            return play(self, requests, examples, sampling)
        return self.engine.generate(requests, sampling)

    def submit(
        self, completions: Sequence[Completion], examples: Sequence[Example], num_samples: int, generation: int
    ) -> Future[Scored]:
        """Begin to score completions, one for each example; the `num_samples` of a prompt stand side by side.

        A reward that compares completions sees all of these, in this order, or those of a prompt. `generation` is that
        of theta.
        """
        if self.task.takes_turns:
            known: Future[Scored] = Future()
            known.set_result(scored([completion for completion in completions if isinstance(completion, Episode)]))
            return known
        samples = [
            Sample(
                completion=completion.text,
                example=example,
                tokens=completion.tokens if self.task.needs_tokens else (),
            )
            for completion, example in zip(completions, examples, strict=True)
        ]
        progress = Progress(generation=generation, num_generations=self.config.es.schedule_length)
        return self.scorer.submit(samples, num_samples, progress)

    def agreed_digest(self) -> int:
        """Collective. Return theta's digest; raise DesyncError, naming the ranks, unless all have the same."""
        digests = self.comm.allgather_array(np.array([self.engine.weights.digest()], np.uint64))[:, 0].tolist()
        if len(set(digests)) > 1:
            everyone = self.comm.allgather_object([host_name(), self.engine.weights.tensor_digests()])
            hosts, shares = zip(*everyone, strict=True)
            names = [name for name in shares[0] if len({share[name] for share in shares}) > 1]
            raise DesyncError(f"{describe_digests(digests, hosts)}; they differ in {listed(names)}. {ADVICE}")
        return int(digests[0])


@dataclass(kw_only=True)
class Session(Setup):
    """Everything that the loop works with. It is the same on all ranks, except that only rank 0 has the run file."""

    recorder: Recorder
    dispatch: Dispatch
    stop: StopFlag
    time_limit: TimeLimit | None = None
    """On rank 0 only, if there is a limit to watch."""
    run: RunFile | None
    """On rank 0 only."""
    snapshots: SnapshotKeeper | None
    """On rank 0 only."""
    first_generation: int = 0
    """Generation of theta at the run's very first start: 0, or where it was forked."""
    generation: int = 0
    """Generation of theta: how many updates it has had."""
    digest: int = 0
    """Digest of theta."""
    results: dict[str, dict[int, Mapping[str, float]]] = field(default_factory=lambda: defaultdict(dict))
    """The evaluations so far, by suite and generation: the numbers of `esmpi.record.evaluation.Evaluation`."""
    events: list[Event] = field(default_factory=list)
    """What the guard did in this run."""
    alpha_factor: float = 1.0
    """What the guard has multiplied alpha with."""
    exported: int = 0
    """Generation of the theta that is exported at the end."""
    guarded: bool = False
    """Whether the guard has ended the run."""

    @property
    def sampling(self) -> Sampling:
        """How the members' completions are sampled."""
        return Sampling.at(self.config.sampling.temperature, self.config.sampling)

    def begin_scoring(self, completions: Sequence[Completion], examples: Sequence[Example]) -> Future[Scored]:
        """Begin to score what a member, or theta, has made of a generation's prompts."""
        return self.submit(completions, examples, self.config.sampling.num_samples, self.generation)

    @property
    def finished(self) -> bool:
        """Whether the guard has ended the run, or it has all its generations and the last one is evaluated."""
        last = self.config.es.generations
        evaluated = all(last in self.results[suite] for suite in self.problems.suites)
        return self.guarded or (self.generation >= last and evaluated)

    @property
    def best(self) -> int:
        """The generation with the best result on the held-out problems."""
        rows = self.results[HELD_OUT]
        return max(rows, key=lambda one: (rows[one]["accuracy"], rows[one]["reward_mean"], -one))

    def wants_stop(self) -> bool:
        """Return whether this rank was asked to stop after this generation. Call it once per generation."""
        nearly_over = self.time_limit is not None and self.time_limit.nearly_over()
        return bool(self.stop) or nearly_over

    def stop_reason(self) -> str:
        """Return what made the run stop, as far as this rank knows."""
        if self.stop.signal is not None:
            return f"asked to stop by {self.stop.signal.name}"
        if self.time_limit is not None and self.time_limit.left_s() < float("inf"):
            return f"asked to stop, with {self.time_limit.left_s():.0f} s of the job's time left"
        return "asked to stop"

    def finish(self) -> None:
        """Export theta as a model folder, on rank 0, if the run has all its generations."""
        if self.run is None or not self.finished:
            return
        if self.snapshots is not None:
            self.snapshots.wait()  # its copy of theta and the export's need not be in memory together
        dtype, out = self.config.run.export_dtype, None
        if dtype != "none":
            out = self.config.directory / "model"
            export(
                self.base,
                self.engine.weights.by_name,
                self.engine.weights.aliases,
                out,
                dtype,
                self.run.describe(self.exported),
                card_files(self.run, self.exported, self.base, self._chose),
            )
            log.info("theta of generation %d exported to %s (%s)", self.exported, out, dtype)
        self._log_outcome(out)
        log.info("done: %s, theta %016x", self.run.path, self.run.theta_digest)

    @property
    def _chose(self) -> bool:
        """Whether the model that is exported was chosen as the best one."""
        return self.guarded or self.config.run.export == "best"

    def _log_outcome(self, model: Path | None) -> None:
        """Log what the run learned and how sure that is, where its files are, and the next command."""
        assert self.run is not None
        chosen = model is not None and self._chose
        generation = self.generation if model is None else self.exported
        try:
            for line in exit_summary(self.run, generation, chosen, model):
                log.info("%s", line)
        except UserError as error:  # the run itself is complete
            log.warning("no summary of the run: %s", error)
