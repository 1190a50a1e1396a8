"""The relay's process: one per deployment, found by its control socket, alone by its lock."""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moorage.core.model import SystemName
from moorage.ports.dialer import Dialer

from . import sockets
from .control import LINE_LIMIT, Control
from .gate import Gates
from .server import Relay, Settings

_log = logging.getLogger(__name__)

CONTROL_NAME = "control.sock"
LOCK_NAME = "lock"
LOG_NAME = "relay.log"
WATCH_S = 5.0
"""How often the relay looks whether its directory is still there; without it nobody could find the relay."""
USELESS_S = 600.0
"""A relay without a path and without a client ends after this time. Whoever needs one starts one."""


def directory_of(state_directory: Path) -> Path:
    """Where the relay of a deployment keeps its things."""
    return state_directory / "relay"


class AlreadyRunning(Exception):
    """Another process is the relay of this deployment."""


async def main(
    state_directory: Path, dialers: Mapping[SystemName, Dialer], vault: Gates, settings: Settings | None = None
) -> None:
    """
    Be the relay of a deployment until SIGTERM, SIGINT, a `stop` call, the loss of the directory, or a long time without
    anything to do.

    Paths are rebuilt at their old addresses before the control socket is there. The dialers are closed at the end;
    the ledger stays.

    Raises:
        AlreadyRunning: There is one.
        NotOurs: Others can write to the directory.
    """
    directory = directory_of(state_directory)
    sockets.private_directory(directory)
    _prepare()
    with _lock(directory):
        relay = Relay(directory, dialers, vault, settings)
        try:
            await relay.rebuild()
            # What is there by now stays; looking through all of it again and again is a tenth of what a session costs.
            gc.freeze()
            gc.set_threshold(5_000, 20, 20)  # nor is it looked for cycles with every few connections
            await _serve(directory, relay)
        finally:
            await relay.aclose()
            for dialer in dialers.values():
                await dialer.close()


async def _serve(directory: Path, relay: Relay) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    control = Control(relay, stopped.set)
    file = directory / CONTROL_NAME
    listener = sockets.listen(file)
    ours = _inode(file)
    server = await asyncio.start_unix_server(control.serve, sock=listener, limit=LINE_LIMIT)
    watch = asyncio.create_task(_watch(file, ours, lambda: control.clients > 0 or relay.paths > 0, stopped.set))
    _log.info("relay %s serves %s", os.getpid(), directory)
    try:
        await stopped.wait()
    finally:
        watch.cancel()
        server.close()
        control.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        if _inode(file) == ours:
            file.unlink(missing_ok=True)


async def _watch(file: Path, ours: int | None, busy: Callable[[], bool], stop: Callable[[], None]) -> None:
    """A relay that nobody can find any more would keep listeners for nobody; one that nobody needs just sits there."""
    clock = asyncio.get_running_loop().time
    busy_at = clock()
    while True:
        await asyncio.sleep(WATCH_S)
        if busy():
            busy_at = clock()
        if _inode(file) != ours:
            _log.warning("the control socket is gone or not ours any more: the relay ends")
        elif clock() - busy_at > USELESS_S:
            _log.info("no session has a path, and nobody has asked for a while: the relay ends")
        else:
            continue
        stop()
        return


def _inode(file: Path) -> int | None:
    try:
        return file.stat().st_ino
    except OSError:
        return None


def _prepare() -> None:
    """As many descriptors as we may have, because each path takes several; and no core dumps, for it has secrets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1_048_576 if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Held as long as this process lives, also if it is killed: then the kernel lets go."""
    descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another process is the relay in {directory}") from None
        yield
    finally:
        os.close(descriptor)
