"""`moorage plugins`"""

import click

from moorage.cli import CODES, Exit
from moorage.cli.output import json_option, print_json, results, table


@click.command("plugins", epilog=CODES)
@click.option(
    "--allow",
    multiple=True,
    metavar="DISTRIBUTION",
    help="Load the plugins of this distribution, too. May be repeated.",
)
@json_option
def command(allow: tuple[str, ...], as_json: bool) -> int:
    """
    List the kinds of systems and tunnels, with origin and version.

    Without --allow only moorage's own plugins are loaded; the configuration names others under "plugins".
    """
    from moorage.config import unsupported
    from moorage.plugins import load_plugins

    plugins = load_plugins(allow, vet=unsupported)
    lines = plugins.describe()
    if as_json:
        kinds = [
            {
                "of": line.of,
                "kind": line.name,
                "doc": line.doc,
                "plugin": line.origin.name,
                "distribution": line.origin.distribution,
                "version": line.origin.version,
            }
            for line in lines
        ]
        refused = [
            {"plugin": each.origin.name, "distribution": each.origin.distribution, "reason": each.reason}
            for each in plugins.refused
        ]
        print_json({"kinds": kinds, "refused": refused})
    else:
        shown = table("OF", "KIND", "ORIGIN", "WHAT IT IS")
        for line in lines:
            shown.add_row(line.of, line.name, str(line.origin), line.doc)
        results().print(shown)
        for refusal in plugins.refused:
            click.echo(str(refusal), err=True)
    return Exit.WRONG if plugins.refused else Exit.FINE
