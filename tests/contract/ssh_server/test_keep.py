"""A login node that is killed and started again, as somebody who logs in sees it: its cluster went on meanwhile."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest
from attrs import define

from moorage.simulator.servers.ssh import NodeConfig, serve
from moorage.simulator.servers.ssh.cluster import MARKER, marked
from moorage.simulator.servers.ssh.config import from_data

CONFIG = """\
accounts: [{name: alice}]
nodes: {count: 2, cores: 1}
partitions: [{name: batch}]
timing: fast
keep: true
"""
COUNTS = "#!/bin/sh\necho $$ >>began\nn=0\nwhile :; do n=$((n+1)); echo $n >>count; sleep 0.1; done\n"


@define
class Server:
    """The node as a process of its own."""

    directory: Path
    process: "subprocess.Popen[str]"
    port: int

    @property
    def home(self) -> Path:
        return self.directory / "homes" / "alice"

    def run(self, line: str) -> str:
        with contextlib.closing(paramiko.Transport(socket.create_connection(("127.0.0.1", self.port), 5))) as transport:
            transport.start_client(timeout=5)
            transport.auth_publickey("alice", paramiko.PKey.from_path(str(self.directory / "id_ed25519")))
            channel = transport.open_session(timeout=5)
            channel.settimeout(20)
            channel.exec_command(line)
            data = bytearray()
            while piece := channel.recv(65_536):
                data += piece
            return data.decode()

    def submit(self, text: str, *options: str) -> int:
        (self.home / "job.sh").write_text(text)
        return int(self.run(f"sbatch --parsable {' '.join(options)} job.sh"))

    def squeue(self) -> str:
        return self.run("squeue -h -S i -o '%i %T'")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Starts the node in always the same directory; whatever becomes of it, no process is left."""
    directory, begun = tmp_path / "node", list[Server]()
    (tmp_path / "site.yaml").write_text(CONFIG)
    program = (
        "from pathlib import Path; from moorage.simulator.servers.ssh import main_serve;"
        f"main_serve(directory=Path({str(directory)!r}), config=Path({str(tmp_path / 'site.yaml')!r}))"
    )

    def start() -> Server:
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        begun.append(Server(directory, process, int(first.rpartition(":")[2] or 0)))
        assert first, "it did not start"
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        return begun[-1]

    try:
        yield start
    finally:
        for server in begun:
            server.kill()
            assert server.process.stdout is not None
            server.process.stdout.close()
        for pid in of_jobs(directory):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def of_jobs(directory: Path) -> list[int]:
    """Processes of any server in this directory."""
    told = f"SIM_CONTROL={directory / 'control'}".encode()
    found = []
    for pid in marked(""):
        with contextlib.suppress(OSError):
            if told in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_jobs_go_on_while_their_server_is_dead(start: Callable[[], Server]) -> None:
    """One runs, one ends meanwhile, one waits; the next server knows all three, and ends them when it is told to."""
    server = start()
    counting = server.submit(COUNTS)
    ending = server.submit("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.02; done\nexit 7\n")
    waiting = server.submit("#!/bin/sh\nsleep 1000\n")
    until(lambda: server.squeue() == f"{counting} RUNNING\n{ending} RUNNING\n{waiting} PENDING\n")
    until(lambda: len(lines(server.home / "count")) > 3)
    server.kill()

    (server.home / "go").touch()
    reached = len(lines(server.home / "count"))
    until(lambda: len(lines(server.home / "count")) > reached + 3)
    until(lambda: not list(marked_by(server, ending)))

    server = start()
    until(lambda: server.squeue() == f"{counting} RUNNING\n{waiting} RUNNING\n")
    assert server.run(f"sacct -nPX -j {ending} -o jobid,state,exitcode") == f"{ending}|FAILED|7:0\n"
    reached = len(lines(server.home / "count"))
    until(lambda: len(lines(server.home / "count")) > reached + 3)
    counted = lines(server.home / "count")
    assert counted == [str(number) for number in range(1, len(counted) + 1)]
    assert len(lines(server.home / "began")) == 1
    # A new one has a number of its own, and its script does not take the place of another's.
    assert server.submit(COUNTS, "--hold") == waiting + 1

    server.run(f"scancel {counting}")
    until(lambda: f"{counting} " not in server.squeue())
    assert not list(marked_by(server, counting))
    assert "CANCELLED" in server.run(f"sacct -nPX -j {counting} -o state")

    server.end()
    assert of_jobs(server.directory) == []
    assert not (server.directory / "spool" / "kept").exists()
    # It was told to end: what waited is gone, and numbers begin anew.
    server = start()
    assert server.squeue() == ""
    assert server.submit("#!/bin/sh\nexit 0\n") == 1
    server.end()


def test_an_adopted_job_ends_by_itself_and_by_its_limit(start: Callable[[], Server]) -> None:
    """What a script says after its server was killed counts, also when it was asked to end; so do walltimes."""
    server = start()
    tidy = server.submit("#!/bin/sh\ntrap 'echo tidied >tidy; exit 3' TERM\n:>ready\nwhile :; do sleep 0.05; done\n")
    until((server.home / "ready").exists)
    failing = server.submit("#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.02; done\nsetsid sleep 1000 &\nexit 5\n")
    until(lambda: f"{failing} RUNNING" in server.squeue())
    server.kill()

    server = start()
    (server.home / "go").touch()
    until(lambda: f"{failing} " not in server.squeue())
    assert server.run(f"sacct -nPX -j {failing} -o state,exitcode") == "FAILED|5:0\n"
    assert not list(marked_by(server, failing))
    endless = server.submit("#!/bin/sh\nsleep 1000\n", "--time=0:02")
    until(lambda: f"{endless} RUNNING" in server.squeue())
    server.kill()

    server = start()
    until(lambda: f"{endless} " not in server.squeue())
    assert server.run(f"sacct -nPX -j {endless} -o state") == "TIMEOUT\n"
    server.run(f"scancel {tidy}")
    until(lambda: f"{tidy} " not in server.squeue())
    assert lines(server.home / "tidy") == ["tidied"]
    assert server.run(f"sacct -nPX -j {tidy} -o exitcode") == "3:0\n"
    server.end()


def test_a_job_that_is_killed_while_its_server_is_dead_has_failed(start: Callable[[], Server]) -> None:
    """It said no code. Neither does it begin again."""
    server = start()
    job = server.submit(COUNTS)
    until(lambda: len(lines(server.home / "count")) > 1)
    server.kill()
    for pid in marked_by(server, job):
        os.kill(pid, signal.SIGKILL)
    server = start()
    until(lambda: server.squeue() == "")
    assert server.run(f"sacct -nPX -j {job} -o state,exitcode") == "FAILED|137:0\n"
    assert len(lines(server.home / "began")) == 1
    server.end()


def test_a_server_that_is_killed_again_and_again(start: Callable[[], Server]) -> None:
    """Every job that somebody was told of begins once and ends with what it said."""
    told = list[int]()
    for code in range(3):
        server = start()
        told.append(server.submit(f"#!/bin/sh\necho $SLURM_JOB_ID >>began\nsleep 0.1\nexit {code}\n"))
        server.kill()
    server = start()
    until(lambda: server.squeue() == "")
    assert server.run("sacct -nPX -o jobid,exitcode") == "".join(f"{job}|{job - 1}:0\n" for job in told)
    assert sorted(lines(server.home / "began")) == [str(job) for job in told]
    server.end()


def test_a_script_is_the_leader_of_its_session(start: Callable[[], Server]) -> None:
    """As with Slurm, so that `kill 0` and the like end the job's own processes, and the code is kept all the same."""
    server = start()
    job = server.submit("#!/bin/sh\nps -o pid=,sid= -p $$ >ids\nsleep 1000 &\nkill -TERM 0\nsleep 1000\n")
    until(lambda: server.squeue() == "" and (server.home / "ids").exists())
    pid, sid = (server.home / "ids").read_text().split()
    assert pid == sid
    assert server.run(f"sacct -nPX -j {job} -o state,exitcode") == f"FAILED|{128 + signal.SIGTERM}:0\n"
    server.end()


def marked_by(server: Server, job: int) -> Iterator[int]:
    for pid in of_jobs(server.directory):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(each.startswith(f"{MARKER}=".encode()) and f"-{job}-".encode() in each for each in environment):
                yield pid


# Refusals ------------------------------------------------------------------------------------------------------


def test_two_servers_do_not_keep_jobs_in_one_directory(tmp_path: Path) -> None:
    with (
        serve(NodeConfig(keep=True), directory=tmp_path),
        pytest.raises(ValueError, match="used by another server"),
        serve(NodeConfig(keep=True), directory=tmp_path),
    ):
        pass


def test_jobs_are_kept_only_where_they_are_found_again() -> None:
    with pytest.raises(ValueError, match="directory"), serve(NodeConfig(keep=True)):
        pass


def test_jobs_that_only_pass_time_are_not_kept() -> None:
    with pytest.raises(ValueError, match="keep: only jobs that are processes"):
        from_data({"keep": True, "execute": "virtual"})


@pytest.mark.parametrize(("mode", "text"), [(0o666, "by others"), (0o600, "cannot be read")])
def test_a_state_that_is_not_ours_is_not_believed(tmp_path: Path, mode: int, text: str) -> None:
    """The message names the file; jobs and file are left as they are."""
    kept = tmp_path / "spool" / "kept"
    kept.mkdir(parents=True)
    (kept / "state").write_bytes(b"cos\nsystem\n")
    (kept / "state").chmod(mode)
    with pytest.raises(ValueError, match=f"kept/state.* {text}"), serve(NodeConfig(keep=True), directory=tmp_path):
        pass
    assert (kept / "state").exists()
