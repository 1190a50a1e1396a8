"""What the numbered cases leave out about who may come in: session limits, OpenID, keys, the gateway, the registry."""

import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web
from attrs import evolve
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from moorage.simulator.servers.unicore import (
    Issuer,
    ManualClock,
    Running,
    ServerConfig,
    SiteConfig,
    Timing,
    User,
    serve,
)

SESSION = "X-UNICORE-SecuritySession"
LIFETIME = "X-UNICORE-SecuritySession-Lifetime"
HELD = {"Executable": "true", "haveClientStageIn": "true"}


async def _open(api: Any, by: Any = None) -> str:
    return str((await api.get("", by=by)).headers[SESSION])


async def _lives(api: Any, session: str) -> bool:
    reply = await api.get("", anonymous=True, headers={SESSION: session})
    assert reply.status in (200, 432)
    return bool(reply.status == 200)


async def test_the_sixth_session_of_somebody_ends_the_oldest_of_all(api: Any, control: Running) -> None:
    """Whoever it belongs to: the server never looks at the user, nor at when a session was used last."""
    oldest = await _open(api, api.other)
    mine = [await _open(api) for _ in range(5)]
    assert await _lives(api, oldest)
    assert await _lives(api, mine[0])
    await _open(api)
    assert not await _lives(api, oldest)
    assert await _lives(api, mine[0])
    await _open(api)
    assert not await _lives(api, mine[0])
    assert await _lives(api, mine[1])


async def test_a_session_lives_eight_hours_from_its_beginning() -> None:
    clock = ManualClock()
    config = SiteConfig(execute="virtual", timing=Timing(listing_s=3600, expiry_s=3600))
    async with serve(config, clock=clock) as running, aiohttp.ClientSession() as http:
        demo = {"Authorization": aiohttp.encode_basic_auth("demouser", "test123")}
        async with http.get(running.url, headers=demo) as reply:
            session = {SESSION: reply.headers[SESSION]}
            assert int(reply.headers[LIFETIME]) == 28_800_000
        await clock.advance(28_000)
        async with http.get(running.url, headers=session) as reply:
            assert (reply.status, int(reply.headers[LIFETIME])) == (200, 800_000)
        await clock.advance(801)
        async with http.get(running.url, headers=session) as reply:
            assert reply.status == 432


async def test_a_restart_forgets_sessions(api: Any, control: Running) -> None:
    session = await _open(api)
    control.site.access.forget_sessions()
    assert not await _lives(api, session)


async def test_preferences_stay_in_the_session_and_with_the_job(api: Any, control: Running) -> None:
    preferences = {"X-UNICORE-User-Preferences": "UID:demo2,pgid:hpc,colour:blue"}
    reply = await api.post("/jobs", HELD, headers=preferences)
    session = {SESSION: reply.headers[SESSION]}
    assert (await api.document(headers=session))["client"]["xlogin"]["UID"] == "demo2"
    job = await api.document(reply.headers["Location"])
    assert job["submissionPreferences"] == {"xlogin": ["demo2"], "group": ["hpc"]}
    assert any("uid: [demo2]" in line for line in job["log"])


async def test_a_banned_person_may_nothing() -> None:
    config = SiteConfig(users=(User("bob", "b", role="banned"),))
    async with serve(config) as running, aiohttp.ClientSession() as http:
        headers = {"Authorization": aiohttp.encode_basic_auth("bob", "b")}
        async with http.post(f"{running.url}/jobs", json=HELD, headers=headers) as reply:
            assert reply.status == 403
        for path in ("", "/factories", "/factories/default_target_system_factory"):  # open to everybody else
            async with http.get(f"{running.url}{path}", headers=headers) as reply:
                assert (reply.status, await reply.read()) == (403, b""), path


async def test_anonymous_requests_can_be_forbidden() -> None:
    async with (
        serve(SiteConfig(anonymous_allowed=False)) as running,
        aiohttp.ClientSession() as http,
        http.get(running.url) as reply,
    ):
        assert (reply.status, await reply.read()) == (403, b"")


# --- tokens of others ----------------------------------------------------------------------------------------


@pytest.fixture
async def provider() -> AsyncIterator[tuple[str, list[str]]]:
    """An OpenID provider's userinfo endpoint that knows one token, and how often it was asked."""
    asked: list[str] = []

    async def userinfo(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.headers["Authorization"])
        if asked[-1] != "Bearer good-token":
            return web.json_response({"error": "invalid_token"}, status=401)
        return web.json_response({"sub": "1234", "preferred_username": "ada"})

    runner = web.ServerRunner(web.Server(userinfo))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/userinfo", asked
    await runner.cleanup()


async def test_an_openid_token_is_shown_to_its_provider(provider: tuple[str, list[str]]) -> None:
    url, asked = provider
    config = SiteConfig(users=(User("ada", "x"),), issuers=(Issuer(url),))
    async with serve(config) as running, aiohttp.ClientSession() as http:
        good, bad = ({"Authorization": f"Bearer {token}"} for token in ("good-token", "bad-token"))
        for _ in range(2):
            async with http.get(running.url, headers=good) as reply:
                client = (await reply.json())["client"]
                assert (client["xlogin"]["UID"], client["authenticationMethod"]) == ("ada", "OAUTH")
        assert len(asked) == 1  # remembered for five minutes
        async with http.get(running.url, headers=bad) as reply:
            assert reply.status == 403
        async with http.post(f"{running.url}/jobs", json=HELD, headers=good) as reply:
            job = reply.headers["Location"]
        async with http.get(job, headers=good) as reply:
            # Who may read the job reads the token: the reason why our logs never show whole documents.
            assert (await reply.json())["submissionPreferences"] == {"UC_OAUTH_BEARER_TOKEN": ["good-token"]}


async def test_a_provider_that_does_not_answer_is_403() -> None:
    config = SiteConfig(users=(User("ada", "x"),), issuers=(Issuer("http://127.0.0.1:1/userinfo"),))
    async with (
        serve(config) as running,
        aiohttp.ClientSession() as http,
        http.get(running.url, headers={"Authorization": "Bearer good-token"}) as reply,
    ):
        assert reply.status == 403


async def test_a_token_signed_with_the_users_own_key() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    config = SiteConfig(users=(User("ada", "x", public_keys=(public.decode(),)),))
    claims = {"sub": "ada", "iss": "ada", "etd": "false", "iat": time.time(), "exp": time.time() + 60}
    tokens = {
        "good": (jwt.encode(claims, key, algorithm="EdDSA"), 200),
        "expired": (jwt.encode(claims | {"exp": 1}, key, algorithm="EdDSA"), 403),
        "endless": (jwt.encode({"sub": "ada", "iss": "ada"}, key, algorithm="EdDSA"), 403),
        "stranger": (jwt.encode(claims, ed25519.Ed25519PrivateKey.generate(), algorithm="EdDSA"), 403),
    }
    async with serve(config) as running, aiohttp.ClientSession() as http:
        for name, (token, status) in tokens.items():
            async with http.get(running.url, headers={"Authorization": f"Bearer {token}"}) as reply:
                assert reply.status == status, name
                if status == 200:
                    assert (await reply.json())["client"]["authenticationMethod"] == "SSHKEY"


async def test_a_token_cannot_be_prolonged_unless_it_may(api: Any, control: Running) -> None:
    for query, status in (("", 403), ("?renewable=true", 200)):
        token = (await api.get(f"/token{query}", accept="text/plain")).body.decode()
        again = await api.get("/token", accept="text/plain", headers={"Authorization": f"Bearer {token}"})
        assert again.status == status
    assert (await api.get("/token?lifetime=99999999999", accept="text/plain")).status == 400


# --- the gateway ---------------------------------------------------------------------------------------------


@pytest.fixture
async def gateway(config: SiteConfig) -> AsyncIterator[tuple[Running, aiohttp.ClientSession]]:
    sites = (config, evolve(config, name="SECOND"))
    async with serve(ServerConfig(sites=sites)) as running, aiohttp.ClientSession() as http:
        http.headers["Authorization"] = aiohttp.encode_basic_auth("demouser", "test123")
        yield running, http


async def test_sites_behind_one_gateway_are_apart(gateway: tuple[Running, aiohttp.ClientSession]) -> None:
    running, http = gateway
    second = running.url.replace("/DEMO-SITE/", "/SECOND/")
    async with http.post(f"{second}/jobs", json=HELD) as reply:
        job = reply.headers["Location"]
    assert job.startswith(second)
    async with http.get(f"{running.url}/jobs") as reply:
        assert (await reply.json())["jobs"] == []
    async with http.get(job.replace("/SECOND/", "/DEMO-SITE/")) as reply:
        assert reply.status == 404
    session = {SESSION: reply.headers[SESSION]}
    async with http.get(second, headers=session) as reply:
        assert reply.status == 432  # sessions are the site's own


async def test_the_gateways_own_answers_are_pages(gateway: tuple[Running, aiohttp.ClientSession]) -> None:
    running, http = gateway
    running.sites["SECOND"].reachable = False
    for name, status in (("NOWHERE", 404), ("SECOND", 503)):
        async with http.get(running.url.replace("/DEMO-SITE/", f"/{name}/")) as reply:
            assert (reply.status, reply.content_type) == (status, "text/html")


async def test_the_registry_lists_all_sites(gateway: tuple[Running, aiohttp.ClientSession]) -> None:
    running, http = gateway
    async with http.get(running.registry_url) as reply:
        entries = (await reply.json())["entries"]
    core = {entry["href"] for entry in entries if entry["type"] == "CoreServices"}
    assert core == {running.url, running.url.replace("/DEMO-SITE/", "/SECOND/")}
    assert all("BEGIN CERTIFICATE" in entry["ServerPublicKey"] for entry in entries)


async def test_links_are_below_the_name_the_client_used(gateway: tuple[Running, aiohttp.ClientSession]) -> None:
    running, http = gateway
    async with http.get(running.url.replace("127.0.0.1", "localhost")) as reply:
        assert (await reply.json())["_links"]["jobs"]["href"].startswith(f"http://localhost:{running.port}/")
    async with http.get(running.url, headers={"Host": "evil.example/x\tinjected"}) as reply:
        assert (await reply.json())["_links"]["jobs"]["href"].startswith(running.url)


async def test_one_job_reaches_a_storage_of_another_site(gateway: tuple[Running, aiohttp.ClientSession]) -> None:
    running, http = gateway
    home = running.url.replace("/DEMO-SITE/", "/SECOND/") + "/storages/HOME/files/data"
    async with http.put(
        home, data=b"from the other site", headers={"Content-Type": "application/octet-stream"}
    ) as reply:
        assert reply.status == 204
    description = {"Executable": "cat data", "Imports": [{"From": f"BFT:{home}", "To": "data"}]}
    async with http.post(f"{running.url}/jobs", json=description) as reply:
        job = running.site.jobs[reply.headers["Location"].rsplit("/", 1)[1]]
    assert job.task is not None
    await job.task
    assert job.directory is not None
    assert (job.directory / "stdout").read_text() == "from the other site"
