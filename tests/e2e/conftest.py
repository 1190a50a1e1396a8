"""The demonstration, and a real browser to use it with."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from demoworld import CHROMIUM, FLAGS, Demo, Visit, leftovers, logs

pytest.importorskip("playwright")
pytest.importorskip("jupyterlab")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """One demonstration for all browser tests; afterwards nothing of it is left."""
    directory = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "moorage.cli", "demo", "--no-browser", "--directory", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)
        if "Ctrl-C" in line:
            break
    else:
        raise AssertionError("".join(said) + logs(directory))
    running = Demo(process, directory, json.loads((directory / "layout.json").read_text()))
    try:
        yield running
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()
    assert leftovers(directory) == []


# The browser -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(demo: Demo) -> Iterator[Any]:
    """
    One browser for a module, and not for the session: while Playwright is there, its event loop counts as running in
    this thread, and no other test of the process could run one.
    """
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(demo: Demo, browser: Any) -> Iterator[Visit]:
    """A page of a person who has logged in; every console error of our own scripts fails the test."""
    contexts: list[Any] = []
    errors: list[str] = []

    def open_page(
        user: str = "alice", language: str = "en-GB", width: int = 1280, height: int = 900, **more: Any
    ) -> Any:
        context = browser.new_context(locale=language, viewport={"width": width, "height": height}, **more)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)) if "/moorage/" in str(error.stack) else None)
        page.goto(f"{demo.url}/hub/login")
        page.fill("#username_input", user)
        page.fill("#password_input", demo.password(user))
        page.click("#login_submit")
        page.wait_for_url("**/hub/home")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
