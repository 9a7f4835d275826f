"""Perturbing, restoring and updating take no temporary of the model's size."""

import subprocess
import sys

import pytest

# Once all threads are up, the kernel's limit on private memory (RLIMIT_DATA) is put 48 MB above what is in use:
# any temporary beyond that fails, whoever allocates it. That it does is tried first, with a temporary of 96 MB.
PROGRAM = """
import resource, sys
import numpy as np, torch
from esmpi.weights.views import View
from esmpi.weights.host import Weights

torch.set_num_threads(1)
whole = View.whole("whole.weight", torch.empty(50_000, 1_000))
live = torch.empty(50_000, 1_000, dtype=torch.bfloat16)
columns = View("columns.weight", (50_000, 3_000), (0, 50_000), (1_000, 2_000), live)
weights = Weights([whole, columns], lambda view: torch.zeros(view.live.shape), 2)
seeds, coefficients = np.array([5, 6], np.uint64), np.array([1e-3, 2e-3], np.float32)

def work():
    weights.perturb(7, 1e-3)
    weights.update(seeds, coefficients)
    weights.restore()
    return weights.digest()

work()
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
assert used > 400_000_000, used
resource.setrlimit(resource.RLIMIT_DATA, (used + 48_000_000, resource.RLIM_INFINITY))
try:
    np.ones(96_000_000, np.uint8)
    sys.exit(77)
except MemoryError:
    pass
work()
print("done")
"""


def test_no_temporary_of_the_models_size() -> None:
    """Theta of 400 MB, live weights of both types, in a process of its own."""
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    if result.returncode == 77:
        pytest.skip("this kernel does not enforce RLIMIT_DATA")
    assert result.stdout == "done\n", result.stderr
