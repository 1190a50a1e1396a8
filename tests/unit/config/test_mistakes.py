"""Every mistake is told at once, with its place, what was found, what was expected and the nearest right word."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs
import pytest
from attrs import field, frozen, validators

from moorage.config import Bytes, ConfigError, Kinds, Misfit, Problem, Seconds, SecretRef, Text, doc, load, unsupported


@frozen(kw_only=True)
class ByKey:
    """Log in with a key."""

    kind: Literal["key"]
    path: Path


@frozen(kw_only=True)
class ByPassword:
    """Log in with a password."""

    kind: Literal["password"]
    password: SecretRef


@frozen(kw_only=True)
class Cluster:
    """A kind as a plugin would write it."""

    url: str
    memory: Bytes = field(default=2**30, validator=validators.ge(2**20), metadata=doc("memory of a session"))
    load: float = field(default=0.5, validator=[validators.ge(0), validators.le(1)])
    login: ByKey | ByPassword | None = None
    tags: tuple[str, ...] = field(default=(), validator=validators.max_len(2))
    code: str = field(default="x", validator=validators.matches_re(r"[a-z]+"))


@frozen
class Nothing:
    """A kind that wants to know nothing."""


KINDS = Kinds({"cluster": Cluster, "plain": Nothing}, {"direct": Nothing})
GOOD = """\
deployment: test
systems:
  one:
    kind: cluster
    options: {url: "https://one.example.org"}
"""


def problems_of(tmp_path: Path, text: str | bytes) -> tuple[Problem, ...]:
    file = tmp_path / "moorage.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load(file, lambda allowed: KINDS)
    assert str(caught.value).count("\n") == len(caught.value.problems)
    return caught.value.problems


def places(problems: tuple[Problem, ...]) -> set[tuple[str, int, int]]:
    return {(problem.path, problem.line, problem.column) for problem in problems}


def test_all_mistakes_of_a_file_are_told_with_their_places(tmp_path: Path) -> None:
    """Twelve mistakes in all parts of a file come in one answer, in the order of the lines."""
    problems = problems_of(
        tmp_path,
        """\
deployment: Test
systms: {}
systems:
  one:
    kind: clustr
  two:
    kind: cluster
    partitions:
      batch: {max_walltime: 2 hourz, nodes: {min: 4, max: 2}}
      devel: {kind: logn, default_walltime: 3 h, max_walltime: 2 h}
    timeouts: {horizn: 5 s}
    destinations: [.ok.org, "*"]
    groups: staff
services:
  lab: {command: [], deprecated: yes}
limits: {per_user: -1}
""",
    )
    assert [(p.line, p.column, p.path) for p in problems] == [
        (1, 13, "deployment"),
        (2, 1, "systms"),
        (5, 11, "systems.one.kind"),
        (7, 5, "systems.two.options.url"),
        (9, 29, "systems.two.partitions.batch.max_walltime"),
        (9, 59, "systems.two.partitions.batch.nodes.max"),
        (10, 21, "systems.two.partitions.devel.kind"),
        (11, 16, "systems.two.timeouts.horizn"),
        (12, 29, "systems.two.destinations[1]"),
        (13, 13, "systems.two.groups"),
        (15, 18, "services.lab.command"),
        (15, 34, "services.lab.deprecated"),
        (16, 20, "limits.per_user"),
    ]


@pytest.mark.parametrize(
    ("text", "path", "found", "expected", "hint"),
    [
        (GOOD + "sytems: {}\n", "sytems", 'the unknown key "sytems"', "one of deployment", '"systems"'),
        (GOOD + "limits: {Per-User: 1}\n", "limits.Per-User", 'the unknown key "Per-User"', "in_all", '"per_user"'),
        (GOOD + "timeouts: {horizn: 5 s}\n", "timeouts.horizn", 'the key "horizn"', "horizon", '"horizon"'),
        (GOOD.replace("cluster", "clutser"), "systems.one.kind", '"clutser"', "one of cluster, plain", '"cluster"'),
        (GOOD + "timeouts: {call: 2 hourz}\n", "timeouts.call", '"2 hourz"', "a duration", '"2 hours"'),
        (GOOD + "timeouts: {call: 2 m}\n", "timeouts.call", '"2 m"', "a duration", '"2 min"'),
        (GOOD + "timeouts: {call: 30}\n", "timeouts.call", '"30"', "a duration with its unit", ""),
        (GOOD + "timeouts: {call: 0 s}\n", "timeouts.call", '"0 s"', "more than 0", ""),
        (GOOD + "limits: {in_all: 1.5}\n", "limits.in_all", '"1.5"', "a whole number", ""),
        (GOOD + 'limits: {in_all: "5"}\n', "limits.in_all", '"5"', "a whole number, without quotes", ""),
        (GOOD + "limits: {in_all: 1e99}\n", "limits.in_all", '"1e99"', "a whole number", ""),
        (GOOD + f"limits: {{in_all: {'9' * 5000}}}\n", "limits.in_all", "999…", "a whole number", ""),
        (GOOD + "limits: {per_group: {a: -1}}\n", "limits.per_group.a", '"-1"', "at least 0", ""),
        (GOOD + "limits: []\n", "limits", "an empty list", "a mapping with one of in_all", ""),
        (GOOD + "limits:\n", "limits", "nothing", "a mapping with one of in_all", ""),
        (GOOD + "deployment2: x\n", "deployment2", "the unknown key", "one of", '"deployment"'),
        (GOOD.replace("test", "42"), "deployment", '"42" without quotes', "in quotes", ""),
        (GOOD.replace("test", "te-st"), "deployment", '"te-st"', "1 to 8 lower-case letters or digits", ""),
        (GOOD.replace("one:", "One:"), "systems.One", 'the key "One"', "a name of lower-case letters", ""),
        (GOOD.replace("}", ", taggs: []}"), "systems.one.options.taggs", "unknown key", "one of url", '"tags"'),
        (GOOD.replace("}", ", memory: 16 G}"), "systems.one.options.memory", '"16 G"', "a size with its unit", ""),
        (GOOD.replace("}", ", memory: 16 Gb}"), "systems.one.options.memory", '"16 Gb"', "a size", '"16 GB"'),
        (GOOD.replace("}", ", memory: 1 kB}"), "systems.one.options.memory", '"1 kB"', "at least 1048576", ""),
        (GOOD.replace("}", ", memory: 0.3 B}"), "systems.one.options.memory", '"0.3 B"', "a size", ""),
        (GOOD.replace("}", ", load: 2}"), "systems.one.options.load", '"2"', "a number, at least 0, at most 1", ""),
        (GOOD.replace("}", ", load: 1e999}"), "systems.one.options.load", '"1e999"', "a number", ""),
        (GOOD.replace("}", ", load: .nan}"), "systems.one.options.load", '".nan"', "a number", ""),
        (GOOD.replace("}", ", tags: [a, b, c]}"), "systems.one.options.tags", "a list", "at most 2 entries", ""),
        (GOOD.replace("}", ", tags: [a, 1]}"), "systems.one.options.tags[1]", '"1" without', "in quotes", ""),
        (GOOD.replace("}", ", code: A}"), "systems.one.options.code", '"A"', "code to pass its check", ""),
        (GOOD.replace("}", ", login: {}}"), "systems.one.options.login", "an empty mapping", "one of key, pass", ""),
        (GOOD.replace("}", ", login: {kind: kye}}"), "systems.one.options.login.kind", '"kye"', "one of", '"key"'),
        (GOOD.replace("}", ", login: {kind: key}}"), "systems.one.options.login.path", "nothing", "is required", ""),
        (GOOD + "    tunnel: {kind: dierct}\n", "systems.one.tunnel.kind", '"dierct"', "one of direct", '"direct"'),
        (GOOD + "    maintenance: [{from: 2026-12-01T08:00, until: 2026-12-02T08:00Z}]\n",
         "systems.one.maintenance[0].from", '"2026-12-01T08:00"', "a time with its offset from UTC", ""),
        (GOOD + "    maintenance: [{from: 2026-02-30T08:00Z, until: 2026-12-02T08:00Z}]\n",
         "systems.one.maintenance[0].from", '"2026-02-30T08:00Z"', "a day and a time that exist", ""),
        (GOOD + "    maintenance: [{from: 2026-12-03T08:00Z, until: 2026-12-02T08:00Z}]\n",
         "systems.one.maintenance[0].until", '"2026-12-02T08:00Z"', "a time after the begin", ""),
        (GOOD + "    partitions: {a: {default_walltime: 3 h, max_walltime: 2 h}}\n",
         "systems.one.partitions.a.default_walltime", '"3 h"', "at most max_walltime", ""),
        (GOOD + "    partitions: {a: {nodes: {min: 2, max: 4, default: 8}}}\n",
         "systems.one.partitions.a.nodes.default", '"8"', "a value from 2 to 4", ""),
        (GOOD + "services: {a: {command: ['{socket}'], default: true}, b: {command: ['{socket}'], default: true}}\n",
         "services", "a mapping", "at most one with default: true, not a and b", ""),
        (GOOD + "services: {a: {command: [x], pre_start: [[]]}}\n",
         "services.a.pre_start[0]", "an empty list", "at least 1 entries", ""),
        (GOOD + "services: {a: {command: [lab]}}\n",
         "services.a.command", "a list", "{socket} where the lab is told its socket", ""),
        (GOOD + "services: {a: {command: [lab, '{socket}'], systems: {one: {command: [lab]}}}}\n",
         "services.a.systems", "a mapping", "systems.one: {socket} where the lab is told its socket", ""),
        (GOOD + "services: {a: {command: ['{socket}'], modules: ['$(x)']}}\n",
         "services.a.modules", "a list", "modules[0]: up to 128 of A-Z", ""),
        (GOOD + "services: {a: {command: ['{socket}'], environment: {BASH_ENV: x}}}\n",
         "services.a.environment", "a mapping", "environment.BASH_ENV: another name", ""),
        (GOOD + "services: {a: {command: ['{socket}'], directory: ../x}}\n",
         "services.a.directory", '"../x"', "'~', '.', or a path below ~/", ""),
        (GOOD + "services: {a: {command: ['{socket}'], systems: {two: {}}}}\n",
         "services", "a mapping", "systems of this file only in 'a', not 'two'", ""),
        (GOOD + "rights: [{attribute: a, form: '{account}'}]\n",
         "rights[0].form", '"{account}"', "{system}, and each of", ""),
        (GOOD + "rights: [{attribute: a, form: '{system}{account}'}]\n",
         "rights[0].form", '"{system}{account}"', "with a character between two", ""),
        (GOOD + "rights: [{attribute: a, form: '{system},{user}'}]\n",
         "rights[0].form", '"{system},{user}"', "a form such as", ""),
        (GOOD + "    gate: {ports: 2000-1000}\n",
         "systems.one.gate.ports", '"2000-1000"', "two ports in order", ""),
        (GOOD + "    gate: {host: 'a b'}\n", "systems.one.gate", "a mapping", "a host name, {hostname}", ""),
        (GOOD + "    reservations: {r: {from: 2026-12-03T08:00Z, until: 2026-12-02T08:00Z}}\n",
         "systems.one.reservations.r.until", '"2026-12-02T08:00Z"', "a time after the begin", ""),
        (GOOD + "    partitions: {a: {}}\n    projects: {p: {partitions: [b]}}\n",
         "systems.one.projects", "a mapping", "partitions of this system only, not 'b'", ""),
        (GOOD + "    partitions: {a: {memory: {max: 1 kB}}}\n",
         "systems.one.partitions.a.memory.max", '"1 kB"', "at least 1048576", ""),
        (GOOD + "    partitions: {a: {nodes: {min: 0, max: 3}}}\n",
         "systems.one.partitions.a.nodes", "a mapping", "a range that begins with 1", ""),
        (GOOD + "plugins: [../evil]\n", "plugins[0]", '"../evil"', "the name of an installed distribution", ""),
        ("deployment: test\nsystems: {}\n", "systems", "an empty mapping", "at least 1 entries", ""),
        ("systems: {a: {kind: plain}}\n", "deployment", "nothing", "it is required", ""),
    ],
)  # fmt: skip
def test_a_mistake_says_what_was_found_expected_and_probably_meant(
    tmp_path: Path, text: str, path: str, found: str, expected: str, hint: str
) -> None:
    """Exactly one problem, about the right place."""
    (problem,) = problems_of(tmp_path, text)
    assert problem.path == path
    assert found in problem.found
    assert expected in problem.expected
    assert problem.hint == hint
    line = text.splitlines()[problem.line - 1]
    assert 1 <= problem.column <= len(line) + 1  # where nothing stands, the place is the end of the line
    assert str(problem).startswith(f"{tmp_path}/moorage.yaml:{problem.line}:{problem.column}: {path}: found ")


@pytest.mark.parametrize(
    "destination", ["*", ".", "*.org", ".*", "", "a b", "..org", "a..b", "-a", "a/b", "0.0.0.0/0", "x" * 300]
)
def test_wildcard_destinations_are_refused(tmp_path: Path, destination: str) -> None:
    """No destination opens more than one name or one suffix (T26)."""
    (problem,) = problems_of(tmp_path, GOOD + f"    destinations: ['{destination}']\n")
    assert problem.path == "systems.one.destinations[0]"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("}", ", login: {kind: password, password: hunter2}}"),
        GOOD.replace("}", ", login: {kind: password, password: [hunter2]}}"),
        GOOD.replace("}", ", login: {kind: password, password: {value: hunter2}}}"),
        GOOD.replace("}", ", login: {kind: password, password: {hunter2}}}"),
        GOOD.replace("}", ", login: {kind: password, password: {file: hunter2}}}"),
        GOOD.replace("}", ", login: {kind: password, password: {file: 2, env: hunter2!}}}"),
        GOOD.replace("}", ", login: {kind: password, pasword: hunter2}}"),
        GOOD + "store: {password: hunter2}\n",
        GOOD + "store: {url: 'postgresql://me:hunter2@db/moorage'}\n",
        GOOD + "store: {url: 'postgresql://db/moorage?password=hunter2'}\n",
        GOOD + "store: {url: 'mysql://me:hunter2@db/moorage'}\n",
    ],
)
def test_a_literal_secret_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    """A secret that was written where a reference belongs does not get into logs by the message about it."""
    problems = problems_of(tmp_path, text)
    assert "hunter2" not in str(ConfigError(problems))
    assert any("password" in problem.path + problem.expected for problem in problems)


def test_a_literal_secret_is_refused_with_a_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, GOOD + "store: {password: hunter2}\n")
    assert problem.found == "a literal value"
    assert problem.expected == "a reference to the secret, not the secret: {file: /path} or {env: NAME}"


@pytest.mark.parametrize("reference", ["{}", "{file: /a, env: B}", "{file: null}"])
def test_a_secret_has_exactly_one_source(tmp_path: Path, reference: str) -> None:
    (problem,) = problems_of(tmp_path, GOOD + f"store: {{password: {reference}}}\n")
    assert problem.path == "store.password"


def test_a_report_is_bounded(tmp_path: Path) -> None:
    """A thousand mistakes are told as the first hundred, each on a line of bounded length."""
    many = "".join(f"  {'k' * 900}{number}: 1\n" for number in range(1000))
    problems = problems_of(tmp_path, GOOD + "limits:\n" + many)
    assert len(problems) == 100
    assert max(len(str(problem)) for problem in problems) < 500 + len(str(tmp_path))
    assert "there may be more" in str(ConfigError(problems))


def test_messages_do_not_steer_a_terminal(tmp_path: Path) -> None:
    (problem,) = problems_of(tmp_path, GOOD + '"a\\u2028\\u00a0b": 1\n')
    assert str(problem).isprintable()


def test_validators_and_classes_of_plugins_may_raise_anything(tmp_path: Path) -> None:
    """A mistake in a plugin's check becomes a message at the place it was about."""

    def divides(_instance: object, _attribute: object, value: int) -> None:
        1 / value

    @frozen(kw_only=True)
    class Odd:
        number: int = field(default=1, validator=divides)
        name: str = "x"
        other: str = "y"

        def __attrs_post_init__(self) -> None:
            if self.name == "raise":
                raise RuntimeError("bad\x1b[31m luck")
            if self.name == "misfit":
                raise Misfit("other", "something else")

    def problems(options: str) -> list[str]:
        file = tmp_path / "moorage.yaml"
        file.write_text(GOOD.replace('{url: "https://one.example.org"}', options))
        with pytest.raises(ConfigError) as caught:
            load(file, lambda allowed: Kinds({"cluster": Odd}))
        return [str(problem).split(": ", 1)[1] for problem in caught.value.problems]

    assert problems("{number: 0}") == [
        'systems.one.options.number: found "0", expected number to pass its check: division by zero'
    ]
    assert problems("{name: raise}") == [
        "systems.one.options: found values that do not go together, expected Odd to pass its check: bad\\x1b[31m luck"
    ]
    assert problems("{name: misfit}") == ["systems.one.options.other: found a mapping, expected something else"]


def test_a_private_text_is_not_told_by_a_validator_either(tmp_path: Path) -> None:
    from typing import Annotated

    @frozen(kw_only=True)
    class Keen:
        pin: Annotated[str, Text(r"\w+", "a word", private=True)] = field(validator=validators.matches_re(r"\d+"))

    file = tmp_path / "moorage.yaml"
    file.write_text(GOOD.replace('{url: "https://one.example.org"}', "{pin: hunter2}"))
    with pytest.raises(ConfigError, match=r"pin: found another value, expected a word"):
        load(file, lambda allowed: Kinds({"cluster": Keen}))


def test_classes_that_cannot_be_read_are_told_before_they_are_used() -> None:
    """`unsupported` finds hints without a shape, wherever they hide."""

    @frozen
    class Inner:
        when: set[str]

    @frozen
    class Outer:
        inner: Mapping[str, tuple[Inner, ...]]

    @frozen
    class Pair:
        pair: tuple[int, str]

    @frozen
    class Keyed:
        by: Mapping[int, str]

    @frozen
    class Mixed:
        mixed: int | str

    @frozen
    class Unknown:
        unknown: "NoSuchName"  # noqa: F821 - the mistake

    for cls in (Outer, Pair, Keyed, Mixed, Unknown, dict):
        assert unsupported(cls), cls
    assert unsupported(Cluster) == ""
    assert "set[str]" in unsupported(Outer)


def test_a_class_may_contain_itself(tmp_path: Path) -> None:
    assert unsupported(Tree) == ""
    file = tmp_path / "moorage.yaml"
    file.write_text(GOOD.replace('{url: "https://one.example.org"}', "{name: a, children: [{name: b}]}"))
    config = load(file, lambda allowed: Kinds({"cluster": Tree}))
    assert config.systems["one"].options == Tree("a", (Tree("b"),))


@attrs.frozen
class Tree:
    """A class that contains itself."""

    name: str
    children: "tuple[Tree, ...]" = ()
    patience: Seconds = 1.0
