"""
The stored form of sessions and events: canonical JSON with a version, and old versions still load.

    {"event":{"is":"Submitted","attempt":1,"job":"4711"},"v":1}

Canonical means: members sorted, no spaces, ASCII only; equal values have equal bytes. A member of a union says what it
is under "is". Loading is strict: what is not exactly a stored form is refused in words, because a session that is
nearly read right is worse than one that is not read. A member that is missing takes its default, so that a new field
with a default needs no new version; every other change does (see `UPGRADES`).

The store splits a session into its spec, which never changes, and its head, which every event changes.
"""

import json
import math
from collections.abc import Callable, Mapping
from enum import Enum
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin

import attrs
from attrs import frozen
from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from moorage.core.effects import Effect
from moorage.core.events import Event
from moorage.core.model import Observation, Session, SessionSpec, State

VERSION = 1
"""The version that is written."""

Upgrade = Callable[[str, dict[str, Any]], dict[str, Any]]

UPGRADES: dict[int, Upgrade] = {}
"""
How to make the form of version n + 1 from that of version n: `UPGRADES[n](what, form)`.

`what` is "session", "spec", "head" or "event". A version stays here for ever, and its golden file under
`tests/recorded/wire/` with it.
"""


class WireError(ValueError):
    """
    A stored form that cannot be read.

    Args:
        path: Where, as members and positions: `session.state.job.id`.
        wrong: What was found there, shortened.
        right: What would be right.
    """

    def __init__(self, path: str, wrong: str, right: str) -> None:
        super().__init__(f"{path} {wrong}; right would be {right}")
        self.path = path
        self.wrong = wrong
        self.right = right


@frozen
class Kept:
    """
    An event of a kind that this program does not know, as it was stored.

    It is never lost: dumping it gives the same bytes. What it did to the session only the program that wrote it knows.
    """

    kind: str
    form: bytes


def dump_session(session: Session) -> bytes:
    """The whole session."""
    return _dump("session", _session_to(session))


def load_session(form: bytes | str) -> Session:
    """The session that was dumped; raises `WireError`."""
    session: Session = _read(_session_from, "session", _open("session", form))
    return session


def dump_spec(spec: SessionSpec) -> bytes:
    """What a session keeps from its beginning to its end."""
    return _dump("spec", _spec_to(spec))


def load_spec(form: bytes | str) -> SessionSpec:
    """The spec that was dumped; raises `WireError`."""
    spec: SessionSpec = _read(_spec_from, "spec", _open("spec", form))
    return spec


def dump_head(session: Session) -> bytes:
    """Everything of a session but its spec."""
    return _dump("head", _head_to(session))


def load_head(form: bytes | str, spec: SessionSpec) -> Session:
    """The session with that spec; raises `WireError`."""
    data = _open("head", form)
    if "spec" in data:
        raise WireError("head.spec", "is there", "a head without it")
    session: Session = _read(_head_from, "head", {**data, "spec": spec})
    return session


def dump_event(event: Event | Kept) -> bytes:
    """One event; a kept one as it was."""
    return event.form if isinstance(event, Kept) else _dump("event", _event_to(event))


def load_event(form: bytes | str) -> Event | Kept:
    """The event that was dumped, or `Kept` if its kind is not known; raises `WireError` if it is malformed."""
    data = _open("event", form)
    kind = data.get(_IS)
    if type(kind) is str and kind and kind not in _EVENT_KINDS:
        return Kept(kind, form.encode() if isinstance(form, str) else form)
    event: Event = _read(_event_from, "event", data)
    return event


def canonical(value: Any) -> bytes:
    """JSON with sorted members, without spaces, in ASCII."""
    return _encode(value).encode("ascii")


# Envelope -------------------------------------------------------------------------------------------------------------

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode


def _dump(what: str, data: Any) -> bytes:
    return _encode({what: data, "v": VERSION}).encode("ascii")


def _open(what: str, form: bytes | str) -> dict[str, Any]:
    """The inner object of a stored form, brought to the present version."""
    try:
        outer = json.loads(form, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise WireError(what, f"is no JSON that we can read ({_short(str(error))})", "canonical JSON") from None
    if type(outer) is not dict or outer.keys() != {"v", what}:
        raise WireError(what, f"is {_shown(outer)}", f'an object with the members "{what}" and "v"')
    version = outer["v"]
    data: dict[str, Any] = outer[what]
    if type(version) is not int or version < 1:
        raise WireError("v", f"is {_shown(version)}", "the number of a version")
    if version > VERSION:
        raise WireError("v", f"is {version}, written by a newer moorage", f"{VERSION} or less")
    if type(data) is not dict:
        raise WireError(what, f"is {_shown(data)}", "an object")
    for old in range(version, VERSION):
        data = UPGRADES[old](what, data)
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


# Words for what is wrong ----------------------------------------------------------------------------------------------


class _Misfit(Exception):
    """A value that does not fit its place; the place is added by `_read`."""

    def __init__(self, wrong: str, right: str, member: str = "") -> None:
        super().__init__(wrong, right)
        self.wrong = wrong
        self.right = right
        self.member = member


def _read(structure: Callable[[Any, Any], Any], what: str, data: Any) -> Any:
    """
    Structure `data`; whatever is wrong with it becomes one `WireError` about the first thing that is wrong.

    cattrs gathers `ValueError`, `TypeError`, `KeyError` and our own misfits into groups with notes about the place.
    """
    try:
        return structure(data, None)
    except (BaseValidationError, _Misfit) as error:
        raise _in_words(error, what) from None


def _in_words(error: BaseException, path: str) -> WireError:
    if isinstance(error, BaseValidationError):
        inner = error.exceptions[0]
        return _in_words(inner, path + _place(inner))
    match error:
        case _Misfit():
            return WireError(path + error.member, error.wrong, error.right)
        case ForbiddenExtraKeysError():
            known = ", ".join(attribute.name for attribute in attrs.fields(error.cl))
            return WireError(f"{path}.{_short(min(error.extra_fields))}", "is unknown", f"one of {known}")
        case KeyError():
            return WireError(path, "is missing", "a value")
        case _:
            return WireError(path, f"is refused: {_short(str(error))}", "a value that its class accepts")


def _place(error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return f".{note.name}"
        if isinstance(note, IterableValidationNote):
            return f"[{note.index}]"
    return ""


def _shown(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return _short(ascii(value))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# Values: strict both ways ---------------------------------------------------------------------------------------------

_IS = "is"
_converter = Converter(detailed_validation=True, forbid_extra_keys=True)


def _text(value: Any, _: Any) -> str:
    if type(value) is not str:
        raise _Misfit(f"is {_shown(value)}", "text")
    return value


def _whole(value: Any, _: Any) -> int:
    if type(value) is not int:  # a truth value is an int to Python, but not to us
        raise _Misfit(f"is {_shown(value)}", "a whole number")
    return value


def _truth(value: Any, _: Any) -> bool:
    if type(value) is not bool:
        raise _Misfit(f"is {_shown(value)}", "true or false")
    return value


_NOT_FINITE = ("inf", "-inf", "nan")


def _number(value: Any, _: Any) -> float:
    """A whole number stays one, so that what is dumped again has the same bytes."""
    if type(value) is int or type(value) is float:
        return value
    if type(value) is str and value in _NOT_FINITE:
        return float(value)
    raise _Misfit(f"is {_shown(value)}", "a number")


def _number_to(value: float) -> float | str:
    """JSON has no infinities, and systems do send them (as their wish when to be asked again)."""
    return value if math.isfinite(value) else repr(float(value))


_converter.register_structure_hook(str, _text)
_converter.register_structure_hook(int, _whole)
_converter.register_structure_hook(bool, _truth)
_converter.register_structure_hook(float, _number)
_converter.register_unstructure_hook(float, _number_to)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


@_converter.register_structure_hook_factory(_is_enum)
def _enum_from(hint: Any) -> Callable[[Any, Any], Any]:
    members = {member.value: member for member in hint}

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not str or value not in members:
            raise _Misfit(f"is {_shown(value)}", f"one of {', '.join(members)}")
        return members[value]

    return structure


@_converter.register_unstructure_hook_factory(_is_enum)
def _enum_to(hint: Any) -> Callable[[Any], Any]:
    # A table is faster than `Enum.value`, which is a descriptor written in Python.
    return {member: member.value for member in hint}.__getitem__


def _is_tuple(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin is tuple


@_converter.register_structure_hook_factory(_is_tuple)
def _tuple_from(hint: Any) -> Callable[[Any, Any], Any]:
    """A tuple is a list in JSON: of any length, or of as many values as the type names."""
    args = get_args(hint)
    endless = args[1:] == (Ellipsis,)
    hooks = [(_converter.get_structure_hook(arg), arg) for arg in args if arg is not Ellipsis]
    right = "a list" if endless else f"a list of {len(hooks)}"

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not list or not (endless or len(value) == len(hooks)):
            raise _Misfit(f"is {_shown(value)}", right)
        made = []
        for index, part in enumerate(value):
            hook, arg = hooks[0] if endless else hooks[index]
            try:
                made.append(hook(part, arg))
            except (BaseValidationError, _Misfit) as error:
                found = _in_words(error, f"[{index}]")
                raise _Misfit(found.wrong, found.right, found.path) from None
        return tuple(made)

    return structure


@_converter.register_structure_hook_factory(attrs.has)
def _class_from(cls: Any) -> Callable[[Any, Any], Any]:
    return _object_from(cls)


def _object_from(cls: Any, **overrides: Any) -> Callable[[Any, Any], Any]:
    """An object for a class; the function that cattrs generates would take the members of anything."""
    generated = make_dict_structure_fn(
        cls, _converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **overrides
    )

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise _Misfit(f"is {_shown(value)}", f"an object ({cls.__name__})")
        return generated(value, cls)

    return structure


def _tag_union(union: UnionType) -> Mapping[str, type]:
    """Have the members of a union say what they are; the unions inside them must have been tagged before."""
    classes = {cls.__name__: cls for cls in get_args(union)}
    froms = {name: _converter.get_structure_hook(cls) for name, cls in classes.items()}
    tos = {cls: (_converter.get_unstructure_hook(cls), name) for name, cls in classes.items()}

    def structure(value: Any, _: Any) -> Any:
        if type(value) is not dict:
            raise _Misfit(f"is {_shown(value)}", "an object")
        members = dict(value)
        kind = members.pop(_IS, None)
        if type(kind) is not str or kind not in froms:
            raise _Misfit(f"is {_shown(kind)}", f"one of {', '.join(froms)}", member=f".{_IS}")
        return froms[kind](members, classes[kind])

    def unstructure(value: Any) -> Any:
        hook, name = tos[value.__class__]
        members = hook(value)
        members[_IS] = name
        return members

    _converter.register_structure_hook(union, structure)
    _converter.register_unstructure_hook(union, unstructure)
    return classes


# From the inside out: cattrs makes the functions of a class when the class is first seen.
_tag_union(Observation)
_tag_union(State)
_tag_union(Effect)
_EVENT_KINDS = _tag_union(Event)

_session_to = _converter.get_unstructure_hook(Session)
_session_from = _converter.get_structure_hook(Session)
_spec_to = _converter.get_unstructure_hook(SessionSpec)
_spec_from = _converter.get_structure_hook(SessionSpec)
_event_to = _converter.get_unstructure_hook(Event)
_event_from = _converter.get_structure_hook(Event)
_head_to = make_dict_unstructure_fn(Session, _converter, spec=override(omit=True))
_head_from = _object_from(Session, spec=override(struct_hook=lambda spec, _: spec))
