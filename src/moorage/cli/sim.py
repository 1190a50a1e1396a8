"""`moorage sim …`"""

import click

from moorage.cli import CODES, LazyGroup

COMMANDS = {
    "run": ("moorage.cli.sim_run", "Run a scenario in virtual time: the real runner, simulated systems."),
    "serve": ("moorage.cli.sim_serve", "Serve a simulated site over real sockets."),
}


@click.group("sim", cls=LazyGroup, lazy=COMMANDS, epilog=CODES)
def command() -> None:
    """Simulated worlds: run scenarios, serve simulated sites."""
