"""Cases 66 to 83: how a job moves on, and what start, abort, restart and DELETE do."""

import asyncio
import os
import time
from typing import Any

import pytest
from attrs import evolve

from moorage.simulator.servers.unicore import SiteConfig, Timing

HELD = {"Executable": "true", "haveClientStageIn": "true"}
ORDER = ["READY", "STAGINGIN", "READY", "QUEUED", "RUNNING", "STAGINGOUT", "SUCCESSFUL"]


async def test_066_a_job_goes_on_by_itself(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    await api.until(job, "QUEUED", "RUNNING")


@pytest.mark.parametrize(("case", "flag"), [(67, "true"), (68, True), (67, "TRUE")])
async def test_067_and_068_a_job_waits_for_its_start(api: Any, case: int, flag: object) -> None:
    job, _ = await api.ready_directory({"Executable": "true", "haveClientStageIn": flag})
    await asyncio.sleep(0.2 if api.control else 5)
    assert await api.status(job) == "READY"
    reply = await api.post(f"{job}/actions/start", {})
    assert (reply.status, reply.body) == (204, b"")
    assert (await api.ended(job))["status"] == "SUCCESSFUL"


async def test_069_an_early_start_is_remembered(api: Any) -> None:
    job = await api.submit({**HELD, "Imports": [{"To": "a", "Data": "x"}]})
    assert (await api.post(f"{job}/actions/start", {})).status == 204
    assert (await api.ended(job))["status"] == "SUCCESSFUL"


async def test_070_a_start_nobody_waits_for_changes_nothing(api: Any) -> None:
    job = await api.submit({"Executable": "true"})
    assert (await api.post(f"{job}/actions/start", {})).status == 204
    assert (await api.ended(job))["status"] == "SUCCESSFUL"


async def test_071_states_come_in_the_servers_order(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 0.2", "Imports": [{"To": "a", "Data": "x"}]})
    seen: list[str] = []
    deadline = time.monotonic() + api.limit_s
    while not seen or seen[-1] not in ("SUCCESSFUL", "FAILED"):
        assert time.monotonic() < deadline
        status = await api.status(job)
        seen += [status] if seen[-1:] != [status] else []
    rest = iter(ORDER)
    assert all(status in rest for status in seen), seen


async def test_071_ready_comes_before_and_after_staging_in(api: Any, control: Any) -> None:
    """Seen from inside, where nothing can be missed."""
    _, document = await api.run({"Executable": "true", "Imports": [{"To": "a", "Data": "x"}]})
    log = [line.split(": ", 1)[1] for line in document["log"]]
    staging = log.index("Status set to PREPROCESSING (staging in).")
    assert staging < log.index("Stage in is DONE.") < log.index("Status set to READY.")
    assert log.index("Status set to READY.") < log.index("Status set to PENDING.")
    assert log[-1].startswith("Total: ")


@pytest.mark.parametrize(
    "config", [SiteConfig(execute="virtual", virtual_runtime_s=0, timing=Timing(queue_s=0, listing_s=0.3))]
)
async def test_071_running_may_never_be_seen(api: Any, control: Any) -> None:
    """A job shorter than the time between two listings of the batch system."""
    _, document = await api.run({"Executable": "true"})
    assert document["status"] == "SUCCESSFUL"
    assert document["consumedTime"]["main"] == "N/A"


async def test_072_a_queued_job_has_a_number_and_a_queue(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    document = await api.until(job, "RUNNING")
    assert document["batchSystemID"].isdigit()
    offered = next(iter((await api.document("/factories/default_target_system_factory"))["resources"]))
    assert document["queue"] == offered or api.control is None


async def test_073_a_running_job_is_aborted_and_its_files_stay(api: Any) -> None:
    job = await api.submit({"Executable": "bash -c 'echo here; sleep 60'"})
    await api.until(job, "RUNNING")
    assert (await api.post(f"{job}/actions/abort", {})).status == 204
    document = await api.ended(job)
    assert (document["status"], document["statusMessage"]) == ("FAILED", "Job aborted.")
    assert "exitCode" not in document
    assert await api.output(job) == "here\n"


async def test_074_a_waiting_job_is_aborted(api: Any) -> None:
    job, _ = await api.ready_directory()
    assert (await api.post(f"{job}/actions/abort", {})).status == 204
    assert (await api.ended(job))["statusMessage"] == "Job aborted."


async def test_075_a_finished_job_does_not_care(api: Any) -> None:
    job, before = await api.run({"Executable": "true"})
    for action in ("abort", "start"):
        assert (await api.post(f"{job}/actions/{action}", {})).status == 204
    await asyncio.sleep(20 * api.pause_s if api.control else 3)
    after = await api.document(job)
    assert (after["status"], after["statusMessage"]) == (before["status"], "")


async def test_a_form_is_sent_back_to_the_job(api: Any) -> None:
    """What a browser's button does; the same URL with JSON answers 204."""
    job, _ = await api.run({"Executable": "true"})
    reply = await api.post(
        f"{job}/actions/abort", data=b"", headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert (reply.status, reply.headers["Location"], reply.body) == (303, job, b"")


async def test_076_a_finished_job_runs_again_without_its_imports(api: Any) -> None:
    wish = {"Executable": "bash -c 'wc -l < counter; echo >> counter'", "Imports": [{"To": "counter", "Data": "0\n"}]}
    job, first = await api.run(wish)
    assert await api.output(job) == "1\n"
    assert (await api.post(f"{job}/actions/restart", {})).status == 204
    again = await api.ended(job)
    assert again["status"] == "SUCCESSFUL"
    assert again["batchSystemID"] != first["batchSystemID"]
    assert await api.output(job) == "2\n"
    assert any("RESTARTING job." in line for line in again["log"])


async def test_077_a_running_job_is_not_restarted(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    before = await api.until(job, "RUNNING")
    assert (await api.post(f"{job}/actions/restart", {})).status == 204
    after = await api.document(job)
    assert (after["status"], after["batchSystemID"]) == ("RUNNING", before["batchSystemID"])


async def test_078_an_unknown_action_is_404(api: Any) -> None:
    reply = await api.post(f"{await api.submit(HELD)}/actions/nosuch", {})
    assert (reply.status, reply.body) == (404, b"")


async def test_079_a_running_job_is_deleted_at_once(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    await api.until(job, "RUNNING")
    assert (await api.delete(job)).status == 204
    assert (await api.get(job)).status == 404


async def test_079_the_batch_job_and_the_directory_follow(api: Any, control: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    document = await api.until(job, "RUNNING")
    directory = (await api.document(api.directory(job)))["mountPoint"]
    assert os.listdir(directory)
    await api.delete(job)

    async def nothing_left() -> bool:
        left = os.access(directory, os.F_OK)
        return not left and document["batchSystemID"] not in control.site.batch.listing()

    await api.eventually(nothing_left)


async def test_080_a_job_past_its_life_goes(api: Any) -> None:
    job = await api.submit(HELD)
    assert (await api.put(job, {"terminationTime": "2020-01-01T00:00:00+0000"})).json() == {"terminationTime": "OK"}

    async def gone() -> bool:
        return bool((await api.get(job)).status == 404)

    await api.eventually(gone)


@pytest.mark.parametrize(
    "config", [SiteConfig(timing=evolve(Timing.fast(), vanished_s=1.5, filesystem_s=0.5), execute="virtual")]
)
async def test_081_a_killed_job_is_noticed_late(api: Any, control: Any) -> None:
    """RUNNING is said for two grace times more; seconds here, minutes on a real server."""
    job = await api.submit({"Executable": "sleep 60"})
    document = await api.until(job, "RUNNING")
    await control.site.batch.cancel(document["batchSystemID"], "TIMEOUT")
    await asyncio.sleep(0.3)
    assert await api.status(job) == "RUNNING"
    document = await api.ended(job)
    assert document["status"] == "FAILED"
    assert document["statusMessage"].startswith("Failed: Job did not complete normally on BSS")
    assert "exitCode" not in document


async def test_082_a_failing_pre_command_fails_the_job(api: Any) -> None:
    _, document = await api.run({"Executable": "true", "User precommand": "exit 1"})
    assert document["status"] == "FAILED"
    assert document["statusMessage"].startswith("Pre-command(s) failed")


async def test_082_pre_and_post_commands_run_in_the_job_directory(api: Any) -> None:
    job, document = await api.run(
        {"Executable": "cat before", "User precommand": "echo pre > before", "User postcommand": "cat before > after"}
    )
    assert document["status"] == "SUCCESSFUL"
    assert await api.output(job) == "pre\n"
    assert await api.output(job, "after") == "pre\n"


@pytest.mark.parametrize("word", ["true", None, False])
async def test_083_a_missing_import_fails_the_job(api: Any, word: object) -> None:
    """A JSON boolean is not read and means true."""
    missing = {"From": "https://127.0.0.1:1/nothing", "To": "a"} | ({} if word is None else {"FailOnError": word})
    _, document = await api.run({"Executable": "true", "Imports": [missing]})
    assert document["status"] == "FAILED"
    assert document["statusMessage"].startswith("Staging in failed")


async def test_083_unless_it_may_be_missing(api: Any) -> None:
    missing = {"From": "https://127.0.0.1:1/nothing", "To": "a", "FailOnError": "false"}
    _, document = await api.run({"Executable": "true", "Imports": [missing]})
    assert document["status"] == "SUCCESSFUL"
