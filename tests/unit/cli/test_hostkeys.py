"""`moorage hostkeys`: what hosts show is printed for a human, never learnt."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from moorage.cli import Exit, run


class Door(paramiko.ServerInterface):
    """Lets nobody in."""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"


class Host:
    """An SSH server on loopback that shows its keys."""

    def __init__(self) -> None:
        self.keys = [paramiko.ECDSAKey.generate(), paramiko.RSAKey.generate(2048)]
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                transport = paramiko.Transport(connection)
                for key in self.keys:
                    transport.add_server_key(key)
                try:
                    transport.start_server(server=Door())
                except (paramiko.SSHException, EOFError, OSError):
                    pass
                else:
                    transport.join(10)
                finally:
                    transport.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(20)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_keys_of_a_host_are_shown(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    """Also beside a host that does not answer; the code says that something is missing."""
    silent = closed_port()
    arguments = ["hostkeys", "--json", "--host", f"127.0.0.1:{host.port}", "--host", f"127.0.0.1:{silent}"]
    assert run(arguments) == Exit.UNREACHABLE
    told = json.loads(capsys.readouterr().out)
    assert {each["key"] for each in told["keys"]} == {key.get_base64() for key in host.keys}
    assert all(each["fingerprint"].startswith("SHA256:") and not each["pinned"] for each in told["keys"])
    assert told["failed"] == [f"127.0.0.1:{silent}: Connection refused"]


def test_the_keys_of_a_configured_system_are_compared(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = host.keys[0]
    config = tmp_path / "moorage.yaml"
    config.write_text(f"""\
deployment: demo
systems:
  one:
    kind: slurm
    options:
      hosts: ["localhost"]
      port: {host.port}
      user: me
      key_file: /nowhere/key
      host_keys: ["{key.get_name()} {key.get_base64()}"]
  two: {{kind: sim}}
""")
    assert run(["hostkeys", "one", "--config", str(config)]) == Exit.FINE
    shown = capsys.readouterr().out
    rows = {line.split()[1]: line.split()[-1] for line in shown.partition("host_keys:")[0].splitlines()[1:] if line}
    assert rows == {"ecdsa-sha2-nistp256": "yes", "ssh-rsa": "no"}
    assert f'  - "localhost {key.get_name()} {key.get_base64()}"' in shown
    assert run(["hostkeys", "two", "--config", str(config)]) == Exit.USAGE
    assert run(["hostkeys", "three", "--config", str(config)]) == Exit.USAGE


@pytest.mark.parametrize("arguments", [[], ["one", "--host", "two"], ["--host", "a:b"], ["--host", "a:0"]])
def test_what_cannot_be_asked_is_told(arguments: list[str]) -> None:
    assert run(["hostkeys", *arguments]) == Exit.USAGE


def test_something_that_is_no_ssh_server_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)

        thread = threading.Thread(target=answer)
        thread.start()
        assert run(["hostkeys", "--host", f"127.0.0.1:{port}"]) == Exit.UNREACHABLE
        thread.join(10)
    assert "no SSH server that we understand" in capsys.readouterr().err
