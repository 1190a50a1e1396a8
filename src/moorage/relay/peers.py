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


def peer_uid(connection: Connection) -> int | None:
    """
    The user whose process connected to us from this machine; `None` if the kernel does not say.

    A unix socket tells by itself. For TCP the kernel is asked about the socket at the other end, by the exact pair
    of addresses: one message, however many connections there are.
    """
    if connection.family == socket.AF_UNIX:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    here, there = connection.getsockname()[:2], connection.getpeername()[:2]
    try:
        return _ask_kernel(there, here)
    except OSError:
        return _read_table(there, here)


def is_allowed(allowed: frozenset[int], connection: Connection) -> bool:
    """Whether the peer is one of the `allowed` users, this process's own user, or root. Unknown means no."""
    uid = peer_uid(connection)
    return uid is not None and (uid in allowed or uid in (0, os.getuid()))


def _ask_kernel(source: tuple[str, int], destination: tuple[str, int]) -> int | None:
    def address(text: str) -> bytes:
        return socket.inet_aton(text).ljust(16, b"\0")

    # struct inet_diag_req_v2: family, protocol, extensions, pad, states, then the socket's identity.
    body = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", source[1], destination[1]) + address(source[0]) + address(destination[0])
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)  # any interface, INET_DIAG_NOCOOKIE
    header = struct.pack("=IHHII", _HEADER + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(1)
        netlink.send(header + body)
        answer = netlink.recv(4096)
    kind = struct.unpack_from("=IH", answer)[1]
    if kind != _SOCK_DIAG_BY_FAMILY:
        raise OSError("the kernel does not answer questions about sockets")
    uid, inode = struct.unpack_from("=II", answer, _HEADER + _ANSWER_UID)
    return int(uid) if inode else None  # closed sockets belong to nobody, which the kernel writes as user 0


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
