"""How the program was started, how it is asked to stop, and how it is submitted: `esmpi.launch.submit(...)`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esmpi.launch.jobs import submit as submit
else:

    def __getattr__(name: str) -> Any:
        # on demand: whoever asks how the program was started need not load what reads run files
        if name == "submit":
            from esmpi.launch.jobs import submit

            return submit
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
