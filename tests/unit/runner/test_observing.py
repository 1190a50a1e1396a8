"""How jobs are watched: one call for all, ever more rarely, hints as hints; and the sweep."""

import asyncio
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from tests.unit.runner.doubles import (
    ADA,
    FULL_DISK,
    A,
    B,
    PushingSite,
    World,
    answering,
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

from moorage.core.model import (
    Alive,
    Cause,
    Doubt,
    DoubtReason,
    Ended,
    EndReason,
    JobId,
    Owner,
    Phase,
    Queued,
    Ready,
    SessionId,
    Starting,
    Tag,
    deployment_tag,
)
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Unreachable


def asked(world: World) -> list[tuple[float, tuple[JobId, ...]]]:
    return [(at, about) for verb, at, about in world.site.calls if verb == "observe"]


@in_virtual_time
async def test_one_call_asks_about_all_jobs_of_a_system() -> None:
    """I33: with two hundred sessions as with one, a status call every 30 s while they wait in the queue."""
    calls = {}
    for count in (1, 200):
        world = World()
        world.site.starts = False
        async with world.runner() as runner:
            for number in range(count):
                await runner.start(request(f"user{number}"))
            await wait_until(lambda world=world, count=count: len(world.site.jobs) == count)  # type: ignore[misc]
            await asyncio.sleep(300)
            world.site.calls.clear()
            await asyncio.sleep(1_200)
            calls[count] = len(asked(world))
            assert max(len(jobs) for _, jobs in asked(world)) == count
    assert calls[1] == pytest.approx(40, abs=2)
    assert calls[200] <= 2 * calls[1]


@in_virtual_time
async def test_the_older_a_state_the_rarer_the_question() -> None:
    world = World()
    world.site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await asyncio.sleep(600)
        times = [at for at, _ in asked(world)]
        apart = [later - earlier for earlier, later in pairwise(times)]
        assert min(apart) >= 0.25
        assert apart[0] < 1
        assert apart == sorted(apart) or max(apart[-5:]) <= 31
        assert 29 < apart[-1] <= 31
        job = next(iter(world.site.jobs.values()))
        job.said = Alive(Phase.RUNNING, "n1")
        at = now_s()
        await wait_for(runner, session, Ready)
        assert now_s() - at < 35
        world.site.calls.clear()
        await asyncio.sleep(1_500)
        assert len(asked(world)) <= 6, "a session that is ready is asked about every five minutes"


@in_virtual_time
async def test_a_session_that_changes_all_the_time_is_asked_about_all_the_same() -> None:
    """Every change plans the next question anew; the first one must not be put off for ever by that."""
    world = World(timeouts=Timeouts(status_starting_s=20))
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
    world.relay.good = False
    world.relay.scripts["open"] = raising(Unreachable("away"))
    world.site.end(next(iter(world.site.jobs)), EndReason.FAILED)
    async with world.runner() as runner:
        found = await wait_for(runner, session, Ended, within_s=120)
        assert isinstance(found.state, Ended)
        assert found.state.cause is Cause.FAILED


@in_virtual_time
async def test_a_reading_that_says_nothing_new_is_no_event() -> None:
    world = World()
    world.site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        await asyncio.sleep(30)
        version = (await runner.get(session)).version
        await asyncio.sleep(3_600)
        assert (await runner.get(session)).version <= version + 1
        next(iter(world.site.jobs.values())).said = Alive(Phase.PENDING, note="place 3")
        await asyncio.sleep(40)
        assert "place 3" in (await runner.get(session)).progress.text


@in_virtual_time
async def test_an_observer_rests_longer_after_a_slow_call() -> None:
    world = World(timeouts=Timeouts(status_first_s=0.25, status_starting_s=1))
    world.site.starts = False
    async with world.runner() as runner:
        await runner.start(request())
        await asyncio.sleep(2)
        world.site.latency_s = 4
        await asyncio.sleep(20)
        world.site.calls.clear()
        await asyncio.sleep(200)
        assert len(asked(world)) <= 200 / (4 + 16) + 1


@in_virtual_time
async def test_a_job_that_nobody_has_asked_about_does_not_wait_for_the_whole_rest() -> None:
    """Somebody waits for its start; what is asked about along with it is not asked about more often than that."""
    world = World(timeouts=Timeouts(status_first_s=0.25, status_starting_s=1))
    world.site.starts = False
    async with world.runner() as runner:
        await runner.start(request())
        await asyncio.sleep(2)
        world.site.latency_s = 4
        await asyncio.sleep(20)
        await wait_until(lambda: now_s() - asked(world)[-1][0] < 0.2)
        world.site.latency_s = 0
        await runner.start(request("bob"))
        world.site.latency_s = 4
        began = now_s()
        await wait_until(lambda: len(asked(world)[-1][1]) == 2)
        assert asked(world)[-1][0] - began <= 4 + 4 + 0.5
        world.site.calls.clear()
        await asyncio.sleep(200)
        assert len(asked(world)) <= 200 / (4 + 16) + 1


@in_virtual_time
async def test_silence_and_nonsense_end_nobody() -> None:
    """Failed calls, an empty answer, a doubt about every job: for two hours, and then everything goes on."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        for script in (
            raising(Unreachable("away")),
            hang,
            answering({}),
            answering([]),
            answering({JobId("alpha-1"): Doubt(DoubtReason.STALE)}),
            answering({JobId("alpha-1"): Doubt(DoubtReason.UNAUTHORISED)}),
            answering({JobId("alpha-7"): Alive(Phase.RUNNING)}),
        ):
            world.site.scripts["observe"] = script
            await asyncio.sleep(1_200)
            assert isinstance((await runner.get(session)).session.state, Ready)


@in_virtual_time
async def test_a_job_that_is_not_listed_is_looked_up_before_anybody_believes_it() -> None:
    world = World()
    world.site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        world.site.scripts["observe"] = answering({JobId("alpha-1"): Doubt(DoubtReason.NOT_LISTED)})
        await wait_until(lambda: world.site.count("find") > 0)
        await asyncio.sleep(120)
        assert isinstance((await runner.get(session)).session.state, Queued), "the lookup shows it"
        world.site.hidden.add(JobId("alpha-1"))
        ended = await wait_for(runner, session, Ended, within_s=300)
        assert isinstance(ended.state, Ended)
        assert ended.state.cause is Cause.VANISHED


@in_virtual_time
async def test_a_job_that_ends_by_itself_ends_its_session_with_cause_and_log() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.end(JobId("alpha-1"), EndReason.WALLTIME)
        world.relay.lost.add(session)
        world.relay.good = False
        ended = await wait_for(runner, session, Ended, within_s=400)
        assert isinstance(ended.state, Ended)
        assert ended.state.cause is Cause.WALLTIME
        assert "the last words" in ended.state.evidence.log


# Pushes -----------------------------------------------------------------------------------------------------------


def pushing() -> tuple[World, PushingSite]:
    site = PushingSite(name="alpha")
    return World(sites={A: site}), site


@in_virtual_time
async def test_a_push_makes_the_observer_ask_earlier() -> None:
    world, site = pushing()
    site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await asyncio.sleep(600)
        site.jobs[JobId("alpha-1")].said = Alive(Phase.RUNNING, "n1")
        at = now_s()
        site.pushes.put_nowait("alpha-1")
        await wait_for(runner, session, Starting, Ready)
        assert now_s() - at < 1


@in_virtual_time
async def test_the_first_push_about_a_new_job_is_followed_at_once_and_later_ones_after_a_pause() -> None:
    """Somebody waits for the start; a site that pushes without end is asked as often as any other."""
    world, site = pushing()
    site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        at = now_s()
        for _ in range(30):
            site.pushes.put_nowait("alpha-1")
            await asyncio.sleep(0.05)
        times = [when - at for when, _ in asked(world)]
        assert times[0] < 0.05
        assert all(later - earlier >= 0.24 for earlier, later in pairwise(times)), times


@in_virtual_time
async def test_a_push_carries_no_news_and_a_flood_of_them_makes_no_flood_of_questions() -> None:
    world, site = pushing()
    site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await asyncio.sleep(600)
        site.calls.clear()
        for number in range(20_000):
            site.pushes.put_nowait("alpha-1" if number % 2 else f"nobody-{number}")
        await asyncio.sleep(10)
        assert len(asked(world)) <= 3
        for _ in range(50):
            site.pushes.put_nowait("alpha-1")
            await asyncio.sleep(0.1)
        assert len(asked(world)) <= 3 + 5 / 0.25 + 1
        assert isinstance((await runner.get(session)).session.state, Queued)


@in_virtual_time
async def test_pushes_that_end_or_fail_are_listened_to_again_after_a_while() -> None:
    world, site = pushing()
    site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await asyncio.sleep(1)
        for broken in (None, ZeroDivisionError("oops"), asyncio.CancelledError(), ["no id"]):
            before = site.count("watch")
            site.pushes.put_nowait(broken)
            await asyncio.sleep(59)
            assert site.count("watch") == before
            await asyncio.sleep(2)
            assert site.count("watch") == before + 1
        site.jobs[JobId("alpha-1")].said = Alive(Phase.RUNNING, "n1")
        site.pushes.put_nowait("alpha-1")
        await wait_for(runner, session, Starting, Ready, within_s=1)


# Sweep ------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_the_sweep_takes_up_the_job_of_a_submit_that_was_not_answered() -> None:
    world = World()
    world.site.scripts["submit"] = lost_answer
    async with world.runner() as runner:
        await runner.start(request(name="known"))
        await wait_until(lambda: len(world.site.jobs) == 1)
        world.site.scripts.clear()
        await wait_for(runner, await runner.start(request(name="other")), Ready)
        await wait_until(lambda: runner.ready() == 2)
        assert len(world.site.jobs) == 2
        assert world.site.count("submit") == 2


@in_virtual_time
async def test_a_second_job_of_a_session_is_cancelled() -> None:
    """A site that made one more for a repeated request."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        tag = world.site.jobs[JobId("alpha-1")].tag
        double = world.site.create(tag)
        await wait_until(lambda: not world.site.jobs[double].alive, 700)
        assert world.site.jobs[JobId("alpha-1")].alive
        assert isinstance((await runner.get(session)).session.state, Ready)


@in_virtual_time
async def test_a_job_of_a_session_that_is_over_is_cancelled() -> None:
    """A submit that reached the system long after its session ended."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        tag = world.site.jobs[JobId("alpha-1")].tag
        await runner.stop(session)
        await wait_until(lambda: session not in runner.live, 4_000)
        late = world.site.create(tag)
        await wait_until(lambda: not world.site.jobs[late].alive, 700)
        await wait_until(lambda: session not in runner.live, 4_000)
        assert isinstance((await runner.get(session)).session.state, Ended)


@in_virtual_time
async def test_a_submit_that_was_stopped_and_comes_very_late_is_found_by_the_sweep() -> None:
    """The session never had a job that we knew of; the account is swept all the same."""
    world = World()
    world.site.scripts["submit"] = hang
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_until(lambda: world.site.count("submit") == 1)
        await runner.stop(session)
        await wait_for(runner, session, Ended, within_s=120)
        tag = next(about for verb, _, about in world.site.calls if verb == "submit")
        late = world.site.create(tag)
        await wait_until(lambda: not world.site.jobs[late].alive, 700)


@in_virtual_time
async def test_a_job_of_nobody_is_kept_for_the_grace_time_and_then_cancelled() -> None:
    """Jobs of a store that was lost: people have time to see it. Jobs without our tag are none of our business."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        stray = world.site.create(Tag(f"{deployment_tag('moorage')}{'z' * 26}0001"))
        foreign = world.site.create(Tag(f"{deployment_tag('another')}{'z' * 26}0001"))
        odd = world.site.create(Tag(f"{deployment_tag('moorage')}odd"))
        at = now_s()
        await wait_until(lambda: stray in runner.observing.observers[A].strays, 700)
        seen = now_s()
        await wait_until(lambda: not world.site.jobs[stray].alive, 2_000)
        assert 600 <= now_s() - seen <= 1_000
        assert now_s() - at < 1_600
        await wait_until(lambda: not runner.observing.observers[A].strays, 700)
        assert world.site.jobs[foreign].alive
        assert world.site.jobs[odd].alive


@in_virtual_time
async def test_a_stray_whose_cancel_fails_is_tried_again() -> None:
    world = World(timeouts=Timeouts(stray_grace_s=60))
    async with world.runner() as runner:
        await wait_for(runner, await runner.start(request()), Ready)
        stray = world.site.create(Tag(f"{deployment_tag('moorage')}{'z' * 26}0001"))
        world.site.scripts["cancel"] = first(raising(Unreachable("away")), hang)
        await wait_until(lambda: not world.site.jobs[stray].alive, 2_000)


@in_virtual_time
async def test_people_with_one_account_are_swept_once() -> None:
    world = World()
    world.site.account_of = lambda _owner: "project"
    async with world.runner() as runner:
        for number in range(20):
            await runner.start(request(f"user{number}"))
        await wait_until(lambda: runner.ready() == 20)
        world.site.calls.clear()
        await asyncio.sleep(3_000)
        assert world.site.count("find") <= 5


@in_virtual_time
async def test_the_longer_nothing_has_changed_with_somebody_the_rarer_the_sweep() -> None:
    """What nobody knows of comes from a change. So three thousand people who just work cost their system nothing."""
    world = World()
    async with world.runner() as runner:
        await wait_for(runner, await runner.start(request()), Ready)
        await asyncio.sleep(30_000)
        pauses = [round(later - at, -2) for at, later in pairwise(world.site.times("find"))]
        assert pauses[:5] == [300, 600, 1200, 2400, 3600], "and an hour from then on"
        assert len(pauses) <= 12
        world.site.calls.clear()
        stopped = await runner.start(request(name="another"))
        await wait_for(runner, stopped, Ready)
        await runner.stop(stopped)
        await wait_for(runner, stopped, Ended)
        at = now_s()
        await asyncio.sleep(700)
        assert world.site.times("find")[0] - at < 310
        assert world.site.count("find") >= 2


@in_virtual_time
async def test_an_account_with_a_job_of_nobody_is_swept_until_that_is_gone() -> None:
    world = World()
    async with world.runner() as runner:
        await wait_for(runner, await runner.start(request()), Ready)
        await asyncio.sleep(20_000)
        stray = world.site.create(Tag(f"{deployment_tag('moorage')}{'z' * 26}0001"))
        await wait_until(lambda: stray in runner.observing.observers[A].strays, 3_700)
        await wait_until(lambda: not world.site.jobs[stray].alive, 1_000)


@in_virtual_time
@pytest.mark.parametrize("bad", ["raise", "type"])
async def test_an_adapter_that_knows_no_accounts_is_swept_by_owner(bad: str) -> None:
    def account(_owner: Owner) -> Any:
        if bad == "raise":
            raise ZeroDivisionError("a bug")
        return ["no text"]

    world = World()
    async with world.runner() as runner:
        world.site.account_of = account
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        double = world.site.create(world.site.jobs[JobId("alpha-1")].tag, ADA)
        await wait_until(lambda: not world.site.jobs[double].alive, 1_400)


@in_virtual_time
async def test_a_store_that_fails_during_a_sweep_stops_no_later_sweep() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        tag = world.site.jobs[JobId("alpha-1")].tag
        await runner.stop(session)
        await wait_until(lambda: session not in runner.live, 4_000)
        late = world.site.create(tag)
        world.store.scripts["load"] = first(FULL_DISK)
        await asyncio.sleep(320)
        assert world.store.count("load") > 0
        await wait_until(lambda: not world.site.jobs[late].alive, 1_000)


@in_virtual_time
async def test_a_system_that_does_not_answer_the_sweep_is_swept_later() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.scripts["find"] = raising(Unreachable("away"))
        double = world.site.create(world.site.jobs[JobId("alpha-1")].tag)
        await asyncio.sleep(1_000)
        assert world.site.jobs[double].alive
        world.site.scripts.clear()
        await wait_until(lambda: not world.site.jobs[double].alive, 700)


# Paths ------------------------------------------------------------------------------------------------------------


@in_virtual_time
async def test_a_path_of_nobody_is_closed_and_those_in_use_are_not() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        nobody = SessionId("z" * 26)
        world.relay.paths[nobody] = world.relay.paths[session]
        world.relay.scripts["close"] = first(raising(Unreachable("away")))
        await wait_until(lambda: nobody not in world.relay.paths, 60)
        assert session in world.relay.paths
        assert isinstance((await runner.get(session)).session.state, Ready)


@in_virtual_time
async def test_a_path_of_a_session_of_another_process_is_left_alone() -> None:
    world, other = World(), World()
    async with other.runner() as theirs:
        session = await theirs.start(request())
        await wait_for(theirs, session, Ready)
        async with world.runner() as runner:
            world.store.sessions.update(other.store.sessions)
            world.relay.paths.update(other.relay.paths)
            await asyncio.sleep(60)
            assert session in world.relay.paths
            world.store.scripts["load"] = FULL_DISK
            await asyncio.sleep(60)
            assert session in world.relay.paths, "nobody knows whose it is"
            world.store.scripts.clear()
            del world.store.sessions[session]
            await wait_until(lambda: session not in world.relay.paths, 60)
            assert runner.live == {}


@in_virtual_time
async def test_a_path_that_another_process_has_made_for_a_session_of_both_is_left_alone() -> None:
    """What this process remembers of the session may be old; the store says what is true."""
    world = World()
    world.site.starts = False
    async with world.runner() as stale:
        session = await stale.start(request())
        await wait_for(stale, session, Queued)
        world.site.scripts["observe"] = hang
        async with world.runner() as fresh:
            world.site.scripts.clear()
            for job in world.site.jobs.values():
                job.said = Alive(Phase.RUNNING, node="n1")
            await wait_for(fresh, session, Ready)
        await asyncio.sleep(25)
        assert session in world.relay.paths


@in_virtual_time
@pytest.mark.parametrize("how", ["lost", "stale", "closed"])
async def test_a_path_in_doubt_is_told_and_repaired_and_the_job_stays(how: str) -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        if how == "lost":
            world.relay.lost.add(session)
        if how == "stale":
            world.relay.age_s[session] = 61.0
        if how == "closed":
            del world.relay.paths[session]
        before = world.relay.count("open")
        await wait_until(lambda: world.relay.count("open") > before, 100)
        world.relay.lost.clear()
        world.relay.age_s.clear()
        await wait_for(runner, session, Ready)
        assert len(world.site.living) == 1
        steps = [entry.event for entry in world.store.logs[session]]
        assert "PathDoubted" in [type(event).__name__ for event in steps]


@in_virtual_time
@pytest.mark.parametrize("how", ["silent", "nonsense"])
async def test_a_relay_that_is_silent_for_long_puts_every_session_in_doubt(how: str) -> None:
    world = World()
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{number}")) for number in range(3)]
        await wait_until(lambda: runner.ready() == 3)
        await asyncio.sleep(20)
        bad: Mapping[str, Any] = {"silent": raising(Unreachable("away")), "nonsense": answering({"x": 5})}
        world.relay.scripts["list"] = bad[how]
        opens = world.relay.count("open")
        await asyncio.sleep(45)
        assert world.relay.count("open") == opens, "a short silence says nothing"
        await asyncio.sleep(60)
        assert world.relay.count("open") >= opens + 3
        world.relay.scripts.clear()
        for session in ids:
            await wait_for(runner, session, Ready)
        assert len(world.site.living) == 3


@in_virtual_time
async def test_a_path_report_with_wrong_contents_ends_no_check() -> None:
    from moorage.ports.tunnels import PathReport

    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        bad = ({"good_age_s": "old"}, {"good_age_s": 1.0, "lost": "?"}, {"good_age_s": 1.0, "lost": True, "note": 5})
        for each in bad:
            with pytest.raises(TypeError):
                PathReport(**each)  # type: ignore[arg-type]
        world.relay.scripts["list"] = first(*(answering({session: each}) for each in bad), raising(TypeError("bad")))
        await asyncio.sleep(60)
        assert isinstance((await runner.get(session)).session.state, Ready)
        nobody = SessionId("z" * 26)
        world.relay.paths[nobody] = world.relay.paths[session]
        await wait_until(lambda: nobody not in world.relay.paths, 60)


@in_virtual_time
async def test_systems_do_not_share_observers() -> None:
    world = World()
    async with world.runner() as runner:
        await wait_for(runner, await runner.start(request(system=A)), Ready)
        await wait_for(runner, await runner.start(request("bob", system=B)), Ready)
        for site in world.sites.values():
            jobs = {job for verb, _, about in site.calls if verb == "observe" for job in about}
            assert jobs == set(site.jobs)
