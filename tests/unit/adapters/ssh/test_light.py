"""What a relay does not use it does not carry."""

import subprocess
import sys

SCRIPT = """
import asyncio, sys
from moorage.adapters.ssh.plugin import ParamikoConfig, make_paramiko
from moorage.core.model import SystemName
from moorage.core.timeouts import Timeouts

class Choices:
    def seed(self): return 1

async def run():
    login = {"hosts": ("login.example.org",), "user": "jupyter", "key_file": "/nowhere"}
    config = ParamikoConfig(**login, host_keys=("ssh-ed25519 " + "A" * 68,))
    dialer = make_paramiko(SystemName("falcon"), config, timeouts=Timeouts(), choices=Choices())
    await dialer.close()
    print(*sorted({"paramiko", "cryptography"} & set(sys.modules)))

asyncio.run(run())
"""


def test_paramiko_is_loaded_with_the_first_stream() -> None:
    """A thousand idle sessions of another system do not pay for a way in that nobody goes."""
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert told.stdout == "\n", told
