"""How many sessions may be held at once: by one user, by a group, on a system, in all."""

from collections.abc import Mapping

from attrs import field, frozen, validators

_count = [validators.instance_of(int), validators.ge(0)]
_counts = validators.deep_mapping(
    key_validator=validators.instance_of(str),
    value_validator=validators.and_(validators.instance_of(int), validators.ge(0)),
)


@frozen
class Limits:
    """
    Sessions that may be held at once. A start beyond a limit waits, visibly, until it is admitted.

    A group that is not named in `per_group` has no limit of its own; a user in several groups is counted in each.
    """

    in_all: int = field(default=10_000, validator=_count, metadata={"doc": "sessions in all"})
    per_user: int = field(default=10, validator=_count, metadata={"doc": "sessions of one user"})
    per_group: Mapping[str, int] = field(
        factory=dict, validator=_counts, metadata={"doc": "sessions that all members of a group hold together"}
    )
    per_system: int = field(
        default=5_000, validator=_count, metadata={"doc": "sessions on one system, where it names no limit itself"}
    )
    of_system: Mapping[str, int] = field(
        factory=dict, validator=_counts, metadata={"doc": "sessions on the systems named here, instead of per_system"}
    )

    def on_system(self, system: str) -> int:
        """Sessions that may be held on this system."""
        return self.of_system.get(system, self.per_system)
