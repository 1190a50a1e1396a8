"""The rules of the rooms, executed: because rules that are not executed drift."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests import diagram

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "moorage"
PURE = {
    "__future__",
    "attrs",
    "base64",
    "collections",
    "enum",
    "functools",
    "hashlib",
    "hmac",
    "json",
    "math",
    "re",
    "shlex",
    "typing",
}
"""What core may import besides itself: attrs, types, and functions of the standard library that do no IO."""


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(str(node.module).split(".")[0])
    return found


def test_arrows_point_inwards() -> None:
    """The import contracts of pyproject.toml hold."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.mark.parametrize("path", sorted((SOURCE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    """Nothing that waits, reads a clock, draws a number, or logs."""
    assert imports(path) - PURE <= {"moorage"}


@pytest.mark.parametrize("path", sorted((SOURCE / "core").glob("*.py")), ids=lambda path: path.name)
def test_core_iterates_over_no_set(path: Path) -> None:
    """I17: the order of a set depends on the hash seed, and so would what follows."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        loops = [node.iter] if isinstance(node, ast.For | ast.comprehension) else []
        assert not any(isinstance(loop, ast.Set | ast.SetComp) for loop in loops), f"line {loops[0].lineno}"


def test_only_the_unicore_client_imports_httpx() -> None:
    users = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if "httpx" in imports(path)}
    assert users <= {"adapters/unicore/client.py"}


def test_the_launcher_needs_the_standard_library_only() -> None:
    assert imports(SOURCE / "launcher" / "moorage_launcher.py") <= set(sys.stdlib_module_names)


def test_no_drawers() -> None:
    """A file called utils answers no question."""
    names = {path.stem for path in SOURCE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "common", "misc", "base"}


def test_the_state_diagram_is_what_the_machine_does() -> None:
    """If this fails, look whether the change was meant; then `python -m tests.diagram` draws it anew."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = text.split("```mermaid\n", 1)[1].split("\n```", 1)[0]
    assert drawn == diagram.mermaid()
