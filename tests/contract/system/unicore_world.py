"""A simulated UNICORE site over real sockets, and the real adapter on it; for the tests of this directory."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field
from tests.contract.system.suite import PlansOfSleepers

from moorage.adapters.unicore.config import BasicLogin, UnicoreConfig
from moorage.adapters.unicore.dialer import UnicoreDialer
from moorage.adapters.unicore.dialer import build as build_dialer
from moorage.adapters.unicore.system import UnicoreSystem, build
from moorage.config.fields import SecretRef
from moorage.core.model import Instant, Owner, SystemName
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.credentials import Token
from moorage.simulator.servers.unicore import Running, SiteConfig, Timing, User, serve

NAME = SystemName("here")
ALICE, BOB = Owner("alice"), Owner("bob")
PASSWORD = "correct horse"
DN = "CN=Alice, O=Suite, C=EU"

QUICK = Timeouts(connect_s=1, call_s=2, submit_s=3)


@define
class WallClock:
    """The wall clock, with an offset that tests may move."""

    ahead_s: float = 0.0

    def now(self) -> Instant:
        return Instant(int((time.time() + self.ahead_s) * 1000))

    async def sleep_until(self, at: Instant) -> None:
        await asyncio.sleep(max(0.0, (at - self.now()) / 1000))


@define
class Issuer:
    """Tokens by owner; what is put into `raises` is raised instead. Counts what it is asked."""

    give: Callable[[Owner], Token] = lambda owner: Token(Secret("no-token"))
    raises: Exception | None = None
    asked: int = 0

    async def token(self, owner: Owner, system: SystemName) -> Token:
        self.asked += 1
        if self.raises is not None:
            raise self.raises
        return self.give(owner)

    async def issue(self, spec: Any, attempt: int) -> None:
        """Nothing is issued here."""

    async def revoke(self, session: Any) -> None:
        """Nothing is revoked here."""


@define
class World:
    """A running site with an adapter on it; `make` gives further ones."""

    site: Running
    directory: Path
    clock: WallClock = field(factory=WallClock)
    issuer: Issuer = field(factory=Issuer)
    timeouts: Timeouts = QUICK
    made: list[Any] = field(factory=list)

    def config(self, **changes: Any) -> UnicoreConfig:
        secret = self.directory / "password"
        secret.write_text(PASSWORD + "\n")
        ca_file = None if self.site.ca_file is None else str(self.site.ca_file)
        login = BasicLogin(kind="basic", username="alice", password=SecretRef(file=str(secret)))
        plain = UnicoreConfig(url=self.site.url, ca_file=ca_file, credentials=login, connections=8)
        return attrs.evolve(plain, **changes)

    def make(self, **changes: Any) -> UnicoreSystem:
        system = build(NAME, self.config(**changes), plans=PlansOfSleepers(), **self._context())
        self.made.append(system)
        return system

    def make_dialer(self, **changes: Any) -> UnicoreDialer:
        dialer = build_dialer(NAME, self.config(**changes), **self._context())
        self.made.append(dialer)
        return dialer

    def _context(self) -> dict[str, Any]:
        return {
            "clock": self.clock,
            "credentials": self.issuer,
            "timeouts": self.timeouts,
            "simulation": True,
            "deployment": "suite",
            "directory": self.directory,
        }

    async def close(self) -> None:
        for each in self.made:
            await each.close()


@contextlib.asynccontextmanager
async def world(directory: Path, *, timeouts: Timeouts = QUICK, **changes: Any) -> AsyncIterator[World]:
    """A site with the users alice and bob. `changes` are fields of its configuration, `tls` among them."""
    from moorage.simulator.servers.unicore import ServerConfig

    tls = changes.pop("tls", False)
    users = (User("alice", PASSWORD, DN, uids=("alice", "proj1")), User("bob", "another one"))
    config = attrs.evolve(SiteConfig(users=users, timing=Timing.fast()), **changes)
    async with serve(ServerConfig(sites=(config,), tls=tls)) as site:
        made = World(site, directory, timeouts=timeouts)
        try:
            yield made
        finally:
            await made.close()
