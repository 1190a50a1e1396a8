"""The files of the demonstration: what a small centre would write by hand, in one directory."""

import json
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

USERS = ("alice", "admin")
UNICORE_SITES = ("juwels", "jureca")
SITES = (*UNICORE_SITES, "slurm")


@frozen
class Layout:
    """Where things are, and which ports of 127.0.0.1 they use; kept, so that a second start finds the first one's."""

    directory: Path
    ports: dict[str, int]
    passwords: dict[str, str]
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['public']}"

    @property
    def hub_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['hub']}"


def lay_out(directory: Path, port: int = 0) -> Layout:
    """The layout of a directory; made at the first time. `port` is the one that browsers use, 0 for any."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    file = directory / "layout.json"
    kept: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    names = ("public", "proxy_api", "hub", *SITES)
    ports = {name: kept.get("ports", {}).get(name, 0) for name in names}
    if port:
        ports["public"] = port
    for name in names:
        if not ports[name] or (name != "public" and not _free(ports[name])):
            ports[name] = _free_port(set(ports.values()))
    if not port and not _free(ports["public"]):
        ports["public"] = _free_port(set(ports.values()))
    passwords = {name: kept.get("passwords", {}).get(name) or secrets.token_urlsafe(6) for name in USERS}
    tokens = {name: kept.get("tokens", {}).get(name) or secrets.token_hex(16) for name in ("proxy", "demo", "site")}
    layout = Layout(directory, ports, passwords, tokens)
    _write(file, json.dumps({"ports": ports, "passwords": passwords, "tokens": tokens}, indent=1))
    return layout


def write_all(layout: Layout) -> None:
    """Everything but what the Slurm site tells about itself."""
    for site in UNICORE_SITES:
        _write(layout.directory / f"site-{site}.yaml", yaml.safe_dump(unicore_site(layout, site), sort_keys=False))
    _write(layout.directory / "site-slurm.yaml", yaml.safe_dump(slurm_site(), sort_keys=False))
    _write(layout.directory / "site-password", layout.tokens["site"])
    _write(layout.directory / "users.json", json.dumps(layout.passwords))
    _write(layout.directory / "jupyterhub_config.py", hub_file(layout))


# Sites -------------------------------------------------------------------------------------------------------------


def _path() -> str:
    """Jobs find the programs that are installed beside this Python: the demonstration's JupyterLab."""
    return f"{Path(sys.executable).parent}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin{os.pathsep}/bin"


def unicore_site(layout: Layout, site: str) -> dict[str, Any]:
    """A simulated UNICORE/X; see `moorage.simulator.servers.unicore.config`."""

    def partition(name: str, nodes: int, most: int, gpus: int = 0) -> dict[str, Any]:
        resources: dict[str, Any] = {"Nodes": f"1-{most}", "CPUsPerNode": "1-48", "Runtime": "60-86400"}
        resources |= {"MemoryPerNode": "1-137438953472", "Comment": "*"} | (
            {"GPUsPerNode": f"0-{gpus}"} if gpus else {}
        )
        return {"name": name, "nodes": nodes, "resources": resources}

    big = site == UNICORE_SITES[0]
    partitions = [partition("batch", 8, 4), partition("devel", 2, 2)] + ([partition("gpus", 2, 2, 4)] if big else [])
    return {
        "port": layout.ports[site],
        "directory": str(layout.directory / "sites" / site),
        "sites": [
            {
                "name": site.upper(),
                "keep": True,
                "users": [{"name": "jupyter", "password": layout.tokens["site"]}],
                "partitions": partitions,
                "login_nodes": ["login01", "login02"],
                "projects": ["physics", "climate"],
                "job_environment": {"PATH": _path()},
            }
        ],
    }


def slurm_site() -> dict[str, Any]:
    """A simulated login node with Slurm behind it; see `moorage.simulator.servers.ssh.config`."""
    return {
        "cluster": "uni",
        "keep": True,
        "accounts": [{"name": "jupyter", "accounts": ["teaching", "research"]}],
        "nodes": {"count": 4, "cores": 16, "memory_mib": 64_000},
        "partitions": [
            {"name": "batch", "max_minutes": 1440, "default_minutes": 60},
            {"name": "devel", "nodes": 1, "max_minutes": 120, "default_minutes": 30},
        ],
        "environment": {"PATH": _path()},
    }


# moorage -----------------------------------------------------------------------------------------------------------


def moorage_file(layout: Layout, login: dict[str, str]) -> dict[str, Any]:
    """
    The configuration of moorage.

    Args:
        login: What the Slurm site tells: "host-key" and "key", see `moorage.simulator.servers.ssh.main_serve`.
    """
    return {
        "deployment": "demo",
        "notice": "A demonstration: systems, queues and nodes are simulated, JupyterLab is real.",
        "systems": {
            **{site: _unicore(layout, site) for site in UNICORE_SITES},
            "uni": _slurm(layout, login),
        },
        "services": _services(),
        "limits": {"per_user": 5},
        "timeouts": {"status_starting": "1s", "status_queued": "5s", "confirm": "1s"},
    }


_LOOPBACK = {"gate": {"interface": "127.0.0.1", "host": "127.0.0.1"}, "destinations": ["127.0.0.1"]}
"""Every simulated node is this machine, and nothing of it shall be reached from elsewhere."""


def _batch(description: str, hours: int, nodes: int, **more: Any) -> dict[str, Any]:
    counts = {"nodes": {"min": 1, "max": nodes, "default": 1}} if nodes > 1 else {}
    return {"description": description, "max_walltime": f"{hours}h", "default_walltime": "1h", **counts, **more}


def _unicore(layout: Layout, site: str) -> dict[str, Any]:
    big = site == UNICORE_SITES[0]
    gpus = {"gpus": _batch("Nodes with four GPUs", 24, 2, gpus={"min": 1, "max": 4, "default": 1})}
    partitions = {
        "login": {"description": "Login nodes, for light work", "kind": "login", "max_walltime": "8h"},
        "batch": _batch("Compute nodes", 24, 4),
        "devel": _batch("Short sessions, short queue", 2, 2),
        **(gpus if big else {}),
        "staff": _batch("Reserved for the operators", 24, 4, groups=["staff"]),
    }
    more: dict[str, Any] = {}
    if big:
        more["reservations"] = {
            "course-2026": {"description": "Course: parallel Python", "partitions": ["batch", "gpus"]}
        }
    else:
        more["notice"] = "Home directories are moved on Sunday; sessions go on."
    return {
        "kind": "unicore",
        "description": "Supercomputer, simulated" if big else "Cluster, simulated",
        "options": {
            "url": f"http://127.0.0.1:{layout.ports[site]}/{site.upper()}/rest/core",
            "credentials": {
                "kind": "basic",
                "username": "jupyter",
                "password": {"file": str(layout.directory / "site-password")},
            },
            "login_nodes": {"login": "login*"},
            "notify_url": f"{layout.hub_url}/hub/moorage/notify/{site}",
            "directives_fixed": True,  # the simulated server passes GPUs on
        },
        "partitions": partitions,
        "projects": {"physics": {"description": "Physics"}, "climate": {"description": "Climate research"}},
        **_LOOPBACK,
        **more,
    }


def _slurm(layout: Layout, login: dict[str, str]) -> dict[str, Any]:
    options = {
        "hosts": ["127.0.0.1"],
        "port": layout.ports["slurm"],
        "user": "jupyter",
        "key_file": login["key"],
        "host_keys": [login["host-key"]],
    }
    return {
        "kind": "slurm",
        "description": "University cluster behind SSH, simulated",
        "options": options,
        "tunnel": {"kind": "paramiko", "options": options},
        "partitions": {"batch": _batch("Compute nodes", 24, 2), "devel": _batch("Short sessions", 2, 1)},
        "projects": {"teaching": {"description": "Teaching"}, "research": {"description": "Research"}},
        **_LOOPBACK,
    }


def _services() -> dict[str, Any]:
    # Jupyter asks whether somebody who is root means it; in a container one often is.
    root = ["--allow-root"] if os.geteuid() == 0 else []
    lab = [sys.executable, "-m", "jupyterhub.singleuser", "--ServerApp.sock={socket}", *root]
    common = {"kind": "jupyterlab", "command": lab}
    return {
        "jupyterlab-4": {
            **common,
            "description": "JupyterLab",
            "version": "4",
            "default": True,
            "kernels": {"python": {"description": "Python 3", "ticked": True}},
            "extensions": {
                "quiet": {
                    "description": "No announcements",
                    "ticked": True,
                    "args": ["--LabApp.news_url=None"],
                },
            },
        },
        "jupyterlab-3": {
            **common,
            "description": "JupyterLab, last year's settings",
            "version": "3",
            "deprecated": True,
            "instead": "choose version 4; this one goes at the end of the year",
        },
        "broken": {
            "description": "A service that fails at its start, to see how that is told",
            "command": ["/bin/sh", "-c", "echo 'ModuleNotFoundError: no module named numpy' >&2; exit 3", "{socket}"],
        },
    }


# JupyterHub --------------------------------------------------------------------------------------------------------


def hub_file(layout: Layout) -> str:
    """The configuration of JupyterHub: what `moorage hub-config` writes, and what a demonstration needs besides."""
    from moorage.adapters.hub.settings import hub_config

    ports, directory = layout.ports, layout.directory
    return (
        hub_config(str(directory / "moorage.yaml"))
        + f"""
# The demonstration's own ----------------------------------------------------------------------------------------------

c.JupyterHub.bind_url = {layout.url!r}
c.JupyterHub.hub_bind_url = {layout.hub_url!r}
c.JupyterHub.db_url = {"sqlite:///" + str(directory / "jupyterhub.sqlite")!r}
c.JupyterHub.cookie_secret_file = {str(directory / "cookie_secret")!r}
c.JupyterHub.last_activity_interval = 5

# The proxy is a process of its own, so that it outlives the Hub.
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports["proxy_api"]}"
c.ConfigurableHTTPProxy.auth_token = {layout.tokens["proxy"]!r}

# Two users, each with a password.
c.JupyterHub.authenticator_class = "moorage.demo.login.DemoAuthenticator"
c.DemoAuthenticator.file = {str(directory / "users.json")!r}
c.Authenticator.admin_users = {{"admin"}}
c.Authenticator.allowed_users = {{"alice", "admin"}}
c.JupyterHub.template_vars = {{
    "announcement_login": "Users: alice, and admin, an administrator. The passwords are in the terminal.",
}}

# The demonstration stops what it started, and looks into its labs under --chaos.
c.JupyterHub.services = [{{"name": "demo", "api_token": {layout.tokens["demo"]!r}}}]
c.JupyterHub.load_roles = [
    {{"name": "demo", "services": ["demo"], "scopes": ["list:users", "admin:servers", "access:servers"]}}
]
"""
    )


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)


def write_moorage(layout: Layout, login: dict[str, str]) -> None:
    """`moorage.yaml`, once the Slurm site has told its keys."""
    _write(layout.directory / "moorage.yaml", yaml.safe_dump(moorage_file(layout, login), sort_keys=False))


def _free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port(taken: set[int]) -> int:
    """Below those that outgoing connections get, lest one of them has it by the time that it is listened on."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port not in taken and _free(port):
            return port
