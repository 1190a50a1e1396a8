"""Which call a request is: path, method, media types; and what the framework answers when it is none."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from attrs import define, field, frozen

from .access import Caller
from .answers import Answer, Failure, type_html, type_json
from .faults import Rule
from .orgjson import BadJSON, parse_object
from .site import Site


@define(slots=True, eq=False)
class Call:
    """
    One request on its way through a handler.

    `base` is the URL of `/rest/core` as the client addressed it; `args` are the variable path parts;
    `html` says that a browser asks; `rules` are the faults that fired for this request.
    """

    request: web.BaseRequest
    site: Site
    caller: Caller
    args: Sequence[str]
    query: Mapping[str, str]
    base: str
    accept: str
    html: bool
    rules: Sequence[Rule] = field(factory=tuple)

    async def body(self) -> bytes:
        """The whole body, bounded by the site's `largest_body`."""
        data = bytearray()
        async for piece in self.request.content.iter_any():
            data += piece
            if len(data) > self.site.config.largest_body:
                raise Failure(500, "java.io.IOException: request body is too large")
        return bytes(data)

    async def json(self, context: str) -> dict[str, Any]:
        """The body as a JSON object; an empty one is `{}`. Anything else is 500 with org.json's words."""
        data = await self.body()
        if not data.strip():
            return {}
        try:
            return parse_object(data)
        except BadJSON as error:
            raise Failure(500, f"{context}: org.json.JSONException: {error}") from error

    def integer(self, name: str, default: int) -> int:
        """A query parameter; one that is not an integer is 404, the framework's rule."""
        text = self.query.get(name)
        if text is None:
            return default
        try:
            return int(text[:20])
        except ValueError as error:
            raise Failure(404) from error


Handler = Callable[[Call], Awaitable[Answer]]


@frozen
class Route:
    """
    `produces` empty: the handler looks at Accept itself. `takes_json`: other content types are 415, but for a
    form with `takes_form`.
    """

    endpoint: str
    handler: Handler
    produces: tuple[str, ...] = (type_json, type_html)
    takes_json: bool = False
    takes_form: bool = False


@define(eq=False)
class _Node:
    children: "dict[str, _Node]" = field(factory=dict)
    any: "_Node | None" = None
    rest: "dict[str, Route] | None" = None
    here: dict[str, Route] = field(factory=dict)


class Routes:
    """A tree of path parts. `*` is any one part, `**` at the end is the rest, also none."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, method: str, pattern: str, route: Route) -> None:
        node = self._root
        for part in pattern.strip("/").split("/"):
            if part == "**":
                node.rest = node.rest or {}
                node.rest[method] = route
                return
            if part == "*":
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.children.setdefault(part, _Node())
        node.here[method] = route

    def find(self, method: str, path: str) -> tuple[Route, list[str]]:
        """
        The route for a raw path below `/rest/`, and its variable parts, still encoded.

        Raises:
            Failure: 404 for no such path, 405 for no such method there.
        """
        node = self._root
        args: list[str] = []
        parts = path.split("/")
        for number, part in enumerate(parts):
            child = node.children.get(part)
            if child is not None:
                node = child
            elif part == "" and number == len(parts) - 1:
                break  # one slash at the end changes nothing
            elif node.rest is not None:
                return self._choose(node.rest, method), [*args, "/".join(parts[number:])]
            elif node.any is not None:
                args.append(part)
                node = node.any
            else:
                raise Failure(404)
        if node.rest is not None:
            return self._choose(node.rest, method), [*args, ""]
        if not node.here:
            raise Failure(404)
        return self._choose(node.here, method), args

    @staticmethod
    def _choose(methods: Mapping[str, Route], method: str) -> Route:
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            raise Failure(405)
        return route


@lru_cache(maxsize=4096)
def wanted_type(accept: str, offered: tuple[str, ...]) -> str | None:
    """The first offered media type that Accept admits, by its order; None for none. Weights are not read."""
    if not accept:
        return offered[0]
    for item in accept.split(","):
        word = item.partition(";")[0].strip().lower()
        if word in ("*/*", ""):
            return offered[0]
        for kind in offered:
            if word == kind or (word.endswith("/*") and kind.startswith(word[:-1])):
                return kind
    return None


@lru_cache(maxsize=4096)
def parse_query(text: str) -> Mapping[str, str]:
    """Query parameters, the first of each name. At most 100 are read."""
    found: dict[str, str] = {}
    try:
        for key, value in parse_qsl(text, keep_blank_values=True, max_num_fields=100):
            found.setdefault(key, value)
    except ValueError:
        return {}
    return found
