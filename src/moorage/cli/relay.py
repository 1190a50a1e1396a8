"""`moorage relay`"""

import asyncio
import logging
import sys
from pathlib import Path

import click

from moorage.cli import CODES, Exit
from moorage.cli.output import config_option


@click.command("relay", epilog=CODES)
@config_option
@click.option("--stop", is_flag=True, help="End the one that runs; streams are cut, paths come back with the next one.")
@click.option("--simulation", is_flag=True, hidden=True, help="Accept certificates that nobody signed.")
def command(config_file: Path, stop: bool, simulation: bool) -> int:
    """
    Be the process through which the Hub's proxy reaches the labs.

    There is one for each deployment, started by whoever needs it first; it outlives the Hub, so that streams are not
    cut when the Hub restarts. Run it yourself where a service manager is to look after it.
    """
    from moorage.bootstrap import run_relay

    if stop:
        return asyncio.run(_stop(config_file))
    from moorage.relay.process import AlreadyRunning

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run_relay(config_file, simulation=simulation))
    except AlreadyRunning as error:
        click.echo(f"moorage: {error}", err=True)
        return Exit.WRONG
    return Exit.FINE


async def _stop(config_file: Path) -> int:
    from moorage.cli.tunnels import running_relay

    async with running_relay(config_file) as relay:
        await relay.stop_relay()
    return Exit.FINE
