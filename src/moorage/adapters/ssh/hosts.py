"""
Login nodes: how they are written in the configuration, in which order they are tried, and when they are left alone.

Everything here is pure: time is an argument, chance is a `random.Random` that the caller made.
"""

import base64
import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Annotated

import attrs
from attrs import define, field, frozen

from moorage.config.fields import Misfit, Text, doc
from moorage.core.model import Endpoint
from moorage.ports.errors import Refused, Unauthorised

# The grammars keep out what OpenSSH would read otherwise: a leading '-' is an option, '%' and '~' are expanded, and
# a blank, quote or newline begins another word or line of a generated file.
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,20}}|[0-9A-Fa-f]{{0,4}}(?::[0-9A-Fa-f]{{0,4}}){{2,7}}"
_RANGE = r"\[[0-9]{1,5}-[0-9]{1,5}\]"
_PATTERN = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,100}}{_RANGE}[A-Za-z0-9._-]{{0,100}}"
_KEY_TYPE = (
    r"(?:ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)|sk-ssh-ed25519@openssh\.com"
    r"|sk-ecdsa-sha2-nistp256@openssh\.com)"
)
_KEY = rf"{_KEY_TYPE} [A-Za-z0-9+/]{{40,1400}}={{0,2}}"

HostName = Annotated[str, Text(_HOST, "a host name or an IPv6 address", 253)]
HostPattern = Annotated[
    str, Text(rf"{_HOST}|{_PATTERN}", 'a host name, or several as in "login[01-04].example.org"', 253)
]
UserName = Annotated[
    str,
    Text(r"[A-Za-z_][A-Za-z0-9_.@+-]{0,63}", "an account name of letters, digits, _ . @ + -, not beginning with '-'"),
]
KeyPath = Annotated[
    str, Text(r"/[A-Za-z0-9_./+@,=:-]{1,1000}", "the absolute path of a file, without blanks or quotes")
]
HostKey = Annotated[
    str,
    Text(
        rf"(?:(?:{_HOST}) )?{_KEY}",
        'a host key as `moorage hostkeys` prints it: "ssh-ed25519 AAAA…", the host before it if it is one host\'s only',
        2000,
    ),
]

MOST_HOSTS = 100
"""Of one system; a longer list is a slip in a pattern such as [1-9999]."""


@frozen(kw_only=True)
class JumpConfig:
    """A host on the way to the login nodes."""

    host: HostName = field(metadata=doc("its name or address, as the host before it knows it"))
    port: int = field(default=22, validator=attrs.validators.in_(range(1, 65_536)), metadata=doc("where its sshd is"))
    user: UserName | None = field(default=None, metadata=doc("account on it; without it, the one of the login nodes"))


@frozen(kw_only=True)
class LoginConfig:
    """How to log in to a system."""

    hosts: tuple[HostPattern, ...] = field(
        metadata=doc('its login nodes; "login[01-04].example.org" stands for four of them')
    )
    port: int = field(default=22, validator=attrs.validators.in_(range(1, 65_536)), metadata=doc("where sshd listens"))
    user: UserName = field(metadata=doc("the account that logs in"))
    key_file: KeyPath | None = field(default=None, metadata=doc("private key, without a passphrase, mode 0600"))
    certificate_file: KeyPath | None = field(default=None, metadata=doc("certificate that belongs to the key"))
    agent: bool = field(default=False, metadata=doc("use the keys of the agent at SSH_AUTH_SOCK"))
    host_keys: tuple[HostKey, ...] = field(
        metadata=doc("host keys that are accepted, of the jump hosts too; see `moorage hostkeys`")
    )
    jump: tuple[JumpConfig, ...] = field(default=(), metadata=doc("hosts on the way, the first one first"))

    def __attrs_post_init__(self) -> None:
        for name, values in (("hosts", self.hosts), ("host_keys", self.host_keys)):
            if not values:
                raise Misfit(name, "at least one")
        if not self.key_file and not self.agent:
            raise Misfit("key_file", "a key file, or `agent: true`")
        if self.certificate_file and not self.key_file:
            raise Misfit("key_file", "the key that the certificate is for")
        if len(self.nodes) > MOST_HOSTS:
            raise Misfit("hosts", f"at most {MOST_HOSTS} hosts")

    @property
    def nodes(self) -> tuple[str, ...]:
        """The login nodes, patterns expanded, each once."""
        return tuple(dict.fromkeys(host for pattern in self.hosts for host in expand(pattern)))

    def keys_of(self, host: str) -> tuple[tuple[str, str], ...]:
        """Type and base64 text of every key that `host` may show."""
        words = [line.split(" ") for line in self.host_keys]
        return tuple((line[-2], line[-1]) for line in words if len(line) == 2 or line[0] == host)

    def known_hosts(self) -> str:
        """The same as a known_hosts file. Names are as OpenSSH looks them up: `[host]:port` unless the port is 22."""
        ports = {**dict.fromkeys(self.nodes, self.port), **{jump.host: jump.port for jump in self.jump}}
        lines = [
            f"{host if port == 22 else f'[{host}]:{port}'} {kind} {text}"
            for host, port in ports.items()
            for kind, text in self.keys_of(host)
        ]
        return "".join(line + "\n" for line in lines)

    @property
    def identity(self) -> str:
        """What names who logs in: authentication failures of one identity do not concern another."""
        return f"{self.user} {self.key_file or 'agent'} {self.certificate_file or ''}".rstrip()


def check(field_name: str, value: str, grammar: str) -> str:
    """
    A value of the grammar "host", "user" or "path", for code that gets it from elsewhere than the configuration.

    Raises:
        ValueError: Names the field; the value is not repeated, because it is made to be misread.
    """
    pattern = {"host": _HOST, "user": r"[A-Za-z_][A-Za-z0-9_.@+-]{0,63}", "path": r"/[A-Za-z0-9_./+@,=:%~ -]{1,1000}"}
    if len(value) > 1000 or not re.fullmatch(pattern[grammar], value, re.ASCII):
        raise ValueError(f"{field_name} is not a {grammar} name we would pass on")
    return value


SOCKET_PATH_BYTES = 107
"""`sun_path` of unix(7) without its final NUL."""


def destination(system: str, endpoint: Endpoint) -> tuple[str, int, str]:
    """
    Host and port of an endpoint, or the path of its socket.

    Raises:
        Refused: It cannot be one. It comes out of a job, and so from its user.
    """
    path = endpoint.socket
    if path:
        if not path.startswith("/") or not path.isprintable() or len(path.encode()) > SOCKET_PATH_BYTES:
            raise Refused(f"{system}: the socket's path is not absolute, or longer than {SOCKET_PATH_BYTES} bytes")
        return "", 0, path
    if not 0 < endpoint.port < 65_536:
        raise Refused(f"{system}: the port is not between 1 and 65535")
    try:
        return check("host", endpoint.host, "host"), endpoint.port, ""
    except ValueError as error:
        raise Refused(f"{system}: {error}") from None


def expand(pattern: str) -> Iterator[str]:
    """The hosts of a pattern; leading zeros are kept as written."""
    match = re.fullmatch(r"(.*)\[([0-9]+)-([0-9]+)\](.*)", pattern)
    if match is None:
        yield pattern
        return
    before, first, last, after = match.groups()
    for number in range(int(first), min(int(last), int(first) + MOST_HOSTS) + 1):
        yield f"{before}{number:0{len(first)}d}{after}"


def fingerprint(key: str) -> str:
    """SHA256 fingerprint of a base64 key, as `ssh-keygen -l` shows it, for a human to compare."""
    digest = hashlib.sha256(base64.b64decode(key)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def certificate_end(text: str) -> float:
    """
    When a certificate ends, as the text of its file says: seconds since the epoch, infinity for never.

    Source: OpenSSH, PROTOCOL.certkeys, "New public key formats".

    Raises:
        ValueError: It is no certificate.
    """
    words = text.split()
    try:
        data = base64.b64decode(words[1], validate=True)
        kind, data = _string(data)
        own = _CERTIFICATE_FIELDS[kind.decode("ascii")]
        for _ in range(1 + own):  # a nonce, and the public key
            _, data = _string(data)
        data = data[12:]  # serial number and type
        for _ in ("key id", "principals"):
            _, data = _string(data)
        end = int(struct.unpack_from(">Q", data, 8)[0])
    except (LookupError, ValueError, struct.error) as error:
        raise ValueError("this is no certificate of OpenSSH's") from error
    return math.inf if end == 2**64 - 1 else float(end)


_CERTIFICATE_FIELDS = {
    "ssh-ed25519-cert-v01@openssh.com": 1,
    "ssh-rsa-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp256-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp384-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp521-cert-v01@openssh.com": 2,
    "sk-ssh-ed25519-cert-v01@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": 3,
}
"""Strings of the public key in a certificate of each kind."""


def _string(data: bytes) -> tuple[bytes, bytes]:
    (size,) = struct.unpack_from(">I", data)
    if len(data) < 4 + size:
        raise ValueError("cut short")
    return data[4 : 4 + size], data[4 + size :]


def refuse_expired(config: LoginConfig, now: float) -> None:
    """
    Keep a certificate that is over from being shown: that would be a failed login, and those are counted.

    A file that is renewed meanwhile is read with the next login; connections that are there are not concerned.

    Raises:
        Unauthorised: It is over, or cannot be read.
    """
    if config.certificate_file is None:
        return
    try:
        with open(config.certificate_file, encoding="ascii") as file:
            end = certificate_end(file.read(100_000))
    except (OSError, ValueError) as error:
        raise Unauthorised(f"the certificate of {config.user} cannot be read: {type(error).__name__}") from error
    if end <= now:
        raise Unauthorised(f"the certificate of {config.user} is over since {now - end:.0f} s; nobody was asked")


# Which host next ---------------------------------------------------------------------------------------------


@define
class _Host:
    failures: int = 0
    not_before: float = 0.0
    closed_until: float = 0.0
    note: str = ""


@define
class Hosts:
    """
    What is known about the login nodes of one system and one identity.

    The node that worked last is tried first, the others in random order, so that many deployments do not all knock
    at the first of the list. A node that failed is left alone for a while: full jitter, doubling. One that refused
    our credentials is closed for long, because a few bad logins from one address can lock out everybody there.

    Args:
        nodes: Their names.
        chance: For order and jitter.
        base_s, cap_s: First and longest pause after a failed connect.
    """

    nodes: Sequence[str]
    chance: Random
    base_s: float = 0.5
    cap_s: float = 2.0
    _state: Mapping[str, _Host] = field(init=False)
    _last_good: str = field(init=False, default="")

    def __attrs_post_init__(self) -> None:
        self._state = {node: _Host() for node in self.nodes}

    def due(self, now: float) -> list[str]:
        """The nodes that may be tried now, in order."""
        free = [node for node in self.nodes if max(self._of(node).not_before, self._of(node).closed_until) <= now]
        self.chance.shuffle(free)
        free.sort(key=lambda node: (node != self._last_good, self._of(node).failures))
        return free

    def next_due(self) -> float:
        """When the first node may be tried again."""
        return min(max(host.not_before, host.closed_until) for host in self._state.values())

    def closed(self, now: float) -> str:
        """Why every node is closed after authentication failures; "" if at least one is open."""
        if any(host.closed_until <= now for host in self._state.values()):
            return ""
        return next(iter(self._state.values())).note

    def good(self, node: str) -> None:
        self._last_good = node
        self._of(node).failures, self._of(node).not_before = 0, 0.0

    def failed(self, node: str, now: float, note: str) -> None:
        host = self._of(node)
        host.failures, host.note = host.failures + 1, note
        limit = min(self.cap_s, self.base_s * 2 ** min(host.failures - 1, 10))
        # At least a third of it: full jitter draws near zero often enough to knock twice at once.
        host.not_before = now + limit * self.chance.uniform(0.33, 1.0)

    def unauthorised(self, node: str, now: float, pause_s: float, note: str) -> None:
        host = self._of(node)
        host.failures, host.note, host.closed_until = host.failures + 1, note, now + pause_s

    def _of(self, node: str) -> _Host:
        return self._state[node]
