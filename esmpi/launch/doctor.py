"""`esmpi doctor`: check whether a run would find all it needs, on a login node or on every rank of a job."""

import os
import platform
import shutil
import subprocess
import sysconfig
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from esmpi.config.sections import Config
from esmpi.engines import engine_config, engine_packages
from esmpi.errors import UserError
from esmpi.files import is_locked_elsewhere, locked, replacing
from esmpi.launch.gpus import shared_gpus, too_few
from esmpi.launch.numa import far_from_gpus, pci_address
from esmpi.model.base_model import BaseModel
from esmpi.model.find import find_model
from esmpi.mpi.comm import Comm, Place
from esmpi.mpi.launcher import launcher
from esmpi.provenance import installed_versions

_CLOCK_S = 2.0
_PROBE = ".doctor"


@dataclass
class Findings:
    """What a rank found out about the place where it runs."""

    columns: dict[str, str] = field(default_factory=dict)
    """The rank's line of the table."""
    facts: dict[str, str] = field(default_factory=dict)
    """What must be the same on all ranks."""
    problems: list[str] = field(default_factory=list)
    """What does not work, each with what to do."""
    gpus: list[str] = field(default_factory=list)
    """UUIDs of the GPUs that the rank would use."""
    host: str = ""


def examine(comm: Comm, config: Config | None) -> int:
    """Collective. Print the table and what to mend; return rank 0's exit code: 0 if all is well, else 2."""
    place = comm.place()
    found = Findings()
    _software(found, comm, config)
    _processors(found, place, 1 if config is None else engine_config(config).gpus_per_rank)
    _directory(found, comm, Path("runs") if config is None else config.directory)
    if config is not None:
        _model(found, config)
    _clock(found, comm)
    everyone = [Findings(**said) for said in comm.allgather_object(vars(found))]
    if not comm.is_root:
        return 0
    print(_table(everyone))
    lines = _differences(everyone) + _grouped([findings.problems for findings in everyone])
    lines += shared_gpus([findings.host for findings in everyone], [findings.gpus for findings in everyone])
    print("\n".join(["", *(f"- {line}" for line in lines)]) if lines else "\nall is well")
    return 2 if lines else 0


def _software(found: Findings, comm: Comm, config: Config | None) -> None:
    started_by = launcher()
    found.columns["rank"] = f"{comm.rank} of {comm.size}"
    found.columns["started by"] = started_by.name if started_by else "hand"
    found.columns["MPI"] = comm.library() or "not loaded"
    found.columns["python"] = platform.python_version()
    engines = engine_packages(config)
    versions = installed_versions(engines)
    found.columns |= {name: versions[name] for name in ("torch", *engines) if name in versions}
    found.facts |= {f"version of {name}": text for name, text in versions.items()}
    found.facts |= {"version of python": platform.python_version(), "place of esmpi": str(Path(__file__).parents[1])}
    if config is not None:
        found.problems += engine_config(config).missing()


def _processors(found: Findings, place: Place, per_rank: int) -> None:
    found.host = found.columns["host"] = place.host
    found.columns["cores"] = str(len(place.cores))
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        gpus = [line.split(", ") for line in text.strip().splitlines()]
    except (OSError, subprocess.SubprocessError):
        gpus = []
    if not gpus:
        found.columns |= {"GPUs": "none", "driver": "-"}
        if os.environ.get("SLURM_GPUS_ON_NODE", "0") != "0":
            found.problems.append(
                "Slurm gave this job GPUs, but nvidia-smi finds none: does the container get them (apptainer --nv)?"
            )
        return
    found.columns |= {"GPUs": f"{len(gpus)} x {gpus[0][0]}, {gpus[0][1]}", "driver": gpus[0][2]}
    import torch  # takes seconds: only where there are GPUs

    if per_rank == 0:
        return
    if not torch.cuda.is_available():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        found.problems.append(
            f"there are GPUs, but CUDA_VISIBLE_DEVICES={visible!r} hides them from torch"
            if visible is not None
            else f"there are GPUs (driver {gpus[0][2]}), but torch {torch.__version__} cannot use them: "
            f"install a build of torch for CUDA that is not newer than the driver's"
        )
        return
    num_visible = torch.cuda.device_count()
    if trouble := too_few(num_visible, per_rank, place.num_local_ranks):
        found.problems.append(trouble)
    first = place.local_rank * per_rank if num_visible > per_rank else 0
    own = range(first, min(first + per_rank, num_visible))
    properties = [torch.cuda.get_device_properties(i) for i in own]
    found.gpus = [str(gpu.uuid) for gpu in properties]
    addresses = [address for gpu in properties if (address := pci_address(gpu)) is not None]
    if trouble := far_from_gpus(place.cores, addresses):
        found.problems.append(trouble)
    compiler = os.environ.get("CC") or next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
    if compiler is None or not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        found.problems.append(
            "Triton compiles its kernels' launchers, and needs a C compiler and Python's headers: load a compiler's "
            "module, or install gcc and python3-dev"
        )


def _directory(found: Findings, comm: Comm, directory: Path) -> None:
    """Collective. Rank 0 writes and locks as a run does; the others look whether they see it."""
    found.columns["run directory"] = "not seen"
    with ExitStack() as stack:
        holds = comm.allgather_object(comm.is_root and _hold(found, directory, stack))[0]
        if (directory / _PROBE).exists():
            found.columns["run directory"] = _file_system(directory)
            if holds and not is_locked_elsewhere(directory):
                found.problems.append(
                    f"run.output_dir: {directory} does not keep two processes apart by locks (Lustre: mount with "
                    f"flock): take care that no run is started twice"
                )
        elif holds:
            found.problems.append(
                f"run.output_dir: {directory} is not here what it is for rank 0, and a requeued job may start here: "
                f"choose a shared file system"
            )
        comm.barrier()


def _hold(found: Findings, directory: Path, stack: ExitStack) -> bool:
    """Write into the run directory and lock it until the stack is closed; return whether that worked."""
    stack.callback(_remove_folders, [folder for folder in (directory, *directory.parents) if not folder.is_dir()])
    try:
        with replacing(directory / _PROBE) as temporary:
            temporary.write_text("esmpi doctor")
        stack.callback((directory / _PROBE).unlink)
        used = (directory / ".lock").exists()
        stack.enter_context(locked(directory))
        if not used:
            stack.callback((directory / ".lock").unlink)  # while this process holds it
    except (UserError, OSError) as error:
        found.problems.append(f"run.output_dir: {directory} cannot be written and locked: {error}")
        return False
    return True


def _remove_folders(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # not empty: another process began to use it
            folder.rmdir()


def _file_system(directory: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(directory)], capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def _model(found: Findings, config: Config) -> None:
    try:
        folder = find_model(config.model.path, config.model.revision)
        if folder is None:
            found.columns["model"] = "missing"
            found.problems.append(
                f"model.path: {config.model.path} is not in the Hugging Face cache here: on the login node, run "
                f"`hf download {config.model.path}` with HF_HOME on a shared file system"
            )
            return
        checkpoint = BaseModel(folder)
        for file in {tensor.file for tensor in checkpoint.tensors.values()}:
            with open(file, "rb") as stream:
                stream.read(2**20)
    except (UserError, OSError) as error:
        found.columns["model"] = "unreadable"
        found.problems.append(str(error))
        return
    found.columns["model"] = f"{checkpoint.num_weights:,} weights"
    found.facts["the model's weights"] = f"{checkpoint.num_weights:,}"


def _clock(found: Findings, comm: Comm) -> None:
    """Collective. Compare clocks, to within the milliseconds that a barrier takes to let all go."""
    comm.barrier()
    clocks = comm.allgather_object(time.time())
    ahead = clocks[comm.rank] - clocks[0]
    found.columns["clock"] = f"{ahead:+.2f} s"
    if abs(ahead) > _CLOCK_S:
        found.problems.append(
            f"the clock is {ahead:+.1f} s off rank 0's: times in logs mislead; ask for chrony or ntpd"
        )


def _differences(everyone: list[Findings]) -> list[str]:
    lines = []
    for name in dict.fromkeys(name for findings in everyone for name in findings.facts):
        said: dict[str, list[int]] = {}
        for rank, findings in enumerate(everyone):
            said.setdefault(findings.facts.get(name, "none"), []).append(rank)
        if len(said) > 1:
            parts = "; ".join(f"{text} on ranks {ranks}" for text, ranks in said.items())
            lines.append(f"{name} differs: {parts}. Use one environment on a file system that all nodes share")
    return lines


def _grouped(problems: list[list[str]]) -> list[str]:
    ranks: dict[str, list[int]] = {}
    for rank, texts in enumerate(problems):
        for text in texts:
            ranks.setdefault(text, []).append(rank)
    return [text if len(where) == len(problems) else f"ranks {where}: {text}" for text, where in ranks.items()]


def _table(everyone: list[Findings]) -> str:
    names = list(everyone[0].columns)
    lines = [names, *([findings.columns.get(name, "") for name in names] for findings in everyone)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
