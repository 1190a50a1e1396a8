"""Notifications of a site: signed, and worth a hint."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import jwt
from attrs import define, field
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from moorage.core.model import Instant, JobId, SystemName
from moorage.ports.clock import Clock
from moorage.ports.errors import Malformed, PortError

from .translate import NOTICE_LIMIT, Absent, noticed_job

TOKEN_LIMIT = 16_384
MOST_WAITING = 10_000
"""Jobs that a watcher has not taken yet; beyond that hints are lost, as they may be."""

KEY_AGAIN_MS = 60_000
"""Least time between two fetches of the certificate: whoever sends rubbish must not make us call the site."""

CLOCKS_APART_S = 60


@define(eq=False)
class _Watcher:
    jobs: dict[JobId, None] = field(factory=dict)
    changed: asyncio.Event = field(factory=asyncio.Event)


@define(eq=False)
class Notices:
    """
    Verifies notifications with the key of the site's certificate and names their jobs to whoever watches.

    The symmetric algorithms are left out, although sites may be set up for them: the key that verifies here is
    public, and whoever has it could sign.
    """

    system: SystemName
    bases: Sequence[str]
    certificate: Callable[[], Awaitable[bytes]]
    clock: Clock
    _key: Any = None
    _algorithms: tuple[str, ...] = ()
    _fetched_at: Instant | None = None
    _turn: asyncio.Lock = field(factory=asyncio.Lock)
    _watchers: list[_Watcher] = field(factory=list)
    _closed: bool = False

    async def take(self, token: str, body: bytes) -> bool:
        """Whether it is the site's and about a job; then every watcher is told."""
        if len(token) > TOKEN_LIMIT or len(body) > NOTICE_LIMIT or not await self._signed(token):
            return False
        try:
            job = noticed_job(body, self.bases)
        except Malformed:
            return False
        for watcher in self._watchers:
            if len(watcher.jobs) < MOST_WAITING:
                watcher.jobs[job] = None
                watcher.changed.set()
        return True

    async def watch(self) -> AsyncIterator[JobId]:
        """Jobs of notifications from now on, each as often as it is taken; ends when the adapter is closed."""
        watcher = _Watcher()
        self._watchers.append(watcher)
        try:
            while not self._closed:
                await watcher.changed.wait()
                watcher.changed.clear()
                while watcher.jobs:
                    job = next(iter(watcher.jobs))
                    del watcher.jobs[job]
                    yield job
        finally:
            self._watchers.remove(watcher)

    def close(self) -> None:
        self._closed = True
        for watcher in self._watchers:
            watcher.changed.set()

    async def _signed(self, token: str) -> bool:
        """The certificate may have changed since it was fetched: a bad signature is worth another look at it."""
        used = self._key
        if used is not None and self._verifies(token):
            return True
        async with self._turn:
            if self._key is used and not await self._fetch():
                return False
        return self._verifies(token)

    def _verifies(self, token: str) -> bool:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=list(self._algorithms),
                leeway=CLOCKS_APART_S,
                options={"require": ["exp", "sub", "iss"], "verify_aud": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            return False
        return claims.get("etd") == "true"

    async def _fetch(self) -> bool:
        now = self.clock.now()
        if self._fetched_at is not None and now < self._fetched_at + KEY_AGAIN_MS:
            return False
        self._fetched_at = now
        try:
            key = x509.load_pem_x509_certificate(await self.certificate()).public_key()
        except (PortError, Absent, ValueError, UnsupportedAlgorithm):
            return False
        for kind, algorithms in _ALGORITHMS:
            if isinstance(key, kind):
                self._key, self._algorithms = key, algorithms
                return True
        return False


_ALGORITHMS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (RSAPublicKey, ("RS256", "RS384", "RS512")),
    (EllipticCurvePublicKey, ("ES256", "ES384", "ES512")),
    (Ed25519PublicKey, ("EdDSA",)),
)
