"""How resources look as JSON documents. Source: UNICORE-EU/unicorex uas.rest (Jobs, Storages, Sites, Base)."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .access import Caller, anonymous_dn, compact
from .answers import date, pick, select
from .jobs import Job, consumed
from .site import ByteTransfer, Resource, Site, Storage, TargetSystem, Transfer

collections = (
    "factories",
    "sites",
    "jobs",
    "reservations",
    "storages",
    "storagefactories",
    "transfers",
    "client-server-transfers",
    "tasks",
)
factory_id = "default_target_system_factory"


def link(href: str, description: str | None = None) -> dict[str, str]:
    return {"href": href} if description is None else {"href": href, "description": description}


def _common(resource: Resource | Job, url: str, links: Mapping[str, str]) -> dict[str, Any]:
    document: dict[str, Any] = {"owner": resource.owner, "acl": resource.acl, "tags": resource.tags}
    if resource.ends_at is not None:
        document["terminationTime"] = date(int(resource.ends_at))
    document["_links"] = {"self": link(url)} | {name: link(href) for name, href in links.items()}
    return document


# --- jobs ------------------------------------------------------------------------------------------------


def _job_links(job: Job, base: str) -> dict[str, Any]:
    url = f"{base}/jobs/{job.id}"
    return {
        "self": link(url),
        "details": link(f"{url}/details", "BSS job details"),
        "submitted": link(f"{url}/submitted", "Submitted job description"),
        "action:start": link(f"{url}/actions/start", "Start"),
        "action:abort": link(f"{url}/actions/abort", "Abort"),
        "action:restart": link(f"{url}/actions/restart", "Restart"),
        "forwarding": link(f"{url}/forward-port", "Port forwarding"),
        "workingDirectory": link(f"{base}/storages/{job.id}-uspace", "Working directory"),
        "parentTSS": link(f"{base}/sites/{job.site_id}", "Parent TSS"),
    }


def _progress(job: Job, base: str) -> str | None:
    if job.directory is None:
        return None
    try:
        return f"{float((job.directory / '.UNICORE_PROGRESS_INDICATION').read_text()[:30])}"
    except (OSError, ValueError):
        return None


# As the server's attribute sources call them. Source: UNICORE-EU/use IAttributeSource.
_preference_keys = {"uid": "xlogin", "supgids": "supplementaryGroups"}

# One small function per key, so that `?fields=status` costs only that key. None leaves the key out.
_job_keys: Mapping[str, Callable[[Job, str], Any]] = {
    "status": lambda job, base: job.status,
    "statusMessage": lambda job, base: job.message,
    "exitCode": lambda job, base: None if job.exit_code is None else str(job.exit_code),
    "progress": _progress,
    "submissionTime": lambda job, base: date(int(job.submitted_at)),
    "terminationTime": lambda job, base: date(int(job.ends_at)),
    "queue": lambda job, base: job.queue,
    "batchSystemID": lambda job, base: job.batch_id or "N/A",
    "jobType": lambda job, base: job.kind,
    "name": lambda job, base: job.name,
    "consumedTime": lambda job, base: consumed(job),
    "log": lambda job, base: job.log,
    # A reader of the job sees what was sent at login, the bearer token included.
    "submissionPreferences": lambda job, base: {
        **{_preference_keys.get(key, key): value.split("+") for key, value in job.preferences.items()},
        **({"UC_OAUTH_BEARER_TOKEN": [job.bearer]} if job.bearer else {}),
    },
    "owner": lambda job, base: job.owner,
    "acl": lambda job, base: job.acl,
    "tags": lambda job, base: job.tags,
    "_links": _job_links,
}


def job(job: Job, base: str, fields: str | None) -> dict[str, Any]:
    wanted = select(fields)
    document = {}
    for key, value_of in _job_keys.items():
        if wanted is None or (key in wanted[1]) == wanted[0]:
            value = value_of(job, base)
            if value is not None:
                document[key] = value
    return document


# --- core ------------------------------------------------------------------------------------------------


def core(site: Site, caller: Caller, base: str, fields: str | None) -> Mapping[str, Any]:
    wanted = select(fields)
    parts: dict[str, Callable[[], Any]] = {
        "client": lambda: client(site, caller),
        "server": lambda: server(site),
        "_links": lambda: {name: link(f"{base}/{name}") for name in collections},
    }
    return {key: make() for key, make in parts.items() if wanted is None or (key in wanted[1]) == wanted[0]}


def client(site: Site, caller: Caller) -> dict[str, Any]:
    identity, user = caller.identity, caller.identity.user
    document: dict[str, Any] = {"dn": caller.dn, "role": {"selected": caller.role}, "xlogin": {}}
    if identity.method is None:
        document["dn"] = anonymous_dn
        return document
    document["authenticationMethod"] = identity.method
    document["role"]["availableRoles"] = [caller.role]
    if user is None or caller.uid is None:
        return document
    document["xlogin"] = {
        "UID": caller.uid,
        "availableUIDs": list(site.uids(caller)),
        "availableGroups": list(user.groups),
    }
    if caller.group is not None:
        document["xlogin"]["group"] = caller.group
    if caller.supplementary:
        document["xlogin"]["selectedSupplementaryGroups"] = list(caller.supplementary)
    if user.queues:
        document["queues"] = {"selected": user.queues[0], "availableQueues": list(user.queues)}
    return document


def server(site: Site) -> dict[str, Any]:
    return {
        "siteName": site.config.name,
        "version": site.config.version,
        "credential": {
            "dn": site.key.dn,
            "issuer": site.key.dn,
            "expires": date(int(site.key.ends_at)),
        },
        "trustedCAs": [site.key.dn],
        "trustedSAMLIssuers": [],
        "externalConnections": {f"TSI {n + 1}": "OK" for n in range(len(site.config.login_nodes))},
        "upSince": date(int(site.up_since)),
        "currentTime": date(int(site.clock.now())),
        "jobSubmission": {"enabled": site.submission_enabled, "message": site.submission_message},
    }


# --- factories and sites ---------------------------------------------------------------------------------


def _offer(site: Site, caller: Caller) -> dict[str, Any]:
    allowed = caller.queues
    return {
        "siteName": site.config.name,
        "supportsReservation": "false",
        "resources": {
            p.name: {name: list(r) if isinstance(r, tuple) else r for name, r in p.resources.items()}
            for p in site.config.partitions
            if allowed is None or p.name in allowed
        },
        "applications": [f"{a.name}---v{a.version}" for a in site.config.applications],
        "otherInfo": {},
        "remainingComputeTime": {
            name: {"remaining": "1000", "units": "core-h", "rel": "90%"} for name in site.config.projects
        },
    }


def factory(site: Site, caller: Caller, base: str) -> dict[str, Any]:
    url = f"{base}/factories/{factory_id}"
    owner = Resource(factory_id, compact(site.key.dn))
    common = _common(owner, url, {"sites": f"{base}/sites", "applications": f"{url}/applications"})
    return common | _offer(site, caller)


def target_system(site: Site, target: TargetSystem, caller: Caller, base: str) -> dict[str, Any]:
    url = f"{base}/sites/{target.id}"
    links = {"jobs": f"{url}/jobs", "applications": f"{url}/applications"}
    # The wrong path of the parent link and the external URL of the storages are the server's.
    links["parent"] = f"{base}/sites/factories/{factory_id}"
    for name in site.config.storages:
        links[f"storage:{name}"] = f"{site.external_base}/storages/{name}"
    ready = site.clock.now() >= target.ready_at
    return (
        _common(target, url, links)
        | _offer(site, caller)
        | {
            "umask": "77",
            "numberOfJobs": sum(job.site_id == target.id for job in site.jobs.values()),
            "resourceStatus": "READY" if ready else "INITIALIZING",
            "resourceStatusMessage": "N/A",
        }
    )


def application(site: Site, name: str) -> dict[str, Any] | None:
    found = next((a for a in site.config.applications if f"{a.name}---v{a.version}" == name), None)
    if found is None:
        return None
    document: dict[str, Any] = {"ApplicationName": found.name, "ApplicationVersion": found.version}
    if found.description is not None:
        document["ApplicationDescription"] = found.description
    return document | {"Options": {}}


# --- storages and transfers ------------------------------------------------------------------------------


def storage(site: Site, storage: Storage, caller: Caller, base: str) -> dict[str, Any]:
    url = f"{base}/storages/{storage.id}"
    links = {
        "files": f"{url}/files",
        "action:copy": f"{url}/actions/copy",
        "action:rename": f"{url}/actions/rename",
    }
    if storage.job is not None:
        links["job"] = f"{base}/jobs/{storage.job.id}"
    document = _common(storage, url, links) | {
        "resourceStatus": storage.status,
        "resourceStatusMessage": "N/A",
        "protocols": ["BFT"],
        "umask": storage.umask,
        "metadataSupported": False,
    }
    if storage.description:
        document["description"] = storage.description
    if storage.status == "READY":
        uid = caller.uid or "nobody"
        root = storage.job.directory if storage.job else storage.root
        assert root is not None
        usage = shutil.disk_usage(root)
        document |= {
            "mountPoint": f"{root / uid if storage.personal else root}/",
            "filesystemDescription": f"UNICORE TSI at {site.config.login_nodes[0]}",
            "freeSpace": usage.free,
            "usableSpace": usage.free,
        }
    return document


def transfer(site: Site, transfer: Transfer, base: str) -> dict[str, Any]:
    """No `action:abort` link, although clients expect one. `storage` has the external URL."""
    url = f"{base}/transfers/{transfer.id}"
    return _common(transfer, url, {"storage": f"{site.external_base}/storages/{transfer.storage}"}) | {
        "protocol": transfer.protocol,
        "isExport": transfer.is_export,
        "source": transfer.source,
        "target": transfer.target,
        "files": {transfer.source: transfer.status},
        "status": transfer.status,
        "statusMessage": transfer.message,
        "transferredBytes": transfer.moved,
        "size": transfer.size,
    }


def byte_transfer(transfer: ByteTransfer, base: str) -> dict[str, Any]:
    url = f"{base}/client-server-transfers/{transfer.id}"
    return _common(transfer, url, {"storage": f"{base}/storages/{transfer.storage}"}) | {
        "protocol": "BFT",
        "isExport": transfer.is_export,
        "source": transfer.file if transfer.is_export else "",
        "target": "" if transfer.is_export else transfer.file,
        "extraParameters": {},
        "transferredBytes": transfer.moved,
    }


# --- collections and registry ----------------------------------------------------------------------------


def collection(name: str, url: str, ids: Sequence[str], item_url: str, offset: int, num: int) -> dict[str, Any]:
    """One page. Tags and filter are not repeated in the links. Source: UNICORE-EU/use PagingHelper."""
    total = len(ids)
    links = {"self": link(f"{url}/?offset={offset}&num={num}")}
    if offset + num < total:
        links["next"] = link(f"{url}/?offset={offset + num}&num={min(num, total - num)}")
    if offset > 0:
        links["previous"] = link(f"{url}/?offset={max(offset - num, 0)}&num={num}")
    return {name: [f"{item_url}/{item}" for item in ids[offset : offset + num]], "_links": links}


def registry(site: Site, sites: Sequence[Site], url: str) -> dict[str, Any]:
    entries = []
    for listed in sites:
        for kind, path in (("CoreServices", "core"), ("WorkflowServices", "workflows")):
            entries.append(
                {
                    "href": f"{listed.external}/rest/{path}",
                    "type": kind,
                    "InterfaceNamespace": "https://www.unicore.eu/rest",
                    "ServerIdentity": listed.key.dn,
                    "ServerPublicKey": listed.key.certificate_pem,
                }
            )
    owner = Resource("default_registry", compact(site.key.dn))
    return _common(owner, url, {}) | {"entries": entries}


__all__ = [
    "application",
    "byte_transfer",
    "client",
    "collection",
    "core",
    "factory",
    "job",
    "pick",
    "registry",
    "server",
    "storage",
    "target_system",
    "transfer",
]
