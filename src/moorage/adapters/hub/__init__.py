"""JupyterHub: the spawner, the port `Hub`, the pages. Importing this inside a Hub that starts embeds moorage in it."""

from .embedding import embed
from .service import Operations, Service, registry
from .settings import hub_config
from .spawner import MoorageSpawner

__all__ = ["MoorageSpawner", "Operations", "Service", "hub_config", "registry"]

embed()
