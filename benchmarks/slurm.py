"""
Status of many Slurm jobs: one command for all of them, against a query per session; real Slurm behind a real sshd.

    python benchmarks/slurm.py [--jobs N] [--rounds N]

Both go through the same adapter and the same connection. What differs is what is asked: all jobs of the account at
once, as the adapter does, or `squeue --jobs=ONE` for every session. Without Slurm or sshd on this machine the simulated
login node is asked instead, and the table says so. The last line is JSON.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.contract.system.ssh_world import TIMEOUTS, Login, simulated
from tests.contract.system.ssh_world import slurm as adapter
from tests.servers import slurm, sshd

from moorage.adapters.ssh.slurm import SlurmSystem
from moorage.adapters.ssh.translate import parse_queue
from moorage.core.model import Alive, JobId, Owner, Tag
from moorage.ports.system import Handle
from moorage.simulator.servers.ssh import Account, NodeConfig, Timing

OWNER = Owner("alice")


def tag(number: int) -> Tag:
    return Tag(f"m000bench{number:026d}0001".replace("8", "a").replace("9", "b"))


@contextlib.contextmanager
def real(jobs: int, home: Path) -> Iterator[tuple[Login, str, list[Handle]]]:
    """A private Slurm with held jobs, so that nothing but the questions is measured."""
    with slurm.cluster() as cluster, sshd.server() as server:
        handles = []
        script = home / "held.sh"
        script.write_text("#!/bin/sh\nsleep 60\n")
        for number in range(jobs):
            words = (
                "sbatch",
                "--parsable",
                "--hold",
                f"--job-name={tag(number)}",
                f"--comment={tag(number)}",
                str(script),
            )
            handles.append(Handle(OWNER, tag(number), JobId(cluster.run(*words).strip())))
        login = Login(server.port, server.host_key, server.key_file, server.user)
        yield login, str(cluster.programs), handles


@contextlib.contextmanager
def imitated(jobs: int, home: Path) -> Iterator[tuple[Login, str, list[Handle]]]:
    """The same at the simulated login node, whose commands are threads of one process."""
    config = NodeConfig(accounts=(Account("alice"),), timing=Timing.fast(), execute="virtual")
    with simulated(config) as (running, login):
        handles = []
        for number in range(jobs):
            words = ["sbatch", "--parsable", "--hold", f"--job-name={tag(number)}", "--wrap=true"]
            environment = {**os.environ, "SIM_CONTROL": str(running.directory / "control"), "USER": "alice"}
            done = subprocess.run(
                [str(running.directory / "bin" / words[0]), *words[1:]],
                env=environment,
                capture_output=True,
                check=True,
            )
            handles.append(Handle(OWNER, tag(number), JobId(done.stdout.decode().strip())))
        yield login, str(running.directory / "bin"), handles


async def measure(
    login: Login, programs: str, handles: Sequence[Handle], rounds: int, home: Path
) -> tuple[float, float]:
    """Seconds of one status cycle: in one command, and with a command per session."""
    async with adapter(login, TIMEOUTS, commands=programs, directory=str(home / "jobs")) as system:
        said = await system.observe(handles)  # the connection is made, caches are warm
        assert all(isinstance(said[job.job], Alive) for job in handles)
        together = []
        for _ in range(rounds):
            began = time.perf_counter()
            await system.observe(handles)
            together.append(time.perf_counter() - began)
        return statistics.median(together), await each_alone(system, handles)


async def each_alone(system: SlurmSystem, handles: Sequence[Handle]) -> float:
    login, commands = system._logins.of(OWNER), system._commands
    began = time.perf_counter()
    for job in handles:
        answer = await login.run((*commands.queue(login.account), f"--jobs={job.job}"))
        (row,) = parse_queue(answer.out).rows
        assert row.carries(job.tag)
    return time.perf_counter() - began


def slurm_status(jobs: int = 1_000, rounds: int = 15) -> dict[str, float]:
    """
    The figure `slurm_status_ratio`: how many times cheaper one command is; and what it was made of.

    Raises:
        AssertionError: A job was not told alive, so nothing was measured.
    """
    world, where = real, "Slurm and sshd"
    try:
        slurm.require()
        sshd.require()
    except (slurm.NotInstalled, sshd.NotInstalled) as missing:
        world, where = imitated, f"the simulated login node ({missing})"
    with tempfile.TemporaryDirectory(prefix="moorage-bench-", dir="/tmp") as folder:
        home = Path(folder)
        home.chmod(0o755)
        with world(jobs, home) as (login, programs, handles):
            together, alone = asyncio.run(measure(login, programs, handles, rounds, home))
    print(f"status of {jobs} jobs through {where}, one connection")
    print(f"  one command           {together * 1000:10.1f} ms   (median of {rounds})")
    print(f"  a command per session {alone * 1000:10.1f} ms   ({alone / jobs * 1000:.2f} ms each)")
    return {"slurm_status_ratio": round(alone / together, 1), "jobs": jobs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    print(json.dumps(slurm_status(given.jobs, given.rounds)))
