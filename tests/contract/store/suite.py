"""
What every store does: functions that take `make_store`, which opens the same store each time it is called.

Run here over SQLite and PostgreSQL; the simulator's double runs the same functions (`CLAIMS`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from attrs import evolve

from moorage.core.events import Admitted, Event, Observed, StopAsked, Submitted, Woke
from moorage.core.limits import Limits
from moorage.core.machine import begin, step
from moorage.core.model import (
    Alive,
    Cause,
    Ended,
    Evidence,
    Instant,
    JobId,
    Owner,
    Phase,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
)
from moorage.ports.errors import LimitReached, StaleVersion
from moorage.ports.store import Store, Stored

MakeStore = Callable[[], Awaitable[Store]]
Claim = Callable[[MakeStore], Awaitable[None]]

AT = Instant(1_700_000_000_000)
LIFE: tuple[Event, ...] = (
    Admitted(),
    Submitted(1, JobId("4711")),
    Observed(JobId("4711"), AT, Alive(Phase.RUNNING, node="n1")),
    StopAsked(),
)


def session_id(number: int) -> SessionId:
    digits = "abcdefghijklmnopqrstuvwxyz234567"
    text = ""
    for _ in range(26):
        number, digit = divmod(number, 32)
        text = digits[digit] + text
    return SessionId(text)


def new(number: int = 1, **fields: object) -> Session:
    """A session as it begins; `owner`, `name`, `hub` go into its key, everything else into its spec."""
    parts = {name: fields.pop(name) for name in ("hub", "owner", "name") if name in fields}
    key = SessionKey(**{"hub": "hub", "owner": Owner("ada"), "name": str(number), **parts})  # type: ignore[arg-type]
    spec = SessionSpec(session_id(number), key, SystemName("jureca"), AT, seed=number)
    return begin(evolve(spec, **fields)).session


def admitted(session: Session) -> Session:
    return step(session, Admitted(), AT).session


def ended(session: Session) -> Session:
    return evolve(session, state=Ended(Cause.STOPPED, Evidence(), AT))


async def created(store: Store, *sessions: Session) -> None:
    for session in sessions:
        assert await store.save(session, None, AT, 0) == 1


async def lived(store: Store, session: Session, events: tuple[Event, ...] = LIFE) -> Stored:
    """A session taken through some events, each saved."""
    await created(store, session)
    version = 1
    for event in events:
        session = step(session, event, AT).session
        version = await store.save(session, event, AT, version)
    return Stored(session, version)


async def what_is_saved_is_found(make_store: MakeStore) -> None:
    store = await make_store()
    stored = await lived(store, new())
    assert await store.load(stored.session.id) == stored
    assert stored.version == 1 + len(LIFE)
    assert await store.load(session_id(99)) is None


async def another_process_finds_it(make_store: MakeStore) -> None:
    stored = await lived(await make_store(), new(options=(("colour", "blå \x00 \ud800"),), groups=("a", "b")))
    other = await make_store()
    assert await other.load(stored.session.id) == stored
    assert await other.unfinished() == [stored]


async def a_stale_version_is_refused_and_nothing_is_saved(make_store: MakeStore) -> None:
    store = await make_store()
    stored = await lived(store, new(), LIFE[:2])
    later = step(stored.session, StopAsked(), AT).session
    for expected in (stored.version - 1, stored.version + 1, 1000):
        with pytest.raises(StaleVersion):
            await store.save(later, StopAsked(), AT, expected)
    with pytest.raises(StaleVersion):
        await store.save(new(), None, AT, 0)
    with pytest.raises(StaleVersion):
        await store.save(new(2), Woke(), AT, 1)
    assert await store.load(stored.session.id) == stored
    assert await store.load(session_id(2)) is None
    assert len(await store.log(stored.session.id)) == stored.version


async def of_two_writers_one_wins(make_store: MakeStore) -> None:
    one, two = await make_store(), await make_store()
    session = new()
    await created(one, session)
    for version in range(1, 20):
        tries = [writer.save(session, StopAsked(by), AT, version) for writer, by in ((one, "one"), (two, "two"))]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StaleVersion", "int"]
    log = await two.log(session.id)
    assert [entry.version for entry in log] == list(range(1, 21))


async def creating_twice_at_once_creates_once(make_store: MakeStore) -> None:
    one, two = await make_store(), await make_store()
    for number in range(10):
        session = new(number)
        tries = [store.save(session, None, AT, 0) for store in (one, two, one, two)]
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["StaleVersion"] * 3 + ["int"]
    assert len(await one.unfinished()) == 10


async def many_at_once_are_each_durable_and_a_stale_one_fails_alone(make_store: MakeStore) -> None:
    store = await make_store()
    every = [new(number) for number in range(200)]
    await asyncio.gather(*(store.save(session, None, AT, 0) for session in every))
    saves = [store.save(session, StopAsked(), AT, 7 if number % 10 == 0 else 1) for number, session in enumerate(every)]
    outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert [isinstance(outcome, StaleVersion) for outcome in outcomes] == [n % 10 == 0 for n in range(200)]
    other = await make_store()
    assert [stored.version for stored in await other.unfinished()] == [1 if n % 10 == 0 else 2 for n in range(200)]


async def several_events_of_one_session_at_once_keep_their_order(make_store: MakeStore) -> None:
    store = await make_store()
    session = new()
    saves = [store.save(session, None, AT, 0)]
    saves += [store.save(session, StopAsked(str(version)), AT, version) for version in range(1, 10)]
    assert await asyncio.gather(*saves) == list(range(1, 11))
    assert [entry.event for entry in await store.log(session.id, 1)] == [StopAsked(str(n)) for n in range(1, 10)]


async def the_log_holds_every_event_in_order(make_store: MakeStore) -> None:
    store = await make_store()
    stored = await lived(store, new())
    await lived(store, new(2))
    log = await store.log(stored.session.id)
    assert [entry.event for entry in log] == [None, *LIFE]
    assert [entry.version for entry in log] == [1, 2, 3, 4, 5]
    assert {entry.at for entry in log} == {AT}
    assert await store.log(stored.session.id, after=3) == log[3:]
    assert await store.log(stored.session.id, after=1, limit=2) == log[1:3]
    assert await store.log(stored.session.id, after=5) == []
    assert await store.log(session_id(99)) == []


async def replay_equals_state(make_store: MakeStore) -> None:
    store = await make_store()
    stored = await lived(store, new())
    session = new()
    for entry in await store.log(stored.session.id):
        if entry.event is not None:
            session = step(session, entry.event, entry.at).session
    assert session == stored.session


async def unfinished_are_those_not_over_oldest_first(make_store: MakeStore) -> None:
    store = await make_store()
    every = [new(number) for number in (5, 3, 9, 1)]
    await created(store, *every)
    await store.save(ended(every[1]), StopAsked(), AT, 1)
    with_residue = evolve(ended(admitted(every[2])), residue=_residue())
    await store.save(with_residue, StopAsked(), AT, 1)
    assert [stored.session for stored in await store.unfinished()] == [every[0], with_residue, every[3]]


def _residue() -> tuple[object, ...]:
    return step(admitted(new()), StopAsked(), AT).session.residue


async def latest_is_the_last_one_of_its_key(make_store: MakeStore) -> None:
    store = await make_store()
    first, second = new(7, name="lab"), new(3, name="lab")
    await created(store, first, second)
    await store.save(ended(second), StopAsked(), AT, 1)
    assert await store.latest(first.spec.key) == Stored(ended(second), 2)
    assert await store.latest(SessionKey("hub", Owner("ada"), "other")) is None


async def keys_that_look_alike_are_different(make_store: MakeStore) -> None:
    store = await make_store()
    parts = [
        "",
        "a",
        "A",
        "ä",
        "a\u0308",
        "a ",
        " a",
        "a\x00",
        "\\xe4",
        "a/b",
        "a%",
        "\ud800",
        "\n",
        "\\n",
        "null",
        "🐢",
    ]
    keys = [SessionKey("h", Owner(part), "x") for part in parts] + [SessionKey("h", Owner("x"), part) for part in parts]
    keys += [SessionKey("hx", Owner(""), "y"), SessionKey("h", Owner("x"), "y"), SessionKey("", Owner("hx"), "y")]
    every = [new(n, hub=key.hub, owner=key.owner, name=key.name) for n, key in enumerate(keys)]
    await created(store, *every)
    for key, session in zip(keys, every, strict=True):
        stored = await store.latest(key)
        assert stored is not None
        assert stored.session.spec.key == key
        assert stored.session.id == session.id


async def a_limit_that_is_reached_refuses_and_saves_nothing(make_store: MakeStore) -> None:
    for limits in (Limits(in_all=1), Limits(per_user=1), Limits(per_group={"g": 1}), Limits(per_system=1)):
        store = await make_store()
        holder, next_one = _pair()
        await created(store, holder, next_one)
        assert await store.save(admitted(holder), Admitted(), AT, 1, limits) == 2
        with pytest.raises(LimitReached):
            await store.save(admitted(next_one), Admitted(), AT, 1, limits)
        assert await store.load(next_one.id) == Stored(next_one, 1)
        assert len(await store.log(next_one.id)) == 1
        # Without limits, or once the place is free, it goes through.
        await store.save(ended(holder), StopAsked(), AT, 2)
        assert await store.save(admitted(next_one), Admitted(), AT, 1, limits) == 2
        await store.save(ended(next_one), StopAsked(), AT, 2)


_numbers: Iterator[int] = iter(range(10**6, 10**9))


def _pair() -> tuple[Session, Session]:
    """Two sessions of the same owner, group and system."""
    return new(next(_numbers), groups=("g", "h")), new(next(_numbers), groups=("g",))


async def limits_of_others_do_not_matter(make_store: MakeStore) -> None:
    store = await make_store()
    limits = Limits(per_user=1, per_group={"g": 1}, per_system=1)
    holder = new(1, groups=("g",))
    others = [
        new(2, owner="bob", system=SystemName("juwels"), groups=("h",)),
        new(3, owner="eve", system=SystemName("deep"), groups=()),
    ]
    await created(store, holder, *others)
    for session in (holder, *others):
        assert await store.save(admitted(session), Admitted(), AT, 1, limits) == 2


async def waiting_and_ended_sessions_take_no_place(make_store: MakeStore) -> None:
    store = await make_store()
    waiting, over, next_one = new(1), new(2), new(3)
    await created(store, waiting, over, next_one)
    await store.save(admitted(over), Admitted(), AT, 1)
    await store.save(ended(over), StopAsked(), AT, 2)
    limits = Limits(in_all=1)
    assert await store.save(admitted(next_one), Admitted(), AT, 1, limits) == 2
    # A session that has its place is not in its own way, and one that goes on waiting asks for none.
    assert await store.save(step(admitted(next_one), LIFE[1], AT).session, LIFE[1], AT, 2, limits) == 3
    assert await store.save(waiting, Woke(), AT, 1, limits) == 2


async def limits_hold_under_races(make_store: MakeStore) -> None:
    """I43: two processes admit 40 sessions at once; never more than the limits have places."""
    stores = [await make_store(), await make_store()]
    limits = Limits(in_all=9, per_user=3, per_group={"g": 5}, per_system=8)
    every = [
        new(n, owner=f"user{n % 5}", groups=("g",) if n % 2 else (), system=SystemName(f"s{n % 2}")) for n in range(40)
    ]
    await created(stores[0], *every)
    saves = [stores[n % 2].save(admitted(session), Admitted(), AT, 1, limits) for n, session in enumerate(every)]
    outcomes = await asyncio.gather(*saves, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {int, LimitReached}
    held = [session.spec for session, outcome in zip(every, outcomes, strict=True) if outcome == 2]
    assert len(held) == 9
    assert max(sum(spec.key.owner == f"user{n}" for spec in held) for n in range(5)) <= 3
    assert sum("g" in spec.groups for spec in held) <= 5


async def a_cancelled_caller_leaves_no_gap(make_store: MakeStore) -> None:
    """I29: the save goes on without its caller, or never began."""
    store = await make_store()
    session = new()
    await created(store, session)
    version = 1
    for _ in range(20):
        save = asyncio.ensure_future(store.save(session, StopAsked(), AT, version))
        await asyncio.sleep(0)
        save.cancel()
        await asyncio.gather(save, return_exceptions=True)
        # What comes later sees what came before.
        try:
            version = await store.save(session, Woke(), AT, version)
        except StaleVersion:
            stored = await store.load(session.id)
            assert stored is not None
            version = await store.save(session, Woke(), AT, stored.version)
    assert [entry.version for entry in await store.log(session.id)] == list(range(1, version + 1))


async def closing_twice_is_harmless(make_store: MakeStore) -> None:
    store = await make_store()
    await created(store, new())
    await store.close()
    await store.close()
    assert await (await make_store()).load(new().id) is not None


CLAIMS: tuple[Claim, ...] = (
    what_is_saved_is_found,
    another_process_finds_it,
    a_stale_version_is_refused_and_nothing_is_saved,
    of_two_writers_one_wins,
    creating_twice_at_once_creates_once,
    many_at_once_are_each_durable_and_a_stale_one_fails_alone,
    several_events_of_one_session_at_once_keep_their_order,
    the_log_holds_every_event_in_order,
    replay_equals_state,
    unfinished_are_those_not_over_oldest_first,
    latest_is_the_last_one_of_its_key,
    keys_that_look_alike_are_different,
    a_limit_that_is_reached_refuses_and_saves_nothing,
    limits_of_others_do_not_matter,
    waiting_and_ended_sessions_take_no_place,
    limits_hold_under_races,
    a_cancelled_caller_leaves_no_gap,
    closing_twice_is_harmless,
)
