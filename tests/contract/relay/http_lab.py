"""
A lab for tests: listens on the unix socket that it is given.

/hello greets, /pid tells which lab this is, /bytes/N sends N bytes, /sum answers a POST with its SHA-256, /socket is a
WebSocket that answers each message with the same.
"""

import hashlib
import os
import sys

from aiohttp import WSMsgType, web

BLOCK = bytes(range(256)) * 1024


async def hello(_request: web.Request) -> web.Response:
    return web.Response(text="hello")


async def pid(_request: web.Request) -> web.Response:
    return web.Response(text=str(os.getpid()))


async def send(request: web.Request) -> web.StreamResponse:
    left = int(request.match_info["size"])
    answer = web.StreamResponse(headers={"Content-Length": str(left)})
    await answer.prepare(request)
    while left:
        piece = BLOCK[: min(left, len(BLOCK))]
        await answer.write(piece)
        left -= len(piece)
    return answer


async def digest(request: web.Request) -> web.Response:
    found = hashlib.sha256()
    async for piece in request.content.iter_any():
        found.update(piece)
    return web.Response(text=found.hexdigest())


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


def main(path: str) -> None:
    lab = web.Application(client_max_size=1 << 30)
    lab.add_routes(
        [
            web.get("/hello", hello),
            web.get("/pid", pid),
            web.get("/bytes/{size}", send),
            web.post("/sum", digest),
            web.get("/socket", echo),
        ]
    )
    web.run_app(lab, path=path, print=None)


if __name__ == "__main__":
    main(sys.argv[1])
