"""
Nothing of the outside gets into a run: no thread, socket, process, wall clock or unseeded choice.

`guarded` replaces the ways in by functions that raise `Leak`, for the duration of a run and only for the thread that
runs it. It is a net, not a wall: who wants to get past it can. It is there so that a line of code that reads the clock
is found by the first test that passes it, and not by a trace that differs once a month.
"""

import asyncio
import datetime
import os
import random
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Leak(AssertionError):
    """Simulated code used what the outside world has and a simulation has not."""


WAYS_IN: tuple[tuple[Any, str, str], ...] = (
    *((time, name, "the clock of the machine") for name in ("time", "time_ns", "monotonic", "monotonic_ns", "sleep")),
    *((time, name, "the clock of the machine") for name in ("localtime", "gmtime", "strftime", "ctime")),
    (os, "urandom", "chance without a seed"),
    (os, "getrandom", "chance without a seed"),
    *((uuid, name, "chance without a seed") for name in ("uuid1", "uuid4")),
    *((secrets, name, "chance without a seed") for name in ("token_bytes", "token_hex", "token_urlsafe", "randbelow")),
    *(
        (random, name, "chance without a seed")
        for name in ("random", "randint", "randrange", "choice", "choices", "shuffle", "sample", "uniform", "seed")
    ),
    *((random, name, "chance without a seed") for name in ("getrandbits", "gauss", "expovariate", "betavariate")),
    (threading.Thread, "start", "a thread"),
    (socket, "socket", "a socket"),
    (socket, "getaddrinfo", "the network"),
    (select, "select", "a selector"),
    (subprocess, "Popen", "a process"),
    (os, "fork", "a process"),
    (asyncio, "create_subprocess_exec", "a process"),
    (asyncio, "open_connection", "a socket"),
    (asyncio, "start_server", "a socket"),
    (asyncio, "to_thread", "a thread"),
)
"""Module or class, name in it, and what it would let in."""


@contextmanager
def guarded() -> Iterator[None]:
    """
    Refuse every way in while the body runs.

    What has been imported by name before (`from time import monotonic`) is not seen; `datetime.now` is closed by
    putting a class in its place that knows no present. Inside another guard of the same thread it does nothing.
    """
    owner = threading.get_ident()
    if owner in _guarded:
        yield
        return
    kept: list[tuple[Any, str, Any]] = []
    for place, name, what in WAYS_IN:
        original = getattr(place, name, None)
        if original is not None:
            kept.append((place, name, original))
            setattr(place, name, _refusal(original, f"{getattr(place, '__name__', place)}.{name}", what, owner))
    kept.append((datetime, "datetime", datetime.datetime))
    datetime.datetime = _Timeless  # type: ignore[misc]
    _guarded.add(owner)
    try:
        yield
    finally:
        _guarded.discard(owner)
        for place, name, original in reversed(kept):
            setattr(place, name, original)


_guarded: set[int] = set()
"""Threads that run a simulation now."""


def _refusal(original: Any, name: str, what: str, owner: int) -> Callable[..., Any]:
    def refused(*args: Any, **options: Any) -> Any:
        # Other threads are none of ours: a test runner's watchdog may look at its clock. And the time in a log record
        # is for its reader; nothing is decided by it.
        if threading.get_ident() != owner or sys._getframe(1).f_globals.get("__name__") == "logging":
            return original(*args, **options)
        raise Leak(f"{name} lets {what} into the simulation; ask the ports Clock and Choices")

    return refused


class _Timeless(datetime.datetime):
    """A `datetime` for everything but the present."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        raise Leak("datetime.now lets the clock of the machine into the simulation; ask the port Clock")

    @classmethod
    def utcnow(cls) -> Any:
        raise Leak("datetime.utcnow lets the clock of the machine into the simulation; ask the port Clock")

    @classmethod
    def today(cls) -> Any:
        raise Leak("datetime.today lets the clock of the machine into the simulation; ask the port Clock")
