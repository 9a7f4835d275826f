"""Whether a rank runs on cores that are near its GPUs, by what Linux says of a node's processors and devices."""

from collections.abc import Sequence
from pathlib import Path

SYSTEM = Path("/sys")


def far_from_gpus(cores: Sequence[int], gpus: Sequence[str], system: Path = SYSTEM) -> str | None:
    """Return what is wrong if none of a rank's cores is near any of its GPUs, None if nothing is or nobody knows.

    Parameters
    ----------
    cores : sequence of int
        Of the rank.
    gpus : sequence of str
        PCI addresses of the rank's GPUs, such as 0000:1b:00.0.
    system : Path
        Where Linux's sysfs is.
    """
    nodes = {node for gpu in gpus if (node := numa_node(gpu, system)) is not None}
    near = {core for node in nodes for core in cores_of(node, system)}
    if not near or not cores or near.intersection(cores):
        return None
    names = ", ".join(map(str, sorted(nodes)))
    return (
        f"cores {ranges(cores)} are far from the GPUs that they work for ({', '.join(gpus)}, on NUMA node {names} with "
        f"cores {ranges(near)}): bind each rank next to its GPU (srun --gpus-per-task=N --gpu-bind=closest, or "
        f"--cpu-bind=map_ldom:LIST; Open MPI --map-by numa --bind-to numa)"
    )


def numa_node(gpu: str, system: Path = SYSTEM) -> int | None:
    """Return the NUMA node that a PCI device is next to, None if that is not known."""
    try:
        node = int((system / "bus" / "pci" / "devices" / gpu / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return None if node < 0 else node


def cores_of(node: int, system: Path = SYSTEM) -> set[int]:
    """Return the cores of a NUMA node; empty if they are not known."""
    try:
        text = (system / "devices" / "system" / "node" / f"node{node}" / "cpulist").read_text()
    except OSError:
        return set()
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return found


def ranges(cores: "Sequence[int] | set[int]") -> str:
    """Return cores as Linux writes them, such as 0-7,16."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def pci_address(properties: object) -> str | None:
    """Return the PCI address in what PyTorch says of a GPU; None for a PyTorch that does not say it (before 2.5)."""
    numbers = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in numbers:
        return None
    domain, bus, device = numbers
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"
