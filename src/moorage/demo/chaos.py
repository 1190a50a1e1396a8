"""
What `moorage demo --chaos` does to the demonstration: what happens in data centres, in short time.

After each harm two sessions tell what it was to them; see `witnesses`.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .files import SITES
from .running import Child, Demo
from .witnesses import witnesses

PAUSE_S = (10, 25)
FREEZE_S = (5, 20)

Harm = Callable[[], str]
"""Does it, and says what it was."""


async def harm(demo: Demo, seed: int | None = None) -> None:
    """For ever: wait, harm something, tell what it was and how the sessions came through."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    async with witnesses(demo.layout, demo.say) as seen:
        for do in _in_turn(_harms(demo, chance), chance):
            await asyncio.sleep(chance.uniform(*PAUSE_S))
            began = time.monotonic()
            demo.say(f"chaos: {do()}")
            demo.say(f"       {await seen.tell(began)}")


def _harms(demo: Demo, chance: random.Random) -> list[Harm]:
    return [
        lambda: _kill(demo.children["hub"], "the Hub is killed"),
        lambda: _kill_relay(demo.layout.directory),
        lambda: _kill(demo.children["proxy"], "the proxy is killed, and every connection of a browser with it"),
        *[lambda site=site: _freeze(demo.children[site], chance) for site in SITES],
        *[lambda site=site: _kill(demo.children[site], f"{site} is killed, its jobs are not") for site in SITES],
    ]


def _in_turn(harms: list[Harm], chance: random.Random) -> Iterator[Harm]:
    """Each once, in any order, then again: who watches for some minutes has seen all."""
    while True:
        yield from chance.sample(harms, len(harms))


def _kill(child: Child, told: str) -> str:
    if not child.running or child.process is None:
        return f"{child.name} is down already"
    child.process.kill()
    return told


def _freeze(child: Child, chance: random.Random) -> str:
    if not child.running or child.process is None:
        return f"{child.name} is down already"
    seconds = chance.uniform(*FREEZE_S)
    child.process.send_signal(signal.SIGSTOP)
    process = child.process

    def thaw() -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)

    asyncio.get_running_loop().call_later(seconds, thaw)
    return f"{child.name} is frozen for {seconds:.0f} s"


def _kill_relay(directory: Path) -> str:
    """The relay is nobody's child; whoever answers its control socket is it."""
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(directory / ".moorage" / "relay" / "control.sock"))
            credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        os.kill(struct.unpack("3i", credentials)[0], signal.SIGKILL)
    except OSError:
        return "there is no relay to kill"
    return "the relay is killed, and every path to a lab with it"
