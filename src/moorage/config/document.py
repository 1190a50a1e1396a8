"""
What a YAML file says, as a tree in which every node knows its place; hostile files are refused while reading.

The parser is PyYAML's (libyaml where it is there, which is tenfold faster); the tree is made here from its events,
so that size, depth, tags and what aliases would expand to are checked before anything is built from them.

Plain words are read as JSON would: `true`, `false`, `null`, numbers; everything else is text. So `no`, `on`,
`1:30`, `0x10` and `2026-12-01` stay what the operator wrote (in YAML 1.1, which PyYAML resolves by default, they
are false, true, 90, 16 and a date). Source: YAML 1.2.2, section 10.2 "JSON Schema".
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any, TypeAlias

import yaml
from attrs import field, frozen, mutable

from .problems import ConfigError, Mark, Report, quoted
from .problems import Path as Path

FILE_LIMIT = 1 << 20
"""Bytes of one file. A catalogue of 20 systems and 200 partitions needs a tenth of it."""

NODE_LIMIT = 20_000
"""
Keys and values of all files, counted after expanding aliases. Reading takes 3 µs for each, so that a file at the
limit is refused in 100 ms; a catalogue of 20 systems, 200 partitions and 50 services has 7,000.
"""

DEPTH_LIMIT = 20
"""Lists and mappings inside one another; the configuration itself needs nine."""

FILES_LIMIT = 200
"""Files of a folder."""


@frozen
class Scalar:
    """A single value as written. `bare`: without quotes, so that it may be a number, a truth value or nothing."""

    mark: Mark
    text: str
    bare: bool

    @property
    def value(self) -> str | int | float | bool | None:
        """The JSON value."""
        if not self.bare:
            return self.text
        if self.text in _WORDS:
            return _WORDS[self.text]
        if len(self.text) <= _LONGEST_NUMBER and _NUMBER.fullmatch(self.text):
            return float(self.text) if set(self.text) & set(".eE") else int(self.text)
        return self.text


@frozen
class Items:
    mark: Mark
    nodes: "tuple[Node, ...]"


@frozen
class Entry:
    mark: Mark
    key: str
    node: "Node"


@frozen
class Entries:
    """A mapping; keys are texts and appear once."""

    mark: Mark
    entries: tuple[Entry, ...]


@frozen
class Broken:
    """A node about which a problem has been reported already."""

    mark: Mark


Node: TypeAlias = Scalar | Items | Entries | Broken

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_LONGEST_NUMBER = 40

# What YAML 1.2 calls printable, without the marks that reorder a line: they make a reviewer read another text than
# the program does (CVE-2021-42574).
_UNWANTED = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff"
)
_UNWANTED_EXPECTED = "text without control characters"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: FilePath, report: Report) -> Entries:
    """
    The tree of a file, or of all `*.yaml` and `*.yml` files of a folder together, in the order of their names.

    Files of a folder are merged at the top: each key, and each key of a mapping below it, is in one file only.

    Raises:
        ConfigError: A file cannot be read or parsed at all. Other problems go to the report, and the tree holds
            `Broken` in their place.
    """
    budget = _Budget(NODE_LIMIT)
    trees = [_file_tree(file, report, budget) for file in _files(path, report)]
    if any(tree is None for tree in trees):
        raise ConfigError(report.problems)
    return _merge(Mark(str(path)), [tree for tree in trees if tree is not None], report)


def _files(path: FilePath, report: Report) -> list[FilePath]:
    if not path.is_dir():
        return [path]
    # Hidden names are left out: editors' swap files, and the `..data` folder of a Kubernetes ConfigMap.
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError as error:
        report.add(Mark(str(path)), (), f"a folder that cannot be read ({error.strerror})", "a folder of files")
        raise ConfigError(report.problems) from error
    files = [path / name for name in names if not name.startswith(".")]
    if not 1 <= len(files) <= FILES_LIMIT:
        expected = f"between 1 and {FILES_LIMIT} files named *.yaml"
        report.add(Mark(str(path)), (), f"a folder with {len(files)}", expected)
        raise ConfigError(report.problems)
    return files


def _file_tree(file: FilePath, report: Report, budget: "_Budget") -> Entries | None:
    """The tree of one file; nothing if it could not be read, which is reported."""
    try:
        tree = parse(_text(file), str(file), report, budget)
    except _Unreadable as problem:
        report.add(problem.mark or Mark(str(file)), (), problem.found, problem.expected)
        return None
    if isinstance(tree, Entries):
        return tree
    if isinstance(tree, Scalar) and tree.value is None:
        return Entries(tree.mark, ())
    if not isinstance(tree, Broken):
        report.add(tree.mark, (), describe(tree), 'a mapping, "key: value", at the top of the file')
    return None


def _text(file: FilePath) -> str:
    """The file's text; read once, so that a file replaced meanwhile is seen before or after, never in part."""
    try:
        # Without O_NONBLOCK, opening a named pipe waits for ever.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "a name with a NUL byte"
        raise _Unreadable(f"nothing that can be read ({reason})", "a file") from error
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Unreadable("something that is not a file", "a file")
        raw = stream.read(FILE_LIMIT + 1)
    if len(raw) > FILE_LIMIT:
        raise _Unreadable(f"more than {FILE_LIMIT} bytes", "at most 1 MiB per file; a folder of files is allowed")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Latin-1 has a character for every byte, so it can tell the place in a text that cannot be decoded.
        mark = _mark_at(raw.decode("latin-1"), error.start, str(file))
        raise _Unreadable(f"the byte 0x{raw[error.start]:02x}", "UTF-8", mark) from error
    if unwanted := _UNWANTED.search(text):
        mark = _mark_at(text, unwanted.start(), str(file))
        raise _Unreadable(f"the character U+{ord(unwanted.group()):04X}", _UNWANTED_EXPECTED, mark)
    return text


def _mark_at(text: str, offset: int, file: str) -> Mark:
    return Mark(file, text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset))


class _Unreadable(Exception):
    """The file as a whole is refused."""

    def __init__(self, found: str, expected: str, mark: Mark | None = None) -> None:
        super().__init__(found)
        self.found, self.expected, self.mark = found, expected, mark


# From events to a tree ---------------------------------------------------------------------------------------


@mutable
class _Budget:
    left: int

    def spend(self, nodes: int, mark: Mark) -> None:
        self.left -= nodes
        if self.left < 0:
            expected = f"at most {NODE_LIMIT} in all files, aliases expanded"
            raise _Unreadable("too many keys and values", expected, mark)


@frozen
class _Anchored:
    """What an alias stands for, and what it costs: nodes, and levels of nesting."""

    node: Node
    nodes: int
    levels: int


@mutable
class _Open:
    """A list or mapping whose end has not come yet."""

    mark: Mark
    is_mapping: bool
    anchor: str | None
    is_broken: bool
    children: list[Node] = field(factory=list)
    nodes: int = 1
    levels: int = 1

    def take(self, child: Node, nodes: int, levels: int) -> None:
        self.children.append(child)
        self.nodes += nodes
        if levels >= self.levels:
            self.levels = levels + 1


def parse(text: str, file: str, report: Report, budget: "_Budget | None" = None) -> Node:
    """The tree of one document. Raises `_Unreadable` where the reading cannot go on."""
    try:
        return _build(yaml.parse(text, Loader=_LOADER), file, report, budget or _Budget(NODE_LIMIT))
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        mark = _mark(place, file) if place else None
        raise _Unreadable(f"a mistake in YAML ({error.problem or error.context})", "valid YAML", mark) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Other errors of the parser carry excerpts in their texts; the file could hold a secret by mistake.
        raise _Unreadable("text that the YAML parser does not accept", "valid YAML") from error


def _build(events: Iterable[Any], file: str, report: Report, budget: _Budget) -> Node:
    root: Node = Scalar(Mark(file, 1, 1), "", True)
    open_nodes: list[_Open] = []
    anchored: dict[str, _Anchored | None] = {}
    documents = 0
    for event in events:
        node: Node
        mark = _mark(event.start_mark, file)
        match event:
            case yaml.ScalarEvent():
                budget.spend(1, mark)
                anchor, node, nodes, levels = event.anchor, _scalar(event, mark, report), 1, 0
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise _Unreadable("a second document", 'one document; "---" at most at its start', mark)
                continue
            case yaml.CollectionStartEvent():
                _check_depth(len(open_nodes) + 1, mark)
                budget.spend(1, mark)
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                broken = _refuse_tag(event, mark, report)
                open_nodes.append(_Open(mark, is_mapping, event.anchor, broken))
                if event.anchor:
                    anchored[event.anchor] = None
                continue
            case yaml.CollectionEndEvent():
                closed = open_nodes.pop()
                anchor, node, nodes, levels = closed.anchor, _close(closed, report), closed.nodes, closed.levels
            case yaml.AliasEvent():
                meant = _expand(event.anchor, anchored, mark)
                anchor, node, nodes, levels = None, meant.node, meant.nodes, meant.levels
                _check_depth(len(open_nodes) + levels, mark)
                budget.spend(nodes, mark)
            case _:
                continue
        if anchor:
            anchored[anchor] = _Anchored(node, nodes, levels)
        if open_nodes:
            open_nodes[-1].take(node, nodes, levels)
        else:
            root = node
    return root


def _check_depth(depth: int, mark: Mark) -> None:
    if depth > DEPTH_LIMIT:
        raise _Unreadable("lists and mappings nested too deeply", f"at most {DEPTH_LIMIT} levels", mark)


def _refuse_tag(event: Any, mark: Mark, report: Report) -> bool:
    if event.tag is None:
        return False
    report.add(mark, (), f"the tag {quoted(event.tag)}", "a value without a tag; configuration is plain data")
    return True


def _scalar(event: Any, mark: Mark, report: Report) -> Node:
    if _refuse_tag(event, mark, report):
        return Broken(mark)
    # The text of the file was checked; only double quotes can bring a character in by an escape such as "\0".
    if event.style == '"' and (unwanted := _UNWANTED.search(event.value)):
        report.add(mark, (), f"the character U+{ord(unwanted.group()):04X}", _UNWANTED_EXPECTED)
        return Broken(mark)
    return Scalar(mark, event.value, event.style is None or event.style == "")


def _expand(anchor: str | None, anchored: dict[str, _Anchored | None], mark: Mark) -> _Anchored:
    assert anchor is not None, "the parser gives every alias a name"
    if anchor not in anchored:
        raise _Unreadable(f"the alias {quoted('*' + anchor)}", "an anchor of this name before it", mark)
    meant = anchored[anchor]
    if meant is None:
        raise _Unreadable(f"the alias {quoted('*' + anchor)} inside what it stands for", "an end", mark)
    return meant


def _close(closed: _Open, report: Report) -> Node:
    if closed.is_broken:
        return Broken(closed.mark)
    if not closed.is_mapping:
        return Items(closed.mark, tuple(closed.children))
    return _mapping(closed, report)


def _mapping(closed: _Open, report: Report) -> Entries:
    entries: dict[str, Entry] = {}
    for key, node in zip(closed.children[::2], closed.children[1::2], strict=True):
        match key:
            case Broken():
                continue
            case Scalar(text="<<", bare=True):
                report.add(key.mark, (), 'the merge key "<<"', "the keys themselves; an alias can stand for a value")
            case Scalar(text=text) if text in entries:
                first = entries[text].mark
                report.add(key.mark, (), f"the key {quoted(text)} again", f"it once; it is in line {first.line}")
            case Scalar(text=text):
                entries[text] = Entry(key.mark, text, node)
            case _:
                report.add(key.mark, (), f"{describe(key)} as a key", "a text as a key")
    return Entries(closed.mark, tuple(entries.values()))


def _mark(place: Any, file: str) -> Mark:
    return Mark(file, place.line + 1, place.column + 1)


# A folder of files -------------------------------------------------------------------------------------------


def _merge(mark: Mark, trees: list[Entries], report: Report) -> Entries:
    if len(trees) == 1:
        return trees[0]
    merged: dict[str, Entry] = {}
    for entry in (entry for tree in trees for entry in tree.entries):
        known = merged.setdefault(entry.key, entry)
        if known is entry:
            continue
        if isinstance(known.node, Entries) and isinstance(entry.node, Entries):
            both = Entries(known.node.mark, tuple(_united(entry.key, known.node, entry.node, report)))
            merged[entry.key] = Entry(known.mark, entry.key, both)
        else:
            _twice(entry, known, (entry.key,), report)
    return Entries(mark, tuple(merged.values()))


def _united(key: str, first: Entries, second: Entries, report: Report) -> Iterator[Entry]:
    known = {entry.key: entry for entry in first.entries}
    yield from first.entries
    for entry in second.entries:
        if entry.key in known:
            _twice(entry, known[entry.key], (key, entry.key), report)
        else:
            yield entry


def _twice(entry: Entry, known: Entry, path: Path, report: Report) -> None:
    report.add(entry.mark, path, f"the key {quoted(entry.key)} again", f"it in one file; it is at {known.mark}")


# What others ask about nodes ---------------------------------------------------------------------------------


def describe(node: Node) -> str:
    """What stands there, to follow "found"."""
    match node:
        case Scalar(value=None):
            return "nothing"
        case Scalar(text=text):
            return quoted(text)
        case Items(nodes=nodes):
            return "a list" if nodes else "an empty list"
        case Entries(entries=entries):
            return "a mapping" if entries else "an empty mapping"
        case Broken():
            return "something else"


def plain(node: Node) -> Any:
    """The tree as JSON data, as an editor sees it that checks the file against the schema."""
    match node:
        case Scalar():
            return node.value
        case Items(nodes=nodes):
            return [plain(child) for child in nodes]
        case Entries(entries=entries):
            return {entry.key: plain(entry.node) for entry in entries}
        case Broken():
            return None
