"""A relay as a process, as a deployment would start it: `relay_process.py STATE`, secrets in `STATE/vault.json`."""

import asyncio
import json
import logging
import sys
from pathlib import Path

from tests.contract.relay.world import direct, settings

from moorage.core.model import SessionId
from moorage.core.secret import Secret
from moorage.relay.process import AlreadyRunning, main


class FileVault:
    """Gate secrets from a file that the test writes; read for each question, as another process may add some."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        return Secret(json.loads(self._file.read_text())[f"{session} {attempt}"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    state = Path(sys.argv[1])
    try:
        asyncio.run(main(state, direct(), FileVault(state / "vault.json"), settings()))
    except AlreadyRunning as error:
        logging.getLogger(__name__).info("%s", error)
