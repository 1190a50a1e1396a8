"""`moorage check FILE…`"""

from pathlib import Path
from typing import Any

import click

from moorage.cli import CODES, Exit
from moorage.cli.output import json_option, print_json


@click.command("check", epilog=CODES)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@json_option
def command(files: tuple[Path, ...], as_json: bool) -> int:
    """
    Validate configuration, with every mistake and its place.

    Each FILE is a configuration of its own: a file, or a folder whose *.yaml files belong together. Mistakes are told
    as FILE:LINE:COLUMN, with what was expected and, for a misspelt word, the nearest right one. Plugins that the
    configuration allows are loaded to know their options; one that is refused is a mistake.
    """
    reports = [_report(file) for file in files]
    if as_json:
        print_json({"files": reports})
    else:
        for report in reports:
            _show(report)
    return Exit.FINE if all(report["ok"] for report in reports) else Exit.WRONG


def _report(file: Path) -> dict[str, Any]:
    from moorage.bootstrap import read_config
    from moorage.config import ConfigError

    report: dict[str, Any] = {"file": str(file), "ok": True, "problems": [], "refused_plugins": []}
    try:
        config, plugins = read_config(file)
    except ConfigError as error:
        fields = ("file", "line", "column", "path", "found", "expected", "hint")
        report["problems"] = [{name: getattr(each, name) for name in fields} for each in error.problems]
        report["text"] = [str(each) for each in error.problems]
        return {**report, "ok": False}
    report["refused_plugins"] = [str(each) for each in plugins.refused if each.origin.distribution != "moorage"]
    report["systems"], report["services"] = len(config.systems), len(config.services)
    return {**report, "ok": not report["refused_plugins"], "digest": config.digest}


def _show(report: dict[str, Any]) -> None:
    for line in report.get("text", []):
        click.echo(line)
    for line in report["refused_plugins"]:
        click.echo(f"{report['file']}: {line}")
    if report["ok"]:
        click.echo(f"{report['file']}: fine ({report['systems']} systems, {report['services']} services)")
