"""
A private PostgreSQL server for the tests (Debian's package `postgresql-15`), on a unix socket in its own directory.

It refuses to run as root; then it runs as user `postgres`, and dies with the process that started it.
"""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = {"fsync": "off", "listen_addresses": "", "shared_buffers": "16MB", "max_connections": "60"}


class NotInstalled(Exception):
    """There is no PostgreSQL on this machine."""


def binaries() -> Path:
    """The folder of `initdb` and `postgres`; raises `NotInstalled`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if path := shutil.which("initdb"):
        return Path(path).parent
    raise NotInstalled("PostgreSQL is not installed (Debian: apt-get install postgresql-15)")


@contextmanager
def server(**settings: str) -> Iterator[str]:
    """
    A running server; the value is the directory of its socket, also its host name in a URL.

    Args:
        settings: As in postgresql.conf; they replace `SETTINGS`.
    """
    bin_ = binaries()
    # Short, because a socket's path has 107 bytes at most, and below /tmp, which every user can enter.
    home = Path(tempfile.mkdtemp(prefix="moorage-pg-", dir="/tmp"))
    prefix: list[str] = []
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(home, user.pw_uid, user.pw_gid)
        prefix = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--pdeathsig=TERM"]
    try:
        data = home / "data"
        _run([*prefix, bin_ / "initdb", "-D", data, "--no-sync", "-A", "trust", "-U", "moorage", "-E", "UTF8"], home)
        options = [f"-c{name}={value}" for name, value in {**SETTINGS, **settings}.items()]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [*prefix, bin_ / "postgres", "-D", data, "-k", home, *options], stdout=log, stderr=log, cwd=home
            )
        try:
            _wait(bin_, home, process)
            yield str(home)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def create_database(host: str, name: str) -> str:
    """A new database on a server; its URL."""
    _run([binaries() / "createdb", "-h", host, "-U", "moorage", name], Path(host))
    return f"postgresql://moorage@/{name}?host={host}"


def _run(command: list[object], cwd: Path) -> None:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')}")


def _wait(bin_: Path, home: Path, process: "subprocess.Popen[bytes]") -> None:
    ask = [str(bin_ / "pg_isready"), "-q", "-h", str(home), "-t", "1"]
    for _ in range(300):
        if process.poll() is not None:
            break
        if subprocess.run(ask, check=False).returncode == 0:
            return
        time.sleep(0.02)
    sys.stderr.write((home / "log").read_text(errors="replace"))
    raise RuntimeError("PostgreSQL did not start")
