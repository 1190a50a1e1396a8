"""From a file or folder to a `Config`, or to the list of everything that is wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from . import document
from .classes import shape_of
from .document import Entries
from .model import Config, Distribution
from .problems import Report
from .shapes import WRONG, Kinds, Place

KindsFor: TypeAlias = Callable[[tuple[str, ...]], Kinds]
"""Given the distributions that the configuration allows, the kinds that their plugins and moorage's own bring."""


def load(path: Path, kinds_for: KindsFor) -> Config:
    """
    Read the configuration from a file, or from all `*.yaml` and `*.yml` files of a folder.

    Args:
        kinds_for: Called once, with the entries of `plugins` that are well formed. Plugins have to be loaded to
            know what may stand in `options`, and which of them may be loaded stands in the same file.

    Raises:
        ConfigError: With all mistakes, at most a hundred; nothing is loaded.
    """
    report = Report()
    tree = document.read(path, report)
    place = Place(report, kinds_for(_allowed(tree)))
    config = shape_of(Config).read(tree, place)
    report.close()
    assert isinstance(config, Config), "a configuration that is wrong was reported"
    return config


def _allowed(tree: Entries) -> tuple[str, ...]:
    """The distributions named in `plugins`; mistakes in there are reported when everything is read."""
    node = next((entry.node for entry in tree.entries if entry.key == "plugins"), None)
    silent = Place(Report(), Kinds())
    named = WRONG if node is None else shape_of(tuple[Distribution, ...]).read(node, silent)
    return () if named is WRONG else tuple(named)
