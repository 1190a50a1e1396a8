"""A real sshd, the dialers that lead through it, and something at the far end."""

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen
from tests.servers.sshd import Sshd
from tests.servers.wire import closing

from moorage.adapters.ssh.direct import DirectDialer
from moorage.adapters.ssh.hosts import LoginConfig
from moorage.adapters.ssh.openssh import OpensshDialer
from moorage.adapters.ssh.paramiko_dialer import ParamikoDialer
from moorage.adapters.ssh.plugin import OpensshConfig, ParamikoConfig
from moorage.core.model import Endpoint, JobId, Owner, SystemName, Tag
from moorage.core.timeouts import Timeouts
from moorage.ports.dialer import Dialer
from moorage.ports.system import Handle

SITE = SystemName("site")
JOB = Handle(Owner("alice"), Tag("m0"), JobId("4711"))
TIMEOUTS = Timeouts(connect_s=5, auth_pause_s=60)
KINDS = ("direct", "openssh", "paramiko")


@frozen
class Site:
    """Makes dialers of one kind. `options` are those of the login, and differ from test to test."""

    kind: str
    sshd: Sshd
    directory: Path
    timeouts: Timeouts = TIMEOUTS
    options: dict[str, Any] = field(factory=dict)

    def but(self, **options: Any) -> "Site":
        return evolve(self, options={**self.options, **options})

    def config(self, cls: type[LoginConfig]) -> Any:
        given = {
            "hosts": ("127.0.0.1",),
            "port": self.sshd.port,
            "user": self.sshd.user,
            "key_file": str(self.sshd.key_file),
            "host_keys": (self.sshd.host_key,),
        }
        return cls(**{**given, **self.options})

    def dialer(self) -> Dialer:
        match self.kind:
            case "openssh":
                return OpensshDialer(SITE, self.config(OpensshConfig), self.directory, self.timeouts, 1)
            case "paramiko":
                return ParamikoDialer(SITE, self.config(ParamikoConfig), self.timeouts, 1)
            case _:
                return DirectDialer(SITE, "", loopback=True, connect_s=self.timeouts.connect_s)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Dialer]:
        dialer = self.dialer()
        try:
            yield dialer
        finally:
            await dialer.close()


@contextlib.asynccontextmanager
async def dialled(dialer: Dialer, endpoint: Endpoint) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    reader, writer = await dialer.dial(endpoint, JOB)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    """Until the end of what comes; then it ends its own half."""
    try:
        while data := await reader.read(262_144):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def listening(serve: Any = echo, socket: Path | None = None) -> AsyncIterator[Endpoint]:
    """A server at the far end, with nothing of it left afterwards."""
    tasks: set[asyncio.Task[None]] = set()

    async def served(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # streams of Python 3.11 log a task that ends so
        finally:
            writer.transport.abort()

    if socket is not None:
        server = await asyncio.start_unix_server(served, str(socket))
        endpoint = Endpoint("", 0, str(socket))
    else:
        server = await asyncio.start_server(served, "127.0.0.1", 0)
        endpoint = Endpoint("localhost", server.sockets[0].getsockname()[1])
    try:
        async with closing(server):
            yield endpoint
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)
