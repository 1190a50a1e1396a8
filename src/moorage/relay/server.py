"""The relay itself: all paths of a deployment, their listeners, and what survives its end."""

import asyncio
import errno
import logging
import socket
from collections.abc import Mapping
from pathlib import Path as FilePath
from random import Random
from urllib.parse import quote

from attrs import field, frozen

from moorage.core.model import Route, SessionId, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.dialer import Dialer
from moorage.ports.errors import Overloaded, PortError, Refused, Unreachable
from moorage.ports.tunnels import PathReport, ProbeResult

from .door import Door
from .gate import Counter, Gates, Knocker
from .ledger import Entry, Ledger
from .path import Pace, Path
from .peers import Peers
from .sockets import listen
from .target import Target

_log = logging.getLogger(__name__)

PROBES_PER_S = 100.0
"""Of all paths together, while they are good; more paths are then looked at less often, up to the stale time."""


DEFAULTS = Timeouts()


@frozen
class Settings:
    """
    How a relay listens.

    Args:
        ports: First and last TCP port for listeners; below Linux's range for outgoing connections (32768), so that
            none of those sits on an address that has to be taken again after a restart.
        allowed_uids: Users besides our own and root whose processes may connect: the proxy's, if it has its own.
        unix: Listen on unix sockets instead, for proxies that can (`unix+http://` addresses).
        timeouts: Per system; the defaults for those that are not there.
    """

    ports: tuple[int, int] = (18_000, 32_000)
    allowed_uids: frozenset[int] = frozenset()
    unix: bool = False
    timeouts: Mapping[SystemName, Timeouts] = field(factory=dict)


@frozen
class Details:
    """
    What `moorage tunnels` shows of a path. Seconds; `idle_s` since the last byte, `None` if there was none.
    """

    target: Target
    address: str
    report: PathReport
    connections: int
    open: int
    bytes_in: int
    bytes_out: int
    idle_s: float | None
    stock: int
    probes: int


class Relay:
    """
    Listeners for sessions, each with its path. Lives in one event loop.

    Args:
        directory: Ours alone (0700): the ledger and unix sockets are in it.
        dialers: One for each system; owned and closed by whoever made them.
    """

    def __init__(
        self,
        directory: FilePath,
        dialers: Mapping[SystemName, Dialer],
        gates: Gates,
        settings: Settings | None = None,
        chance: Random | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self._directory, self._dialers, self._gates = directory, dialers, gates
        self._chance = chance or Random()  # noqa: S311 - jitter and the order of ports, nothing secret
        self._counter = Counter()
        self._peers = Peers(self.settings.allowed_uids)
        self._ledger = Ledger(directory / "paths.sqlite")
        self._paths: dict[SessionId, Path] = {}
        self._opening: dict[SessionId, asyncio.Lock] = {}
        self._loop = asyncio.get_running_loop()

    async def rebuild(self) -> None:
        """Have every path of the ledger again, at its address. What cannot be had is left out and logged."""
        for entry in self._ledger.entries():
            try:
                await self._open(entry.target, entry.port, look_s=1.0)
            except PortError as error:
                if isinstance(error, Refused):
                    self._ledger.remove(entry.target.session)
                _log.warning("session %s has no path after the restart: %s", entry.target.session, error.note)

    # The port's verbs ---------------------------------------------------------------------------------------

    async def open(self, target: Target) -> Route:
        """See `Tunnels.open`."""
        lock = self._opening.setdefault(target.session, asyncio.Lock())
        try:
            async with lock:
                path = self._paths.get(target.session)
                if path is not None and path.target == target:
                    return Route(self._address(path))
                return await self._open(target, path.port if path else 0)
        finally:
            if not lock.locked():
                self._opening.pop(target.session, None)

    async def probe(self, session: SessionId) -> ProbeResult:
        """See `Tunnels.probe`."""
        path = self._paths.get(session)
        if path is None:
            return ProbeResult(False, "there is no path of this session")
        address = ("127.0.0.1", path.port) if path.port else self._socket(session)
        return await path.probe(address)

    async def close(self, session: SessionId) -> None:
        """See `Tunnels.close`."""
        path = self._paths.pop(session, None)
        self._ledger.remove(session)
        if path is not None:
            path.close()
            if path.port == 0:
                self._socket(session).unlink(missing_ok=True)

    async def list(self) -> Mapping[SessionId, PathReport]:
        """See `Tunnels.list`."""
        return {session: path.report() for session, path in self._paths.items()}

    def details(self) -> Mapping[SessionId, Details]:
        """Every path as people want to see it."""
        return {session: self._details(path) for session, path in self._paths.items()}

    @property
    def paths(self) -> int:
        return len(self._paths)

    async def aclose(self) -> None:
        """End every path. The ledger stays: the next relay goes on where this one ended."""
        for path in self._paths.values():
            path.close()
        self._paths.clear()
        self._ledger.close()
        self._peers.close()
        await asyncio.sleep(0)  # cancelled tasks end

    # Opening ------------------------------------------------------------------------------------------------

    async def _open(self, target: Target, port: int, look_s: float | None = None) -> Route:
        dialer = self._dialers.get(target.system)
        if dialer is None:
            raise Refused(f"no way into system {target.system:.60} is configured")
        try:
            secret = await self._gates.gate(target.session, target.attempt)
        except KeyError:
            raise Refused(f"session {target.session}, attempt {target.attempt}: its gate secret was revoked") from None
        except OSError as error:
            raise Unreachable(f"session {target.session}: its gate secret cannot be read now") from error
        path = self._paths.get(target.session)
        if path is not None:
            path.lead_to(target, secret)
        else:
            knocker = Knocker(dialer, self._counter)
            path = Path(target, secret, knocker, self._pace(target.system), self._chance, self._peers)
            self._listen(path, port)
            self._paths[target.session] = path
            path.start(look_s)
        self._ledger.put(Entry(target, path.port))
        return Route(self._address(path))

    def _listen(self, path: Path, port: int) -> None:
        try:
            if self.settings.unix:
                file = self._socket(path.target.session)
                path.door = Door(listen(file), path.connection)
            else:
                listener = self._tcp_listener(path.target.session, port)
                path.port = listener.getsockname()[1]
                path.door = Door(listener, path.connection)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise Overloaded("the relay has no file descriptors left for another path") from error
            raise Unreachable(f"no listener for session {path.target.session}: {error.strerror}") from error

    def _tcp_listener(self, session: SessionId, port: int) -> socket.socket:
        """Listening on `port` if it can be had; otherwise on one that nobody has or had lately."""
        if port and (listener := _bound(port)) is not None:
            return listener
        if port:
            _log.warning("session %s: port %s is taken by somebody else, its address changes", session, port)
        first, last = self.settings.ports
        for _ in range(1000):
            port = self._chance.randint(first, last)
            if self._ledger.is_free(port, session) and (listener := _bound(port)) is not None:
                return listener
        raise OSError(errno.EADDRINUSE, f"no port from {first} to {last} is free")

    def _pace(self, system: SystemName) -> Pace:
        timeouts = self.settings.timeouts.get(system, DEFAULTS)
        spread_s = min(len(self._paths) / PROBES_PER_S, timeouts.probe_stale_s / 2)
        return Pace(
            wait_s=timeouts.connect_s,
            probe_s=timeouts.probe_s,
            fresh_s=max(timeouts.probe_fresh_s, spread_s),
            repair_s=timeouts.repair_s,
        )

    def _socket(self, session: SessionId) -> FilePath:
        return self._directory / f"{session}.sock"

    def _address(self, path: Path) -> str:
        if path.port:
            return f"http://127.0.0.1:{path.port}"
        return "unix+http://" + quote(str(self._socket(path.target.session)), safe="")

    def _details(self, path: Path) -> Details:
        meter = path.meter
        idle_s = None if meter.active_at is None else self._loop.time() - meter.active_at
        return Details(
            target=path.target,
            address=self._address(path),
            report=path.report(),
            connections=meter.connections,
            open=meter.open,
            bytes_in=meter.bytes_in,
            bytes_out=meter.all_out,
            idle_s=idle_s,
            stock=path.stock,
            probes=path.probes,
        )


def _bound(port: int) -> socket.socket | None:
    """A socket that listens on a port of loopback, and of nothing else; `None` if it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections rest, listeners never share
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return listener
