"""
The vault: what only a job and its tunnel may know, in files that only we can read.

    vault/              0700, ours
      session-<id>/     0700
        gate-<attempt>  the gate secret of one attempt
        lab             the secret variables of its lab, and the name of the file they came from
      kept-<digest>     the secret variables for the next start under one key

Files are written under another name and renamed, mode 0600 from their first byte on. Every name is one that we make,
and is used relative to an open directory, so that no symbolic link leads elsewhere.
"""

import asyncio
import json
import os
import re
import stat
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from moorage.core.model import Owner, SessionId, SessionKey, SessionSpec, SystemName
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unauthorised, Unreachable

from .safety import Unsafe, private_directory, refuse_foreign

TokenSource = Callable[[Owner], Awaitable[Token]]
"""Gives the token of a person at one system; raises `Unauthorised` or `Unreachable` as `Credentials.token` does."""

FILE_LIMIT = 1_048_576
"""Bytes of one file; the secrets of a launch plan have far fewer."""

LOCKS = 64
"""Sessions, and keys, are dealt out to so many locks: those who share one wait for each other's disk."""


class LocalVault:
    """
    Implements the ports `Credentials` and `Vault` in one directory.

    Args:
        directory: Made with mode 0700 if it is not there.
        sources: Where tokens come from, by system. What is added to the mapping later counts, too.

    Raises:
        Unreachable: The directory is unsafe or cannot be used.
    """

    def __init__(self, directory: Path, sources: Mapping[SystemName, TokenSource] | None = None) -> None:
        self._sources: Mapping[SystemName, TokenSource] = {} if sources is None else sources
        self._open = threading.Condition()
        self._under_way = 0
        self._sessions = tuple(threading.Lock() for _ in range(LOCKS))
        self._keys = tuple(threading.Lock() for _ in range(LOCKS))
        try:
            self._root = _open_root(directory)
        except OSError as error:
            raise Unreachable(f"the vault cannot be used: {error}") from error

    def close(self) -> None:
        """Give back the directory once nothing is under way in it. Again is harmless."""
        with self._open:
            root, self._root = self._root, -1
            self._open.wait_for(lambda: not self._under_way)
        if root >= 0:
            os.close(root)

    # Credentials

    async def token(self, owner: Owner, system: SystemName) -> Token:
        """See `Credentials.token`. A system without a source has no credentials: `Unauthorised`."""
        source = self._sources.get(system)
        if source is None:
            raise Unauthorised(f"no credentials are configured for system {system}")
        return await source(owner)

    async def issue(self, spec: SessionSpec, attempt: int) -> None:
        """See `Credentials.issue`. The secret is made once per attempt, the variables are copied once per session."""
        try:
            await self._do(_issue, spec, attempt, lock=self._lock_of(self._sessions, spec.id))
        except OSError as error:
            raise Unreachable(f"the secrets of session {spec.id} cannot be kept: {error}") from error

    async def revoke(self, session: SessionId) -> None:
        """See `Credentials.revoke`. What was kept for its key goes, too, unless it was replaced for a later start."""
        try:
            turn = self._lock_of(self._sessions, session)
            await self._do(_revoke, session, lambda kept: self._lock_of(self._keys, kept), lock=turn)
        except OSError as error:
            raise Unreachable(f"the secrets of session {session} cannot be removed: {error}") from error

    # Vault

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        """See `Vault.gate`. `Unreachable` if it cannot be read now."""
        try:
            data = await self._do(_read, _folder(session), _gate_name(attempt))
        except FileNotFoundError:
            raise KeyError(session, attempt) from None
        except OSError as error:
            raise Unreachable(f"the gate secret of session {session} cannot be read: {error}") from error
        text = data.decode("ascii", "replace")
        if not _GATE.fullmatch(text):
            raise Unreachable(f"the gate secret of session {session} is damaged")
        return Secret(text)

    async def environment(self, session: SessionId) -> Mapping[str, Secret]:
        """See `Vault.environment`. `Unreachable` if it cannot be read now."""
        try:
            data = await self._do(_read, _folder(session), "lab")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unreachable(f"the secrets of session {session} cannot be read: {error}") from error
        variables = _parsed(data).get("environment")
        if not isinstance(variables, dict):
            raise Unreachable(f"the secrets of session {session} are damaged")
        return {name: Secret(str(value)) for name, value in variables.items()}

    async def keep(self, key: SessionKey, environment: Mapping[str, Secret]) -> None:
        """See `Vault.keep`. `Unreachable` if nothing can be kept now."""
        variables = {name: value.reveal() for name, value in environment.items()}
        # The number tells this keeping from a later one with the same content.
        data = _json({"number": os.urandom(16).hex(), "environment": variables})
        kept = _kept_name(key)
        try:
            await self._do(_write, "", kept, data, lock=self._lock_of(self._keys, kept))
        except OSError as error:
            raise Unreachable(f"secrets cannot be kept for {key.owner!a}: {error}") from error

    async def _do(
        self, function: Callable[..., "_Result"], *args: Any, lock: AbstractContextManager[Any] | None = None
    ) -> "_Result":
        """
        In a thread, because the disk may be slow, and to its end even if the caller is cancelled.

        Many starts at once wait for the disk together: each file is durable when this returns, and a hundred starts
        one after the other would wait for a second. Reading needs no lock, because a file is replaced whole.
        """

        def done() -> "_Result":
            with self._open:
                root = self._root
                if root < 0:
                    raise OSError("the vault is closed")
                self._under_way += 1
            try:
                with lock or nullcontext():
                    return function(root, *args)
            finally:
                with self._open:
                    self._under_way -= 1
                    self._open.notify_all()

        return await asyncio.to_thread(done)

    def _lock_of(self, locks: tuple[threading.Lock, ...], name: str) -> threading.Lock:
        """Always the same for a name. Who needs two takes that of the session first."""
        return locks[crc32(name.encode("utf-8", "surrogatepass")) % LOCKS]


_Result = TypeVar("_Result")


# Names: each is made of what it stands for, and of nothing that a path could use --------------------------------------

_ID = re.compile("[a-z2-7]{26}")
_GATE = re.compile("[0-9a-f]{64}")
_KEPT = re.compile("kept-[0-9a-f]{64}")


def _folder(session: SessionId) -> str:
    if not _ID.fullmatch(session):
        raise ValueError(f"{session!a} is no session id")
    return f"session-{session}"


def _gate_name(attempt: int) -> str:
    return f"gate-{int(attempt)}"


def _kept_name(key: SessionKey) -> str:
    """Owners and names may be long and hold anything, so a digest of all three parts, unmistakably apart."""
    return "kept-" + sha256(_json([key.hub, key.owner, key.name])).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=True).encode("ascii")


def _parsed(data: bytes) -> dict[str, Any]:
    """An object, empty if the file holds none: a damaged file must not keep anybody from removing it."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# What is done, with the vault's directory as first argument -----------------------------------------------------------


def _issue(root: int, spec: SessionSpec, attempt: int) -> None:
    folder, gate = _folder(spec.id), _gate_name(attempt)
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700, dir_fd=root)
        os.fsync(root)
    if _exists(root, folder, gate):
        return
    # The variables first: when the gate secret is there, everything is.
    if not _exists(root, folder, "lab"):
        kept = _kept_name(spec.key)
        with suppress(FileNotFoundError):
            _write(root, folder, "lab", _json({"from": kept, **_parsed(_read(root, "", kept))}))
    _write(root, folder, gate, os.urandom(32).hex().encode("ascii"))


def _revoke(root: int, session: SessionId, lock_of: Callable[[str], AbstractContextManager[Any]]) -> None:
    """The secrets first, the directory last: whatever interrupts this, it can be done again."""
    folder = _folder(session)
    try:
        handle = _open_directory(folder, root)
    except FileNotFoundError:
        return
    try:
        with suppress(FileNotFoundError):
            lab = _parsed(_read(root, folder, "lab"))
            kept = str(lab.get("from"))
            if _KEPT.fullmatch(kept):
                with lock_of(kept):  # between the look and the removal nobody may replace it
                    if _parsed(_read(root, "", kept)).get("number") == lab.get("number"):
                        os.unlink(kept, dir_fd=root)
        for name in os.listdir(handle):
            os.unlink(name, dir_fd=handle)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.rmdir(folder, dir_fd=root)
    os.fsync(root)


def _read(root: int, folder: str, name: str) -> bytes:
    directory = _open_directory(folder, root)
    try:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        refuse_foreign(found, Path(name))
        if not stat.S_ISREG(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
            raise Unsafe(f"{name} is no file that only we can read")
        return file.read(FILE_LIMIT)


def _write(root: int, folder: str, name: str, data: bytes) -> None:
    """Whole or not at all, and on the disk when it returns."""
    directory, new = _open_directory(folder, root), f".new-{os.urandom(8).hex()}"
    try:
        handle = os.open(
            new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def _exists(root: int, folder: str, name: str) -> bool:
    try:
        _read(root, folder, name)
    except FileNotFoundError:
        return False
    return True


def _open_directory(folder: str, root: int) -> int:
    """A directory of the vault, the vault itself if `folder` is empty. The caller closes it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(folder or ".", flags, dir_fd=root)
    try:
        refuse_foreign(os.fstat(handle), Path(folder))
    except BaseException:
        os.close(handle)
        raise
    return handle


def _open_root(directory: Path) -> int:
    real = private_directory(directory)
    root = os.open(real, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if stat.S_IMODE(os.fstat(root).st_mode) & 0o077:
            os.fchmod(root, 0o700)
        _remove_unfinished(root)
    except BaseException:
        os.close(root)
        raise
    return root


def _remove_unfinished(root: int) -> None:
    """Files that a process did not finish before it died: they may hold secrets that nobody knows of."""
    for folder in ("", *(name for name in os.listdir(root) if name.startswith("session-"))):
        with suppress(OSError):
            handle = _open_directory(folder, root)
            try:
                for name in os.listdir(handle):
                    if name.startswith(".new-"):
                        os.unlink(name, dir_fd=handle)
            finally:
                os.close(handle)
