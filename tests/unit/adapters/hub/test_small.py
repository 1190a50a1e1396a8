"""Texts, failures, presets, settings and the reading of forms: what needs no Hub."""

import gc
import json
import re
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2 import Environment
from stubworld import Start, stop_hub  # type: ignore[import-not-found]

from moorage.adapters.hub.failures import StartFailed, excerpt, is_bad, sentence
from moorage.adapters.hub.people import MOST_PRESETS, People, PresetRefused
from moorage.adapters.hub.rows import for_script
from moorage.adapters.hub.service import registry
from moorage.adapters.hub.settings import hub_config, warnings_about
from moorage.adapters.hub.spawner import attributes_of, read_form
from moorage.adapters.hub.texts import LANGUAGES, Texts, catalogue, choose
from moorage.core.catalog import Lack
from moorage.core.model import Cause, Evidence, Why
from moorage.core.progress import Progress

PACKAGE = resources.files("moorage.adapters.hub")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_catalogue_has_every_text_with_the_same_places(language: str) -> None:
    own = json.loads((PACKAGE / "locale" / f"{language}.json").read_text("utf-8"))
    first = catalogue(LANGUAGES[0])
    assert set(own) | {"language.en", "language.de"} == set(first)
    for key, text in own.items():
        places = {name for _, name, _, _ in string.Formatter().parse(text) if name}
        assert places == {name for _, name, _, _ in string.Formatter().parse(first[key]) if name}, key


def test_closed_lists_have_a_text_for_each_entry() -> None:
    texts = catalogue("de")
    for cause in Cause:
        assert texts[f"cause.{cause.value}"]
        assert f"advice.{cause.value}" in texts
    assert all(texts[f"why.{why.value}"] for why in Why)
    assert all(texts[f"lack.{lack.value}"] for lack in Lack)


def test_texts_that_scripts_ask_for_are_there() -> None:
    """Every t("…") of the scripts and templates."""
    texts = catalogue("en")
    for folder in ("static", "templates"):
        for file in (PACKAGE / folder).iterdir():
            for key in re.findall(r"""\bt\(["']([a-z_.]+)["'][,)]""", file.read_text("utf-8")):
                assert key in texts, f"{file.name}: {key}"


@pytest.mark.parametrize(
    ("cookie", "accepted", "language"),
    [
        (None, None, "en"),
        ("de", "en", "de"),
        ("xx", "de;q=0.1,fr", "de"),
        (None, "de-CH,en;q=0.9", "de"),
        (None, "en;q=0.9,de;q=0.8", "en"),
        (None, "de;q=oops", "en"),
        (None, "," * 10_000, "en"),
        ("../../etc/passwd", "", "en"),
    ],
)
def test_the_language_is_chosen(cookie: str | None, accepted: str | None, language: str) -> None:
    assert choose(cookie, accepted) == language


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_end_is_a_sentence(cause: Cause, language: str) -> None:
    text = sentence(Texts(language), cause, Evidence("the site's own words", exit_code=1))
    assert text.endswith(".")
    assert ".." not in text
    assert "{" not in text
    assert isinstance(is_bad(cause), bool)


def test_percent_signs_of_a_site_do_not_break_the_log() -> None:
    """HTTPError formats its message with its arguments when it is logged."""
    error = StartFailed("100% %s %(x)s full", "log", "Log")
    assert str(error) == "100% %s %(x)s full"
    assert error.status_code < 500


def test_excerpts_are_bounded_and_printable() -> None:
    log = excerpt(Evidence(log="x" * 100_000 + "\n\x00\x1b[2Jend"))
    assert len(log) <= 4_000
    assert log.endswith("[2Jend")
    assert "\x1b" not in log


def test_json_for_scripts_cannot_leave_them() -> None:
    data = {"a": "</script><!--<script>", "b": "\u2028&"}
    text = for_script(data)
    assert "<" not in text
    assert ">" not in text
    assert json.loads(text) == data


def test_forms_are_read_and_bounded() -> None:
    form = {f"x{number}": ["y" * 10_000] for number in range(1000)}
    options = read_form(form)
    assert len(options) <= 64
    assert all(len(value) <= 500 for value in options.values())
    lists = read_form(
        {"_xsrf": ["t"], "kernels[]": ["", "a", "b"], "extensions[]": [""], "system": ["", "s"], "e": [""]}
    )
    assert lists == {"kernels": ["a", "b"], "extensions": [], "system": "s"}


def test_attributes_are_texts_and_no_tokens() -> None:
    state = {
        "access_token": "secret",
        "oauth_user": {"sub": "a", "entitlements": ["x", "y"], "age": 3, "nested": {"z": 1}},
        "attributes": {"sub": "b"},
    }
    assert attributes_of(state) == {"sub": ("b",), "entitlements": ("x", "y")}


# Presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["..", "a/b", "\x00", "é", "e\u0301", "A" * 1000])
def test_people_with_strange_names_have_presets_of_their_own(tmp_path: Path, owner: str) -> None:
    people = People(tmp_path)
    people.save_preset(owner, "x", {"who": 1})
    people.save_preset(owner + "2", "x", {"who": 2})
    assert people.presets(owner) == {"x": {"who": 1}}
    assert {file.parent for file in tmp_path.rglob("*.json")} == {tmp_path / "people"}


def test_presets_are_limited(tmp_path: Path) -> None:
    people = People(tmp_path)
    for number in range(MOST_PRESETS):
        people.save_preset("a", str(number), {})
    with pytest.raises(PresetRefused):
        people.save_preset("a", "one more", {})
    assert len(people.presets("a")) == MOST_PRESETS


def test_a_damaged_file_is_an_empty_one(tmp_path: Path) -> None:
    people = People(tmp_path)
    people.save_preset("a", "x", {})
    next(tmp_path.rglob("*.json")).write_text("[1")
    assert people.presets("a") == {}


# Settings ----------------------------------------------------------------------------------------------------------


def settings(**changes: object) -> list[str]:
    good = {
        "cleanup_servers": False,
        "cleanup_proxy": False,
        "allow_named_servers": True,
        "concurrent_spawn_limit": 0,
        "proxy": SimpleNamespace(should_start=True),
        "last_activity_interval": 300,
        "http_timeout": 60,
        "start_timeout": 86_400,
        "poll_interval": 30,
    }
    both = SimpleNamespace(**(good | changes))
    return list(warnings_about(both, both))  # type: ignore[arg-type]


def test_good_settings_are_not_talked_about() -> None:
    assert settings() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cleanup_servers", True),
        ("cleanup_proxy", True),
        ("allow_named_servers", False),
        ("concurrent_spawn_limit", 100),
        ("http_timeout", 30),
        ("start_timeout", 60),
        ("poll_interval", 5),
    ],
)
def test_a_setting_that_hurts_is_named_with_what_to_write(name: str, value: object) -> None:
    (warning,) = settings(**{name: value})
    assert name in warning
    assert "c." in warning


def test_a_proxy_of_its_own_has_to_get_its_routes_back() -> None:
    """The Hub starts a proxy of its own again by itself; another one it looks at when it asks for activity."""
    (warning,) = settings(proxy=SimpleNamespace(should_start=False))
    assert "last_activity_interval" in warning
    assert settings(proxy=SimpleNamespace(should_start=False), last_activity_interval=30) == []


def test_the_written_configuration_is_python_and_has_no_bad_setting() -> None:
    from traitlets.config import Config

    config = Config()
    exec(compile(hub_config("it's.yaml"), "jupyterhub_config.py", "exec"), {"get_config": lambda: config})
    assert config.JupyterHub.spawner_class == "moorage"
    assert config.MoorageSpawner.config_file == "it's.yaml"
    assert config.JupyterHub.cleanup_servers is False


def test_templates_parse() -> None:
    environment = Environment(autoescape=True)
    for file in (PACKAGE / "templates").iterdir():
        environment.parse(file.read_text("utf-8"))


def test_many_sessions_of_one_person_end_at_once(tmp_path: Path) -> None:
    """Each is in the list of starts, and none of the threads meets another one's half-written file."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: People(tmp_path).started("alice", "lab", f"s{number}"), range(64)))
    assert sorted(People(tmp_path).starts("alice", "lab")) == sorted(f"s{number}" for number in range(64))


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (Progress("starting", 55, "starting: on n1"), "starting on n1"),
        (Progress("starting", 55, "starting: no such host"), "starting: no such host"),
        (Progress("waiting", 5, "waiting (limit): two of two"), "waiting for a place: all are taken: two of two"),
        (Progress("ended", 100, "ended (out of memory): oom"), "The session used more memory than it had: oom"),
        (Progress("queued", 30, "in the queue: Priority"), "in the queue: others come first"),
        (Progress("queued", 30, "in the queue: QOSMaxJobs"), "in the queue: QOSMaxJobs"),
        (Progress("queued", 30, "in the queue: PENDING"), "in the queue"),
        (Progress("ended", 100, "ended (nonsense)"), "ended"),
    ],
)
def test_steps_are_told_in_our_words(progress: Progress, shown: str) -> None:
    assert Texts("en").progress(progress) == shown


def test_every_text_is_used() -> None:
    """A text that nothing asks for is one that a translator works on in vain. Keys may be put together."""
    code = "".join(
        file.read_text("utf-8") for folder in (".", "static", "templates") for file in (PACKAGE / folder).glob("*.*")
    )
    families = set(re.findall(r"""[`"']([a-z]+)\.(?:\$?\{| ?["'])""", code))
    unused = [key for key in catalogue("en") if key not in code and key.partition(".")[0] not in families]
    assert unused == []


def test_what_is_loaded_ahead_is_what_the_service_is_made_of() -> None:
    """The modules are named by texts, and who renames one would only make every start slower."""
    program = (
        "import asyncio, importlib, sys\n"
        "from moorage.adapters.hub import embedding\n"
        "embedding.load_ahead()\n"
        "print(*(name for name in embedding.AHEAD if name not in sys.modules), 'moorage.bootstrap' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["True"]


async def test_the_collector_leaves_alone_what_is_there_when_moorage_works(start_hub: Start) -> None:
    """And not any more when the Hub has stopped, so that what belongs to a Hub goes with it."""
    hub = await start_hub()
    await registry.wait()
    assert gc.get_freeze_count() > 100_000
    await stop_hub(hub)
    assert gc.get_freeze_count() == 0
