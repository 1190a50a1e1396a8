"""The relay of the simulated world and the port `Tunnels` to it. The relay outlives the process under test."""

from collections import Counter
from collections.abc import Callable, Mapping

from attrs import define, frozen

from moorage.core.model import Endpoint, JobId, Route, SessionId, SessionSpec, SystemName, Tag, tag_of
from moorage.ports.errors import Unreachable
from moorage.ports.tunnels import PathReport, ProbeResult

from .choices import between
from .faults import Faults, Kind, Verdict
from .site import Launcher, Site, SiteJob
from .systems import Way


@define(eq=False)
class Path:
    """A listener and where it leads."""

    session: SessionId
    attempt: int
    tag: Tag
    system: SystemName
    endpoint: Endpoint
    route: Route
    opened_at: int
    good_at: int | None = None
    mute_until: int = 0
    foreign_until: int = 0
    cut: bool = False
    far: tuple[SiteJob, Launcher] | None = None
    """Whose lab was at its far end when somebody last looked."""

    def still_leads(self, now: int) -> bool:
        """Whether that lab is there for certain: nothing has moved since, and nothing is silent now."""
        if self.far is None or self.cut:
            return False
        job, launcher = self.far
        return (
            job.launcher is launcher
            and now >= job.silent_until
            and now >= job.foreign_until
            and now >= self.mute_until
            and now >= self.foreign_until
        )


@frozen
class Report:
    """What `list` said last, for answers from the past."""

    paths: Mapping[SessionId, PathReport]


class Relay:
    """Every path there is. Nothing in here waits."""

    def __init__(self, sites: Mapping[SystemName, Site], faults: Faults, clock: Callable[[], int]) -> None:
        self.sites = sites
        self.faults = faults
        self.clock = clock
        self.paths: dict[SessionId, Path] = {}
        self.closed: dict[str, tuple[SessionId, int]] = {}
        """Addresses that were given back: whose they were, and when."""
        self.opened: Counter[SessionId] = Counter()
        """How often each session had a path opened, since somebody last looked."""
        self.on_open: Callable[[Path], None] = lambda _path: None
        self._ports = 0
        self._last: Mapping[SessionId, PathReport] = {}

    def open(self, spec: SessionSpec, attempt: int, endpoint: Endpoint) -> Route:
        """Have a listener; admit the launcher if it is reached and is ours."""
        now, path = self.clock(), self.paths.get(spec.id)
        if path is None or path.endpoint != endpoint or path.attempt != attempt:
            self._drop(spec.id)
            self._ports += 1
            route = Route(f"127.0.0.1:{30_000 + self._ports}")
            tag = tag_of(spec, attempt)
            path = self.paths[spec.id] = Path(spec.id, attempt, tag, spec.system, endpoint, route, now)
        self.opened[spec.id] += 1
        for kind in self.faults.happens("net", "path"):
            self._happen(path, kind, now)
        self.sites[path.system].advance(now)
        job = self._reached(path, now)
        if job is not None:
            self.sites[path.system].admit(job, now)
        elif self.sites[path.system].at(endpoint, now) is None:
            raise Unreachable(f"nobody listens at {endpoint.host}:{endpoint.port}")
        self.on_open(path)
        return path.route

    def _happen(self, path: Path, kind: Kind, now: int) -> None:
        until = now + int(between(self.faults.source, 5, 600, "for how long") * 1000)
        match kind.lie:
            case "mute":
                path.mute_until = until
            case "foreign":
                path.foreign_until = until
            case "cut":
                path.cut = True

    def _reached(self, path: Path, now: int) -> SiteJob | None:
        """The launcher at the far end, if it proves that it is this attempt's and this run's."""
        if now < path.mute_until or now < path.foreign_until:
            return None
        job = self.sites[path.system].at(path.endpoint, now)
        if job is None or now < job.foreign_until or job.launcher is None:
            return None
        # The secret is per session and attempt, the nonce per run: a launcher of another run cannot answer.
        proven = job.tag == path.tag and job.launcher.endpoint.nonce == path.endpoint.nonce
        return job if proven else None

    def far_end(self, session: SessionId) -> SiteJob | None:
        """The job whose lab gets the bytes that are sent into the session's address now."""
        path, now = self.paths.get(session), self.clock()
        if path is None:
            return None
        self.sites[path.system].advance(now)
        return self._serves(path, now)

    def _serves(self, path: Path, now: int) -> SiteJob | None:
        job = None if path.cut else self._reached(path, now)
        if job is None or job.launcher is None or job.launcher.serves_at is None or job.launcher.serves_at > now:
            path.far = None
            return None
        path.far = job, job.launcher
        return job

    def probe(self, session: SessionId, verdict: Verdict) -> ProbeResult:
        """One request through the listener."""
        path = self.paths.get(session)
        if path is None:
            return ProbeResult(False, "the relay has no path for this session")
        if path.cut or verdict.lie == "closed at once":
            path.cut = False
            return ProbeResult(False, "the stream was cut")
        if self.far_end(session) is None:
            if self._reached(path, self.clock()) is not None:
                return ProbeResult(False, "the lab is starting", proven=True)
            return ProbeResult(False, "no answer that proves anything")
        path.good_at = self.clock()
        return ProbeResult(True)

    def close(self, session: SessionId) -> None:
        """Have no listener."""
        self._drop(session)

    def _drop(self, session: SessionId) -> None:
        path = self.paths.pop(session, None)
        if path is not None:
            self.closed[path.route.address] = (session, self.clock())

    def list(self, verdict: Verdict) -> Mapping[SessionId, PathReport]:
        """Every path, with what the relay's own probes say."""
        if verdict.lie == "stale":
            return self._last
        now = self.clock()
        for site in self.sites.values():
            site.advance(now)
        down = any(now < site.down_until for site in self.sites.values())
        reports = {}
        for session, path in self.paths.items():
            serves = not down and path.still_leads(now)
            if path.good_at is not None and (serves or self._serves(path, now) is not None):
                path.good_at = now
                reports[session] = _FRESH
            else:
                age = None if path.good_at is None else (now - path.good_at) / 1000
                reports[session] = PathReport(age, path.cut, "the stream was cut" if path.cut else "")
        self._last = reports
        return reports

    def restart(self) -> None:
        """Killed and started again: it remembers nothing."""
        for session in list(self.paths):
            self._drop(session)

    def heal(self) -> None:
        """Networks work again."""
        for path in self.paths.values():
            path.mute_until = path.foreign_until = 0
            path.cut = False


_FRESH = PathReport(1.0)


class SimTunnels:
    """See `moorage.ports.tunnels.Tunnels`."""

    def __init__(self, relay: Relay, way: Way) -> None:
        self.relay = relay
        self.way = way

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        def act(_verdict: Verdict) -> Route:
            return self.relay.open(spec, attempt, endpoint)

        deadline_ms = int((spec.timeouts.connect_s + spec.timeouts.call_s) * 1000)
        return await self.way.call("tunnels", "open", spec.system, act, None, deadline_ms, "OpenTunnel")

    async def probe(self, session: SessionId) -> ProbeResult:
        act = lambda verdict: self.relay.probe(session, verdict)  # noqa: E731 (one line says it)
        return await self.way.call("tunnels", "probe", "", act, None, 10_000, "Probe")

    async def close(self, session: SessionId) -> None:
        act = lambda _verdict: self.relay.close(session)  # noqa: E731
        await self.way.call("tunnels", "close", "", act, None, 10_000, "CloseTunnel")

    async def list(self) -> Mapping[SessionId, PathReport]:
        return await self.way.call("tunnels", "list", "", self.relay.list, None, 30_000)
