"""What a run keeps while it goes on, and what is done about a run that was killed."""

import contextlib
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cattrs
from attrs import asdict, frozen

PREFIX = "moorage-"
RECORD_NAME = "run.json"
LOCK_NAME = "run.lock"
RECORD_LIMIT = 65_536
MOST = 10
"""Killed runs that one start looks after; the next start takes the next ones."""


@frozen
class Record:
    """
    Written before a session is asked for and removed when nothing is left of it.

    Args:
        config: Absolute path of the configuration.
        started: When, for people.
    """

    deployment: str
    system: str
    config: str
    simulation: bool
    started: str

    def write(self, folder: Path) -> None:
        (folder / RECORD_NAME).write_text(json.dumps(asdict(self)), "utf-8")


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """
    For what this run keeps; removed at its end unless its record says that something of the session may be left.

    Locked as long as this process lives, however it ends. Its path is short, because a unix socket's has at most
    107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with open(folder / LOCK_NAME, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            if not (folder / RECORD_NAME).exists():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def abandoned(config: Path) -> Iterator[list[tuple[Path, Record]]]:
    """
    Folders of runs with this configuration whose processes are gone, oldest first, locked meanwhile.

    Only folders that nobody else can have made or changed: the folder for temporary files is everybody's.
    """
    with contextlib.ExitStack() as stack:
        found: list[tuple[Path, Record]] = []
        for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"), key=_age):
            record = _read(folder) if len(found) < MOST else None
            if record is not None and record.config == str(config.resolve()) and _locked(folder, stack):
                found.append((folder, record))
        yield found


def _age(folder: Path) -> float:
    try:
        return folder.lstat().st_mtime
    except OSError:
        return 0.0


def _read(folder: Path) -> Record | None:
    """The record of a folder that is ours alone; what another version of moorage left is not understood."""
    try:
        is_now = folder.lstat()
        if not stat.S_ISDIR(is_now.st_mode) or is_now.st_uid != os.getuid() or is_now.st_mode & 0o077:
            return None
        with open(folder / RECORD_NAME, "rb") as file:
            return cattrs.structure(json.loads(file.read(RECORD_LIMIT)), Record)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, cattrs.BaseValidationError):
        return None


def _locked(folder: Path, stack: contextlib.ExitStack) -> bool:
    try:
        lock = stack.enter_context((folder / LOCK_NAME).open("rb+"))
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
