"""Cases 107 to 113: what the site posts to the URL of a job. A real site must be able to reach this machine."""

from typing import Any

import jwt
import pytest
from cryptography import x509

pytestmark = pytest.mark.usefixtures("control")


async def test_107_running_and_done_are_told(api: Any, receiver: Any) -> None:
    job, document = await api.run({"Executable": "sleep 0.15", "Notification": receiver.url})
    await _told(api, receiver, 2)
    assert receiver.said() == ["RUNNING", "SUCCESSFUL"]
    assert receiver.said("href") == [job, job]
    assert receiver.bodies[-1] == {
        "href": job,
        "status": "SUCCESSFUL",
        "statusMessage": "",
        "batchSystemID": document["batchSystemID"],
        "exitCode": "0",
    }
    assert "exitCode" not in receiver.bodies[0]


async def test_108_a_notification_is_signed_by_the_server(api: Any, receiver: Any) -> None:
    await api.run({"Executable": "true", "Notification": receiver.url})
    await _told(api, receiver, 1)
    headers = receiver.headers[0]
    assert headers["Content-Type"].split(";")[0] == "application/json"
    scheme, token = headers["Authorization"].split(" ")
    assert scheme == "Bearer"
    key: Any = x509.load_pem_x509_certificate((await api.get("/certificate", accept="text/plain")).body).public_key()
    claims = jwt.decode(token, key, algorithms=["ES256", "RS256"])
    document = await api.document()
    assert claims["sub"] == document["client"]["dn"].replace(", ", ",")
    assert claims["iss"] == document["server"]["credential"]["dn"]
    assert (claims["etd"], claims["exp"] - claims["iat"]) == ("true", 300)


async def test_109_settings_choose_the_states(api: Any, receiver: Any) -> None:
    settings = {"URL": receiver.url, "status": ["QUEUED", "NOSUCH"]}
    await api.run({"Executable": "true", "NotificationSettings": settings})
    assert receiver.said() == ["QUEUED"]


async def test_109_settings_without_an_url_switch_everything_off(api: Any, receiver: Any) -> None:
    await api.run({"Executable": "true", "Notification": receiver.url, "NotificationSettings": {"status": ["QUEUED"]}})
    assert receiver.bodies == []


async def test_110_batch_states_are_told_by_regular_expression(api: Any, receiver: Any) -> None:
    settings = {"URL": receiver.url, "status": [], "bssStatus": ["RUN.*", "CONF.*"]}
    job, _ = await api.run({"Executable": "sleep 0.15", "NotificationSettings": settings})
    assert receiver.bodies == [{"href": job, "bssStatus": "RUNNING"}]


async def test_111_a_failing_receiver_is_tried_once_and_harms_nobody(api: Any, receiver: Any) -> None:
    receiver.status = 500
    _, document = await api.run({"Executable": "sleep 0.15", "Notification": receiver.url})
    await _told(api, receiver, 2)
    assert document["status"] == "SUCCESSFUL"
    assert len(receiver.bodies) == 2
    assert any(f"Could not notify <{receiver.url}>" in line for line in document["log"])


async def test_111_a_receiver_that_is_not_there_harms_nobody(api: Any) -> None:
    _, document = await api.run({"Executable": "true", "Notification": "http://127.0.0.1:1/nobody"})
    assert document["status"] == "SUCCESSFUL"


async def test_112_an_abort_is_told_and_a_delete_is_not(api: Any, receiver: Any) -> None:
    job = await api.submit({"Executable": "sleep 60", "Notification": receiver.url})
    await api.until(job, "RUNNING")
    await api.post(f"{job}/actions/abort", {})
    await api.ended(job)
    await _told(api, receiver, 2)
    assert receiver.said() == ["RUNNING", "FAILED"]
    assert receiver.bodies[-1]["statusMessage"] == "Job aborted."
    job = await api.submit({"Executable": "sleep 60", "Notification": receiver.url})
    await api.until(job, "RUNNING")
    await _told(api, receiver, 3)
    await api.delete(job)

    async def gone() -> bool:
        return not api.control.site.batch.listing()

    await api.eventually(gone)
    assert receiver.said() == ["RUNNING", "FAILED", "RUNNING"]


async def test_113_plain_http_will_do(api: Any, receiver: Any) -> None:
    assert receiver.url.startswith("http://")
    _, document = await api.run({"Executable": "true", "Notification": receiver.url})
    await _told(api, receiver, 1)
    assert any(
        f"Notified <{receiver.url}>" in line for line in (await api.document(document["_links"]["self"]["href"]))["log"]
    )


async def _told(api: Any, receiver: Any, number: int) -> None:
    async def enough() -> bool:
        return len(receiver.bodies) >= number

    await api.eventually(enough)
