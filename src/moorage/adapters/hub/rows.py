"""Sessions and choices as JSON data for the pages. Texts of sites go out as texts; no page makes HTML of them."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from jupyterhub.utils import url_escape_path, url_path_join

from moorage.core.catalog import AccountChoice, Choices, ExtraChoice, PartitionChoice, ResourceRange, WhyNot
from moorage.core.model import (
    NEVER,
    Connecting,
    Degraded,
    Desired,
    Ended,
    Evidence,
    Left,
    Owner,
    Queued,
    Ready,
    Session,
    SessionKey,
    Starting,
    Stopping,
    Waiting,
)
from moorage.core.progress import progress_of
from moorage.ports.sessions import JobReport, Step

from .failures import excerpt, is_bad, sentence
from .reports import Reports, last_line
from .service import Service
from .texts import Texts

MOST_BOOT_STEPS = 50
"""Of a launcher: it has eight of its own, and a site's setup may add some."""


def for_script(data: Any) -> str:
    """JSON that can stand inside a script element: nothing in it ends the element or begins another."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# Sessions ---------------------------------------------------------------------------------------------------------


async def rows_of(user: Any, service: Service, texts: Texts, reports: Reports | None = None) -> list[dict[str, Any]]:
    """One row per server of a user, the default one first. Waits for no system; reports are asked for meanwhile."""
    known = {orm_spawner.name: orm_spawner for orm_spawner in user.orm_user._orm_spawners}
    names = sorted(known, key=lambda name: (name != "", known[name].id))
    return [await _row(user, name, known[name], service, texts, reports) for name in names]


async def _row(
    user: Any, name: str, orm_spawner: Any, service: Service, texts: Texts, reports: Reports | None
) -> dict[str, Any]:
    stored = await service.store.latest(SessionKey(service.hub, Owner(str(user.name)), str(name)))
    spawner = user.spawners.get(name) if name in user.spawners else None
    pending = (spawner.pending or "") if spawner is not None else ""
    ready = bool(spawner is not None and spawner.ready)
    display_name = getattr(orm_spawner, "display_name", "") or name
    row = {
        "server": name,
        "name": display_name or texts("home.default"),
        "url": user.server_url(name),
        "form": url_path_join(user.settings["hub"].base_url, "spawn", user.escaped_name, url_escape_path(name)),
        "pending_url": url_path_join(
            user.settings["hub"].base_url, "spawn-pending", user.escaped_name, url_escape_path(name)
        ),
        "hub": "ready" if ready else pending,
        "options": orm_spawner.user_options or {},
    }
    if stored is None:
        row |= _never(texts)
    else:
        report = reports.of(service, stored.session) if reports is not None else None
        row |= session_row(stored.session, texts, report)
        row["text"] += await _place(service, stored.session, texts)
    row["can"] = list(_actions(row, name))
    return row


async def _place(service: Service, session: Session, texts: Texts) -> str:
    """The place in line of a session that waits for one; a place ahead of others of the same system is told."""
    if not isinstance(session.state, Waiting):
        return ""
    try:
        place = (await service.sessions.get(session.id)).place
    except KeyError:
        return ""
    return f" ({texts('progress.place', place=place)})" if place is not None else ""


def session_row(session: Session, texts: Texts, report: JobReport | None = None) -> dict[str, Any]:
    """What there is to say about one session; `report` is the launcher's, if somebody asked for one."""
    state, spec = session.state, session.spec
    progress = progress_of(state)
    job = getattr(state, "job", None)
    row: dict[str, Any] = {
        "session": spec.id,
        "system": spec.system,
        "service": spec.service,
        "partition": spec.partition,
        "asked_at": spec.asked_at,
        "state": progress.state,
        "tone": _tone(session),
        "percent": progress.percent,
        "text": state_text(session, texts),
        "node": (job.node or "") if job is not None else "",
        "ends_at": job.ends_at if job is not None and job.ends_at not in (None, NEVER) else None,
        "going": session.desired is Desired.UP and not isinstance(state, Stopping | Ended),
        "log": "",
        "line": "",
    }
    if isinstance(state, Ended | Stopping):
        row["log"] = excerpt(state.evidence)
        row["line"] = last_line(state.evidence.log.splitlines())
    elif report is not None:
        row["line"] = last_line(report.log)
    return row


def report_row(report: JobReport | None, texts: Texts) -> dict[str, Any]:
    """What a launcher said last: the steps of its node's boot and the end of the lab's output."""
    if report is None:
        return {"steps": [], "log": ""}
    steps = [{"at": at, "text": texts.get(f"boot.{name}", name)} for name, at in report.steps[-MOST_BOOT_STEPS:]]
    return {"steps": steps, "log": excerpt(Evidence(log="\n".join(report.log)))}


def state_text(session: Session, texts: Texts) -> str:
    """The state in one sentence: what is so, and why if the system said why."""
    state = session.state
    match state:
        case Ended():
            return sentence(texts, state.cause, state.evidence)
        case Stopping():
            return texts.with_note(texts("state.stopping"), state.note)
        case Waiting():
            return texts.with_note(texts(f"why.{state.why.value}"), state.note)
        case Queued():
            return texts.with_note(texts("state.queued"), state.job.note)
        case Starting() | Connecting() | Ready() | Degraded():
            text = texts(f"state.{type(state).__name__.lower()}")
            return texts("state.on", text=text, node=state.job.node) if state.job.node else text
        case _:
            return texts(f"state.{type(state).__name__.lower()}")


def step_row(step: Step, texts: Texts) -> dict[str, Any]:
    """One entry of a history."""
    return {
        "position": step.position,
        "at": step.at,
        "event": step.event,
        "state": step.progress.state,
        "percent": step.progress.percent,
        "text": texts.progress(step.progress),
    }


def residue_rows(sessions: Iterable[Session]) -> list[dict[str, Any]]:
    """What has been left behind and is still being removed."""
    return [
        {
            "session": session.id,
            "owner": session.spec.key.owner,
            "system": session.spec.system,
            "kind": left.kind.value,
            "job": left.job or "",
            "since": left.since,
            "tries": left.tries,
            "due": left.due,
        }
        for session in sessions
        for left in session.residue
        if left.kind is not Left.LOG
    ]


def _never(texts: Texts) -> dict[str, Any]:
    nothing = dict.fromkeys(("session", "system", "service", "partition", "node", "log"), "")
    state = {"state": "none", "tone": "secondary", "percent": 0, "text": texts("state.none"), "going": False}
    return nothing | state | {"ends_at": None, "asked_at": None}


def _tone(session: Session) -> str:
    """Bootstrap's word for how good or bad the state is."""
    match session.state:
        case Ready():
            return "success"
        case Degraded():
            return "warning"
        case Ended(cause):
            return "danger" if is_bad(cause) else "secondary"
        case Stopping():
            return "secondary"
        case _:
            return "info"


def _actions(row: Mapping[str, Any], name: str) -> Iterable[str]:
    if row["hub"] == "ready" and row["state"] in ("ready", "degraded"):
        yield "open"
        yield "stop"
    elif row["going"]:
        yield "watch"
        yield "cancel"
    elif row["hub"] in ("spawn", "check"):
        yield "cancel"
    elif row["hub"] == "stop":
        return
    else:
        # A session that is still being cleaned up does not stand in the way: the next one waits for its end.
        if row["options"] or row["state"] != "none":
            yield "start"
        yield "change"
        if name:
            yield "delete"


def _with(text: str, note: str) -> str:
    return f"{text}: {note}" if note else text


# Choices ----------------------------------------------------------------------------------------------------------


def tree_of(choices: Choices, texts: Texts) -> dict[str, Any]:
    """
    The choice tree as data. Partitions that several projects share, and kernels that a service has on several systems,
    are written once, by number: a person with forty projects would otherwise be sent every partition forty times.
    """
    shared: dict[int, int] = {}
    partitions: list[list[dict[str, Any]]] = []
    lists: dict[int, int] = {}
    extras: list[list[dict[str, Any]]] = []

    def number_of(of: tuple[ExtraChoice, ...]) -> int:
        if id(of) not in lists:
            lists[id(of)] = len(extras)
            extras.append([_extra(each, texts) for each in of])
        return lists[id(of)]

    def number(of: tuple[PartitionChoice, ...]) -> int:
        if id(of) not in shared:
            shared[id(of)] = len(partitions)
            partitions.append([_partition(each, texts) for each in of])
        return shared[id(of)]

    def account(each: AccountChoice) -> dict[str, Any]:
        projects = [_choice(project, texts) | {"partitions": number(project.partitions)} for project in each.projects]
        return _choice(each, texts) | {"projects": projects}

    return {
        "notice": choices.notice,
        "services": [
            _choice(each, texts)
            | {
                "kind": each.kind,
                "version": each.version,
                "deprecated": each.deprecated,
                "preferred": each.default,
                "places": [
                    {
                        "name": place.name,
                        "why": _why(place.why_not, texts),
                        "partitions": place.partitions,
                        "kernels": number_of(place.kernels),
                        "extensions": number_of(place.extensions),
                    }
                    for place in each.places
                ],
            }
            for each in choices.services
        ],
        "systems": [
            _choice(each, texts)
            | {
                "notice": each.notice,
                "planned": [
                    {"begins": window.begins, "ends": window.ends, "notice": window.notice} for window in each.planned
                ],
                "accounts": [account(one) for one in each.accounts],
            }
            for each in choices.systems
        ],
        "partitions": partitions,
        "extras": extras,
    }


def _choice(each: Any, texts: Texts) -> dict[str, Any]:
    return {"name": each.name, "description": each.description, "why": _why(each.why_not, texts)}


def _partition(each: PartitionChoice, texts: Texts) -> dict[str, Any]:
    return _choice(each, texts) | {
        "login": each.login,
        "resources": {name: _range(limits) for name, limits in each.resources.items()},
        "reservations": [_choice(one, texts) for one in each.reservations],
    }


def _extra(each: ExtraChoice, texts: Texts) -> dict[str, Any]:
    return _choice(each, texts) | {"ticked": each.ticked}


def _range(limits: ResourceRange) -> list[int]:
    return [limits.least, limits.most, limits.default]


def _why(why_not: WhyNot | None, texts: Texts) -> dict[str, Any] | None:
    if why_not is None:
        return None
    return {"text": _with(texts(f"lack.{why_not.lack.value}"), why_not.note), "until": why_not.until}
