"""The exit code of `moorage run`."""

import pytest

from moorage.cli import Exit
from moorage.cli.session import _code
from moorage.core.model import Cause


@pytest.mark.parametrize(
    ("cause", "ready", "interrupted", "code"),
    [
        (Cause.STOPPED, True, True, Exit.FINE),
        (Cause.STOPPED, False, True, Exit.INTERRUPTED),
        (Cause.STOPPED, True, False, Exit.WRONG),
        (Cause.FINISHED, True, False, Exit.FINE),
        (Cause.UNAUTHORISED, False, False, Exit.UNREACHABLE),
        (Cause.FAILED, True, True, Exit.WRONG),
        (Cause.WALLTIME, True, False, Exit.WRONG),
    ],
)
def test_the_code_says_how_it_ended(cause: Cause, ready: bool, interrupted: bool, code: Exit) -> None:
    assert _code(cause, gone=True, ready=ready, interrupted=interrupted) is code
    assert _code(cause, gone=False, ready=ready, interrupted=interrupted) is Exit.WRONG
