"""`moorage.yaml` into frozen classes, or a readable list of everything that is wrong."""

from .classes import Unsupported, unsupported
from .fields import Bytes, Misfit, Quantity, Seconds, SecretRef, Text, Words, doc
from .load import KindsFor, load
from .model import (
    Config,
    MaintenanceConfig,
    PartitionConfig,
    PartitionKind,
    Range,
    ServiceConfig,
    StoreConfig,
    SystemConfig,
    SystemLimits,
    TunnelConfig,
)
from .problems import ConfigError, Mark, Problem
from .schema import schema
from .shapes import Kinds

__all__ = [
    "Bytes",
    "Config",
    "ConfigError",
    "Kinds",
    "KindsFor",
    "MaintenanceConfig",
    "Mark",
    "Misfit",
    "PartitionConfig",
    "PartitionKind",
    "Problem",
    "Quantity",
    "Range",
    "Seconds",
    "SecretRef",
    "ServiceConfig",
    "StoreConfig",
    "SystemConfig",
    "SystemLimits",
    "Text",
    "TunnelConfig",
    "Unsupported",
    "Words",
    "doc",
    "load",
    "schema",
    "unsupported",
]
