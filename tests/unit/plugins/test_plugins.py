"""A plugin that is broken, slow, hostile or greedy is refused with its name and harms nobody else (I48)."""

import logging
import sys
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from attrs import evolve, frozen

from moorage.config import unsupported
from moorage.plugins import BUILT_IN, PluginFailed, Plugins, _name, _told_by, load_plugins, told

PROLOGUE = """\
from attrs import frozen
from moorage.plugins import SystemKind, TunnelKind, hookimpl

def make(name, options, /, **context):
    return (name, options)

@frozen
class Options:
    nodes: int = 1
"""
GOOD = """\
@hookimpl
def moorage_system_kinds():
    return [SystemKind("{kind}", Options, make, "a kind for tests")]
"""


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, distribution: str, source: str, *, version: str = "1.0", entry: str = "", value: str = "") -> str:
        """Install a distribution with one module and one entry point; returns the module's name."""
        module = f"{distribution.replace('-', '_')}_module"
        (self.folder / f"{module}.py").write_text(PROLOGUE + source)
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[moorage]\n{entry or distribution} = {value or module}\n")
        self.modules.append(module)
        return module

    def installed(self) -> list[Distribution]:
        return list(distributions(path=[str(self.folder)]))

    def load(self, *allowed: str, deadline_s: float = 10) -> Plugins:
        return load_plugins(allowed, vet=unsupported, installed=self.installed(), deadline_s=deadline_s)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    made = Site(tmp_path)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)


def test_moorages_own_kinds_come_in_by_the_same_door() -> None:
    """With nothing allowed, the kinds of the installed moorage are there, each by its entry point, none refused."""
    plugins = load_plugins(vet=unsupported)
    assert [str(refusal) for refusal in plugins.refused if refusal.origin.name == "sim"] == []
    assert "sim" in plugins.systems
    lines = {(line.of, line.name): line.origin for line in plugins.describe()}
    assert lines["system", "sim"].name == "sim"
    assert {origin.distribution for origin in lines.values()} == {BUILT_IN}


def test_an_allowed_plugin_brings_its_kind(site: Site) -> None:
    site.install("moorage-good", GOOD.format(kind="good"))
    plugins = site.load("Moorage_Good==1.0")
    assert not plugins.refused
    kind = plugins.systems["good"]
    assert kind.factory("one", kind.config_class(nodes=3)) == ("one", kind.config_class(3))
    (line,) = plugins.describe()
    assert (line.of, line.name, str(line.origin)) == ("system", "good", "moorage-good (moorage-good 1.0)")


def test_a_distribution_that_is_not_allowed_is_not_imported(site: Site) -> None:
    """Neither here nor in a process of its own: the module would leave a mark."""
    mark = site.folder / "imported"
    module = site.install("moorage-evil", f"open({str(mark)!r}, 'w')\n" + GOOD.format(kind="evil"))
    site.install("moorage-good", GOOD.format(kind="good"))
    plugins = site.load("moorage-good")
    assert list(plugins.systems) == ["good"]
    assert not mark.exists()
    assert module not in sys.modules


REFUSED = {
    "raises": ("raise RuntimeError('out\\nof luck')", "RuntimeError: out of luck"),
    "syntax": ("def (", "SyntaxError"),
    "exits": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "ends": ("import os; os._exit(3)", "importing it ended the process with code 3"),
    "ends_quietly": ("import os; os._exit(0)", "it ended the process that imported it"),
    "crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended the process with code -11"),
    "async": ("@hookimpl\nasync def moorage_system_kinds():\n    return []", "moorage_system_kinds is async"),
    "no_hook": ("def moorage_system_kinds():\n    return []", "it implements no hook"),
    "unknown_hook": ("@hookimpl\ndef moorage_system_kind():\n    return []", "unknown hook 'moorage_system_kind'"),
    "wrong_argument": ("@hookimpl\ndef moorage_observe(decisions): pass", "decisions"),
    "generator": ("@hookimpl\ndef moorage_system_kinds():\n    while True: yield 1", "kinds are a generator"),
    "no_kinds": ("@hookimpl\ndef moorage_system_kinds():\n    return [Options]", "among the kinds is a type"),
    "many": (
        "@hookimpl\ndef moorage_tunnel_kinds():\n"
        "    return [TunnelKind(f'k{n}', Options, make, '') for n in range(101)]",
        "at most 100",
    ),
    "kind_twice": (
        "@hookimpl\ndef moorage_system_kinds():\n    return [SystemKind('a', Options, make, '')] * 2",
        "it names the kind 'a' 2 times",
    ),
    "bad_name": (GOOD.format(kind="Bad Name"), "a kind is named 'Bad Name'"),
    "not_frozen": (
        "from attrs import define\n@define\nclass Loose: pass\n"
        "@hookimpl\ndef moorage_system_kinds():\n    return [SystemKind('a', Loose, make, '')]",
        "not a class made by attrs.frozen",
    ),
    "unreadable_config": (
        "@frozen\nclass Odd:\n    when: set\n"
        "@hookimpl\ndef moorage_system_kinds():\n    return [SystemKind('a', Odd, make, '')]",
        "the config_class of kind 'a' cannot be used",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_plugin_is_refused_by_name_and_the_others_go_on(
    site: Site, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    source, reason = REFUSED[case]
    name = f"a-{case.replace('_', '-')}"
    site.install(name, source)
    site.install("b-good", GOOD.format(kind="good"))
    with caplog.at_level(logging.WARNING, "moorage.plugins"):
        plugins = site.load(name, "b-good")
    assert list(plugins.systems) == ["good"]
    (refusal,) = plugins.refused
    assert refusal.origin.distribution == name
    assert reason in refusal.reason
    assert "\n" not in str(refusal)
    assert str(refusal) in caplog.text


@pytest.mark.parametrize("source", ["import time; time.sleep(600)", "while True: pass"], ids=["sleeps", "spins"])
def test_a_plugin_that_hangs_is_refused_within_its_deadline(site: Site, source: str) -> None:
    """Its process and whatever it started are gone afterwards."""
    note = site.folder / "pids"
    begin = (
        "import os, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
    )
    site.install("a-hanging", begin + source)
    started = time.monotonic()
    # Enough for a loaded machine to import what our own half needs.
    plugins = site.load("a-hanging", deadline_s=3)
    assert time.monotonic() - started < 15
    (refusal,) = plugins.refused
    assert refusal.reason == "importing it and asking for its kinds took longer than 3.0 s"
    own, child = (int(pid) for pid in note.read_text().split())
    assert not Path(f"/proc/{own}").exists()
    assert _is_over(child)


def _is_over(pid: int) -> bool:
    """Gone, or a zombie that init has not collected yet."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)  # the kernel delivers the signal; there is no pretend time for it
    return False


def test_a_plugin_that_is_slow_only_here_is_refused_too(site: Site) -> None:
    """The trial went well, and the import in this process took longer than allowed."""
    mark = site.folder / "tried"
    source = (
        f"import os, time\nfirst = not os.path.exists({str(mark)!r})\nopen({str(mark)!r}, 'w').close()\n"
        "if not first: time.sleep(1.6)\n"
    )
    site.install("a-slow", source + GOOD.format(kind="slow"))
    site.install("b-good", GOOD.format(kind="good"))
    plugins = site.load("a-slow", deadline_s=10)
    assert list(plugins.systems) == ["slow"]
    sys.modules.pop("a_slow_module")
    mark.unlink()
    plugins = site.load("a-slow", deadline_s=1.5)
    (refusal,) = plugins.refused
    assert refusal.reason.startswith("loading took ") or "took longer than 1.5 s" in refusal.reason
    assert not plugins.systems


def test_of_two_with_the_same_name_the_first_is_kept(site: Site) -> None:
    site.install("a-one", GOOD.format(kind="one"), entry="same")
    site.install("b-two", GOOD.format(kind="two"), entry="same")
    plugins = site.load("b-two", "a-one")
    assert list(plugins.systems) == ["one"]
    assert [str(refusal) for refusal in plugins.refused] == [
        "plugin same (b-two 1.0) is refused: another plugin has this name"
    ]


def test_a_kind_belongs_to_whoever_claims_it_first(site: Site) -> None:
    """The second plugin is refused as a whole, so that nothing of it is half in use."""
    both = GOOD.format(kind="one") + (
        "@hookimpl\ndef moorage_tunnel_kinds():\n    return [TunnelKind('way', Options, make, '')]\n"
    )
    site.install("a-one", GOOD.format(kind="one"))
    site.install("b-two", both)
    plugins = site.load("a-one", "b-two")
    assert plugins.systems["one"].config_class.__module__ == "a_one_module"
    assert not plugins.tunnels
    (refusal,) = plugins.refused
    assert refusal.reason == "the kind 'one' belongs to plugin a-one (a-one 1.0)"


def test_nobody_takes_over_a_kind_of_moorage(site: Site) -> None:
    site.install("a-thief", GOOD.format(kind="sim"))
    both = [*site.installed(), *(each for each in distributions() if each.name == BUILT_IN)]
    plugins = load_plugins(["a-thief"], installed=both)
    assert plugins.systems["sim"].config_class.__module__.startswith("moorage.")
    assert [str(refusal.origin) for refusal in plugins.refused if "thief" in str(refusal)] == ["a-thief (a-thief 1.0)"]


def test_a_distribution_that_calls_itself_moorage_does_not_get_in(site: Site) -> None:
    """Neither beside the real one, nor alone with a module that is not ours."""
    site.install(BUILT_IN, GOOD.format(kind="good"), entry="evil")
    (refusal,) = site.load().refused
    assert refusal.reason == "moorage_module is not a module of moorage"
    both = [*site.installed(), *(each for each in distributions() if each.name == BUILT_IN)]
    plugins = load_plugins(installed=both)
    assert "it is installed twice" in plugins.refused[0].reason
    assert not plugins.systems


def test_what_is_allowed_has_to_be_there_in_its_version(site: Site) -> None:
    site.install("moorage-good", GOOD.format(kind="good"), version="2.0")
    plugins = site.load("moorage-good==1.0", "moorage-missing")
    assert not plugins.systems
    assert [str(refusal) for refusal in plugins.refused] == [
        "plugin moorage-missing is refused: it is allowed, but not installed",
        "plugin moorage-good 2.0 is refused: only version 1.0 is allowed",
    ]


def test_entry_points_that_cannot_be_read_are_told(site: Site) -> None:
    site.install("a-odd", GOOD.format(kind="odd"), value="not a module:!")
    site.install("b-good", GOOD.format(kind="good"))
    plugins = site.load("a-odd", "b-good")
    assert list(plugins.systems) == ["good"]
    (refusal,) = plugins.refused
    assert refusal.reason.startswith("its entry points cannot be read: ")


# Hooks that are called while sessions live -----------------------------------------------------------------------


@frozen
class Plan:
    """Stands for a launch plan."""

    words: tuple[str, ...] = ()


def test_plans_are_changed_in_the_order_of_loading(site: Site) -> None:
    for distribution, word in (("b-second", "second"), ("a-first", "first")):
        source = (
            "from attrs import evolve\n@hookimpl\ndef moorage_change_plan(plan, session):\n"
            f"    return evolve(plan, words=(*plan.words, {word!r} + session))\n"
        )
        site.install(distribution, source)
    site.install("c-silent", "@hookimpl\ndef moorage_change_plan(plan): pass\n")
    plugins = site.load("b-second", "a-first", "c-silent")
    assert plugins.change_plan(Plan(), "!") == Plan(("first!", "second!"))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('no')", "OSError: no"),
        ("raise SystemExit(1)", "SystemExit: 1"),
        ("return 'a text'", "moorage_change_plan returned str"),
        ("raise Mute", "Mute"),
    ],
)
def test_a_plan_that_a_plugin_could_not_change_is_not_used(site: Site, body: str, reason: str) -> None:
    """The start fails with the plugin's name; the plan itself is untouched, and so are other plugins."""
    mute = "class Mute(Exception):\n    def __str__(self): raise ValueError\n"
    site.install("a-odd", f"{mute}@hookimpl\ndef moorage_change_plan(plan):\n    {body}\n")
    plugins = site.load("a-odd")
    plan = Plan()
    with pytest.raises(PluginFailed) as caught:
        plugins.change_plan(plan, None)
    assert str(caught.value) == f"plugin a-odd (a-odd 1.0) failed: {reason}"
    assert plan == evolve(plan) == Plan()


def test_observers_cannot_disturb(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """One raises each time and is counted; the other one sees everything; the log has one line."""
    site.install("a-loud", "@hookimpl\ndef moorage_observe(decision):\n    raise SystemExit('loud')\n")
    module = site.install("b-good", "seen = []\n@hookimpl\ndef moorage_observe(decision):\n    seen.append(decision)\n")
    plugins = site.load("a-loud", "b-good")
    for decision in range(3):
        plugins.observe(decision)
    assert sys.modules[module].seen == [0, 1, 2]
    assert plugins.observer_failures == {"a-loud (a-loud 1.0)": 3}
    assert caplog.text.count("failed in moorage_observe") == 1


def test_distributions_are_known_by_the_names_that_their_metadata_gives_them(site: Site) -> None:
    """Read without the parser of the metadata where that is safe, and with it where a file is out of the ordinary."""
    heads = ("Name: Plain\n", "name:\tlower\n", "Name: Windows\r\n\r\n", "Name: folded\n value\n", "Version: 1\n")
    for number, head in enumerate(heads):
        folder = site.folder / f"odd{number}-1.dist-info"
        folder.mkdir()
        text = f"Metadata-Version: 2.1\n{head}\nName: of-the-description\n"
        (folder / "METADATA").write_bytes(text.encode())
    found = [*site.installed(), *distributions()]
    assert [_name(each) for each in found] == [_told_by(each, "Name") for each in found]
    assert {"Plain", "lower", "Windows", "moorage"} <= {_name(each) for each in found}


def test_told_is_one_clipped_line() -> None:
    assert told(ValueError("a\n  b")) == "ValueError: a b"
    assert told(ValueError()) == "ValueError"
    assert len(told(ValueError("x" * 10_000))) == 300
