"""
The trace of a run told to people: what happened to the session in question, in words.

A line of a trace is made to be compared, not read: milliseconds, who, what, and what it is now. Here it becomes a
sentence, and what happens many times in a row becomes one line.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from .faults import BY_NAME
from .storms import STORMS, describe

LINES = 60
"""Most lines of a story: what came long before is left out."""

_ID = re.compile(r"\b[a-z2-7]{26}\b")
_DECISION = re.compile(r"(?P<id>[a-z2-7]{26}) (?P<event>[A-Z]\w+) (?P<state>[A-Z]\w+) (?P<attempt>\d+) (?P<left>\d+)")
_CREATED = re.compile(r"job (?P<job>\S+) created for (?P<id>[a-z2-7]{26}) attempt (?P<attempt>\d+)")
_FAULT = re.compile(r"fault (?P<name>\S+)(?: at (?P<where>\S+))?")
_STORM = re.compile(r"storm (?P<name>\S+)")
_JOB = re.compile(r"job (?P<job>\S+) (?P<what>over|admitted)")
_BROKEN = re.compile(r"BROKEN (?P<name>\w+): (?P<says>.*)")


def story_of(trace: Sequence[str], lines: int = LINES) -> list[str]:
    """What is told of a trace that ends with a broken invariant; of one that does not, its last lines."""
    end = next((number for number, line in enumerate(trace) if " BROKEN " in line), len(trace) - 1)
    told = trace[: end + 1]
    ids = set(_ID.findall(told[-1])) if told else set()
    jobs = {found["job"] for line in told if (found := _CREATED.search(line)) and found["id"] in ids}
    about = [line for line in told if not ids or _concerns(line, ids, jobs)]
    return list(_collapsed(map(_sentence, about)))[-lines:]


def _concerns(line: str, ids: set[str], jobs: set[str]) -> bool:
    """Whether a line is about one of these sessions, one of their jobs, or everybody."""
    if _ID.search(line):
        return any(id_ in ids for id_ in _ID.findall(line))
    job = _JOB.search(line)
    return job is None or job["job"] in jobs


def _sentence(line: str) -> tuple[str, str]:
    """The time and the rest."""
    at, _, rest = line.partition(" ")
    return _clock(int(at)), _words(rest)


def _clock(milliseconds: int) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _words(rest: str) -> str:
    if found := _DECISION.fullmatch(rest):
        left = int(found["left"])
        still = f", {left} thing{'s' * (left != 1)} to remove" if left else ""
        return f"session {found['id'][:6]}: {found['event']} -> {found['state']} (attempt {found['attempt']}{still})"
    if found := _CREATED.fullmatch(rest):
        return f"job {found['job']} is created for session {found['id'][:6]} (attempt {found['attempt']})"
    if found := _FAULT.fullmatch(rest):
        where = f", at {found['where']}" if found["where"] else ""
        kind = BY_NAME.get(found["name"])
        return f"fault {found['name']}: {kind.says if kind else ''}{where}"
    if found := _STORM.fullmatch(rest):
        return f"storm {describe(found['name'])}" if found["name"] in STORMS else rest
    if found := _JOB.fullmatch(rest):
        return f"job {found['job']} is over" if found["what"] == "over" else f"job {found['job']}: its lab is started"
    if found := _BROKEN.fullmatch(rest):
        return f"BROKEN: {found['name'].replace('_', ' ')}: {_ID.sub(lambda each: each[0][:6], found['says'])}"
    return rest


def _collapsed(sentences: Iterable[tuple[str, str]]) -> Iterator[str]:
    """The same again and again is one line."""
    for words, group in groupby(sentences, key=lambda each: each[1]):
        times = [at for at, _ in group]
        again = f" ({len(times)} times, until {times[-1]})" if len(times) > 1 else ""
        yield f"{times[0]:>12} {words}{again}"
