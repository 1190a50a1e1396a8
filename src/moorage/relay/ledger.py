"""What the relay must find again after its own end: paths with their addresses, and addresses that rest."""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from attrs import frozen

from moorage.core.model import SessionId

from .target import Target, from_data

QUARANTINE_S = 120.0
"""An address that was one session's is not another's before. Source: reliability specification, B_quarantine."""

_TABLES = """
CREATE TABLE IF NOT EXISTS paths (session TEXT PRIMARY KEY, port INTEGER NOT NULL, target TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS resting (port INTEGER PRIMARY KEY, until REAL NOT NULL, session TEXT NOT NULL);
"""
_PORTS = "SELECT session, port FROM paths"
_RESTING = "SELECT port, until, session FROM resting"


@frozen
class Entry:
    """A path and its port; 0 for one that listens on a unix socket."""

    target: Target
    port: int


class Ledger:
    """
    One SQLite file, 0600, written by the relay alone.

    Its loss is no disaster: the sessions are in the Hub's store and their paths are opened anew. So it is not
    synchronised to the disk with every path; it survives the end of the process, which is what it is for.
    """

    def __init__(self, file: Path, wall_s: Callable[[], float] = time.time) -> None:
        file.touch(mode=0o600)
        self._wall_s = wall_s
        self._database = sqlite3.connect(file, isolation_level=None)
        # Nobody else reads or writes it while we live, so the locks for that can be taken once.
        pragmas = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;"
        self._database.executescript(pragmas + _TABLES)
        self._database.execute("DELETE FROM resting WHERE until <= ?", (wall_s(),))
        # Both are asked for every new path, and written seldom.
        self._ports = {SessionId(session): port for session, port in self._database.execute(_PORTS)}
        self._taken = Counter(self._ports.values())
        self._resting = {port: (until, SessionId(session)) for port, until, session in self._database.execute(_RESTING)}

    def put(self, entry: Entry) -> None:
        if (before := self._ports.get(entry.target.session)) is not None:
            self._taken[before] -= 1
        self._ports[entry.target.session] = entry.port
        self._taken[entry.port] += 1
        row = (entry.target.session, entry.port, json.dumps(entry.target.as_data()))
        self._database.execute("INSERT OR REPLACE INTO paths VALUES (?, ?, ?)", row)

    def remove(self, session: SessionId) -> None:
        """Forget a path; its port rests."""
        port = self._ports.pop(session, 0)
        if port:
            self._taken[port] -= 1
            until = self._wall_s() + QUARANTINE_S
            self._resting[port] = (until, session)
            self._database.execute("INSERT OR REPLACE INTO resting VALUES (?, ?, ?)", (port, until, session))
        self._database.execute("DELETE FROM paths WHERE session = ?", (session,))

    def entries(self) -> Iterator[Entry]:
        """Every path; a row that cannot be read is left out, its session is opened anew by the Hub."""
        for port, text in self._database.execute("SELECT port, target FROM paths ORDER BY session").fetchall():
            try:
                yield Entry(from_data(json.loads(text)), port)
            except ValueError:
                continue

    def is_free(self, port: int, session: SessionId) -> bool:
        """Whether a session may have a port: nobody else has it, or has had it a short while ago."""
        until, whose = self._resting.get(port, (0.0, session))
        if until <= self._wall_s():
            self._resting.pop(port, None)
        elif whose != session:
            return False
        return not self._taken[port] or self._ports.get(session) == port

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
