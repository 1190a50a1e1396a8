"""
A UNICORE/X that runs on this machine: REST over real sockets, jobs as real processes or in virtual time.

    async with serve(SiteConfig(timing=Timing.fast())) as running:
        running.url       # the base, `http://127.0.0.1:PORT/DEMO-SITE/rest/core`

It behaves as the server's source says, not as its manual does. Read `routes` for how a request finds its
handler, `calls` and `storage_calls` for what handlers do, `jobs` for the life of a job, `execution` for the
batch system, `faults` for everything that can go wrong on purpose.

Source: UNICORE-EU/unicorex 11.1.0, UNICORE-EU/use 6.1.2, UNICORE-EU/tsi 11.2, UNICORE-EU/gateway 2.5.
"""

from .clock import ManualClock, RealClock
from .config import Application, ConfigError, Issuer, Partition, ServerConfig, SiteConfig, Timing, User, load
from .execution import Work
from .faults import Faults, Rule, catalogue
from .server import Running, main_serve, serve
from .virtual import Outcome

__all__ = [
    "Application",
    "ConfigError",
    "Faults",
    "Issuer",
    "ManualClock",
    "Outcome",
    "Partition",
    "RealClock",
    "Rule",
    "Running",
    "ServerConfig",
    "SiteConfig",
    "Timing",
    "User",
    "Work",
    "catalogue",
    "load",
    "main_serve",
    "serve",
]
