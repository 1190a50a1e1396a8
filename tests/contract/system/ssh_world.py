"""Systems behind SSH for tests: their options, a clock, and the simulated login node."""

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from tests.contract.system.suite import PlansOfSleepers

from moorage.adapters.ssh.host import HostSystem
from moorage.adapters.ssh.options import SlurmConfig, SshHostConfig
from moorage.adapters.ssh.slurm import SlurmSystem
from moorage.core.model import Instant, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.plans import Plans
from moorage.simulator.servers.ssh import Account, NodeConfig, Running, Timing, serve

TIMEOUTS = Timeouts(connect_s=5, call_s=10, submit_s=10)


class WallClock:
    """The machine's time."""

    def now(self) -> Instant:
        return Instant(int(time.time() * 1000))

    async def sleep_until(self, at: Instant) -> None:
        raise NotImplementedError


@frozen
class Login:
    """How to log in to a server, as options of a configuration."""

    port: int
    host_key: str
    key_file: Path
    user: str

    def options(self, **more: Any) -> dict[str, Any]:
        values: Mapping[str, Any] = {
            "hosts": ("127.0.0.1",),
            "port": self.port,
            "host_keys": (self.host_key,),
            "key_file": str(self.key_file),
            "user": self.user,
        }
        return {**values, **more}


@contextlib.contextmanager
def simulated(config: NodeConfig | None = None, **more: Any) -> Iterator[tuple[Running, Login]]:
    """A simulated login node that is quick, and how alice logs in."""
    config = config or NodeConfig(accounts=(Account("alice"), Account("bob")), timing=Timing.fast())
    with serve(config, **more) as running:
        assert running.key_file is not None
        yield running, Login(running.port, running.host_key, running.key_file, "alice")


@contextlib.asynccontextmanager
async def slurm(
    login: Login, timeouts: Timeouts = TIMEOUTS, plans: Plans | None = None, **options: Any
) -> AsyncIterator[SlurmSystem]:
    """The adapter, closed afterwards."""
    config = SlurmConfig(**login.options(**options))
    system = SlurmSystem(SystemName("cluster"), config, WallClock(), plans or PlansOfSleepers(), timeouts)
    try:
        yield system
    finally:
        await system.close()


@contextlib.asynccontextmanager
async def host(login: Login, timeouts: Timeouts = TIMEOUTS, **options: Any) -> AsyncIterator[HostSystem]:
    """The adapter for a host without a batch system, closed afterwards."""
    config = SshHostConfig(**login.options(**options))
    system = HostSystem(SystemName("workstation"), config, WallClock(), PlansOfSleepers(), timeouts, grace_s=1)
    try:
        yield system
    finally:
        await system.close()
