"""One session's path: connections that come in, proven streams that wait for them, probes, and what is known of it."""

import asyncio
from asyncio import Task
from collections.abc import Coroutine
from pathlib import Path as FilePath
from random import Random
from typing import Any

from attrs import frozen

from moorage.core.gate import Answer, LabState, Purpose, Unproven, Verdict
from moorage.core.secret import Secret
from moorage.ports.errors import Overloaded, PortError, Refused, Unreachable
from moorage.ports.tunnels import PathReport, ProbeResult

from .door import Door
from .gate import Knocker
from .peers import Peers
from .pump import Meter, Near, Stream
from .sockets import connect
from .target import Target


@frozen
class Pace:
    """
    Durations (seconds) and bounds of a path.

    Args:
        wait_s: A connection waits so long for a stream before it is closed.
        probe_s: One probe, in all.
        fresh_s: Between two probes of a path that works.
        repair_s: Longest time between two tries on one that does not.
        warm: Most streams kept in stock for one session.
        idle_s: After so long without a connection nothing is kept in stock.
        dials: Streams of one session that are made at the same time.
        connections: Of one session; a further one is closed at once.
    """

    wait_s: float = 10.0
    probe_s: float = 5.0
    fresh_s: float = 10.0
    repair_s: float = 4.0
    warm: int = 8
    idle_s: float = 30.0
    dials: int = 16
    connections: int = 512


class Path:
    """
    Everything of one session, held by one event loop.

    Nothing here ends a job: a path that does not work says so (`report`), and tries again.
    """

    def __init__(
        self,
        target: Target,
        secret: Secret,
        knocker: Knocker,
        pace: Pace,
        chance: Random,
        peers: Peers,
    ) -> None:
        self.target, self.pace = target, pace
        self.meter = Meter()
        self.door: Door | None = None
        self.port = 0
        self.probes = 0
        self._secret, self._knocker, self._chance, self._peers = secret, knocker, chance, peers
        self._loop = asyncio.get_running_loop()
        self._good_at: float | None = None
        self._lost, self._note = False, "not tried yet"
        self._stock: list[Stream] = []
        self._wanted = 1
        self._used_at = self._loop.time()
        self._waiting: list[Near] = []
        self._dialing = 0
        self._retry: asyncio.TimerHandle | None = None
        self._nears: set[Near] = set()
        self._streams: set[Stream] = set()
        self._tasks: set[Task[Any]] = set()
        self._checking: Task[ProbeResult] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    # Life ---------------------------------------------------------------------------------------------------

    def start(self, look_s: float | None = None) -> None:
        """
        Reach for the job: the first stream has its launcher start the lab, and waits for the first connection.

        Args:
            look_s: The first probe is made within this time, and nothing else, because many paths are started at once;
                without it, whoever opened the path is expected to probe.
        """
        self._wanted = 0 if look_s else 1
        self._restock()
        self._plan(self._chance.uniform(0, look_s) if look_s else self.pace.fresh_s * self._chance.uniform(0.5, 1.0))

    def lead_to(self, target: Target, secret: Secret) -> None:
        """From now on this path leads elsewhere; nothing of the old way is left."""
        self.target, self._secret = target, secret
        self._good_at, self._lost, self._note = None, False, "not tried yet"
        self._cut()
        self.start()

    def close(self) -> None:
        """End everything, at once."""
        self._closed = True
        if self.door is not None:
            self.door.close()
        for timer in (self._timer, self._retry):
            if timer is not None:
                timer.cancel()
        self._cut()

    def _cut(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self._waiting.clear()
        for near in list(self._nears):
            near.drop()
        for stream in list(self._streams):
            stream.transport.abort()
        self._stock.clear()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # A connection -------------------------------------------------------------------------------------------

    def connection(self) -> Near:
        """The protocol of a new connection to the listener."""
        return Near(self._accept, self._left, self.meter)

    def _accept(self, near: Near) -> None:
        if self._closed or len(self._nears) >= self.pace.connections or not self._may_come(near):
            near.drop()
            return
        self._nears.add(near)
        self._used_at = self._loop.time()
        if not self.meter.connections:
            # That is whoever opened the path and looks whether it leads somewhere. The next one is a person, perhaps
            # much later; meanwhile a stream would cost more memory than everything else of the path.
            self._wanted = 0
        while self._stock:
            stream = self._stock.pop(0)
            if not stream.usable:
                continue
            if self._knocker.crowded(stream.writer):
                stream.transport.abort()
                continue
            self._join(near, stream)
            return
        if self.meter.connections or self._lost:  # it has to wait, and not only for the first one of all: keep more
            self._wanted = min(self.pace.warm, max(1, self._wanted * 2))
        near.patience = self._loop.call_later(self.pace.wait_s, near.drop)
        self._waiting.append(near)
        self._restock()

    def _left(self, near: Near) -> None:
        self._nears.discard(near)
        if near in self._waiting:
            self._waiting.remove(near)

    def _may_come(self, near: Near) -> bool:
        """On loopback everybody can knock; the lab behind us belongs to one user of the Hub."""
        return self._peers.admits(near.transport.get_extra_info("socket"))

    def _join(self, near: Near, stream: Stream) -> None:
        near.join(stream)
        self._restock()

    # Streams ------------------------------------------------------------------------------------------------

    def _restock(self) -> None:
        """Have as many streams on their way as connections wait for, and as the stock lacks."""
        if self._closed or self._retry is not None:
            return
        lacking = 0 if self._lost else self._wanted - len(self._stock)
        need = min(self.pace.dials, len(self._waiting) + max(0, lacking))
        while self._dialing < need:
            self._dialing += 1
            self._spawn(self._dial())

    async def _dial(self) -> None:
        try:
            reader, writer, answer = await self._knock(Purpose.STREAM)
            if answer.verdict is not Verdict.OK:
                writer.transport.abort()
                raise _refusal(answer)
            stream = await Stream.take(reader, writer, self._stream_lost)
        except (PortError, Unproven, TimeoutError) as error:
            self._dialing -= 1
            self._dial_failed(error)
        except BaseException:
            self._dialing -= 1
            raise
        else:
            self._dialing -= 1
            self._streams.add(stream)
            self._offer(stream)

    async def _knock(self, purpose: Purpose) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Answer]:
        async with asyncio.timeout(self.pace.wait_s):
            return await self._knocker.knock(self._secret, purpose, self.target.endpoint, self.target.handle)

    def _offer(self, stream: Stream) -> None:
        """Give a stream to the connection that waits longest, or keep it."""
        if not stream.usable:
            return
        while self._waiting:
            near = self._waiting.pop(0)
            if not near.transport.is_closing():
                self._join(near, stream)
                return
        if len(self._stock) < self.pace.warm:
            self._stock.append(stream)
        else:
            stream.transport.abort()

    def _dial_failed(self, error: Exception) -> None:
        """A way that is interrupted is tried again while connections wait; whoever is no launcher is not."""
        if not self._lost:
            self._look_soon()
        if isinstance(error, Unreachable | Overloaded | TimeoutError):
            if self._waiting and self._retry is None and not self._closed:
                self._retry = self._loop.call_later(self._chance.uniform(0.2, 0.6), self._again)
            return
        waiting, self._waiting = self._waiting, []
        for near in waiting:
            near.drop()

    def _again(self) -> None:
        self._retry = None
        self._restock()

    def _stream_lost(self, stream: Stream, error: Exception | None) -> None:
        self._streams.discard(stream)
        if stream in self._stock:
            self._stock.remove(stream)
            self._look_soon()
        elif error is not None:
            self._look_soon()

    # Probes -------------------------------------------------------------------------------------------------

    async def check(self) -> ProbeResult:
        """
        One request end to end: the launcher proves itself and asks its lab. Callers at the same time share one.
        """
        if self._checking is None or self._checking.done():
            self._checking = self._spawn(self._check())
        checking = self._checking
        try:
            return await asyncio.shield(checking)
        except asyncio.CancelledError:
            if not checking.cancelled():
                raise
            return ProbeResult(False, "the path was closed or led elsewhere")

    async def probe(self, address: FilePath | tuple[str, int]) -> ProbeResult:
        """Like `check`, and then a request as the proxy makes it, through the listener at `address`."""
        try:
            async with asyncio.timeout(self.pace.probe_s):
                result = await self.check()
                if not result.good:
                    return result
                status = await _ask(address)
        except TimeoutError:
            return self._bad(f"no answer in {self.pace.probe_s:g} s")
        except OSError as error:
            return self._bad(f"the listener cannot be reached: {error.strerror or type(error).__name__}")
        return ProbeResult(True) if 0 < status < 500 else self._bad(f"the lab answered with HTTP {status or 'nothing'}")

    async def _check(self) -> ProbeResult:
        self.probes += 1
        try:
            async with asyncio.timeout(self.pace.probe_s):
                _, writer, answer = await self._knock(Purpose.PROBE)
            writer.transport.abort()
        except TimeoutError:
            return self._bad(f"no answer in {self.pace.probe_s:g} s")
        except Unproven as error:
            return self._bad(f"whoever listens there is not this session's launcher: {error}")
        except PortError as error:
            return self._bad(error.note)
        return self._judge(answer)

    def _judge(self, answer: Answer) -> ProbeResult:
        if answer.lab in (LabState.WAITING, LabState.STARTING):
            self._lost, self._note = False, "the lab is starting"
            self._wanted = max(1, self._wanted)
            self._restock()  # should the first stream have failed: nothing else has it started
            return ProbeResult(False, self._note, proven=True)
        if answer.lab is LabState.ENDED or answer.verdict is Verdict.GONE:
            code = "" if answer.exit_code is None else f" with exit code {answer.exit_code}"
            return self._bad("the lab has ended" + code)
        if answer.verdict is not Verdict.OK or not answer.http or answer.http >= 500:
            return self._bad(f"the lab does not answer (HTTP {answer.http or 'nothing'})")
        self._good_at, self._lost, self._note = self._loop.time(), False, ""
        self._restock()
        return ProbeResult(True)

    def _bad(self, note: str) -> ProbeResult:
        """Nothing gets through now. Streams in stock may be half open, so none of them is given to anybody."""
        self._lost, self._note = True, note
        while self._stock:
            self._stock.pop().transport.abort()
        return ProbeResult(False, note)

    def _look_soon(self) -> None:
        """Something was cut: see whether the path still works, before the next probe is due."""
        if not self._closed and not self._lost and (self._checking is None or self._checking.done()):
            self._plan(self._chance.uniform(0, 0.2))

    def _plan(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._closed:
            self._timer = self._loop.call_later(seconds, lambda: self._spawn(self._tick()))

    async def _tick(self) -> None:
        """Probe; then decide when to look again: soon and jittered while something is wrong."""
        try:
            result = await self.check()
            self._shrink()
            good = result.good
        except BaseException:
            self._plan(self.pace.repair_s)
            raise
        pace = self.pace
        self._plan(
            pace.fresh_s * self._chance.uniform(0.8, 1.0) if good else self._chance.uniform(0.1, 0.4) * pace.repair_s
        )

    def _shrink(self) -> None:
        """Keep less in stock for a session that nobody looks at."""
        idle_s = self._loop.time() - self._used_at
        if self.meter.open:
            return
        if idle_s > self.pace.idle_s:
            self._wanted = 0
        elif idle_s > 3 * self.pace.fresh_s:
            self._wanted = min(self._wanted, 1)
        while len(self._stock) > self._wanted:
            self._stock.pop().transport.close()

    # What is known ------------------------------------------------------------------------------------------

    def report(self) -> PathReport:
        age = None if self._good_at is None else self._loop.time() - self._good_at
        return PathReport(age, self._lost, self._note)

    @property
    def stock(self) -> int:
        return len(self._stock)


def _refusal(answer: Answer) -> PortError:
    if answer.verdict is Verdict.FULL:
        return Overloaded("the job has as many streams as its plan allows")
    if answer.verdict is Verdict.GONE:
        return Refused("the lab has ended or is being stopped")
    return Unreachable("the launcher finds our counter too old, twice")


async def _ask(address: FilePath | tuple[str, int]) -> int:
    """The HTTP status that comes back through a listener; 0 if it is none."""
    if isinstance(address, FilePath):
        reader, writer = await asyncio.open_unix_connection(sock=connect(address))
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"GET /api HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        words = (await reader.read(64)).split(b" ")
        return int(words[1]) if words[0].startswith(b"HTTP/1.") and len(words) > 2 and words[1].isdigit() else 0
    finally:
        writer.transport.abort()
