"""The simulated Slurm prints what a real one prints, and ends with the same status: one script of commands in both."""

import getpass
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from tests.servers import slurm

from moorage.simulator.servers.ssh import Account, NodeConfig, Nodes, Partition, Timing, serve

TAG = "m0000demoabcdefghijklmnopqrstuvwxyz0001"
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("sbatch", "--parsable", "--hold", f"--job-name={TAG}", f"--comment={TAG}", "job.sh"),
    ("sbatch", "--hold", "--time=5", "--nodes=2", "job.sh"),
    ("sbatch", "--parsable", "--hold", "--job-name=evil|na\x1fme\nnew line", "--comment=a|b", "--wrap=true"),
    ("sbatch", "--partition=nope", "job.sh"),
    ("sbatch", "--reservation=nope", "job.sh"),
    ("sbatch", "--time=9999", "job.sh"),
    ("sbatch", "--time=abc", "job.sh"),
    ("sbatch", "--bogus", "job.sh"),
    ("sbatch", "nofile"),
    ("sbatch", "plain.txt"),
    ("sbatch", "--wrap=true", "extra"),
    ("squeue", "--noheader", "--sort=i", "--format=%i|%j|%T|%t|%r|%P|%D|%k|%B|%l|%L|%M|%N|%R|%C"),
    ("squeue", "--sort=i", "--format=%.18i %.9P %.8j %.2t %.10M %.6D %R"),
    ("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i\x1f%T\x1f%k\x1f%j\x1e"),
    ("squeue", "--noheader", "--states=RUNNING"),
    ("squeue", "--noheader", "--jobs=999"),
    ("squeue", "--noheader", "--jobs=999,1", "--format=%i"),
    ("squeue", "--noheader", f"--name={TAG}", "--format=%i"),
    ("squeue", "--noheader", "--user=nosuchuser"),
    ("squeue", "--bogus"),
    ("scontrol", "--oneliner", "show", "job", "999"),
    ("scontrol", "hold", "999"),
    ("scontrol", "bogus"),
    ("scontrol", "--oneliner", "show", "reservation"),
    ("scancel", "999"),
    ("scancel", "abc"),
    ("scancel", "--name=another", "1"),
    ("squeue", "--noheader", "--jobs=1", "--format=%i %T"),
    ("scancel", "1"),
    ("scancel", "1"),
    ("scancel", "--signal=KILL", "1"),
    ("scontrol", "hold", "1"),
    ("squeue", "--noheader", "--states=all", "--sort=i", "--format=%i %T %t"),
    ("sinfo", "--noheader", "--format=%R|%a|%l|%F|%D|%c|%m|%G"),
    ("sinfo", "--noheader", "--format=%P|%t|%N"),
    ("sinfo", "--noheader", "--partition=devel", "--format=%R %D"),
    ("sinfo", "--bogus"),
    ("sacct", "--noheader"),
    ("sacctmgr", "--noheader", "--parsable2", "show", "associations"),
)


@frozen
class Said:
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Said]]:
    try:
        slurm.require()
    except slurm.NotInstalled as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    with slurm.cluster() as cluster:
        yield transcript(tmp_path_factory.mktemp("real"), dict(cluster.environment))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Said]]:
    user = getpass.getuser()
    config = NodeConfig(
        accounts=(Account(user, accounts=()),),
        nodes=Nodes(4, 16, 1000),
        partitions=(Partition("batch", 0, 60, 10), Partition("devel", 1, 10, 10)),
        accounting=False,
        timing=Timing.fast(),
    )
    with serve(config) as node:
        environment = {
            "PATH": f"{node.directory / 'bin'}:/usr/bin:/bin",
            "SIM_CONTROL": str(node.directory / "control"),
            "USER": user,
        }
        yield transcript(tmp_path_factory.mktemp("simulated"), environment)


def transcript(directory: Path, environment: dict[str, str]) -> list[Said]:
    (directory / "job.sh").write_text("#!/bin/sh\nsleep 60\n")
    (directory / "plain.txt").write_text("echo no interpreter\n")
    found = []
    for words in COMMANDS:
        done = subprocess.run(
            words, cwd=directory, env=environment, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
        )
        found.append(Said(done.returncode, _normal(done.stdout), _normal(done.stderr)))
    return found


def _normal(text: str) -> str:
    """Without blanks at the ends of lines, which no parser of ours looks at."""
    return re.sub(r"[ \n]+\n", "\n", text + "\n").strip("\n")


@pytest.mark.parametrize(
    "index", range(len(COMMANDS)), ids=[f"{n}-{' '.join(w)[:50]!a}" for n, w in enumerate(COMMANDS)]
)
def test_both_say_the_same(real: list[Said], simulated: list[Said], index: int) -> None:
    assert simulated[index] == real[index]
