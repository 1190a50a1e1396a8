"""
What goes wrong, as data: rules that match requests, connections, jobs or notifications, and a ledger of
what fired.

A rule is a mapping. `fault` takes one of the `F-U*` rows of the catalogue below (with `variant` where it has
several) and every other key overrides; or `do` says directly what happens. Keys:

    do           one of `verdicts`
    on           endpoint classes: core token certificate submit status list details submitted abort start
                 restart delete change storage files upload mkdir rename remove transfers forward registry
                 factory sites admin, or `*`; `session` matches any request that carries a security session
    position     before or after the effect
    skip, times  let so many matching requests pass first; fire at most so often
    probability  0 to 1, drawn from the seeded generator
    since_s, until_s   window, in seconds since the rule was added
    match        only requests whose path and query contain this text
    ...          arguments of the verdict: delay_s status message headers variant bytes_per_s location
                 key says size lifetime_s state

    faults: [{fault: F-U3, times: 1}, {do: answer, on: [status], status: 404, until_s: 60}]
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import yaml
from attrs import frozen

from .answers import Answer, Failure, json_answer, type_html
from .clock import Clock
from .config import ConfigError, structure

before_effect = {"hang", "drop", "delay", "answer", "redirect", "anonymous", "ignore", "stale", "upload"}
verdicts = before_effect | {
    "headers",  # change or (null) remove headers of the answer
    "garbage",  # variant: html empty truncated short types deep huge nul duplicate nan
    "slow",  # bytes_per_s
    "say",  # put other values into a JSON answer: key, says (taken in turn)
    "list",  # variant: lost-page, changing, ignore-tags, forget
    "lifetime",  # new jobs live lifetime_s
    "staging",  # server-side imports fail
    "stick",  # state: jobs never leave it
    "notify",  # variant: lose, duplicate, hold, forge, unknown, huge, stranger
    "refuse",  # nobody listens between since_s and until_s
    "reset",  # connections end as soon as they are accepted
    "certificate",  # variant: expired, other
}
endpoints = frozenset(
    [
        "core",
        "token",
        "certificate",
        "submit",
        "status",
        "list",
        "details",
        "submitted",
        "abort",
        "start",
        "restart",
        "delete",
        "change",
        "storage",
        "files",
        "upload",
        "mkdir",
        "rename",
        "remove",
        "transfers",
        "forward",
        "registry",
        "factory",
        "sites",
        "admin",
        "session",
        "connect",
        "notification",
        "life",
        "staging",
        "*",
    ]
)


@frozen
class Rule:
    do: str = attrs.field(validator=attrs.validators.in_(verdicts))
    on: Sequence[str] = attrs.field(
        default=("*",), validator=attrs.validators.deep_iterable(attrs.validators.in_(endpoints))
    )
    fault: str = ""
    position: str = attrs.field(default="before", validator=attrs.validators.in_(("before", "after")))
    skip: int = 0
    times: int | None = None
    probability: float = attrs.field(default=1.0, validator=[attrs.validators.ge(0), attrs.validators.le(1)])
    since_s: float = 0.0
    until_s: float | None = None
    match: str = ""
    delay_s: float = 0.0
    status: int = attrs.field(default=500, validator=[attrs.validators.ge(200), attrs.validators.le(599)])
    message: str | None = None
    headers: Mapping[str, str | None] = attrs.Factory(dict)
    variant: str = ""
    bytes_per_s: float = attrs.field(default=1.0, validator=attrs.validators.gt(0))
    location: str = "https://elsewhere.invalid/rest/core"
    key: str = "status"
    says: Sequence[str] = ()
    size: int = attrs.field(default=100 * 1024 * 1024, validator=attrs.validators.le(1 << 31))
    lifetime_s: float = 1.0
    state: str = "STAGINGIN"

    @property
    def label(self) -> str:
        return self.fault or self.do


def _answer(status: int, message: str | None = None, **headers: str) -> dict[str, Any]:
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    return {"do": "answer", "status": status, "message": message, "headers": names}


_submit: dict[str, Any] = {"on": ["submit"]}
_abort: dict[str, Any] = {"on": ["abort", "delete"]}
_list: dict[str, Any] = {"on": ["list"], "do": "list"}
_told: dict[str, Any] = {"on": ["notification"], "do": "notify"}
_all: dict[str, Any] = {"on": ["*"]}
_garbage = ("html", "empty", "truncated", "short", "types", "deep", "huge", "nul", "duplicate", "nan")
_switched_off = "Job submission is currently disabled --- please try again later!"

# The rows of the fault table; where a row has several forms, `variant` picks one, the first is the default.
catalogue: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "F-U1": {
        "refused": {"do": "refuse", "on": ["connect"]},
        "reset": {"do": "reset", "on": ["connect"]},
        "tls": {"do": "certificate", "on": ["connect"], "variant": "other"},
    },
    "F-U2": {
        "hang": _submit | {"do": "hang"},
        "drop": _submit | {"do": "drop"},
    },
    "F-U3": {
        "hang": _submit | {"do": "hang", "position": "after"},
        "drop": _submit | {"do": "drop", "position": "after"},
    },
    "F-U4": {"late": _submit | {"do": "delay", "position": "after", "delay_s": 5.0}},
    "F-U5": {
        "missing": _submit | {"do": "headers", "headers": {"Location": None}},
        "foreign": _submit | {"do": "headers", "headers": {"Location": "https://elsewhere.invalid/X/rest/core/jobs/1"}},
    },
    "F-U6": {"500": _submit | _answer(500, "Could not submit job: java.lang.Exception: x") | {"position": "after"}},
    "F-U7": {"503": _submit | _answer(503, _switched_off)},
    "F-U8": {"403": _all | _answer(403), "401": _all | _answer(401)},
    "F-U9": {"anonymous": {"do": "anonymous", "on": ["*"]}},
    "F-U10": {"432": {"on": ["session"]} | _answer(432)},
    "F-U11": {
        "none": _all | _answer(429),
        "seconds": _all | _answer(429, Retry_After="1"),
        "zero": _all | _answer(429, Retry_After="0"),
        "negative": _all | _answer(429, Retry_After="-1"),
        "absurd": _all | _answer(429, Retry_After="1000000000"),
        "past": _all | _answer(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    },
    "F-U12": {
        "dribble": _all | {"do": "slow", "bytes_per_s": 1.0},
        "late": _all | {"do": "delay", "delay_s": 119.0},
    },
    "F-U13": {kind: _all | {"do": "garbage", "variant": kind} for kind in _garbage},
    "F-U14": {
        "host": _all | {"do": "redirect", "location": "https://elsewhere.invalid/rest/core", "status": 302},
        "scheme": _all | {"do": "redirect", "location": "ftp://elsewhere.invalid/", "status": 307},
    },
    "F-U15": {"404": {"on": ["status", "details"]} | _answer(404)},
    "F-U16": {
        "flap": {
            "do": "say",
            "on": ["status"],
            "says": ["RUNNING", "QUEUED", "RUNNING", "FAILED", "RUNNING"],
        }
    },
    "F-U17": {
        "failed": {"do": "say", "on": ["status"], "says": ["FAILED"]},
        "successful": {"do": "say", "on": ["status"], "says": ["SUCCESSFUL"]},
    },
    "F-U18": {
        "STAGINGIN": {"do": "stick", "on": ["life"], "state": "STAGINGIN"},
        "READY": {"do": "stick", "on": ["life"], "state": "READY"},
    },
    "F-U19": {
        kind: _told | {"variant": kind}
        for kind in ("lose", "duplicate", "hold", "stranger", "forge", "unknown", "huge")
    },
    "F-U20": {"early": _submit | {"do": "delay", "position": "after", "delay_s": 1.0}},
    "F-U21": {
        "before": _abort | {"do": "hang"},
        "after": _abort | {"do": "hang", "position": "after"},
        "404": _abort | _answer(404),
        "409": _abort | _answer(409),
        "ignored": _abort | {"do": "ignore"},
    },
    "F-U22": {kind: _list | {"variant": kind} for kind in ("lost-page", "changing", "ignore-tags", "forget")},
    "F-U23": {
        "cut": {"do": "upload", "on": ["upload"], "variant": "cut"},
        "size": {"do": "upload", "on": ["upload"], "variant": "size"},
        "quota": {"do": "upload", "on": ["upload"], "variant": "quota"},
        "staging": {"do": "staging", "on": ["staging"]},
    },
    "F-U24": {"short": {"do": "lifetime", "on": ["life"], "lifetime_s": 1.0}},
    "F-U25": {
        "expired": {"do": "certificate", "on": ["connect"], "variant": "expired"},
        "other": {"do": "certificate", "on": ["connect"], "variant": "other"},
    },
    "F-U26": {"stale": {"do": "stale", "on": ["status", "list"], "probability": 0.5}},
}


def rule_from(data: Mapping[str, Any]) -> Rule:
    """A rule from plain data; raises `ConfigError` with the key that is wrong."""
    # YAML 1.1 reads the word `on` as true, and a variant that is a number as one.
    values: dict[str, Any] = {"on" if str(key) == "True" else key: value for key, value in data.items()}
    if isinstance(values.get("variant"), int):
        values["variant"] = str(values["variant"])
    fault = values.get("fault", "")
    if fault and "do" not in values:
        variants = catalogue.get(fault)
        if variants is None:
            raise ConfigError(f"fault: {fault!r} is not in the catalogue")
        name = values.pop("variant", None) or next(iter(variants))
        if name not in variants:
            raise ConfigError(f"{fault}: variant {name!r} is none of {', '.join(variants)}")
        values = {**variants[name], **values}
    if isinstance(values.get("on"), str):
        values["on"] = [values["on"]]
    if isinstance(values.get("headers"), dict):
        bad = [k for k, v in values["headers"].items() if v is not None and re.search(r"[\r\n\0]", str(v))]
        if bad:
            raise ConfigError(f"headers.{bad[0]}: control characters")
    rule = structure(Rule, values, "fault")
    assert isinstance(rule, Rule)
    return rule


def load(path: Path) -> tuple[list[Rule], int]:
    """Rules and seed from a YAML or JSON file: a list of rules, or `{seed: 1, faults: [...]}`."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if isinstance(data, list):
        data = {"faults": data}
    if not isinstance(data, dict) or not isinstance(data.get("faults", []), list):
        raise ConfigError(f"{path}: a list of faults is expected")
    seed = data.get("seed", 0)
    return [rule_from(item) for item in data.get("faults", [])], int(seed)


class Faults:
    """The rules of one server, what they decide, and the ledger (label and endpoint class to count)."""

    def __init__(self, clock: Clock, rules: Sequence[Rule] = (), seed: int = 0) -> None:
        self._clock = clock
        self._random = random.Random(seed)  # noqa: S311 - faults are drawn, not secrets
        self._active: list[_Active] = []
        self.added: list[Callable[[Rule], None]] = []  # the server listens for rules about its sockets
        self.ledger: Counter[tuple[str, str]] = Counter()
        self._remembered: dict[str, Answer] = {}
        for rule in rules:
            self.add(rule)

    def add(self, rule: Rule | Mapping[str, Any]) -> Rule:
        made = rule if isinstance(rule, Rule) else rule_from(rule)
        self._active.append(_Active(made, self._clock.now()))
        for tell in self.added:
            tell(made)
        return made

    def clear(self) -> None:
        self._active.clear()
        self._remembered.clear()

    def rules(self) -> list[Rule]:
        return [active.rule for active in self._active]

    @property
    def any(self) -> bool:
        return bool(self._active)

    def fired(self, rule: Rule, endpoint: str) -> None:
        self.ledger[rule.label, endpoint] += 1

    def draw(self, endpoint: str, target: str = "", has_session: bool = False) -> list[Rule]:
        """The rules that fire for one request, connection, job or notification. Counted when applied."""
        now = self._clock.now()
        return [
            active.rule
            for active in self._active
            if active.concerns(endpoint, target, has_session, now) and active.takes(self._random)
        ]

    def sticks(self, status: str) -> bool:
        return any(r.do == "stick" and r.state == status for r in self._draw_applied("life", status))

    def lifetime(self) -> float | None:
        drawn = self._draw_applied("life", "lifetime")
        return next((rule.lifetime_s for rule in drawn if rule.do == "lifetime"), None)

    def check_staging(self) -> None:
        if self._draw_applied("staging", ""):
            raise Failure(500, "java.io.IOException: Disk quota exceeded")

    def _draw_applied(self, endpoint: str, what: str) -> list[Rule]:
        now = self._clock.now()
        drawn = []
        for active in self._active:
            rule = active.rule
            if endpoint == "life" and what != ("lifetime" if rule.do == "lifetime" else rule.state):
                continue
            if active.concerns(endpoint, "", False, now) and active.takes(self._random):
                self.fired(rule, endpoint)
                drawn.append(rule)
        return drawn

    def instead(self, rule: Rule, endpoint: str, target: str) -> Answer | None:
        """The answer a rule gives in place of the handler's, for `answer`, `redirect`, `ignore`, `stale`."""
        if rule.do == "answer":
            return self._error(rule)
        if rule.do == "redirect":
            return Answer(rule.status if 300 <= rule.status < 400 else 302, headers={"Location": rule.location})
        if rule.do == "ignore":
            if endpoint == "submit":
                base = target.split("/rest/core")[0]
                return Answer(201, headers={"Location": f"{base}/rest/core/jobs/0000000000x"})
            return Answer(204)
        if rule.do == "stale":
            return self._remembered.get(target)
        return None

    def _error(self, rule: Rule) -> Answer:
        headers = {key: value for key, value in rule.headers.items() if value is not None}
        if rule.message is None:
            return Answer(rule.status, headers=headers)
        return json_answer({"errorMessage": rule.message, "status": rule.status}, rule.status, headers)

    def change(self, rule: Rule, answer: Answer, target: str) -> Answer:
        """What a rule makes of the handler's answer."""
        if rule.do == "headers":
            for name, value in rule.headers.items():
                answer.headers.pop(name, None)
                if value is not None:
                    answer.headers[name] = value
        elif rule.do == "slow":
            answer.bytes_per_s = rule.bytes_per_s
        elif rule.do == "garbage":
            return garble(answer, rule.variant or "html", rule.size)
        elif rule.do == "say":
            return self._say(rule, answer)
        elif rule.do == "list":
            return _spoil_list(answer, rule.variant, self._random)
        elif rule.do == "stale" and target not in self._remembered:
            # The lagging replica's view is what it saw first while the rule was active.
            self._remembered[target] = attrs.evolve(answer, headers=dict(answer.headers))
        elif rule.do == "answer" and rule.position == "after":
            return self._error(rule)
        return answer

    def _say(self, rule: Rule, answer: Answer) -> Answer:
        try:
            document = json.loads(answer.body)
        except ValueError:
            return answer
        if not isinstance(document, dict) or rule.key not in document or not rule.says:
            return answer
        turn = sum(count for (label, _), count in self.ledger.items() if label == rule.label)
        document[rule.key] = rule.says[(turn - 1) % len(rule.says)]
        return json_answer(document, answer.status, answer.headers)


class _Active:
    """A rule with what it has seen so far."""

    def __init__(self, rule: Rule, since: float) -> None:
        self.rule = rule
        self._since = since
        self._seen = 0
        self._fired = 0

    def concerns(self, endpoint: str, target: str, has_session: bool, now: float) -> bool:
        rule, age = self.rule, now - self._since
        if age < rule.since_s or (rule.until_s is not None and age >= rule.until_s):
            return False
        special = endpoint in ("connect", "notification", "life", "staging")
        wanted = endpoint in rule.on or ("*" in rule.on and not special) or (has_session and "session" in rule.on)
        return wanted and rule.match in target

    def takes(self, choices: random.Random) -> bool:
        """Whether it fires this time; call once per request it concerns."""
        rule = self.rule
        self._seen += 1
        if self._seen <= rule.skip or (rule.times is not None and self._fired >= rule.times):
            return False
        if rule.probability < 1 and choices.random() >= rule.probability:
            return False
        self._fired += 1
        return True


def garble(answer: Answer, variant: str, size: int) -> Answer:
    """An answer of the same status that is no proper answer. `size` is for `huge`, in bytes."""
    text = answer.body or b'{"status":"RUNNING"}'
    made = attrs.evolve(answer, part=None, content_type="application/json")
    if variant == "html":
        made.body, made.content_type = b"<html><body><h1>It works!</h1></body></html>", type_html
    elif variant == "empty":
        made.body = b""
    elif variant == "truncated":
        made.body = text[: max(1, len(text) // 2)]
    elif variant == "short":
        made.body, made.promised = text[: max(1, len(text) // 2)], len(text) + 1
    elif variant == "types":
        made.body = b'{"status":7,"jobs":"x","_links":[],"log":{},"exitCode":{"a":1},"client":[1],"content":4}'
    elif variant == "deep":
        made.body = b'{"status":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    elif variant == "huge":
        made.body, made.padding = b'{"status":"', size
    elif variant == "nul":
        made.body = b"\0" + text.replace(b":", b":\0")
    elif variant == "duplicate":
        made.body = b'{"status":"FAILED","status":"RUNNING","status":"SUCCESSFUL"}'
    elif variant == "nan":
        made.body = b'{"status":NaN,"exitCode":Infinity,"size":-Infinity}'
    else:
        raise ConfigError(f"garbage: unknown variant {variant!r}")
    return made


def _spoil_list(answer: Answer, variant: str, choices: random.Random) -> Answer:
    """A listing that is not complete or not stable; `ignore-tags` is done by the handler."""
    try:
        document = json.loads(answer.body)
    except ValueError:
        return answer
    if not isinstance(document, dict):
        return answer
    for key, value in document.items():
        if isinstance(value, list) and variant == "forget":
            document[key] = value[:-1]
        elif isinstance(value, list) and variant == "changing":
            choices.shuffle(value)
            document[key] = value[1:] if len(value) > 1 else value
    if variant == "lost-page":
        document.get("_links", {}).pop("next", None)
    return json_answer(document, answer.status, answer.headers)
