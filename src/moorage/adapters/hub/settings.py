"""Settings of the Hub that would hurt sessions, found at its start; and a configuration that does not."""

from collections.abc import Iterator
from typing import Any

from .spawner import MoorageSpawner


def warnings_about(app: Any, spawner: MoorageSpawner) -> Iterator[str]:
    """
    A sentence per setting, with what to write instead.

    Args:
        app: The `jupyterhub.app.JupyterHub`, configured.
        spawner: One spawner, for the settings that are the spawner's.
    """
    if app.cleanup_servers:
        yield (
            "the Hub stops every server when it stops (its default); "
            "set c.JupyterHub.cleanup_servers = False so that sessions outlive restarts"
        )
    if app.cleanup_proxy and app.proxy.should_start:
        yield (
            "the Hub stops its proxy when it stops, which cuts every open connection; "
            "set c.JupyterHub.cleanup_proxy = False, or run the proxy by itself"
        )
    if not app.proxy.should_start and app.last_activity_interval > 60:
        yield (
            f"last_activity_interval is {app.last_activity_interval} s, and for so long a proxy that was restarted has "
            "no routes; set c.JupyterHub.last_activity_interval = 30"
        )
    if not app.allow_named_servers:
        yield "a user has one session only; set c.JupyterHub.allow_named_servers = True for several, with names"
    if spawner.http_timeout < 60:
        yield f"http_timeout is {spawner.http_timeout} s; a lab far away may need 60: c.Spawner.http_timeout = 60"
    if spawner.start_timeout < 120:
        yield (
            f"start_timeout is {spawner.start_timeout} s; sessions live on, but users are told that the start failed: "
            "leave it out, or set c.Spawner.start_timeout = 86400"
        )
    if spawner.poll_interval < 10:
        yield f"poll_interval is {spawner.poll_interval} s, needlessly: c.Spawner.poll_interval = 30"
    if 0 < app.concurrent_spawn_limit <= 100:
        yield (
            f"concurrent_spawn_limit is {app.concurrent_spawn_limit} and counts sessions that wait in a queue; "
            "set c.JupyterHub.concurrent_spawn_limit = 0 and use the limits of moorage.yaml"
        )


def hub_config(config_file: str = "moorage.yaml") -> str:
    """A commented `jupyterhub_config.py`."""
    return f"""\
# A JupyterHub whose sessions run where moorage.yaml says.
c = get_config()  # noqa: F821

# moorage: these two lines are all it needs. Paths are relative to where the Hub is started.
c.JupyterHub.spawner_class = "moorage"
c.MoorageSpawner.config_file = {config_file!r}

# Sessions outlive the Hub: do not stop them, nor the proxy, when it stops.
c.JupyterHub.cleanup_servers = False
c.JupyterHub.cleanup_proxy = False

# With this interval the Hub also gives a proxy that was restarted by itself its routes again.
c.JupyterHub.last_activity_interval = 30

# Several sessions per user, each with a name.
c.JupyterHub.allow_named_servers = True

# Sessions that wait in a queue count as "being spawned" for the Hub; moorage has limits of its own.
c.JupyterHub.concurrent_spawn_limit = 0

# After login people come to the table of their sessions.
c.JupyterHub.default_url = "/hub/home"
c.JupyterHub.redirect_to_server = False

# How people log in: see the documentation of your authenticator, and say who may.
# c.JupyterHub.authenticator_class = "generic-oauth"
# c.Authenticator.allow_all = True
# c.Authenticator.admin_users = {{"somebody"}}

# Where compute nodes reach the Hub, if that is not where the Hub listens.
# c.JupyterHub.hub_connect_url = "http://hub.example.org:8081"

# Defaults of moorage that you may want to change.
# c.MoorageSpawner.start_timeout = 86400   # how long the Hub waits for a start; sessions live on after that
# c.MoorageSpawner.http_timeout = 60
# c.MoorageSpawner.stop_wait_s = 10        # how long a stop is waited for; cleaning up goes on afterwards
"""
