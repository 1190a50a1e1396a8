"""What all commands have in common when they print."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

AnyCommand = TypeVar("AnyCommand", bound=Callable[..., Any])


def json_option(command: AnyCommand) -> AnyCommand:
    """`--json`: the result as JSON on standard output, and nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def config_option(command: AnyCommand) -> AnyCommand:
    """`--config FILE`: the configuration."""
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        default=Path("moorage.yaml"),
        show_default=True,
        envvar="MOORAGE_CONFIG",
        help="The file, or folder of files, that describes systems and services.",
    )(command)


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))


def people() -> Console:
    """For progress: standard error, so that results can be piped."""
    return Console(stderr=True)


def results() -> Console:
    """
    For results.

    Texts are printed as they are: brackets in a site's words are no markup. Into a pipe or a file lines are as long
    as they are.
    """
    width = None if sys.stdout.isatty() else 10_000
    return Console(markup=False, highlight=False, width=width)


def table(*columns: str) -> Table:
    """A plain table: no frame, so that it can be cut and grepped."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
