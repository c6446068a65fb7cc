"""A Slurm of one node, run by the current user (root) in a folder of its own."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmdParameters=config_overrides
MpiDefault=none
MinJobAge=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 \
ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def why_not() -> str | None:
    """Why Slurm cannot be run here; None if it can."""
    missing = [name for name in PROGRAMS if _program(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    return None if os.geteuid() == 0 else "needs root, as which its daemons run"


@contextlib.contextmanager
def slurm(folder: Path):
    """Start the daemons, and end them afterwards. Yields the environment of its commands."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    ports = {"controller": _free_port(), "daemon": _free_port()}
    config.write_text(CONFIG.format(host=host, folder=folder, **ports))
    environment = {**os.environ, "SLURM_CONF": str(config)}
    commands = (
        [
            "munged", "--foreground", "--force", f"--key-file={key}",
            f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed",
        ],
        ["slurmctld", "-D", "-c", "-f", str(config)],
        ["slurmd", "-D", "-f", str(config), "-N", host],
    )  # fmt: skip
    running: list[subprocess.Popen] = []
    try:
        for program, *options in commands:
            log = (folder / f"{program}.out").open("wb")
            running.append(
                subprocess.Popen(
                    [_program(program), *options], env=environment, stdout=log, stderr=log
                )
            )
            time.sleep(1)
        _wait(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), 60)
        yield environment
    finally:
        subprocess.run(["scancel", "-u", "root"], env=environment, check=False, timeout=30)
        for process in reversed(running):
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def finished(environment, seconds: float = 300) -> None:
    """Wait until no job is left."""
    _wait(lambda: not _output(["squeue", "-h"], environment).strip(), seconds)


def _output(command, environment) -> str:
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    return found.stdout if found.returncode == 0 else "failed"


def _wait(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("Slurm did not get there")
        time.sleep(0.3)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
