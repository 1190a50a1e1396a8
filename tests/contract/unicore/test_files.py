"""Cases 84 to 106: the working directory and its files. 106, which is about the client, is in test_clients.py."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest

HELD = {"Executable": "true", "haveClientStageIn": "true"}
CONTENT = b"0123456789 content"


async def _with_file(api: Any, name: str = "f.txt", content: bytes = CONTENT) -> str:
    """The URL of `files` of a waiting job that has one file."""
    _, directory = await api.ready_directory()
    reply = await api.ask("PUT", f"{directory}/files/{name}", data=content)
    assert (reply.status, reply.body) == (204, b"")
    return f"{directory}/files"


async def test_084_a_new_directory_becomes_ready(api: Any) -> None:
    job = await api.submit(HELD)
    document = await api.document(api.directory(job))
    while document["resourceStatus"] != "READY":
        assert document["resourceStatus"] == "INITIALIZING"
        assert "mountPoint" not in document
        await asyncio.sleep(api.pause_s)
        document = await api.document(api.directory(job))
    assert document["mountPoint"].startswith("/")
    assert isinstance(document["freeSpace"], int) or document["freeSpace"] == "-1"
    assert "BFT" in document["protocols"]


async def test_084_a_directory_that_is_not_there_is_refused(api: Any, control: Any) -> None:
    """The real server leaves its root undefined; here it is an error that nobody overlooks."""
    job = await api.submit(HELD)
    reply = await api.ask("PUT", f"{api.directory(job)}/files/a", data=b"x")
    assert reply.status == 500
    assert "not ready" in reply.error


async def test_085_files_are_below_the_storage(api: Any) -> None:
    job, directory = await api.ready_directory()
    links = (await api.document(directory))["_links"]
    assert links["files"]["href"] == f"{directory}/files"
    assert links["job"]["href"] == job
    assert {"self", "action:copy", "action:rename"} <= set(links)


async def test_086_what_was_put_is_read(api: Any) -> None:
    files = await _with_file(api, "a/b.txt")
    reply = await api.read(f"{files}/a/b.txt")
    assert (reply.status, reply.body) == (200, CONTENT)
    assert reply.headers["Content-Type"] == "application/octet-stream"


async def test_087_a_file_is_described(api: Any) -> None:
    reply = await api.get(f"{await _with_file(api)}/f.txt")
    document = reply.json()
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert (document["isDirectory"], document["size"]) == (False, len(CONTENT))
    assert document["permissions"].startswith("rw-")
    assert "parentStorage" in document["_links"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("bytes=5-8", b"5678"), ("bytes=5-", CONTENT[5:]), ("bytes=-4", CONTENT[-4:]), ("bytes=15-99", CONTENT[15:])],
)
async def test_088_ranges(api: Any, asked: str, expected: bytes) -> None:
    reply = await api.get(f"{await _with_file(api)}/f.txt", accept="application/octet-stream", headers={"Range": asked})
    assert (reply.status, reply.body) == (206, expected)
    assert "Content-Range" not in reply.headers


@pytest.mark.parametrize("asked", ["bytes=9-2", "bytes=x-", "lines=1-2", "bytes=-", "bytes=1-2,4-5"])
async def test_089_a_wrong_range_is_416(api: Any, asked: str) -> None:
    reply = await api.get(f"{await _with_file(api)}/f.txt", accept="application/octet-stream", headers={"Range": asked})
    assert reply.status == 416
    assert reply.error


@pytest.mark.parametrize("accept", ["application/json", "application/octet-stream"])
async def test_090_a_missing_file_is_404(api: Any, accept: str) -> None:
    _, directory = await api.ready_directory()
    reply = await api.get(f"{directory}/files/nothing/here", accept=accept)
    assert (reply.status, reply.body) == (404, b"")


async def test_091_a_directory_is_listed_and_has_no_content(api: Any) -> None:
    files = await _with_file(api, "sub/f.txt")
    await api.ask("PUT", f"{files}/top", data=b"x")
    assert (await api.get(files, accept="application/octet-stream")).status == 406
    for root in (files, f"{files}/"):
        document = await api.document(root)
        assert document["isDirectory"] is True
        assert {"/top", "/sub/"} <= set(document["content"])
        assert document["content"]["/sub/"]["isDirectory"] is True
    assert "next" in document["_links"]


async def test_092_keys_are_paths_from_the_root(api: Any) -> None:
    files = await _with_file(api, "sub/f.txt")
    content = (await api.document(f"{files}/sub"))["content"]
    assert set(content) == {"/sub/f.txt"}
    assert content["/sub/f.txt"]["size"] == len(CONTENT)


async def test_093_files_are_renamed_and_copied(api: Any) -> None:
    files = await _with_file(api)
    actions = files.removesuffix("/files") + "/actions"
    reply = await api.post(f"{actions}/rename", {"from": "f.txt", "to": "new.txt"})
    assert (reply.status, reply.body) == (204, b"")
    assert (await api.read(f"{files}/f.txt")).status == 404
    assert (await api.read(f"{files}/new.txt")).body == CONTENT
    assert (await api.post(f"{actions}/copy", {"from": "/new.txt", "to": "/sub/copy.txt"})).status == 204
    for name in ("new.txt", "sub/copy.txt"):
        assert (await api.read(f"{files}/{name}")).body == CONTENT
    reply = await api.post(f"{actions}/rename", {"from": "new.txt"})
    assert (reply.status, reply.body) == (400, b"")


async def test_094_renaming_what_is_missing_is_500(api: Any) -> None:
    _, directory = await api.ready_directory()
    reply = await api.post(f"{directory}/actions/rename", {"from": "nothing", "to": "something"})
    assert reply.status == 500
    assert reply.error


async def test_095_directories_are_made_again_and_again(api: Any) -> None:
    _, directory = await api.ready_directory()
    for _ in range(2):
        reply = await api.post(f"{directory}/files/newdir", {})
        assert reply.status == 201
        assert reply.headers["Location"].endswith("/files/newdir")
    assert "/newdir/" in (await api.document(f"{directory}/files"))["content"]
    await api.ask("PUT", f"{directory}/files/file", data=b"x")
    reply = await api.post(f"{directory}/files/file", {})
    assert reply.status == 500
    assert reply.error


async def test_096_files_are_deleted(api: Any) -> None:
    files = await _with_file(api, "sub/f.txt")
    assert (await api.delete(f"{files}/sub/f.txt")).status == 204
    assert (await api.get(f"{files}/sub/f.txt")).status == 404
    assert (await api.delete(f"{files}/sub")).status == 204
    assert (await api.delete(f"{files}/sub")).status == 204
    assert (await api.get(f"{files}/sub")).status == 404


async def test_097_permissions_are_changed(api: Any) -> None:
    files = await _with_file(api)
    reply = await api.put(f"{files}/f.txt", {"permissions": "rwx------"})
    assert (reply.status, reply.json()) == (200, {"permissions": "OK"})
    assert (await api.document(f"{files}/f.txt"))["permissions"].startswith("rwx")
    assert (await api.put(f"{files}/f.txt", {"permissions": "nonsense"})).json()["permissions"] != "OK"
    assert (await api.put(f"{files}/nothing", {"permissions": "rwx"})).status == 404


async def test_098_a_shorter_upload_replaces_the_file(api: Any) -> None:
    files = await _with_file(api)
    await api.ask("PUT", f"{files}/f.txt", data=b"short")
    assert (await api.read(f"{files}/f.txt")).body == b"short"


async def test_099_an_upload_can_be_chunked(api: Any) -> None:
    _, directory = await api.ready_directory()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(50):
            yield bytes([number]) * 10_000

    reply = await api.ask("PUT", f"{directory}/files/big", data=pieces())
    assert reply.status == 204
    expected = b"".join(bytes([number]) * 10_000 for number in range(50))
    assert (await api.read(f"{directory}/files/big")).body == expected


@pytest.mark.parametrize("name", ["two words", "grün", "a#b", "a+b", "a&b=c;d", "'quoted\""])
async def test_100_names_with_anything_in_them(api: Any, name: str) -> None:
    _, directory = await api.ready_directory()
    url = f"{directory}/files/{quote(name)}"
    assert (await api.ask("PUT", url, data=CONTENT)).status == 204
    assert f"/{name}" in (await api.document(f"{directory}/files"))["content"]
    assert (await api.read(url)).body == CONTENT


async def test_100_nobody_leaves_the_directory(api: Any, control: Any) -> None:
    """The real server has only Unix permissions for that; a simulated one runs in the account of its user."""
    job, directory = await api.ready_directory()
    for path in ("%2e%2e/%2e%2e/secret", "%252e%252e/x", "..%2f..%2fetc/passwd", "a/%2e%2e/%2e%2e/b", "%5c..%5c..%5cb"):
        for method in ("GET", "PUT", "DELETE", "POST"):
            reply = await api.ask(method, f"{directory}/files/{path}")
            assert reply.status in (403, 404), (method, path)
    assert (await api.post(f"{directory}/actions/copy", {"from": "/../../x", "to": "y"})).status == 403
    root = (await api.document(directory))["mountPoint"]
    os.symlink("/etc", f"{root}/outside")
    assert (await api.read(f"{directory}/files/outside/passwd")).status == 403
    assert await api.status(job) == "READY"


async def test_101_inline_data_is_staged_to_the_letter(api: Any) -> None:
    imports = [
        {"From": "inline://dummy", "To": "s.sh", "Data": "x\n", "Permissions": "rwx------"},
        {"From": "inline://dummy", "To": "deep/down/umlaut", "Data": "ü $HOME `x` \\n \u0001"},
    ]
    job, _ = await api.run({"Executable": "true", "Imports": imports})
    files = f"{api.directory(job)}/files"
    assert (await api.read(f"{files}/s.sh")).body == b"x\n"
    assert (await api.document(f"{files}/s.sh"))["permissions"] in ("rwx------", "rwx")
    assert (await api.read(f"{files}/deep/down/umlaut")).body.decode() == "ü $HOME `x` \\n \u0001"


async def test_102_lines_get_their_ends(api: Any) -> None:
    job, _ = await api.run({"Executable": "true", "Imports": [{"From": "inline://x", "To": "f", "Data": ["a", "b\n"]}]})
    assert await api.output(job, "f") == "a\nb\n"


async def test_103_data_needs_no_source_and_is_not_kept(api: Any) -> None:
    job, _ = await api.run({"Executable": "true", "Imports": [{"To": "f", "Data": "secret words"}]})
    assert await api.output(job, "f") == "secret words"
    kept = await api.document(f"{job}/submitted")
    assert kept["Imports"][0]["Data"] == "n/a"


async def test_104_output_is_there_when_the_job_runs(api: Any) -> None:
    job, directory = await api.ready_directory(
        {"Executable": "bash -c 'echo one; sleep 0.3; echo two; sleep 60'", "haveClientStageIn": "true"}
    )
    assert (await api.read(f"{directory}/files/stdout")).status == 404
    await api.post(f"{job}/actions/start", {})
    await api.until(job, "RUNNING")

    async def said(text: str) -> bool:
        reply = await api.read(f"{directory}/files/stdout")
        return bool(reply.status == 200 and reply.body.decode().startswith(text))

    await api.eventually(lambda: said("one\n"))
    await api.eventually(lambda: said("one\ntwo\n"))


async def test_105_directories_of_others_stay_closed(api: Any, stranger: Any) -> None:
    files = await _with_file(api)
    for reply in (
        await api.get(files, by=stranger),
        await api.get(f"{files}/f.txt", by=stranger, accept="application/octet-stream"),
        await api.ask("PUT", f"{files}/f.txt", data=b"x", by=stranger),
        await api.delete(f"{files}/f.txt", by=stranger),
    ):
        assert reply.status in (403, 404, 500)
        assert CONTENT not in reply.body
    assert (await api.read(f"{files}/f.txt")).body == CONTENT
