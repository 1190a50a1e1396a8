"""The way in for nodes that the relay reaches by itself."""

import asyncio
import ipaddress
import socket
from asyncio import StreamReader, StreamWriter

from moorage.core.model import Endpoint, SystemName
from moorage.ports.errors import Refused, Unreachable
from moorage.ports.system import Handle

from .hosts import destination


class DirectDialer:
    """
    Connects to the node or the socket itself.

    A name is resolved once, the address is checked and then connected to, so that a resolver which changes its mind
    cannot lead us to ourselves.

    Args:
        suffix: Appended to node names without a dot.
        loopback: Whether addresses of this machine and unix sockets on it are the system's.
    """

    def __init__(self, system: SystemName, suffix: str, loopback: bool, connect_s: float) -> None:
        self._system, self._suffix, self._loopback, self._connect_s = system, suffix, loopback, connect_s

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        host, port, path = destination(self._system, endpoint)
        try:
            async with asyncio.timeout(self._connect_s):
                if not path:
                    return await self._connect(host, port)
                if not self._loopback:
                    raise Refused(f"{self._system}: a unix socket is reached only where `loopback` is allowed")
                return await asyncio.open_unix_connection(path)
        except TimeoutError:
            raise Unreachable(f"{self._system}: no connection in {self._connect_s:g} s to job {job.job:.60}") from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise Unreachable(f"{self._system}: no connection to job {job.job:.60}: {reason}") from error

    async def close(self) -> None:
        """Nothing is held."""

    async def _connect(self, host: str, port: int) -> tuple[StreamReader, StreamWriter]:
        if self._suffix and "." not in host and ":" not in host:
            host += self._suffix
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        allowed = [entry for entry in found if self._loopback or not _is_here(str(entry[4][0]))]
        if not allowed:
            raise Refused(f"{self._system}: {host:.60} is an address of this machine, which is not the system")
        failure: OSError = OSError("no address")
        for _, _, _, _, address in allowed:
            try:
                return await asyncio.open_connection(str(address[0]), port)
            except OSError as error:
                failure = error
        raise failure


def _is_here(text: str) -> bool:
    """Loopback, unspecified, link-local (metadata services) and multicast, also inside IPv6."""
    address = ipaddress.ip_address(text.partition("%")[0])
    inner = getattr(address, "ipv4_mapped", None) or address
    return bool(inner.is_loopback or inner.is_unspecified or inner.is_link_local or inner.is_multicast)
