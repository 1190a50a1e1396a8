"""Storms: composite schedules with names, each a whole bad day in a few lines."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from moorage.ports.sessions import StartRequest

from .choices import Source, chance
from .clock import EPOCH_MS
from .site import Site
from .world import World, a_request

Storm = Callable[[World, Source], Awaitable[None]]

MINUTE_MS = 60_000


async def swizzle(world: World, source: Source) -> None:
    """S1: links to some systems stop one by one within a minute and come back in another order."""
    names = [name for name in world.sites if chance(source, 0.7, f"{name} is cut off")] or list(world.sites)
    now = world.loop.now_ms + EPOCH_MS
    for name in names:
        down = now + source.integer(0, MINUTE_MS, "goes down")
        up = down + source.integer(10_000, 5 * MINUTE_MS, "comes back")
        world.later(down, partial(world.cut_off, world.sites[name], up))
    await world.sleep(6 * MINUTE_MS)


async def login_node_reboot(world: World, source: Source) -> None:
    """S2: the login node of the first system reboots, whatever its sessions are doing."""
    milliseconds = source.integer(2 * MINUTE_MS, 8 * MINUTE_MS, "down for")
    world.reboot_login_node(next(iter(world.sites.values())), milliseconds)
    await world.sleep(milliseconds)


async def identity_provider_down(world: World, source: Source) -> None:
    """S3: for half an hour nobody's token is accepted anywhere."""
    until = world.loop.now_ms + EPOCH_MS + 30 * MINUTE_MS
    for name in world.sites:
        world.faults.window("F-U8.submit", name, until)
    await world.sleep(30 * MINUTE_MS)


async def hub_restart_loop(world: World, source: Source) -> None:
    """S4: the Hub is killed every twenty seconds for ten minutes, while people go on starting sessions."""
    first = next(iter(world.sites))
    for number in range(30):
        if not world.faults.healed and world.process is not None:
            world.kill(world.process.life)
        world.spawn(world.start(a_request(f"storm{number}", first, f"s4-{number}")))
        await world.sleep(20_000)


async def friday_at_two(world: World, source: Source) -> None:
    """S5: a crowd starts within ten seconds on one system that takes twenty seconds for every answer."""
    site = next(iter(world.sites.values()))
    site.slow_ms = 20_000
    for number in range(world.plan.crowd):
        request = a_request(f"crowd{number:03d}", site.name, "s5")
        start = partial(_start, world, request)
        world.later(world.now() + source.integer(0, 10_000, "starts"), start)
    await world.sleep(15 * MINUTE_MS)
    site.slow_ms = 0


async def maintenance(world: World, source: Source) -> None:
    """S6: a system kills and purges everything, says 503 for eight hours, and comes back."""
    site = list(world.sites.values())[-1]
    until = world.loop.now_ms + EPOCH_MS + 8 * 60 * MINUTE_MS
    site.kill_everything(world.now())
    world.cut_off(site, until)
    world.faults.window("F-U7.submit", site.name, until)
    await world.sleep(8 * 60 * MINUTE_MS)


async def retry_trap(world: World, source: Source) -> None:
    """S7: a system takes fewer calls than it gets, for ten minutes; afterwards it has to recover without help."""
    site = next(iter(world.sites.values()))
    site.calls_per_s = 2
    await world.sleep(10 * MINUTE_MS)
    site.calls_per_s = None


async def split_brain(world: World, source: Source) -> None:
    """S8: two processes with clocks at half and double speed share a store that loses two of five calls."""
    until = world.loop.now_ms + EPOCH_MS + 5 * MINUTE_MS
    world.faults.rain("F-D1.save", 0.2, until)
    world.faults.rain("F-D1.commit unknown", 0.2, until)
    process = world.process
    if process is not None:
        world.kill(process.life)
    slow = asyncio.ensure_future(world.start_process(0.5))
    fast = asyncio.ensure_future(world.start_process(2.0))
    await asyncio.wait([slow, fast])
    await world.sleep(5 * MINUTE_MS)
    await world.only_one_process()


def _start(world: World, request: StartRequest) -> None:
    world.spawn(world.start(request))


STORMS: Mapping[str, Storm] = {
    "S1": swizzle,
    "S2": login_node_reboot,
    "S3": identity_provider_down,
    "S4": hub_restart_loop,
    "S5": friday_at_two,
    "S6": maintenance,
    "S7": retry_trap,
    "S8": split_brain,
}
"""By the names of the specification."""


def describe(name: str) -> str:
    """One line for people."""
    return (STORMS[name].__doc__ or "").strip()


__all__ = ["STORMS", "Site", "describe"]
