"""What was ever written can be read: the golden file of each version."""

import json
from hashlib import sha256
from typing import Any, get_args

import pytest
from tests.recorded.wire import make

from moorage import wire
from moorage.core.effects import Effect
from moorage.core.events import Event
from moorage.core.machine import step
from moorage.core.model import Instant, Observation, State

VERSIONS = range(1, wire.VERSION + 1)


def golden(version: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(make.golden(version).read_text("ascii"))
    return document


def test_golden_files_are_as_they_were() -> None:
    """A golden file is what deployments have on their disks: nobody may improve it."""
    for line in make.SUMS.read_text("ascii").splitlines():
        digest, name = line.split()
        assert sha256((make.HERE / name).read_bytes()).hexdigest() == digest, f"{name} was changed"
    assert [line.split()[1] for line in make.SUMS.read_text("ascii").splitlines()] == [f"v{n}.json" for n in VERSIONS]


def test_every_old_version_has_its_upgrade() -> None:
    assert sorted(wire.UPGRADES) == list(range(1, wire.VERSION))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_form_loads(version: int) -> None:
    document = golden(version)
    for form in document["sessions"]:
        session = wire.load_session(form)
        assert wire.load_session(wire.dump_session(session)) == session
    for form in document["events"]:
        assert not isinstance(wire.load_event(form), wire.Kept)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_log_replays_to_the_session_that_was_recorded(version: int) -> None:
    """I19. If this fails, `step` decides otherwise than it did: running sessions would change under their users."""
    for number, life in enumerate(golden(version)["lives"]):
        session = wire.load_session(life["begin"])
        for at, form in life["log"]:
            event = wire.load_event(form)
            assert not isinstance(event, wire.Kept)
            session = step(session, event, Instant(at)).session
        assert session == wire.load_session(life["end"]), f"life {number}"


def test_the_present_version_is_written_as_its_golden_file_says() -> None:
    """If this fails: a field was added (with a default: make the file anew before a release) or the form changed."""
    document = golden(wire.VERSION)
    for form in document["sessions"]:
        assert wire.dump_session(wire.load_session(form)).decode() == form
    for form in document["events"]:
        assert wire.dump_event(wire.load_event(form)).decode() == form


def test_the_golden_file_holds_every_state_event_effect_and_observation() -> None:
    document = golden(wire.VERSION)
    text = "".join(document["sessions"] + document["events"])
    for union in (State, Event, Effect, Observation):
        for cls in get_args(union):
            assert f'"is":"{cls.__name__}"' in text


def test_an_old_version_is_upgraded_on_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """How the next version will do it: here, one in which attempts are called tries."""
    form = golden(1)["sessions"][0].replace('"attempt":', '"try":')
    seen = []

    def upgrade(what: str, data: dict[str, Any]) -> dict[str, Any]:
        seen.append(what)
        data["attempt"] = data.pop("try")
        return data

    monkeypatch.setattr(wire, "VERSION", 2)
    monkeypatch.setitem(wire.UPGRADES, 1, upgrade)
    session = wire.load_session(form)
    assert seen == ["session"]
    assert wire.dump_session(session).endswith(b',"v":2}')
    assert wire.load_session(wire.dump_session(session)) == session
