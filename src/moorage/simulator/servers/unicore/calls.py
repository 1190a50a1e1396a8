"""What the calls below `/rest/core` do, storages and files excepted, and below `/rest/registries` and admin."""

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any
from urllib.parse import unquote

import jwt

from . import documents, files
from .access import Operation, acl_problem, compact, may
from .answers import (
    Answer,
    Failure,
    created,
    json_answer,
    no_content,
    pick,
    split_words,
    type_form,
    type_html,
    type_json,
    type_text,
)
from .forwarding import protocol_name, take_over, tunnel
from .jobs import Job
from .orgjson import BadJSON, parse_object
from .routes import Call, Route, Routes
from .site import Resource

switched_off = "Job submission is currently disabled --- please try again later!"
verdict_unknown = "Property not found or cannot be modified!"


def shown(call: Call, document: Mapping[str, Any]) -> Answer:
    return json_answer(pick(document, call.query.get("fields")), as_html=call.html)


def require_user(call: Call) -> None:
    """POST on factories and collections needs the role `user`; 403 without a body."""
    if call.caller.role not in ("user", "admin"):
        raise Failure(403)


def require(call: Call, resource: Resource | Job, operation: Operation) -> None:
    if not may(call.caller, operation, resource.owner, resource.acl):
        raise Failure(403)


def require_owner(call: Call, resource: Resource | Job) -> None:
    if call.caller.role != "admin" and compact(call.caller.dn) != compact(resource.owner):
        raise Failure(403)


def page(call: Call, name: str, resources: Iterable[Resource | Job], default_num: int = 200) -> Answer:
    """A collection: only what the caller may read and what carries all the tags asked for."""
    offset, num = call.integer("offset", 0), call.integer("num", default_num)
    if offset < 0 or num < 0:
        raise Failure(500, "java.lang.IllegalArgumentException: offset and num must be positive.")
    tags = set(split_words(call.query.get("tags")))
    if any(rule.do == "list" and rule.variant == "ignore-tags" for rule in call.rules):
        tags = set()
    caller, own = call.caller, compact(call.caller.dn) if call.caller.role != "banned" else None
    ids = [
        resource.id
        for resource in resources
        if (not tags or tags.issubset(resource.tags))
        and (resource.owner == own or may(caller, "read", resource.owner, resource.acl))
    ]
    url = f"{call.base}/{name}"
    return json_answer(documents.collection(name, url, ids, url, offset, num), as_html=call.html)


async def modify(call: Call, resource: Resource | Job, extra: Mapping[str, Any] | None = None) -> Answer:
    """
    PUT on a single resource: one verdict per key, always 200.

    `extra` maps further settable names to functions of the value. Source: UNICORE-EU/use BaseRESTController.
    """
    require(call, resource, "modify")
    said = {}
    for key, value in (await call.json("Could not set properties")).items():
        if key == "tags":
            words = value if isinstance(value, list) else split_words(str(value))
            resource.tags = [str(word) for word in words][:1000]
            said[key] = "OK"
        elif key == "acl":
            said[key] = _set_acl(call, resource, value)
        elif key == "terminationTime":
            said[key] = _set_end(call, resource, str(value))
        elif extra and key in extra:
            extra[key](str(value))
            said[key] = "OK"
        else:
            said[key] = verdict_unknown
    call.site.keep(resource)
    return json_answer(said)


def _set_acl(call: Call, resource: Resource | Job, value: Any) -> str:
    require_owner(call, resource)
    entries = [str(entry) for entry in (value if isinstance(value, list) else [value])]
    problem = next(filter(None, map(acl_problem, entries)), None)
    if problem:
        return f"Error setting property: {problem}"
    resource.acl = entries
    return "OK"


def _set_end(call: Call, resource: Resource | Job, text: str) -> str:
    moment = call.site.parse_moment(text)
    if moment is None:
        return "Error setting property: java.text.ParseException: Unparseable date: " + f'"{text[:100]}"'
    if moment > call.site.clock.now() + call.site.config.longest_lifetime_s:
        return "Error setting property: java.lang.Exception: Requested termination time is too late."
    resource.ends_at = moment
    return "OK"


# --- core ------------------------------------------------------------------------------------------------


def require_not_banned(call: Call) -> None:
    """What everybody may see, also without credentials, is closed to the banned. Source: UNICORE-EU/use DefaultPDP."""
    if call.caller.role == "banned":
        raise Failure(403)


async def get_core(call: Call) -> Answer:
    require_not_banned(call)
    document = documents.core(call.site, call.caller, call.base, call.query.get("fields"))
    return json_answer(document, as_html=call.html)


async def get_token(call: Call) -> Answer:
    """A delegation token for the caller. Source: UNICORE-EU/use, JWT issuing; 403 if not renewable."""
    identity = call.caller.identity
    if identity.method is None:
        raise Failure(403)
    if identity.method == "ETD" and not identity.renewable:
        raise Failure(403, "java.lang.Exception: Token cannot be renewed")
    lifetime_s = call.integer("lifetime", 300)
    now = call.site.clock.now()
    if lifetime_s <= 0 or now + lifetime_s > call.site.key.ends_at:
        raise Failure(400, "java.lang.IllegalArgumentException: Requested lifetime is too long")
    extra = {}
    if call.query.get("renewable") == "true":
        extra["renewable"] = "true"
    if call.query.get("limited") == "true":
        extra["aud"] = call.site.key.dn
    chosen = call.caller.session.preferences if call.caller.session else {}
    if chosen:
        extra["preferences"] = ",".join(f"{key}:{value}" for key, value in chosen.items())
    if call.caller.uid is not None:
        extra["uid"] = call.caller.uid
    token = call.site.key.token(call.caller.dn, now, lifetime_s, extra)
    return Answer(200, token.encode(), type_text)


async def get_certificate(call: Call) -> Answer:
    return Answer(200, call.site.key.certificate_pem.encode(), type_text)


# --- factories and sites ---------------------------------------------------------------------------------


async def get_factories(call: Call) -> Answer:
    require_not_banned(call)
    url = f"{call.base}/factories"
    document = documents.collection("factories", url, [documents.factory_id], url, 0, 200)
    return json_answer(document, as_html=call.html)


def _check_factory(call: Call) -> None:
    if call.args[0] != documents.factory_id:
        raise Failure(404)
    require_not_banned(call)


async def get_factory(call: Call) -> Answer:
    _check_factory(call)
    return shown(call, documents.factory(call.site, call.caller, call.base))


async def get_factory_applications(call: Call) -> Answer:
    _check_factory(call)
    return _applications(call)


async def get_factory_application(call: Call) -> Answer:
    _check_factory(call)
    return _application(call, call.args[1])


async def refuse(call: Call) -> Answer:
    raise Failure(403)


async def create_site(call: Call) -> Answer:
    require_user(call)
    wish = await call.json("Could not create target system")
    ends_at = None
    if "terminationTime" in wish:
        ends_at = call.site.parse_moment(str(wish["terminationTime"]))
        if ends_at is None:
            raise Failure(500, "Could not create target system: java.text.ParseException: Unparseable date")
    target = call.site.new_target(call.caller.dn, ends_at)
    return created(f"{call.base}/sites/{target.id}")


async def get_sites(call: Call) -> Answer:
    return page(call, "sites", call.site.targets.values())


def _target(call: Call, operation: Operation = "read") -> Any:
    target = call.site.targets.get(call.args[0])
    if target is None:
        raise Failure(404)
    require(call, target, operation)
    return target


async def get_site(call: Call) -> Answer:
    return shown(call, documents.target_system(call.site, _target(call), call.caller, call.base))


async def put_site(call: Call) -> Answer:
    return await modify(call, _target(call))


async def delete_site(call: Call) -> Answer:
    target = _target(call)
    require_owner(call, target)
    del call.site.targets[target.id]
    for job in [job for job in call.site.jobs.values() if job.site_id == target.id]:
        call.site.delete_job(job)
    return no_content()


async def get_site_jobs(call: Call) -> Answer:
    target = _target(call)
    mine = (job for job in call.site.jobs.values() if job.site_id == target.id)
    return page(call, "jobs", mine, default_num=100)


async def get_site_applications(call: Call) -> Answer:
    _target(call)
    return _applications(call)


async def get_site_application(call: Call) -> Answer:
    _target(call)
    return _application(call, call.args[1])


async def submit_to_site(call: Call) -> Answer:
    return await _submit(call, _target(call, "write"), None)


def _applications(call: Call) -> Answer:
    names = [f"{a.name}---v{a.version}" for a in call.site.config.applications]
    return json_answer({"applications": names}, as_html=call.html)


def _application(call: Call, name: str) -> Answer:
    document = documents.application(call.site, unquote(name))
    if document is None:
        raise Failure(404)
    return json_answer(document, as_html=call.html)


# --- jobs ------------------------------------------------------------------------------------------------


async def get_jobs(call: Call) -> Answer:
    return page(call, "jobs", call.site.jobs.values())


async def submit(call: Call) -> Answer:
    require_user(call)
    return await _submit(call, None, None)


async def _submit(call: Call, target: Any, allocation: Job | None) -> Answer:
    """Nothing but "is it an object" is looked at here; every other mistake is a FAILED job later."""
    require_user(call)
    data = await call.body()
    if not call.site.submission_enabled:
        raise Failure(503, call.site.submission_message or switched_off)
    try:
        description = parse_object(data)
    except BadJSON as error:
        raise Failure(500, f"Could not submit job: org.json.JSONException: {error}") from error
    job = call.site.submit(call.caller, description, target, allocation)
    return created(f"{call.base}/jobs/{job.id}")


def find_job(call: Call, operation: Operation) -> Job:
    """404 is decided before access is: 403 means that the job exists and is not the caller's."""
    job = call.site.jobs.get(call.args[0])
    if job is None:
        raise Failure(404)
    require(call, job, operation)
    if job.preferences:
        call.site.access.with_preferences(call.caller, job.preferences)
    return job


async def get_job(call: Call) -> Answer:
    job = find_job(call, "read")
    return json_answer(documents.job(job, call.base, call.query.get("fields")), as_html=call.html)


async def put_job(call: Call) -> Answer:
    return await modify(call, find_job(call, "read"))


async def delete_job(call: Call) -> Answer:
    job = find_job(call, "read")
    require_owner(call, job)
    call.site.delete_job(job)
    return no_content()


async def submit_task(call: Call) -> Answer:
    job = find_job(call, "write")
    if job.kind != "ALLOCATE":
        raise Failure(500, "Could not submit job: java.lang.Exception: This job is not an allocation.")
    if job.status != "RUNNING":
        raise Failure(
            500,
            "Could not submit job: java.lang.Exception: Allocation is not active. Status is " + job.status,
        )
    if job.batch_id is None or job.batch_id.startswith("INTERACTIVE_"):
        raise Failure(500, "Could not submit job: java.lang.Exception: Allocation is not yet ready!")
    return await _submit(call, call.site.targets.get(job.site_id), job)


async def act_on_job(call: Call) -> Answer:
    """
    Start, abort and restart answer 204 whenever the job exists, also when nothing can be done.

    The form of the debug view is sent back to the job, 303. Source: UNICORE-EU/use BaseRESTController.
    """
    job = find_job(call, "write")
    action = call.args[1]
    if action not in ("start", "abort", "restart"):
        raise Failure(404)
    from_browser = call.request.headers.get("Content-Type", "").partition(";")[0].strip().lower() == type_form
    if not from_browser:
        await call.json(f"Could not perform {action}")
    getattr(call.site.processor, action)(job)
    return Answer(303, headers={"Location": f"{call.base}/jobs/{job.id}"}) if from_browser else no_content()


async def get_details(call: Call) -> Answer:
    job = find_job(call, "read")
    batch_id = job.batch_id
    if batch_id is None or batch_id.startswith("INTERACTIVE_"):
        return json_answer({"rawDetailsData": "N/A"}, as_html=call.html)
    details = call.site.batch.details(batch_id)
    if details is None:
        raise Failure(
            500,
            "Could not get job details: java.lang.Exception: TSI call failed: reply was TSI_FAILED: Command "
            f"'scontrol show jobid {batch_id}' failed with code 1: slurm_load_jobs error: Invalid job id "
            "specified",
        )
    return shown(call, details)


async def get_submitted(call: Call) -> Answer:
    return json_answer(find_job(call, "read").submitted, as_html=call.html)


async def forward_port(call: Call) -> Answer:
    """
    The upgrade to raw bytes. The connection is made after the 101, by the account of the caller, so a
    service that does not listen is a connection that closes. Source: UNICORE-EU/unicorex Jobs, RestServlet.
    """
    job = find_job(call, "read")
    headers = call.request.headers
    if (
        call.request.method != "GET"
        or headers.get("Connection", "").strip().lower() != "upgrade"
        or headers.get("Upgrade", "").strip().lower() != protocol_name.lower()
    ):
        return json_answer({"status": "Nothing to see here yet."})
    context = "Could not connect to backend service"
    if job.batch_id is None:
        raise Failure(
            500,
            f"{context}: java.lang.Exception: Job BSSID is null - application is not (yet?) running.",
        )
    node = call.query.get("loginNode")
    if node and node not in call.site.config.login_nodes:
        raise Failure(500, f"{context}: java.lang.IllegalArgumentException: No TSI configured at '{node[:50]}'")
    file, port_text = call.query.get("file"), call.query.get("port")
    port, socket_file = 0, None
    if file:
        if job.directory is None:
            raise Failure(500, f"{context}: java.lang.Exception: no working directory")
        socket_file = _socket_path(job.directory, file)
    elif not port_text:
        raise Failure(500, f"{context}: java.lang.Exception: Need address to connect to")
    elif not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:9]) < 65_536):
        raise Failure(500, f'{context}: java.lang.NumberFormatException: For input string: "{port_text[:50]}"')
    else:
        port = int(port_text)
    # The nodes of the simulated system are all this machine.
    task = asyncio.create_task(tunnel(take_over(call.request), "127.0.0.1", port, socket_file), name=f"tunnel {job.id}")
    call.site.tunnels.add(task)
    task.add_done_callback(call.site.tunnels.discard)
    return Answer(101)


def _socket_path(directory: Path, name: str) -> Path:
    path = files.inside(directory, files.normal(name))
    return path


# --- reservations, tasks, registries, admin --------------------------------------------------------------


async def get_nothing(call: Call) -> Answer:
    """Collections this site has none of: reservations, storage factories, tasks."""
    name = call.request.path.rstrip("/").rsplit("/", 1)[-1]
    return page(call, name, ())


async def missing(call: Call) -> Answer:
    raise Failure(404)


async def make_reservation(call: Call) -> Answer:
    require_user(call)
    raise Failure(500, "Could not create reservation: java.lang.Exception: Reservation is not supported!")


async def get_admin(call: Call) -> Answer:
    _require_admin(call)
    url = call.base.replace("/rest/core", "/rest/admin")
    server = documents.server(call.site)
    return shown(
        call,
        {
            "upSince": server["upSince"],
            "containerVersion": server["version"],
            "connectionStatus": server["externalConnections"],
            "subSystemsStatus": {"Job processing": "OK"},
            "_links": {f"action:{name}": documents.link(f"{url}/actions/{name}") for name in _admin_actions},
        },
    )


async def act_as_admin(call: Call) -> Answer:
    _require_admin(call)
    action = _admin_actions.get(call.args[0])
    if action is None:
        raise Failure(404)
    success, message, results = action(call, await call.json("Could not perform action"))
    return json_answer({"success": success, "message": message, "results": results})


def _require_admin(call: Call) -> None:
    if call.caller.role != "admin":
        raise Failure(403)


Outcome = tuple[bool, str, dict[str, str]]


def _toggle_submission(call: Call, wish: Mapping[str, Any]) -> Outcome:
    site = call.site
    site.submission_enabled = not site.submission_enabled
    site.submission_message = "" if site.submission_enabled else str(wish.get("message") or switched_off)
    return True, f"OK - job submission is {'enabled' if site.submission_enabled else 'disabled'}", {}


def _abort_job(call: Call, wish: Mapping[str, Any]) -> Outcome:
    job = call.site.jobs.get(str(wish.get("jobID")))
    if job is None:
        return False, "No such job", {}
    if str(wish.get("cleanup")).lower() == "true":
        call.site.delete_job(job)
    else:
        call.site.processor.abort(job)
    return True, f"Aborted job {job.id}", {}


def _issue_token(call: Call, wish: Mapping[str, Any]) -> Outcome:
    extra = {"renewable": "true"} if str(wish.get("renewable")).lower() == "true" else {}
    try:
        lifetime_s = int(wish.get("lifetime") or 300)
    except (TypeError, ValueError):
        return False, "lifetime must be a number", {}
    token = call.site.key.token(str(wish.get("subject")), call.site.clock.now(), lifetime_s, extra)
    return True, "OK", {"token": token, "subject": str(jwt.decode(token, options={"verify_signature": False})["sub"])}


def _list_partitions(call: Call, wish: Mapping[str, Any]) -> Outcome:
    return True, "OK", {p.name: str(p.nodes) for p in call.site.config.partitions}


def _job_details(call: Call, wish: Mapping[str, Any]) -> Outcome:
    job = call.site.jobs.get(str(wish.get("jobID")))
    if job is None:
        return False, "No such job", {}
    return True, "OK", {"Info": f"{job.id} {job.status} {job.queue} {job.batch_id or 'N/A'} {job.owner}"}


def _memory(call: Call, wish: Mapping[str, Any]) -> Outcome:
    used = getrusage(RUSAGE_SELF).ru_maxrss
    return True, "OK", {"used": f"{used // 1024} MB", "max": f"{used // 1024} MB"}


def _availability(call: Call, wish: Mapping[str, Any]) -> Outcome:
    return True, "OK", {}


def _usage(call: Call, wish: Mapping[str, Any]) -> Outcome:
    return True, "OK", {"jobs": str(len(call.site.jobs)), "storages": str(len(call.site.storages))}


_admin_actions = {
    "ToggleJobSubmission": _toggle_submission,
    "AbortJob": _abort_job,
    "IssueAPIToken": _issue_token,
    "ListPartitions": _list_partitions,
    "ShowJobDetails": _job_details,
    "ShowServerUsageOverview": _usage,
    "ResourceAvailability": _availability,
    "GetMemoryUsage": _memory,
}


async def get_workflows(call: Call) -> Answer:
    """Only enough for a client to see that the service is there and who it is."""
    document = {"client": documents.client(call.site, call.caller), "workflows": [], "_links": {}}
    return json_answer(document, as_html=call.html)


def add_to(routes: Routes) -> None:
    def add(method: str, pattern: str, endpoint: str, handler: Any, **more: Any) -> None:
        routes.add(method, pattern, Route(endpoint, handler, **more))

    text = {"produces": (type_text,)}
    json_in = {"takes_json": True, "produces": (type_json, type_html)}
    add("GET", "core", "core", get_core)
    add("GET", "core/token", "token", get_token, **text)
    add("GET", "core/certificate", "certificate", get_certificate, **text)
    add("GET", "core/factories", "factory", get_factories)
    add("GET", "core/factories/*", "factory", get_factory)
    add("PUT", "core/factories/*", "factory", refuse, **json_in)
    add("DELETE", "core/factories/*", "factory", refuse)
    add("POST", "core/factories/*", "factory", create_site, **json_in)
    add("GET", "core/factories/*/applications", "factory", get_factory_applications)
    add("GET", "core/factories/*/applications/*", "factory", get_factory_application)
    add("GET", "core/sites", "sites", get_sites)
    add("POST", "core/sites", "sites", create_site, **json_in)
    add("GET", "core/sites/*", "sites", get_site)
    add("PUT", "core/sites/*", "sites", put_site, **json_in)
    add("DELETE", "core/sites/*", "sites", delete_site)
    add("POST", "core/sites/*", "submit", submit_to_site, **json_in)
    add("GET", "core/sites/*/jobs", "list", get_site_jobs)
    add("GET", "core/sites/*/applications", "sites", get_site_applications)
    add("GET", "core/sites/*/applications/*", "sites", get_site_application)
    add("GET", "core/jobs", "list", get_jobs)
    add("POST", "core/jobs", "submit", submit, **json_in)
    add("GET", "core/jobs/*", "status", get_job)
    add("PUT", "core/jobs/*", "change", put_job, **json_in)
    add("DELETE", "core/jobs/*", "delete", delete_job)
    add("POST", "core/jobs/*", "submit", submit_task, **json_in)
    add("GET", "core/jobs/*/details", "details", get_details)
    add("GET", "core/jobs/*/submitted", "submitted", get_submitted)
    add("GET", "core/jobs/*/forward-port", "forward", forward_port)
    add("POST", "core/jobs/*/actions/*", "action", act_on_job, takes_form=True, **json_in)
    for name in ("reservations", "storagefactories", "tasks"):
        add("GET", f"core/{name}", "sites", get_nothing)
        add("GET", f"core/{name}/*", "sites", missing)
    add("POST", "core/reservations", "sites", make_reservation, **json_in)
    add("GET", "admin", "admin", get_admin)
    add("POST", "admin/actions/*", "admin", act_as_admin, **json_in)
    add("GET", "workflows", "core", get_workflows)
