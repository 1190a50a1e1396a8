"""Telling a job's state to the URL its description names: one attempt, signed, and logged in the job."""

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import aiohttp

from .answers import log_date
from .jobs import Job

if TYPE_CHECKING:
    from .site import Site

limit_s = 30.0


class Notifier:
    """
    Sends notifications, sequentially per URL, without retry; success is a status below 400.

    The receiver's certificate is not verified, as the server does not. Source: UNICORE-EU/unicorex
    RESTNotificationSender, NotificationSender.
    """

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._turn: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._client: aiohttp.ClientSession | None = None
        self._held: list[tuple[Job, str, dict[str, Any]]] = []

    async def status(self, job: Job) -> None:
        body = {
            "href": self._href(job.id),
            "status": job.status,
            "statusMessage": job.message,
            "batchSystemID": job.batch_id or "N/A",
        }
        if job.exit_code is not None:
            body["exitCode"] = str(job.exit_code)
        await self._send(job, body)

    async def batch_state(self, job: Job, raw: str) -> None:
        await self._send(job, {"href": self._href(job.id), "bssStatus": raw})

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    def _href(self, job_id: str) -> str:
        return f"{self._site.external_base}/jobs/{job_id}"

    async def _send(self, job: Job, body: dict[str, Any]) -> None:
        """Deliver a body, unless a fault has other plans with it."""
        assert job.description is not None
        assert job.description.notify is not None
        url = job.description.notify.url
        token = self._site.key.token(job.owner, self._site.clock.now(), 300)
        bodies = [(job, url, body, token)]
        for rule in self._site.faults.draw("notification", url):
            self._site.faults.fired(rule, "notification")
            if rule.variant == "lose":
                return
            if rule.variant == "hold":  # out of order: it goes out after the next one
                self._held.append((job, url, body))
                return
            if rule.variant == "duplicate":
                bodies.append(bodies[0])
            elif rule.variant == "forge":
                bodies = [(job, url, body, token[:-8] + "AAAAAAAA")]
            elif rule.variant == "unknown":
                bodies = [(job, url, body | {"href": self._href("0000000000x")}, token)]
            elif rule.variant == "stranger":  # another job of the same owner
                other = next((j for j in self._site.jobs.values() if j is not job), job)
                bodies = [(job, url, body | {"href": self._href(other.id)}, token)]
            elif rule.variant == "huge":
                bodies = [(job, url, body | {"statusMessage": "x" * rule.size}, token)]
        bodies += [(held, to, text, token) for held, to, text in self._held]
        self._held.clear()
        for owner, to, text, signed in bodies:
            await self._post(owner, to, text, signed)

    async def _post(self, job: Job, url: str, body: dict[str, Any], token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        problem = None
        async with self._turn[url]:
            try:
                client = self._client = self._client or aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=limit_s),
                    connector=aiohttp.TCPConnector(ssl=False, force_close=True),
                )
                async with client.post(url, json=body, headers=headers) as reply:
                    if reply.status >= 400:
                        problem = f"server returned HTTP {reply.status}"
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}"
        text = f"Notified <{url}>" if problem is None else f"Could not notify <{url}>: {problem}"
        job.log.append(f"{log_date(int(self._site.clock.now()))}: {text}")
        with contextlib.suppress(KeyError):
            if not self._turn[url].locked():
                del self._turn[url]
