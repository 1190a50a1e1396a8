"""SFTP of the simulated login node: the account's home and whatever else is on this machine, as sshd gives it."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
from paramiko import SFTP_FAILURE, SFTP_OK

from .faults import Faults


class Files(paramiko.SFTPServerInterface):  # type: ignore[misc]  # paramiko has no types
    """
    One SFTP session. Relative paths begin in the home directory, which is known once the login is over.

    Like OpenSSH's server it follows links where a real program would, and answers errors of the system as they are.
    """

    def __init__(self, server: Any, home: Callable[[], Path], faults: Faults, largest: int) -> None:
        super().__init__(server)
        self._home = home()
        self._faults = faults
        self._largest = largest

    def _path(self, path: str) -> str:
        return os.path.join(self._home, path)

    def canonicalize(self, path: str) -> str:
        return os.path.normpath(self._path(path))

    def list_folder(self, path: str) -> Any:
        try:
            with os.scandir(self._path(path)) as entries:
                return [paramiko.SFTPAttributes.from_stat(e.stat(follow_symlinks=False), e.name) for e in entries]
        except OSError as error:
            return _answer(error)

    def stat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(self._path(path)))
        except OSError as error:
            return _answer(error)

    def lstat(self, path: str) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(self._path(path)))
        except OSError as error:
            return _answer(error)

    def open(self, path: str, flags: int, attr: Any) -> Any:
        if self._faults.draw("sftp"):
            return SFTP_FAILURE
        mode = 0o666 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        try:
            # A pipe must not hold up the session for ever.
            number = os.open(self._path(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode & 0o755)
        except OSError as error:
            return _answer(error)
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        file = os.fdopen(number, ("r+b" if flags & os.O_RDWR else "wb") if writes else "rb", buffering=0)
        handle = _Handle(flags, self._largest)
        handle.filename, handle.readfile, handle.writefile = self._path(path), file, file
        return handle

    def remove(self, path: str) -> int:
        return _done(lambda: os.remove(self._path(path)))

    def rename(self, oldpath: str, newpath: str) -> int:
        if os.path.lexists(self._path(newpath)):
            return int(SFTP_FAILURE)
        return _done(lambda: os.rename(self._path(oldpath), self._path(newpath)))

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return _done(lambda: os.replace(self._path(oldpath), self._path(newpath)))

    def mkdir(self, path: str, attr: Any) -> int:
        mode = 0o777 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        return _done(lambda: os.mkdir(self._path(path), mode & 0o755))

    def rmdir(self, path: str) -> int:
        return _done(lambda: os.rmdir(self._path(path)))

    def chattr(self, path: str, attr: Any) -> int:
        return _done(lambda: paramiko.SFTPServer.set_file_attr(self._path(path), attr))

    def readlink(self, path: str) -> Any:
        try:
            return os.readlink(self._path(path))
        except OSError as error:
            return _answer(error)

    def symlink(self, target_path: str, path: str) -> int:
        return _done(lambda: os.symlink(target_path, self._path(path)))


class _Handle(paramiko.SFTPHandle):  # type: ignore[misc]  # paramiko has no types
    filename: str
    readfile: Any
    writefile: Any

    def __init__(self, flags: int, largest: int) -> None:
        super().__init__(flags)
        self._largest = largest

    def write(self, offset: int, data: bytes) -> Any:
        if offset + len(data) > self._largest:
            return SFTP_FAILURE
        return super().write(offset, data)

    def stat(self) -> Any:
        try:
            return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))
        except OSError as error:
            return _answer(error)

    def chattr(self, attr: Any) -> int:
        return _done(lambda: paramiko.SFTPServer.set_file_attr(self.filename, attr))


def _done(work: Any) -> int:
    try:
        work()
    except OSError as error:
        return _answer(error)
    return int(SFTP_OK)


def _answer(error: OSError) -> int:
    return int(paramiko.SFTPServer.convert_errno(error.errno))
