"""Jobs as real local processes, each in a session of its own, killed with everything it started."""

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .execution import Work

marker_name = "UC_SIM_RUN"  # in the environment of everything a job starts; finds what left its session
LOOK_S = 0.1  # between two looks for a script that is not our child
NOBODY = -1  # no process and no session


class ProcessRunner:
    """Runs scripts with bash. `homes` holds one home directory per account, `kill_s` is SIGTERM to SIGKILL."""

    def __init__(self, homes: Path, kill_s: float) -> None:
        self._homes = homes
        self._kill_s = kill_s

    async def run(self, work: Work, started: Callable[[int], None], clean: bool) -> None:
        assert work.script is not None
        marker = _marker(work)
        command = _interpreter(work.script)
        try:
            with _outputs(work) as (stdout, stderr):
                process = await asyncio.create_subprocess_exec(
                    *command,
                    str(work.script),
                    cwd=work.directory,
                    env=self._environment(work) | {marker_name: marker},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    start_new_session=True,
                )
        except OSError:
            return  # a batch system that cannot start the script leaves no exit code
        started(process.pid)
        try:
            await process.wait()
        except asyncio.CancelledError:
            await _kill(process.pid, marker, self._kill_s)
            await process.wait()
            raise
        if clean:
            await _kill(process.pid, marker, self._kill_s)

    async def go_on(self, work: Work, clean: bool) -> None:
        marker = _marker(work)
        leader = next((pid for pid in _members(NOBODY, marker) if _session_of(pid) == pid), NOBODY)
        try:
            while _is_of(leader, leader, marker):  # noqa: ASYNC110 (somebody else's child: nothing tells of its end)
                await asyncio.sleep(LOOK_S)
        except asyncio.CancelledError:
            await _kill(leader, marker, self._kill_s)
            raise
        if clean:
            await _kill(leader, marker, self._kill_s)

    def _environment(self, work: Work) -> dict[str, str]:
        """Nothing of this process's environment reaches a job but the language."""
        home = self._homes / work.user
        home.mkdir(parents=True, exist_ok=True)
        return {
            "HOME": str(home),
            "USER": work.user,
            "LOGNAME": work.user,
            "SHELL": "/bin/bash",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            **dict(work.environment),
        }


def _marker(work: Work) -> str:
    """The same in every process that looks after this run: names of scripts end in random letters."""
    assert work.script is not None
    return f"{work.job_id}.{work.script.name}"


def _interpreter(script: Path) -> list[str]:
    """What the script's first line names."""
    with open(script, encoding="utf-8", errors="replace") as file:
        first_line = file.readline(1000)
    return shlex.split(first_line.removeprefix("#!")) or ["/bin/bash"]


@contextlib.contextmanager
def _outputs(work: Work) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """The files for standard output and standard error."""
    with open(work.directory / work.stdout, "wb") as stdout, open(work.directory / work.stderr, "wb") as stderr:
        yield stdout, stderr


async def _kill(session: int, marker: str, grace_s: float) -> None:
    """SIGTERM to all of a run, SIGKILL to what is left after `grace_s`; returns when nothing is left."""
    deadline = asyncio.get_running_loop().time() + grace_s
    sent = signal.SIGTERM
    known: set[int] = set()
    while alive := set(_members(session, marker)):
        if asyncio.get_running_loop().time() >= deadline:
            sent, known = signal.SIGKILL, set()
        for pid in alive - known:
            try:
                os.kill(pid, sent)
            except ProcessLookupError:
                continue
        known |= alive
        await asyncio.sleep(0.01)


def _members(session: int, marker: str) -> Iterator[int]:
    """
    Live processes of a run: same session, or our marker in the environment they were started with.

    The second finds what called setsid(2); a process that also wiped its environment escapes.
    """
    for name in os.listdir("/proc"):
        if name.isdigit() and _is_of(int(name), session, marker):
            yield int(name)


def _is_of(pid: int, session: int, marker: str) -> bool:
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        if pid == os.getpid() or after_name[0] in (b"Z", b"X"):
            return False
        wanted = f"{marker_name}={marker}".encode()
        return int(after_name[3]) == session or wanted in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return NOBODY
