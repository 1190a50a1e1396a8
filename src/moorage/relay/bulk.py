"""
Downloads in threads of their own.

Whoever moves bulk uses much of a processor, and the kernel has him wait for the next turn; in one thread with the bulk,
everybody's small requests would wait with it. A thread can also sleep for less than a millisecond, so that the next
piece is larger than the 32 KiB that an ssh process writes at a time: it is the wake-ups that cost, not the bytes.
"""

import contextlib
import os
import select
import socket
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

BYTES, SECONDS = 4 << 20, 0.5
"""A stream that brings so much in so short a time goes on in a thread."""

MOST = 4
"""At a time; further ones stay in the event loop."""

QUIET_S, TURN_S = 0.2, 10.0
"""The stream goes back to the event loop when nothing came for so long, and now and then anyway: there it is counted
by whoever wants to know who moves bulk."""

PIECE = 262_144
GATHER_S = 0.0003
"""For the next bytes to gather. A unix socket holds 208 KiB, so no more than 600 MB/s are slowed down."""

_slots = threading.BoundedSemaphore(MOST)


class Bulk:
    """
    Moves bytes from one socket to another in a thread, until the source ends or is quiet, the sink takes nothing for a
    while, or `end`.

    Both sockets stay somebody else's, who must neither read the one nor write the other meanwhile. An end is left for
    them to find.

    Attributes:
        moved: Bytes so far.
        rest: Read and not written, at the end.
    """

    def __init__(
        self, loop: AbstractEventLoop, source: int, sink: int, back: Callable[["Bulk", OSError | None], None]
    ) -> None:
        self.moved, self.rest = 0, b""
        self._loop, self._back, self._ended = loop, back, False
        self._source = _own(source)
        try:
            self._sink = _own(sink)
        except OSError:
            self._source.close()
            raise
        try:
            threading.Thread(target=self._run, name="bulk", daemon=True).start()
        except RuntimeError:
            self._source.close()
            self._sink.close()
            raise

    @classmethod
    def begin(
        cls, loop: AbstractEventLoop, source: int, sink: int, back: Callable[["Bulk", OSError | None], None]
    ) -> "Bulk | None":
        """
        One that runs, unless there are enough; `back` is called in the event loop when it has ended, with what cut it.
        """
        if not _slots.acquire(blocking=False):
            return None
        try:
            return cls(loop, source, sink, back)
        except (OSError, RuntimeError):  # no descriptors, no threads
            _slots.release()
            return None

    def end(self) -> None:
        """Stop, because one of the connections is over; both are."""
        self._ended = True
        for each in (self._source, self._sink):
            with contextlib.suppress(OSError):  # closed by the thread, or gone
                each.shutdown(socket.SHUT_RDWR)

    # In the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        cut: OSError | None = None
        try:
            self._move(memoryview(bytearray(PIECE)))
        except OSError as error:
            cut = error
        finally:
            self._source.close()
            self._sink.close()
            _slots.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed, and everything with it
            self._loop.call_soon_threadsafe(self._back, self, cut)

    def _move(self, piece: memoryview) -> None:
        source, sink = self._source, self._sink
        until = time.monotonic() + TURN_S
        while not self._ended and time.monotonic() < until:
            try:
                size = source.recv_into(piece)
            except BlockingIOError:
                if not _ready(source, select.POLLIN, QUIET_S):
                    return
                continue
            if not size:
                return
            left = self._sent(sink, piece[:size])
            self.moved += size - len(left)
            if left:
                self.rest = bytes(left)
                return
            if size < PIECE // 2:
                time.sleep(GATHER_S)

    def _sent(self, sink: socket.socket, data: memoryview) -> memoryview:
        """What could not be sent in time."""
        while data and not self._ended:
            try:
                data = data[sink.send(data) :]
            except BlockingIOError:
                if not _ready(sink, select.POLLOUT, QUIET_S):
                    break
        return data


def _own(descriptor: int) -> socket.socket:
    return socket.socket(fileno=os.dup(descriptor))


def _ready(one: socket.socket, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(one, event)
    return bool(poll.poll(seconds * 1000))
