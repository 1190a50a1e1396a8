"""
Hooks for plugins, and loading them so that a bad one cannot harm the others.

A plugin is code with full power. So only distributions on an allow list are imported, each is tried in a process of
its own first, and what it says is checked before it is believed. What cannot be prevented is told in
`docs/plugins.md`.
"""

import contextlib
import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any, Protocol, TypeVar

import attrs
import pluggy
from attrs import field, frozen

from moorage.core.model import SystemName

GROUP = "moorage"
"""The entry-point group, and the project name of the hooks."""

BUILT_IN = "moorage"
"""The distribution whose plugins need no permission; they come in through the same door."""

DEADLINE_S = 10.0
"""For importing a plugin and asking it for its kinds. The slowest import we know, `kubernetes`, needs 2 s when cold."""

MOST_KINDS = 100
"""Of one plugin; more is a mistake, such as a generator's output turned into a list."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
_log = logging.getLogger(__name__)
Plan = TypeVar("Plan")


# What a plugin may give --------------------------------------------------------------------------------------


class Factory(Protocol):
    """Makes the adapter of one configured system. Called once for each; may raise, which harms that system only."""

    def __call__(self, name: SystemName, options: Any, /, **context: Any) -> object:
        """
        Args:
            name: Of the system in the configuration.
            options: An instance of the kind's `config_class`.
            context: What the composition root has for all adapters, by name; ignore what you do not need.
        """


def _is_kind_name(_instance: Any, _attribute: Any, name: Any) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", name):
        raise ValueError(
            f"a kind is named {name!r:.60}; allowed are lower-case letters, digits and hyphens, at most 32"
        )


def _is_frozen_attrs(_instance: Any, _attribute: Any, cls: Any) -> None:
    # attrs tells in no public way whether a class is frozen; this is the name of what it puts into the class.
    setter = getattr(getattr(cls, "__setattr__", None), "__name__", "")
    if not isinstance(cls, type) or not attrs.has(cls) or setter != "_frozen_setattrs":
        raise ValueError(f"config_class is {cls!r:.60}, not a class made by attrs.frozen")


@frozen
class SystemKind:
    """A kind of system: what stands behind `kind:` in the configuration of a system."""

    name: str = field(validator=_is_kind_name)
    config_class: type = field(validator=_is_frozen_attrs)
    factory: Factory = field(validator=attrs.validators.is_callable())
    doc: str = field(validator=attrs.validators.instance_of(str))


@frozen
class TunnelKind:
    """A way to reach labs: what stands behind `kind:` in the `tunnel` of a system. Its factory makes a `Dialer`."""

    name: str = field(validator=_is_kind_name)
    config_class: type = field(validator=_is_frozen_attrs)
    factory: Factory = field(validator=attrs.validators.is_callable())
    doc: str = field(validator=attrs.validators.instance_of(str))


class Hooks:
    """The hooks. They are synchronous and quick; what has to be awaited happens behind the ports."""

    @hookspec
    def moorage_system_kinds(self) -> Sequence[SystemKind]:  # type: ignore[empty-body]
        """Kinds of systems. Asked once, when plugins are loaded."""

    @hookspec
    def moorage_tunnel_kinds(self) -> Sequence[TunnelKind]:  # type: ignore[empty-body]
        """Kinds of tunnels. Asked once, when plugins are loaded."""

    @hookspec
    def moorage_change_plan(self, plan: Any, session: Any) -> Any:
        """
        Change the plan of a launch. Asked for every start, one plugin after the other in the order of loading.

        Returns:
            A plan of the same class, to be used instead; or nothing, to leave it as it is. If the hook raises or
            returns something else, this start fails with the plugin's name; no other session is concerned.
        """

    @hookspec
    def moorage_observe(self, decision: Any) -> None:
        """
        Told of every decision after it is saved. What is returned or raised changes nothing.

        Runs between two steps of a session: hand over to a thread or queue of your own what takes longer than
        a millisecond.
        """


# What loading gives ------------------------------------------------------------------------------------------


@frozen
class Origin:
    """Where a plugin comes from. `name` is that of its entry point, "" for a distribution as a whole."""

    name: str
    distribution: str
    version: str

    def __str__(self) -> str:
        said = f"{self.distribution} {self.version}".rstrip()
        return f"{self.name} ({said})" if self.name else said


@frozen
class Refusal:
    """A plugin that is not in use, and why, in one line."""

    origin: Origin
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.origin} is refused: {self.reason}"


@frozen
class KindLine:
    """One line of `moorage plugins`. `of` is "system" or "tunnel"."""

    of: str
    name: str
    doc: str
    origin: Origin


class PluginFailed(Exception):
    """A plugin that is in use failed in a hook that matters. Concerns one session only."""

    def __init__(self, origin: Origin, reason: str) -> None:
        super().__init__(f"plugin {origin} failed: {reason}")
        self.origin = origin


@frozen
class _Plugin:
    """
    A plugin in use.

    Each has a manager of its own: an unknown hook, a wrong signature or a raised exception then belongs to exactly
    one plugin, and refusing one cannot leave anything of it behind.
    """

    origin: Origin
    manager: pluggy.PluginManager
    systems: tuple[SystemKind, ...]
    tunnels: tuple[TunnelKind, ...]

    def call(self, hook: str, /, **arguments: Any) -> list[Any]:
        """The hook's results, without `None`: at most one."""
        return list(getattr(self.manager.hook, hook)(**arguments))


@frozen
class Plugins:
    """
    The plugins in use, and those that are not.

    Attributes:
        refused: In the order of loading.
        systems: Kinds by name.
        tunnels: Kinds by name.
        observer_failures: How often each plugin's `moorage_observe` raised, by the origin as text.
    """

    in_use: tuple[_Plugin, ...]
    refused: tuple[Refusal, ...]
    observer_failures: Counter[str] = field(factory=Counter)

    @property
    def systems(self) -> Mapping[str, SystemKind]:
        return {kind.name: kind for plugin in self.in_use for kind in plugin.systems}

    @property
    def tunnels(self) -> Mapping[str, TunnelKind]:
        return {kind.name: kind for plugin in self.in_use for kind in plugin.tunnels}

    def describe(self) -> tuple[KindLine, ...]:
        """All kinds with their origins, systems first, each in the order of loading."""
        systems = [KindLine("system", k.name, k.doc, p.origin) for p in self.in_use for k in p.systems]
        tunnels = [KindLine("tunnel", k.name, k.doc, p.origin) for p in self.in_use for k in p.tunnels]
        return (*systems, *tunnels)

    def change_plan(self, plan: Plan, session: Any) -> Plan:
        """
        The plan after every plugin had its say, in the order of loading.

        Raises:
            PluginFailed: A plugin raised, or returned something that is no plan. The start must not go on without
                it: it may have been about to remove something.
        """
        for plugin in self.in_use:
            try:
                results = plugin.call("moorage_change_plan", plan=plan, session=session)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise PluginFailed(plugin.origin, told(error)) from error
            for changed in results:
                if type(changed) is not type(plan):
                    raise PluginFailed(plugin.origin, f"moorage_change_plan returned {type(changed).__name__}")
                plan = changed
        return plan

    def observe(self, decision: Any) -> None:
        """Tell every observer. Never raises; failures are counted, and the first of each plugin is logged."""
        for plugin in self.in_use:
            try:
                plugin.call("moorage_observe", decision=decision)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever it raises is its own affair
                name = str(plugin.origin)
                self.observer_failures[name] += 1
                if self.observer_failures[name] == 1:
                    _log.error("plugin %s failed in moorage_observe; counted from now on: %s", name, told(error))


# Loading -----------------------------------------------------------------------------------------------------

Vet = Callable[[type], str]
"""Why configuration cannot be read into a class; "" if it can."""


def load_plugins(
    allowed: Collection[str] = (),
    *,
    vet: Vet = lambda cls: "",
    deadline_s: float = DEADLINE_S,
    installed: Iterable[Distribution] | None = None,
) -> Plugins:
    """
    Load moorage's own plugins and those of the allowed distributions; everything else is not imported.

    The order is always the same: moorage's own, then by distribution and entry point. Of two that claim the same
    kind or the same name, the first one keeps it, so nobody can take over a kind of moorage.

    Args:
        allowed: Names of distributions, or `name==version`, for then only this version is loaded.
        vet: Asked about each `config_class`; `moorage.config.unsupported` in production. Passed in because this
            module knows nothing of configuration.
        deadline_s: For trying a plugin in a process of its own, and again for loading it.
        installed: Distributions to look at; those on `sys.path` if not given.
    """
    wanted = _wanted(allowed)
    candidates, refused = _candidates(distributions() if installed is None else installed, wanted)
    in_use: list[_Plugin] = []
    for origin, entry_point in candidates:
        try:
            in_use.append(_load(origin, entry_point, in_use, vet, deadline_s))
        except _Refused as error:
            refused.append(Refusal(origin, str(error)))
    for refusal in refused:
        _log.warning("%s", refusal)
    return Plugins(tuple(in_use), tuple(refused))


class _Refused(Exception):
    """The plugin is not used; the text says why."""


def told(error: BaseException) -> str:
    """An exception in one clipped line, also if it cannot be turned into a text."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - the exception comes from a plugin, and so does its __str__
        said = ""
    name = type(error).__name__
    return f"{name}: {said}"[:300] if said else name


# Which distributions -----------------------------------------------------------------------------------------


def _normal(name: str) -> str:
    """Source: "Names and normalization", packaging.python.org."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _wanted(allowed: Collection[str]) -> dict[str, str]:
    """The version that each allowed distribution must have, by normal name; "" for any."""
    wanted = {}
    for entry in allowed:
        name, _, version = entry.partition("==")
        wanted[_normal(name)] = version
    return wanted


def _candidates(
    installed: Iterable[Distribution], wanted: Mapping[str, str]
) -> tuple[list[tuple[Origin, EntryPoint]], list[Refusal]]:
    """Entry points that may be imported, in their order; and distributions that are refused as a whole."""
    found = _by_name(installed, {BUILT_IN, *wanted})
    candidates: list[tuple[Origin, EntryPoint]] = []
    missing = sorted(name for name in wanted if name not in found)
    refused = [Refusal(Origin("", name, ""), "it is allowed, but not installed") for name in missing]
    for name in sorted(found, key=lambda name: (name != BUILT_IN, name)):
        places = found[name]
        distribution = places[0]
        version = wanted.get(name, "")
        if len(places) > 1:
            where = " and ".join(_place(place) for place in places[:2])
            refused.append(Refusal(_origin("", distribution), f"it is installed twice, in {where}"))
        elif version and version != _told_by(distribution, "Version"):
            refused.append(Refusal(_origin("", distribution), f"only version {version} is allowed"))
        else:
            try:
                points = _entry_points(distribution)
            except Exception as error:  # noqa: BLE001 - the file is the plugin's, so anything may be wrong with it
                refused.append(Refusal(_origin("", distribution), f"its entry points cannot be read: {told(error)}"))
                continue
            candidates += [(_origin(point.name, distribution), point) for point in points]
    return candidates, refused


def _entry_points(distribution: Distribution) -> list[EntryPoint]:
    points = sorted(distribution.entry_points.select(group=GROUP), key=lambda point: (point.name, point.value))
    for point in points:
        if not point.pattern.match(point.value):
            raise ValueError(f"{point.name} = {point.value}")
    return points


def _by_name(installed: Iterable[Distribution], names: Collection[str]) -> dict[str, list[Distribution]]:
    """Reads metadata only of distributions with these names, so that a broken one elsewhere is no concern of ours."""
    found: dict[str, dict[str, Distribution]] = {}
    for distribution in installed:
        try:
            name = _normal(_name(distribution))
        except Exception:  # noqa: BLE001, S112 - an allowed one is then "not installed"
            continue
        if name in names:
            # The same folder may be on sys.path under two names (lib and lib64).
            found.setdefault(name, {}).setdefault(_place(distribution), distribution)
    return {name: list(places.values()) for name, places in found.items()}


def _name(distribution: Distribution) -> str:
    """
    What the metadata calls it. Of hundreds of distributions only the name is asked for, and the parser of mails that
    would read all of each file takes half a millisecond.
    """
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    found = re.search(r"^Name:[ \t]*(\S+)[ \t]*$(?!\n[ \t])", head, re.MULTILINE | re.IGNORECASE)
    return found[1] if found else _told_by(distribution, "Name")


def _place(distribution: Distribution) -> str:
    return os.path.realpath(str(getattr(distribution, "_path", distribution.locate_file(""))))


def _origin(name: str, distribution: Distribution) -> Origin:
    return Origin(name, _normal(_told_by(distribution, "Name")), _told_by(distribution, "Version"))


def _told_by(distribution: Distribution, key: str) -> str:
    """A line of the metadata, "" if it is missing."""
    metadata = distribution.metadata
    return str(metadata[key]) if key in metadata else ""


# One plugin --------------------------------------------------------------------------------------------------


def _load(origin: Origin, entry_point: EntryPoint, in_use: Sequence[_Plugin], vet: Vet, deadline_s: float) -> _Plugin:
    """The plugin, or `_Refused`."""
    if any(plugin.origin.name == origin.name for plugin in in_use):
        raise _Refused("another plugin has this name")
    if origin.distribution == BUILT_IN:
        # Whoever puts a distribution called "moorage" on the path must not get in without permission.
        if not entry_point.module.startswith("moorage."):
            raise _Refused(f"{entry_point.module} is not a module of moorage")
    else:
        _try_apart(entry_point, deadline_s)
    begin = time.monotonic()
    plugin = _contained(origin, entry_point)
    took_s = time.monotonic() - begin
    if took_s > deadline_s:
        raise _Refused(f"loading took {took_s:.1f} s, allowed are {deadline_s:.1f} s")
    _check_claims(plugin, in_use)
    kinds: tuple[SystemKind | TunnelKind, ...] = (*plugin.systems, *plugin.tunnels)
    for kind in kinds:
        if reason := vet(kind.config_class):
            raise _Refused(f"the config_class of kind {kind.name!r} cannot be used: {reason}")
    return plugin


def _contained(origin: Origin, entry_point: EntryPoint) -> _Plugin:
    try:
        return _examine(origin, entry_point)
    except (KeyboardInterrupt, _Refused):
        raise
    except BaseException as error:  # a plugin may call sys.exit() or raise anything else
        raise _Refused(told(error)) from error


def _examine(origin: Origin, entry_point: EntryPoint) -> _Plugin:
    """Import the plugin and ask it for its kinds. Raises whatever the plugin raises."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    manager.register(entry_point.load(), name=origin.name)
    manager.check_pending()
    _check_hooks(manager)
    systems = _kinds(manager.hook.moorage_system_kinds(), SystemKind)
    tunnels = _kinds(manager.hook.moorage_tunnel_kinds(), TunnelKind)
    return _Plugin(origin, manager, systems, tunnels)


def _check_hooks(manager: pluggy.PluginManager) -> None:
    implementations = [
        implementation
        for plugin in manager.get_plugins()
        for caller in manager.get_hookcallers(plugin) or ()
        for implementation in caller.get_hookimpls()
    ]
    if not implementations:
        raise _Refused("it implements no hook; are its functions marked with moorage.plugins.hookimpl?")
    for implementation in implementations:
        function = implementation.function
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise _Refused(f"{function.__name__} is async; hooks are synchronous")


Kind = TypeVar("Kind", SystemKind, TunnelKind)


def _kinds(results: Sequence[object], kind_class: type[Kind]) -> tuple[Kind, ...]:
    """The kinds that a hook returned. Generators are not accepted: one may never end."""
    if not results:
        return ()
    (kinds,) = results
    if not isinstance(kinds, list | tuple) or len(kinds) > MOST_KINDS:
        raise _Refused(f"kinds are a {type(kinds).__name__}, not a list or tuple of at most {MOST_KINDS}")
    for kind in kinds:
        if type(kind) is not kind_class:
            raise _Refused(f"among the kinds is a {type(kind).__name__}, not a {kind_class.__name__}")
    names = Counter(kind.name for kind in kinds)
    for name, number in names.items():
        if number > 1:
            raise _Refused(f"it names the kind {name!r} {number} times")
    return tuple(kinds)


def _check_claims(plugin: _Plugin, in_use: Sequence[_Plugin]) -> None:
    for other in in_use:
        systems = {kind.name for kind in other.systems} & {kind.name for kind in plugin.systems}
        tunnels = {kind.name for kind in other.tunnels} & {kind.name for kind in plugin.tunnels}
        for name in sorted(systems | tunnels):
            raise _Refused(f"the kind {name!r} belongs to plugin {other.origin}")


# Trying a plugin in a process of its own ---------------------------------------------------------------------

# An import cannot be stopped from outside, and one that ends the process ends the Hub. So every plugin that is not
# our own is examined in a child first: one that hangs, exits, crashes or raises is refused there, and the parent
# has imported nothing of it. The answer comes over a pipe that the plugin does not know; what it prints is dropped.
_TRIAL = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from moorage.plugins import trial
trial(*sys.argv[2:])
"""
_FINE = "fine"


def _try_apart(entry_point: EntryPoint, deadline_s: float) -> None:
    answer = _answer_of_child(entry_point, deadline_s)
    if answer != _FINE:
        raise _Refused(answer or "it ended the process that imported it")


def _answer_of_child(entry_point: EntryPoint, deadline_s: float) -> str:
    receiving, sending = os.pipe()
    command = [sys.executable, "-I", "-c", _TRIAL, json.dumps(sys.path)]
    with os.fdopen(receiving, "rb") as answers:
        child = subprocess.Popen(  # noqa: S603 - our own interpreter and program; arguments are data
            [*command, str(sending), entry_point.name, entry_point.value],
            pass_fds=[sending],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(sending)
        try:
            child.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return f"importing it and asking for its kinds took longer than {deadline_s:.1f} s"
        finally:
            _end(child)
        if child.returncode != 0:
            return f"importing it ended the process with code {child.returncode}"
        os.set_blocking(receiving, False)  # a grandchild may hold the other end open
        return (answers.read(_ANSWER_LIMIT) or b"").decode("utf-8", "replace")


_ANSWER_LIMIT = 1000


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End the child and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def trial(sending: str, name: str, value: str) -> None:
    """Examine one plugin and write the answer to a pipe; the child's main program."""
    try:
        _contained(Origin(name, "", ""), EntryPoint(name, value, GROUP))
        answer = _FINE
    except _Refused as refusal:
        answer = str(refusal)
    os.write(int(sending), answer.encode("utf-8", "replace")[:_ANSWER_LIMIT])
    os._exit(0)  # without waiting for threads that the plugin may have started
