"""
JupyterHub: the spawner, the port `Hub`, the pages.

`MoorageSpawner` is looked up when it is asked for (PEP 562), because that is how moorage notices that a Hub is being
configured: the Hub loads the entry points of all spawners when its application object is made, to list their settings,
and asks for the class again, inside its running event loop, when the configuration chooses it.
"""

from typing import TYPE_CHECKING, Any

from .service import Operations, Service, registry

if TYPE_CHECKING:
    from .spawner import MoorageSpawner

__all__ = ["MoorageSpawner", "Operations", "Service", "registry"]


def __getattr__(name: str) -> Any:
    if name != "MoorageSpawner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .embedding import embed
    from .spawner import MoorageSpawner

    embed()
    return MoorageSpawner
