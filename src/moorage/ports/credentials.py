"""Where rights come from. Secrets pass by reference until the adapter that needs one."""

from collections.abc import Mapping
from typing import Protocol

from attrs import frozen

from moorage.core.model import Instant, Owner, SessionId, SessionKey, SessionSpec, SystemName
from moorage.core.secret import Secret


@frozen
class Token:
    """A right that ends. `expires_at` is on the `Clock`; `None` if it does not expire."""

    secret: Secret
    expires_at: Instant | None = None


class Credentials(Protocol):
    """Rights of people at systems, and of sessions at the Hub."""

    async def token(self, owner: Owner, system: SystemName) -> Token:
        """
        A token that is good for at least one call from now.

        Raises:
            Unauthorised: The person has to log in again. For running sessions that is doubt, never death.
            Unreachable: The issuer does not answer.
        """
        ...

    async def issue(self, spec: SessionSpec, attempt: int) -> None:
        """
        Make what this attempt needs: its gate secret, and a copy of what was kept for its key. Again is harmless.

        Raises:
            Unreachable: Nothing can be kept now (disk full, no access); the submit is tried again later.
        """
        ...

    async def revoke(self, session: SessionId) -> None:
        """After a normal return everything made for the session is refused. Again is harmless."""
        ...


class Vault(Protocol):
    """
    What only a job and its tunnel may know; who makes launch plans and who opens paths ask here.

    Not for the machine or the runner: they carry no secrets, only the ids by which these are found.
    """

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        """
        The gate secret of one attempt: 32 random bytes as 64 hexadecimal digits.

        Raises:
            KeyError: It was never issued, or it was revoked.
        """
        ...

    async def environment(self, session: SessionId) -> Mapping[str, Secret]:
        """The secret variables of the lab (Hub token and the like); empty if none were kept for its key."""
        ...

    async def keep(self, key: SessionKey, environment: Mapping[str, Secret]) -> None:
        """Keep secret variables for the next start under this key; replaces what was kept before."""
        ...
