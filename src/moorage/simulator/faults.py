"""
The fault catalogue as data, and what decides when a fault fires.

A *kind* says at which port and verb it strikes, what it does there, and what it is called in the catalogue. What fires
is decided per opportunity: by a `Swarm` (drawn from a seed: which kinds are enabled at all, and how often they fire),
by a `Script` (this kind, at its n-th opportunity), or by nothing at all. The ledger counts what really fired.

Source of the ids: the fault catalogue of the reliability specification; swarm testing: Groce et al., ISSTA 2012.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from attrs import define, field, frozen

from moorage.ports.errors import Malformed, Overloaded, PortError, Refused, Unanswered, Unauthorised, Unreachable

from .choices import Source, between, chance, pick


class Act(Enum):
    """What a fault does to a call; the first group are the three positions and the plain verdicts."""

    LOSE_REQUEST = "lose the request"
    LOSE_ANSWER = "lose the answer"
    LATE = "answer after the deadline"
    DELAY = "answer slowly, in time"
    REFUSE = "do nothing and say so"
    GARBLE = "do it and answer garbage"
    NOISE = "do nothing and answer garbage"
    HANG = "never answer"
    BUG = "raise or return what no adapter may"
    LIE = "answer something else than the truth"
    HAPPEN = "something happens that nobody asked for"


class Scope(Enum):
    """How long a fault lasts once it has fired."""

    CALL = "one call"
    WINDOW = "a while, for everybody at this place"


@frozen
class Kind:
    """
    One kind of fault.

    Args:
        id: Its name in the catalogue.
        port: Where it strikes: a port, or "job", "net", "process" for what happens by itself.
        verbs: Calls that are an opportunity; for what happens by itself, what it happens to.
        error: What the caller is told, for `REFUSE`.
        critical: The verb at which it matters most; a campaign that never hits it has not tested it.
        retry_after_s: Wishes of an overloaded system, one of which is drawn.
        lie: Which untruth, for `LIE` and `HAPPEN`; the double knows what to make of it.
        share: Scales how often it fires per opportunity; 1 for calls, less for what happens to a whole world.
    """

    id: str
    port: str
    verbs: tuple[str, ...]
    act: Act
    says: str
    error: type[PortError] = Unreachable
    critical: str = ""
    scope: Scope = Scope.CALL
    retry_after_s: tuple[float | None, ...] = ()
    lie: str = ""
    share: float = 1.0

    @property
    def name(self) -> str:
        """Id and place: one id may strike at several places."""
        return f"{self.id}.{self.lie or self.verbs[0]}"


_CALLS = ("submit", "find", "observe", "cancel", "read", "remove")
_ABSURD = (None, 0.0, -1.0, 1e9, float("nan"), 5.0)


def _system(id_: str, verbs: Sequence[str], act: Act, says: str, **more: object) -> Kind:
    return Kind(id_, "system", tuple(verbs), act, says, critical=verbs[0], **more)  # type: ignore[arg-type]


CATALOGUE: tuple[Kind, ...] = (
    # Systems: the UNICORE rows, which hold for every system behind a network.
    _system("F-U1", _CALLS, Act.REFUSE, "connection refused", scope=Scope.WINDOW),
    _system("F-U2", ["submit"], Act.LOSE_REQUEST, "submit: timeout before the effect"),
    _system("F-U3", ["submit"], Act.LOSE_ANSWER, "submit: timeout after the effect"),
    _system("F-U4", ["submit"], Act.LATE, "submit: answer after the deadline"),
    _system("F-U5", ["submit"], Act.GARBLE, "submit: 201 without a location"),
    _system("F-U6", ["submit"], Act.LOSE_ANSWER, "submit: 500 although the job was created", lie="at once"),
    _system(
        "F-U7",
        ["submit"],
        Act.REFUSE,
        "submission disabled",
        error=Overloaded,
        scope=Scope.WINDOW,
        retry_after_s=(None, 30.0),
    ),
    _system("F-U8", _CALLS, Act.REFUSE, "token expired", error=Unauthorised, scope=Scope.WINDOW),
    _system("F-U9", ["observe"], Act.LIE, "an empty list for an anonymous caller", lie="empty list"),
    _system("F-U9", ["find"], Act.REFUSE, "anonymous: the role was checked", error=Unauthorised),
    _system("F-U11", _CALLS, Act.REFUSE, "429, absurd retry-after", error=Overloaded, retry_after_s=_ABSURD),
    _system("F-U12", _CALLS, Act.DELAY, "one byte per second"),
    _system("F-U12", _CALLS, Act.HANG, "never an answer", lie="hang"),
    _system("F-U13", _CALLS, Act.NOISE, "HTML instead of JSON"),
    _system("F-U15", ["observe"], Act.LIE, "404 for minutes, then back", lie="not listed", scope=Scope.WINDOW),
    _system("F-U16", ["observe"], Act.LIE, "one terminal reading of a living job", lie="flap"),
    _system("F-U17", ["observe"], Act.LIE, "the server has lost its data", lie="terminal", scope=Scope.WINDOW),
    Kind("F-U18", "job", ("submitted",), Act.HAPPEN, "created and never started", lie="held"),
    Kind("F-U19", "push", ("push",), Act.HAPPEN, "notification lost", lie="lost"),
    Kind("F-U19", "push", ("push",), Act.HAPPEN, "notification twice", lie="twice"),
    Kind("F-U19", "push", ("push",), Act.HAPPEN, "notification of an unknown job", lie="forged"),
    Kind("F-U20", "push", ("submit",), Act.HAPPEN, "notification before the answer", lie="early"),
    _system("F-U21", ["cancel"], Act.LOSE_REQUEST, "abort: timeout before the effect"),
    _system("F-U21", ["cancel"], Act.LOSE_ANSWER, "abort: timeout after the effect", lie="lost answer"),
    _system("F-U21", ["cancel"], Act.LATE, "abort: takes effect late", lie="late"),
    _system("F-U21", ["cancel"], Act.LIE, "abort: 200 without an effect", lie="no effect"),
    _system("F-U22", ["find"], Act.NOISE, "the listing changed between its pages"),
    _system("F-U23", ["submit"], Act.REFUSE, "stage-in over quota; the job was aborted", error=Refused, share=0.1),
    Kind("F-U24", "job", ("submitted",), Act.HAPPEN, "the job resource expires", lie="expires"),
    _system("F-U26", ["observe"], Act.LIE, "a stale replica", lie="stale", scope=Scope.WINDOW),
    # Schedulers.
    Kind("F-S1", "job", ("submitted",), Act.HAPPEN, "in the queue for long", lie="long queue"),
    Kind("F-S2", "job", ("submitted",), Act.HAPPEN, "requeued to another node", lie="requeue"),
    Kind("F-S3", "job", ("submitted",), Act.HAPPEN, "preempted", lie="preempt"),
    Kind("F-S4", "job", ("submitted",), Act.HAPPEN, "the node hangs; the job is called running", lie="hang"),
    Kind("F-S4", "job", ("submitted",), Act.HAPPEN, "the node fails", lie="node fails"),
    Kind("F-S5", "job", ("submitted",), Act.HAPPEN, "a walltime shorter than asked for", lie="short walltime"),
    Kind("F-S6", "job", ("submitted",), Act.HAPPEN, "configuring for ever", lie="prolog"),
    Kind("F-S7", "job", ("submitted",), Act.HAPPEN, "completing for an hour", lie="completing"),
    _system("F-S8", ["observe", "find"], Act.HANG, "the controller is in fail-over", scope=Scope.WINDOW),
    _system("F-S10", ["submit"], Act.NOISE, "exit code 0 after a failure"),
    _system("F-S11", ["observe"], Act.LIE, "a truncated listing", lie="truncated"),
    _system("F-S12", ["observe"], Act.LIE, "the end is shown before the processes are gone", lie="early end"),
    Kind("F-S13", "job", ("submitted",), Act.HAPPEN, "held by an operator", lie="held a while"),
    Kind("F-S15", "job", ("submitted",), Act.HAPPEN, "the job ignores SIGTERM", lie="ignores term"),
    Kind("F-S16", "job", ("submitted",), Act.HAPPEN, "the lab crashes or runs out of memory", lie="crash"),
    # Tunnels.
    Kind("F-T1", "tunnels", ("open",), Act.REFUSE, "connection refused", critical="open", scope=Scope.WINDOW),
    Kind("F-T2", "tunnels", ("open",), Act.REFUSE, "key revoked", error=Unauthorised, scope=Scope.WINDOW),
    Kind("F-T3", "tunnels", ("open",), Act.REFUSE, "unknown host key", error=Refused),
    Kind(
        "F-T4", "tunnels", ("open",), Act.REFUSE, "dropped in the key exchange", error=Overloaded, retry_after_s=(None,)
    ),
    Kind("F-T5", "tunnels", ("open",), Act.REFUSE, "channel refused", error=Unanswered, lie="channel"),
    Kind("F-T6", "net", ("path",), Act.HAPPEN, "half-open: nothing moves", lie="mute", scope=Scope.WINDOW),
    Kind("F-T7", "net", ("path",), Act.HAPPEN, "streams are cut", lie="cut"),
    Kind("F-T8", "tunnels", ("open", "probe", "close", "list"), Act.DELAY, "a slow link"),
    Kind("F-T9", "net", ("login node",), Act.HAPPEN, "a login node reboots", lie="login node", share=0.05),
    Kind("F-T11", "net", ("path",), Act.HAPPEN, "the port is somebody else's now", lie="foreign", scope=Scope.WINDOW),
    Kind("F-T12", "tunnels", ("probe",), Act.LIE, "accepted and closed at once", lie="closed at once"),
    Kind("F-T14", "net", ("relay",), Act.HAPPEN, "the relay is killed", lie="relay", share=0.05),
    Kind("F-T15", "tunnels", ("open",), Act.REFUSE, "no file descriptors", error=Overloaded, lie="descriptors"),
    Kind("F-T18", "tunnels", ("open",), Act.LOSE_ANSWER, "opened, and nobody is told", lie="lost answer"),
    Kind("F-T18", "tunnels", ("close",), Act.LOSE_REQUEST, "not closed", lie="close lost"),
    Kind("F-T18", "tunnels", ("close",), Act.LATE, "closed late", lie="close late"),
    Kind("F-T18", "tunnels", ("list",), Act.NOISE, "the relay does not list", lie="list"),
    # The Hub.
    Kind("F-H6", "hub", ("publish", "withdraw"), Act.REFUSE, "a dead proxy", scope=Scope.WINDOW),
    Kind("F-H7", "hub", ("report", "publish", "withdraw"), Act.REFUSE, "401 after a purge", error=Unauthorised),
    Kind("F-H7", "hub", ("report", "publish", "withdraw"), Act.HANG, "the Hub hangs", lie="hang"),
    Kind("F-H7", "hub", ("publish",), Act.LOSE_ANSWER, "published, and nobody is told", lie="lost answer"),
    # Users, who do what they like.
    Kind("F-H3", "user", ("start",), Act.HAPPEN, "starts twice at once", lie="twice"),
    Kind("F-H3", "user", ("stop",), Act.HAPPEN, "starts again during the stop", lie="again"),
    Kind("F-H4", "user", ("start",), Act.HAPPEN, "stops in the middle", lie="stop early"),
    Kind("F-H5", "user", ("start",), Act.HAPPEN, "the waiting caller is cancelled", lie="gives up waiting"),
    Kind("F-H8", "user", ("follow",), Act.HAPPEN, "the consumer reconnects", lie="reconnects"),
    Kind("F-H10", "user", ("start",), Act.HAPPEN, "the user is removed", lie="removed"),
    Kind("F-H11", "user", ("cull",), Act.HAPPEN, "the culler stops many at once", lie="cull", share=0.05),
    # The store.
    Kind("F-D1", "store", ("save",), Act.REFUSE, "the write fails"),
    Kind("F-D1", "store", ("save",), Act.LOSE_ANSWER, "committed, and an error after it", lie="commit unknown"),
    Kind("F-D1", "store", ("load", "log"), Act.REFUSE, "the read fails", lie="read"),
    Kind("F-D2", "store", ("save",), Act.REFUSE, "the disk is full", scope=Scope.WINDOW, lie="full"),
    Kind("F-D4", "store", ("save", "load", "log"), Act.DELAY, "five seconds for an fsync", share=0.2),
    Kind("F-D5", "process", ("tick",), Act.HAPPEN, "two processes on one store", lie="twin", share=0.05),
    Kind("F-D6", "process", ("tick",), Act.HAPPEN, "the process is paused", lie="paused", share=0.05),
    Kind("F-D9", "vault", ("gate",), Act.REFUSE, "the vault's key is missing", scope=Scope.WINDOW),
    Kind("F-D9", "credentials", ("issue", "revoke", "token"), Act.REFUSE, "nothing can be kept", lie="credentials"),
    # Clock, process, plugins, view.
    Kind("F-C2", "process", ("tick",), Act.HAPPEN, "the machine is suspended", lie="stall", share=0.03),
    Kind("F-C3", "process", ("tick",), Act.HAPPEN, "the process is killed at a boundary", lie="kill", share=0.15),
    Kind("F-C4", "process", ("tick",), Act.HAPPEN, "the loop is blocked for ten seconds", lie="blocked", share=0.1),
    _system("F-P1", _CALLS, Act.BUG, "the adapter raises or returns anything"),
    Kind("F-P1", "tunnels", ("open", "probe", "close", "list"), Act.BUG, "the relay's client has a bug", lie="relay"),
    Kind("F-P1", "hub", ("report", "publish", "withdraw"), Act.BUG, "the Hub's client has a bug", lie="hub"),
    Kind("F-V2", "tunnels", ("list",), Act.LIE, "the relay answers from the past", lie="stale"),
    _system("F-V3", ["observe"], Act.LIE, "readings are skipped", lie="skipped"),
)

NOT_HERE: Mapping[str, str] = {
    "F-U10": "the adapter repeats the call without its session header; a port sees nothing of it",
    "F-U14": "redirects exist in HTTP only",
    "F-U25": "certificates exist in TLS only",
    "F-S9": "an adapter makes ids unique; what a wrapped counter does is a matter of its parser",
    "F-S14": "id formats are a matter of the parser",
    "F-T10": "local ports and socket files are the relay's own",
    "F-T13": "control sockets are the OpenSSH dialer's own",
    "F-T16": "certificates of a connection are the dialer's own",
    "F-T17": "unsolicited requests exist in the SSH protocol only",
    **{f"F-K{number}": "needs the API server's words; shown by the simulated Kubernetes" for number in range(1, 13)},
    "F-H1": "the runner lives in the Hub's process: this is F-C3",
    "F-H2": "the Hub's database is behind the spawner, not behind a port",
    "F-H9": "no chance needed: scenarios name two Hubs with equal users",
    "F-H12": "no chance needed: users of every world have such names",
    "F-D3": "pages and bits exist in a real database only",
    "F-D7": "a store from a backup: tested with the real store and a simulated site",
    "F-D8": "migrations exist in a real database only",
    "F-C1": "nothing can read the wall clock: the guard refuses it",
    "F-G1": "configuration is read before a world begins",
    "F-G2": "configuration is read before a world begins",
    "F-G3": "configuration is read before a world begins",
    "F-P2": "plugins are loaded before a world begins",
    "F-V1": "a crash between two writes: this is F-C3, position by position",
}
"""Ids of the catalogue that these ports cannot show, each with the reason."""

BUGS: tuple[Callable[[], BaseException], ...] = (
    lambda: RuntimeError("a bug"),
    lambda: KeyError("id"),
    lambda: TypeError("NoneType"),
    lambda: TimeoutError(),
    lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a bug"),
)


# What decides ---------------------------------------------------------------------------------------------------------

ENABLED = (0.0, 0.25, 0.5, 1.0)
FIRES = (0.001, 0.01, 0.1, 0.25)


@define
class Quiet:
    """Nothing ever fires."""

    def fires(self, kind: Kind, place: str = "") -> bool:
        return False

    def enabled(self, kind: Kind) -> bool:
        return False


@define
class Swarm:
    """
    Each seed has other kinds enabled, and its own rate of firing.

    A run with everything enabled hides bugs that need a quiet rest of the world; so of each seed's probability of a
    kind being enabled is itself drawn from {0, 1/4, 1/2, 1}, and how often it then fires from {0.1, 1, 10, 25 %}.
    """

    source: Source
    only: tuple[str, ...] = ()
    scale: float = 1.0
    rates: dict[str, float] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        enabling = pick(self.source, ENABLED, "share of kinds enabled")
        for kind in CATALOGUE:
            if self.only and kind.id not in self.only:
                continue
            if chance(self.source, enabling, f"{kind.name} enabled"):
                rate = pick(self.source, FIRES, f"{kind.name} fires")
                self.rates[kind.name] = rate * kind.share * self.scale

    def enabled(self, kind: Kind) -> bool:
        return kind.name in self.rates

    def fires(self, kind: Kind, place: str = "") -> bool:
        return chance(self.source, self.rates.get(kind.name, 0.0), kind.name)


@define
class Rates:
    """Named kinds fire with given probabilities; a name is an id or id and place."""

    source: Source
    rates: Mapping[str, float]

    def _rate(self, kind: Kind) -> float:
        rate = self.rates.get(kind.name)
        return self.rates.get(kind.id, 0.0) * kind.share if rate is None else rate

    def enabled(self, kind: Kind) -> bool:
        return self._rate(kind) > 0

    def fires(self, kind: Kind, place: str = "") -> bool:
        return chance(self.source, self._rate(kind), kind.name)


@define
class Script:
    """Exactly these: a kind by name, at its n-th opportunity (the first is 0). This is what a failure shrinks to."""

    plan: frozenset[tuple[str, int]]
    seen: Counter[str] = field(factory=Counter)
    names: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.names = frozenset(name for name, _ in self.plan)

    def enabled(self, kind: Kind) -> bool:
        return kind.name in self.names

    def fires(self, kind: Kind, place: str = "") -> bool:
        count = self.seen[kind.name]
        self.seen[kind.name] += 1
        return (kind.name, count) in self.plan


class Decider(Protocol):
    """Says whether a kind can fire at all, and whether it does at this opportunity."""

    def enabled(self, kind: Kind) -> bool: ...

    def fires(self, kind: Kind, place: str = "") -> bool: ...


@frozen
class Verdict:
    """What happens to one call."""

    act: Act | None = None
    kind: Kind | None = None
    error: PortError | None = None
    lie: str = ""


PASS = Verdict()


@frozen
class Fired:
    """One entry of the ledger: when, which kind, where, and its number among the opportunities of its kind."""

    at: int
    name: str
    verb: str
    place: str
    opportunity: int


class Faults:
    """What goes wrong in one world. `heal` ends it: nothing fires from then on."""

    def __init__(self, decider: Decider, source: Source, now: Callable[[], int]) -> None:
        self.decider = decider
        self.source = source
        self.now = now
        self.healed = False
        self.ledger: Counter[str] = Counter()
        self.critical: Counter[str] = Counter()
        self.fired: list[Fired] = []
        self.opportunities: Counter[str] = Counter()
        self.last: dict[str, int] = {}
        """When something went wrong last, by port."""
        self._windows: dict[tuple[str, str], int] = {}
        self._rain: dict[str, tuple[float, int]] = {}
        self._at: dict[tuple[str, str], tuple[Kind, ...]] = {}
        for kind in CATALOGUE:
            if decider.enabled(kind):
                for verb in kind.verbs:
                    self._at[kind.port, verb] = (*self._at.get((kind.port, verb), ()), kind)

    def enabled(self, port: str, verb: str) -> bool:
        """Whether anything can go wrong there at all."""
        return not self.healed and ((port, verb) in self._at or bool(self._windows))

    def heal(self) -> None:
        """No fault fires from now on, and every window closes."""
        self.healed = True
        self._windows.clear()
        self._rain.clear()

    def rain(self, name: str, probability: float, until: int) -> None:
        """Have a kind fire with this probability for a while, as storms do."""
        self._rain[name] = (probability, until)
        self.window(name, "", 0)

    def verdict(self, port: str, verb: str, place: str = "") -> Verdict:
        """What happens to this call; the first kind that fires wins."""
        if self.healed:
            return PASS
        for kind in self._at.get((port, verb), ()):
            if self._open(kind, place) or self._fires(kind, verb, place):
                return self._made(kind)
        return PASS

    def happens(self, port: str, verb: str, place: str = "") -> Sequence[Kind]:
        """Everything that happens by itself at this opportunity."""
        if self.healed:
            return ()
        return [kind for kind in self._at.get((port, verb), ()) if self._fires(kind, verb, place)]

    def window(self, name: str, place: str, until: int) -> None:
        """Open a window by hand, as storms do."""
        self._windows[name, place] = until
        kind = BY_NAME[name]
        for verb in kind.verbs:
            present = self._at.get((kind.port, verb), ())
            if kind not in present:
                self._at[kind.port, verb] = (*present, kind)

    def _open(self, kind: Kind, place: str) -> bool:
        until = self._windows.get((kind.name, place))
        if until is None:
            return False
        if self.now() < until:
            self.ledger[kind.name] += 1
            self.last[kind.port] = self.now()
            return True
        del self._windows[kind.name, place]
        return False

    def _fires(self, kind: Kind, verb: str, place: str) -> bool:
        self.opportunities[kind.name] += 1
        if not self.decider.fires(kind, place) and not self._rains(kind):
            return False
        self.ledger[kind.name] += 1
        self.last[kind.port] = self.now()
        if verb == kind.critical or not kind.critical:
            self.critical[kind.name] += 1
        self.fired.append(Fired(self.now(), kind.name, verb, place, self.opportunities[kind.name] - 1))
        if kind.scope is Scope.WINDOW and kind.act is not Act.HAPPEN:
            length = between(self.source, *WINDOW_S, f"{kind.name} lasts")
            self._windows[kind.name, place] = self.now() + int(length * 1000)
        return True

    def _rains(self, kind: Kind) -> bool:
        rain = self._rain.get(kind.name)
        return rain is not None and self.now() < rain[1] and chance(self.source, rain[0], "rain")

    def _made(self, kind: Kind) -> Verdict:
        error = None
        if kind.act is Act.REFUSE:
            wish = pick(self.source, kind.retry_after_s, "retry after") if kind.retry_after_s else None
            error = kind.error(f"{kind.id}: {kind.says}", wish)
        elif kind.act in (Act.GARBLE, Act.NOISE):
            error = Malformed(f"{kind.id}: {kind.says}")
        elif kind.act is Act.LOSE_ANSWER:
            error = Unanswered(f"{kind.id}: {kind.says}")
        return Verdict(kind.act, kind, error, kind.lie)


WINDOW_S = (5.0, 240.0)
"""How long a window lasts, in seconds."""

BY_NAME: Mapping[str, Kind] = {kind.name: kind for kind in CATALOGUE}


def missing_ids(all_ids: Iterable[str]) -> list[str]:
    """Ids of a catalogue that are neither a kind here nor explained."""
    known = {kind.id for kind in CATALOGUE} | set(NOT_HERE)
    return sorted(set(all_ids) - known)
