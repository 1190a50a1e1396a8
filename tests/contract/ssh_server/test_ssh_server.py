"""
What clients expect of an sshd: OpenSSH's own client and paramiko, at the simulated login node and at a real sshd.

The simulated one is worth something only as far as clients cannot tell the two apart.
"""

import contextlib
import getpass
import hashlib
import os
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest
from attrs import frozen
from tests.servers import sshd

from moorage.simulator.servers.ssh import Account, NodeConfig, Timing, serve

SIZE = 4 << 20


@frozen
class Target:
    """A server and how to log in; `home` is where commands begin, if it is empty at the start."""

    port: int
    host_key: str
    key_file: Path
    user: str
    directory: Path

    def openssh(self, *options: str) -> list[str]:
        known = self.directory / "known_hosts"
        known.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        fixed = ("-F", "none", "-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=yes")
        more = ("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i", str(self.key_file))
        return [*fixed, *more, "-o", f"Port={self.port}", *options]

    def ssh(self, *words: str, stdin: str = "", options: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
        command = ["ssh", *self.openssh(*options), f"{self.user}@127.0.0.1", *words]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)

    @contextlib.contextmanager
    def transport(self, key_file: Path | None = None) -> Iterator[Any]:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(sock)
        try:
            transport.start_client(timeout=10)
            key = transport.get_remote_server_key()
            assert f"{key.get_name()} {key.get_base64()}" == self.host_key
            transport.auth_publickey(self.user, paramiko.PKey.from_path(str(key_file or self.key_file)))
            yield transport
        finally:
            transport.close()


@pytest.fixture(params=["simulated", "sshd"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    if request.param == "simulated":
        with serve(NodeConfig(accounts=(Account("alice"),), timing=Timing.fast())) as node:
            assert node.key_file is not None
            yield Target(node.port, node.host_key, node.key_file, "alice", tmp_path)
        return
    try:
        sshd.require()
    except sshd.NotInstalled as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    with sshd.server() as real:
        yield Target(real.port, real.host_key, real.key_file, getpass.getuser(), tmp_path)


@contextlib.contextmanager
def service(answer: Callable[[socket.socket], None], path: Path | None = None) -> Iterator[tuple[str, int]]:
    """A service on this machine: on a port, or on a unix socket. Gives host (or path) and port (or 0)."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                answer(self.request)

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 200
        address_family = socket.AF_INET if path is None else socket.AF_UNIX

        def server_bind(self) -> None:
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()

    with Server(("127.0.0.1", 0) if path is None else str(path), Handler) as server:  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield ("127.0.0.1", server.server_address[1]) if path is None else (str(path), 0)  # type: ignore[misc]
        finally:
            server.shutdown()
            thread.join()


def digest_of_all(sock: socket.socket) -> None:
    """Answers with the digest of everything that came, once the other side has ended its direction."""
    digest = hashlib.sha256()
    while data := sock.recv(65_536):
        digest.update(data)
    sock.sendall(digest.hexdigest().encode())


def much(sock: socket.socket) -> None:
    sock.sendall(PATTERN)


PATTERN = bytes(range(256)) * (SIZE // 256)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(65_536):
        sock.sendall(data)


# OpenSSH's client ----------------------------------------------------------------------------------------------


def test_a_command_has_its_streams_and_its_status(target: Target) -> None:
    done = target.ssh("cat; echo problem >&2; exit 7", stdin="from here\n")
    assert (done.stdout, done.stderr, done.returncode) == ("from here\n", "problem\n", 7)


def test_much_output_arrives_whole(target: Target) -> None:
    done = target.ssh("head -c 3000000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' y >&2")
    assert (len(done.stdout), len(done.stderr), done.returncode) == (3_000_000, 300_000, 0)


def test_much_input_arrives_whole(target: Target) -> None:
    assert target.ssh("wc -c", stdin="x" * 3_000_000).stdout.strip() == "3000000"


def test_sftp_of_openssh(target: Target, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_bytes(PATTERN[:1_000_000])
    batch = f"cd {tmp_path}/there\nput {tmp_path}/file\nrename file other\nget other {tmp_path}/back\nrm other\nls -l\n"
    command = ["sftp", *target.openssh(), "-b", "-", f"{target.user}@127.0.0.1"]
    done = subprocess.run(command, input=batch, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == PATTERN[:1_000_000]
    assert list((tmp_path / "there").iterdir()) == []


def test_a_master_forwards_ports_and_sockets(target: Target, tmp_path: Path) -> None:
    """As the production dialer uses it: forwards to unix sockets of our own, added to a running master."""
    control = tmp_path / "c"
    options = ("-o", f"ControlPath={control}", "-o", "StreamLocalBindUnlink=yes")
    master = ["ssh", *target.openssh(*options), "-M", "-N", f"{target.user}@127.0.0.1"]
    with (
        service(echo) as (host, port),
        service(echo, tmp_path / "lab.sock") as (path, _),
        subprocess.Popen(master, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            _until(control.exists)
            for number, destination in enumerate((f"{host}:{port}", path)):
                forward = f"{tmp_path}/f{number}:{destination}"
                asked = ["ssh", *target.openssh(*options), "-O", "forward", "-L", forward, "127.0.0.1"]
                subprocess.run(asked, check=True, timeout=10, capture_output=True)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(10)
                    sock.connect(f"{tmp_path}/f{number}")
                    sock.sendall(b"ping")
                    assert sock.recv(100) == b"ping"
        finally:
            process.terminate()


def test_keepalives_are_answered(target: Target) -> None:
    """A client that counts unanswered ones stays connected."""
    options = ("-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    assert target.ssh("sleep 2.5; echo still here", options=options).stdout == "still here\n"


def test_another_key_is_not_accepted(target: Target, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    other = Target(target.port, target.host_key, tmp_path / "other", target.user, target.directory)
    done = other.ssh("true")
    assert done.returncode == 255
    assert "Permission denied (publickey" in done.stderr


def test_an_unknown_account_is_not_told_apart_from_a_wrong_key(target: Target) -> None:
    other = Target(target.port, target.host_key, target.key_file, "nosuchuser", target.directory)
    assert "Permission denied (publickey" in other.ssh("true").stderr


# paramiko ------------------------------------------------------------------------------------------------------


def test_a_connection_has_ten_sessions(target: Target) -> None:
    with target.transport() as transport:
        open_ = [transport.open_session() for _ in range(10)]
        with pytest.raises(paramiko.ChannelException):
            transport.open_session()
        open_.pop().close()
        _until(lambda: _opens(transport))


def test_forwards_are_not_counted_as_sessions(target: Target) -> None:
    with service(echo) as address, target.transport() as transport:
        channels = [transport.open_channel("direct-tcpip", address, ("127.0.0.1", 0)) for _ in range(60)]
        for number, channel in enumerate(channels):
            channel.sendall(b"%d" % number)
        for number, channel in enumerate(channels):
            assert channel.recv(100) == b"%d" % number


def test_a_forward_that_nobody_answers_is_not_opened(target: Target) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with target.transport() as transport:
        with pytest.raises(paramiko.ChannelException) as refused:
            transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0))
        assert refused.value.code == 2  # connect failed
        # The connection is as good as before.
        assert _run(transport, "echo fine") == "fine\n"


def test_the_end_of_one_direction_leaves_the_other_open(target: Target) -> None:
    with service(digest_of_all) as address, target.transport() as transport:
        channel = transport.open_channel("direct-tcpip", address, ("127.0.0.1", 0))
        channel.sendall(PATTERN)
        channel.shutdown_write()
        assert channel.recv(100).decode() == hashlib.sha256(PATTERN).hexdigest()
        assert channel.recv(100) == b""


def test_a_download_arrives_whole_and_ends(target: Target) -> None:
    with service(much) as address, target.transport() as transport:
        assert _all_of(transport.open_channel("direct-tcpip", address, ("127.0.0.1", 0))) == PATTERN


def test_a_slow_reader_holds_up_nobody_else(target: Target) -> None:
    """A forward whose reader does not read fills its own window and nothing else."""
    with service(much) as slow, service(echo) as quick, target.transport() as transport:
        held = transport.open_channel("direct-tcpip", slow, ("127.0.0.1", 0), window_size=65_536)
        other = transport.open_channel("direct-tcpip", quick, ("127.0.0.1", 0))
        for _ in range(20):
            other.sendall(b"ping")
            assert other.recv(100) == b"ping"
        assert _all_of(held) == PATTERN


def test_what_a_client_may_not_ask_for_is_refused(target: Target) -> None:
    with target.transport() as transport:
        for kind in ("x11", "nonsense@example.org"):
            with pytest.raises(paramiko.SSHException):
                transport.open_channel(kind, src_addr=("127.0.0.1", 1), dest_addr=("127.0.0.1", 1), timeout=5)


def test_twenty_clients_with_forwards_at_the_same_time(target: Target) -> None:
    def client(number: int) -> bool:
        with target.transport() as transport:
            channels = [transport.open_channel("direct-tcpip", address, ("127.0.0.1", 0)) for _ in range(5)]
            said = _run(transport, f"echo {number}")
            for channel in channels:
                channel.sendall(PATTERN[:100_000])
                channel.shutdown_write()
            whole = all(_all_of(channel) == PATTERN[:100_000] for channel in channels)
            return whole and said == f"{number}\n"

    with service(echo) as address, ThreadPoolExecutor(8) as threads:
        assert all(threads.map(client, range(20)))


def _run(transport: Any, line: str) -> str:
    channel = transport.open_session(timeout=10)
    channel.settimeout(20)
    channel.exec_command(line)
    return _all_of(channel).decode()


def _all_of(channel: Any) -> bytes:
    channel.settimeout(20)
    data = bytearray()
    while piece := channel.recv(65_536):
        data += piece
    return bytes(data)


def _opens(transport: Any) -> bool:
    try:
        transport.open_session()
    except paramiko.ChannelException:
        return False
    return True


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)
