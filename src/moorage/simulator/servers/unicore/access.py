"""Who is asking and what they may do: credentials, security sessions, preferences, access lists."""

import base64
import datetime
import hashlib
import json
import uuid
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import aiohttp
import jwt
from attrs import define, field, frozen
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from .answers import Failure
from .clock import Clock
from .config import Issuer, SiteConfig, User

session_header = "X-UNICORE-SecuritySession"
lifetime_header = "X-UNICORE-SecuritySession-Lifetime"
anonymous_dn = "CN=ANONYMOUS,O=UNKNOWN,OU=UNKNOWN"

Operation = Literal["read", "write", "modify"]


@lru_cache(maxsize=4096)
def compact(dn: str) -> str:
    """A distinguished name in RFC 2253 form without blanks between its parts."""
    return ",".join(part.strip() for part in dn.split(","))


@frozen
class Identity:
    """Who somebody proved to be. `fixed` are preferences that a delegation token decided."""

    dn: str
    user: User | None
    method: str | None
    fixed: str | None = None
    renewable: bool = True
    bearer: str | None = None


@define(eq=False)
class Session:
    id: str
    identity: Identity
    address: str
    ends_at: float
    preferences: dict[str, str] = field(factory=dict)


@frozen
class Caller:
    """An identity with the attributes in force for one request."""

    identity: Identity
    session: Session | None
    dn: str
    role: str
    uid: str | None
    group: str | None
    supplementary: tuple[str, ...]

    @property
    def queues(self) -> Sequence[str] | None:
        return self.identity.user.queues if self.identity.user else None


class ServerKey:
    """The server's key and certificate: signs tokens (ES256) and is what notifications are verified with."""

    def __init__(self, site: str, now: float) -> None:
        self._private = ec.generate_private_key(ec.SECP256R1())
        self.dn = f"CN={site},O=UNICORE,C=EU"
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.COUNTRY_NAME, "EU"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "UNICORE"),
                x509.NameAttribute(NameOID.COMMON_NAME, site),
            ]
        )
        start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
        self.ends_at = now + 365 * 86_400
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(datetime.datetime.fromtimestamp(self.ends_at, datetime.UTC))
            .sign(self._private, hashes.SHA256())
        )
        self.certificate_pem = certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        return self._private.public_key()

    def token(self, subject: str, now: float, lifetime_s: int, extra: Mapping[str, str] | None = None) -> str:
        """A delegation token for `subject`. Source: UNICORE-EU/use JWTUtils."""
        claims: dict[str, Any] = {"sub": subject, "iss": self.dn, "iat": int(now), "etd": "true"}
        claims["exp"] = claims["iat"] + lifetime_s
        return jwt.encode(claims | dict(extra or {}), self._private, algorithm="ES256")


class Access:
    """The site's door. Holds the security sessions, in memory only, as the server does."""

    def __init__(self, config: SiteConfig, key: ServerKey, clock: Clock) -> None:
        self._config = config
        self._key = key
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._count: Counter[tuple[str, str]] = Counter()
        self._basic: dict[str, Identity] = {}
        self._tokens: dict[str, tuple[float, Identity]] = {}
        self._callers: dict[tuple[Identity, tuple[tuple[str, str], ...]], Caller] = {}
        # The server's user file holds hashes; so do we, so that a dump of the site shows no password.
        self._salt = uuid.uuid4().hex
        self._users = {user.name: (self._hash(user.password), user) for user in config.users}
        self._by_dn = {compact(self.dn_of(user)): user for user in config.users}

    def dn_of(self, user: User) -> str:
        return user.dn or f"CN={user.name}, O=UNICORE, C=EU"

    async def enter(self, headers: Mapping[str, str], address: str) -> Caller:
        """
        Find out who asks. A session decides alone; else credentials; else anonymous.

        Raises:
            Failure: 432 for an unknown session even if good credentials came along; 403, without a
                body, for credentials nobody accepts and for preferences out of reach.

        Source: UNICORE-EU/use AuthNHandler, SessionManager.
        """
        session_id = headers.get(session_header)
        if session_id is not None:
            session = self._session(session_id)
        else:
            identity = await self._identify(headers.get("Authorization"))
            session = self._open(identity, address)
        sent = headers.get("X-UNICORE-User-Preferences")
        identity = session.identity
        if identity.fixed is not None:
            session.preferences = parse_preferences(identity.fixed)
        elif sent is not None:
            # One map for the whole session: a preference sent once stays.
            chosen = session.preferences | parse_preferences(sent)
            self._resolve(identity, session, chosen)
            session.preferences = chosen
        return self._resolve(identity, session, session.preferences)

    def anonymous(self, address: str) -> Caller:
        identity = Identity(anonymous_dn, None, None)
        return self._resolve(identity, self._open(identity, address), {})

    def with_preferences(self, caller: Caller, preferences: Mapping[str, str]) -> None:
        """Touching a job submitted under other preferences leaves them behind in the session."""
        if caller.session is not None:
            caller.session.preferences = dict(preferences) | caller.session.preferences

    def session_headers(self, caller: Caller) -> dict[str, str]:
        session = caller.session
        if session is None:
            return {}
        left_ms = max(1, int((session.ends_at - self._clock.now()) * 1000))
        return {session_header: session.id, lifetime_header: str(left_ms)}

    def forget_sessions(self) -> None:
        """What a restart of the server does: every client sees 432 next time."""
        self._sessions.clear()
        self._count.clear()

    def session_count(self) -> int:
        return len(self._sessions)

    def _session(self, session_id: str) -> Session:
        session = self._sessions.get(session_id)
        if session is not None and session.ends_at <= self._clock.now():
            self._drop(session_id)
            session = None
        if session is None:
            raise Failure(432)
        return session

    def _open(self, identity: Identity, address: str) -> Session:
        """
        A new session. Past the limit of one user at one address the OLDEST SESSION OF ALL goes: the server
        never updates the time of access and its search does not look at the user.
        """
        owner = (identity.dn, address)
        if self._count[owner] >= self._config.sessions_per_user or (len(self._sessions) >= self._config.most_sessions):
            self._drop(next(iter(self._sessions)))
        session = Session(str(uuid.uuid4()), identity, address, self._clock.now() + self._config.session_s)
        self._sessions[session.id] = session
        self._count[owner] += 1
        return session

    def _drop(self, session_id: str) -> None:
        session = self._sessions.pop(session_id)
        owner = (session.identity.dn, session.address)
        self._count[owner] -= 1
        if self._count[owner] <= 0:
            del self._count[owner]

    async def _identify(self, authorization: str | None) -> Identity:
        if authorization is None:
            if not self._config.anonymous_allowed:
                raise Failure(403)
            return Identity(anonymous_dn, None, None)
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() == "basic":
            return self._basic.get(authorization) or self._identify_basic(authorization, credential)
        if scheme.lower() == "bearer":
            return await self._identify_bearer(credential.strip())
        raise Failure(403)

    def _identify_basic(self, authorization: str, credential: str) -> Identity:
        try:
            name, _, password = base64.b64decode(credential, validate=True).decode().partition(":")
        except ValueError as error:
            raise Failure(403) from error
        known = self._users.get(name)
        if known is None or known[0] != self._hash(password):
            raise Failure(403)
        identity = Identity(self.dn_of(known[1]), known[1], "PASSWORD_FILE")
        self._basic[authorization] = identity
        return identity

    async def _identify_bearer(self, token: str) -> Identity:
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.PyJWTError:
            claims = {}
        issuer, subject = claims.get("iss"), claims.get("sub")
        if claims.get("etd") == "true" and issuer and subject:
            return self._identify_delegation(token, claims)
        if issuer and issuer == subject and issuer in self._users:
            return self._identify_signed(token, self._users[issuer][1])
        for provider in self._config.issuers:
            identity = await self._identify_openid(token, provider)
            if identity is not None:
                return identity
        raise Failure(403)

    def _identify_delegation(self, token: str, claims: Mapping[str, Any]) -> Identity:
        if claims["iss"] != self._key.dn:
            raise Failure(403)
        try:
            jwt.decode(
                token,
                self._key.public,
                algorithms=["ES256"],
                audience=self._key.dn if "aud" in claims else None,
                options={"require": ["exp"]},
            )
        except jwt.PyJWTError as error:
            raise Failure(403) from error
        dn = str(claims["sub"])
        return Identity(
            dn,
            self._by_dn.get(compact(dn)),
            "ETD",
            claims.get("preferences"),
            claims.get("renewable") == "true",
        )

    def _identify_signed(self, token: str, user: User) -> Identity:
        for text in user.public_keys:
            load = serialization.load_pem_public_key if text.startswith("-----") else serialization.load_ssh_public_key
            try:
                key: Any = load(text.encode())
                jwt.decode(token, key, algorithms=["RS256", "ES256", "EdDSA"], options={"require": ["exp"]})
            except (jwt.PyJWTError, ValueError, TypeError):
                continue
            return Identity(self.dn_of(user), user, "SSHKEY")
        raise Failure(403)

    async def _identify_openid(self, token: str, provider: Issuer) -> Identity | None:
        """Ask the userinfo endpoint; an accepted token is remembered for 5 minutes, as the server does."""
        known = self._tokens.get(token)
        if known is not None and known[0] > self._clock.now():
            return known[1]
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client,
                client.get(provider.userinfo, headers=headers, allow_redirects=False) as reply,
            ):
                text = await reply.content.read(1_000_000)
                info = json.loads(text) if reply.status == 200 else {}
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        name = info.get(provider.claim) if isinstance(info, dict) else None
        user = next((u for u in self._config.users if name and (u.subject or u.name) == name), None)
        if user is None:
            return None
        identity = Identity(self.dn_of(user), user, "OAUTH", bearer=token)
        if len(self._tokens) > 10_000:
            self._tokens.clear()
        self._tokens[token] = (self._clock.now() + 300, identity)
        return identity

    def _hash(self, password: str) -> str:
        return hashlib.md5((self._salt + password).encode(), usedforsecurity=False).hexdigest()

    def _resolve(self, identity: Identity, session: Session, chosen: Mapping[str, str]) -> Caller:
        """The attributes in force; a value that is not among the available ones is refused with 403."""
        user = identity.user
        if user is None or user.role is None:
            if chosen and user is None and identity.method is None:
                raise Failure(403)
            return Caller(identity, session, identity.dn, "anonymous", None, None, ())
        uids = tuple(user.uids) or (user.name,)
        uid = chosen.get("uid", uids[0])
        group = chosen.get("group", user.groups[0] if user.groups else None)
        extra = tuple(word for word in chosen.get("supgids", "").split("+") if word)
        if (
            uid not in uids
            or (group is not None and group not in user.groups)
            or chosen.get("role", user.role) != user.role
            or any(word not in user.groups and word not in user.supplementary for word in extra)
        ):
            raise Failure(403)
        selected = extra or tuple(user.supplementary)
        return Caller(identity, session, identity.dn, user.role, uid, group, selected)


_preference_names = {
    "uid": "uid",
    "xlogin": "uid",
    "role": "role",
    "group": "group",
    "pgid": "group",
    "supgids": "supgids",
    "supplementarygroups": "supgids",
}


def parse_preferences(text: str) -> dict[str, str]:
    """
    `uid:x,role:y` as a mapping; a wrong form is refused with 403 and no body.

    Names are read without regard to case, and names that are none are passed over.
    Source: UNICORE-EU/use AuthNHandler, parsePrefsItem and handlePreference.
    """
    chosen: dict[str, str] = {}
    for item in text.split(","):
        key, colon, value = item.strip().partition(":")
        if not colon or not value or ":" in value:
            raise Failure(403)
        name = _preference_names.get(key.lower())
        if name is not None:
            chosen[name] = value
    return chosen


def may(caller: Caller, operation: Operation, owner: str, acl: Sequence[str]) -> bool:
    """
    Whether a caller may do something with a single resource: banned never, admin and owner always, then
    the access list. Source: UNICORE-EU/use DefaultPDP.
    """
    if caller.role == "banned":
        return False
    if caller.role == "admin" or compact(caller.dn) == compact(owner):
        return True
    return any(_entry_matches(entry, caller, operation) for entry in acl)


_implied: Mapping[str, tuple[Operation, ...]] = {
    "read": ("read",),
    "write": ("read", "write"),
    "modify": ("read", "write", "modify"),
}


def _entry_matches(entry: str, caller: Caller, operation: Operation) -> bool:
    allowed, _, rest = entry.partition(":")
    match, _, value = rest.partition(":")
    if operation not in _implied.get(allowed, ()):
        return False
    mine = {"DN": compact(caller.dn), "UID": caller.uid, "GROUP": caller.group, "ROLE": caller.role}
    return mine.get(match) == (compact(value) if match == "DN" else value)


def acl_problem(entry: str) -> str | None:
    """Why an access list entry is wrong, or None."""
    parts = entry.split(":", 2)
    if len(parts) != 3 or parts[0] not in _implied or parts[1] not in ("DN", "VO", "GROUP", "UID", "ROLE"):
        return f"java.lang.IllegalArgumentException: Invalid ACL entry: {entry[:200]}"
    return None
