"""
A private Slurm for the tests: a controller and four nodes on this machine, from Debian's packages.

Needs root, because slurmd starts jobs as their owners. Everything is in one directory and listens on 127.0.0.1.

Source: slurm.conf(5); measured on Slurm 22.05.8: up in 50 ms. `MinJobAge` of at least 2 s is obeyed.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

PACKAGES = "munge slurmctld slurmd slurm-client"
PROGRAMS = ("mungekey", "munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "sinfo")

_CONFIGURATION = """\
ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/pid/slurmctld
SlurmdPidFile={home}/pid/%n
SlurmctldLogFile={home}/log/slurmctld
SlurmdLogFile={home}/log/%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
ReturnToService=2
EnforcePartLimits=ALL
KillWait=2
MinJobAge=300
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{last}] CPUs=16 RealMemory=1000
PartitionName=batch Nodes=n[1-4] Default=YES MaxTime=60 DefaultTime=10 State=UP
PartitionName=devel Nodes=n1 MaxTime=10 State=UP
"""


class NotInstalled(Exception):
    """What is missing; the text names the packages."""


@frozen
class Slurm:
    """A running cluster. `programs` is a directory of its commands, for who does not have its environment."""

    home: Path
    environment: Mapping[str, str]
    programs: Path

    def run(self, *command: str, check: bool = True) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=30, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def pids(self, name: str = "") -> list[int]:
        """The daemons, or one of them: `slurmctld`, `n1` to `n4`."""
        return [int(path.read_text()) for path in sorted((self.home / "pid").glob(name or "*"))]


def require() -> None:
    """Raises `NotInstalled` where there can be no private Slurm."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        raise NotInstalled(f"no {missing[0]} (Debian: apt-get install {PACKAGES})")
    if os.geteuid() != 0:
        raise NotInstalled("a private Slurm needs root")


@contextlib.contextmanager
def cluster() -> Iterator[Slurm]:
    """
    A cluster that takes jobs of every user of this machine.

    Raises:
        NotInstalled: Not on this machine.
        RuntimeError: It did not come up; the text has the end of its log.
    """
    require()
    # Others must be able to enter, or their squeue does not reach munge's socket.
    home = Path(tempfile.mkdtemp(prefix="moorage-slurm-", dir="/tmp"))
    home.chmod(0o755)
    for name in ("munge", "state", "log", "pid", "bin", *(f"spool/n{number}" for number in range(1, 5))):
        (home / name).mkdir(parents=True, mode=0o755)
    started: list[subprocess.Popen[bytes]] = []
    try:
        made = _start(home, started)
        yield made
        _end_jobs(made)
    finally:
        _stop(started)
        shutil.rmtree(home, ignore_errors=True)


def _start(home: Path, started: "list[subprocess.Popen[bytes]]") -> Slurm:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
    environment = {"SLURM_CONF": str(home / "slurm.conf"), "PATH": path}
    ports = _free_ports(5)
    text = _CONFIGURATION.format(host=socket.gethostname(), home=home, ports=ports, last=ports[-1])
    (home / "slurm.conf").write_text(text)
    munge = home / "munge"
    subprocess.run(["mungekey", "--create", "--keyfile", munge / "key"], check=True, env={"PATH": path})

    def start(*command: str | Path) -> None:
        log = (home / "log" / "start").open("ab")
        with log:
            # With a test that is killed they end as well.
            words = ("setpriv", "--pdeathsig=KILL", *command)
            started.append(subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))

    start(
        *("munged", "--foreground", "--force", f"--key-file={munge / 'key'}", f"--socket={munge / 'socket'}"),
        *(f"--pid-file={munge / 'pid'}", f"--log-file={munge / 'log'}", f"--seed-file={munge / 'seed'}"),
    )
    _wait(home, lambda: (munge / "socket").exists())
    start("slurmctld", "-D", "-f", home / "slurm.conf")
    for number in range(1, 5):
        start("slurmd", "-D", "-N", f"n{number}", "-f", home / "slurm.conf")
    made = Slurm(home, environment, _programs(home))
    _wait(home, lambda: made.run("sinfo", "-h", "-p", "batch", "-o", "%D %t", check=False).strip() == "4 idle")
    return made


def _programs(home: Path) -> Path:
    """Commands that find this cluster by themselves. While a file `lose` is there, sbatch answers nothing in time."""
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr"):
        path = home / "bin" / name
        lose = (
            f'[ -e {home}/lose ] && {{ /usr/bin/{name} "$@" >/dev/null; exec sleep 4; }}\n' if name == "sbatch" else ""
        )
        path.write_text(f'#!/bin/sh\nexport SLURM_CONF={home}/slurm.conf\n{lose}exec /usr/bin/{name} "$@"\n')
        path.chmod(0o755)
    return home / "bin"


def _free_ports(count: int) -> list[int]:
    """Ports in a row that were free a moment ago, below those that the kernel gives to connections."""
    first = 20_000 + os.getpid() % 1000 * 10
    for base in range(first, first + 400, 10):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return list(range(base, base + count))
    raise RuntimeError("no free ports for Slurm")


def _wait(home: Path, true: "object", seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted((home / "log").glob("s*")))
            raise RuntimeError(f"Slurm does not come up:\n{logs}")
        time.sleep(0.02)


def _end_jobs(made: Slurm) -> None:
    """Killed daemons leave their jobs running, so the jobs go first."""
    numbers = re.findall(r"^[0-9]+", made.run("squeue", "-h", "-o", "%A", check=False), re.MULTILINE)
    if numbers:
        made.run("scancel", "--signal=KILL", "--full", *numbers, check=False)
        made.run("scancel", *numbers, check=False)
        until = time.monotonic() + 10
        while made.run("squeue", "-h", check=False).strip() and time.monotonic() < until:
            time.sleep(0.1)


def _stop(started: "list[subprocess.Popen[bytes]]") -> None:
    # All at once: each needs up to two seconds. There is nothing that would be lost by killing them.
    for process in reversed(started):
        process.send_signal(signal.SIGCONT)
        process.terminate()
    until = time.monotonic() + 2.5
    for process in reversed(started):
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
