"""
What outlives a server that is killed (`keep` in the configuration): the batch system's state, and how its jobs ended.

On a real cluster slurmctld, slurmd and the jobs are processes of their own, and none of them falls with the login
node. Here one process is both, so it writes down what it knows and the next one reads it.
"""

import contextlib
import fcntl
import os
import pickle
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from moorage.simulator.batch import BatchSystem

if TYPE_CHECKING:
    from .cluster import Work

KILLED = 137
"""What a job ends with that could not say it: 128 and the number of SIGKILL, as a shell has it."""

_VERSION = version("moorage")

_WRAPPER = """\
trap : HUP INT TERM
: >"$0.begun"
"$@"
echo $? >"$0"
"""
"""
Runs a script and writes its exit code into the file `$0`.

Whoever waits for the script after a new start is not its parent, and the kernel tells the code to nobody else. The
trap keeps a signal for all processes of the job from ending this one before the script; a trap with a command in it
is not passed on to the script. The file need not be written at one go: nobody looks before this shell has gone.
"""


class CannotGoOn(ValueError):
    """What was kept is of no use; the text says why and which file to remove."""


@frozen
class State:
    """Of a cluster. The present time is not in it, see `BatchSystem.__getstate__`."""

    marker: str
    batch: BatchSystem
    works: Mapping[int, "Work"]


@define(eq=False)
class Kept:
    """A directory with the file `state`, and the files `JOB-RUN` with exit codes; ours alone, gone with `remove`."""

    directory: Path
    _written: bytes = field(init=False, default=b"")

    def load(self) -> State | None:
        """
        What another server has kept here; without anything the directory is made, empty.

        Raises:
            CannotGoOn: It was not written by this user, or by another version.
        """
        try:
            with open(self._state, "rb") as file:
                about = os.fstat(file.fileno())
                data = file.read()
        except FileNotFoundError:
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(mode=0o700, parents=True)
            return None
        # Reading a pickle runs what is in it. It may be believed because only we can have written it: the file is
        # ours and closed to everybody else, and whoever writes as us may run what they like anyway.
        if about.st_uid != os.getuid() or about.st_mode & 0o077:
            raise CannotGoOn(f"{self._state} may have been written by others; remove it to begin anew")
        try:
            wrote, state = pickle.loads(data)  # noqa: S301 (see above)
        except Exception as error:  # a pickle fails with anything
            raise CannotGoOn(f"{self._state} cannot be read; remove it to begin anew") from error
        if wrote != _VERSION or not isinstance(state, State):
            raise CannotGoOn(f"{self._state} was written by another version; remove it to begin anew")
        self._written = data
        return state

    def save(self, state: State) -> None:
        """
        Write the state if it is another one than before; a reader finds the old one or the new one, whole.

        Raises:
            OSError: It was not written, the one before is still there.
        """
        data = pickle.dumps((_VERSION, state))
        if data == self._written:
            return
        new = self.directory / "state.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
        os.replace(new, self._state)
        self._written = data

    def remove(self) -> None:
        """Afterwards a new start begins anew."""
        # First, so that nobody goes on with half of it.
        self._state.unlink(missing_ok=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def wrapped(self, run: str, command: Sequence[str]) -> list[str]:
        """A command that runs the given one, as the leader of a session, and keeps its exit code."""
        # As with Slurm: the script's own session is without what looks after it.
        setsid = shutil.which("setsid", path="/usr/bin:/bin")
        return ["/bin/sh", "-c", _WRAPPER, str(self._file(run)), *([setsid] if setsid else []), *command]

    def has_begun(self, run: str) -> bool:
        """Whether its script was started, ever."""
        return self._file(run).with_name(f"{run}.begun").exists()

    def code(self, run: str) -> int:
        """How a run ended whose wrapper has gone."""
        try:
            return int(self._file(run).read_text())
        except (FileNotFoundError, ValueError):
            return KILLED

    def leader(self, run: str, processes: Iterator[int]) -> int | None:
        """Which of the processes is the run's wrapper; None if it has gone."""
        return next((pid for pid in processes if self._is_wrapper(pid, run)), None)

    def wait(self, run: str, pid: int | None) -> int:
        """Wait for a wrapper that is not our child, unless it has gone already; the exit code."""
        while pid is not None and self._is_wrapper(pid, run):
            time.sleep(0.05)
        return self.code(run)

    @property
    def _state(self) -> Path:
        return self.directory / "state"

    def _file(self, run: str) -> Path:
        return self.directory / run

    def _is_wrapper(self, pid: int, run: str) -> bool:
        # The number of a process may be used again; its command tells. That of a zombie is empty.
        with contextlib.suppress(OSError):
            return os.fsencode(self._file(run)) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:4]
        return False


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """
    Held while a server keeps its jobs here: two would end each other's.

    Raises:
        CannotGoOn: Another process holds it.
    """
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotGoOn(f"{directory} is used by another server") from None
        yield


__all__ = ["KILLED", "CannotGoOn", "Kept", "State", "alone"]
