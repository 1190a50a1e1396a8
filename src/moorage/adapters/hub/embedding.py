"""
moorage inside a JupyterHub: `c.JupyterHub.spawner_class = "moorage"` and one line that names the configuration suffice.

The Hub offers no hook to a spawner when it starts. It does ask for the spawner's class when it reads its configuration,
inside its running event loop (see `__init__.py`). That begins a task which does the rest as soon as the Hub's web
application is there: pages, warnings about settings, and the service itself.
"""

import asyncio
import gc
import importlib
import logging
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, FileSystemLoader

from moorage.config import ConfigError
from moorage.ports.errors import PortError, StoreError

from .attaching import keep_attached
from .port import HubPort
from .service import Compose, registry
from .settings import warnings_about
from .spawner import DEFAULT_COMPOSE, MoorageSpawner
from .texts import LANGUAGES, Texts

HERE = Path(__file__).parent
AHEAD = ("moorage.adapters.local.store", "moorage.relay.client", "moorage.adapters.unicore.system")
"""
What `DEFAULT_COMPOSE` loads later, and takes longest. By name, because adapters do not know one another; the kind of
system that is most at home with JupyterHub among them, although there may be none of it.
"""
_tasks: set["asyncio.Task[None]"] = set()


def embed() -> None:
    """Begin, if this process is a JupyterHub; harmless otherwise and when done again."""
    module = sys.modules.get("jupyterhub.app")
    if module is None or not module.JupyterHub.initialized() or _tasks:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    # The Hub has its own start to do first, and waits for its disk in it: what takes longest begins now.
    threading.Thread(target=load_ahead, name="moorage-load-ahead", daemon=True).start()
    task = loop.create_task(_serve(module.JupyterHub.instance()))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _serve(app: Any) -> None:
    """Everything that moorage does in a Hub, until the Hub cancels it at its end."""
    # A plain attribute of the Hub's, set once at its start: there is nothing to wait on.
    while getattr(app, "tornado_application", None) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    if not issubclass(app.spawner_class, MoorageSpawner):
        return  # imported for another reason
    spawner_class: type[MoorageSpawner] = app.spawner_class
    sample = spawner_class(parent=app)
    for warning in warnings_about(app, sample):
        app.log.warning("moorage: %s", warning)
    port = HubPort(app)
    install(app, port)
    share_log(app)
    try:
        # Importing adapters takes a while; the Hub answers meanwhile.
        compose = await asyncio.to_thread(load, sample.compose)
        async with compose(Path(sample.config_file), port) as service:
            settle_memory()
            registry.provide(service)
            app.log.info("moorage is working (%s)", sample.config_file)
            try:
                await app._start_future
                await keep_attached(port, service, sample.owner_grace_s)
            finally:
                gc.unfreeze()
                registry.withdraw("the Hub is stopping")
    except asyncio.CancelledError:
        raise
    except Exception as error:
        # Running servers stay as they are: without moorage every one of them counts as running.
        registry.withdraw(str(error))
        told = isinstance(error, PortError | StoreError | ConfigError)
        app.log.critical("moorage cannot work: %s", error, exc_info=not told)


def install(app: Any, port: HubPort) -> None:
    """Add pages and templates to a Hub whose web application exists. The operator's own templates come before ours."""
    from .pages import handlers, names_for

    application = app.tornado_application
    application.settings["moorage"] = port
    prefix = app.hub.base_url.rstrip("/")
    application.add_handlers(".*", [(prefix + path, *rest) for path, *rest in handlers(HERE / "static")])
    base = app._template_paths_default()[0]
    for name in ("jinja2_env", "jinja2_env_sync"):
        environment = application.settings[name]
        fixed, searched = environment.loader.loaders
        before = [path for path in searched.searchpath if path != base]
        ours = FileSystemLoader([*before, str(HERE / "templates"), base])
        environment.loader = ChoiceLoader([fixed, ours])
        # For pages that the Hub draws by itself; ours bring these in the language of the request.
        environment.globals.update(names_for(Texts(LANGUAGES[0]), app.hub.base_url))


def load_ahead() -> None:
    """
    Load what the service is made of by default. Whatever goes wrong here goes wrong again where it is needed, and is
    told there.
    """
    for name in (DEFAULT_COMPOSE.partition(":")[0], *AHEAD):
        with suppress(Exception):
            importlib.import_module(name)


def settle_memory() -> None:
    """
    Have the collector of garbage leave alone what is there now, and there to stay: modules, classes, templates.

    It would look through all of that again whenever many objects are new, as in a crowd of starts: 200 ms of the Hub's
    one thread each time. What is dropped later is freed as ever, unless it is part of a cycle of today.
    """
    gc.freeze()


def share_log(app: Any) -> None:
    """What moorage logs goes where the Hub's log goes, at the Hub's level."""
    ours = logging.getLogger("moorage")
    for handler in app.log.handlers:
        if handler not in ours.handlers:
            ours.addHandler(handler)
    ours.setLevel(app.log.level)


def load(name: str) -> Compose:
    """The function that `module:function` names."""
    module, _, function = name.partition(":")
    found: Compose = getattr(importlib.import_module(module), function)
    return found
