"""One way into a system: all that a third party writes for a new kind of tunnel."""

from asyncio import StreamReader, StreamWriter
from typing import Protocol, runtime_checkable

from moorage.core.model import Endpoint

from .system import Handle


class Dialer(Protocol):
    """Makes byte streams to endpoints inside one system."""

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        """
        A byte stream to the endpoint. Nothing has been sent on it; the caller proves itself at the gate.

        A way that accepts before it knows whether anybody listens (OpenSSH's) may return a stream that ends at once;
        the next dial to that endpoint then says why.

        Args:
            job: The job that reported the endpoint. Ways that lead through the job itself need it (UNICORE's
                forwarding hangs below the job's address and acts for its owner); others only name it in errors.

        Raises:
            Refused: The system will never let us through to this endpoint.
            Unreachable: Nobody listens there (yet), or the way is interrupted.
            Unauthorised: The way in does not accept our credentials; the host is left alone for a while.
        """
        ...

    async def close(self) -> None:
        """Give back what the dialer holds; streams end."""
        ...


@runtime_checkable
class Lanes(Protocol):
    """What a dialer may offer besides, if it has several connections into a system."""

    def crowded(self, writer: StreamWriter) -> bool:
        """
        Whether a stream that `dial` returned and nobody uses yet shares its connection with somebody's bulk, while a
        new one would not. It is then better ended than used.
        """
        ...
