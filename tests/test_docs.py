"""What the README and the docs show is true: Python blocks run, configuration is valid, commands and links exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[object]:
    """Every block of a language, named by page and number."""
    return [
        pytest.param(text, id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
        if kind == language
    ]


def run(command: list[str], folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("text", blocks("python"))
def test_python_blocks_run(text: str, tmp_path: Path) -> None:
    """As a program of its own, in an empty folder, with warnings as errors; or as a part of jupyterhub_config.py."""
    hub = "from traitlets.config import Config\nc = Config()\n" if text.startswith("c.") else ""
    (tmp_path / "example.py").write_text(hub + text, encoding="utf-8")
    done = run([sys.executable, "-W", "error", "example.py"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def whole_configurations() -> list[object]:
    """Blocks that begin with `deployment:` are a whole moorage.yaml; others are parts."""
    return [block for block in blocks("yaml") if block.values[0].startswith("deployment:")]  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", whole_configurations())
def test_configurations_are_valid(text: str, tmp_path: Path) -> None:
    """As `moorage check` sees them."""
    (tmp_path / "moorage.yaml").write_text(text, encoding="utf-8")
    done = run([sys.executable, "-m", "moorage.cli", "check", "moorage.yaml"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def whole_scenarios() -> list[object]:
    """Blocks that say who comes are a whole scenario."""
    return [block for block in blocks("yaml") if "\narrivals:" in block.values[0]]  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", whole_scenarios())
def test_scenarios_are_valid(text: str, tmp_path: Path) -> None:
    """As `moorage sim run` reads them."""
    from moorage.simulator.scenario import load

    (tmp_path / "scenario.yaml").write_text(text, encoding="utf-8")
    assert load(tmp_path / "scenario.yaml").description


def commands() -> list[object]:
    """Every `moorage …` that a console block shows, by its words before the first argument or option."""
    found: dict[tuple[str, ...], str] = {}
    for page in PAGES:
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if kind in ("console", "sh", "shell", "bash"):
                for line in re.findall(r"^\$? ?(?:uv run )?moorage ([^\n]*)", text, re.MULTILINE):
                    words = tuple(re.match(r"((?:[a-z][a-z-]*(?: |$))*)", line).group(1).split())  # type: ignore[union-attr]
                    found.setdefault(words[:3], page.name)
    return [pytest.param(words, id=f"{page}:{' '.join(words)}") for words, page in found.items()]


@pytest.mark.parametrize("words", commands())
def test_commands_exist(words: tuple[str, ...]) -> None:
    """Each command that is shown answers `--help`; words after it are its arguments."""
    from click.testing import CliRunner

    from moorage.cli import cli

    for length in range(len(words), 0, -1):
        if CliRunner().invoke(cli, [*words[:length], "--help"]).exit_code == 0:
            return
    pytest.fail(f"there is no command {' '.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links name files of this repository."""
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
