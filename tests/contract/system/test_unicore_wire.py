"""What the adapter puts on the wire: how many requests and sessions, and what never goes out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from tests.contract.system.suite import SystemCase, a_spec
from tests.contract.system.unicore_world import ALICE, QUICK, World, world

from moorage.adapters.unicore.config import OwnerToken
from moorage.adapters.unicore.system import UnicoreSystem
from moorage.core.model import Alive, Gone, JobId, Owner, Phase, Tag, tag_of
from moorage.core.plan import PLAN_NAME
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unanswered, Unauthorised, Unreachable
from moorage.ports.system import Handle


@pytest.fixture
async def unicore(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, execute="virtual") as made:
        yield made


async def submit(system: UnicoreSystem, owner: Owner = ALICE) -> Handle:
    spec = a_spec(SystemCase(system=system, owner=owner))
    tag = tag_of(spec, 1)
    return Handle(owner, tag, await system.submit(tag, spec))


async def running(unicore: World, job: Handle) -> None:
    for _ in range(500):
        if unicore.site.site.jobs[job.job].status == "RUNNING":
            return
        await asyncio.sleep(0.01)
    pytest.fail("the job never ran")


async def test_a_life_takes_six_requests(unicore: World) -> None:
    """Told of RUNNING by a notification: submit, status, details, read, abort, removal. No uploads, no start."""
    system = unicore.make()
    job = await submit(system)
    await running(unicore, job)
    said = (await system.observe([job]))[job.job]
    assert isinstance(said, Alive)
    assert (said.phase, bool(said.node), bool(said.ends_at)) == (Phase.RUNNING, True, True)
    assert await system.read(job, PLAN_NAME)
    assert isinstance(await system.cancel(job), Alive)
    await system.remove(job)
    assert unicore.site.requests == 6
    assert job.job not in unicore.site.site.jobs


async def test_calls_of_one_account_share_one_session(unicore: World) -> None:
    """Fifty at once as well: the server keeps five per user and throws out anybody's for the sixth."""
    system = unicore.make()
    jobs = [await submit(system)]
    jobs += await asyncio.gather(*(submit(system) for _ in range(49)))
    await system.observe(jobs)
    assert unicore.site.site.access.session_count() == 1


async def test_fifty_first_calls_at_once_make_one_session(unicore: World) -> None:
    system = unicore.make()
    await asyncio.gather(*(submit(system) for _ in range(50)))
    assert unicore.site.site.access.session_count() == 1


async def test_a_restarted_site_costs_one_session(unicore: World) -> None:
    """Every call meets 432; one of them makes the new session for all."""
    system = unicore.make()
    jobs = list(await asyncio.gather(*(submit(system) for _ in range(30))))
    unicore.site.site.access.forget_sessions()
    said = await system.observe(jobs)
    assert len(said) == 30
    assert all(isinstance(each, Alive) for each in said.values())
    assert unicore.site.site.access.session_count() <= 2


async def test_preferences_never_share_a_session(unicore: World) -> None:
    """On the server a preference that was sent once stays for the whole session."""
    system = unicore.make(accounts={"alice": "proj1"})
    mine, other = await submit(system), await submit(system, Owner("carol"))
    jobs = unicore.site.site.jobs
    assert jobs[mine.job].preferences
    assert not jobs[other.job].preferences


async def test_cookies_of_one_owner_are_not_sent_with_anothers_calls(unicore: World) -> None:
    """A site's load balancer may set cookies that stand for a login; the connections are everybody's."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            heads.append(head)
            body = b'{"status":"QUEUED"}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nSet-Cookie: LB=alices; Path=/\r\n")
            writer.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    async def serve_quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(EOFError, OSError):
            await serve(reader, writer)
        writer.close()

    unicore.issuer.give = lambda owner: Token(Secret(f"token-of-{owner}"))
    server = await asyncio.start_server(serve_quietly, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        system = unicore.make(url=f"http://127.0.0.1:{port}/S/rest/core", credentials=OwnerToken())
        for owner in (ALICE, Owner("bob"), ALICE):
            await system.observe([Handle(owner, Tag("m0"), JobId("abc"))])
        await system.close()
    assert len(heads) == 3
    assert not [head for head in heads if b"cookie" in head.lower()]
    assert [b"token-of-bob" in head for head in heads] == [False, True, False]


async def test_one_slow_first_call_is_not_everybodys(unicore: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moorage.adapters.unicore.client.FIRST_CALL_S", 0.05)
    system = unicore.make()
    unicore.site.faults.add({"do": "hang", "on": ["submit"], "times": 1})
    slow = asyncio.create_task(submit(system))
    await asyncio.sleep(0.02)
    job = await submit(system)
    assert isinstance((await system.observe([job]))[job.job], Alive)
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)


async def test_a_site_that_hangs_costs_one_deadline_for_any_number_of_jobs(tmp_path: Path) -> None:
    hasty = attrs.evolve(QUICK, call_s=0.3)
    async with world(tmp_path, execute="virtual", timeouts=hasty) as unicore:
        system = unicore.make()
        jobs = list(await asyncio.gather(*(submit(system) for _ in range(60))))
        unicore.site.faults.add({"do": "hang", "on": ["status"]})
        begin = asyncio.get_running_loop().time()
        with pytest.raises(Unanswered):
            await system.observe(jobs)
        assert asyncio.get_running_loop().time() - begin < 1.5


async def test_a_note_begins_with_what_people_need(unicore: World) -> None:
    """Who is refused and with what; which address does not answer. The tag comes last: a form shows one line."""
    unicore.site.faults.add({"fault": "F-U8"})
    with pytest.raises(Unauthorised) as refused:
        await submit(unicore.make())
    assert refused.value.note.startswith("the site does not accept the credentials, or not for this (HTTP 403; ")
    assert refused.value.note.endswith("; asked as alice")
    away = unicore.make(url="http://127.0.0.1:9/SITE/rest/core", insecure=False)
    with pytest.raises(Unreachable, match=r"^no connection to 127\.0\.0\.1:9: Connection refused \("):
        await submit(away)


async def test_a_closed_adapter_makes_no_calls(unicore: World) -> None:
    """pyunicore would make itself a client of its own, with none of our bounds."""
    system = unicore.make()
    job = await submit(system)
    await system.close()
    before = unicore.site.requests
    with pytest.raises(Unreachable, match="closed"):
        await system.observe([job])
    assert unicore.site.requests == before


async def test_a_given_up_call_leaves_nothing_behind(unicore: World) -> None:
    system = unicore.make()
    job = await submit(system)
    unicore.site.faults.add({"do": "hang", "on": ["status"]})
    tasks = [asyncio.create_task(system.observe([job])) for _ in range(30)]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    unicore.site.faults.clear()
    assert isinstance((await system.observe([job]))[job.job], Alive)


async def test_a_job_that_the_batch_system_killed_says_why(unicore: World) -> None:
    """The site knows only that there is no exit code; its batch system's record knows more for a while."""
    system = unicore.make()
    job = await submit(system)
    await running(unicore, job)
    said: dict[str, object] = {"status": "FAILED", "statusMessage": "Failed: Job did not complete normally on BSS, ..."}
    for key, value in said.items():
        unicore.site.faults.add({"do": "say", "on": ["status"], "key": key, "says": [value], "fault": key})
    unicore.site.faults.add({"do": "say", "on": ["details"], "key": "JobState", "says": ["TIMEOUT"], "fault": "bss"})
    gone = (await system.observe([job]))[job.job]
    assert isinstance(gone, Gone)
    assert gone.reason.value == "walltime"
