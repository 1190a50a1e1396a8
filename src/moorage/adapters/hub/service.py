"""
What the Hub's side of moorage works with, and where the composition root puts it.

JupyterHub makes spawners by itself, with no way to hand something in, so there is one place per process where they find
the service. Adapters do not know the composition root: `embedding.py` calls it by the name in the configuration.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

from attrs import define, field, frozen

from moorage.core.catalog import Choices, User
from moorage.core.model import Owner, SystemName
from moorage.ports.clock import Clock
from moorage.ports.credentials import Vault
from moorage.ports.hub import Hub
from moorage.ports.sessions import Sessions
from moorage.ports.store import Store
from moorage.ports.system import Load


class Operations(Protocol):
    """What an administrator sees and does, besides sessions."""

    def systems(self) -> Sequence[Mapping[str, Any]]:
        """
        One row per system: name, kind, breaker, calls, waiting, outcomes, drained, maintenance, closed, and when it
        last told what its jobs do (observed_s) or what went wrong since (failed).
        """
        ...

    async def tunnels(self) -> Sequence[Mapping[str, Any]]:
        """One row per path the relay knows: session, good_age_s, lost, note."""
        ...

    async def load(self, system: SystemName, owner: Owner) -> Mapping[str, Load] | None:
        """
        How full the partitions of a system are, as this person sees them; `None` if it does not tell.

        One remote call. Raises any `PortError`.
        """
        ...

    async def drain(self, system: SystemName, on: bool) -> None:
        """Take no new sessions on a system, or take them again; what runs goes on."""
        ...

    async def maintenance(self, system: SystemName, on: bool) -> None:
        """The same, told to users as maintenance."""
        ...

    async def notified(self, system: SystemName, token: str, body: bytes) -> bool:
        """
        Pass a system's notification on to its adapter; whether it was believed. It is a hint and nothing more.

        Raises:
            KeyError: No such system, or its kind sends none.
        """
        ...

    async def reload(self) -> str:
        """Read the configuration again. A bad one changes nothing; the answer says what is wrong, or is empty."""
        ...


@frozen
class Service:
    """
    Everything the pages and spawners ask.

    Args:
        hub: Names this Hub in every session key: two Hubs on one store never meet.
        choices: What a person may start now, by the configuration of the moment.
        clock: For times that people see.
        directory: A private directory of the deployment, for presets and the audit log.
    """

    hub: str
    sessions: Sessions
    vault: Vault
    store: Store
    choices: Callable[[User], Choices]
    clock: Clock
    directory: Path
    operations: Operations | None = None


Compose = Callable[[Path, Hub], AbstractAsyncContextManager[Service]]
"""What composes a service: the configuration file and the Hub to tell; working inside the context."""


@define(eq=False)
class Registry:
    """The service of this process, or the wait for it."""

    service: Service | None = None
    problem: str = ""
    _arrived: asyncio.Event = field(factory=asyncio.Event)

    def provide(self, service: Service) -> None:
        self.service, self.problem = service, ""
        self._arrived.set()

    def withdraw(self, problem: str = "") -> None:
        """There is none (any more); `problem` is told to users who try to start something."""
        self.service, self.problem = None, problem
        self._arrived = asyncio.Event()  # a new one: an event belongs to the loop in which it was first waited for

    async def wait(self) -> Service:
        """The service as soon as there is one."""
        while self.service is None:
            await self._arrived.wait()
        return self.service

    async def wait_briefly(self) -> Service:
        """
        The service, for somebody who sits in front of a page: it may be coming up.

        Raises:
            TimeoutError: There is none; at once if it is known why.
        """
        return await asyncio.wait_for(self.wait(), 0 if self.problem else 30)


registry = Registry()
