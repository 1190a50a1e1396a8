# mypy: disable-error-code="misc"
# JupyterHub has no types: its classes are Any.
"""
Where systems tell that something about a job changed: `POST /hub/moorage/notify/SYSTEM`.

Nobody logs in here: the adapter of the system checks the signature, and what it believes is a hint to ask earlier than
planned. So whatever is sent, forged, twice, late or never, no session changes by it.
"""

from typing import Any, ClassVar

from tornado import web

from moorage.core.model import SystemName

from .service import registry

BODY_LIMIT = 65_536
MOST_AT_ONCE = 32
"""Checking a signature costs processor time of the Hub's one thread; hints that come faster may be lost."""


@web.stream_request_body
class Notify(web.RequestHandler):
    """One notification. Answers as little as possible, and never with a session of ours."""

    _under_way: ClassVar[list[int]] = [0]

    def prepare(self) -> None:
        self._parts: list[bytes] = []
        # A longer body is cut off with an error before it is read.
        connection: Any = self.request.connection
        connection.set_max_body_size(BODY_LIMIT)

    def data_received(self, chunk: bytes) -> None:
        self._parts.append(chunk)

    def check_xsrf_cookie(self) -> None:
        """No cookie counts here, so nobody's browser can be misused."""

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    async def post(self, system: str) -> None:
        """
        204: signed by the system, and about a job. 403: not believed. 404: nobody here takes its notifications.
        429: too many at once.
        """
        service = registry.service
        kind, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if service is None or service.operations is None:
            raise web.HTTPError(404)
        if kind.lower() != "bearer" or not token:
            raise web.HTTPError(403)
        if self._under_way[0] >= MOST_AT_ONCE:
            raise web.HTTPError(429)
        self._under_way[0] += 1
        try:
            believed = await service.operations.notified(SystemName(system), token.strip(), b"".join(self._parts))
        except KeyError:
            raise web.HTTPError(404) from None
        finally:
            self._under_way[0] -= 1
        if not believed:
            raise web.HTTPError(403)
        self.set_status(204)

    def write_error(self, status_code: int, **_: Any) -> None:
        """No page: a machine reads this, if anybody does."""
        self.finish()
