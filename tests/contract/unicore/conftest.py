"""
The site that the contract cases are run against: a simulated one, made for every test, or a real one.

A real site is named by the environment:

    MOORAGE_UNICORE_URL              the base, https://HOST:PORT/SITE/rest/core
    MOORAGE_UNICORE_USER, _PASSWORD  somebody with the role `user`, at best with two groups
    MOORAGE_UNICORE_OTHER_USER, _OTHER_PASSWORD   somebody else, for the cases about strangers
    MOORAGE_UNICORE_CA               a file with the authorities to trust; `none` verifies nothing
    MOORAGE_UNICORE_LIMIT_S          the longest wait for one thing, seconds; 600 if not given

Cases that ask for `control`, which is the simulated site itself, are skipped there, and so are those about strangers
when there is no second person. Jobs that the tests submit are deleted when they end.
"""

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from attrs import define, field, frozen
from yarl import URL

from moorage.simulator.servers.unicore import (
    Partition,
    Running,
    ServerConfig,
    SiteConfig,
    Timing,
    User,
    serve,
)

ENDED = ("SUCCESSFUL", "FAILED")


@frozen
class Person:
    name: str
    password: str

    @property
    def authorization(self) -> str:
        return aiohttp.encode_basic_auth(self.name, self.password)


DEMO = Person("demouser", "test123")
OTHER = Person("stranger", "test456")
SITE = SiteConfig(
    users=(
        User(
            DEMO.name,
            DEMO.password,
            "CN=Demo User, O=UNICORE, C=EU",
            uids=("demouser", "demo2"),
            groups=("users", "hpc"),
            queues=("batch", "small"),
        ),
        User(OTHER.name, OTHER.password, "CN=Somebody Else, O=UNICORE, C=EU"),
        User("root", "toor", "CN=Administrator, O=UNICORE, C=EU", role="admin"),
        User("unmapped", "test789", "CN=Nobody Here, O=UNICORE, C=EU", role=None),
    ),
    partitions=(
        Partition("batch"),
        Partition("small", nodes=1, resources={"Nodes": "1-1", "Runtime": "10-3600"}),
        Partition("secret"),
    ),
    login_nodes=("login1", "login2"),
    timing=Timing.fast(),
    job_environment={"PATH": f"{Path(sys.executable).parent}:$PATH"},
)


@frozen
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        assert self.headers.get("Content-Type", "").split(";")[0] == "application/json", self
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of a JSON error; its status is in the document again."""
        document = self.json()
        assert document["status"] == self.status
        text = document["errorMessage"]
        assert isinstance(text, str)
        return text


@define
class Api:
    """Plain requests to a site. Paths are relative to its base unless they are URLs."""

    base: str
    user: Person
    other: Person | None
    limit_s: float
    pause_s: float
    control: Running | None
    http: aiohttp.ClientSession
    tls: ssl.SSLContext | bool = True
    made: list[str] = field(factory=list)
    session: str | None = None

    def url(self, path: str) -> URL:
        """Sent as it is written: nothing is encoded or made shorter on the way."""
        return URL(path if path.startswith("http") else self.base + path, encoded=True)

    async def ask(
        self,
        method: str,
        path: str,
        by: Person | None = None,
        anonymous: bool = False,
        body: Any = None,
        data: Any = None,
        accept: str | None = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """`body` goes out as JSON, `data` as it is (octet-stream unless the headers say otherwise)."""
        sent: dict[str, str] = {}
        if accept is not None:
            sent["Accept"] = accept
        if not anonymous:
            sent["Authorization"] = (by or self.user).authorization
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        elif data is not None:
            sent["Content-Type"] = "application/octet-stream"
        sent.update(headers or {})
        async with self.http.request(
            method, self.url(path), data=data, headers=sent, allow_redirects=False, ssl=self.tls
        ) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def get(self, path: str, **how: Any) -> Reply:
        return await self.ask("GET", path, **how)

    async def post(self, path: str, body: Any = None, **how: Any) -> Reply:
        return await self.ask("POST", path, body=body, **how)

    async def put(self, path: str, body: Any = None, **how: Any) -> Reply:
        return await self.ask("PUT", path, body=body, **how)

    async def delete(self, path: str, **how: Any) -> Reply:
        return await self.ask("DELETE", path, **how)

    async def document(self, path: str = "", **how: Any) -> Any:
        reply = await self.get(path, **how)
        assert reply.status == 200, reply
        return reply.json()

    async def submit(self, description: Mapping[str, Any], to: str = "/jobs", by: Person | None = None) -> str:
        """The URL of an accepted job."""
        reply = await self.post(to, description, by=by)
        assert reply.status == 201, reply
        assert reply.body == b""
        self.made.append(reply.headers["Location"])
        return reply.headers["Location"]

    async def status(self, job: str) -> str:
        """Asked in a session that is kept: many new ones would push those of the client under test out of theirs."""
        sessions = {"X-UNICORE-SecuritySession": self.session} if self.session else {}
        reply = await self.get(f"{job}?fields=status", headers=sessions)
        if reply.status == 432:
            reply = await self.get(f"{job}?fields=status")
        self.session = reply.headers["X-UNICORE-SecuritySession"]
        assert reply.status == 200, reply
        return str(reply.json()["status"])

    async def until(self, job: str, *wanted: str) -> dict[str, Any]:
        """The job's document once it has one of these statuses; an end that was not wanted fails the test."""
        deadline = time.monotonic() + self.limit_s
        while True:
            status = await self.status(job)
            if status in wanted:
                document = await self.document(job)
                assert isinstance(document, dict)
                return document
            if status in ENDED or time.monotonic() > deadline:
                document = await self.document(job)
                raise AssertionError(
                    f"{status} instead of {wanted}: {document['statusMessage']} {document['log'][-5:]}"
                )
            await asyncio.sleep(self.pause_s)

    async def ended(self, job: str) -> dict[str, Any]:
        return await self.until(job, *ENDED)

    async def eventually(self, condition: Callable[[], Any]) -> Any:
        """The first true value of an awaitable condition."""
        deadline = time.monotonic() + self.limit_s
        while not (value := await condition()):
            assert time.monotonic() < deadline, "it never became true"
            await asyncio.sleep(self.pause_s)
        return value

    async def run(self, description: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """URL and last document of a job that was run to its end."""
        job = await self.submit(description)
        return job, await self.ended(job)

    def directory(self, job: str) -> str:
        """The URL of a job's working directory; that its id follows from the job's is the server's rule."""
        return f"{self.base}/storages/{job.rsplit('/', 1)[1]}-uspace"

    async def ready_directory(self, description: Mapping[str, Any] | None = None) -> tuple[str, str]:
        """A job that waits for its start, and its directory once it is there."""
        waiting = {"Executable": "true", "haveClientStageIn": "true"}
        job = await self.submit(waiting if description is None else description)
        storage = self.directory(job)

        async def ready() -> bool:
            document = await self.document(f"{storage}?fields=resourceStatus")
            return bool(document["resourceStatus"] == "READY")

        await self.eventually(ready)
        return job, storage

    async def read(self, file: str) -> Reply:
        return await self.get(file, accept="application/octet-stream")

    async def output(self, job: str, name: str = "stdout") -> str:
        reply = await self.read(f"{self.directory(job)}/files/{name}")
        assert reply.status == 200
        return reply.body.decode()

    async def clean_up(self) -> None:
        for url in self.made:
            await self.delete(url)


@pytest.fixture
def config() -> SiteConfig:
    """The simulated site; a test module or class overrides it for another one."""
    return SITE


@pytest.fixture
def options() -> Mapping[str, Any]:
    """More arguments of `ServerConfig`."""
    return {}


@pytest.fixture
async def api(config: SiteConfig, options: Mapping[str, Any]) -> AsyncIterator[Api]:
    url = os.environ.get("MOORAGE_UNICORE_URL")
    if url:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            api = _real(url.rstrip("/"), http)
            try:
                yield api
            finally:
                await api.clean_up()
        return
    async with serve(ServerConfig(sites=(config,), **options)) as running, aiohttp.ClientSession() as http:
        tls = ssl.create_default_context(cafile=running.ca_file) if running.ca_file else True
        yield Api(running.url, DEMO, OTHER, 20.0, 0.01, running, http, tls)


def _real(url: str, http: aiohttp.ClientSession) -> Api:
    said = os.environ.get
    tls: ssl.SSLContext | bool = True
    authorities = said("MOORAGE_UNICORE_CA", "")
    if authorities == "none":
        tls = False
    elif authorities:
        tls = ssl.create_default_context(cafile=authorities)
    other = said("MOORAGE_UNICORE_OTHER_USER")
    return Api(
        url,
        Person(said("MOORAGE_UNICORE_USER", ""), said("MOORAGE_UNICORE_PASSWORD", "")),
        Person(other, said("MOORAGE_UNICORE_OTHER_PASSWORD", "")) if other else None,
        float(said("MOORAGE_UNICORE_LIMIT_S", "600")),
        2.0,
        None,
        http,
        tls,
    )


@pytest.fixture
def control(api: Api) -> Running:
    """The simulated site itself; a case that needs it is skipped on a real one."""
    if api.control is None:
        pytest.skip("only on the simulated site, which can be told what happens")
    return api.control


@pytest.fixture
def stranger(api: Api) -> Person:
    """Somebody else with the role `user`."""
    if api.other is None:
        pytest.skip("MOORAGE_UNICORE_OTHER_USER names nobody")
    return api.other


@pytest.fixture
def admin(control: Running) -> Person:
    return Person("root", "toor")


class Receiver:
    """An HTTP server that notes what is posted to it and answers with `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.delay_s = 0.0
        self.headers: list[Mapping[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def take(self, request: web.BaseRequest) -> web.Response:
        assert request.method == "POST"
        self.headers.append(request.headers)
        self.bodies.append(json.loads(await request.read()))
        return web.Response(status=self.status)

    def said(self, key: str = "status") -> Sequence[Any]:
        return [body.get(key) for body in self.bodies]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.take))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/told"
    try:
        yield made
    finally:
        await runner.cleanup()
