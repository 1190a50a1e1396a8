"""`moorage hub-config`"""

from pathlib import Path

import click

from moorage.cli import CODES, Exit


@click.command("hub-config", epilog=CODES)
@click.option(
    "--config",
    "config_file",
    default="moorage.yaml",
    show_default=True,
    help="What the Hub is to read: the file, or folder of files, that describes systems and services.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file, which must not exist yet."
)
def command(config_file: str, output: Path | None) -> int:
    """
    Write a commented jupyterhub_config.py.

    It goes to standard output unless --output is given.
    """
    from moorage.adapters.hub.settings import hub_config

    text = hub_config(config_file)
    if output is None:
        click.echo(text, nl=False)
        return Exit.FINE
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        click.echo(f"moorage: {output} exists; it is left as it is", err=True)
        return Exit.WRONG
    click.echo(f"{output} is written; start the Hub with: jupyterhub -f {output}", err=True)
    return Exit.FINE
