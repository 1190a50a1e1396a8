"""JupyterHub as the machine sees it: what it was told, and the routes it has."""

from collections.abc import Callable

from moorage.core.model import Route, SessionId, SessionSpec
from moorage.core.progress import Progress
from moorage.ports.errors import PortError

from .faults import Verdict
from .systems import Way


class HubSide:
    """The Hub's own memory; it outlives the process under test, because a proxy does."""

    def __init__(self) -> None:
        self.routes: dict[SessionId, Route] = {}
        self.progress: dict[SessionId, Progress] = {}
        self.reports = 0
        self.on_publish: Callable[[SessionSpec, Route], None] = lambda _spec, _route: None

    def publish(self, spec: SessionSpec, route: Route) -> None:
        self.routes[spec.id] = route
        self.on_publish(spec, route)

    def withdraw(self, session: SessionId) -> None:
        self.routes.pop(session, None)

    def report(self, session: SessionId, progress: Progress) -> None:
        self.reports += 1
        if progress.state == "ended":
            self.progress.pop(session, None)
        else:
            self.progress[session] = progress


class SimHub:
    """See `moorage.ports.hub.Hub`."""

    def __init__(self, side: HubSide, way: Way) -> None:
        self.side = side
        self.way = way

    async def report(self, spec: SessionSpec, progress: Progress) -> None:
        def act(_verdict: Verdict) -> None:
            self.side.report(spec.id, progress)

        await self.way.call("hub", "report", "", act, None, 30_000, "Report")

    async def publish(self, spec: SessionSpec, route: Route) -> None:
        def act(_verdict: Verdict) -> None:
            self.side.publish(spec, route)

        await self.way.call("hub", "publish", "", act, None, 30_000, "Publish")

    async def withdraw(self, spec: SessionSpec) -> None:
        def act(_verdict: Verdict) -> None:
            self.side.withdraw(spec.id)

        await self.way.call("hub", "withdraw", "", act, None, 30_000, "Withdraw")


__all__ = ["HubSide", "PortError", "SimHub"]
