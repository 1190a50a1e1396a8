"""What the browser tests share: the running demonstration, pictures, and what axe finds."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import define

ROOT = Path(__file__).parents[2]
SCREENSHOTS = Path(os.environ.get("MOORAGE_SCREENSHOTS", ROOT / "build" / "screenshots"))
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
    *("--disable-gpu", "--disable-extensions", "--no-first-run", "--disable-sync"),
]

Visit = Callable[..., Any]


@define(eq=False)
class Demo:
    """A running demonstration."""

    process: "subprocess.Popen[str]"
    directory: Path
    layout: dict[str, Any]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.layout['ports']['public']}"

    def password(self, user: str) -> str:
        return str(self.layout["passwords"][user])

    def hub_api(self, method: str, path: str, body: object = None) -> Any:
        """A call to the Hub with the demonstration's own token."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.layout['ports']['hub']}/hub/api/{path}", data, method=method
        )
        request.add_header("Authorization", f"token {self.layout['tokens']['demo']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def hub_pid(self) -> int:
        """The Hub is the child of the demonstration that was told the Hub's configuration."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if str(self.directory / "jupyterhub_config.py").encode() in command:
                    return int(entry.name)
        raise AssertionError("there is no Hub")

    def wait_for_hub(self, seconds: float = 40) -> float:
        """Until the Hub answers; how long that took."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            try:
                self.hub_api("GET", "users")
                return time.monotonic() - began
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        raise AssertionError("the Hub does not answer")


def logs(directory: Path) -> str:
    return "".join(f"== {file.name}\n{file.read_text()[-3000:]}\n" for file in (directory / "logs").glob("*.log"))


def leftovers(directory: Path) -> list[str]:
    """Command lines of processes that belong to this demonstration."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if str(directory) in command or where.startswith(str(directory)):
            found.append(command)
    return found


def shot(page: Any, name: str) -> None:
    """A picture of the whole page, for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def accessible(page: Any) -> None:
    """What axe finds: violations of WCAG 2.1 A and AA in what is ours; the Hub's own frame is the Hub's."""
    page.add_script_tag(path=str(AXE))
    found = page.evaluate(
        """async () => {
            const options = {runOnly: {type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}};
            const result = await axe.run({include: [["main"]]}, options);
            return result.violations.map((each) => `${each.id}: ${each.nodes.map((node) => node.html).join(" | ")}`);
        }"""
    )
    if found:
        raise AssertionError("\n".join(found))
