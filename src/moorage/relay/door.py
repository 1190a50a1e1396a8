"""The listening socket of a path: less of asyncio than its servers, because there are thousands of them."""

import asyncio
import errno
import logging
import socket
from asyncio import Task
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RETRY_S = 1.0
"""With nothing left to accept with, the socket stays readable; so it is left alone for this time."""


class Door:
    """
    Makes a protocol for every connection to a socket that listens, until it is closed. Owns the socket.

    Args:
        made: Makes the protocol. A connection that was accepted before the end gets one even after it.
    """

    __slots__ = ("_coming", "_listening", "_loop", "_made", "_retry")

    def __init__(self, listening: socket.socket, made: Callable[[], asyncio.BaseProtocol]) -> None:
        self._listening, self._made = listening, made
        self._loop = asyncio.get_running_loop()
        self._coming: set[Task[Any]] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._watch()

    def close(self) -> None:
        """Accept nobody any more. Connections stay."""
        if self._retry is not None:
            self._retry.cancel()
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening.fileno())
        self._listening.close()

    def _watch(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            if error.errno not in OUT_OF:
                raise
            _log.warning("a connection has to wait: %s", error.strerror)
            self._loop.remove_reader(self._listening.fileno())
            self._retry = self._loop.call_later(RETRY_S, self._watch)
            return
        connection.setblocking(False)
        if self._coming is None:
            self._coming = set()
        coming = self._loop.create_task(self._loop.connect_accepted_socket(self._made, connection))
        self._coming.add(coming)
        coming.add_done_callback(self._coming.discard)
