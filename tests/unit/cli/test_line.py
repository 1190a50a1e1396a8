"""The line about how far a command is, on a terminal and elsewhere."""

import pty
import sys

import pytest

from moorage.cli.line import Line


def test_elsewhere_each_change_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Line() as line:
        for text in ("asking", "asking", "in the queue: [bold]Priority[/bold]", "in the\x1b[2Jqueue"):
            line.show(text)
        line.say("http://127.0.0.1:1/", result=True)
        line.say("Stopped.")
    said = capsys.readouterr()
    assert said.out == "http://127.0.0.1:1/\n"
    assert said.err == "asking\nin the queue: [bold]Priority[/bold]\nin the?[2Jqueue\nStopped.\n"


def test_a_silent_line_says_only_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Line(silent=True) as line:
        line.show("asking")
        line.say("Stopped.")
    assert capsys.readouterr() == ("", "Stopped.\n")


def test_on_a_terminal_a_result_goes_to_standard_output(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is taken away before anything else is written, so that an address stands alone on its line."""
    near, far = pty.openpty()
    with open(near, "rb", buffering=0) as shown, open(far, "w", encoding="utf-8") as terminal:
        monkeypatch.setenv("TERM", "xterm")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", terminal)  # here: a fixture's would be taken back before the test
            with Line() as line:
                line.show("in the queue")
                line.say("http://127.0.0.1:1/", result=True)
                line.say("Stopped.")
        text = shown.read(65_536).decode()
    assert capsys.readouterr().out == "http://127.0.0.1:1/\n"
    assert "in the queue" in text
    assert "127.0.0.1" not in text
    assert text[: text.index("Stopped.")].endswith("\x1b[2K"), "the line was erased"
