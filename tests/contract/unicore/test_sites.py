"""Cases 123 to 132: allocations, transfers, registry, factories and sites."""

from typing import Any

import pytest
from attrs import evolve

from moorage.simulator.servers.unicore import SiteConfig, Timing

HELD = {"Executable": "true", "haveClientStageIn": "true"}
FACTORY = "/factories/default_target_system_factory"


async def _allocation(api: Any) -> str:
    job = await api.submit({"Job type": "ALLOCATE", "Resources": {"Nodes": 2}})

    async def granted() -> bool:
        document = await api.document(job)
        return document["status"] == "RUNNING" and document["batchSystemID"].isdigit()

    await api.eventually(granted)
    return job


@pytest.mark.parametrize("config", [SiteConfig(timing=evolve(Timing.fast(), queue_s=0.3))])
async def test_123_an_allocation_changes_its_id_when_it_is_granted(api: Any) -> None:
    job = await api.submit({"Job type": "ALLOCATE"})
    seen = []

    async def granted() -> bool:
        seen.append((await api.document(job))["batchSystemID"])
        return seen[-1].isdigit()

    await api.eventually(granted)
    assert (await api.document(job))["jobType"] == "ALLOCATE"
    before = [text for text in seen[:-1] if text != "N/A"]
    assert before or api.control is None  # a real site is not asked often enough to see it for sure
    assert all(text.startswith("INTERACTIVE_") for text in before)
    assert (await api.post(f"{job}/actions/abort", {})).status == 204
    assert (await api.ended(job))["statusMessage"] == "Job aborted."


async def test_124_a_task_runs_in_an_allocation(api: Any) -> None:
    allocation = await _allocation(api)
    number = (await api.document(allocation))["batchSystemID"]
    task = await api.submit({"Executable": "echo $SLURM_JOB_ID"}, to=allocation)
    document = await api.ended(task)
    assert (document["status"], document["jobType"]) == ("SUCCESSFUL", "ON_LOGIN_NODE")
    assert await api.output(task) == f"{number}\n"


async def test_125_another_job_takes_no_tasks(api: Any) -> None:
    reply = await api.post(await api.submit(HELD), {"Executable": "true"})
    assert reply.status == 500
    assert "This job is not an allocation." in reply.error


async def test_125_an_ended_allocation_takes_no_tasks(api: Any) -> None:
    allocation = await _allocation(api)
    await api.post(f"{allocation}/actions/abort", {})
    await api.ended(allocation)
    reply = await api.post(allocation, {"Executable": "true"})
    assert reply.status == 500
    assert "Allocation is not active. Status is FAILED" in reply.error


async def test_126_a_file_is_transferred_between_storages(api: Any) -> None:
    _, source = await api.ready_directory()
    _, target = await api.ready_directory()
    await api.ask("PUT", f"{source}/files/f", data=b"x" * 100_000)
    reply = await api.post(f"{target}/transfers", {"file": "sub/g", "source": f"BFT:{source}/files/f"})
    assert reply.status == 201
    transfer = reply.headers["Location"]
    assert transfer.startswith(f"{api.base}/transfers/")

    async def done() -> bool:
        document = await api.document(transfer)
        assert document["status"] != "FAILED", document
        return bool(document["status"] == "DONE")

    await api.eventually(done)
    document = await api.document(transfer)
    assert (document["transferredBytes"], document["statusMessage"]) == (100_000, "SUCCESSFUL")
    assert (await api.read(f"{target}/files/sub/g")).body == b"x" * 100_000
    assert transfer in (await api.document("/transfers"))["transfers"]


async def test_126_a_transfer_of_nothing_fails(api: Any) -> None:
    _, storage = await api.ready_directory()
    wish = {"file": "f", "source": f"{storage}/files/nothing"}
    transfer = (await api.post(f"{storage}/transfers", wish)).headers["Location"]

    async def failed() -> bool:
        return bool((await api.document(transfer))["status"] == "FAILED")

    await api.eventually(failed)
    assert (await api.document(transfer))["statusMessage"].startswith("NOT_SUCCESSFUL")
    assert (await api.post(f"{storage}/transfers", {"file": "f"})).status == 500


async def test_127_a_transfer_has_no_abort_and_is_deleted(api: Any) -> None:
    _, storage = await api.ready_directory()
    await api.ask("PUT", f"{storage}/files/f", data=b"x")
    wish = {"file": "g", "source": f"{storage}/files/f"}
    transfer = (await api.post(f"{storage}/transfers", wish)).headers["Location"]
    assert "action:abort" not in (await api.document(transfer))["_links"]
    assert (await api.delete(transfer)).status == 204
    assert (await api.get(transfer)).status == 404


async def test_127_a_client_sends_and_fetches_over_a_link_of_its_own(api: Any) -> None:
    _, storage = await api.ready_directory()
    for overwrite, expected in (("true", b"one"), ("false", b"oneone")):
        reply = await api.post(f"{storage}/imports", {"file": "f", "protocol": "BFT", "overwrite": overwrite})
        assert reply.status == 200
        assert reply.headers["Location"].startswith(f"{api.base}/client-server-transfers/")
        assert (await api.ask("PUT", reply.json()["accessURL"], data=b"one", anonymous=True)).status == 204
        assert (await api.read(f"{storage}/files/f")).body == expected
    link = (await api.post(f"{storage}/exports", {"file": "f", "protocol": "BFT"})).json()["accessURL"]
    reply = await api.get(link, anonymous=True, headers={"Range": "bytes=1-3"}, accept=None)
    assert (reply.status, reply.body, reply.headers["Content-Range"]) == (206, b"neo", "bytes 1-3/6")
    assert "attachment" in reply.headers["Content-Disposition"]
    reply = await api.post(f"{storage}/imports", {"file": "f", "protocol": "X"})
    assert (reply.status, "Protocol 'X' is not available" in reply.error) == (500, True)


async def test_128_the_registry_names_the_site_to_everybody(api: Any, control: Any) -> None:
    document = await api.document(control.registry_url, anonymous=True)
    assert api.base in [entry["href"] for entry in document["entries"] if entry["type"] == "CoreServices"]


async def test_129_the_factory_offers_partitions_and_applications(api: Any) -> None:
    assert (await api.document("/factories"))["factories"] == [api.base + FACTORY]
    document = await api.document(FACTORY)
    for limits in document["resources"].values():
        assert all(isinstance(limit, (str, list)) for limit in limits.values())
    assert all("---v" in name for name in document["applications"])
    assert (await api.put(FACTORY, {"tags": []})).status == 403
    assert (await api.delete(FACTORY)).status == 403


async def test_129_an_application_is_described_and_can_be_run(api: Any, control: Any) -> None:
    document = await api.document(f"{FACTORY}/applications/Date---v1.0")
    assert (document["ApplicationName"], document["ApplicationVersion"]) == ("Date", "1.0")
    assert (await api.get(f"{FACTORY}/applications/Nothing---v1")).status == 404
    job, document = await api.run({"ApplicationName": "Date"})
    assert (document["status"], document["name"]) == ("SUCCESSFUL", "Date")
    assert await api.output(job)


async def test_130_partitions_one_may_not_use_are_not_offered(api: Any, control: Any, admin: Any) -> None:
    assert set((await api.document(FACTORY))["resources"]) == {"batch", "small"}
    assert "secret" in (await api.document(FACTORY, by=admin))["resources"]
    assert (await api.document())["client"]["queues"]["availableQueues"] == ["batch", "small"]


async def test_131_the_first_job_makes_a_site(api: Any, control: Any) -> None:
    assert (await api.document("/sites"))["sites"] == []
    job = await api.submit(HELD)
    sites = (await api.document("/sites"))["sites"]
    assert [(await api.document(job))["_links"]["parentTSS"]["href"]] == sites
    await api.submit(HELD)
    assert (await api.document("/sites"))["sites"] == sites


async def test_132_a_site_lists_its_jobs(api: Any) -> None:
    reply = await api.post("/sites", {})
    assert reply.status == 201
    site = reply.headers["Location"]
    job = await api.submit({**HELD, "Tags": ["case132"]}, to=site)
    assert (await api.document(f"{site}/jobs"))["jobs"] == [job]
    assert (await api.document(f"{site}/jobs?tags=nope"))["jobs"] == []
    document = await api.document(site)
    assert document["numberOfJobs"] == 1
    assert (await api.document(job))["_links"]["parentTSS"]["href"] == site
    assert (await api.delete(site)).status == 204


@pytest.mark.parametrize("name", ["reservations", "storagefactories", "tasks"])
async def test_132_collections_that_are_empty_here(api: Any, control: Any, name: str) -> None:
    assert (await api.document(f"/{name}"))[name] == []
    assert (await api.get(f"/{name}/x")).status == 404
