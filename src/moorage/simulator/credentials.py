"""Rights and secrets of the simulated world: the ports `Credentials` and `Vault`."""

import hashlib
from collections.abc import Mapping

from moorage.core.model import Owner, SessionId, SessionKey, SessionSpec, SystemName
from moorage.core.secret import Secret
from moorage.ports.credentials import Token

from .faults import Verdict
from .systems import Way


class Safe:
    """Where secrets are kept; it outlives the process under test."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.gates: dict[tuple[SessionId, int], Secret] = {}
        self.sessions: dict[SessionId, list[int]] = {}
        self.kept: dict[SessionKey, Mapping[str, Secret]] = {}
        self.environments: dict[SessionId, Mapping[str, Secret]] = {}
        self.issued: list[str] = []
        """Every secret there ever was: none of them may be found anywhere else."""

    def issue(self, spec: SessionSpec, attempt: int) -> None:
        """Make the secret of an attempt; the first one takes along what was kept for the key of its session."""
        session = spec.id
        if session not in self.environments:
            self.environments[session] = self.kept.pop(spec.key, {})
        if (session, attempt) not in self.gates:
            text = hashlib.blake2b(f"{self._seed}/{session}/{attempt}".encode(), digest_size=32).hexdigest()
            self.gates[session, attempt] = Secret(text)
            self.sessions.setdefault(session, []).append(attempt)
            self.issued.append(text)

    def revoke(self, session: SessionId) -> None:
        self.environments.pop(session, None)
        for attempt in self.sessions.pop(session, ()):
            del self.gates[session, attempt]


class SimCredentials:
    """See `moorage.ports.credentials.Credentials`."""

    def __init__(self, safe: Safe, way: Way) -> None:
        self.safe = safe
        self.way = way

    async def token(self, owner: Owner, system: SystemName) -> Token:
        def act(_verdict: Verdict) -> Token:
            return Token(Secret(hashlib.blake2b(f"{owner}@{system}".encode(), digest_size=16).hexdigest()))

        return await self.way.call("credentials", "token", "", act)

    async def issue(self, spec: SessionSpec, attempt: int) -> None:
        def act(_verdict: Verdict) -> None:
            self.safe.issue(spec, attempt)

        await self.way.call("credentials", "issue", "", act)

    async def revoke(self, session: SessionId) -> None:
        def act(_verdict: Verdict) -> None:
            self.safe.revoke(session)

        await self.way.call("credentials", "revoke", "", act, position="Revoke")


class SimVault:
    """See `moorage.ports.credentials.Vault`."""

    def __init__(self, safe: Safe, way: Way) -> None:
        self.safe = safe
        self.way = way

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        return await self.way.call("vault", "gate", "", lambda _verdict: self.safe.gates[session, attempt])

    async def environment(self, session: SessionId) -> Mapping[str, Secret]:
        act = lambda _verdict: dict(self.safe.environments.get(session, {}))  # noqa: E731 (one line says it)
        return await self.way.call("vault", "environment", "", act)

    async def keep(self, key: SessionKey, environment: Mapping[str, Secret]) -> None:
        def act(_verdict: Verdict) -> None:
            self.safe.kept[key] = dict(environment)

        await self.way.call("vault", "keep", "", act)
