"""A world that answers every effect at once and honestly: what liveness of the machine is measured against."""

from collections import deque
from collections.abc import Iterable
from typing import assert_never

from moorage.core import effects, events
from moorage.core.effects import Effect
from moorage.core.events import Event
from moorage.core.machine import Decision, step, wake_at, watches
from moorage.core.model import (
    NEVER,
    Alive,
    Endpoint,
    EndReason,
    Gone,
    Instant,
    JobId,
    Phase,
    Ready,
    Route,
    Session,
    Sighting,
    Waiting,
    parse_tag,
)

STEPS = 3_000
PATIENCE_MS = 120_000


class KindWorld:
    """
    Holds jobs by tag; a job runs as soon as it was submitted, and is gone as soon as it was cancelled.

    Jobs that a program has invented are alive here, too, until they are cancelled: nobody has to be told.
    """

    def __init__(self, session: Session, now: Instant, outstanding: Iterable[Effect]) -> None:
        self.session = session
        self.now = now
        self.gone: set[JobId] = set()
        self.jobs: dict[JobId, str] = {}
        self.asked: set[type] = set()
        self.effects = deque(outstanding)
        own = getattr(getattr(session.state, "job", None), "id", None)
        if own is not None:
            self.jobs[own] = ""

    def take(self, event: Event) -> Decision:
        decision: Decision = step(self.session, event, self.now)
        self.session = decision.session
        self.effects.extend(decision.effects)
        self.asked |= {type(effect) for effect in decision.effects}
        return decision

    def next_events(self, patient: bool) -> list[Event]:
        """What a kind world says next: an answer, an admission, a reading; or, if patient, that time has passed."""
        if patient:
            self.wait_until(min(wake_at(self.session), self.now + PATIENCE_MS))
            return [events.Woke()]
        while self.effects:
            answers = self.answers(self.effects.popleft())
            if answers:
                return answers
        if isinstance(self.session.state, Waiting):
            self.wait_until(self.session.state.not_before)
            return [events.Admitted()]
        self.wait_until(self.now + 250)
        return [events.Observed(watch.job, self.now, self.seen(watch.job)) for watch in watches(self.session, self.now)]

    def settle(self) -> Session:
        """Answer and wake until the session is where it belongs; fails if it never gets there."""
        for _ in range(STEPS):
            if self.effects:
                self.take_all(self.answers(self.effects.popleft()))
            elif isinstance(self.session.state, Waiting):
                self.wait_until(max(self.now, self.session.state.not_before))
                self.take(events.Admitted())
            elif self.session.over or (isinstance(self.session.state, Ready) and not self.session.residue):
                return self.session
            else:
                self.look_or_wake()
        raise AssertionError(f"not settled after {STEPS} steps: {self.session}")

    def take_all(self, answers: Iterable[Event]) -> None:
        for answer in answers:
            self.take(answer)

    def look_or_wake(self) -> None:
        """A reading of every watched job, then the next wake-up."""
        self.wait_until(self.now + 250)
        for watch in watches(self.session, self.now):
            self.take(events.Observed(watch.job, self.now, self.seen(watch.job)))
        if not self.effects and not self.session.over:
            at = wake_at(self.session)
            looks = [self.now + watch.interval_ms for watch in watches(self.session, self.now)]
            self.wait_until(min([at, *looks]) if at < NEVER or looks else self.now + 1000)
            self.take(events.Woke())

    def wait_until(self, at: int) -> None:
        self.now = Instant(max(self.now, at))

    def seen(self, job: JobId) -> Alive | Gone:
        return Gone(EndReason.CANCELLED) if job in self.gone else Alive(Phase.RUNNING, "node1")

    def answers(self, effect: Effect) -> list[Event]:
        match effect:
            case effects.Submit():
                if effect.attempt != self.session.attempt:
                    return []
                job = JobId(f"kind{effect.attempt}")
                self.jobs[job] = effect.tag
                return [events.Submitted(effect.attempt, job)]
            case effects.Find():
                return [events.Found(effect.attempt, self.now, self.sightings(effect))]
            case effects.Cancel():
                self.gone.add(effect.job)
                return [events.CancelAnswered(effect.job, self.now, Gone(EndReason.CANCELLED))]
            case effects.ReadEndpoint():
                return [events.EndpointRead(effect.attempt, effect.job, Endpoint("node1", 4000, nonce="kind"))]
            case effects.ReadLog():
                return [events.LogRead(effect.job, "the end")]
            case effects.Remove():
                return [events.Removed(effect.job)]
            case effects.OpenTunnel():
                return [events.TunnelOpened(effect.number, Route("http://127.0.0.1:9"))]
            case effects.Probe():
                return [events.Probed(effect.number, good=True)]
            case effects.CloseTunnel():
                return [events.TunnelClosed(effect.number)]
            case effects.Publish():
                return [events.Published(effect.route)]
            case effects.Withdraw():
                return [events.Withdrawn(effect.number)]
            case effects.Revoke():
                return [events.Revoked(effect.number)]
            case effects.Report():
                return []
            case _:
                assert_never(effect)

    def sightings(self, effect: effects.Find) -> tuple[Sighting, ...]:
        """The session's own job and what was submitted under the tag; invented jobs that were cancelled are gone."""
        own = getattr(getattr(self.session.state, "job", None), "id", None)
        left = [each.job for each in self.session.residue if each.attempt == effect.attempt]
        names = {job: None for job in (own, *left) if job is not None and effect.attempt == self.session.attempt}
        names |= {job: None for job in left if job is not None}
        names |= {job: None for job, tag in self.jobs.items() if tag and parse_tag(tag) == parse_tag(effect.tag)}
        return tuple(Sighting(job, effect.tag) for job in names if job not in self.gone)
