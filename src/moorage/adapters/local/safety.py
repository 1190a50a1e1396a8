"""Whether files are safe to trust: ours alone, where we think they are, on a file system that can lock."""

import os
import stat
from pathlib import Path


class Unsafe(OSError):
    """A file or directory that others could change, or that is not what it seems; the message is for people."""


NETWORK_FILE_SYSTEMS = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs"}
    | {"lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs"}
)
"""
SQLite in WAL mode shares memory between processes and trusts locks; neither works over a network.

Source: sqlite.org, "Write-Ahead Logging" and "How To Corrupt An SQLite Database File", section 2.
"""


def private_directory(path: Path) -> Path:
    """
    The directory, resolved; made with mode 0700 if it is not there.

    Raises:
        Unsafe: It belongs to somebody else, or others may write into it: they could exchange our files.
        OSError: It cannot be made or looked at.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    real = path.resolve(strict=True)
    refuse_foreign(os.stat(real), real)
    return real


def private_file(path: Path) -> None:
    """
    Have a regular file with mode 0600 that is ours alone; made empty if it is not there. Its directory must be private.

    Raises:
        Unsafe: It is a symbolic link, no regular file, somebody else's, or writable by others.

    A file that is there is not opened: closing it again would take away the locks that SQLite holds on it in this
    process. Source: sqlite.org, "How To Corrupt An SQLite Database File", section 2.2.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        found = os.lstat(path)
        if stat.S_ISLNK(found.st_mode):
            raise Unsafe(f"{path} is a symbolic link; name the file itself") from None
        if not stat.S_ISREG(found.st_mode):
            raise Unsafe(f"{path} is no regular file") from None
        refuse_foreign(found, path)
        if stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o600)  # nobody else could write to it, and from now on nobody else reads it


def refuse_foreign(found: os.stat_result, path: Path) -> None:
    """Raise `Unsafe` if a file or directory is somebody else's, or writable by others."""
    if found.st_uid != os.geteuid():
        raise Unsafe(f"{path} belongs to user {found.st_uid}, and this is user {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise Unsafe(f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o}); take that right away")


def refuse_network(path: Path, mounts: str | None = None) -> None:
    """
    Raise `Unsafe` if a directory is on a network file system, as far as the kernel tells.

    Args:
        mounts: Text in the form of `/proc/self/mountinfo`, for tests.
    """
    kind = file_system(path, _mounts() if mounts is None else mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise Unsafe(f"{path} is on a network file system ({kind}); use a local disk, or PostgreSQL")


def file_system(path: Path, mounts: str) -> str:
    """The kind of the file system that holds a path: that of the deepest mount point above it. Source: proc(5)."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        front, _, back = line.partition(" - ")
        fields = front.split(" ")
        if len(fields) < 5 or not back:
            continue
        point = Path(fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        # A later mount on the same point hides an earlier one.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), back.split(" ")[0]
    return kind


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""  # no Linux: nothing is known
