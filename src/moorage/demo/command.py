"""`moorage demo`"""

import asyncio
import contextlib
import re
import signal
import sys
import time
import webbrowser
from pathlib import Path
from typing import get_args

import click

from moorage.cli import CODES, Exit

from .chaos import harm
from .files import USERS, Layout, lay_out
from .running import DemoFailed, demonstration


def _plain(_context: click.Context, _option: click.Parameter, directory: Path) -> Path:
    """The key of the Slurm site is in there, and the configuration of ssh, which names it, has no way to quote all."""
    from moorage.adapters.ssh.hosts import KeyPath

    path = directory.resolve()
    if not re.fullmatch(get_args(KeyPath)[1].pattern, str(path)):
        raise click.BadParameter(
            f"found {str(path)!r}, expected a path of letters, digits and any of _ . / + @ , = : - as in ~/moorage-demo"
        )
    return path


@click.command("demo", epilog=CODES)
@click.option(
    "--chaos", is_flag=True, help="Kill and freeze parts of it now and then, and tell how two sessions come through."
)
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="For the browser; 0: a free one."
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".demo"),
    show_default=True,
    callback=_plain,
    help="Where its files, logs and database go; kept for the next time.",
)
@click.option("--browser/--no-browser", default=True, help="Open the login page.")
def command(chaos: bool, port: int, directory: Path, browser: bool) -> int:
    """
    A JupyterHub with simulated HPC systems on this machine, and real JupyterLab.

    Prints one address and two users, one of them an administrator. Nothing listens beyond 127.0.0.1. Ctrl-C ends
    every session and every process.
    """
    try:
        layout = lay_out(directory, port)
        return asyncio.run(_run(layout, chaos, browser))
    except DemoFailed as error:
        click.echo(f"moorage: {error}", err=True)
        return Exit.UNREACHABLE


async def _run(layout: Layout, chaos: bool, browser: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    work = loop.create_task(_demonstrate(layout, chaos, browser, began))
    stopped = loop.create_task(stop.wait())
    await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    stopped.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    say("Everything is stopped.")
    return Exit.FINE


async def _demonstrate(layout: Layout, chaos: bool, browser: bool, began: float) -> None:
    say("Starting the Hub, its proxy, two UNICORE sites and a Slurm cluster ...")
    async with demonstration(layout, say) as demo:
        say(f"Ready after {time.monotonic() - began:.1f} s. Nothing listens beyond this machine.\n")
        say(f"  {layout.url}\n")
        for name in USERS:
            role = " (administrator)" if name == "admin" else ""
            say(f"  user {name:6} password {layout.passwords[name]}{role}")
        say("\nCtrl-C ends every session and every process.")
        if browser:
            webbrowser.open(layout.url)
        try:
            await (harm(demo) if chaos else asyncio.Event().wait())
        finally:
            say("\nEnding sessions and processes ...")


def say(text: str) -> None:
    """Tell the person at the terminal, at once."""
    click.echo(text)
    sys.stdout.flush()
