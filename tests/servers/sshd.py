"""
A private sshd for the tests (Debian's package `openssh-server`), on 127.0.0.1, for the user who runs them.

Source: sshd_config(5); measured on OpenSSH 9.2p1: a first login after 0.2 s.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import frozen

PACKAGES = "openssh-server openssh-client"

SETTINGS: Mapping[str, str] = {
    "ListenAddress": "127.0.0.1",
    "StrictModes": "no",  # the keys are below /tmp
    "UsePAM": "no",
    "PasswordAuthentication": "no",
    "PermitRootLogin": "prohibit-password",
    "MaxStartups": "500",
    "PidFile": "none",
    "Subsystem": "sftp internal-sftp",
    "LogLevel": "ERROR",
}


class NotInstalled(Exception):
    """There is no sshd on this machine; the text names the packages."""


@frozen
class Sshd:
    """
    A running server.

    Args:
        host_key: As in known_hosts, without the host.
        key_file: A private key that it accepts for `user`.
        process: Its listener; connections are other processes of the same group.
    """

    home: Path
    port: int
    host_key: str
    key_file: Path
    user: str
    process: "subprocess.Popen[bytes]"


def require() -> str:
    """The path of sshd, which wants to be started by it; raises `NotInstalled`."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None or shutil.which("ssh-keygen") is None:
        raise NotInstalled(f"no sshd (Debian: apt-get install {PACKAGES})")
    return path


@contextlib.contextmanager
def server(**settings: str) -> Iterator[Sshd]:
    """
    Args:
        settings: As in sshd_config; they replace `SETTINGS`.

    Raises:
        NotInstalled: Not on this machine.
        RuntimeError: It did not come up; the text is what it printed.
    """
    program = require()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd does not start without it
    home = Path(tempfile.mkdtemp(prefix="moorage-sshd-", dir="/tmp"))
    home.chmod(0o755)
    try:
        for name in ("host_key", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", home / name], check=True)
        (home / "authorized_keys").write_bytes((home / "id.pub").read_bytes())
        port = _free_port()
        lines = {**SETTINGS, "Port": str(port), "HostKey": str(home / "host_key"), **settings}
        lines.setdefault("AuthorizedKeysFile", str(home / "authorized_keys"))
        # Start-up files of whoever runs the tests can take longer than what is tested.
        (home / "empty").mkdir()
        lines.setdefault("SetEnv", f"HOME={home / 'empty'}")
        (home / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                # With a test that is killed it ends as well.
                ["setpriv", "--pdeathsig=TERM", program, "-D", "-e", "-f", home / "sshd_config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait(home, process, port)
            host_key = " ".join((home / "host_key.pub").read_text().split()[:2])
            yield Sshd(home, port, host_key, home / "id", getpass.getuser(), process)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait(home: Path, process: "subprocess.Popen[bytes]", port: int) -> None:
    until = time.monotonic() + 10
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.settimeout(1)
            if sock.recv(4) == b"SSH-":
                return
        time.sleep(0.02)
    raise RuntimeError(f"sshd does not come up: {(home / 'log').read_text(errors='replace')[-2000:]}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """The listener and every connection it made; they have sessions of their own and die when it asks them to."""
    children = _children(process.pid)
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1]) == parent:
                    found.append(int(name))
    return [pid for each in found for pid in (each, *_children(each))]
