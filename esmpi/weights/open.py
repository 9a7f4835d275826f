"""Open the weights of this process, with theta where it is wanted."""

from collections.abc import Sequence

from esmpi.mpi.node_memory import NodeMemory
from esmpi.weights.host import Weights
from esmpi.weights.placement import Placement
from esmpi.weights.views import Read, View


def open_weights(
    views: Sequence[View],
    read: Read,
    num_threads: int,
    placement: Placement,
    cores: set[int] | None = None,
    memory: NodeMemory | None = None,
) -> Weights:
    """Return weights with theta where it is wanted; on a CPU all places are the same memory.

    `memory` is the node's, for theta in host memory that several ranks share.
    """
    kind: type[Weights] = Weights
    if any(view.live is not None and view.live.device.type == "cuda" for view in views):
        from esmpi.weights.device import DeviceWeights, check_gpu, device_of  # needs Triton
        from esmpi.weights.streamed import StreamedWeights

        check_gpu(device_of(views))
        kind = DeviceWeights if placement == "device" else StreamedWeights
        memory = None if placement == "device" else memory
    return kind(views, read, num_threads, cores, placement == "host+bf16", memory)
