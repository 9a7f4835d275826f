"""Cores and GPUs of a node, in a made-up tree of sysfs."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from esmpi.launch.numa import cores_of, far_from_gpus, pci_address, ranges

LISTS = {0: "0-15,64-79\n", 1: "16-31,80-95\n", 2: "\n"}
GPUS = {"0000:1b:00.0": "0", "0000:9a:00.0": "1", "0000:c1:00.0": "-1"}


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """Two processors of 16 cores with two threads each, a GPU next to each, one elsewhere, and a node of memory."""
    for node, cores in LISTS.items():
        folder = tmp_path / "devices" / "system" / "node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cores)
    for gpu, node in GPUS.items():
        folder = tmp_path / "bus" / "pci" / "devices" / gpu
        folder.mkdir(parents=True)
        (folder / "numa_node").write_text(f"{node}\n")
    return tmp_path


def test_cores_on_the_other_processor_are_told(system: Path) -> None:
    first, second, _ = GPUS
    assert far_from_gpus(range(8), [first], system) is None
    assert far_from_gpus(range(80, 84), [second], system) is None
    said = far_from_gpus([*range(16, 24), 80], [first], system)
    assert said is not None
    assert said.startswith(
        "cores 16-23,80 are far from the GPUs that they work for (0000:1b:00.0, on NUMA node 0 with cores 0-15,64-79): "
    )
    # one that is near is enough, as where a rank has GPUs on both processors, or is not bound
    assert far_from_gpus(range(16, 24), [first, second], system) is None
    assert far_from_gpus(range(96), [first], system) is None
    assert far_from_gpus(range(16), [second], system) is not None


def test_nothing_is_said_where_nobody_knows(system: Path, tmp_path: Path) -> None:
    *_, unknown = GPUS
    assert far_from_gpus(range(8), [unknown], system) is None
    assert far_from_gpus(range(8), ["0000:ff:00.0"], system) is None
    assert far_from_gpus(range(8), [], system) is None
    assert cores_of(2, system) == cores_of(7, system) == set()
    (system / "bus" / "pci" / "devices" / unknown / "numa_node").write_text("2\n")
    assert far_from_gpus(range(8), [unknown], system) is None, "a node without cores"


def test_addresses_and_ranges() -> None:
    assert pci_address(SimpleNamespace(pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)) == "0000:1b:00.0"
    assert pci_address(SimpleNamespace(name="of an old PyTorch")) is None
    assert ranges([3, 1, 2, 9]) == "1-3,9"
