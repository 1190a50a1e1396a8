"""`moorage sim serve …`"""

import click

from moorage.cli import CODES, LazyGroup

COMMANDS = {
    "unicore": ("moorage.cli.sim_serve_unicore", "A UNICORE/X server with its batch system, on 127.0.0.1."),
}


@click.group("serve", cls=LazyGroup, lazy=COMMANDS, epilog=CODES)
def command() -> None:
    """Serve a simulated site over real sockets."""
