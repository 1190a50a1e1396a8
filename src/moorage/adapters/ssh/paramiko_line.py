"""One connection of the `paramiko` way in: its channels, its pump, its ping. Loaded with the first stream."""

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from paramiko import Channel, Message
from paramiko.common import cMSG_CHANNEL_OPEN
from paramiko.ssh_exception import ChannelException, SSHException

from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Overloaded, PortError, Refused, Unreachable

from .client import Connection
from .pump import Pump

_log = logging.getLogger(__name__)

PING_S, MISSED_S = 5.0, 15.0
"""As OpenSSH's ServerAliveInterval and three misses; paramiko's own keep-alive never counts answers."""
PACKET = 32_768
"""Bytes of one SSH packet; OpenSSH's own. Larger ones were measured to gain nothing."""


class Line:
    """One connection with its pump and its ping."""

    def __init__(
        self, system: str, connection: Connection, threads: ThreadPoolExecutor, first: Coroutine[None, None, None]
    ) -> None:
        self._system, self._connection, self._threads = system, connection, threads
        self._pump = Pump(system)
        self._tasks = [asyncio.create_task(first), asyncio.create_task(self._ping())]

    @property
    def alive(self) -> bool:
        return self._connection.alive

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _close(self) -> None:
        self._connection.close()
        self._pump.stop()

    async def _ping(self) -> None:
        """Close a connection on which nothing is answered; its streams end, and the next dial makes another."""
        transport = self._connection.transport
        loop = asyncio.get_running_loop()
        while self.alive:
            await asyncio.sleep(PING_S)
            asked = loop.run_in_executor(self._threads, transport.global_request, "keepalive@openssh.com", None, True)
            done, _ = await asyncio.wait([asked], timeout=MISSED_S)
            if not done:
                _log.warning("%s: the login node does not answer any more", self._system)
                transport.close()
                return

    def open(self, host: str, port: int, path: str, window: int, timeouts: Timeouts) -> socket.socket:
        """In a thread: a socket that speaks for a new channel."""
        transport, seconds = self._connection.transport, timeouts.connect_s
        try:
            if path:
                channel = _open_streamlocal(transport, path, window, seconds)
            else:
                channel = transport.open_channel(
                    "direct-tcpip", (host, port), ("127.0.0.1", 0), window_size=window, timeout=seconds
                )
        except ChannelException as error:
            raise _refusal(error) from error
        except (SSHException, EOFError, OSError) as error:
            raise Unreachable(f"no stream through the login node: {error or type(error).__name__}") from error
        return self._pump.add(channel)


def _refusal(error: ChannelException) -> PortError:
    """What the login node says about a channel. Source: RFC 4254, section 5.1."""
    if error.code == 1:
        return Refused("the login node does not permit forwarding there")
    if error.code == 4:
        return Overloaded("the login node has no resources for another channel")
    return Unreachable("nobody listens there, or the login node cannot reach it")


def _open_streamlocal(transport: Any, path: str, window: int, seconds: float) -> Any:
    """
    A channel to a unix socket on the login node, which paramiko has no call for: its `open_channel` with the words
    of another kind.

    Source: OpenSSH PROTOCOL, section 2.4 "direct-streamlocal@openssh.com"; paramiko 5.1, `Transport.open_channel`.
    """
    with transport.lock:
        number = transport._next_channel()
        message = Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string("direct-streamlocal@openssh.com")
        message.add_int(number)
        message.add_int(window)
        message.add_int(PACKET)
        message.add_string(path)
        message.add_string("")
        message.add_int(0)
        channel = Channel(number)
        transport._channels.put(number, channel)
        transport.channel_events[number] = event = threading.Event()
        transport.channels_seen[number] = True
        channel._set_transport(transport)
        channel._set_window(window, PACKET)
    transport._send_user_message(message)
    deadline = time.monotonic() + seconds
    while not event.wait(0.1):
        if not transport.is_active():
            raise EOFError
        if time.monotonic() > deadline:
            channel.close()
            raise SSHException("no answer in time")
    if transport._channels.get(number) is None:
        raise transport.get_exception() or SSHException("refused")
    return channel
