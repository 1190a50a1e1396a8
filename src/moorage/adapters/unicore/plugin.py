"""The kind `unicore`, of systems and of tunnels; contributed through the same door as every other kind."""

from typing import Any

from moorage.adapters.unicore.config import UnicoreConfig
from moorage.core.model import SystemName
from moorage.plugins import SystemKind, TunnelKind, hookimpl


@hookimpl
def moorage_system_kinds() -> list[SystemKind]:
    return [SystemKind("unicore", UnicoreConfig, make_system, "a site behind UNICORE/X, over its REST API")]


@hookimpl
def moorage_tunnel_kinds() -> list[TunnelKind]:
    return [TunnelKind("unicore", UnicoreConfig, make_dialer, "UNICORE's port forwarding; needs no SSH account")]


def make_system(name: SystemName, options: UnicoreConfig, /, **context: Any) -> object:
    """The adapter of one site; see `moorage.adapters.unicore.system.build`."""
    # Listing kinds must not load pyunicore and two HTTP clients.
    from moorage.adapters.unicore.system import build

    return build(name, options, **context)


def make_dialer(name: SystemName, options: UnicoreConfig, /, **context: Any) -> object:
    """The way to jobs of one site; see `moorage.adapters.unicore.dialer.build`."""
    from moorage.adapters.unicore.dialer import build

    return build(name, options, **context)
