"""
Moving bytes between paramiko's channels and sockets: one thread for all channels of a connection.

Each channel gets a socket pair; its other end is an ordinary stream of asyncio's. paramiko tells that a channel has
data by setting an event, so the event is an object of ours that wakes the thread. It does not tell that a channel may
send again; only channels that wait for that are looked at on a timer.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, field
from paramiko.ssh_exception import SSHException

CHUNK, PACKET = 262_144, 32_768
GATHERED, GATHER_S = 262_144, 0.001
"""A turn that moved at least a full packet and less than this is followed by a rest, so that the next one moves more:
it is the wake-ups of three threads that cost, not the bytes. A window of 8 MiB is not full before."""
BLOCKED_S = 0.002
"""How often a channel with a full window is looked at; a window of 2 MiB at 1 Gbit/s opens every 16 ms."""


class Pump:
    """Joins channels with sockets until both ends of both are closed. Thread-safe: `add` and `stop`."""

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._work: deque[Callable[[], None]] = deque()
        self._pairs: set[_Pair] = set()
        self._stopped, self._moved = False, 0
        self._thread = threading.Thread(target=self._run, name=f"pump {name}", daemon=True)
        self._thread.start()

    def add(self, channel: Any) -> socket.socket:
        """The socket that now speaks for a channel. Closing it closes the channel."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        channel.setblocking(False)
        pair = _Pair(channel, ours)
        self.soon(lambda: self._begin(pair))
        return theirs

    def stop(self) -> None:
        """Close every channel, and wait for the thread's end."""
        self._stopped = True
        self.soon(lambda: None)
        self._thread.join(5)

    @property
    def count(self) -> int:
        """Channels that are open."""
        return len(self._pairs)

    def soon(self, work: Callable[[], None]) -> None:
        """Have the thread do something; from any thread."""
        self._work.append(work)
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake already
            self._wake_out.send(b"\0")

    # In the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopped:
                blocked = [pair for pair in self._pairs if pair.blocked]
                for key, mask in self._selector.select(BLOCKED_S if blocked else None):
                    if key.data is None:
                        with contextlib.suppress(BlockingIOError):
                            self._wake_in.recv(4096)
                    else:
                        self._serve(key.data, mask)
                for pair in blocked:
                    self._serve(pair, selectors.EVENT_READ)
                self._moved = 0  # by channels that have told of something; what a full socket takes again is no reason
                while self._work:
                    self._work.popleft()()
                if PACKET <= self._moved < GATHERED:
                    time.sleep(GATHER_S)
        finally:
            for pair in list(self._pairs):
                self._end(pair)
            self._selector.close()
            self._wake_in.close()
            self._wake_out.close()

    def _begin(self, pair: "_Pair") -> None:
        self._pairs.add(pair)
        pair.channel.in_buffer.set_event(_Event(lambda: self.soon(lambda: self._serve(pair, 0))))
        self._watch(pair)

    def _serve(self, pair: "_Pair", mask: int) -> None:
        """Do what can be done for a pair now; an error on either side ends both."""
        if pair not in self._pairs:
            return
        try:
            if mask & selectors.EVENT_READ:
                pair.outwards()
            self._moved += pair.inwards()
        except (OSError, EOFError, SSHException):
            self._end(pair)
            return
        if pair.done:
            self._end(pair)
        else:
            self._watch(pair)

    def _watch(self, pair: "_Pair") -> None:
        wanted = 0
        if not pair.local_ended and not pair.blocked:
            wanted |= selectors.EVENT_READ
        if pair.pending:
            wanted |= selectors.EVENT_WRITE
        if wanted == pair.watched:
            return
        if not pair.watched:
            self._selector.register(pair.local, wanted, pair)
        elif not wanted:
            self._selector.unregister(pair.local)
        else:
            self._selector.modify(pair.local, wanted, pair)
        pair.watched = wanted

    def _end(self, pair: "_Pair") -> None:
        self._pairs.discard(pair)
        if pair.watched:
            self._selector.unregister(pair.local)
            pair.watched = 0
        pair.local.close()
        with contextlib.suppress(OSError, EOFError, SSHException):
            pair.channel.close()


@define(eq=False)
class _Pair:
    """
    A channel and its socket.

    Args:
        outgoing: Read from the socket, not yet taken by the channel, whose window is full.
        pending: Read from the channel, not yet taken by the socket; bounded by the channel's window.
    """

    channel: Any
    local: socket.socket
    outgoing: bytes = b""
    pending: memoryview = field(factory=lambda: memoryview(b""))
    local_ended: bool = False
    channel_ended: bool = False
    watched: int = 0

    @property
    def blocked(self) -> bool:
        return bool(self.outgoing)

    @property
    def done(self) -> bool:
        return self.channel_ended and not self.pending and (self.local_ended or self.channel.closed)

    def outwards(self) -> None:
        """From the socket to the channel."""
        if not self.outgoing and not self.local_ended:
            try:
                self.outgoing = self.local.recv(CHUNK)
            except BlockingIOError:
                return
            if not self.outgoing:
                self.local_ended = True
                self.channel.shutdown_write()
                return
        while self.outgoing:
            try:
                sent = self.channel.send(self.outgoing)
            except TimeoutError:
                return
            if sent == 0:
                raise EOFError
            self.outgoing = self.outgoing[sent:]

    def inwards(self) -> int:
        """
        From the channel to the socket: bytes. Nothing is taken while the socket is full, so the window closes.
        """
        taken = 0
        while not self.channel_ended or self.pending:
            if not self.pending:
                try:
                    data = self.channel.recv(1 << 30)
                except TimeoutError:
                    return taken
                if not data:
                    self.channel_ended = True
                    self.local.shutdown(socket.SHUT_WR)
                    return taken
                taken += len(data)
                self.pending = memoryview(data)
            try:
                self.pending = self.pending[self.local.send(self.pending) :]
            except BlockingIOError:
                return taken
        return taken


@define(eq=False)
class _Event:
    """What paramiko takes for a `threading.Event`. Told only when it becomes set: reading clears it."""

    tell: Callable[[], None]
    _is_set: bool = field(init=False, default=False)

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            self.tell()

    def clear(self) -> None:
        self._is_set = False
