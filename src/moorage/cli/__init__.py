"""
The command line: `moorage`.

One file per command, imported when it is used: listing them must not load a simulator or a Hub.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import click


class Exit(IntEnum):
    """How a command ends."""

    FINE = 0
    WRONG = 1
    """What was looked at is wrong: mistakes in a file, a broken invariant, a session that ended badly."""
    USAGE = 2
    """The command was not understood; nothing was done."""
    UNREACHABLE = 3
    """Somebody who was needed does not answer, or does not let us in; nothing is known about the rest."""
    BUG = 70
    """A mistake in moorage or in a plugin; please report what is printed."""
    INTERRUPTED = 130
    """Ctrl-C, after everything that was started was stopped."""


CODES = """\b
Exit codes:
  0    fine
  1    what was looked at is wrong: mistakes in a file, a broken invariant,
       a session that ended badly
  2    the command was not understood; nothing was done
  3    somebody who was needed does not answer or does not let us in
  70   a mistake in moorage or a plugin
  130  interrupted by Ctrl-C; what was started was stopped before
"""


class LazyGroup(click.Group):
    """
    A group whose commands are imported when they are asked for.

    Args:
        lazy: For each command the module, in which it is called `command`, and its first line of help, so that
            listing all commands imports none. No module here may have the name of a function of this package: once
            it is imported, it would take its place.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module = self.lazy[cmd_name][0]
        found = getattr(importlib.import_module(module), "command")  # noqa: B009 - each module has one
        assert isinstance(found, click.Command), f"{module}.command is no command"
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.lazy.items()])


COMMANDS = {
    "demo": ("moorage.demo.command", "A JupyterHub with simulated HPC systems on this machine, and real JupyterLab."),
    "check": ("moorage.cli.check", "Validate configuration, with every mistake and its place."),
    "schema": ("moorage.cli.schema", "Print the JSON Schema of moorage.yaml, for editors."),
    "plugins": ("moorage.cli.plugins", "List the kinds of systems and tunnels, with origin and version."),
    "run": ("moorage.cli.session", "Start a session on a configured system and stop it on Ctrl-C."),
    "sim": ("moorage.cli.sim", "Simulated worlds: run scenarios, serve simulated sites."),
    "tunnels": ("moorage.cli.tunnels", "List the paths to running sessions and probe each."),
    "relay": ("moorage.cli.relay", "Be the process through which the Hub's proxy reaches the labs."),
    "hostkeys": ("moorage.cli.hostkeys", "Show the SSH host keys of a system's login nodes, for you to confirm."),
    "hub-config": ("moorage.cli.hub_config", "Write a commented jupyterhub_config.py."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    epilog=CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="moorage", prog_name="moorage")
def cli() -> None:
    """Start JupyterLab sessions where the computers are and bring them home to JupyterHub."""


def main() -> None:
    """The program `moorage`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """
    Run one command and return its exit code (see `Exit`).

    Exceptions that are for people become one line on standard error; any other is a bug, shown with its traceback.
    """
    try:
        outcome = cli.main(list(arguments), prog_name="moorage", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read has seen enough. What Python would write at its end must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FINE
    except Exception as error:  # noqa: BLE001 - the last place that can tell
        return _told(error)
    return int(outcome) if isinstance(outcome, int) else Exit.FINE


def _told(error: Exception) -> int:
    from moorage.config import ConfigError
    from moorage.ports.errors import PortError, Refused, StoreError

    if isinstance(error, ConfigError):
        click.echo(str(error), err=True)
        return Exit.WRONG
    if isinstance(error, PortError | StoreError):
        click.echo(f"moorage: {error}", err=True)
        return Exit.WRONG if isinstance(error, Refused) else Exit.UNREACHABLE
    import traceback

    traceback.print_exception(error)
    click.echo("moorage: this is a bug; please report the lines above", err=True)
    return Exit.BUG
