"""`moorage tunnels`"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moorage.cli import CODES, Exit
from moorage.cli.output import config_option, json_option, print_json, results, table

if TYPE_CHECKING:
    from moorage.relay.client import RelayTunnels

AT_ONCE = 16
"""Probes at a time: each is a request through a site's login node."""


@click.command("tunnels", epilog=CODES)
@config_option
@click.option("--no-probe", is_flag=True, help="Only show what the relay knows, send nothing.")
@json_option
def command(config_file: Path, no_probe: bool, as_json: bool) -> int:
    """
    List the paths to running sessions and probe each.

    A probe is a request through the very address that users have; it is good if the session's own launcher proved
    that it is at the other end. The code is 1 if one is not good, 3 if no relay is running.
    """
    rows = asyncio.run(_rows(config_file, not no_probe))
    if as_json:
        print_json({"tunnels": rows})
    else:
        _show(rows)
    return Exit.FINE if all(row["good"] is not False for row in rows) else Exit.WRONG


def _show(rows: list[dict[str, Any]]) -> None:
    shown = table("SESSION", "SYSTEM", "OWNER", "ADDRESS", "PATH", "GOOD FOR", "OPEN", "SENT", "RECEIVED")
    for row in rows:
        verdict = {True: "good", False: f"bad: {row['note']}", None: "lost" if row["lost"] else "not probed"}[
            row["good"]
        ]
        age = "never" if row["good_age_s"] is None else f"{row['good_age_s']:.0f} s ago"
        counts = (str(row["open"]), str(row["bytes_in"]), str(row["bytes_out"]))
        shown.add_row(row["session"], row["system"], row["owner"], row["address"], verdict, age, *counts)
    results().print(shown)


async def _rows(config_file: Path, probe: bool) -> list[dict[str, Any]]:
    async with running_relay(config_file) as relay:
        known = await relay.details()
        places = asyncio.Semaphore(AT_ONCE)

        async def row(session: Any) -> dict[str, Any]:
            details = known[session]
            good, note = None, details.report.note
            if probe:
                async with places:
                    result = await relay.probe(session)
                good, note = result.good, result.note
            return {
                "session": str(session),
                "system": str(details.target.system),
                "owner": str(details.target.handle.owner),
                "address": details.address,
                "good": good,
                "note": note,
                "good_age_s": details.report.good_age_s,
                "lost": details.report.lost,
                "connections": details.connections,
                "open": details.open,
                "bytes_in": details.bytes_in,
                "bytes_out": details.bytes_out,
                "idle_s": details.idle_s,
            }

        return list(await asyncio.gather(*map(row, known)))


@asynccontextmanager
async def running_relay(config_file: Path) -> "AsyncIterator[RelayTunnels]":
    """The relay of a deployment; `Unreachable` if none is running."""
    from moorage.bootstrap import read_config, state_directory
    from moorage.relay.client import RelayTunnels

    config, _ = read_config(config_file)
    relay = RelayTunnels(state_directory(config_file, config), None)
    try:
        yield relay
    finally:
        await relay.aclose()
