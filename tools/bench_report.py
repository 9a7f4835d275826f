#!/usr/bin/env python3
"""Time, memory and size of the pages of `esmpi report`: of a long run with many members, and of many runs.

python tools/bench_report.py
"""

import json
import resource
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "report"))

from made_runs import make_run  # type: ignore[import-not-found]

from esmpi.report.page import page_of_run, page_of_runs
from esmpi.store.run_file import RunFile

GENERATIONS, MEMBERS, RUNS = 1000, 1000, 20
TEXT = "Some words of a model, with the numbers 19, 36 and 44. " * 25


def make(folder: Path) -> None:
    """Write the runs: a large one, and small ones that all have different settings."""
    make_run(folder / "large", generations=GENERATIONS, members=MEMBERS, every=20, num_problems=500, texts=[TEXT])
    for i in range(RUNS):
        make_run(folder / str(i), f"es.sigma={i + 1}e-3", seed=i, generations=GENERATIONS, members=30, every=20)


def measure(folder: Path, names: list[str]) -> dict[str, Any]:
    """Return what the page of some runs takes in this process, reading included."""
    import matplotlib.backends.backend_svg  # noqa: F401  warm: its import is no part of a page

    started, cpu = time.perf_counter(), time.process_time()
    runs = [RunFile.open(folder / name / "run.h5") for name in names]
    page = page_of_run(runs[0]) if len(runs) == 1 else page_of_runs(runs)
    return {
        "runs": len(runs),
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "page_bytes": len(page.encode()),
    }


def main() -> None:
    """Measure each page in a process of its own, and print a line of JSON."""
    with tempfile.TemporaryDirectory() as name, get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        folder = Path(name)
        pool.apply(make, (folder,))
        pages = [pool.apply(measure, (folder, names)) for names in (["large"], [str(i) for i in range(RUNS)])]
    print(json.dumps({"generations": GENERATIONS, "members": MEMBERS, "pages": pages}))


if __name__ == "__main__":
    main()
