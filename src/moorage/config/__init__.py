"""`moorage.yaml` into frozen classes, or a readable list of everything that is wrong."""

from .classes import Unsupported, unsupported
from .fields import Bytes, Misfit, Quantity, Seconds, SecretRef, Text, Words, doc
from .load import KindsFor, load
from .model import (
    AccountConfig,
    AudienceConfig,
    Config,
    ExtraConfig,
    GateConfig,
    ListenKind,
    MaintenanceConfig,
    PartitionConfig,
    PartitionKind,
    PlaceConfig,
    ProjectConfig,
    Range,
    RelayConfig,
    ReservationConfig,
    RightConfig,
    ServiceConfig,
    SizeRange,
    StoreConfig,
    SystemConfig,
    SystemLimits,
    TunnelConfig,
)
from .offers import catalog_of
from .problems import ConfigError, Mark, Problem
from .schema import schema
from .shapes import Kinds

__all__ = [
    "AccountConfig",
    "AudienceConfig",
    "Bytes",
    "Config",
    "ConfigError",
    "ExtraConfig",
    "GateConfig",
    "Kinds",
    "KindsFor",
    "ListenKind",
    "MaintenanceConfig",
    "Mark",
    "Misfit",
    "PartitionConfig",
    "PartitionKind",
    "PlaceConfig",
    "Problem",
    "ProjectConfig",
    "Quantity",
    "Range",
    "RelayConfig",
    "ReservationConfig",
    "RightConfig",
    "Seconds",
    "SecretRef",
    "ServiceConfig",
    "SizeRange",
    "StoreConfig",
    "SystemConfig",
    "SystemLimits",
    "Text",
    "TunnelConfig",
    "Unsupported",
    "Words",
    "catalog_of",
    "doc",
    "load",
    "schema",
    "unsupported",
]
