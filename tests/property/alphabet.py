"""
Programs for the machine alone: lists of whole numbers, each of them one event at one time.

A number is decoded against the session it meets, so that most events are about something that exists (this attempt,
that effect), and the rest about what was, will be or never is. Small numbers are plain things: hypothesis shrinks to
short programs of them.
"""

from collections.abc import Callable
from typing import Any, get_args

from attrs import evolve
from tests.property.kind_world import KindWorld

from moorage.core import effects, events
from moorage.core.events import Event
from moorage.core.machine import Decision, begin
from moorage.core.model import (
    Alive,
    Cause,
    Doubt,
    DoubtReason,
    Endpoint,
    EndReason,
    Failure,
    FailureKind,
    Gone,
    Instant,
    JobId,
    Observation,
    Owner,
    Phase,
    Route,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    Why,
    tag_of,
)
from moorage.core.timeouts import Timeouts

START = Instant(1_700_000_000_000)
JOBS = tuple(JobId(f"job{number}") for number in range(4))
PAUSES_MS = (0, 1, 250, 1_000, 5_000, 31_000, 61_000, 700_000, 100_000_000)


def a_spec(**changes: Any) -> SessionSpec:
    spec = SessionSpec(
        id=SessionId("a" * 26),
        key=SessionKey("hub", Owner("ada")),
        system=SystemName("juniper"),
        asked_at=START,
        seed=7,
        destinations=("node1",),
        timeouts=Timeouts(),
    )
    return evolve(spec, **changes)


class Draw:
    """Digits of one number in mixed radix: an endless, deterministic source of small choices."""

    def __init__(self, number: int) -> None:
        self.number = number

    def below(self, count: int) -> int:
        self.number, digit = divmod(self.number, count)
        return digit

    def of(self, *choices: Any) -> Any:
        return choices[self.below(len(choices))]


def observation(draw: Draw) -> Observation:
    kind = draw.below(3)
    if kind == 0:
        node = draw.of(None, "node1", "node2")
        return Alive(draw.of(*Phase), node, draw.of(None, Instant(START + 10_000_000)))
    if kind == 1:
        return Gone(draw.of(*EndReason), draw.of(None, 0, 1))
    return Doubt(draw.of(*DoubtReason))


def attempt_of(draw: Draw, session: Session) -> int:
    return draw.of(session.attempt, max(0, session.attempt - 1), session.attempt + 1)


def job_of(draw: Draw, session: Session) -> JobId:
    """Mostly the job of the session, if it has one."""
    own = getattr(getattr(session.state, "job", None), "id", JOBS[0])
    return draw.of(own, own, *JOBS)


def number_of(draw: Draw, session: Session) -> int:
    return draw.of(getattr(session.state, "asked", 0) or session.serial, session.serial, max(0, session.serial - 1), 1)


def endpoint(draw: Draw) -> Endpoint | None:
    return draw.of(Endpoint("node1", 4000, nonce="n1"), None, Endpoint("node2", 4000, nonce="n2"), Endpoint("evil", 22))


def route(draw: Draw, session: Session) -> Route:
    return draw.of(getattr(session.state, "route", None) or Route("http://127.0.0.1:1"), Route("http://127.0.0.1:2"))


def asked_at(draw: Draw, now: Instant) -> Instant:
    return draw.of(now, Instant(now - 1_000), Instant(now - 100_000))


def sightings(draw: Draw, session: Session, attempt: int) -> tuple[Sighting, ...]:
    tag = Tag(tag_of(session.spec, attempt))
    return tuple(Sighting(job_of(draw, session), tag, draw.below(2) == 0) for _ in range(draw.below(3)))


def failure(draw: Draw) -> Failure:
    return Failure(draw.of(*FailureKind), "it went wrong", draw.of(None, 0.0, -1.0, 1e9, float("nan")))


def an_effect(draw: Draw, session: Session) -> effects.Effect:
    kind = draw.of(*get_args(effects.Effect))
    attempt = attempt_of(draw, session)
    common: dict[str, Any] = {"session": session.id, "attempt": attempt, "number": number_of(draw, session)}
    details: dict[str, Callable[[], Any]] = {
        "tag": lambda: tag_of(session.spec, attempt),
        "retry": lambda: False,
        "job": lambda: job_of(draw, session),
        "endpoint": lambda: endpoint(draw) or Endpoint("node1", 1),
        "route": lambda: route(draw, session),
        "progress": lambda: None,
        "patient": lambda: draw.below(2) == 0,
    }
    names = [attribute.name for attribute in kind.__attrs_attrs__ if attribute.name not in common]
    return kind(**common, **{name: details[name]() for name in names})


Decoder = Callable[[Draw, Session, Instant], Event]

DECODERS: dict[type, Decoder] = {
    events.Woke: lambda d, s, n: events.Woke(),
    events.Admitted: lambda d, s, n: events.Admitted(),
    events.Submitted: lambda d, s, n: events.Submitted(attempt_of(d, s), job_of(d, s)),
    events.Observed: lambda d, s, n: events.Observed(job_of(d, s), asked_at(d, n), observation(d)),
    events.EndpointRead: lambda d, s, n: events.EndpointRead(attempt_of(d, s), job_of(d, s), endpoint(d)),
    events.TunnelOpened: lambda d, s, n: events.TunnelOpened(number_of(d, s), route(d, s)),
    events.Probed: lambda d, s, n: events.Probed(number_of(d, s), d.below(2) == 0, proven=d.below(2) == 0),
    events.Published: lambda d, s, n: events.Published(route(d, s)),
    events.EffectFailed: lambda d, s, n: events.EffectFailed(an_effect(d, s), failure(d)),
    events.StopAsked: lambda d, s, n: events.StopAsked("ada", d.of(Cause.STOPPED, Cause.POLICY)),
    events.Found: lambda d, s, n: _found(d, s, n),
    events.Held: lambda d, s, n: events.Held(d.of(*Why), "later"),
    events.CancelAnswered: lambda d, s, n: events.CancelAnswered(job_of(d, s), asked_at(d, n), observation(d)),
    events.StraySeen: lambda d, s, n: events.StraySeen(attempt_of(d, s), job_of(d, s)),
    events.LogRead: lambda d, s, n: events.LogRead(job_of(d, s), "the end of the log"),
    events.Removed: lambda d, s, n: events.Removed(job_of(d, s)),
    events.PathDoubted: lambda d, s, n: events.PathDoubted("nothing comes through"),
    events.TunnelClosed: lambda d, s, n: events.TunnelClosed(_removal(d, s)),
    events.Withdrawn: lambda d, s, n: events.Withdrawn(_removal(d, s)),
    events.Revoked: lambda d, s, n: events.Revoked(_removal(d, s)),
    events.Resumed: lambda d, s, n: events.Resumed(),
}
"""How each class of event is made. One that is not here fails `test_every_event_is_in_the_alphabet`."""


def _removal(draw: Draw, session: Session) -> int:
    """Mostly the number of something that is being removed."""
    asked = [left.asked for left in session.residue] or [0]
    return draw.of(draw.of(*asked), session.serial, 1)


def _found(draw: Draw, session: Session, now: Instant) -> Event:
    attempt = attempt_of(draw, session)
    return events.Found(attempt, asked_at(draw, now), sightings(draw, session, attempt))


KINDS = tuple(DECODERS)


def decode(number: int, session: Session, now: Instant) -> tuple[Event, Instant]:
    """The event that a number means for this session, and when it happens."""
    draw = Draw(number)
    kind = draw.of(*KINDS)
    later = Instant(now + draw.of(*PAUSES_MS))
    return DECODERS[kind](draw, session, later), later


Step = tuple[Session, Event, Instant, Decision]


def run(program: list[int], spec: SessionSpec | None = None) -> list[Step]:
    """
    Every step of a program: the session before, the event, the time, and what follows.

    Of five numbers one is any event and one a failure of the oldest effect; the others are kind (the oldest effect is
    answered, time passes until something is due), because arbitrary events alone rarely get a session to `Ready`.
    """
    first = begin(spec or a_spec())
    world = KindWorld(first.session, START, first.effects)
    history: list[Step] = []
    for number in program:
        number, way = divmod(number, 5)
        if way == 4:
            event, world.now = decode(number, world.session, world.now)
            happening = [event]
        elif way == 3 and world.effects:
            happening = [events.EffectFailed(world.effects.popleft(), failure(Draw(number)))]
        else:
            happening = world.next_events(patient=way == 2)
        for event in happening:
            before = world.session
            history.append((before, event, world.now, world.take(event)))
    return history
