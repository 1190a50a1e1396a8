"""
What everybody may rely on who calls the port `Sessions`: functions that take a `Case`.

Run here against the runner over doubles in memory, in virtual time, and over a SQLite store, in real time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from attrs import frozen

from moorage.core.model import Ended, Owner, Ready, SessionId, SessionKey, Stopping, SystemName
from moorage.ports.errors import Refused
from moorage.ports.sessions import Sessions, StartRequest, Step, View


@frozen(kw_only=True)
class Case:
    """
    A deployment whose systems run every job at once.

    Args:
        serving: Entering it gives the port; entering it again is a new process over the same store.
        system: A system that it has.
        living: How many jobs live on that system.
        launcher_reports: From now on launchers say that they serve, with 60 s left and "a line" in the log.
        patience_s: How long anything may take.
    """

    serving: Callable[[], AbstractAsyncContextManager[Sessions]]
    system: SystemName
    living: Callable[[], int]
    launcher_reports: Callable[[], None]
    patience_s: float = 30

    def request(self, name: str = "", owner: str = "ada", system: SystemName | None = None) -> StartRequest:
        return StartRequest(SessionKey("hub", Owner(owner), name), system or self.system)

    async def until(self, sessions: Sessions, session: SessionId, *states: type) -> View:
        """The view of the session once it is in one of these states."""
        end = asyncio.get_running_loop().time() + self.patience_s
        while not isinstance((view := await sessions.get(session)).session.state, states):
            assert asyncio.get_running_loop().time() < end, f"still {view.session.state}, wanted {states}"
            await asyncio.sleep(0.01)
        return view

    async def followed(self, sessions: Sessions, session: SessionId, after: int = 0) -> list[Step]:
        """All steps to the end."""

        async def all_of_them() -> list[Step]:
            return [step async for step in sessions.follow(session, after)]

        return await asyncio.wait_for(all_of_them(), self.patience_s)


async def a_session_starts_becomes_ready_and_stops(case: Case) -> None:
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        view = await case.until(sessions, session, Ready)
        assert (view.progress.state, view.progress.percent, view.place) == ("ready", 100, None)
        assert view.session.spec.key == case.request().key
        assert case.living() == 1
        await sessions.stop(session)
        assert isinstance((await sessions.get(session)).session.state, Stopping | Ended)
        await case.until(sessions, session, Ended)
        assert case.living() == 0


async def a_name_has_one_session_at_a_time(case: Case) -> None:
    async with case.serving() as sessions:
        ids = await asyncio.gather(*(sessions.start(case.request()) for _ in range(20)))
        assert len(set(ids)) == 1
        await case.until(sessions, ids[0], Ready)
        assert await sessions.start(case.request()) == ids[0]
        assert case.living() == 1
        others = [await sessions.start(case.request("b")), await sessions.start(case.request(owner="bob"))]
        assert len({ids[0], *others}) == 3


async def a_start_during_a_stop_comes_after_its_end(case: Case) -> None:
    async with case.serving() as sessions:
        old = await sessions.start(case.request())
        await case.until(sessions, old, Ready)
        await sessions.stop(old)
        new = await sessions.start(case.request())
        assert new != old
        await case.until(sessions, new, Ready)
        assert isinstance((await sessions.get(old)).session.state, Ended)
        assert case.living() == 1


async def what_was_granted_is_there_in_the_next_process(case: Case) -> None:
    async with case.serving() as sessions:
        up = await sessions.start(case.request("up"))
        await case.until(sessions, up, Ready)
        down = await sessions.start(case.request("down"))
        await case.until(sessions, down, Ready)
        await sessions.stop(down)
        just = await sessions.start(case.request("just"))
    async with case.serving() as sessions:
        assert await sessions.start(case.request("up")) == up
        assert await sessions.start(case.request("just")) == just
        await case.until(sessions, up, Ready)
        await case.until(sessions, just, Ready)
        await case.until(sessions, down, Ended)
        assert case.living() == 2


async def a_caller_who_gives_up_changes_nothing(case: Case) -> None:
    async with case.serving() as sessions:
        for turns in range(6):
            name = f"turns{turns}"
            start = asyncio.ensure_future(sessions.start(case.request(name)))
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
            session = await sessions.start(case.request(name))
            await case.until(sessions, session, Ready)
            assert case.living() == 1
            stop = asyncio.ensure_future(sessions.stop(session))
            await asyncio.sleep(0)
            stop.cancel()
            await asyncio.gather(stop, return_exceptions=True)
            await sessions.stop(session)
            await case.until(sessions, session, Ended)
            assert case.living() == 0


async def a_follower_gets_every_step_once_and_the_end(case: Case) -> None:
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        early = asyncio.ensure_future(case.followed(sessions, session))
        await case.until(sessions, session, Ready)
        await sessions.stop(session)
        steps = await early
        assert [step.position for step in steps] == list(range(1, len(steps) + 1))
        assert steps[-1].progress.state == "ended"
        assert [step.at for step in steps] == sorted(step.at for step in steps)
        percents = [step.progress.percent for step in steps]
        assert percents == sorted(percents)
        whole = await case.followed(sessions, session)
        assert whole[: len(steps)] == steps
        for after in (0, 1, len(steps) // 2, len(steps) - 1, len(whole), len(whole) + 5):
            rest = await case.followed(sessions, session, after)
            # What the session left behind may be removed meanwhile, which is a step after its end.
            assert rest[: len(whole[after:])] == whole[after:]


async def a_follower_goes_on_in_the_next_process(case: Case) -> None:
    seen: list[Step] = []
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        async for step in sessions.follow(session):
            seen.append(step)
            if step.progress.state == "ready":
                break
    async with case.serving() as sessions:
        rest = asyncio.ensure_future(case.followed(sessions, session, seen[-1].position))
        await case.until(sessions, session, Ready)
        await sessions.stop(session)
        seen += await rest
        assert [step.position for step in seen] == list(range(1, len(seen) + 1))


async def a_view_and_the_last_step_agree(case: Case) -> None:
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        await case.until(sessions, session, Ready)
        await sessions.stop(session)
        await case.until(sessions, session, Ended)
        steps = await case.followed(sessions, session)
        view = await sessions.get(session)
        assert view.version >= steps[-1].position
        assert view.progress == steps[-1].progress


async def stopping_again_is_harmless(case: Case) -> None:
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        await asyncio.gather(*(sessions.stop(session) for _ in range(5)))
        await case.until(sessions, session, Ended)
        await sessions.stop(session)
        assert isinstance((await sessions.get(session)).session.state, Ended)
        assert case.living() == 0


async def nobody_is_a_key_error_and_no_system_is_a_refusal(case: Case) -> None:
    nobody = SessionId("a" * 26)
    async with case.serving() as sessions:
        for asked in (sessions.get(nobody), sessions.stop(nobody), sessions.job_report(nobody)):
            with pytest.raises(KeyError):
                await asked
        with pytest.raises(KeyError):
            await case.followed(sessions, nobody)
        with pytest.raises(Refused, match="nowhere"):
            await sessions.start(case.request(system=SystemName("nowhere")))


async def a_job_report_is_the_launchers_own_words(case: Case) -> None:
    async with case.serving() as sessions:
        session = await sessions.start(case.request())
        await case.until(sessions, session, Ready)
        assert await sessions.job_report(session) is None
        case.launcher_reports()
        report = await sessions.job_report(session)
        assert report is not None
        assert (report.state, report.left_s, report.log) == ("serving", 60, ("a line",))
        await sessions.stop(session)
        await case.until(sessions, session, Ended)
        assert await sessions.job_report(session) is None


CLAIMS: tuple[Callable[[Case], Awaitable[None]], ...] = (
    a_session_starts_becomes_ready_and_stops,
    a_name_has_one_session_at_a_time,
    a_start_during_a_stop_comes_after_its_end,
    what_was_granted_is_there_in_the_next_process,
    a_caller_who_gives_up_changes_nothing,
    a_follower_gets_every_step_once_and_the_end,
    a_follower_goes_on_in_the_next_process,
    a_view_and_the_last_step_agree,
    stopping_again_is_harmless,
    nobody_is_a_key_error_and_no_system_is_a_refusal,
    a_job_report_is_the_launchers_own_words,
)
