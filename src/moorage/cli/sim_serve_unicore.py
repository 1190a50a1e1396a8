"""`moorage sim serve unicore`"""

from pathlib import Path

import click

from moorage.cli import CODES, Exit


@click.command("unicore", epilog=CODES)
@click.option("--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="0 takes a free one.")
@click.option("--site", metavar="NAME", help="Name of the site; part of its address.")
@click.option("--user", "users", multiple=True, metavar="NAME:PASSWORD", help="Who may log in. May be repeated.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML with systems, partitions, login nodes, projects, trusted issuers, several sites, a registry.",
)
@click.option(
    "--execute",
    type=click.Choice(["process", "virtual"]),
    help="process: jobs are real processes of this machine; virtual: jobs only pass time.",
)
@click.option("--tls", is_flag=True, help="Serve https with a certificate made now; the second line names its CA file.")
@click.option(
    "--faults",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML or JSON with what goes wrong when.",
)
def command(
    port: int,
    site: str | None,
    users: tuple[str, ...],
    config: Path | None,
    execute: str | None,
    tls: bool,
    faults: Path | None,
) -> int:
    """
    A UNICORE/X server with its batch system, on 127.0.0.1.

    The first line on standard output is the base URL of its REST API. Without --user and --config there is a user
    "demouser" with the password "test123"; jobs are real processes unless --execute says otherwise.
    """
    from moorage.simulator.servers.unicore import ConfigError, main_serve

    try:
        main_serve(port, site, users, config, execute, tls, faults)
    except (ConfigError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        click.echo(f"moorage: the port cannot be used: {error.strerror or error}", err=True)
        return Exit.UNREACHABLE
    return Exit.FINE
