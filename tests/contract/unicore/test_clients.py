"""
Cases 133 to 135, and those of the others that are about pyunicore: the unmodified client, in both of its halves.

The synchronous half runs in a thread, because the simulated site lives in the test's own event loop.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from pyunicore import client as sync
from pyunicore.aio import client as aio
from pyunicore.credentials import BearerToken, UsernamePassword

from moorage.simulator.servers.unicore import SiteConfig

pytestmark = pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated")  # pyunicore's own


@pytest.fixture
def config(config: SiteConfig) -> SiteConfig:
    """Directories are there at the first look: pyunicore would wait at least 5 s for its own cache otherwise."""
    return evolve(config, timing=evolve(config.timing, directory_s=0))


def _credential(api: Any) -> UsernamePassword:
    return UsernamePassword(api.user.name, api.user.password)


async def _in_thread(api: Any, work: Callable[..., Any], *more: Any) -> Any:
    """`work` with a connected client, beside the event loop."""
    return await asyncio.to_thread(lambda: work(sync.Client(_credential(api), api.base), *more))


async def test_012_a_forgotten_session_costs_one_more_request(api: Any) -> None:
    def work(client: sync.Client) -> Any:
        client.transport.last_session_id = "00000000-0000-0000-0000-000000000000"
        client.cache_time = 0
        return client.access_info()

    assert (await _in_thread(api, work))["role"]["selected"] == "user"


async def test_013_preferences_choose_the_group(api: Any) -> None:
    def work(client: sync.Client) -> str:
        groups = client.access_info()["xlogin"]["availableGroups"]
        client.transport.preferences = f"group:{groups[-1]}"
        assert client.access_info()["xlogin"]["group"] == groups[-1]
        job = client.new_job({"Executable": "true"}, autostart=False)
        return str(job.properties["submissionPreferences"])

    assert "group" in await _in_thread(api, work)


async def test_017_tokens_are_issued_and_used(api: Any) -> None:
    def work(client: sync.Client) -> Any:
        token = client.issue_auth_token(lifetime=600, limited=True)
        return sync.Client(BearerToken(token), api.base).access_info()

    assert (await _in_thread(api, work))["authenticationMethod"] == "ETD"


async def test_005_the_version_can_be_read(api: Any) -> None:
    assert len(await _in_thread(api, lambda client: client.server_version_info())) == 3


async def test_059_an_empty_job(api: Any) -> None:
    job = await _in_thread(api, lambda client: client.new_job({}).resource_url)
    assert (await api.ended(job))["status"] == "SUCCESSFUL"


async def test_062_a_command_on_the_login_node(api: Any) -> None:
    """pyunicore sends `"Login node": null` when it was given none."""
    job = await _in_thread(api, lambda client: client.execute("date").resource_url)
    assert (await api.ended(job))["status"] == "SUCCESSFUL"


async def test_093_and_106_storages(api: Any, tmp_path: Path) -> None:
    (tmp_path / "local").write_text("local content")

    def work(client: sync.Client) -> None:
        job = client.new_job({"Executable": "true", "haveClientStageIn": "true"}, autostart=False)
        storage = job.working_dir
        storage.mkdir("sub")
        storage.put(b"one", "sub/a b")
        storage.upload(str(tmp_path / "local"), destination="up")
        storage.rename("sub/a b", "sub/b")
        storage.copy("sub/b", "c")
        listed = storage.listdir()
        assert set(listed) == {"sub/", "up", "c"}
        assert isinstance(listed["sub/"], sync.PathDir)
        assert isinstance(listed["c"], sync.PathFile)
        assert set(storage.listdir("sub")) == {"sub/b"}
        file = storage.stat("up")
        assert file.read(offset=6, size=4) == b"cont"
        assert file.size() == 13
        file.download(str(tmp_path / "down"))
        assert (tmp_path / "down").read_text() == "local content"
        file.remove()
        storage.rmdir("sub")
        assert set(storage.listdir()) == {"c"}
        assert any(url.resource_url == storage.resource_url for url in client.get_storages(all=True))
        job.delete()

    await _in_thread(api, work)


async def test_123_and_124_an_allocation(api: Any) -> None:
    def allocate(client: sync.Client) -> Any:
        return client.new_job({"Job type": "ALLOCATE", "Executable": ""}, autostart=False)

    allocation = await _in_thread(api, allocate)
    assert isinstance(allocation, sync.Allocation)
    await api.until(allocation.resource_url, "RUNNING")

    def task() -> str:
        allocation.wait_until_available(timeout=30)
        return str(allocation.new_job({"Executable": "echo $SLURM_JOB_ID"}).resource_url)

    job = await asyncio.to_thread(task)
    assert (await api.ended(job))["status"] == "SUCCESSFUL"
    assert (await api.output(job)).strip().isdigit()


async def test_126_a_transfer(api: Any) -> None:
    def work(client: sync.Client) -> tuple[str, str]:
        jobs = [client.new_job({"haveClientStageIn": "true", "Executable": "true"}, autostart=False) for _ in "ab"]
        source, target = (job.working_dir for job in jobs)
        source.put(b"moved", "f")
        transfer = target.receive_file(f"{source.resource_url}/files/f", "g")
        return transfer.resource_url, target.resource_url

    transfer, target = await _in_thread(api, work)

    async def done() -> bool:
        return bool((await api.document(transfer))["status"] == "DONE")

    await api.eventually(done)
    assert (await api.read(f"{target}/files/g")).body == b"moved"


@pytest.mark.parametrize("options", [{"tls": True}])
async def test_128_the_registry_leads_to_the_site(api: Any, control: Any) -> None:
    def work() -> Any:
        registry = sync.Registry(_credential(api), control.registry_url)
        return registry.site_urls, registry.site("DEMO-SITE").access_info()

    urls, access = await asyncio.to_thread(work)
    assert urls == {"DEMO-SITE": api.base}
    assert access["role"]["selected"] == "user"


async def test_129_compute_and_applications(api: Any) -> None:
    def work(client: sync.Client) -> None:
        (compute,) = client.get_compute()
        assert "batch" in compute.get_queues()
        names = [application.name for application in client.get_applications()]
        assert "Date" in names

    await _in_thread(api, work)


INPUTS = ("start.sh", "plan.json", "data")
SCRIPT = {"Executable": "/bin/bash start.sh", "Tags": ["client"]}


@pytest.fixture
def inputs(tmp_path: Path) -> Mapping[str, str]:
    (tmp_path / "start.sh").write_text("cat data; sleep 60\n")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "data").write_text("the data\n")
    return {name: str(tmp_path / name) for name in INPUTS}


async def test_133_a_whole_life_with_the_synchronous_client(api: Any, inputs: Mapping[str, str]) -> None:
    """Fourteen requests on fourteen connections, as measured elsewhere: every call makes a connection of its own."""
    before = (api.control.requests, api.control.connections) if api.control else None
    job = await _in_thread(api, lambda client: client.new_job(dict(SCRIPT), inputs))
    seen = await _polled(api, job)

    def rest() -> bytes:
        content: bytes = job.working_dir.stat("data").read()
        job.abort()
        job.delete()
        return content

    assert await asyncio.to_thread(rest) == b"the data\n"
    if before:
        assert api.control.requests - before[0] - seen == 14
        assert api.control.connections - before[1] == 14 + 1  # and the one the test itself keeps open
    assert (await api.get(job.resource_url)).status == 404


async def _polled(api: Any, job: Any) -> int:
    """pyunicore's `poll` until RUNNING; how many requests the test itself made meanwhile."""
    before = api.control.requests if api.control else 0
    await api.until(job.resource_url, "RUNNING")
    made = (api.control.requests if api.control else 0) - before
    job.cache_time = 1 if api.control else job.cache_time  # `poll` then waits 2 s instead of 6
    if isinstance(job, sync.Job):
        await asyncio.to_thread(job.poll, sync.JobStatus.RUNNING, 600)
    else:
        await job.poll(aio.JobStatus.RUNNING, 600)
    return int(made)


async def test_134_a_whole_life_with_the_asynchronous_client(api: Any, inputs: Mapping[str, str]) -> None:
    before = (api.control.requests, api.control.connections) if api.control else None
    async with aio.Client(_credential(api), api.base) as client:
        await client.assert_authentication()
        job = await client.new_job(dict(SCRIPT), inputs)
        seen = await _polled(api, job)
        storage = await job.working_dir
        assert await (await storage.stat("data")).read() == b"the data\n"
        await job.abort()
        await job.delete()
        if before:
            assert api.control.requests - before[0] - seen <= 14
            assert api.control.connections - before[1] <= 2 + 1
    assert (await api.get(job.resource_url)).status == 404


async def test_134_exit_code_log_and_restart(api: Any) -> None:
    async with aio.Client(_credential(api), api.base) as client:
        job = await client.new_job({"Executable": "bash -c 'exit 7'"}, autostart=False)
        await api.ended(job.resource_url)
        assert await job.exit_code == 7
        assert any("Exit code 7" in line for line in await job.log)
        assert not await job.is_running
        await job.restart()
        await api.ended(job.resource_url)
        assert any("RESTARTING" in line for line in (await api.document(job.resource_url))["log"])


@pytest.mark.parametrize("options", [{"tls": True}])
async def test_135_the_command_line_client_that_comes_with_pyunicore(api: Any, control: Any, tmp_path: Path) -> None:
    """Not the official one, which is a Java program; this one uses the same calls."""
    settings = tmp_path / "properties"
    settings.write_text(
        f"authentication-method=USERNAME\nusername={api.user.name}\npassword={api.user.password}\n"
        f"registry={control.registry_url}\nverbose=true\n"
    )
    code, out = await _command("info", "-c", str(settings))
    assert code == 0
    assert "DEMO-SITE" in out
    code, out = await _command("exec", "-c", str(settings), "-s", "DEMO-SITE", "echo", "hello", "there")
    assert code == 0, out
    assert "hello there" in out


async def _command(*words: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("unicore")),
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, out.decode()
