"""
The way in without the ssh program: one connection, a channel for each stream.

Large windows make it the fastest way over a long distance; beside bulk traffic its small requests are slow, because
all of it is one interpreter's threads.
"""

import asyncio
import contextlib
import socket
from asyncio import StreamReader, StreamWriter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from moorage.core.model import Endpoint, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import PortError
from moorage.ports.system import Handle

from .hosts import destination
from .plugin import ParamikoConfig

if TYPE_CHECKING:  # paramiko and what it needs are 17 MiB, which a relay without such a stream does without
    from .client import Login
    from .paramiko_line import Line

OPENING = 32
"""Channels that are being opened at the same time; each waits in a thread."""


class ParamikoDialer:
    """Streams through login nodes. One connection at a time, made when it is needed, replaced when it is lost."""

    def __init__(self, system: SystemName, config: ParamikoConfig, timeouts: Timeouts, seed: int) -> None:
        self._system, self._config, self._timeouts = system, config, timeouts
        self._threads = ThreadPoolExecutor(OPENING + 2, thread_name_prefix=f"paramiko {system}")
        self._seed = seed
        self._login: Login | None = None
        self._opening = asyncio.Semaphore(OPENING)
        self._turn = asyncio.Lock()
        self._line: Line | None = None

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        host, port, path = destination(self._system, endpoint)
        loop = asyncio.get_running_loop()
        async with self._opening:
            line = await self._connected()
            opening = loop.run_in_executor(self._threads, line.open, host, port, path, self._window, self._timeouts)
            try:
                stream = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_result)
                raise
            except PortError as error:
                raise type(error)(f"{self._system}, job {job.job:.60}: {error.note}") from error
        return await asyncio.open_unix_connection(sock=stream)

    async def close(self) -> None:
        if self._line is not None:
            await self._line.close()
            self._line = None
        if self._login is not None:
            await self._login.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _window(self) -> int:
        return self._config.window_mib << 20

    async def _connected(self) -> "Line":
        async with self._turn:
            line = self._line
            if line is not None and line.alive:
                return line
            if line is not None:
                await line.close()
                self._line = None
            login = await self._loaded()
            connection = await login._connected()
            self._line = _line_class()(self._system, connection, self._threads, _hurry(login))
            return self._line

    async def _loaded(self) -> "Login":
        if self._login is None:
            await asyncio.get_running_loop().run_in_executor(self._threads, _line_class)  # takes half a second
            from .client import Login

            config = self._config
            self._login = Login(
                self._system, config, config.user, config.key_file, self._timeouts, self._threads, self._seed
            )
        return self._login


def _line_class() -> "type[Line]":
    from .paramiko_line import Line

    return Line


async def _hurry(login: "Login") -> None:
    """Have sshd send small messages at once, as `openssh._Master` does; where commands are refused it stays so."""
    with contextlib.suppress(PortError):
        await login.run(("true",))


def _close_result(opening: "asyncio.Future[socket.socket]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
