"""Who may start next: limits, order and place in line, as one pure function."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import frozen

from .limits import Limits
from .model import Ended, Instant, Owner, Session, SessionId, SessionKey, SystemName, Waiting, Why


@frozen
class Verdict:
    """What admission says about one waiting session; `why` is `None` if it is admitted now."""

    session: SessionId
    why: Why | None
    note: str = ""
    place: int = 0
    """Place among those who wait for the same thing; 1 is next."""


@frozen
class Gate:
    """
    How open one system is.

    Args:
        why: Why nobody may start there (maintenance, breaker), or `None`.
        places: How many may start now; `None` for any number.
        retries: How many of them may be sessions that have failed to start before.
    """

    why: Why | None = None
    note: str = ""
    places: int | None = None
    retries: int | None = None


class Taken:
    """Places taken so far: a tally that the caller keeps and `admit` adds to."""

    def __init__(self, sessions: Iterable[Session] = ()) -> None:
        self.in_all = 0
        self.owners: Counter[Owner] = Counter()
        self.groups: Counter[str] = Counter()
        self.systems: Counter[SystemName] = Counter()
        for session in sessions:
            self.take(session)

    def take(self, session: Session) -> None:
        """One place more is taken."""
        self._add(session, 1)

    def give_back(self, session: Session) -> None:
        """One place less is taken."""
        self._add(session, -1)

    def _add(self, session: Session, count: int) -> None:
        spec = session.spec
        self.in_all += count
        self.owners[spec.key.owner] += count
        self.systems[spec.system] += count
        for group in spec.groups:
            self.groups[group] += count

    def reached(self, session: Session, limits: Limits) -> str | None:
        """Which limit leaves no place for this session, in words; `None` if there is one."""
        spec = session.spec
        if self.owners[spec.key.owner] >= limits.per_user:
            return f"{limits.per_user} sessions of one user"
        for group in spec.groups:
            if group in limits.per_group and self.groups[group] >= limits.per_group[group]:
                return f"{limits.per_group[group]} sessions of group {group}"
        if self.systems[spec.system] >= limits.on_system(spec.system):
            return f"{limits.on_system(spec.system)} sessions on {spec.system}"
        if self.in_all >= limits.in_all:
            return f"{limits.in_all} sessions in all"
        return None


def takes_place(session: Session) -> bool:
    """Whether a session counts against the limits: from its admission until it has ended."""
    return not isinstance(session.state, Waiting | Ended)


def admit(
    waiting: Sequence[Session],
    taken: Taken,
    limits: Limits,
    gates: Mapping[SystemName, Gate],
    busy: Collection[SessionKey],
    now: Instant,
) -> tuple[Verdict, ...]:
    """
    Decide about every waiting session, in the order in which they are served.

    Args:
        waiting: Sessions in `Waiting`, in any order.
        taken: The places taken; those of the admitted are added to it.
        gates: How open each system is; a system that is not named is closed.
        busy: Keys of which an older session has not ended.

    First come, first served, by turns: nobody's second session comes before anybody's first. Who is blocked by a
    limit of their own holds up nobody else.
    """
    left = {name: [gate.places, gate.retries] for name, gate in gates.items()}
    places: Counter[tuple[Why, object]] = Counter()
    verdicts = []
    for session in in_line(waiting):
        why, note = _held_by(session, taken, limits, gates, left, busy, now)
        if why is None:
            taken.take(session)
            _use(left[session.spec.system], session)
            verdicts.append(Verdict(session.id, None))
        else:
            line = (why, session.spec.system)
            places[line] += 1
            verdicts.append(Verdict(session.id, why, note, places[line]))
    return tuple(verdicts)


def in_line(waiting: Sequence[Session]) -> list[Session]:
    """By turns: the first session of each owner by age, then the second of each, and so on."""
    by_age = sorted(waiting, key=lambda session: (session.spec.asked_at, session.id))
    asked: Counter[Owner] = Counter()
    turn = {}
    for session in by_age:
        turn[session.id] = asked[session.spec.key.owner]
        asked[session.spec.key.owner] += 1
    return sorted(by_age, key=lambda session: turn[session.id])


def _held_by(
    session: Session,
    taken: Taken,
    limits: Limits,
    gates: Mapping[SystemName, Gate],
    left: Mapping[SystemName, Sequence[int | None]],
    busy: Collection[SessionKey],
    now: Instant,
) -> tuple[Why | None, str]:
    state = session.state
    assert isinstance(state, Waiting)
    gate = gates.get(session.spec.system)
    if gate is None:
        return Why.MAINTENANCE, f"{session.spec.system} is not configured"
    if session.spec.key in busy:
        return Why.STOP_RUNNING, "an earlier session of this name is still stopping"
    if gate.why is not None:
        return gate.why, gate.note
    if now < state.not_before:
        return Why.RETRY, state.note
    reached = taken.reached(session, limits)
    if reached is not None:
        return Why.LIMIT, reached
    open_places, retries = left[session.spec.system]
    if open_places == 0:
        return Why.BREAKER, "the system is being tried with one session first"
    if state.tries and retries == 0:
        return Why.RETRY, state.note
    return None, ""


def _use(left: list[int | None], session: Session) -> None:
    state = session.state
    if left[0] is not None:
        left[0] -= 1
    if left[1] is not None and isinstance(state, Waiting) and state.tries:
        left[1] -= 1
