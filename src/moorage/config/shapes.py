"""
Shapes: what may stand at a place of the configuration.

Everything that is known about a shape stands together: how a value is `read` from a file, how it is shown (`show`)
as JSON data that would be read again, and which `schema` tells an editor the same. Classes are in `classes.py`.
"""

import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import attrs
from attrs import field, frozen

from .document import Entries, Entry, Items, Node, Scalar, describe
from .fields import Misfit, Quantity, Text
from .problems import FOUND_LIMIT, Path, Report, printable, quoted

WRONG: Any = object()
"""In place of a value that could not be read; the report says why."""

Json = Any
_LARGEST_WHOLE = 2**53 - 1
"""Beyond, JSON readers disagree about whole numbers. Source: RFC 8259, section 6."""


class Unsupported(TypeError):
    """A configuration class has a type hint that no shape can be made from: a mistake of its author."""


@frozen
class Kinds:
    """The classes of `options`, by the word in `kind`, that plugins contribute."""

    systems: Mapping[str, type] = field(factory=dict)
    tunnels: Mapping[str, type] = field(factory=dict)


@frozen
class Definitions:
    """
    Collects the schemas of classes for `$defs`.

    Args:
        schemas: By name.
        names: Of the classes; with the module where two plugins chose the same.
    """

    kinds: Kinds
    schemas: dict[str, Json] = field(factory=dict)
    names: dict[type, str] = field(factory=dict)

    def name(self, cls: type) -> str:
        if cls not in self.names:
            taken = cls.__name__ in self.names.values()
            self.names[cls] = f"{cls.__module__}.{cls.__qualname__}" if taken else cls.__name__
        return self.names[cls]


@frozen
class Place:
    """Where the reading is, and where problems go."""

    report: Report
    kinds: Kinds
    path: Path = ()

    def under(self, part: str | int) -> "Place":
        return attrs.evolve(self, path=(*self.path, part))

    def wrong(self, node: Node, expected: str, found: str = "", **nearest: Any) -> Any:
        """Report the node, unless that was done already; the answer is `WRONG`."""
        if isinstance(node, Scalar | Items | Entries):
            self.report.add(node.mark, self.path, found or describe(node), expected, **nearest)
        return WRONG


class Shape(Protocol):
    @property
    def expected(self) -> str:
        """In words, to follow "expected"."""

    def read(self, node: Node, place: Place) -> Any:
        """The value, or `WRONG` after everything that is wrong was reported."""

    def show(self, value: Any) -> Json:
        """JSON data that `read` would turn into this value."""

    def schema(self, to: "Definitions") -> Json:
        """JSON Schema, draft 2020-12. Whatever it refuses, `read` refuses too."""


def is_any_wrong(values: Iterable[Any]) -> bool:
    return any(value is WRONG for value in values)


# Single values -----------------------------------------------------------------------------------------------


@frozen
class TextShape:
    """A text; a bare number or truth value is refused, because other readers of YAML would not see a text."""

    form: Text | None = None
    convert: Callable[[str], Any] = str

    @property
    def expected(self) -> str:
        return self.form.expected if self.form else "a text"

    def read(self, node: Node, place: Place) -> Any:
        found = _UNTOLD if self.is_private else ""
        if not isinstance(node, Scalar) or node.value is None:
            return place.wrong(node, self.expected)
        if not isinstance(node.value, str):
            shown = found or quoted(node.text)
            return place.wrong(node, f"{self.expected}, in quotes", f"{shown} without quotes")
        if self.fits(node.text):
            return self.convert(node.text)
        most = _LONGEST_TEXT if self.form is None else self.form.most
        # Of a text that is too long, only its beginning is shown, and that looks as it should.
        long = f"; at most {most} characters, not {len(node.text)}" if len(node.text) > most else ""
        return place.wrong(node, self.expected + long, found)

    @property
    def is_private(self) -> bool:
        return self.form is not None and self.form.private

    def fits(self, text: str) -> bool:
        if self.form is None:
            return len(text) <= _LONGEST_TEXT
        return len(text) <= self.form.most and re.fullmatch(self.form.pattern, text) is not None

    def show(self, value: Any) -> Json:
        return str(value)

    def schema(self, to: "Definitions") -> Json:
        if self.form is None:
            return {"type": "string", "maxLength": _LONGEST_TEXT}
        return {"type": "string", "pattern": f"^(?:{self.form.pattern})$", "maxLength": self.form.most}


_LONGEST_TEXT = 10_000
_UNTOLD = "another value"
"""In place of what may be a secret."""


@frozen
class NumberShape:
    whole: bool

    @property
    def expected(self) -> str:
        return "a whole number" if self.whole else "a number"

    def read(self, node: Node, place: Place) -> Any:
        value = node.value if isinstance(node, Scalar) else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            unquoted = Scalar(node.mark, node.text, bare=True).value if isinstance(node, Scalar) else None
            is_number = isinstance(unquoted, int | float) and not isinstance(unquoted, bool)
            return place.wrong(node, f"{self.expected}, without quotes" if is_number else self.expected)
        if not self.whole:
            return float(value) if math.isfinite(value) else place.wrong(node, self.expected)
        if abs(value) > _LARGEST_WHOLE or value != int(value):
            return place.wrong(node, self.expected)
        return int(value)

    def show(self, value: Any) -> Json:
        return value

    def schema(self, to: "Definitions") -> Json:
        if self.whole:
            return {"type": "integer", "minimum": -_LARGEST_WHOLE, "maximum": _LARGEST_WHOLE}
        return {"type": "number"}


@frozen
class FlagShape:
    expected: str = "true or false"

    def read(self, node: Node, place: Place) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, bool):
            return node.value
        word = node.text.casefold() if isinstance(node, Scalar) else ""
        hint = "true" if word in ("yes", "on", "true") else "false" if word in ("no", "off", "false") else ""
        return place.wrong(node, self.expected, hint=hint)

    def show(self, value: Any) -> Json:
        return value

    def schema(self, to: "Definitions") -> Json:
        return {"type": "boolean"}


@frozen
class QuantityShape:
    quantity: Quantity
    whole: bool

    @property
    def expected(self) -> str:
        return self.quantity.expected

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            return place.wrong(node, self.expected)
        try:
            amount = self.quantity.read(node.text)
        except ValueError:
            return place.wrong(node, self.expected, **self._meant(node.text))
        if self.whole and amount != int(amount):
            return place.wrong(node, self.expected)
        return int(amount) if self.whole else float(amount)

    def _meant(self, text: str) -> dict[str, Any]:
        """The nearest unit: for "2 hourz" the hint "2 hours"."""
        split = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([A-Za-z]{1,20})", text)
        if not split:
            return {}
        number, unit = split.groups()
        # "16 G" is left to the operator: 10**9 and 2**30 are equally near.
        if len(unit) == 1 and not self.quantity.clock:
            return {}
        # Units are compared alone: with the number before them, everything would look alike.
        choices = [known for known, factor in self.quantity.units.items() if factor >= 1 and known[0] == unit[0]]
        best = min(choices, key=lambda known: (_distance(known, unit), abs(len(known) - len(unit))), default=None)
        return {"hint": f"{number} {best}"} if best else {}

    def show(self, value: Any) -> Json:
        return self.quantity.show(value)

    def schema(self, to: "Definitions") -> Json:
        to.schemas[self.quantity.name] = {
            "type": "string",
            "description": self.quantity.expected,
            "pattern": f"^{self.quantity.pattern}$",
            "maxLength": 60,
        }
        return {"$ref": f"#/$defs/{self.quantity.name}"}


def _distance(one: str, other: str) -> int:
    """Letters that differ, place by place; enough to choose among a dozen units."""
    pairs = zip(one.casefold(), other.casefold(), strict=False)
    return sum(a != b for a, b in pairs) + abs(len(one) - len(other))


@frozen
class ChoiceShape:
    """One word of a closed list: an enum, a `Literal`, `Words`, or the kinds there are."""

    values: Mapping[str, Any]
    docs: Mapping[str, str] = field(factory=dict)

    @property
    def expected(self) -> str:
        return "one of " + ", ".join(self.values) if self.values else "one of the kinds, of which there are none"

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Scalar) or not isinstance(node.value, str):
            return place.wrong(node, self.expected)
        if not self.fits(node.text):
            return place.wrong(node, self.expected, word=node.text, choices=self.values)
        return self.values[node.text]

    def fits(self, text: str) -> bool:
        return text in self.values

    def show(self, value: Any) -> Json:
        return next(word for word, meant in self.values.items() if meant == value)

    def schema(self, to: "Definitions") -> Json:
        return {"type": "string", "enum": list(self.values)}


# Shapes around shapes ----------------------------------------------------------------------------------------


@frozen
class OptionalShape:
    inner: Shape

    @property
    def expected(self) -> str:
        return self.inner.expected

    def read(self, node: Node, place: Place) -> Any:
        if isinstance(node, Scalar) and node.value is None:
            return None
        return self.inner.read(node, place)

    def show(self, value: Any) -> Json:
        return None if value is None else self.inner.show(value)

    def schema(self, to: "Definitions") -> Json:
        return {"anyOf": [self.inner.schema(to), {"type": "null"}]}


@frozen
class ItemsShape:
    item: Shape

    @property
    def expected(self) -> str:
        return f"a list, each item {self.item.expected}"

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Items):
            return place.wrong(node, self.expected)
        values = tuple(self.item.read(child, place.under(index)) for index, child in enumerate(node.nodes))
        return WRONG if is_any_wrong(values) else values

    def show(self, value: Any) -> Json:
        return [self.item.show(item) for item in value]

    def schema(self, to: "Definitions") -> Json:
        return {"type": "array", "items": self.item.schema(to)}


@frozen
class MappingShape:
    """Keys of one form, values of one shape; the value read keeps the order of the file and cannot be changed."""

    key: TextShape | ChoiceShape
    value: Shape

    @property
    def expected(self) -> str:
        return f"a mapping from {self.key.expected} to {self.value.expected}"

    def read(self, node: Node, place: Place) -> Any:
        if not isinstance(node, Entries):
            return place.wrong(node, self.expected)
        values = {entry.key: self._entry(entry, place.under(entry.key)) for entry in node.entries}
        return WRONG if is_any_wrong(values.values()) else types.MappingProxyType(values)

    def _entry(self, entry: Entry, place: Place) -> Any:
        value = self.value.read(entry.node, place)
        if self.key.fits(entry.key):
            return value
        choices = self.key.values if isinstance(self.key, ChoiceShape) else ()
        found = f"the key {quoted(entry.key)}"
        place.report.add(entry.mark, place.path, found, self.key.expected, word=entry.key, choices=choices)
        return WRONG

    def show(self, value: Any) -> Json:
        return {str(key): self.value.show(item) for key, item in value.items()}

    def schema(self, to: "Definitions") -> Json:
        value = self.value.schema(to)
        if isinstance(self.key, ChoiceShape):
            properties = {word: {**value, "description": self.key.docs.get(word, "")} for word in self.key.values}
            return {"type": "object", "properties": properties, "additionalProperties": False}
        names = self.key.schema(to)
        return {"type": "object", "propertyNames": names, "additionalProperties": value}


@frozen
class CheckedShape:
    """A shape with an attrs validator; what the validator means is read off it, for messages and for the schema."""

    inner: Shape
    validator: Callable[[Any, Any, Any], Any]
    attribute: "attrs.Attribute[Any]"

    @property
    def expected(self) -> str:
        words = _bound_words(self.validator, "characters" if isinstance(self.inner, TextShape) else "entries")
        return f"{self.inner.expected}, {words}" if words else self.inner.expected

    def read(self, node: Node, place: Place) -> Any:
        value = self.inner.read(node, place)
        if value is WRONG:
            return WRONG
        try:
            self.validator(None, self.attribute, value)
        except Misfit as misfit:
            return place.wrong(node, misfit.expected)
        except Exception as error:  # noqa: BLE001 - a plugin's validator may raise anything; all of it means "no"
            if isinstance(self.inner, TextShape) and self.inner.is_private:
                return place.wrong(node, self.expected, _UNTOLD)
            said = self.expected if _bound_words(self.validator) else told(error, self.attribute.name)
            return place.wrong(node, said)
        return value

    def show(self, value: Any) -> Json:
        return self.inner.show(value)

    def schema(self, to: "Definitions") -> Json:
        inner = self.inner.schema(to)
        return {**inner, **_bound_schema(self.validator, str(inner.get("type", "")))}


def told(error: Exception, name: str) -> str:
    """What an exception says, clipped; to follow "expected"."""
    said = str(error.args[0]) if error.args else type(error).__name__
    return printable(f"{name} to pass its check: {said}"[: 4 * FOUND_LIMIT])


def _bound_words(validator: Any, counted: str = "entries") -> str:
    """In words, what attrs' own validators ask for; "" for any other."""
    if hasattr(validator, "compare_op"):
        words = {">=": "at least", ">": "more than", "<=": "at most", "<": "less than"}
        return f"{words[validator.compare_op]} {validator.bound}"
    if hasattr(validator, "min_length"):
        return f"at least {validator.min_length} {counted}"
    if hasattr(validator, "max_length"):
        return f"at most {validator.max_length} {counted}"
    return ""


def _bound_schema(validator: Any, json_type: str) -> Json:
    """What attrs' own validators ask for, as keywords; nothing where JSON Schema has no word for it."""
    if hasattr(validator, "compare_op") and json_type in ("integer", "number"):
        words = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}
        return {words[validator.compare_op]: validator.bound}
    length = {"string": "Length", "array": "Items", "object": "Properties"}.get(json_type)
    if length and hasattr(validator, "min_length"):
        return {f"min{length}": validator.min_length}
    if length and hasattr(validator, "max_length"):
        return {f"max{length}": validator.max_length}
    return {}


def checked(shape: Shape, validator: Any, attribute: "attrs.Attribute[Any]") -> Shape:
    """The shape with the validator at the place where it belongs, so that messages name the very item."""
    if validator is None:
        return shape
    if hasattr(validator, "_validators"):
        for part in validator._validators:
            shape = checked(shape, part, attribute)
        return shape
    if isinstance(shape, OptionalShape) and hasattr(validator, "validator"):
        return OptionalShape(checked(shape.inner, validator.validator, attribute))
    if isinstance(shape, ItemsShape) and hasattr(validator, "member_validator"):
        inner = ItemsShape(checked(shape.item, validator.member_validator, attribute))
        return checked(inner, validator.iterable_validator, attribute)
    if isinstance(shape, MappingShape) and hasattr(validator, "value_validator"):
        entries = MappingShape(shape.key, checked(shape.value, validator.value_validator, attribute))
        return checked(entries, validator.mapping_validator, attribute)
    if validator.__class__.__name__ == "_InstanceOfValidator":
        return shape  # the type hint says it already
    return CheckedShape(shape, validator, attribute)
