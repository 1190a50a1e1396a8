"""
Every fault of the catalogue, seen at the wire: what a client gets, what happened at the site, and the ledger.

These are about the simulated site; how an adapter has to react is tested with the adapter.
"""

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from attrs import evolve

from moorage.simulator.servers.unicore import Running, SiteConfig, catalogue, serve

HELD = {"Executable": "true", "haveClientStageIn": "true"}
GARBAGE = list(catalogue["F-U13"])


@pytest.fixture
def config(config: SiteConfig) -> SiteConfig:
    """Jobs only pass time here."""
    return evolve(config, execute="virtual", virtual_runtime_s=3600)


def _fired(control: Running, fault: str) -> int:
    return sum(count for (label, _), count in control.faults.ledger.items() if label == fault)


async def _lost(wish: Any, seconds: float = 0.3) -> None:
    """No answer comes, either because the connection ends or because the client has had enough."""
    with pytest.raises((aiohttp.ClientError, TimeoutError)):
        await asyncio.wait_for(wish, seconds)


@pytest.mark.parametrize("fault", [{"fault": "F-U13", "variant": "huge"}, {"fault": "F-U12"}], ids=["huge", "dribble"])
async def test_a_client_that_goes_away_in_the_middle_is_no_mistake_of_the_site(
    api: Any, control: Running, caplog: pytest.LogCaptureFixture, fault: dict[str, str]
) -> None:
    """Nothing is written about it, and the next client is served."""
    job = await api.submit(HELD)
    control.faults.add(fault)
    async with api.http.get(api.url(job), headers={"Authorization": api.user.authorization}) as reply:
        await reply.content.read(1)
        reply.close()
    control.faults.clear()
    await asyncio.sleep(0.2)
    assert await api.status(job)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


async def test_every_row_of_the_table_is_in_the_catalogue() -> None:
    assert list(catalogue) == [f"F-U{number}" for number in range(1, 27)]


async def test_u1_refused(api: Any, control: Running) -> None:
    assert (await api.get("")).status == 200
    control.faults.add({"fault": "F-U1", "variant": "refused", "until_s": 0.3})
    await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(api.base)
        await asyncio.sleep(0.4)
        async with http.get(api.base) as reply:
            assert reply.status == 200
    assert _fired(control, "F-U1") == 1


async def test_u1_reset(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U1", "variant": "reset", "times": 1})
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.post(api.base + "/jobs", json={})  # aiohttp repeats a GET by itself
        async with http.get(api.base) as reply:
            assert reply.status == 200
    assert _fired(control, "F-U1") == 1


@pytest.mark.parametrize("options", [{"tls": True}])
@pytest.mark.parametrize(("fault", "variant"), [("F-U1", "tls"), ("F-U25", "expired"), ("F-U25", "other")])
async def test_u1_and_u25_certificates(api: Any, control: Running, fault: str, variant: str) -> None:
    assert (await api.get("")).status == 200
    control.faults.add({"fault": fault, "variant": variant, "until_s": 0.5})
    await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientConnectorCertificateError) as raised:
            await http.get(api.base, ssl=api.tls)
        reason = raised.value.certificate_error
        assert isinstance(reason, ssl.SSLCertVerificationError)
        assert ("expired" in reason.verify_message) is (variant == "expired")
        await asyncio.sleep(0.6)
        async with http.get(api.base, ssl=api.tls) as reply:
            assert reply.status == 200
    assert _fired(control, fault) == 1


@pytest.mark.parametrize("variant", ["hang", "drop"])
async def test_u2_a_submission_is_lost_before_it_has_an_effect(api: Any, control: Running, variant: str) -> None:
    control.faults.add({"fault": "F-U2", "variant": variant, "times": 1})
    await _lost(api.post("/jobs", HELD))
    assert not control.site.jobs
    await api.submit(HELD)
    assert _fired(control, "F-U2") == 1


@pytest.mark.parametrize("variant", ["hang", "drop"])
async def test_u3_the_answer_to_a_submission_is_lost(api: Any, control: Running, variant: str) -> None:
    control.faults.add({"fault": "F-U3", "variant": variant, "times": 1})
    await _lost(api.post("/jobs", {**HELD, "Tags": ["u3"]}))
    assert len((await api.document("/jobs?tags=u3"))["jobs"]) == 1
    assert _fired(control, "F-U3") == 1


async def test_u4_the_answer_comes_late(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U4", "delay_s": 0.3, "times": 1})
    late = asyncio.create_task(api.post("/jobs", HELD))
    await asyncio.sleep(0.15)
    assert len(control.site.jobs) == 1
    assert not late.done()
    assert (await late).status == 201


@pytest.mark.parametrize("variant", ["missing", "foreign"])
async def test_u5_the_location_is_missing_or_elsewhere(api: Any, control: Running, variant: str) -> None:
    control.faults.add({"fault": "F-U5", "variant": variant, "times": 1})
    reply = await api.post("/jobs", HELD)
    assert reply.status == 201
    location = reply.headers.get("Location")
    assert location is None if variant == "missing" else "elsewhere.invalid" in location
    assert len(control.site.jobs) == 1


async def test_u6_an_error_although_the_job_was_made(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U6", "times": 1})
    reply = await api.post("/jobs", HELD)
    assert reply.status == 500
    assert reply.error.startswith("Could not submit job")
    assert len(control.site.jobs) == 1


async def test_u7_submission_is_switched_off(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U7", "times": 1})
    reply = await api.post("/jobs", HELD)
    assert (reply.status, "disabled" in reply.error) == (503, True)
    assert not control.site.jobs


@pytest.mark.parametrize("status", ["401", "403"])
async def test_u8_credentials_are_refused_in_the_middle(api: Any, control: Running, status: str) -> None:
    job = await api.submit(HELD)
    control.faults.add({"fault": "F-U8", "variant": status, "times": 1})
    reply = await api.get(job)
    assert (reply.status, reply.body) == (int(status), b"")
    assert (await api.get(job)).status == 200


async def test_u9_the_caller_is_taken_for_nobody(api: Any, control: Running) -> None:
    await api.submit(HELD)
    control.faults.add({"fault": "F-U9", "times": 2})
    assert (await api.document("/jobs"))["jobs"] == []
    assert (await api.document())["client"]["role"]["selected"] == "anonymous"
    assert len((await api.document("/jobs"))["jobs"]) == 1


async def test_u10_a_session_is_forgotten(api: Any, control: Running) -> None:
    session = (await api.get("")).headers["X-UNICORE-SecuritySession"]
    control.faults.add({"fault": "F-U10", "times": 1})
    assert (await api.get("/jobs")).status == 200  # carries none
    reply = await api.get("/jobs", headers={"X-UNICORE-SecuritySession": session})
    assert (reply.status, reply.body) == (432, b"")
    assert (await api.get("/jobs", headers={"X-UNICORE-SecuritySession": session})).status == 200


WAITS = {
    "none": None,
    "seconds": "1",
    "zero": "0",
    "negative": "-1",
    "absurd": "1000000000",
    "past": "Wed, 21 Oct 2015 07:28:00 GMT",
}


@pytest.mark.parametrize("variant", WAITS)
async def test_u11_too_many_requests(api: Any, control: Running, variant: str) -> None:
    control.faults.add({"fault": "F-U11", "variant": variant, "times": 1})
    reply = await api.get("/jobs")
    assert (reply.status, reply.headers.get("Retry-After")) == (429, WAITS[variant])


async def test_u12_a_body_dribbles(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U12", "bytes_per_s": 600, "times": 1})
    since = time.monotonic()
    reply = await api.get("?fields=client")
    assert time.monotonic() - since > len(reply.body) / 600 * 0.8
    assert reply.json()["client"]["role"]["selected"] == "user"


async def test_u12_one_byte_a_second(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U12", "times": 1})
    await _lost(api.get(""))
    assert _fired(control, "F-U12") == 1


async def test_u12_an_answer_at_the_last_moment(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U12", "variant": "late", "times": 1, "delay_s": 0.2})
    since = time.monotonic()
    assert (await api.get("")).status == 200
    assert time.monotonic() - since >= 0.2


@pytest.mark.parametrize("variant", GARBAGE)
async def test_u13_garbage(api: Any, control: Running, variant: str) -> None:
    job = await api.submit(HELD)
    control.faults.add({"fault": "F-U13", "variant": variant, "times": 1, "size": 3_000_000})
    if variant == "short":
        with pytest.raises(aiohttp.ClientPayloadError):
            await api.get(job)
        return
    reply = await api.get(job)
    assert reply.status == 200
    assert _garbled(variant, reply.body), reply.body[:200]
    assert (await api.get(job)).json()["status"] == "READY"
    assert _fired(control, "F-U13") == 1


def _garbled(variant: str, body: bytes) -> bool:
    """Whether a body is of the promised kind."""
    if variant == "empty":
        return body == b""
    if variant == "huge":
        return len(body) > 3_000_000
    if variant == "deep":
        return body.count(b"[") == 100_000
    if variant == "duplicate":
        return body.count(b'"status"') == 3
    if variant == "nan":
        return json.loads(body)["status"] != json.loads(body)["status"]
    if variant == "types":
        return isinstance(json.loads(body)["status"], int)
    try:
        json.loads(body)
    except ValueError:
        return {"html": b"<html>", "nul": b"\0"}.get(variant, b"{") in body
    return False


@pytest.mark.parametrize(("variant", "target"), [("host", "https://elsewhere.invalid/"), ("scheme", "ftp://")])
async def test_u14_a_redirect_away(api: Any, control: Running, variant: str, target: str) -> None:
    control.faults.add({"fault": "F-U14", "variant": variant, "times": 1})
    reply = await api.get("/jobs")
    assert reply.status in (302, 307)
    assert reply.headers["Location"].startswith(target)


async def test_u15_a_job_is_unknown_for_a_while(api: Any, control: Running) -> None:
    job = await api.submit(HELD)
    control.faults.add({"fault": "F-U15", "until_s": 0.2})
    assert [(await api.get(job)).status, (await api.get(f"{job}/details")).status] == [404, 404]
    assert job in (await api.document("/jobs"))["jobs"]
    await asyncio.sleep(0.25)
    assert (await api.get(job)).status == 200


async def test_u16_the_status_flaps(api: Any, control: Running) -> None:
    job = await api.submit(HELD)
    control.faults.add({"fault": "F-U16", "times": 5})
    said = [(await api.document(f"{job}?fields=status"))["status"] for _ in range(6)]
    assert said == ["RUNNING", "QUEUED", "RUNNING", "FAILED", "RUNNING", "READY"]


@pytest.mark.parametrize("variant", ["failed", "successful"])
async def test_u17_an_end_that_is_none(api: Any, control: Running, variant: str) -> None:
    job = await api.submit({"Executable": "x"})
    await api.until(job, "RUNNING")
    control.faults.add({"fault": "F-U17", "variant": variant})
    assert (await api.document(job))["status"] == variant.upper()
    assert control.site.jobs[job.rsplit("/", 1)[1]].status == "RUNNING"


@pytest.mark.parametrize("state", ["STAGINGIN", "READY"])
async def test_u18_a_job_does_not_move_on(api: Any, control: Running, state: str) -> None:
    control.faults.add({"fault": "F-U18", "variant": state})
    job = await api.submit({"Executable": "x", "Imports": [{"To": "a", "Data": "x"}]})
    await api.until(job, state)
    await api.post(f"{job}/actions/start", {})
    await asyncio.sleep(0.3)
    assert await api.status(job) == state
    await api.post(f"{job}/actions/abort", {})
    assert (await api.ended(job))["statusMessage"] == "Job aborted."
    assert _fired(control, "F-U18") >= 1


async def _notified(api: Any, receiver: Any, **more: Any) -> str:
    """A job that ran to its end and told about it."""
    description = {"Executable": "x", "Environment": {"SIM_RUNTIME_S": "0.1"}, "Notification": receiver.url, **more}
    job, _ = await api.run(description)
    await asyncio.sleep(0.05)
    return str(job)


async def test_u19_lost(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "lose", "times": 1})
    await _notified(api, receiver)
    assert receiver.said() == ["SUCCESSFUL"]


async def test_u19_duplicated(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "duplicate"})
    await _notified(api, receiver)
    assert receiver.said() == ["RUNNING", "RUNNING", "SUCCESSFUL", "SUCCESSFUL"]


async def test_u19_out_of_order(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "hold", "times": 1})
    await _notified(api, receiver)
    assert receiver.said() == ["SUCCESSFUL", "RUNNING"]


async def test_u19_of_another_job(api: Any, control: Running, receiver: Any) -> None:
    other = await api.submit(HELD)
    control.faults.add({"fault": "F-U19", "variant": "stranger", "times": 1})
    job = await _notified(api, receiver)
    assert receiver.said("href") == [other, job]


async def test_u19_forged(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "forge", "times": 1})
    await _notified(api, receiver)
    forged, real = (headers["Authorization"].split()[1] for headers in receiver.headers)
    jwt.decode(real, control.site.key.public, algorithms=["ES256"])
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(forged, control.site.key.public, algorithms=["ES256"])


async def test_u19_of_an_unknown_job(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "unknown", "times": 1})
    await _notified(api, receiver)
    assert (await api.get(receiver.said("href")[0])).status == 404


async def test_u19_huge(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U19", "variant": "huge", "times": 1, "size": 500_000})
    await _notified(api, receiver)
    assert len(receiver.said("statusMessage")[0]) == 500_000


async def test_u20_told_before_the_submission_is_answered(api: Any, control: Running, receiver: Any) -> None:
    control.faults.add({"fault": "F-U20", "delay_s": 0.8})
    description = {"Executable": "x", "Environment": {"SIM_RUNTIME_S": "0.1"}, "Notification": receiver.url}
    submission = asyncio.create_task(api.post("/jobs", description))

    async def told() -> bool:
        return bool(receiver.bodies)

    await api.eventually(told)
    assert not submission.done()
    assert (await submission).headers["Location"] == receiver.said("href")[0]


@pytest.mark.parametrize(("variant", "effect"), [("before", False), ("after", True)])
@pytest.mark.parametrize("call", ["abort", "delete"])
async def test_u21_an_abort_without_an_answer(
    api: Any, control: Running, variant: str, effect: bool, call: str
) -> None:
    job = await api.submit({"Executable": "x"})
    await api.until(job, "RUNNING")
    control.faults.add({"fault": "F-U21", "variant": variant, "times": 1})
    await _lost(api.delete(job) if call == "delete" else api.post(f"{job}/actions/abort", {}))
    reply = await api.get(job)
    assert (reply.status == 404 or reply.json()["status"] == "FAILED") is effect
    assert _fired(control, "F-U21") == 1


@pytest.mark.parametrize(("variant", "status"), [("404", 404), ("409", 409), ("ignored", 204)])
async def test_u21_an_abort_without_an_effect(api: Any, control: Running, variant: str, status: int) -> None:
    job = await api.submit({"Executable": "x"})
    await api.until(job, "RUNNING")
    control.faults.add({"fault": "F-U21", "variant": variant, "times": 1})
    assert (await api.post(f"{job}/actions/abort", {})).status == status
    await asyncio.sleep(0.1)
    assert await api.status(job) == "RUNNING"


async def test_u22_listings_that_are_not_complete(api: Any, control: Running) -> None:
    jobs = {await api.submit({**HELD, "Tags": [f"t{number}"]}) for number in range(3)}

    async def listed(variant: str, query: str = "") -> Any:
        control.faults.add({"fault": "F-U22", "variant": variant, "times": 1})
        return await api.document(f"/jobs{query}")

    lost = await listed("lost-page", "?num=2")
    assert (len(lost["jobs"]), "next" in lost["_links"]) == (2, False)
    assert len((await listed("forget"))["jobs"]) == 2
    assert len((await listed("changing"))["jobs"]) == 2
    assert set((await listed("ignore-tags", "?tags=t1"))["jobs"]) == jobs
    assert len((await api.document("/jobs?tags=t1"))["jobs"]) == 1
    assert _fired(control, "F-U22") == 4


@pytest.mark.parametrize("variant", ["cut", "size", "quota"])
async def test_u23_an_upload_fails(api: Any, control: Running, variant: str) -> None:
    _, directory = await api.ready_directory()
    control.faults.add({"fault": "F-U23", "variant": variant})
    upload = api.ask("PUT", f"{directory}/files/f", data=b"x" * 1000)
    if variant == "cut":
        await _lost(upload)
    else:
        reply = await upload
        assert reply.status == {"size": 204, "quota": 500}[variant]
        assert variant != "quota" or "Disk quota exceeded" in reply.error
    size = (await api.document(f"{directory}/files/f"))["size"]
    assert size == (0 if variant == "quota" else 500)
    assert _fired(control, "F-U23") == (2 if variant == "cut" else 1)  # aiohttp repeats what was cut


async def test_u23_staging_in_fails(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U23", "variant": "staging", "times": 1})
    _, document = await api.run({"Executable": "x", "Imports": [{"To": "a", "Data": "x"}]})
    assert document["status"] == "FAILED"
    assert "Disk quota exceeded" in document["statusMessage"]


async def test_u24_a_job_ends_with_its_short_life(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U24", "times": 1, "lifetime_s": 0.3})
    job = await api.submit({"Executable": "x"})
    await api.until(job, "RUNNING")

    async def gone() -> bool:
        return bool((await api.get(job)).status == 404)

    await api.eventually(gone)


async def test_u26_an_older_view(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U26", "probability": 1.0})
    job = await api.submit(HELD)
    assert await api.status(job) == "READY"
    await api.post(f"{job}/actions/abort", {})
    await asyncio.sleep(0.2)
    assert await api.status(job) == "READY"
    control.faults.clear()
    assert await api.status(job) == "FAILED"


# --- how faults are chosen ------------------------------------------------------------------------------------


async def test_faults_come_by_count(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U8", "skip": 2, "times": 2, "on": ["list"]})
    assert [(await api.get("/jobs")).status for _ in range(6)] == [200, 200, 403, 403, 200, 200]
    assert (await api.get("")).status == 200


async def test_faults_come_by_time(api: Any, control: Running) -> None:
    control.faults.add({"fault": "F-U8", "since_s": 0.2, "until_s": 0.4})
    seen = []
    since = time.monotonic()
    while time.monotonic() - since < 0.6:
        seen.append((round(time.monotonic() - since, 2), (await api.get("")).status))
        await asyncio.sleep(0.01)
    assert {status for at, status in seen if at < 0.15} == {200}
    assert {status for at, status in seen if 0.25 < at < 0.35} <= {403}
    assert {status for at, status in seen if at > 0.45} == {200}
    assert 403 in {status for _, status in seen}


@pytest.fixture
async def two(config: SiteConfig) -> AsyncIterator[tuple[Running, Running]]:
    """Two sites with the same seed."""
    async with serve(config, seed=7) as one, serve(config, seed=7) as other:
        yield one, other


async def test_faults_come_by_probability_and_the_same_seed_gives_the_same(two: tuple[Running, Running]) -> None:
    seen = []
    async with aiohttp.ClientSession() as http:
        for running in two:
            running.faults.add({"fault": "F-U8", "probability": 0.5})
            answers = []
            for _ in range(40):
                async with http.get(running.url) as reply:
                    answers.append(reply.status)
            seen.append(answers)
    assert seen[0] == seen[1]
    assert 8 < seen[0].count(403) < 32


async def test_faults_are_controlled_over_http(api: Any, control: Running) -> None:
    place = f"{control.root}/-"
    assert (await api.post(f"{place}/faults", {"fault": "F-U8", "times": 1})).status == 200
    assert (await api.get("")).status == 403
    (rule,) = (await api.get(f"{place}/faults")).json()
    assert (rule["fault"], rule["status"]) == ("F-U8", 403)
    assert (await api.get(f"{place}/ledger")).json()["fired"] == [{"fault": "F-U8", "endpoint": "core", "count": 1}]
    refused = await api.post(f"{place}/faults", {"fault": "F-U99"})
    assert (refused.status, "F-U99" in refused.json()["errorMessage"]) == (400, True)
    assert (await api.delete(f"{place}/faults")).status == 204
    assert (await api.get(f"{place}/faults")).json() == []
