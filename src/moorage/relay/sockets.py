"""Unix sockets in a directory of our own, whatever the length of its path."""

import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class NotOurs(Exception):
    """A directory that is not ours alone: whoever can write there could listen in our place."""


def private_directory(directory: Path) -> None:
    """
    Make the directory, or check it: ours, 0700, no link.

    Raises:
        NotOurs: It is there and is not that.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise NotOurs(f"{directory} is not a directory of ours")
    if status.st_mode & 0o077:
        raise NotOurs(f"{directory} has mode {status.st_mode & 0o777:o}; others must not get in: make it 700")


def listen(file: Path) -> socket.socket:
    """A socket that listens there, 0600; one that a dead process left is replaced."""
    file.unlink(missing_ok=True)

    def bind(listener: socket.socket, address: str) -> None:
        listener.bind(address)
        file.chmod(0o600)
        listener.listen(128)

    return _made(file, bind)


def connect(file: Path) -> socket.socket:
    """
    A socket that is connected to the one that listens there.

    Raises:
        OSError: Nobody listens; `BlockingIOError` if the queue is full, as that of a process that is stopped.
    """
    return _made(file, socket.socket.connect)


def _made(file: Path, use: Callable[[socket.socket, str], None]) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        with _short(file) as address:
            use(made, address)
    except BaseException:
        made.close()
        raise
    return made


@contextmanager
def _short(file: Path) -> Iterator[str]:
    """The same file by way of its directory's descriptor: `sockaddr_un` holds 107 bytes (unix(7))."""
    directory = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{file.name}"
    finally:
        os.close(directory)
