"""Who is at the other end of a local connection. On a machine with several users, loopback is a public place."""

import os
import socket
import struct
from asyncio.trsock import TransportSocket
from pathlib import Path

Connection = socket.socket | TransportSocket

_SOCK_DIAG_BY_FAMILY, _REQUEST, _NETLINK_SOCK_DIAG = 20, 1, 4
_HEADER, _ANSWER_UID = 16, 64
"""Lengths and offsets. Source: Linux, include/uapi/linux/{netlink,sock_diag,inet_diag}.h."""


class Peers:
    """
    Says who may connect: processes of the `allowed` users, of this process's own, and of root.

    A unix socket tells by itself who is there. For TCP the kernel is asked about the socket at the other end, by the
    exact pair of addresses: one message, however many connections there are.
    """

    def __init__(self, allowed: frozenset[int] = frozenset()) -> None:
        self._allowed = allowed | {0, os.getuid()}
        self._netlink: socket.socket | None = None

    def admits(self, connection: Connection) -> bool:
        """Whether the peer is one of them. Unknown means no."""
        return self.uid(connection) in self._allowed

    def uid(self, connection: Connection) -> int | None:
        """The user whose process connected to us from this machine; `None` if the kernel does not say."""
        if connection.family == socket.AF_UNIX:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", credentials)[1])
        here, there = connection.getsockname()[:2], connection.getpeername()[:2]
        try:
            return self._ask_kernel(there, here)
        except OSError:
            self.close()
            return _read_table(there, here)

    def close(self) -> None:
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None

    def _ask_kernel(self, source: tuple[str, int], destination: tuple[str, int]) -> int | None:
        if self._netlink is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
            self._netlink = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
            self._netlink.settimeout(1)
        self._netlink.send(_question(source, destination))
        answer = self._netlink.recv(4096)
        kind_of_answer = struct.unpack_from("=IH", answer)[1]
        if kind_of_answer != _SOCK_DIAG_BY_FAMILY:
            raise OSError("the kernel does not answer questions about sockets")
        uid, inode = struct.unpack_from("=II", answer, _HEADER + _ANSWER_UID)
        return int(uid) if inode else None  # closed sockets belong to nobody, which the kernel writes as user 0


def _question(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """struct inet_diag_req_v2: family, protocol, extensions, pad, states, then the socket's identity."""

    def address(text: str) -> bytes:
        return socket.inet_aton(text).ljust(16, b"\0")

    body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", source[1], destination[1]) + address(source[0]) + address(destination[0])
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, INET_DIAG_NOCOOKIE
    return struct.pack("=IHHII", _HEADER + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + body


def _read_table(source: tuple[str, int], destination: tuple[str, int]) -> int | None:
    """The same from /proc/net/tcp, for kernels without sock_diag. Source: proc(5)."""

    def shown(address: tuple[str, int]) -> str:
        return "{:08X}:{:04X}".format(struct.unpack("=I", socket.inet_aton(address[0]))[0], address[1])

    wanted = [shown(source), shown(destination)]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1:3] == wanted:
            return int(words[7]) if words[9] != "0" else None
    return None
