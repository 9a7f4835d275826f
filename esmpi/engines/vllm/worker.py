"""What runs inside each vLLM worker: the weights of that worker, reached by `collective_rpc`.

vLLM imports this module before it loads the model, in this process or in a worker process of its own.
"""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.platforms import current_platform

from esmpi.engines.vllm import cpu, lora
from esmpi.engines.vllm.quantized import SCALES, scales_of
from esmpi.engines.vllm.workers import RANK_PROCESS, ignore_signals

if TYPE_CHECKING:
    from esmpi.mpi.node_memory import NodeMemory
    from esmpi.weights.placement import Placement
    from esmpi.weights.shard import Rectangle, WeightShard

PACKING_KEPT = "ESMPI_KEEP_PACKING"
"""Environment variable for tests: leaves vLLM's CPU packing on, which the start-up checks must then refuse."""

if os.environ.get(RANK_PROCESS, str(os.getpid())) != str(os.getpid()):
    ignore_signals()  # in place of vLLM's own handlers
if current_platform.is_cpu() and PACKING_KEPT not in os.environ:
    cpu.compute_with_the_weights()
lora.extend()


class WorkerExtension:
    """Methods that vLLM adds to its worker; vLLM's own names must not occur, so all begin with esmpi."""

    model_runner: Any
    rank: int
    esmpi_shard: "WeightShard"

    def esmpi_find(self, folder: str, quantized: list[str]) -> "list[Rectangle] | str":
        """Find the views of this worker's parameters; return what they hold. Leaves the parameters garbage.

        `quantized` are the names of the tensors that are to be quantized.

        An error of the user's is returned as its text: from another process it would arrive as some RuntimeError.
        """
        # Not at the top of the module: vLLM's start looks through all loaded modules and trips over numba's.
        from esmpi.errors import UserError
        from esmpi.model.base_model import BaseModel
        from esmpi.model.quantization import require_quantized
        from esmpi.weights.probe import derive_views, fingerprint, own_memory

        self._esmpi_base = BaseModel(Path(folder))
        model = self.model_runner.model
        stored = list(self._esmpi_base.tensors.values())
        with torch.no_grad(), self._esmpi_bare_model():
            parameters, scales = dict(model.named_parameters()), scales_of(model)
            # what vLLM has made of the checkpoint, but of quantized weights, which are still to be made
            self._esmpi_state = {
                name: (tensor, fingerprint(tensor))
                for name, tensor in {**parameters, **dict(model.named_buffers())}.items()
                if tensor.is_floating_point() and name not in scales and not name.endswith(SCALES)
            }
            try:
                self._esmpi_views = derive_views(own_memory(parameters), model.load_weights, stored, scales)
                require_quantized(
                    {view.name for view in self._esmpi_views if view.scales is not None},
                    {view.name for view in self._esmpi_views}.intersection(quantized),
                )
            except UserError as error:
                return str(error)
        return [(view.name, view.rows, view.cols) for view in self._esmpi_views]

    def esmpi_open(
        self,
        cuts: dict[str, list[int]],
        cores: list[list[int]],
        placement: "Placement",
        memory: "NodeMemory | None",
    ) -> str | None:
        """Read theta and write the live weights; return what is wrong, None if nothing is.

        `cuts` are rows of tensors at which views have to be cut, so that what two workers hold is the same or has
        nothing in common. `cores` are the processors of each worker, by rank. `memory` is for theta that several ranks
        share: none of them has more than one worker, which is in its own process.
        """
        from esmpi.weights.open import open_weights
        from esmpi.weights.probe import cut, fingerprint
        from esmpi.weights.shard import WeightShard

        base = self._esmpi_base
        views = [part for view in self._esmpi_views for part in cut(view, cuts[view.name])]
        mine = cores[self.rank]
        weights = open_weights(
            views, lambda view: base.read(view.name, view.rows, view.cols), len(mine), placement, set(mine), memory
        )
        # What vLLM had made of the checkpoint must be there again, bit for bit, or ES would perturb another model.
        for name, (tensor, before) in self._esmpi_state.items():
            if fingerprint(tensor) != before:
                return (
                    f"engine: vLLM rearranges {name} after loading it, so ES could not perturb it. "
                    f"Some layers with experts or fused weights do this: choose engine.kind=hf"
                )
        self.esmpi_shard = WeightShard(weights, base, self.rank)
        self._esmpi_open_views = weights.views
        return None

    def _esmpi_bare_model(self) -> Any:
        if not hasattr(self.model_runner, "lora_manager"):
            return nullcontext()
        from esmpi.engines.vllm.adapters import without_adapters

        return without_adapters(self.model_runner.model)

    def esmpi_open_adapters(self) -> list[str]:
        """Take all slots for adapters; return the names of matrices that have none."""
        from esmpi.engines.vllm.adapters import Adapters

        manager = self.model_runner.lora_manager._adapter_manager
        self._esmpi_adapters = Adapters(manager, self.model_runner.model, self._esmpi_open_views)
        return self._esmpi_adapters.unreached

    def esmpi_prepare(
        self, seeds: list[int], scales: list[float], rank: int, tensor_scales: dict[str, float] | None
    ) -> None:
        """Write the noise of a wave's members into the slots."""
        from esmpi.noise.format import Noise

        noise = Noise(rank, tensor_scales)
        self._esmpi_adapters.prepare(np.array(seeds, np.uint64), np.array(scales, np.float32), noise)

    def esmpi_gpu(self) -> str | None:
        """Return the UUID of this worker's GPU, None on a CPU."""
        device = next(self.model_runner.model.parameters()).device
        return None if device.type == "cpu" else str(torch.cuda.get_device_properties(device).uuid)

    def esmpi_call(self, method: str, *arguments: Any) -> Any:
        """Call a method of this worker's shard."""
        return getattr(self.esmpi_shard, method)(*arguments)
