"""`moorage schema`"""

from pathlib import Path

import click

from moorage.cli import CODES, Exit
from moorage.cli.output import print_json


@click.command("schema", epilog=CODES)
@click.option(
    "--allow",
    multiple=True,
    metavar="DISTRIBUTION",
    help="Load the plugins of this distribution, too, so that its kinds are in the schema. May be repeated.",
)
@click.option("--part", is_flag=True, help="For the files of a folder, of which each holds some of the keys.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to this file instead.")
def command(allow: tuple[str, ...], part: bool, output: Path | None) -> int:
    """
    Print the JSON Schema of moorage.yaml, for editors.

    The first line of the configuration names it: "# yaml-language-server: $schema=moorage.schema.json".
    """
    import json

    from moorage.bootstrap import kinds_of
    from moorage.config import schema, unsupported
    from moorage.plugins import load_plugins

    made = schema(kinds_of(load_plugins(allow, vet=unsupported)), part)
    if output is None:
        print_json(made)
    else:
        output.write_text(json.dumps(made, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return Exit.FINE
