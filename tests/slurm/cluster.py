"""A real Slurm of four virtual nodes on this machine, without systemd; needs root and Debian's packages.

By hand: python tests/slurm/cluster.py FOLDER up, then export SLURM_CONF=FOLDER/slurm.conf; ... down at the end.
"""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
NODES = 4

# Nodes say they have more than this machine, so that the job scripts can ask for what they ask for on a cluster.
CONFIG = """
ClusterName=esmpi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A job is requeued when its credential has expired: 2 minutes by default.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
MpiDefault=pmi2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=2,sched_min_interval=0,batch_sched_delay=0
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
# Other clusters on this machine, and this one the last time, have other numbers.
FirstJobId={first_job}
SlurmdTimeout=10
KillWait=10
CompleteWait=0
InactiveLimit=0
JobRequeue=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
{nodes}
PartitionName=debug Nodes=ALL Default=YES State=UP
"""
NODE = (
    "NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 Sockets=1 CoresPerSocket=64 "
    "ThreadsPerCore=1 RealMemory=256000 Gres=gpu:8"
)


class Cluster:
    """The daemons of a cluster; all their files are in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = folder / "slurm.conf"

    def up(self) -> None:
        """Start the daemons and wait until all nodes are idle."""
        for name in ("munge", "state", *(f"{name}/node{i}" for name in ("spool", "tmp") for i in range(1, NODES + 1))):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        munge = self.folder / "munge"
        munge.chmod(0o711)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o400)
        ports, host = free_ports(NODES + 1), socket.gethostname().partition(".")[0]
        nodes = "\n".join(NODE.format(i=i, host=host, port=ports[i]) for i in range(1, NODES + 1))
        names = {"host": host, "folder": self.folder, "ports": ports, "nodes": nodes}
        self.config.write_text(CONFIG.format(**names, first_job=secrets.randbelow(10**6) + 1))
        for i in range(8):  # Slurm wants device files of its GPUs, and never opens these: they are twins of /dev/null
            os.mknod(self.folder / f"gpu{i}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (self.folder / "gres.conf").write_text(f"NodeName=node[1-{NODES}] Name=gpu File={self.folder}/gpu[0-7]\n")
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.call("munged", "--force", *(f"--{option}={munge / name}" for option, name in files.items()))
        self.call("slurmctld")
        for i in range(1, NODES + 1):
            self.call("slurmd", "-N", f"node{i}")
        deadline = time.monotonic() + 30
        while self.call("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split() != [
            f"node{i}" for i in range(1, NODES + 1)
        ]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nodes are not idle: {self.call('sinfo')}; see the logs in {self.folder}")
            time.sleep(0.1)

    def down(self) -> None:
        """End all jobs and daemons."""
        subprocess.run(["scancel", "--user=root"], env=os.environ | {"SLURM_CONF": str(self.config)}, timeout=60)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.call("squeue", "--noheader"):
            time.sleep(0.2)
        for file in (*self.folder.glob("slurmd.*.pid"), self.folder / "slurmctld.pid", self.folder / "munge" / "pid"):
            stop(file)

    def call(self, *command: object, timeout_s: float = 60) -> str:
        """Run a command and return what it printed; RuntimeError if it fails."""
        done = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"SLURM_CONF": str(self.config)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout


def missing_programs() -> list[str]:
    """Return the programs that a cluster needs and this machine does not have."""
    return [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def stop(pid_file: Path) -> None:
    """End the process of a file with its number and wait until it is gone."""
    try:
        pid = int(pid_file.read_text())
    except (OSError, ValueError):
        return
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        deadline = time.monotonic() + patience_s
        try:
            os.kill(pid, number)
            while time.monotonic() < deadline and not ended(pid):
                time.sleep(0.05)
        except ProcessLookupError:
            return
        if ended(pid):
            return


def ended(pid: int) -> bool:
    """Return whether a process is gone, or dead and only not yet noticed by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


if __name__ == "__main__":
    cluster = Cluster(Path(sys.argv[1]).resolve())
    {"up": cluster.up, "down": cluster.down}[sys.argv[2]]()
