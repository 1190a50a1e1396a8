"""Certificates of the login and what a hostile login node asks for (F-T16, F-T17)."""

import math
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve, frozen
from tests.contract.dialer.ssh_world import JOB, Site, dialled, listening
from tests.contract.system.ssh_world import simulated
from tests.servers import sshd
from tests.servers.wire import Wire

from moorage.adapters.ssh.hosts import certificate_end
from moorage.ports.dialer import Dialer
from moorage.ports.errors import Unauthorised

SSH = ("openssh", "paramiko")


@frozen
class Authority:
    """Signs keys. Its sshd trusts it and knows no key of its own."""

    home: Path
    server: sshd.Sshd

    @property
    def certificate(self) -> Path:
        return self.home / "user-cert.pub"

    def sign(self, valid: str) -> None:
        key = self.home / "user.pub"
        words = ["-s", self.home / "ca", "-I", "bench", "-n", self.server.user, "-V", valid, key]
        subprocess.run(["ssh-keygen", "-q", *words], check=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    home = tmp_path_factory.mktemp("authority")
    try:
        for name in ("ca", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / name], check=True)
        with sshd.server(TrustedUserCAKeys=str(home / "ca.pub"), AuthorizedKeysFile="none") as made:
            yield Authority(home, made)
    except (sshd.NotInstalled, FileNotFoundError) as error:
        pytest.skip(str(error))


async def answers(dialer: Dialer, endpoint: object) -> None:
    async with dialled(dialer, endpoint) as (reader, writer):  # type: ignore[arg-type]
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"


@pytest.mark.parametrize("kind", SSH)
async def test_a_certificate_that_is_over_is_not_shown_and_a_renewed_one_is_taken(
    authority: Authority, kind: str, tmp_path: Path
) -> None:
    """F-T16: nobody is asked, so nobody counts a failed login; with the new file the next dial goes through."""
    wire = Wire(authority.server.port)
    site = Site(kind, authority.server, tmp_path).but(
        port=wire.port, key_file=str(authority.home / "user"), certificate_file=str(authority.certificate)
    )
    async with wire.open(), listening() as endpoint, site.but(port=wire.port).open() as dialer:
        authority.sign("-2h:-1h")
        for _ in range(3):
            with pytest.raises(Unauthorised, match="over"):
                await dialer.dial(endpoint, JOB)
        assert wire.connects == 0
        authority.sign("+1h")
        async with dialled(dialer, endpoint) as (reader, writer):
            authority.sign("-2h:-1h")  # a connection that is there stays, and takes further streams
            await answers(dialer, endpoint)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert wire.connects == 1


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_the_end_of_a_certificate_is_read_from_its_file(tmp_path: Path, kind: str) -> None:
    for name in ("ca", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", tmp_path / name], check=True)
    for valid, end in (("20300101000000Z:20300101000001Z", 1893456001.0), ("always:forever", math.inf)):
        words = ["-s", tmp_path / "ca", "-I", "x", "-n", "y", "-V", valid, tmp_path / "key.pub"]
        subprocess.run(["ssh-keygen", "-q", *words], check=True)
        text = (tmp_path / "key-cert.pub").read_text()
        assert certificate_end(text) == end
        for cut in (0, 10, 60, 200):
            with pytest.raises(ValueError, match="no certificate"):
                certificate_end(text[:cut])
    with pytest.raises(ValueError, match="no certificate"):
        certificate_end((tmp_path / "key.pub").read_text())


@pytest.mark.parametrize("kind", SSH)
async def test_what_a_login_node_asks_for_by_itself_is_not_granted(kind: str, tmp_path: Path) -> None:
    """F-T17, I50: its requests, forwards and channels towards us come to nothing, and streams are as good as ever."""
    with simulated() as (node, login):
        server = sshd.Sshd(tmp_path, login.port, login.host_key, login.key_file, login.user, None)  # type: ignore[arg-type]
        node.faults.add({"fault": "F-T17"})
        async with listening() as endpoint, Site(kind, server, tmp_path).open() as dialer:
            for _ in range(3):
                await answers(dialer, evolve(endpoint, host="127.0.0.1"))
