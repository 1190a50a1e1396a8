"""Who may log in to the demonstration."""

# mypy: disable-error-code="misc"
# JupyterHub has no types: its classes are Any.
import asyncio
import hmac
import json
from pathlib import Path
from typing import Any

from jupyterhub.auth import Authenticator
from traitlets import Unicode


class DemoAuthenticator(Authenticator):
    """A password for each user, from a file that only the demonstration's owner can read."""

    file = Unicode(help="JSON with a password for each name.").tag(config=True)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """The name, if the password is the one in the file."""
        text = await asyncio.to_thread(Path(self.file).read_text, "utf-8")
        passwords: dict[str, str] = json.loads(text)
        expected = passwords.get(data["username"], "")
        if expected and hmac.compare_digest(expected.encode(), data["password"].encode()):
            return data["username"]
        return None
