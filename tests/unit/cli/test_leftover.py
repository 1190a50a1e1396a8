"""Folders of runs: which of them a later run may take up."""

import fcntl
import json
import os
import tempfile
from pathlib import Path

import pytest

from moorage.cli.leftover import LOCK_NAME, MOST, RECORD_NAME, Record, abandoned, private_folder

CONFIG = Path("/etc/moorage.yaml")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def killed(scratch: Path, name: str = "moorage-abc", config: Path = CONFIG) -> Path:
    """What is there after `kill -9`."""
    folder = scratch / name
    folder.mkdir(mode=0o700)
    (folder / LOCK_NAME).touch()
    Record("r1a2b3c", "juniper", str(config), False, "2026-11-25 09:24").write(folder)
    return folder


def found() -> list[Path]:
    with abandoned(CONFIG) as pairs:
        return [folder for folder, _ in pairs]


def test_a_folder_goes_with_its_run(scratch: Path) -> None:
    with private_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "something").touch()
    assert list(scratch.iterdir()) == []


def test_a_folder_with_a_record_stays(scratch: Path) -> None:
    with private_folder() as folder:
        Record("r1a2b3c", "juniper", str(CONFIG), True, "now").write(folder)
        assert found() == [], "its run goes on"
    assert found() == [folder]
    with abandoned(CONFIG) as pairs:
        assert pairs == [(folder, Record("r1a2b3c", "juniper", str(CONFIG), True, "now"))]
        assert found() == [], "somebody looks after it"


def test_only_runs_with_the_same_configuration_are_taken_up(scratch: Path) -> None:
    killed(scratch, "moorage-b", Path("/etc/other.yaml"))
    ours = killed(scratch, "moorage-a")
    assert found() == [ours]


def test_a_folder_that_others_can_write_to_is_not_believed(scratch: Path) -> None:
    killed(scratch).chmod(0o770)
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir()
    (scratch / "moorage-link").symlink_to(killed(elsewhere))
    assert found() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_somebody_else_is_not_believed(scratch: Path) -> None:
    os.chown(killed(scratch), 12345, -1)
    assert found() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        json.dumps({"deployment": "r1"}),
        "[" * 100_000,
        json.dumps({"deployment": [], "system": {}, "config": 1, "simulation": "x", "started": None}),
    ],
)
def test_what_is_no_record_is_passed_over(scratch: Path, text: str) -> None:
    (killed(scratch) / RECORD_NAME).write_text(text, "utf-8", errors="replace")
    assert found() == []


def test_a_folder_without_a_lock_is_passed_over(scratch: Path) -> None:
    (killed(scratch) / LOCK_NAME).unlink()
    assert found() == []


def test_not_all_of_many_are_taken_up_at_once(scratch: Path) -> None:
    for number in range(MOST + 3):
        killed(scratch, f"moorage-{number}")
    assert len(found()) == MOST


def test_the_lock_is_given_back(scratch: Path) -> None:
    folder = killed(scratch)
    assert found() == [folder]
    with (folder / LOCK_NAME).open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
