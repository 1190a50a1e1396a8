"""Who we are at a site: what stands in the `Authorization` header of a call, fetched when it is needed."""

import asyncio
import base64
import os
from pathlib import Path

from attrs import define, field

from moorage.adapters.unicore.config import BasicLogin, UnicoreConfig
from moorage.config.fields import SecretRef
from moorage.core.model import Instant, Owner, SystemName
from moorage.core.secret import Secret
from moorage.ports.clock import Clock
from moorage.ports.credentials import Credentials, Token
from moorage.ports.errors import PortError, Unauthorised, Unreachable

MOST_OWNERS = 10_000
"""Tokens kept at a time; the one fetched longest ago goes."""


@define(eq=False)
class _Held:
    """A token and when it is to be renewed: after two thirds of the life it had when it came."""

    token: Token
    renew_at: Instant | None


@define(eq=False)
class Rights:
    """
    Headers by owner.

    A token is renewed early, so that a call that takes long does not outlive it; while a renewal fails, the old one
    serves to its very end. An expired one is never sent: that is `Unauthorised`, which is doubt about a job and never
    its end.
    """

    system: SystemName
    config: UnicoreConfig
    credentials: Credentials
    clock: Clock
    _held: dict[Owner, _Held] = field(factory=dict)
    _turns: dict[Owner, asyncio.Lock] = field(factory=dict)
    _basic: Secret | None = None

    def account(self, owner: Owner) -> str:
        """The account that acts for a person: whoever shares it shares sessions, lookups and rights."""
        login = self.config.accounts.get(owner, "")
        if isinstance(self.config.credentials, BasicLogin):
            return f"{self.config.credentials.username}/{login}" if login else self.config.credentials.username
        return f"{owner}/{login}" if login else str(owner)

    def preferences(self, owner: Owner) -> str | None:
        """The value of `X-UNICORE-User-Preferences`, or `None` to leave the choice to the site."""
        wished = (("uid", self.config.accounts.get(owner)), ("role", self.config.role), ("group", self.config.group))
        return ",".join(f"{key}:{value}" for key, value in wished if value) or None

    def shown(self, owner: Owner) -> str:
        """Whose credentials the site is shown, for people; not where an operator keeps them."""
        login = self.config.credentials
        return f"as {login.username}" if isinstance(login, BasicLogin) else f"with the token of {owner}"

    async def header(self, owner: Owner) -> Secret:
        """
        The value of `Authorization`.

        Raises:
            Unauthorised: There is no valid token; the person has to log in again.
            Unreachable: It cannot be fetched now, and none is left that is valid.
        """
        login = self.config.credentials
        if isinstance(login, BasicLogin):
            if self._basic is None:
                # pyunicore's UsernamePassword takes ASCII only; sites take UTF-8.
                text = f"{login.username}:{_revealed(login.password, self.system)}"
                self._basic = Secret("Basic " + base64.b64encode(text.encode()).decode("ascii"))
            return self._basic
        token = await self._token(owner)
        return Secret("Bearer " + token.secret.reveal())

    async def renew(self, owner: Owner, refused: Secret) -> bool:
        """The site refused a header: whether there is another one now. Asks the issuer once."""
        if isinstance(self.config.credentials, BasicLogin):
            self._basic = None
        else:
            held = self._held.get(owner)
            if held is not None and Secret("Bearer " + held.token.secret.reveal()) == refused:
                del self._held[owner]
        try:
            return await self.header(owner) != refused
        except PortError:
            return False

    async def _token(self, owner: Owner) -> Token:
        held, now = self._held.get(owner), self.clock.now()
        if held is not None and (held.renew_at is None or now < held.renew_at):
            return held.token
        async with self._turns.setdefault(owner, asyncio.Lock()):
            if self._held.get(owner) is not held:
                held = self._held.get(owner)
                if held is not None and _valid(held.token, self.clock.now()):
                    return held.token
            try:
                token = await self.credentials.token(owner, self.system)
            except PortError:
                if held is not None and _valid(held.token, self.clock.now()):
                    return held.token
                raise
            return self._keep(owner, token)

    def _keep(self, owner: Owner, token: Token) -> Token:
        now = self.clock.now()
        if not _valid(token, now):
            raise Unauthorised(f"{self.system}: the token of {owner} has expired; a new login is needed")
        if not _sendable(token.secret):
            raise Unauthorised(f"{self.system}: the token of {owner} is not one that can be sent")
        life = None if token.expires_at is None else token.expires_at - now
        self._held.pop(owner, None)
        self._held[owner] = _Held(token, None if life is None else Instant(now + life * 2 // 3))
        while len(self._held) > MOST_OWNERS:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._turns.pop(oldest, None)
        return token


def _valid(token: Token, now: Instant) -> bool:
    return token.expires_at is None or now < token.expires_at


def _sendable(secret: Secret) -> bool:
    text = secret.reveal()
    return 0 < len(text) <= 16_384 and text.isascii() and text.isprintable() and " " not in text


def _revealed(reference: SecretRef, system: SystemName) -> str:
    """The password, read when it is first needed and again when the site refuses it."""
    try:
        text = os.environ[reference.env or ""] if reference.env else Path(reference.file or "").read_text("utf-8")
    except KeyError as error:
        raise Unreachable(f"{system}: the password cannot be read: variable {reference.env} is not set") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise Unreachable(f"{system}: the password cannot be read from file {reference.file}: {why}") from error
    return text.rstrip("\r\n")
