"""What a path leads to, as it is handed over the control socket and kept in the ledger. It holds no secret."""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from moorage.core.model import Endpoint, JobId, Owner, SessionId, SessionSpec, SystemName, Tag, tag_of
from moorage.ports.system import Handle


@frozen
class Target:
    """The far end of a session's path."""

    session: SessionId
    attempt: int
    system: SystemName
    handle: Handle
    endpoint: Endpoint

    def as_data(self) -> dict[str, Any]:
        """For JSON; `from_data` turns it back."""
        handle, endpoint = self.handle, self.endpoint
        return {
            "session": self.session,
            "attempt": self.attempt,
            "system": self.system,
            "handle": {"owner": handle.owner, "tag": handle.tag, "job": handle.job},
            "endpoint": {
                "host": endpoint.host,
                "port": endpoint.port,
                "socket": endpoint.socket,
                "nonce": endpoint.nonce,
            },
        }


def target_of(spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Target:
    """The target that the port's words name."""
    handle = Handle(spec.key.owner, tag_of(spec, attempt), job)
    return Target(spec.id, attempt, spec.system, handle, endpoint)


def from_data(data: Mapping[str, Any]) -> Target:
    """
    The target that `as_data` described.

    Raises:
        ValueError: It is none.
    """
    try:
        handle, endpoint = data["handle"], data["endpoint"]
        return Target(
            session=SessionId(_text(data["session"])),
            attempt=_whole(data["attempt"]),
            system=SystemName(_text(data["system"])),
            handle=Handle(Owner(_text(handle["owner"])), Tag(_text(handle["tag"])), JobId(_text(handle["job"]))),
            endpoint=Endpoint(
                _text(endpoint["host"]),
                _whole(endpoint["port"]),
                _text(endpoint["socket"]),
                _text(endpoint["nonce"]),
            ),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("this is no target of a path") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > 4096:
        raise TypeError("a text is expected")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("a whole number is expected")
    return value
