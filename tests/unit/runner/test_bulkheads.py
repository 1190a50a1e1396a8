"""What one system or one adapter does stays with it: lanes, deadlines, breakers, and adapters with bugs."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.unit.runner.doubles import (
    A,
    B,
    Script,
    World,
    answering,
    expecting,
    first,
    hang,
    in_virtual_time,
    lost_answer,
    now_s,
    raising,
    request,
    wait_for,
    wait_until,
)

from moorage.core.breaker import IN_A_ROW
from moorage.core.events import EffectFailed
from moorage.core.model import (
    Alive,
    Cause,
    Degraded,
    Doubt,
    Ended,
    EndReason,
    FailureKind,
    Gone,
    Phase,
    Ready,
    Route,
    SessionId,
    Sighting,
    Starting,
    Tag,
    Waiting,
    Why,
)
from moorage.performing import Kind
from moorage.ports.errors import Overloaded, PortError, Refused, Unanswered, Unauthorised, Unreachable
from moorage.ports.sessions import Step
from moorage.ports.tunnels import ProbeResult
from moorage.runner import Runner
from moorage.wire import dump_event, dump_session, load_event, load_session

VERBS = ("submit", "find", "observe", "cancel", "read", "remove")


def failures(world: World, session: object) -> list[FailureKind]:
    log = world.store.logs[session]  # type: ignore[index]
    return [entry.event.failure.kind for entry in log if isinstance(entry.event, EffectFailed)]


async def lives_of(world: World, runner: Runner, system: object, count: int) -> list[tuple[float, float]]:
    """For some sessions one after the other: how long until ready, how long until ended."""
    took = []
    for number in range(count):
        at = now_s()
        session = await runner.start(request(f"user{number}", system=system))  # type: ignore[arg-type]
        await wait_for(runner, session, Ready, within_s=600)
        ready = now_s()
        await runner.stop(session)
        await wait_for(runner, session, Ended, within_s=600)
        took.append((ready - at, now_s() - ready))
    return took


def latencies_of_b(sick: bool) -> list[tuple[float, float]]:
    took: list[tuple[float, float]] = []

    @in_virtual_time
    async def story() -> None:
        world = World(entry={"calls": 4})
        async with world.runner() as runner:
            for number in range(60):
                await runner.start(request(f"early{number}"))
            await asyncio.sleep(30)
            if sick:
                for verb in VERBS:
                    world.site.scripts[verb] = hang
                for number in range(300):
                    await runner.start(request(f"late{number}"))
                for live in list(runner.live.values())[:30]:
                    await runner.stop(live.id)
                await asyncio.sleep(30)
            took.extend(await lives_of(world, runner, B, 10))

    story()
    return took


def test_a_system_that_hangs_for_ever_is_not_felt_on_another_one() -> None:
    """I35: latencies on B are those without A's illness, within a tenth."""
    healthy, sick = latencies_of_b(sick=False), latencies_of_b(sick=True)
    for well, ill in zip(healthy, sick, strict=True):
        assert ill[0] <= 1.1 * well[0] + 0.05
        assert ill[1] <= 1.1 * well[1] + 0.05


@in_virtual_time
async def test_hanging_submits_hold_up_no_cancel_and_no_status() -> None:
    world = World(entry={"calls": 2})
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.scripts["submit"] = hang
        for number in range(20):
            await runner.start(request(f"user{number}"))
        await asyncio.sleep(5)
        assert world.site.running["submit"] == 2
        at = now_s()
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        assert now_s() - at < 10


@in_virtual_time
async def test_no_more_calls_run_at_once_than_there_are_places() -> None:
    world = World(entry={"calls": 3})
    world.site.latency_s = 2
    async with world.runner() as runner:
        for number in range(40):
            await runner.start(request(f"user{number}"))
        await wait_until(lambda: runner.ready() == 40)
    assert {verb: world.site.most[verb] for verb in ("submit", "read")} == {"submit": 3, "read": 3}
    assert world.site.most["observe"] == 1


@in_virtual_time
async def test_a_queue_that_is_full_refuses_instead_of_growing() -> None:
    world = World(entry={"calls": 1, "queue": 3})
    world.site.scripts["submit"] = slow_submit = first(hang)
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{number}")) for number in range(10)]
        await asyncio.sleep(3)
        lane = runner.performing.lanes[A, Kind.SUBMIT]
        assert lane.waiting <= 3
        assert slow_submit is world.site.scripts["submit"]
        kinds = [kind for session in ids for kind in failures(world, session)]
        assert set(kinds) == {FailureKind.OVERLOADED}
        await wait_until(lambda: runner.ready() == 9, 1_000)


@pytest.mark.parametrize(
    ("verb", "seconds"), [("submit", 120), ("find", 30), ("read", 30), ("cancel", 30), ("open", 40), ("probe", 10)]
)
def test_a_call_that_hangs_is_unanswered_within_its_deadline(verb: str, seconds: float) -> None:
    @in_virtual_time
    async def story() -> None:
        world = World()
        party = world.relay if verb in ("open", "probe") else world.site
        party.scripts[verb] = first(hang)
        if verb == "find":
            world.site.scripts["submit"] = first(raising(Unanswered("no answer")))
        async with world.runner() as runner:
            session = await runner.start(request())
            if verb == "cancel":
                await wait_for(runner, session, Ready)
                await runner.stop(session)
            await wait_until(lambda: party.count(verb) == 1)
            at = now_s() - party.latency_s
            await wait_until(lambda: party.running[verb] == 0, 130)
            assert seconds - 1 < now_s() - at < seconds + 1
            await asyncio.sleep(0.2)
            if verb != "cancel":  # which is repeated earlier, so that nobody minds this answer any more
                assert FailureKind.UNANSWERED in failures(world, session)[verb == "find" :]
            await wait_for(runner, session, Ended if verb == "cancel" else Ready, within_s=300)
            assert len(world.site.living) == (verb != "cancel")

    story()


# Adapters with bugs -----------------------------------------------------------------------------------------------


class _NoException(BaseException):
    """What a foreign library may raise past every `except Exception`."""


class _Odd(PortError):
    """A port error made without a sentence."""

    def __init__(self) -> None:
        self.note = ConnectionError("not a text")  # type: ignore[assignment]
        self.retry_after_s = "soon"  # type: ignore[assignment]


async def cancels_itself(_act: object) -> None:
    raise asyncio.CancelledError


BAD: dict[str, Callable[[], Script]] = {
    "a bug": lambda: raising(ZeroDivisionError("oops")),
    "a timeout of its own": lambda: raising(TimeoutError()),
    "no exception": lambda: raising(_NoException("oops")),
    "an exit": lambda: raising(SystemExit(3)),
    "a cancellation": lambda: cancels_itself,
    "a port error without text": lambda: raising(Unanswered(OSError("x"))),  # type: ignore[arg-type]
    "a port error gone wrong": lambda: raising(_Odd()),
    "nothing": lambda: answering(None),
    "a number": lambda: answering(17),
    "an empty text": lambda: answering(""),
    "bytes": lambda: answering(b"\xff\xfe"),
    "an endless text": lambda: answering("x" * 100_000),
    "a list of numbers": lambda: answering([1, 2]),
    "a mapping to numbers": lambda: answering({"alpha-1": 5}),
    "a class": lambda: answering(Alive),
    "an observation with a text for a phase": lambda: answering(Alive("running")),  # type: ignore[arg-type]
    "an observation without a note": lambda: answering(Alive(Phase.RUNNING, note=None)),  # type: ignore[arg-type]
    "an observation with half a millisecond": lambda: answering(Alive(Phase.RUNNING, ends_at=1.5)),  # type: ignore[arg-type]
    "an end with a text for a code": lambda: answering(Gone(EndReason.FAILED, exit_code="1")),  # type: ignore[arg-type]
    "a doubt of another kind": lambda: answering(Doubt("unsure")),  # type: ignore[arg-type]
    "a sighting without an id": lambda: answering((Sighting(None, Tag("t")),)),  # type: ignore[arg-type]
    "a route without an address": lambda: answering(Route(None)),  # type: ignore[arg-type]
    "a probe that says neither": lambda: answering(ProbeResult("yes", note=7)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("verb", ["submit", "find", "observe", "cancel", "read", "remove", "open", "probe", "close"])
@pytest.mark.parametrize("what", BAD)
def test_whatever_an_adapter_raises_or_returns_is_a_failure_of_this_call(what: str, verb: str) -> None:
    """I46: no task dies, the session goes its way when the adapter is mended, and what is saved can be loaded."""

    @in_virtual_time
    async def story() -> None:
        world = World()
        party = world.relay if verb in ("open", "probe", "close") else world.site
        script = BAD[what]()
        party.scripts[verb] = first(script, script, script)
        if verb == "find":
            world.site.scripts["submit"] = first(raising(Unanswered("no answer")))
        async with world.runner() as runner:
            healthy = await runner.start(request("bob", system=B))
            session = await runner.start(request())
            found = await wait_for(runner, session, Ready, Ended, within_s=2_000)
            assert isinstance(found.state, Ready), "an adapter's bug ended a session"
            await wait_for(runner, healthy, Ready)
            await asyncio.sleep(400)
            await runner.stop(session)
            await wait_for(runner, session, Ended, within_s=600)
            await wait_until(lambda: session not in runner.live, 4_000)
            for stored in world.store.sessions.values():
                assert load_session(dump_session(stored.session)) == stored.session
            for entry in world.store.logs[session]:
                assert entry.event is None or load_event(dump_event(entry.event)) == entry.event
            assert world.site.living == []
            # A relay that says closed and is not: the look at all paths finds it.
            await wait_until(lambda: world.relay.paths.keys() == {healthy}, 60)
            assert runner.live.keys() == {healthy}

    story()


def test_what_the_launcher_says_is_foreign_too() -> None:
    """A report with a good proof may still hold anything: its secret lies where the user can read it."""

    @in_virtual_time
    async def story() -> None:
        world = World()
        for name, worth in (("port", float("inf")), ("port", "none"), ("nonce", None)):

            def file(job: object, asked: str, name: str = name, worth: object = worth) -> bytes | None:
                from tests.unit.runner.doubles import proven

                tag = job.tag  # type: ignore[attr-defined]
                said = {"host": "n1", "port": 1, "nonce": "x", name: worth}
                if worth is None:
                    del said[name]
                return proven(world.safe.by_tag(tag), "endpoint", tag, said)

            async def read(act: object, file: Callable[..., bytes | None] = file) -> bytes | None:
                return file(next(job for job in world.site.jobs.values() if job.alive), "")

            world.site.scripts["read"] = read
            async with world.runner() as runner:
                session = await runner.start(request(name=f"{name}{worth}"))
                await wait_for(runner, session, Starting)
                before = world.site.count("read")
                await wait_until(lambda before=before: world.site.count("read") >= before + 3)  # type: ignore[misc]
                assert set(failures(world, session)) == {FailureKind.MALFORMED}
                world.site.scripts.clear()
                await wait_for(runner, session, Ready)
                await runner.stop(session)
                await wait_for(runner, session, Ended)

    story()


@in_virtual_time
async def test_a_report_that_somebody_else_wrote_is_not_believed() -> None:
    world = World()
    world.site.scripts["read"] = first(
        answering(b'{"host":"n1","port":1,"nonce":"x","kind":"endpoint","tag":"t","mac":"00"}'), answering(b"\xff")
    )
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        assert failures(world, session) == [FailureKind.MALFORMED] * 2


# Breakers ---------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_system_that_takes_no_jobs_is_left_alone_and_tried_with_one_session() -> None:
    world = World()
    world.site.scripts["submit"] = raising(Unreachable("refused"))
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{number}")) for number in range(100)]
        await asyncio.sleep(600)
        per_minute = [sum(1 for at in world.site.times("submit") if at // 60 == minute) for minute in range(1, 10)]
        assert max(per_minute) <= 12, per_minute
        states = [(await runner.get(session)).session.state for session in ids]
        assert all(isinstance(state, Waiting) for state in states)
        assert Why.BREAKER in {state.why for state in states if isinstance(state, Waiting)}
        del world.site.scripts["submit"]
        await wait_until(lambda: runner.ready() == 100, 1_800)


@in_virtual_time
async def test_calls_that_wait_for_a_place_are_not_made_once_the_breaker_is_open() -> None:
    world = World(entry={"calls": 5})
    world.site.scripts["submit"] = hang
    async with world.runner() as runner:
        for number in range(100):
            await runner.start(request(f"user{number}"))
        await asyncio.sleep(130)
        # Five took the places, and their silence opened it. All others can be told at once that nothing happened.
        assert world.site.count("submit") <= 2 * IN_A_ROW
        assert runner.performing.lanes[A, Kind.SUBMIT].waiting == 0


@in_virtual_time
async def test_half_open_one_status_call_at_a_time_is_made() -> None:
    world = World(entry={"calls": 3})
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{number}")) for number in range(12)]
        await wait_until(lambda: runner.ready() == 12)
        for verb in ("find", "read", "observe"):
            world.site.scripts[verb] = hang
        world.site.most.clear()
        world.site.calls.clear()
        for session in ids:
            world.relay.lost.add(session)
        world.relay.good = False
        await asyncio.sleep(100)
        seen = len(world.site.times("read"))
        await asyncio.sleep(300)
        # 30 s of hanging and a pause of up to a minute for each
        assert len(world.site.times("read")) - seen <= 12
        assert {type((await runner.get(session)).session.state) for session in ids} == {Degraded}
        world.site.scripts.clear()
        world.relay.good = True
        world.relay.lost.clear()
        await wait_until(lambda: runner.ready() == 12, 600)


@in_virtual_time
async def test_an_open_breaker_holds_up_no_cancel() -> None:
    world = World()
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{number}")) for number in range(5)]
        await wait_until(lambda: runner.ready() == 5)
        for verb in ("submit", "find", "read"):
            world.site.scripts[verb] = raising(Unreachable("refused"))
        for number in range(20):
            await runner.start(request(f"late{number}"))
        await asyncio.sleep(60)
        at = now_s()
        for session in ids:
            await runner.stop(session)
        for session in ids:
            await wait_for(runner, session, Ended)
        assert now_s() - at < 15


@in_virtual_time
async def test_a_submit_that_is_never_made_does_not_keep_a_half_open_breaker_waiting() -> None:
    """The one session that may try is stopped first, or its secret cannot be made: the next one tries soon."""
    world = World()
    world.site.scripts["submit"] = first(*[raising(Unreachable("refused"))] * IN_A_ROW)
    async with world.runner() as runner:
        for number in range(IN_A_ROW):
            await runner.start(request(f"user{number}"))
        await wait_until(lambda: runner.performing.lanes[A, Kind.SUBMIT].blocked(runner.ports.clock.now()))
        world.safe.scripts["issue"] = first(raising(Unreachable("the disk is full")))
        await wait_until(lambda: world.safe.count("issue") > IN_A_ROW)
        assert world.site.count("submit") == IN_A_ROW
        await wait_for(runner, await runner.start(request("somebody else")), Ready, within_s=15)


@in_virtual_time
@pytest.mark.parametrize("error", [Refused("no budget"), Unauthorised("log in again"), Overloaded("wait", 5)])
async def test_what_says_nothing_about_the_system_opens_no_breaker(error: PortError) -> None:
    world = World()
    world.site.scripts["submit"] = raising(error)
    async with world.runner() as runner:
        for number in range(20):
            await runner.start(request(f"user{number}"))
        await asyncio.sleep(30)
        assert runner.performing.lanes[A, Kind.SUBMIT].breaker.open_until is None  # type: ignore[union-attr]


@in_virtual_time
async def test_a_refusal_ends_the_session_and_says_why() -> None:
    world = World()
    world.site.scripts["submit"] = raising(Refused("the project has no budget"))
    async with world.runner() as runner:
        session = await runner.start(request())
        ended = await wait_for(runner, session, Ended)
        assert isinstance(ended.state, Ended)
        assert ended.state.cause is Cause.REFUSED
        assert "no budget" in (await runner.get(session)).progress.text
        assert world.site.count("submit") == 1


@in_virtual_time
async def test_retries_are_a_tenth_of_the_first_tries() -> None:
    """I34. The system says no to everybody once; the wish for patience says nothing about its health."""
    world = World()
    tried: set[object] = set()

    async def once(act: Callable[[], object]) -> object:
        tag = next(about for verb, _, about in reversed(world.site.calls) if verb == "submit")
        if tag[:-4] not in tried:
            tried.add(tag[:-4])
            raise Overloaded("later")
        return act()

    world.site.scripts["submit"] = once
    async with world.runner() as runner:
        for number in range(60):
            await runner.start(request(f"user{number}"))
        await asyncio.sleep(59)
        retries = world.site.count("submit") - 60
        assert 1 <= retries <= 6
        await wait_until(lambda: runner.ready() == 60, 3_600)


@in_virtual_time
async def test_a_submit_that_is_not_answered_for_long_is_healed_by_the_sweep() -> None:
    world = World()
    world.site.scripts["submit"] = lost_answer
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready, within_s=15)
        await asyncio.sleep(300)
        assert isinstance((await runner.get(session)).session.state, Ready)
        assert world.site.count("submit") == 1


@in_virtual_time
async def test_a_bug_of_ours_in_an_effect_is_loud_and_ends_in_an_event() -> None:
    world = World()
    with expecting("performing an effect failed with a bug"):
        async with world.runner() as runner:
            plain = runner.performing._read_endpoint

            async def bug(*_args: object) -> object:
                raise ZeroDivisionError

            runner.performing._read_endpoint = bug  # type: ignore[method-assign, assignment]
            session = await runner.start(request())
            await wait_for(runner, session, Starting)
            await asyncio.sleep(1)
            assert failures(world, session) == [FailureKind.MALFORMED]
            runner.performing._read_endpoint = plain  # type: ignore[method-assign]
            await wait_for(runner, session, Ready)


async def _until_ready(runner: Runner, session: SessionId) -> AsyncIterator[Step]:
    async for step in runner.follow(session):
        yield step
        if step.progress.state == "ready":
            return


@in_virtual_time
async def test_a_lost_answer_is_healed_by_a_lookup_and_never_by_a_second_submit() -> None:
    world = World()
    world.site.scripts["submit"] = raising(Unanswered("the connection broke"), after=True)
    async with world.runner() as runner:
        session = await runner.start(request())
        at = now_s()
        await wait_for(runner, session, Ready)
        assert now_s() - at < 2
        assert "locating" in [step.progress.state async for step in _until_ready(runner, session)]
        assert world.site.count("submit") == 1


@in_virtual_time
async def test_a_system_that_is_not_configured_any_more_is_unreachable() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request(system=B))
        await wait_for(runner, session, Ready)
    gone = world.sites.pop(B)
    async with world.runner() as runner:
        await asyncio.sleep(60)
        assert isinstance((await runner.get(session)).session.state, Ready | Degraded)
        await runner.stop(session)
        await asyncio.sleep(300)
        assert FailureKind.UNREACHABLE in failures(world, session)
        assert len(gone.living) == 1
        waiting = (await runner.get(session)).session
        assert not isinstance(waiting.state, Ended), "a job that may be there is not over"
    world.sites[B] = gone
    async with world.runner() as runner:
        await wait_for(runner, session, Ended)
        assert gone.living == []


@in_virtual_time
async def test_a_session_on_a_system_nobody_names_any_more_waits_visibly() -> None:
    world = World(entry={"closed": lambda _now: "drained"})
    async with world.runner() as runner:
        session = await runner.start(request(system=B))
        await wait_for(runner, session, Waiting)
    del world.sites[B]
    async with world.runner() as runner:
        await asyncio.sleep(5)
        assert "not configured" in (await runner.get(session)).progress.text
        await runner.stop(session)
        await wait_for(runner, session, Ended)
