"""One line for people about how far a command is: it moves on a terminal, and elsewhere each change of it is a line."""

from types import TracebackType

import click
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from moorage.cli.output import people


class Line:
    """
    Shown on standard error while the context lasts. Texts may be a site's: they are no markup and steer no terminal.

    Args:
        silent: Nothing is shown; whole lines are said nevertheless.
    """

    def __init__(self, *, silent: bool = False) -> None:
        console = people()
        self._moves = console.is_terminal and not silent
        self._silent = silent
        self._text = ""
        self._progress = Progress(
            SpinnerColumn(),
            # As much as fits: a note that takes several lines would leave some of them behind.
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # Otherwise what goes to standard output would come out of standard error.
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID = self._progress.add_task("", total=None)

    def __enter__(self) -> "Line":
        if self._moves:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._moves:
            self._progress.stop()

    def show(self, text: str) -> None:
        """What is going on now; beside it is shown for how long."""
        text = printable(text)
        if self._silent or text == self._text:
            return
        self._text = text
        if self._moves:
            self._progress.reset(self._task, description=text)
        else:
            click.echo(text, err=True)

    def say(self, text: str, *, result: bool = False) -> None:
        """A line that stays; a result goes to standard output."""
        if self._moves:
            self._progress.stop()
        click.echo(text if result else printable(text), err=not result)
        if self._moves:
            self._progress.start()


def printable(text: str) -> str:
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
