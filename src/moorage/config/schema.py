"""The JSON Schema of `moorage.yaml`, for editors; made from the classes that the loader fills."""

from typing import Any

from .classes import shape_of
from .model import Config
from .shapes import Definitions, Kinds


def schema(kinds: Kinds, part: bool = False) -> dict[str, Any]:
    """
    JSON Schema, draft 2020-12, of the configuration with these kinds of systems and tunnels.

    What it refuses, the loader refuses. The loader refuses more: duplicate keys, values that do not go together,
    and bounds of durations and sizes, for which JSON Schema has no words.

    Args:
        part: For the files of a folder, of which each holds some of the keys.
    """
    to = Definitions(kinds)
    top = shape_of(Config).schema(to)
    if part:
        to.schemas[to.name(Config)]["required"] = []
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moorage.yaml",
        **top,
        "$defs": dict(sorted(to.schemas.items())),
    }
