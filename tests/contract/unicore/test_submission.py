"""Cases 31 to 65: submission, the job's document, and how every mistake shows up: late."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

HELD = {"Executable": "true", "haveClientStageIn": "true"}
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}")
KEYS = (
    "status statusMessage submissionTime terminationTime queue batchSystemID jobType name consumedTime log "
    "submissionPreferences owner acl tags _links"
)
LINKS = "self details submitted action:start action:abort action:restart forwarding workingDirectory parentTSS"


async def test_031_a_job_is_accepted_and_listed(api: Any) -> None:
    job = await api.submit({"Executable": "date"})
    assert job.startswith(f"{api.base}/jobs/")
    assert job in (await api.document("/jobs"))["jobs"]


@pytest.mark.parametrize("body", [b"[]", b"hello", b'{"Executable": ', b'"x"', b'{"a":1,"a":2}', b"\xff{}"])
async def test_032_what_is_no_object_is_500(api: Any, body: bytes) -> None:
    reply = await api.ask("POST", "/jobs", data=body, headers={"Content-Type": "application/json"})
    assert reply.status == 500
    assert reply.error.startswith("Could not submit job")


async def test_033_another_content_type_is_415(api: Any) -> None:
    reply = await api.ask("POST", "/jobs", data=b"{}", headers={"Content-Type": "text/plain"})
    assert (reply.status, reply.body) == (415, b"")


async def test_034_a_new_job_has_all_keys_but_an_exit_code(api: Any) -> None:
    document = await api.document(await api.submit(HELD))
    assert set(document) == set(KEYS.split())
    assert isinstance(document["batchSystemID"], str)


async def test_035_success_has_an_exit_code_that_is_text(api: Any) -> None:
    _, document = await api.run({"Executable": "true"})
    assert (document["status"], document["exitCode"], document["statusMessage"]) == ("SUCCESSFUL", "0", "")


async def test_036_another_exit_code_fails_the_job(api: Any) -> None:
    _, document = await api.run({"Executable": "bash -c 'exit 3'"})
    assert (document["status"], document["exitCode"]) == ("FAILED", "3")
    assert "non-zero exit code: <3>" in document["statusMessage"]


@pytest.mark.parametrize("flag", [True, "true"])
async def test_037_unless_it_shall_be_ignored(api: Any, flag: object) -> None:
    _, document = await api.run({"Executable": "bash -c 'exit 3'", "IgnoreNonZeroExitCode": flag})
    assert (document["status"], document["exitCode"]) == ("SUCCESSFUL", "3")


async def test_038_dates_have_a_numeric_zone(api: Any) -> None:
    document = await api.document(await api.submit(HELD))
    assert DATE.fullmatch(document["submissionTime"])
    assert DATE.fullmatch(document["terminationTime"])


async def test_039_links_are_the_same_in_every_state(api: Any) -> None:
    job = await api.submit(HELD)
    seen = [await api.document(job)]
    await api.post(f"{job}/actions/start", {})
    seen.append(await api.ended(job))
    for document in seen:
        assert set(document["_links"]) == set(LINKS.split())
        assert document["_links"]["workingDirectory"]["href"] == api.directory(job)
        assert document["_links"]["forwarding"]["href"] == f"{job}/forward-port"


async def test_040_fields_choose_or_leave_out(api: Any) -> None:
    job, document = await api.run({"Executable": "true"})
    assert set(await api.document(f"{job}?fields=status,exitCode")) == {"status", "exitCode"}
    assert set(document) - set(await api.document(f"{job}?fields=!log,!acl")) == {"log", "acl"}


async def test_041_tags_are_kept_and_replaced(api: Any) -> None:
    job = await api.submit({**HELD, "Tags": ["case41"]})
    assert (await api.document(job))["tags"] == ["case41"]
    reply = await api.put(job, {"tags": ["x"]})
    assert (reply.status, reply.json()) == (200, {"tags": "OK"})
    assert (await api.document(job))["tags"] == ["x"]


async def test_041_a_tag_that_is_no_list_is_ignored(api: Any) -> None:
    assert (await api.document(await api.submit({**HELD, "Tags": "case41"})))["tags"] == []


async def test_042_what_cannot_be_changed_is_said_per_key(api: Any) -> None:
    job = await api.submit(HELD)
    reply = await api.put(job, {"foo": 1, "tags": "a,b"})
    assert reply.status == 200
    assert reply.json() == {"foo": "Property not found or cannot be modified!", "tags": "OK"}
    assert (await api.document(job))["tags"] == ["a", "b"]


async def test_043_the_end_of_life_can_be_moved(api: Any) -> None:
    job = await api.submit(HELD)
    submitted = datetime.strptime((await api.document(job))["submissionTime"], "%Y-%m-%dT%H:%M:%S%z")
    wished = (submitted + timedelta(hours=5)).strftime("%Y-%m-%dT%H:%M:%S%z")
    assert (await api.put(job, {"terminationTime": wished})).json() == {"terminationTime": "OK"}
    shown = (await api.document(job))["terminationTime"]
    assert datetime.strptime(shown, "%Y-%m-%dT%H:%M:%S%z") == datetime.strptime(wished, "%Y-%m-%dT%H:%M:%S%z")
    refused = (await api.put(job, {"terminationTime": "tomorrow"})).json()["terminationTime"]
    assert refused.startswith("Error setting property: ")


async def test_044_an_unknown_job_is_404_for_everything(api: Any) -> None:
    job = f"{api.base}/jobs/0000000000x"
    for reply in (
        await api.get(job),
        await api.put(job, {}),
        await api.delete(job),
        await api.post(f"{job}/actions/abort", {}),
        await api.get(f"{job}/details"),
    ):
        assert (reply.status, reply.body) == (404, b"")


async def test_045_jobs_of_others_are_403_and_unharmed(api: Any, stranger: Any) -> None:
    job, directory = await api.ready_directory()
    for reply in (
        await api.get(job, by=stranger),
        await api.post(f"{job}/actions/abort", {}, by=stranger),
        await api.put(job, {"tags": []}, by=stranger),
        await api.delete(job, by=stranger),
        await api.get(directory, by=stranger),
    ):
        assert (reply.status, reply.body) == (403, b"")
    assert await api.status(job) == "READY"


async def test_046_an_access_list_lets_others_read(api: Any, stranger: Any) -> None:
    job = await api.submit(HELD)
    name = ",".join(part.strip() for part in (await api.document(by=stranger))["client"]["dn"].split(","))
    assert (await api.put(job, {"acl": [f"read:DN:{name}"]})).json() == {"acl": "OK"}
    assert (await api.get(job, by=stranger)).status == 200
    assert (await api.post(f"{job}/actions/abort", {}, by=stranger)).status == 403
    assert (await api.delete(job, by=stranger)).status == 403
    assert job in (await api.document("/jobs", by=stranger))["jobs"]


async def test_047_the_description_can_be_read_back(api: Any) -> None:
    wish = {**HELD, "Environment": {"A": "1"}, "Tags": ["t"]}
    document = await api.document(f"{await api.submit(wish)}/submitted")
    assert {key: document[key] for key in wish} == wish


async def test_048_details_of_what_is_not_submitted_are_not_available(api: Any) -> None:
    job = await api.submit(HELD)
    assert await api.document(f"{job}/details") == {"rawDetailsData": "N/A"}


async def test_049_details_of_a_running_job_are_the_batch_systems_words(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60"})
    document = await api.until(job, "RUNNING")
    details = await api.document(f"{job}/details")
    assert details["JobId"] == document["batchSystemID"]
    assert details["JobState"] == "RUNNING"
    assert details["BatchHost"] in details["NodeList"]
    assert all(isinstance(value, str) for value in details.values())
    assert set(await api.document(f"{job}/details?fields=JobState,Reason")) == {"JobState", "Reason"}


async def test_049_a_waiting_job_says_why(api: Any, control: Any) -> None:
    running = await api.submit({"Executable": "sleep 60", "Resources": {"Queue": "small"}})
    await api.until(running, "RUNNING")
    job = await api.submit({"Executable": "true", "Resources": {"Queue": "small"}})
    await api.until(job, "QUEUED")

    async def reason() -> bool:
        details = await api.document(f"{job}/details")
        return details.get("Reason") == "Resources"

    await api.eventually(reason)
    details = await api.document(f"{job}/details")
    assert (details["JobState"], details["StartTime"], details["NodeList"]) == ("PENDING", "Unknown", "(null)")


MISTAKES = {
    "050 nodes": (
        {"Resources": {"Nodes": 99_999_999}},
        r"Processing failed: .*Resource request <Nodes=99999999> is out of range\. \(Invalid resource request\)",
    ),
    "051 queue": ({"Resources": {"Queue": "nowhere"}}, r".*Resource request <Queue = nowhere> is out of range"),
    "052 resource": ({"Resources": {"Bananas": 3}}, r".*Resource <Bananas> is not available for partition"),
    "053 runtime": ({"Resources": {"Runtime": "1.5h"}}, r".*Could not parse requested resource <Runtime>"),
    "054 argument": ({"Arguments": ["a", 1]}, r"Processing failed: "),
    "055 environment": ({"Environment": {"A": 1}}, r'Processing failed: .*JSONObject\["A"\] is not a string'),
    "057 application": ({"ApplicationName": "Nothing", "ApplicationVersion": "1"}, r".*'Nothing v1' is not available"),
    "062 type": ({"Job type": "foo"}, r".*No enum constant .*JobType\.FOO"),
}


@pytest.mark.parametrize("case", MISTAKES)
async def test_050_to_055_and_057_mistakes_are_accepted_and_fail_later(api: Any, case: str) -> None:
    wrong, message = MISTAKES[case]
    wish = wrong if "ApplicationName" in wrong else {"Executable": "true", **wrong}
    _, document = await api.run(wish)
    assert document["status"] == "FAILED"
    assert re.match(message, document["statusMessage"]), document["statusMessage"]
    assert "exitCode" not in document


async def test_051_a_queue_that_one_may_not_use_is_unknown(api: Any, control: Any) -> None:
    _, document = await api.run({"Executable": "true", "Resources": {"Queue": "secret"}})
    assert "<Queue = secret> is out of range" in document["statusMessage"]


async def test_053_amounts_have_units(api: Any) -> None:
    job = await api.submit({"Executable": "sleep 60", "Resources": {"Runtime": "90 min", "Memory": "1G"}})
    await api.until(job, "RUNNING")
    details = await api.document(f"{job}/details")
    assert details["TimeLimit"] == "01:30:00"
    assert any("Runtime=5400" in line for line in (await api.document(job))["log"])


@pytest.mark.parametrize("environment", [{"A": "x y"}, ["A=x y"]])
async def test_056_environment_is_set_and_quoted(api: Any, environment: Any) -> None:
    job, _ = await api.run({"Executable": 'echo "$A"', "Environment": environment})
    assert await api.output(job) == "x y\n"


async def test_056_the_shell_expands_values(api: Any) -> None:
    """The server writes them between double quotes and nothing more; our own plans must not rely on that."""
    job, _ = await api.run({"Executable": 'echo "$A"', "Environment": {"A": "$(echo expanded)"}})
    assert await api.output(job) == "expanded\n"


async def test_058_unknown_keys_are_ignored(api: Any) -> None:
    _, document = await api.run({"Executable": "true", "Colour": {"deep": [1]}})
    assert document["status"] == "SUCCESSFUL"


async def test_059_an_empty_description_is_done_at_once(api: Any) -> None:
    _, document = await api.run({})
    assert document["status"] == "SUCCESSFUL"
    assert any("Empty job description" in line for line in document["log"])


async def test_060_imports_alone_are_a_job(api: Any) -> None:
    job, document = await api.run({"Imports": [{"From": "inline://x", "To": "sub/a", "Data": "content"}]})
    assert document["status"] == "SUCCESSFUL"
    assert await api.output(job, "sub/a") == "content"


async def test_060_imports_as_an_object_are_never_run(api: Any) -> None:
    job, document = await api.run({"Executable": "true", "Imports": {"a": {"From": "inline://x", "Data": "content"}}})
    assert document["status"] == "SUCCESSFUL"
    assert (await api.read(f"{api.directory(job)}/files/a")).status == 404


async def test_061_output_goes_into_named_files(api: Any) -> None:
    job, _ = await api.run({"Executable": "bash -c 'echo out; echo err >&2'", "Stdout": "o.txt", "Stderr": "e.txt"})
    assert await api.output(job, "o.txt") == "out\n"
    assert await api.output(job, "e.txt") == "err\n"


@pytest.mark.parametrize("word", ["ON_LOGIN_NODE", "interactive"])
async def test_062_a_job_can_run_on_the_login_node(api: Any, word: str) -> None:
    job = await api.submit({"Executable": "sleep 60", "Job type": word})
    document = await api.until(job, "RUNNING")
    assert document["jobType"] == "ON_LOGIN_NODE"
    assert document["queue"] == "N/A"
    assert document["batchSystemID"].startswith("INTERACTIVE_")
    assert await api.document(f"{job}/details") == {"rawDetailsData": "N/A"}


async def test_063_a_job_has_the_name_it_was_given(api: Any) -> None:
    _, named = await api.run({"Executable": "true", "Name": "case 63"})
    _, unnamed = await api.run({"Executable": "true"})
    assert (named["name"], unnamed["name"]) == ("case 63", "UNICORE_Job")


async def test_064_submission_can_be_switched_off(api: Any, admin: Any) -> None:
    said = await api.post(
        api.base.replace("/core", "/admin") + "/actions/ToggleJobSubmission", {"message": "Maintenance"}, by=admin
    )
    assert said.json()["success"] is True
    reply = await api.post("/jobs", {"Executable": "true"})
    assert reply.status == 503
    assert "Maintenance" in reply.error
    assert (await api.document())["server"]["jobSubmission"] == {"enabled": False, "message": "Maintenance"}


@pytest.mark.parametrize(
    "action",
    [
        "AbortJob",
        "GetMemoryUsage",
        "IssueAPIToken",
        "ListPartitions",
        "ResourceAvailability",
        "ShowJobDetails",
        "ShowServerUsageOverview",
    ],
)
async def test_what_an_administrator_can_ask_for(api: Any, admin: Any, action: str) -> None:
    url = api.base.replace("/core", "/admin")
    assert f"action:{action}" in (await api.document(url, by=admin))["_links"]
    said = await api.post(f"{url}/actions/{action}", {"subject": "CN=Somebody"}, by=admin)
    assert set(said.json()) == {"success", "message", "results"}
    assert (await api.post(f"{url}/actions/{action}", {})).status == 403


async def test_065_a_deleted_job_is_gone_with_its_directory(api: Any) -> None:
    job, _ = await api.run({"Executable": "true"})
    assert (await api.delete(job)).status == 204
    for url in (job, api.directory(job)):
        reply = await api.get(url)
        assert (reply.status, reply.body) == (404, b"")
