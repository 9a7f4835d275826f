"""What runs inside each vLLM worker: the weights of that worker, reached by `collective_rpc`.

vLLM imports this module before it loads the model, in this process or in a worker process of its own.
"""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform

if TYPE_CHECKING:
    from esmpi.model.base_model import BaseModel
    from esmpi.weights.host import Weights
    from esmpi.weights.placement import Placement
    from esmpi.weights.views import View

Rectangle = tuple[str, tuple[int, int], tuple[int, int]]
"""Canonical name, rows and columns that a view holds."""

PACKING_KEPT = "ESMPI_KEEP_PACKING"
"""Environment variable for tests: leaves vLLM's CPU packing on, which the start-up checks must then refuse."""

if current_platform.is_cpu() and PACKING_KEPT not in os.environ:
    # vLLM's CPU build copies linear weights into a packed form and computes with that: edits of the weights would
    # change nothing, without any error. It looks the function up in its module at each use.
    from vllm.model_executor.layers import utils

    def _compute_with_the_weight_itself(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear  # type: ignore[assignment]  # vLLM sets any callable

    utils.dispatch_cpu_unquantized_gemm = _compute_with_the_weight_itself


class WorkerExtension:
    """Methods that vLLM adds to its worker; vLLM's own names must not occur, so all begin with esmpi."""

    model_runner: Any
    rank: int
    esmpi_weights: "Weights"

    def esmpi_find(self, folder: str, rank_process: int) -> "list[Rectangle] | str":
        """Find the views of this worker's parameters; return what they hold. Leaves the parameters garbage.

        An error of the user's is returned as its text: from another process it would arrive as some RuntimeError.
        """
        # Not at the top of the module: vLLM's start looks through all loaded modules and trips over numba's.
        from esmpi.engines.probe import derive_views, fingerprint
        from esmpi.errors import UserError
        from esmpi.model.base_model import BaseModel

        if os.getpid() != rank_process:
            # A terminal and Slurm ask all processes to stop: the rank does so after its generation, and till then
            # needs its workers.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                signal.signal(number, signal.SIG_IGN)
        self._esmpi_checkpoint = BaseModel(Path(folder))
        model = self.model_runner.model
        parameters = dict(model.named_parameters())
        self._esmpi_state = {
            name: (tensor, fingerprint(tensor))
            for name, tensor in {**parameters, **dict(model.named_buffers())}.items()
            if tensor.is_floating_point()
        }
        try:
            with torch.no_grad():
                stored = list(self._esmpi_checkpoint.tensors.values())
                self._esmpi_views = derive_views(parameters, model.load_weights, stored)
        except UserError as error:
            return str(error)
        return [(view.name, view.rows, view.cols) for view in self._esmpi_views]

    def esmpi_open(
        self, cuts: dict[str, list[int]], cores: list[list[int]], placement: "Placement"
    ) -> "list[Rectangle] | str":
        """Read theta and write the live weights; return what the views hold now.

        `cuts` are rows of tensors at which views have to be cut, so that what two workers hold is the same or has
        nothing in common. `cores` are the processors of each worker, by rank.
        """
        from esmpi.engines.probe import cut, fingerprint
        from esmpi.weights.open import open_weights

        views = [part for view in self._esmpi_views for part in cut(view, cuts[view.name])]
        mine = cores[self.rank]
        self.esmpi_weights = open_weights(views, _reader(self._esmpi_checkpoint), len(mine), placement, set(mine))
        # What vLLM had made of the checkpoint must be there again, bit for bit, or ES would perturb another model.
        for name, (tensor, before) in self._esmpi_state.items():
            if fingerprint(tensor) != before:
                return (
                    f"engine: vLLM rearranges {name} after loading it, so ES could not perturb it. "
                    f"Mixture-of-experts layers on the CPU and some quantized or fused layers do this"
                )
        return [(view.name, view.rows, view.cols) for view in views]

    def esmpi_perturb(self, seed: int, scale: float, only: list[str] | None) -> None:
        self.esmpi_weights.perturb(seed, scale, only)

    def esmpi_restore(self) -> None:
        self.esmpi_weights.restore()

    def esmpi_update(self, seeds: list[int], coefficients: list[float]) -> None:
        import numpy as np

        self.esmpi_weights.update(np.array(seeds, np.uint64), np.array(coefficients, np.float32))

    def esmpi_load(self, snapshot: str | None) -> str | None:
        """Replace theta by a snapshot's or the base model's; return what is wrong, if anything is."""
        from esmpi.errors import UserError
        from esmpi.model.snapshot import opened

        try:
            with opened(None if snapshot is None else Path(snapshot), self._esmpi_checkpoint) as source:
                self.esmpi_weights.load(lambda view: source.read(view.name, view.rows, view.cols))
        except UserError as error:
            return str(error)
        return None

    def esmpi_show_base(self) -> None:
        self.esmpi_weights.show(_reader(self._esmpi_checkpoint))

    def esmpi_squared_distance(self, counted: list[list[int]]) -> float:
        return self.esmpi_weights.squared_distance(_reader(self._esmpi_checkpoint), set(counted[self.rank]))

    def esmpi_digest(self, counted: list[list[int]]) -> int:
        """Return this worker's share of the digest; `counted` are the views that count, by rank."""
        return self.esmpi_weights.digest(set(counted[self.rank]))

    def esmpi_parts(self, name: str, live: bool) -> list[tuple[tuple[int, int], tuple[int, int], torch.Tensor]]:
        """Return this worker's rectangles of a tensor, of theta or the live weights: (rows, columns, values)."""
        return [
            (view.rows, view.cols, (view.live if live and view.live is not None else theta).cpu())
            for view, theta in self.esmpi_weights.theta()
            if view.name == name
        ]


def kind_of(name: str) -> str:
    """Return a tensor's name without its layer, so that all of one kind have one name."""
    return re.sub(r"\.\d+\.", ".*.", name)


def _reader(checkpoint: "BaseModel") -> "Callable[[View], torch.Tensor]":
    def read(view: "View") -> torch.Tensor:
        return checkpoint.read(view.name, view.rows, view.cols)

    return read
