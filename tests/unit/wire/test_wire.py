"""The stored form: everything comes back, the same things have the same bytes, and what is wrong is said in words."""

import json
import math
from collections.abc import Callable
from enum import Enum
from types import NoneType, UnionType
from typing import Any, NewType, Union, get_args, get_origin

import attrs
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from moorage import wire
from moorage.core.events import Admitted, Event, Observed
from moorage.core.machine import begin
from moorage.core.model import (
    Alive,
    Instant,
    JobId,
    Owner,
    Phase,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    State,
    SystemName,
)
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts

SPEC = SessionSpec(
    SessionId("a" * 26), SessionKey("hub", Owner("ada")), SystemName("s"), Instant(1), 7, options=(("a", "b"),)
)
SESSION = begin(SPEC).session


# Strategies from the types, so that what is added to the model is covered at once -------------------------------------

PLAIN: dict[type, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(),
    float: st.one_of(st.floats(allow_nan=False), st.integers(0, 10**6)),
    # All characters, lone surrogates too: texts of sites.
    str: st.text(st.characters(exclude_categories=()), max_size=12),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    if isinstance(hint, NewType):
        return values(hint.__supertype__)
    if get_origin(hint) in (Union, UnionType):
        return st.one_of(*map(values, get_args(hint)))
    if get_origin(hint) is tuple:
        args = get_args(hint)
        if args[-1] is Ellipsis:
            return st.lists(values(args[0]), max_size=3).map(tuple)
        return st.tuples(*map(values, args))
    if hint is Timeouts:
        return st.just(Timeouts()) | st.floats(0.1, 10).map(Timeouts().scaled)
    if attrs.has(hint):
        return st.builds(hint, **{field.name: values(field.type) for field in attrs.fields(hint)})
    if issubclass(hint, Enum):
        return st.sampled_from(hint)
    return PLAIN[hint]


EVENTS = values(Event)
SESSIONS = values(Session)


@given(EVENTS)
def test_every_event_comes_back(event: Event) -> None:
    form = wire.dump_event(event)
    assert wire.load_event(form) == event
    assert type(wire.load_event(form)) is type(event)
    assert wire.dump_event(wire.load_event(form)) == form


@given(SESSIONS)
def test_every_session_comes_back_whole_and_in_parts(session: Session) -> None:
    form = wire.dump_session(session)
    assert wire.load_session(form) == session
    assert wire.dump_session(wire.load_session(form)) == form
    spec = wire.load_spec(wire.dump_spec(session.spec))
    assert spec == session.spec
    assert wire.load_head(wire.dump_head(session), spec) == session


@pytest.mark.parametrize("cls", [*get_args(Event), *get_args(State)], ids=lambda cls: cls.__name__)
def test_no_kind_is_forgotten(cls: type) -> None:
    """Random draws may miss one; here each is drawn."""

    @given(values(cls))
    def check(value: Any) -> None:
        if cls in get_args(Event):
            assert wire.load_event(wire.dump_event(value)) == value
        else:
            session = evolve(SESSION, state=value)
            assert wire.load_head(wire.dump_head(session), SPEC) == session

    check()


@given(SESSIONS)
def test_the_form_is_canonical(session: Session) -> None:
    form = wire.dump_session(session)
    assert form.isascii()
    assert form == json.dumps(json.loads(form), sort_keys=True, separators=(",", ":")).encode()
    assert json.loads(form)["v"] == wire.VERSION


def test_numbers_that_json_does_not_have() -> None:
    from moorage.core.effects import Probe
    from moorage.core.events import EffectFailed
    from moorage.core.model import Failure, FailureKind

    event = EffectFailed(Probe(SPEC.id, 1, 2), Failure(FailureKind.OVERLOADED, "", math.nan))
    loaded = wire.load_event(wire.dump_event(event))
    assert isinstance(loaded, EffectFailed)
    assert loaded.failure.retry_after_s is not None
    assert math.isnan(loaded.failure.retry_after_s)


def test_an_unknown_kind_of_event_is_kept_byte_for_byte() -> None:
    form = b'{"event":{"altitude":3,"is":"BalloonSighted"},"v":1}'
    kept = wire.load_event(form)
    assert kept == wire.Kept("BalloonSighted", form)
    assert wire.dump_event(kept) == form
    assert wire.load_event(form.decode()) == kept


def test_a_secret_cannot_be_stored() -> None:
    with pytest.raises(TypeError):
        wire.dump_session(evolve(SESSION, spec=evolve(SPEC, service=Secret("canary"))))  # type: ignore[arg-type]


# What is wrong --------------------------------------------------------------------------------------------------------

FORM = wire.dump_session(SESSION).decode()


@pytest.mark.parametrize(
    ("old", "new", "path", "wrong", "right"),
    [
        ('"attempt":0', '"attempt":true', "session.attempt", "is True", "a whole number"),
        ('"attempt":0', '"attempt":0.0', "session.attempt", "is 0.0", "a whole number"),
        ('"attempt":0', '"attempt":"0"', "session.attempt", "is '0'", "a whole number"),
        ('"attempt":0', '"attempt":null', "session.attempt", "is nothing", "a whole number"),
        ('"owner":"ada"', '"owner":5', "session.spec.key.owner", "is 5", "text"),
        ('"call_s":30', '"call_s":true', "session.spec.timeouts.call_s", "is True", "a number"),
        ('"call_s":30', '"call_s":"30"', "session.spec.timeouts.call_s", "is '30'", "a number"),
        ('"call_s":30', '"call_s":-1', "session.spec.timeouts", "'call_s' must be > 0", "accepts"),
        ('"is":"Waiting"', '"is":"Wating"', "session.state.is", "is 'Wating'", "one of Waiting, Submitting"),
        ('"is":"Waiting",', "", "session.state.is", "is nothing", "one of Waiting"),
        ('"why":"asked"', '"why":"bored"', "session.state.why", "is 'bored'", "one of asked, limit"),
        ('"why":"asked"', '"why":[]', "session.state.why", "is a list", "one of asked"),
        ('"since":1,', "", "session.state.since", "is missing", "a value"),
        ('"since":1', '"sinc":1,"since":1', "session.state.sinc", "is unknown", "one of why, since"),
        ('[["a","b"]]', '[["a","b"],["c"]]', "session.spec.options[1]", "is a list", "a list of 2"),
        ('[["a","b"]]', '[["a",5]]', "session.spec.options[0][1]", "is 5", "text"),
        ('[["a","b"]]', '"ab"', "session.spec.options", "is 'ab'", "a list"),
        ('"residue":[]', '"residue":[{}]', "session.residue[0].kind", "is missing", "a value"),
        ('"groups":[]', '"groups":{}', "session.spec.groups", "is an object", "a list"),
        ('"v":1', '"v":2', "v", "is 2, written by a newer moorage", "1 or less"),
        ('"v":1', '"v":true', "v", "is True", "number of a version"),
        ('"v":1', '"v":0', "v", "is 0", "number of a version"),
        ('"v":1', '"v":1,"v":1', "session", "named twice", "JSON"),
        ('"v":1', '"w":1', "session", "is an object", 'members "session" and "v"'),
        ('"seed":7', '"seed":NaN', "session", "NaN is no JSON", "JSON"),
        ("}", "", "session", "is no JSON", "JSON"),
        ('{"session":', '{"event":', "session", "is an object", '"session"'),
    ],
)
def test_what_is_wrong_is_said_in_words(old: str, new: str, path: str, wrong: str, right: str) -> None:
    assert old in FORM
    with pytest.raises(wire.WireError) as caught:
        wire.load_session(FORM.replace(old, new, 1))
    assert caught.value.path == path
    assert wrong in caught.value.wrong
    assert right in caught.value.right
    assert len(str(caught.value)) < 400


LOADS: tuple[Callable[[bytes], Any], ...] = (
    wire.load_session,
    wire.load_event,
    wire.load_spec,
    lambda form: wire.load_head(form, SPEC),
)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("form", [b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"v":1}', b'"' + b"x" * 10**6 + b'"'])
def test_what_is_no_form_at_all(load: Callable[[bytes], Any], form: bytes) -> None:
    with pytest.raises(wire.WireError) as caught:
        load(form)
    assert len(str(caught.value)) < 400


@given(form=SESSIONS.map(wire.dump_session), data=st.data())
def test_a_changed_form_is_refused_or_loads_to_something_else_that_is_whole(form: bytes, data: st.DataObject) -> None:
    """Whatever happens to the bytes: a `WireError`, or a session that is stored again as it is."""
    changed = bytearray(form)
    changed[data.draw(st.integers(0, len(form) - 1))] = data.draw(st.integers(0, 255))
    try:
        session = wire.load_session(bytes(changed))
    except wire.WireError:
        return
    assert wire.load_session(wire.dump_session(session)) == session


def test_a_head_with_a_spec_is_no_head() -> None:
    with pytest.raises(wire.WireError, match="a head without it"):
        wire.load_head(FORM.replace('"session":', '"head":'), SPEC)


def test_a_field_with_a_default_may_be_missing() -> None:
    """So that a new field needs no new version: what was written before it had its default."""
    event = Observed(JobId("1"), Instant(1), Alive(Phase.RUNNING))
    form = wire.dump_event(event).decode()
    assert wire.load_event(form.replace('"node":null,', "")) == event
    assert wire.load_event(wire.dump_event(Admitted())) == Admitted()
