"""Hostile and broken files are refused with a readable error, in bounded time and memory (T13, T15, F-G1)."""

import errno
import gc
import os
import socket
import time
import tracemalloc
from pathlib import Path

import pytest
import yaml

from moorage.config import ConfigError, Kinds, document, load
from moorage.config.document import DEPTH_LIMIT, FILE_LIMIT, FILES_LIMIT, NODE_LIMIT
from moorage.config.fields import DURATION, SIZE
from moorage.config.problems import Report
from moorage.simulator.plugin import SimConfig

KINDS = Kinds({"sim": SimConfig})
MEMORY_LIMIT = 50e6
LAUGHS = (
    "a: &a ["
    + ",".join("x" * 10)
    + "]\n"
    + "".join(
        f"{new}: &{new} [{','.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
)
WRONG_WORDS = b"".join(b"horizo%d: 1," % number for number in range(9000))
KEYS = "".join(f"k{number}: v\n" for number in range(NODE_LIMIT // 2 - 2))

# Name, file, and words that the message must hold.
CORPUS: list[tuple[str, bytes, str]] = [
    ("billion laughs", LAUGHS.encode(), f"at most {NODE_LIMIT} in all files, aliases expanded"),
    ("alias of itself", b"systems: &a [*a]", 'the alias "*a" inside what it stands for'),
    ("alias of a parent", b"systems: &a {b: {c: *a}}", 'the alias "*a" inside'),
    ("alias of nothing", b"systems: *a", "alias"),
    ("deep by aliases", b"a: &a " + b"[" * 15 + b"]" * 15 + b"\nb: " + b"[" * 15 + b"*a" + b"]" * 15, "20 levels"),
    ("deep list", b"[" * 100_000, ""),
    ("deep list, closed", b"[" * 400 + b"]" * 400, f"at most {DEPTH_LIMIT} levels"),
    ("deep mapping", b"{a: " * 100_000, f"at most {DEPTH_LIMIT} levels"),
    ("deep blocks", b"- " * 300_000, f"at most {DEPTH_LIMIT} levels"),
    ("deep keys", b"? " * 300_000, f"at most {DEPTH_LIMIT} levels"),
    ("wide list", b"[" + b"1," * 500_000 + b"]", "too many keys and values"),
    ("many anchors", b"[" + b"&a x," * 150_000 + b"]", "too many keys and values"),
    ("long text", b"deployment: " + b"x" * 5_000, "at most 1000 characters, not 5000"),
    ("too big", b"x" * (FILE_LIMIT + 1), "at most 1 MiB per file"),
    ("100 MB", b"# nothing\n" * 10_000_000, "at most 1 MiB per file"),
    ("object tag", b"systems: !!python/object/apply:os.system [touch /tmp/x]", "the tag"),
    ("plain tag", b"deployment: !!str demo", "the tag"),
    ("own tag", b"deployment: !secret demo", 'the tag "!secret"'),
    ("tag on a key", b"!!str deployment: demo", "the tag"),
    ("tag on the top", b"!!map {deployment: demo}", "the tag"),
    ("100,000 tags", b"[" + b"!!x 1," * 100_000 + b"]", "the tag"),
    ("duplicate key", b"deployment: a\nsystems: {}\ndeployment: b\n", "it is in line 1"),
    ("duplicate key, quoted", b"deployment: a\n'deployment': b\n", 'the key "deployment" again'),
    ("duplicate keys", b"a: 1\n" * 9_000, 'the key "a" again'),
    ("many duplicate keys", b"a: 1\n" * 100_000, "too many"),
    ("merge key", b"a: &a {b: 1}\nc: {<<: *a}", 'the merge key "<<"'),
    ("list as a key", b"? [a, b]\n: 1", "a list as a key"),
    ("mapping as a key", b"{a: 1}: 2", "as a key"),
    ("two documents", b"deployment: a\n---\ndeployment: b\n", "a second document"),
    ("a list", b"- deployment", 'a mapping, "key: value", at the top'),
    ("a text", b"deployment", 'a mapping, "key: value", at the top'),
    ("NUL byte", b"deployment: a\nsystems: \x00", "the character U+0000"),
    ("NUL by an escape", b'deployment: "a\\0"', "the character U+0000"),
    ("escape character", b"deployment: \x1b[31m", "the character U+001B"),
    ("surrogate by an escape", b'deployment: "\\ud800"', ""),
    ("text that changes direction", "deployment: a\u202eb".encode(), "the character U+202E"),
    ("not UTF-8", b"deployment: a\nsystems: \xff\xfe", "the byte 0xff"),
    ("UTF-16", "deployment: demo".encode("utf-16"), "the byte 0xff"),
    ("half written", b"deployment: demo\nsystems:\n  one: {kind: si", "valid YAML"),
    ("tab", b"systems:\n\tone: 1", "valid YAML"),
    ("huge number", b"deployment: demo\nlimits: {in_all: " + b"9" * 500_000 + b"}", "a whole number"),
    ("huge exponent", b"limits: {in_all: 1e999999999}", "a whole number"),
    ("huge key", b"? " + b"k" * 900_000 + b"\n: 1", "the unknown key"),
    ("huge text", b"deployment: " + b"k" * 900_000, "1 to 8 lower-case"),
    ("many unknown keys", KEYS.encode(), "the unknown key"),
    ("many unknown keys, broken at the end", KEYS.encode() + b"]", "valid YAML"),
    ("many wrong words", b"systems: {a: {kind: sim, timeouts: {" + WRONG_WORDS + b"}}}", "horizon"),
    ("empty", b"", "it is required"),
    ("only a comment", b"# nothing yet\n", "it is required"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), [case[1:] for case in CORPUS], ids=[case[0] for case in CORPUS])
def test_it_is_refused_within_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, words: str
) -> None:
    """One readable error that names the file; the parser's work, memory and time are bounded."""
    file = tmp_path / "moorage.yaml"
    file.write_bytes(content)
    del content

    def refuse() -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load(file, lambda allowed: KINDS)
        return caught.value

    # Reading stops at the first limit. A collection has two events and counts once; a document and a stream have
    # two each. This first reading also imports and caches what is not the file's fault.
    with monkeypatch.context() as patch:
        events = _count_events(patch)
        error = refuse()
    assert len(events) <= 2 * NODE_LIMIT + 10
    assert words in str(error)
    assert len(str(error)) < 200_000
    assert all(problem.file == str(file) for problem in error.problems)
    # The limit is 0.1 s; five times that, because other tests run beside this one. What collecting the garbage of all
    # tests before would take is not the file's fault.
    gc.disable()
    begin = time.process_time()
    refuse()
    took_s = time.process_time() - begin
    gc.enable()
    assert took_s < 0.5
    # Tracing makes reading several times slower, so it is left out where the file is too small to need the memory:
    # a node costs less than 1 kB.
    if file.stat().st_size > 20_000 or len(events) > 1_000:
        tracemalloc.start()
        refuse()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MEMORY_LIMIT


def _count_events(patch: pytest.MonkeyPatch) -> list[None]:
    """Grows by one entry with every event that the parser is asked for."""
    counted: list[None] = []
    parse = yaml.parse

    def counting(*args: object, **kwargs: object) -> object:
        for event in parse(*args, **kwargs):  # type: ignore[arg-type]
            counted.append(None)
            yield event

    patch.setattr(document.yaml, "parse", counting)
    return counted


def test_aliases_within_bounds_are_allowed(tmp_path: Path) -> None:
    """A value can be shared; both places read it."""
    file = tmp_path / "moorage.yaml"
    file.write_text(
        "deployment: demo\nsystems:\n  a: {kind: sim, options: &o {nodes: 3}}\n  b: {kind: sim, options: *o}\n"
    )
    config = load(file, lambda allowed: KINDS)
    assert config.systems["a"].options == config.systems["b"].options == SimConfig(nodes=3)


def test_depth_counts_what_aliases_bring(tmp_path: Path) -> None:
    """Ten levels inside ten are allowed, eleven inside ten are not."""

    def levels(outer: int, inner: int) -> str:
        file = tmp_path / "moorage.yaml"
        nested = "[" * inner + "]" * inner
        # The mapping at the top is a level as well.
        file.write_text(f"a: &a {nested}\nb: {'[' * (outer - 1)}*a{']' * (outer - 1)}\n")
        with pytest.raises(ConfigError) as caught:
            load(file, lambda allowed: KINDS)
        return str(caught.value)

    assert "nested too deeply" not in levels(10, 10)
    assert "nested too deeply" in levels(10, 11)
    assert "nested too deeply" in levels(11, 10)


def test_plain_words_are_what_the_operator_wrote(tmp_path: Path) -> None:
    """The surprises of YAML 1.1 do not happen: `no`, `on`, `1:30` and dates stay texts, numbers stay numbers."""
    file = tmp_path / "moorage.yaml"
    words = ["no", "on", "1:30", "0x10", "017", "2026-12-01", "1_000", ".inf", "=", "Null"]
    file.write_text("\n".join(f"- {word}" for word in words))
    tree = document.parse(file.read_text(), "f", Report())
    assert document.plain(tree) == words
    others = document.parse("[null, ~, true, false, 1, -2, 1.5, 1e3, '1']", "f", Report())
    assert document.plain(others) == [None, None, True, False, 1, -2, 1.5, 1000.0, "1"]


@pytest.mark.parametrize("make", ["fifo", "socket", "missing", "nul"])
def test_things_that_are_not_files_are_refused_at_once(tmp_path: Path, make: str) -> None:
    """A named pipe would be waited for, and a device could be endless."""
    file = tmp_path / "moorage.yaml"
    if make == "fifo":
        os.mkfifo(file)
    elif make == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(file))
    elif make == "nul":
        file = tmp_path / "a\0b"
    with pytest.raises(ConfigError, match="expected a file"):
        load(file, lambda allowed: KINDS)


def test_an_endless_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="something that is not a file"):
        load(Path("/dev/zero"), lambda allowed: KINDS)


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "moorage.yaml"
    file.write_text("deployment: demo")
    file.chmod(0)
    if os.geteuid() == 0:
        # Root may read everything, so the kernel's answer is given in its place.
        def refuse(*_arguments: object, **_options: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))

        monkeypatch.setattr(os, "open", refuse)
        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(file, lambda allowed: KINDS)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "moorage.yaml"
    file.write_bytes(b"\xef\xbb\xbfdeployment: demo\nsystems: {a: {kind: sim}}\n")
    assert load(file, lambda allowed: KINDS).deployment == "demo"


@pytest.mark.parametrize("quantity", [DURATION, SIZE])
@pytest.mark.parametrize("part", ["1", "1 ", "1 s ", "1.1", "1 B ", ":", "1:", "1-", "s", " "])
def test_our_patterns_need_linear_time(quantity: object, part: str) -> None:
    """A pattern of ours answers about 100,000 characters in milliseconds (T15)."""
    import re

    pattern = re.compile(quantity.pattern)  # type: ignore[attr-defined]
    text = part * (100_000 // len(part)) + "!"
    begin = time.process_time()
    assert pattern.fullmatch(text) is None
    assert time.process_time() - begin < 0.1


def test_patterns_of_the_model_need_linear_time() -> None:
    """Each pattern of the model answers about 100,000 characters of any of its own letters in milliseconds (T15)."""
    import re
    import typing

    from moorage.config import fields, model

    forms = [
        marker
        for module in (fields, model)
        for hint in vars(module).values()
        for marker in (hint, *typing.get_args(hint))
        if isinstance(marker, fields.Text)
    ]
    assert len(forms) >= 12
    for form in forms:
        for part in ("a", "A", "0", ".", "a.", "-", "a-", "_", "/", ":", "@", "sqlite://", "password", "a0.", " "):
            text = part * (100_000 // len(part)) + "\0"
            begin = time.process_time()
            re.fullmatch(form.pattern, text)
            assert time.process_time() - begin < 0.1, (form.pattern, part)


# Folders -----------------------------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_folder_is_read_as_one(tmp_path: Path) -> None:
    """Files share the mappings at the top; other files and hidden ones are left alone."""
    write(
        tmp_path,
        base="deployment: demo\nlimits: {per_user: 3}\n",
        one="systems: {a: {kind: sim}}\n",
        two="systems: {b: {kind: sim}}\nlimits: {in_all: 7}\n",
        nothing="",
    )
    (tmp_path / ".swap.yaml").write_text("}")
    (tmp_path / "README.md").write_text("}")
    config = load(tmp_path, lambda allowed: KINDS)
    assert list(config.systems) == ["a", "b"]
    assert (config.limits.per_user, config.limits.in_all) == (3, 7)


def test_a_key_in_two_files_is_told_with_both_places(tmp_path: Path) -> None:
    write(
        tmp_path,
        one="deployment: demo\nsystems: {a: {kind: sim}}\n",
        two="systems:\n  a: {kind: sim}\ndeployment: demo\n",
    )
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, lambda allowed: KINDS)
    assert [str(problem) for problem in caught.value.problems] == [
        f'{tmp_path}/two.yaml:2:3: systems.a: found the key "a" again, '
        f"expected it in one file; it is at {tmp_path}/one.yaml:2:11",
        f'{tmp_path}/two.yaml:3:1: deployment: found the key "deployment" again, '
        f"expected it in one file; it is at {tmp_path}/one.yaml:1:1",
    ]


def test_mistakes_of_all_files_are_told(tmp_path: Path) -> None:
    write(tmp_path, one="deployment: [\n", two="systems: }\n", three="- a\n")
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, lambda allowed: KINDS)
    assert {Path(problem.file).stem for problem in caught.value.problems} == {"one", "two", "three"}


def test_limits_hold_for_a_folder_as_a_whole(tmp_path: Path) -> None:
    """Many small files cannot do what one big file cannot."""
    part = "".join(f"k{number}: v\n" for number in range(NODE_LIMIT // 4))
    write(tmp_path, one=f"a:\n{_indented(part)}", two=f"b:\n{_indented(part)}", three=f"c:\n{_indented(part)}")
    with pytest.raises(ConfigError, match="too many keys and values"):
        load(tmp_path, lambda allowed: KINDS)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("number", [0, FILES_LIMIT + 1])
def test_a_folder_holds_some_files_but_not_too_many(tmp_path: Path, number: int) -> None:
    write(tmp_path, **{f"f{each}": "" for each in range(number)})
    with pytest.raises(ConfigError, match=f"a folder with {number}"):
        load(tmp_path, lambda allowed: KINDS)


def test_the_limit_leaves_room_for_a_real_catalogue(tmp_path: Path) -> None:
    """20 systems with 10 partitions each and 50 services need less than half of what is allowed."""
    partitions = "".join(
        f"      p{n}: {{description: d, max_walltime: 24 h, default_walltime: 1 h,"
        f" nodes: {{min: 1, max: 9, default: 1}}, cores: {{min: 1, max: 9, default: 1}}, groups: [a, b]}}\n"
        for n in range(10)
    )
    systems = "".join(f"  s{n}:\n    kind: sim\n    partitions:\n{partitions}" for n in range(20))
    services = "".join(
        f"  l{n}: {{description: d, command: [a, '{{socket}}', c], modules: [a, b, c], environment: {{A: b, C: d}}}}\n"
        for n in range(50)
    )
    file = tmp_path / "moorage.yaml"
    file.write_text(f"deployment: demo\nsystems:\n{systems}services:\n{services}")
    assert len(load(file, lambda allowed: KINDS).systems) == 20
    nodes = sum(not isinstance(e, yaml.CollectionEndEvent) for e in yaml.parse(file.read_text()))
    assert nodes < NODE_LIMIT / 2
