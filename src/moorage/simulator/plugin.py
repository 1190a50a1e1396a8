"""The kind `sim`: a simulated batch system, contributed through the same door as every other kind."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen, validators

from moorage.config.fields import Misfit, doc
from moorage.core.model import SystemName
from moorage.plugins import SystemKind, hookimpl

_at_least_one = validators.ge(1)


@frozen(kw_only=True)
class SimConfig:
    """A simulated cluster. Nodes are all alike; partitions may share them, as on a real one."""

    nodes: int = field(default=16, validator=_at_least_one, metadata=doc("nodes of the cluster"))
    cores: int = field(default=48, validator=_at_least_one, metadata=doc("processor cores of each node"))
    partitions: Mapping[str, int] = field(
        factory=dict,
        validator=validators.deep_mapping(key_validator=validators.instance_of(str), value_validator=_at_least_one),
        metadata=doc("how many nodes each partition may use; without it, one partition `batch` with all nodes"),
    )
    seed: int = field(
        default=0, validator=validators.ge(0), metadata=doc("the same seed, the same behaviour; any whole number")
    )

    def __attrs_post_init__(self) -> None:
        for name, nodes in self.partitions.items():
            if nodes > self.nodes:
                raise Misfit("partitions", f"at most {self.nodes} nodes for {name!r:.40}, as the cluster has")


@hookimpl
def moorage_system_kinds() -> list[SystemKind]:
    return [SystemKind("sim", SimConfig, make, "a simulated batch system in virtual or real time")]


def make(name: SystemName, options: SimConfig, /, **context: Any) -> object:
    """The double of one system; see `moorage.simulator.systems.build`."""
    # Not before it is needed: listing kinds must not load the simulated world.
    from moorage.simulator.systems import build

    return build(name, options, **context)
