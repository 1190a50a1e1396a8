"""The same seed gives the same story: in any process, hash seed, time zone, language, and version of Python."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_worlds import live

HERE = Path(__file__).parent
SEEDS = (3, 7, 11, 19)
PROGRAM = f"from small_worlds import live\nfor seed in {SEEDS}: print(seed, live(seed).digest)"
NEEDED = ("attr", "attrs", "cattrs", "pluggy", "yaml")
"""What a world imports besides the standard library; all of it runs without being compiled."""


@pytest.fixture(scope="module")
def here() -> str:
    """The digests in this process."""
    return "".join(f"{seed} {live(seed).digest}\n" for seed in SEEDS)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "0"},
        {"PYTHONHASHSEED": "4294967295", "TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8"},
        {"PYTHONHASHSEED": "random", "TZ": "America/St_Johns", "LANG": "C", "PYTHONOPTIMIZE": "1"},
    ],
    ids=["hash seed", "hash seed, time zone, language", "any hash seed, optimised"],
)
def test_the_environment_changes_nothing(environment: dict[str, str], here: str) -> None:
    assert _digests(sys.executable, {**os.environ, **environment}) == here


def _other_pythons() -> list[str]:
    """Interpreters of other versions on this machine, those that moorage supports."""
    found: dict[tuple[int, int], str] = {}
    for minor in range(11, 20):
        name = f"python3.{minor}"
        places = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}"))
        for place in [*map(str, places), *filter(None, [shutil.which(name)])]:
            works = subprocess.run([place, "-c", ""], capture_output=True, check=False).returncode == 0
            if works and (3, minor) != sys.version_info[:2]:
                found[3, minor] = place
    return [found[version] for version in sorted(found)]


@pytest.mark.parametrize("python", _other_pythons())
def test_the_version_of_python_changes_nothing(python: str, here: str, tmp_path: Path) -> None:
    """Run with the very packages of this environment, which are plain Python."""
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (tmp_path / name).symlink_to(spec.submodule_search_locations[0])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    assert _digests(python, environment) == here


def _digests(python: str, environment: dict[str, str]) -> str:
    source = HERE.parents[2] / "src"
    paths = [str(source), str(HERE), *filter(None, [environment.get("PYTHONPATH")])]
    done = subprocess.run(
        [python, "-c", PROGRAM],
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
