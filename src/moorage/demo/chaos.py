"""What `moorage demo --chaos` does to the demonstration: what happens in data centres, in short time."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from .files import UNICORE_SITES
from .running import Child, Demo

PAUSE_S = (15, 40)
FREEZE_S = (5, 20)


async def harm(demo: Demo, seed: int | None = None) -> None:
    """For ever: wait, harm something, tell what it was."""
    chance = random.Random(seed)  # noqa: S311 (no secret)
    harms: list[Callable[[], str]] = [
        lambda: _kill(demo.children["hub"], "the Hub is killed; sessions and their connections go on"),
        lambda: _kill_relay(demo.layout.directory),
        lambda: _kill(demo.children["proxy"], "the proxy is killed; the Hub gives it its routes again"),
        *[lambda site=site: _freeze(demo.children[site], chance) for site in (*UNICORE_SITES, "slurm")],
    ]
    while True:
        await asyncio.sleep(chance.uniform(*PAUSE_S))
        demo.say(f"chaos: {chance.choice(harms)()}")


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
    return f"{child.name} does not answer for {seconds:.0f} s; its sessions are doubted, not ended"


def _kill_relay(directory: Path) -> str:
    """The relay is nobody's child; whoever answers its control socket is it."""
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(directory / ".moorage" / "relay" / "control.sock"))
            credentials = control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        os.kill(struct.unpack("3i", credentials)[0], signal.SIGKILL)
    except OSError:
        return "there is no relay to kill"
    return "the relay is killed; paths are made anew at their old addresses"
