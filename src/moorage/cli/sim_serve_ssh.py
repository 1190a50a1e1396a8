"""`moorage sim serve ssh`"""

from pathlib import Path

import click

from moorage.cli import CODES, Exit


@click.command("ssh", epilog=CODES)
@click.option("--port", type=click.IntRange(0, 65_535), default=0, show_default=True, help="0 takes a free one.")
@click.option(
    "--host-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private host key; made if it is not there. Without it, a new one for this run.",
)
@click.option(
    "--authorized-keys",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Public keys that may log in to every account. Without it, a key pair is made and its file named.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML with accounts, partitions, nodes, sshd's limits and timing.",
)
@click.option(
    "--execute",
    type=click.Choice(["process", "virtual"]),
    help="process: jobs are real processes of this machine; virtual: jobs only pass time.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="For homes, keys and jobs; it stays. Without it, a new one for this run.",
)
@click.option(
    "--faults",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML or JSON with what goes wrong when.",
)
def command(
    port: int,
    host_key: Path | None,
    authorized_keys: Path | None,
    config: Path | None,
    execute: str | None,
    directory: Path | None,
    faults: Path | None,
) -> int:
    """
    A login node with Slurm's commands, on 127.0.0.1.

    The first line on standard output is its address, ssh://127.0.0.1:PORT; the lines after it name the host key, a key
    to log in with, the accounts, the directory and the nodes, and the last one is "ready".
    """
    from moorage.simulator.servers.ssh import ConfigError, main_serve

    try:
        main_serve(
            port=port,
            host_key=host_key,
            authorized_keys=authorized_keys,
            config=config,
            execute=execute,
            directory=directory,
            faults=faults,
        )
    except (ConfigError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        click.echo(f"moorage: the node cannot be served: {error.strerror or error}", err=True)
        return Exit.UNREACHABLE
    return Exit.FINE
