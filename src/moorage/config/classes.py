"""Shapes of attrs classes, and which shape belongs to a type hint."""

import enum
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path as FilePath
from typing import Any

import attrs
from attrs import frozen

from .document import Entries, Entry, Node, describe
from .fields import REFERENCE, Misfit, Quantity, SecretRef, Text, Words, key_of
from .problems import quoted
from .shapes import (
    WRONG,
    ChoiceShape,
    Definitions,
    FlagShape,
    ItemsShape,
    Json,
    Kinds,
    MappingShape,
    NumberShape,
    OptionalShape,
    Place,
    QuantityShape,
    Shape,
    TextShape,
    checked,
    is_any_wrong,
    told,
)


class Unsupported(TypeError):
    """A configuration class has a type hint that no shape can be made from: a mistake of its author."""


def unsupported(cls: type) -> str:
    """Why configuration cannot be read into the class; "" if it can. For classes of plugins, before they are used."""
    try:
        if not attrs.has(cls):
            return f"{cls!r} is not an attrs class"
        shape_of(cls).schema(Definitions(Kinds()))
    except Exception as error:  # noqa: BLE001 - defaults and hints of a plugin's class may raise anything
        return told(error, cls.__name__)
    return ""


@frozen
class Field:
    """One key of a class."""

    key: str
    attribute: "attrs.Attribute[Any]"
    shape: Shape

    @property
    def is_required(self) -> bool:
        return self.attribute.default is attrs.NOTHING

    @property
    def doc(self) -> str:
        return str(self.attribute.metadata.get("doc", ""))

    @property
    def default(self) -> Any:
        """The value that the class gives by itself."""
        default: Any = self.attribute.default
        return default.factory() if hasattr(default, "factory") else default


@frozen
class _Options:
    """Stands for the class that is known only when the kind is."""


@frozen(slots=False)
class ObjectShape:
    """An attrs class. If it has `__kinds__`, its field `options` is read by the class that belongs to its `kind`."""

    cls: type

    @property
    def expected(self) -> str:
        return f"a mapping with {self._keys}"

    @property
    def _keys(self) -> str:
        return "one of " + ", ".join(each.key for each in self.fields) if self.fields else "no key at all"

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        # Not before it is needed: a class may contain itself.
        hints = typing.get_type_hints(self.cls, include_extras=True)
        if self.registry:
            hints["options"] = _Options
        attributes = [attribute for attribute in attrs.fields(self.cls) if attribute.init]
        return tuple(
            Field(key_of(each), each, checked(shape_of(hints[each.name]), each.validator, each)) for each in attributes
        )

    @property
    def registry(self) -> str:
        """Which of the `Kinds` choose the class of `options`, or ""."""
        return str(getattr(self.cls, "__kinds__", ""))

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Entries):
            return place.wrong(node, self.expected)
        entries = {entry.key: entry for entry in node.entries}
        self._refuse_unknown(entries, place)
        values: dict[str, Any] = {}
        for each in self.fields:
            value = self._field(each, entries.get(each.key), node, values, place)
            if value is not attrs.NOTHING:
                values[each.attribute.alias or each.attribute.name] = value
        return WRONG if is_any_wrong(values.values()) else self._made(values, node, entries, place)

    def _refuse_unknown(self, entries: Mapping[str, Entry], place: Place) -> None:
        known = [each.key for each in self.fields]
        for entry in entries.values():
            if entry.key not in known:
                self._unknown(entry, known, place)

    def _unknown(self, entry: Entry, known: list[str], place: Place) -> None:
        found, inside = f"the unknown key {quoted(entry.key)}", place.under(entry.key)
        place.report.add(entry.mark, inside.path, found, self._keys, word=entry.key, choices=known)

    def _field(self, each: Field, entry: Entry | None, node: Entries, values: dict[str, Any], place: Place) -> Any:
        """The field's value; `NOTHING` leaves it to the class's default."""
        shape = self._shape(each, values, place.kinds)
        if shape is None:
            return WRONG
        inside = place.under(each.key)
        if entry is not None:
            return shape.read(entry.node, inside)
        if self.registry and each.key == "options":
            return shape.read(Entries(node.mark, ()), inside)
        if not each.is_required:
            return attrs.NOTHING
        return inside.wrong(node, f"{shape.expected}; it is required", "nothing")

    def _shape(self, each: Field, values: dict[str, Any], kinds: Kinds) -> Shape | None:
        """The field's shape; nothing if it depends on a kind that is wrong itself."""
        if self.registry and each.key == "kind":
            return _kind_shape(self.registry, kinds)
        if self.registry and each.key == "options":
            cls = getattr(kinds, self.registry).get(values.get("kind"))
            return None if cls is None else shape_of(cls)
        return each.shape

    def _made(self, values: dict[str, Any], node: Entries, entries: Mapping[str, Entry], place: Place) -> Any:
        try:
            return self.cls(**values)
        except Misfit as misfit:
            at = entries[misfit.key].node if misfit.key in entries else node
            return (place.under(misfit.key) if misfit.key else place).wrong(at, misfit.expected)
        except Exception as error:  # noqa: BLE001 - a plugin's class may raise anything; all of it means "no"
            return place.wrong(node, told(error, self.cls.__name__), "values that do not go together")

    def show(self, value: Any) -> Json:
        shown = {}
        for each in self.fields:
            part = getattr(value, each.attribute.name)
            is_options = self.registry and each.key == "options"
            shown[each.key] = shape_of(type(part)).show(part) if is_options else each.shape.show(part)
        return shown

    def schema(self, to: Definitions) -> Json:
        name = to.name(self.cls)
        if name not in to.schemas:
            to.schemas[name] = {}  # reserved: a class may contain itself
            to.schemas[name].update(self._definition(to))
        return {"$ref": f"#/$defs/{name}"}

    def _definition(self, to: Definitions) -> dict[str, Json]:
        definition: dict[str, Json] = {
            "type": "object",
            "description": _first_line(self.cls),
            "properties": {each.key: self._property(each, to) for each in self.fields},
            "required": [each.key for each in self.fields if each.is_required],
            "additionalProperties": False,
        }
        if self.registry:
            definition["allOf"] = [_options_of(kind, cls, to) for kind, cls in getattr(to.kinds, self.registry).items()]
        return definition

    def _property(self, each: Field, to: Definitions) -> Json:
        described = {"description": each.doc} if each.doc else {}
        if self.registry and each.key == "options":
            return {"type": "object", **described}
        is_kind = self.registry and each.key == "kind"
        shape = _kind_shape(self.registry, to.kinds) if is_kind else each.shape
        hidden = each.is_required or each.default is None
        default = {} if hidden else {"default": each.shape.show(each.default)}
        return {**shape.schema(to), **described, **default}


def _kind_shape(registry: str, kinds: Kinds) -> ChoiceShape:
    return ChoiceShape({kind: kind for kind in getattr(kinds, registry)})


def _options_of(kind: str, cls: type, to: Definitions) -> Json:
    shape = shape_of(cls)
    then: dict[str, Json] = {"properties": {"options": shape.schema(to)}}
    if isinstance(shape, ObjectShape) and any(each.is_required for each in shape.fields):
        then["required"] = ["options"]
    return {"if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}, "then": then}


def _first_line(cls: type) -> str:
    lines = (cls.__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""


class SecretShape(ObjectShape):
    """A `SecretRef`. Nothing that stands in its place is repeated in a message: it may be the secret itself."""

    def __init__(self) -> None:
        super().__init__(SecretRef)

    @property
    def expected(self) -> str:
        return REFERENCE

    def read(self, node: Node, place: Place) -> Any:
        if isinstance(node, Entries):
            return super().read(node, place)
        found = "nothing" if describe(node) == "nothing" else "a literal value"
        return place.wrong(node, self.expected, found)

    def _unknown(self, entry: Entry, known: list[str], place: Place) -> None:
        place.report.add(entry.mark, place.path, "an unknown key", self.expected, word=entry.key, choices=known)

    def show(self, value: Any) -> Json:
        return {key: part for key, part in super().show(value).items() if part is not None}

    def _definition(self, to: Definitions) -> dict[str, Json]:
        # Exactly one of both, and not null.
        named = [{"required": [each.key], "properties": {each.key: {"type": "string"}}} for each in self.fields]
        return {**super()._definition(to), "oneOf": named}


@frozen
class UnionShape:
    """One of several classes, chosen by the word in their field `kind: Literal["..."]`."""

    members: Mapping[str, ObjectShape]

    @property
    def expected(self) -> str:
        return f'a mapping with "kind", one of {", ".join(self.members)}'

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Entries):
            return place.wrong(node, self.expected)
        kind = next((entry for entry in node.entries if entry.key == "kind"), None)
        if kind is None:
            return place.wrong(node, self.expected)
        word = ChoiceShape({member: member for member in self.members}).read(kind.node, place.under("kind"))
        return WRONG if word is WRONG else self.members[word].read(node, place)

    def show(self, value: Any) -> Json:
        return shape_of(type(value)).show(value)

    def schema(self, to: Definitions) -> Json:
        members = [{**member.schema(to), "required": ["kind"]} for member in self.members.values()]
        return {"oneOf": members}


# From type hints ---------------------------------------------------------------------------------------------


def shape_of(hint: Any) -> Shape:
    """The shape for a type hint. Raises `Unsupported`."""
    return _shape_of(hint)


@cache
def _shape_of(hint: Any) -> Shape:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, typing.NewType):
        return shape_of(hint.__supertype__)
    if isinstance(hint, type) and attrs.has(hint):
        return ObjectShape(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ChoiceShape({str(member.value): member for member in hint})
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _annotated(parts[0], parts[1:], hint)
    if origin is typing.Literal and all(isinstance(part, str) for part in parts):
        return ChoiceShape({part: part for part in parts})
    if (origin is tuple and parts[1:] == (...,)) or origin is Sequence:
        return ItemsShape(shape_of(parts[0]))
    if origin is Mapping:
        return _mapping(shape_of(parts[0]), shape_of(parts[1]), hint)
    if origin in (typing.Union, types.UnionType):
        return _union(parts, hint)
    raise _not_supported(hint)


_SIMPLE: Mapping[Any, Shape] = {
    str: TextShape(),
    int: NumberShape(whole=True),
    float: NumberShape(whole=False),
    bool: FlagShape(),
    FilePath: TextShape(convert=FilePath),
    SecretRef: SecretShape(),
}


def _not_supported(hint: Any) -> Unsupported:
    return Unsupported(f"the type {hint} cannot be read from a configuration")


def _annotated(base: Any, markers: tuple[Any, ...], hint: Any) -> Shape:
    while isinstance(base, typing.NewType):
        base = base.__supertype__
    match markers:
        case (Text() as form,) if base is str:
            return TextShape(form)
        case (Words(meanings=meanings),) if base is str:
            return ChoiceShape({word: word for word in meanings}, meanings)
        case (Quantity() as quantity,) if base in (int, float):
            return QuantityShape(quantity, whole=base is int)
        case _:
            raise _not_supported(hint)


def _mapping(key: Shape, value: Shape, hint: Any) -> Shape:
    if isinstance(key, TextShape | ChoiceShape):
        return MappingShape(key, value)
    raise _not_supported(hint)


def _union(parts: tuple[Any, ...], hint: Any) -> Shape:
    rest = [part for part in parts if part is not type(None)]
    shape = shape_of(rest[0]) if len(rest) == 1 else UnionShape(_members(rest, hint))
    return shape if len(rest) == len(parts) else OptionalShape(shape)


def _members(classes: list[Any], hint: Any) -> dict[str, ObjectShape]:
    members: dict[str, ObjectShape] = {}
    for cls in classes:
        kind = typing.get_type_hints(cls).get("kind") if attrs.has(cls) else None
        words = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        if not words or set(words) & set(members):
            raise _not_supported(hint)
        members |= {word: ObjectShape(cls) for word in words}
    return members
