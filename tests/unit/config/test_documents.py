"""What the documentation and the examples show is accepted, and does what they say."""

import re
import sys
from pathlib import Path

import jsonschema
import pytest

from moorage.bootstrap import kinds_of, read_config
from moorage.config import catalog_of, document, load, schema, unsupported
from moorage.config.problems import Report
from moorage.core.catalog import Lack, ResourceRange, SessionOptions, User, choices, validate
from moorage.core.model import Instant, SystemName
from moorage.plugins import load_plugins

ROOT = Path(__file__).parents[3]
JUNIPER, CEDAR = SystemName("juniper"), SystemName("cedar")
DECEMBER = 1_796_000_000_000


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_page_about_configuration_are_one_configuration(tmp_path: Path) -> None:
    """Put together with a name and a second system, which the page mentions."""
    shown = blocks("configuration.md", "yaml")
    assert len(shown) == 3
    (tmp_path / "base.yaml").write_text(
        "deployment: demo\nsystems: {cedar: {kind: sim, partitions: {batch: {}}}}\nplugins: []\n"
    )
    for number, block in enumerate(shown):
        (tmp_path / f"block{number}.yaml").write_text(block)
    config, _ = read_config(tmp_path)
    assert set(config.systems) == {JUNIPER, CEDAR}
    user = User("max", frozenset({"chem"}), {"hpc_accounts": ("max1,JUW_batch,chemistry",)})
    options = validate(choices(catalog_of(config), user, Instant(0)), {"kernels": ["julia"]})
    assert isinstance(options, SessionOptions)
    assert (options.system, options.account, options.project) == ("juniper", "max1", "chemistry")
    assert (options.memory_mib, options.gpus, options.walltime_s) == (65_536, 0, 7_200)
    assert (options.kernels, options.extensions) == (("julia",), ("git",))


def test_the_plugin_of_the_page_about_plugins_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (module,) = blocks("plugins.md", "python")
    (entry,) = blocks("plugins.md", "toml")
    (config,) = blocks("plugins.md", "yaml")
    (tmp_path / "my_plugin.py").write_text(module)
    (tmp_path / "my_plugin_system.py").write_text("class MySystem:\n    def __init__(self, *said): self.said = said\n")
    info = tmp_path / "my_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n")
    points = re.sub(r'"(.*)"', r"\1", entry.replace("[project.entry-points.moorage]", "[moorage]").split("\n", 1)[1])
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "moorage.yaml"
    file.write_text("deployment: demo\n" + config)
    try:
        read, plugins = read_config(file)
        box = read.systems[SystemName("box")]
        made = plugins.systems["mine"].factory(SystemName("box"), box.options, clock=1, plans=2, timeouts=3, more=4)
        assert made.said == ("box", box.options, 1, 2, 3)  # type: ignore[attr-defined]
        assert (box.options.address, box.options.slots) == ("box.example.org", 4)
    finally:
        sys.modules.pop("my_plugin", None)
        sys.modules.pop("my_plugin_system", None)


@pytest.mark.parametrize("example", ["moorage.yaml", "centre"])
def test_the_examples_are_fine(example: str) -> None:
    """For moorage, and for an editor that checks each file against the schema."""
    config, _ = read_config(ROOT / "examples" / example)
    assert config.services
    place = ROOT / "examples" / example
    files = sorted(place.glob("*.yaml")) if place.is_dir() else [place]
    made = schema(kinds_of(load_plugins(vet=unsupported)), part=place.is_dir())
    for file in files:
        tree = document.parse(file.read_text(), str(file), Report())
        jsonschema.Draft202012Validator(made).validate(document.plain(tree))


def test_a_centre_as_its_users_see_it() -> None:
    """The example of a computing centre, by the eyes of three people."""
    config, _ = read_config(ROOT / "examples" / "centre")
    catalog = catalog_of(config)
    rights = {"hpc_accounts": ("max1,JUW_batch,chemistry", "max1,JUW_large,chemistry")}
    stranger = choices(catalog, User("eve"), Instant(DECEMBER))
    assert {each.name: each.why_not.lack for each in stranger.systems if each.why_not} == {
        JUNIPER: Lack.NO_ACCOUNT,
        CEDAR: Lack.NOT_FOR_YOU,
    }
    scientist = choices(
        catalog, User("max", frozenset({"genomics"}), {**rights, "role": ("scientist",)}), Instant(DECEMBER)
    )
    viewer = validate(scientist, {"service": "viewer"})
    assert isinstance(viewer, SessionOptions)
    assert (viewer.partition, viewer.memory_mib) == ("large", 524_288)
    matlab = validate(scientist, {"kernels": ["matlab"]})
    assert isinstance(matlab, tuple)
    student = choices(catalog, User("sue", frozenset({"course-2026"})), Instant(DECEMBER))
    course = validate(student, {})
    assert isinstance(course, SessionOptions)
    assert (course.system, course.project, course.cores, course.walltime_s) == (CEDAR, "teaching", 4, 5_400)


def test_ranges_become_what_a_plan_counts_in(tmp_path: Path) -> None:
    """Memory in MiB, the least rounded up and the most down; walltime in seconds, never more than allowed."""
    file = tmp_path / "moorage.yaml"
    file.write_text("""\
deployment: demo
systems:
  one:
    kind: sim
    partitions:
      a: {memory: {min: 1.5 GB, max: 3 GB}, max_walltime: 30 s, cores: {min: 2, max: 8, default: 4}}
      b: {memory: {min: 2 MiB, max: 2 MiB}, default_walltime: 3 h}
      c: {max_walltime: 1000 d, nodes: {max: 3}}
services:
  lab: {command: ["{socket}"], deprecated: true}
""")
    config = load(file, lambda allowed: kinds_of(load_plugins(allowed)))
    catalog = catalog_of(config)
    a, b, c = catalog.systems[SystemName("one")].partitions.values()
    assert a.resources == {
        "cores": ResourceRange(2, 8, 4),
        "memory_mib": ResourceRange(1431, 2861, 1431),
        "walltime_s": ResourceRange(30, 30, 30),
    }
    assert b.resources["memory_mib"] == ResourceRange(2, 2, 2)
    assert b.resources["walltime_s"].default == 10_800
    assert c.resources == {"nodes": ResourceRange(1, 3, 1), "walltime_s": ResourceRange(60, 31_536_000, 7_200)}
    assert catalog.services["lab"].deprecated == "it will be removed"
