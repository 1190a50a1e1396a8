"""
Makes the golden file of the present version: `python -m tests.recorded.wire.make` (with `src` on the path).

To be run once when `wire.VERSION` is raised. Before the first release it may be run again; after it, a golden file is
never touched: it is what deployments have in their databases.
"""

import json
import random
from enum import Enum
from hashlib import sha256
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NewType, Union, get_args, get_origin

import attrs

from moorage import wire
from moorage.core import effects as fx
from moorage.core import events as ev
from moorage.core.machine import begin, step
from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    Endpoint,
    EndReason,
    Failure,
    FailureKind,
    Gone,
    Instant,
    JobId,
    Owner,
    Phase,
    Route,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    Sighting,
    State,
    SystemName,
)
from moorage.core.timeouts import Timeouts

HERE = Path(__file__).parent
SUMS = HERE / "SHA256SUMS"
START = 1_700_000_000_000


def golden(version: int) -> Path:
    return HERE / f"v{version}.json"


# Samples: every field filled with something that is not its default ---------------------------------------------------


def samples(hint: Any) -> list[Any]:
    """One value per member of a union, per member of an enumeration, and so on, inwards."""
    if isinstance(hint, NewType):
        return samples(hint.__supertype__)
    if get_origin(hint) in (Union, UnionType):
        return [value for member in get_args(hint) for value in samples(member)]
    if get_origin(hint) is tuple:
        first = [samples(arg) for arg in get_args(hint) if arg is not Ellipsis]
        return [(), tuple(first[0])] if get_args(hint)[-1] is Ellipsis else [tuple(values[0] for values in first)]
    if hint is Timeouts:
        return [Timeouts(), Timeouts().scaled(0.3)]
    if attrs.has(hint):
        return _objects(hint)
    if issubclass(hint, Enum):
        return list(hint)
    plain: dict[type, list[Any]] = {
        NoneType: [None],
        bool: [True, False],
        int: [4_611_686_018_427_387_904, -7],
        float: [0.25, 3600, float("inf")],
        str: ['naïve "quoted" \\ \x00\n\u2028 \ud83d\udc22 \ud800', ""],
    }
    return plain[hint]


def _objects(cls: Any) -> list[Any]:
    """Objects in which each value of each field occurs, with the first values of the others."""
    fields = {field.name: samples(field.type) for field in attrs.fields(cls)}
    base = {name: values[0] for name, values in fields.items()}
    made = [cls(**base)]
    made += [cls(**{**base, name: value}) for name, values in fields.items() for value in values[1:]]
    return made


# Lives: what the machine makes of a world that answers, or fails to ---------------------------------------------------


class World:
    """Answers effects; sometimes it does not."""

    def __init__(self, seed: int) -> None:
        self.choices = random.Random(seed)
        self.now = START
        digits = "abcdefghijklmnopqrstuvwxyz234567"
        key = SessionKey("hub", Owner(f"user{seed}"), "" if seed % 2 else "second")
        self.spec = SessionSpec(
            id=SessionId("".join(self.choices.choices(digits, k=26))),
            key=key,
            system=SystemName("juniper"),
            asked_at=Instant(START),
            seed=self.choices.getrandbits(64),
            groups=("staff", "2024-äöü")[: seed % 3],
            options=(("reservation", "maintenance day"),),
            destinations=("node1",),
        )
        self.job = JobId(f"job-{seed}")
        self.quiet = seed % 4 == 0

    def event(self, session: Session, asked: list[fx.Effect], number: int) -> ev.Event:
        """What happens next: an answer, a reading, a wish, the passing of time."""
        self.now += self.choices.choice([10, 250, 1_000, 6_000, 61_000])
        if number == 24:
            return ev.StopAsked()
        if asked and self.choices.random() < 0.9:
            return self.answer(asked.pop(self.choices.randrange(len(asked))))
        job, at = self.job, Instant(self.now)
        odd: list[ev.Event] = [
            ev.Woke(),
            ev.Admitted(),
            ev.Observed(job, at, Alive(Phase.RUNNING, "node1", Instant(self.now + 7_200_000))),
            ev.Observed(job, at, Alive(Phase.PENDING, note="place 7")),
        ]
        rare: list[ev.Event] = [
            ev.Resumed(),
            ev.PathDoubted("no good probe for a minute"),
            ev.Observed(job, at, Doubt(DoubtReason.NOT_LISTED)),
            ev.Observed(job, at, Gone(EndReason.WALLTIME, 143, "TIMEOUT")),
            ev.StraySeen(session.attempt, JobId("stray")),
        ]
        return self.choices.choice(odd if self.quiet or self.choices.random() < 0.7 else rare)

    def answer(self, effect: fx.Effect) -> ev.Event:
        if not self.quiet and self.choices.random() < 0.2:
            kind = self.choices.choice([kind for kind in FailureKind if kind is not FailureKind.REFUSED])
            return ev.EffectFailed(
                effect, Failure(kind, f"{kind.value} at the gateway", self.choices.choice([None, 2.5]))
            )
        job, at = self.job, Instant(self.now)
        match effect:
            case fx.Submit():
                return ev.Submitted(effect.attempt, job)
            case fx.Find():
                found = (Sighting(job, effect.tag),) if self.choices.random() < 0.6 else ()
                return ev.Found(effect.attempt, at, found)
            case fx.Cancel():
                return ev.CancelAnswered(effect.job, at, Gone(EndReason.CANCELLED, 0))
            case fx.ReadEndpoint():
                return ev.EndpointRead(effect.attempt, effect.job, Endpoint("node1", 40_001, nonce="0" * 32))
            case fx.ReadLog():
                return ev.LogRead(effect.job, "last line\n")
            case fx.Remove():
                return ev.Removed(effect.job)
            case fx.OpenTunnel():
                return ev.TunnelOpened(effect.number, Route("http://127.0.0.1:33333"))
            case fx.Probe():
                good, proven = self.quiet or self.choices.random() < 0.7, self.choices.random() < 0.5
                return ev.Probed(effect.number, good, "", proven)
            case fx.CloseTunnel():
                return ev.TunnelClosed(effect.number)
            case fx.Publish():
                return ev.Published(effect.route)
            case fx.Withdraw():
                return ev.Withdrawn(effect.number)
            case fx.Revoke():
                return ev.Revoked(effect.number)
            case _:
                return ev.Woke()


def life(seed: int) -> dict[str, Any]:
    """The log of one session as the store has it, and the session that it leads to."""
    world = World(seed)
    decision = begin(world.spec)
    session, asked = decision.session, list(decision.effects)
    log = []
    for number in range(45):
        event = ev.Admitted() if number == 0 else world.event(session, asked, number)
        decision = step(session, event, Instant(world.now))
        session = decision.session
        asked += [effect for effect in decision.effects if not isinstance(effect, fx.Report)]
        log.append([world.now, wire.dump_event(event).decode()])
        if session.over:
            break
    return {
        "begin": wire.dump_session(begin(world.spec).session).decode(),
        "log": log,
        "end": wire.dump_session(session).decode(),
    }


def content() -> str:
    spec = World(0).spec
    sessions = [Session(spec, state) for state in samples(State)]
    sessions += samples(Session)[:20]
    document = {
        "sessions": sorted({wire.dump_session(session).decode() for session in sessions}),
        "events": sorted({wire.dump_event(event).decode() for event in samples(ev.Event)}),
        "lives": [life(seed) for seed in range(24)],
    }
    return json.dumps(document, indent=0, ensure_ascii=True) + "\n"


def main() -> None:
    path = golden(wire.VERSION)
    path.write_text(content(), "ascii")
    sums = [f"{sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(HERE.glob("v*.json"))]
    SUMS.write_text("".join(sums), "ascii")


if __name__ == "__main__":
    main()
