"""Open the weights of this process, with theta where it is wanted."""

from collections.abc import Sequence

from esmpi.weights.host import Weights
from esmpi.weights.placement import Placement
from esmpi.weights.views import Read, View


def open_weights(
    views: Sequence[View], read: Read, num_threads: int, placement: Placement, cores: set[int] | None = None
) -> Weights:
    """Return weights with theta where it is wanted; on a CPU all places are the same memory."""
    kind: type[Weights] = Weights
    if any(view.live is not None and view.live.device.type == "cuda" for view in views):
        from esmpi.weights.device import DeviceWeights, check_gpu, device_of  # needs Triton
        from esmpi.weights.streamed import StreamedWeights

        check_gpu(device_of(views))
        kind = DeviceWeights if placement == "device" else StreamedWeights
    return kind(views, read, num_threads, cores, bf16_base=placement == "host+bf16")
