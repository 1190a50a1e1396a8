"""A rendered launch plan as a job of the site: its gate is reached through the site, and the lab behind the gate."""

import asyncio
import contextlib
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import pytest

from moorage.core.gate import LabState, Purpose, Verdict, check_answer, check_document, request
from moorage.core.plan import (
    LAUNCHER_NAME,
    PLAN_NAME,
    SCRIPT_NAME,
    SECRET_NAME,
    GatePort,
    LaunchPlan,
    LaunchSecrets,
    Rendered,
    render,
)
from moorage.core.secret import Secret
from moorage.launcher import source

TAG = "m0moorage" + "a" * 26 + "0001"
LAB = """
import http.server, socketserver, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the lab answers " + self.path.encode())
    def address_string(self):
        return "gate"
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Server(sys.argv[1], Handler).serve_forever()
"""
GATES = {
    "tcp": GatePort("tcp", interface="127.0.0.1", host="localhost"),
    "unix": GatePort("unix"),
}


def _description(rendered: Rendered) -> dict[str, Any]:
    """The job as the adapter stages it: five inline imports, one command."""
    files = {
        SCRIPT_NAME: (rendered.script, "rwx------"),
        LAUNCHER_NAME: (source(), "rw-------"),
        PLAN_NAME: (rendered.plan, "rw-------"),
        SECRET_NAME: (rendered.secret.reveal(), "rw-------"),
        "lab.py": (LAB, "rw-------"),
    }
    imports = [
        {"From": "inline://dummy", "To": name, "Data": text, "Permissions": permissions}
        for name, (text, permissions) in files.items()
    ]
    return {"Executable": f"/bin/bash {SCRIPT_NAME}", "Imports": imports, "Tags": [TAG], "Name": TAG}


@pytest.mark.parametrize("kind", GATES)
async def test_bytes_come_from_a_lab_behind_the_gate(api: Any, control: Any, kind: str) -> None:
    key = Secret(os.urandom(32).hex())
    plan = LaunchPlan(TAG, 1, "ada", ("python3", "lab.py", "{socket}"), directory=".", gate=GATES[kind])
    job = await api.submit(_description(render(plan, LaunchSecrets(key))))
    files = f"{api.directory(job)}/files"

    async def reported() -> Any:
        reply = await api.read(f"{files}/endpoint.json")
        return check_document(key, "endpoint", TAG, reply.body) if reply.status == 200 else None

    endpoint = await api.eventually(reported)
    # Neither key nor plan is in what the site tells about the job; the secret file is unlinked by now.
    assert key.reveal() not in (await api.get(job)).body.decode()
    assert (await api.read(f"{files}/{SECRET_NAME}")).status == 404
    place = f"port={endpoint['port']}&host={endpoint['host']}" if kind == "tcp" else f"file={endpoint['socket']}"
    hello = request(key, Purpose.STREAM, TAG, endpoint["nonce"], int(time.time() * 1e6), os.urandom(16).hex())
    reader, writer = await _forwarded(api, f"{job}/forward-port?{place}")
    writer.write(hello.line)
    answer = check_answer(key, hello, await asyncio.wait_for(reader.readline(), 30))
    assert (answer.verdict, answer.lab) in ((Verdict.OK, LabState.STARTING), (Verdict.OK, LabState.SERVING))
    writer.write(b"GET /tree HTTP/1.0\r\n\r\n")
    content = await asyncio.wait_for(reader.read(), 30)
    assert content.startswith(b"HTTP/1.0 200 ")
    assert content.endswith(b"the lab answers /tree")
    writer.close()
    await writer.wait_closed()
    assert (await api.post(f"{job}/actions/abort", {})).status == 204
    assert (await api.ended(job))["statusMessage"] == "Job aborted."

    async def nothing_listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", endpoint["port"]), 1):
            return False
        return True

    if kind == "tcp":
        await api.eventually(nothing_listens)


async def test_a_stranger_to_the_gate_gets_nothing(api: Any, control: Any) -> None:
    """The site lets somebody through who may read the job; the gate does not."""
    key = Secret(os.urandom(32).hex())
    plan = LaunchPlan(TAG, 1, "ada", ("python3", "lab.py", "{socket}"), directory=".", gate=GATES["unix"])
    job = await api.submit(_description(render(plan, LaunchSecrets(key))))

    async def reported() -> bool:
        return bool((await api.read(f"{api.directory(job)}/files/endpoint.json")).status == 200)

    await api.eventually(reported)
    reader, writer = await _forwarded(api, f"{job}/forward-port?file=private/gate.sock")
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def _forwarded(api: Any, url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream to a place of the job, through the upgrade."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    head = f"GET {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: Upgrade\r\n"
    head += f"Upgrade: UNICORE-Socket-Forwarding\r\nAuthorization: {api.user.authorization}\r\n\r\n"
    writer.write(head.encode())
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 101 ")
    return reader, writer
