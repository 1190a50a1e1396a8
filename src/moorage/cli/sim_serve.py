"""`moorage sim serve …`"""

import click

from moorage.cli import CODES, LazyGroup

COMMANDS = {
    "ssh": ("moorage.cli.sim_serve_ssh", "A login node with Slurm's commands, on 127.0.0.1."),
    "unicore": ("moorage.cli.sim_serve_unicore", "A UNICORE/X server with its batch system, on 127.0.0.1."),
}


@click.group("serve", cls=LazyGroup, lazy=COMMANDS, epilog=CODES)
def command() -> None:
    """Serve a simulated site over real sockets."""
