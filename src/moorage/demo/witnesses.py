"""Sessions that `moorage demo --chaos` starts: their kernels count, so that one sees what a fault does to a session."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from attrs import define, field

from .files import Layout

OWNER = "alice"
PLACES = (("juwels", "devel"), ("uni", "batch"))
PATIENCE_S = 90.0
"""For a kernel to count on after a fault; a frozen site takes 20 s by itself."""
CONNECT_S = 20.0
PAUSE_S = 0.5
_CLOSING = aiohttp.ClientWSTimeout(ws_close=1.0)
"""A connection that was cut says no goodbye."""
COUNT = "try:\n    count += 1\nexcept NameError:\n    count = 1\nprint(count)"
_TROUBLE = (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError)
"""The Hub is away, the proxy is away, an answer is an error page: ordinary here, and the next try tells."""


@define(eq=False)
class Witness:
    """One session: it is asked to count for ever, over one connection as long as that lasts."""

    layout: Layout
    client: aiohttp.ClientSession
    system: str
    partition: str
    count: int = 0
    cuts: int = 0
    forgot: bool = False
    kernel: str = ""
    answered_at: float = 0.0
    """When the last question that was answered had been asked."""
    answered: asyncio.Event = field(factory=asyncio.Event)

    @property
    def server(self) -> str:
        return f"counting-{self.system}"

    async def run(self) -> None:
        """For ever."""
        while True:
            with contextlib.suppress(*_TROUBLE):
                await self._start()
                await self._ask()
            await asyncio.sleep(PAUSE_S)

    async def _start(self) -> None:
        """Have a session and a kernel; again is harmless."""
        options = {"user_options": {"system": self.system, "partition": self.partition, "walltime_s": 7200}}
        if not self.kernel:
            await self._call("POST", f"{self.layout.hub_url}/hub/api/users/{OWNER}/servers/{self.server}", options)
            kernel = await self._call("POST", f"{self._lab}/api/kernels", {"name": "python3"})
            self.kernel = str(kernel["id"])

    async def _ask(self) -> None:
        """Let it count until the connection is cut."""
        async with asyncio.timeout(CONNECT_S):
            socket = await self.client.ws_connect(f"{self._lab}/api/kernels/{self.kernel}/channels", timeout=_CLOSING)
        try:
            while True:
                await self._once(socket)
                await asyncio.sleep(PAUSE_S)
        finally:
            self.cuts += 1
            await socket.close()

    async def _once(self, socket: "aiohttp.ClientWebSocketResponse") -> None:
        question, asked_at = uuid.uuid4().hex, time.monotonic()
        await socket.send_str(_execute(question))
        async with asyncio.timeout(PATIENCE_S):
            while True:
                received = await socket.receive()
                if received.type is not aiohttp.WSMsgType.TEXT:
                    raise ConnectionError("the connection is cut")
                message = json.loads(received.data)
                if message["parent_header"].get("msg_id") == question and message["msg_type"] == "stream":
                    break
        self.counted(int(message["content"]["text"]), asked_at)

    def counted(self, count: int, asked_at: float) -> None:
        """The kernel said a number. One that is not higher than the last is another kernel's, or of another life."""
        self.forgot = self.forgot or count <= self.count
        self.count, self.answered_at = count, asked_at
        self.answered.set()

    async def counts_on(self, since: float) -> bool:
        """Whether a question that was asked after `since` is answered within our patience."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while self.answered_at < since:
                    self.answered.clear()
                    await self.answered.wait()
        return self.answered_at >= since

    @property
    def _lab(self) -> str:
        return f"{self.layout.url}/user/{OWNER}/{self.server}"

    async def _call(self, method: str, url: str, body: object) -> Any:
        async with self.client.request(method, url, json=body, allow_redirects=False) as answer:
            text = await answer.text()
            return json.loads(text) if text else None


@define(eq=False)
class Witnesses:
    """All of them, and what they tell."""

    them: list[Witness]

    async def ready(self) -> str:
        """A sentence, once all of them count."""
        counts = await asyncio.gather(*(witness.counts_on(0.001) for witness in self.them))
        named = ", ".join(witness.server for witness, count in zip(self.them, counts, strict=True) if count)
        return f"{OWNER}'s sessions {named} are ready; a kernel counts in each" if named else "no session became ready"

    async def tell(self, since: float) -> str:
        """What a fault at `since` did to them, in a sentence."""
        cuts = [witness.cuts for witness in self.them]
        counts = await asyncio.gather(*(witness.counts_on(since) for witness in self.them))
        silent = [witness.system for witness, count in zip(self.them, counts, strict=True) if not count]
        if silent:
            return f"no kernel has answered on {' and '.join(silent)} for {PATIENCE_S:.0f} s"
        forgot = [witness.system for witness in self.them if witness.forgot]
        if forgot:
            return f"the kernel on {' and '.join(forgot)} has lost its memory"
        took_s = time.monotonic() - since
        said = ", ".join(f"{witness.system} {witness.count}" for witness in self.them)
        cut = [witness.system for witness, before in zip(self.them, cuts, strict=True) if witness.cuts > before]
        connections = f"cut on {' and '.join(cut)} and made again" if cut else "all kept"
        return f"{took_s:.1f} s later every kernel counts on where it was ({said}); connections: {connections}"


@asynccontextmanager
async def witnesses(
    layout: Layout, say: Callable[[str], None], places: Sequence[tuple[str, str]] = PLACES
) -> AsyncIterator[Witnesses]:
    """They count inside the context, one at each place; their sessions are ended with all others."""
    headers = {"Authorization": f"token {layout.tokens['demo']}"}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as client:
        them = Witnesses([Witness(layout, client, system, partition) for system, partition in places])
        tasks = [asyncio.create_task(witness.run()) for witness in them.them]
        try:
            say(f"chaos: {await them.ready()}")
            yield them
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _execute(question: str) -> str:
    """A request to run `COUNT`, by the protocol of Jupyter kernels."""
    content = {"code": COUNT, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    header = {"msg_id": question, "msg_type": "execute_request", "version": "5.3", "username": "", "session": question}
    return json.dumps({"header": header, "parent_header": {}, "metadata": {}, "channel": "shell", "content": content})
