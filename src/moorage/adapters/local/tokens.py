"""Ordinary sources of tokens, for `LocalVault`: the same right for everybody. The Hub adapter adds one per person."""

import asyncio
from pathlib import Path

from moorage.core.model import Owner
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unauthorised, Unreachable

from .vault import TokenSource

TOKEN_LIMIT = 65_536
"""Bytes of a token file; the longest tokens that we know, with all groups of a user, have about 8,000."""


def fixed(secret: Secret) -> TokenSource:
    """One token for everybody, for as long as the process lives."""

    async def source(_owner: Owner) -> Token:
        return Token(secret)

    return source


def from_file(path: Path) -> TokenSource:
    """The content of a file, read anew for each call: whoever renews the token only has to replace the file."""

    def read() -> str:
        with path.open("rb") as file:
            return file.read(TOKEN_LIMIT).decode("utf-8").strip()

    async def source(_owner: Owner) -> Token:
        try:
            text = await asyncio.to_thread(read)
        except FileNotFoundError as error:
            raise Unauthorised(f"there is no token file {path}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise Unreachable(f"the token file {path} cannot be read: {type(error).__name__}") from error
        if not text:
            raise Unauthorised(f"the token file {path} is empty")
        return Token(Secret(text))

    return source
