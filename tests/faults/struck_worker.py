"""A vLLM worker to which something happens, for at_phase.py: an error in Python, or memory that is refused."""

import os
from pathlib import Path
from typing import Any

from at_phase import ASKED, refuse_memory

from esmpi.engines.vllm.worker import WorkerExtension


class StruckExtension(WorkerExtension):
    """Meets the fault in the second worker, when that is asked for something next."""

    def esmpi_open(self, *arguments: Any) -> str | None:
        self._esmpi_strike()
        return super().esmpi_open(*arguments)

    def esmpi_call(self, method: str, *arguments: Any) -> Any:
        self._esmpi_strike()
        return super().esmpi_call(method, *arguments)

    def _esmpi_strike(self) -> None:
        asked = Path(os.environ[ASKED])
        if self.rank == 1 and asked.exists():
            fault = asked.read_text()
            asked.unlink()
            if fault == "memory":
                refuse_memory()
            raise RuntimeError("the fault of the test")
