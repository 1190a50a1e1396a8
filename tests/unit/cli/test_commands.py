"""The command line: what it prints, and how it ends."""

import ast
import importlib
import inspect
import json
import os
import pkgutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest

from moorage.cli import COMMANDS, Exit, LazyGroup, cli, run
from moorage.config import document
from moorage.config.problems import Report

EXAMPLE = Path(__file__).parents[3] / "examples" / "moorage.yaml"


def all_commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))


def test_the_list_of_commands_says_what_each_says_about_itself() -> None:
    """The list is written by hand so that showing it imports no command; it must not drift."""
    for path, command in all_commands(cli):
        group: click.Command = cli
        for name in path[:-1]:
            assert isinstance(group, click.Group)
            found = group.get_command(click.Context(group), name)
            assert found is not None
            group = found
        assert isinstance(group, LazyGroup)
        assert group.lazy[path[-1]][1] == inspect.cleandoc(command.help or "").split("\n\n")[0].replace("\n", " "), path
        assert command.name == path[-1]


def test_no_module_of_a_command_takes_a_name_of_the_package() -> None:
    """An imported module becomes an attribute of its package, and must not take the place of a function there."""
    package = importlib.import_module("moorage.cli")
    own = {node.name for node in ast.parse(inspect.getsource(package)).body if hasattr(node, "name")}
    assert {"cli", "main", "run", "Exit"} <= own
    assert own.isdisjoint(module.name for module in pkgutil.iter_modules(package.__path__))


def test_every_command_documents_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for path, _ in all_commands(cli):
        assert run([*path, "--help"]) == Exit.FINE
        shown = capsys.readouterr().out
        for code in Exit:
            assert str(int(code)) in shown.partition("Exit codes")[2], path


def test_help_imports_no_command() -> None:
    """Nor anything heavy: showing what there is must be quick (0.1 s of CPU where this was written)."""
    program = (
        "import sys\nfrom moorage.cli import run\nrun(['--help'])\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in "
        "('moorage', 'rich', 'attrs', 'sqlalchemy', 'aiohttp', 'jupyterhub', 'yaml', 'asyncio')), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "['moorage', 'moorage.cli']"
    for name in COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], Exit.FINE),
        ([], Exit.USAGE),
        (["frobnicate"], Exit.USAGE),
        (["check"], Exit.USAGE),
        (["check", "--colour"], Exit.USAGE),
        (["sim", "serve", "unicore", "--port", "70000"], Exit.USAGE),
        (["sim", "serve", "unicore", "--user", "nobody"], Exit.USAGE),
        (["check", "/nowhere.yaml"], Exit.WRONG),
    ],
)
def test_commands_end_as_documented(arguments: list[str], code: Exit) -> None:
    assert run(arguments) == code


def test_a_bug_is_told_as_a_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(importlib.import_module("moorage.cli.schema").command, "callback", broken)
    assert run(["schema"]) == Exit.BUG
    told = capsys.readouterr().err
    assert "RuntimeError: out of luck" in told
    assert "this is a bug" in told


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, click.Abort])
def test_an_interruption_ends_with_the_usual_code(
    monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupted(**_: Any) -> None:
        raise interruption

    monkeypatch.setattr(importlib.import_module("moorage.cli.schema").command, "callback", interrupted)
    assert run(["schema"]) == Exit.INTERRUPTED


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = [sys.executable, "-m", "moorage.cli", "schema"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        told = process.stderr.read()
        assert (process.wait(30), told) == (Exit.FINE, b"")


# check, schema, plugins ------------------------------------------------------------------------------------------


def test_the_example_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(EXAMPLE)]) == Exit.FINE
    assert capsys.readouterr().out.startswith(f"{EXAMPLE}: fine (")


def test_every_mistake_of_every_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Readable, and as JSON with the same places."""
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("deployment: demo\nsystems: {a: {kind: sims}}\n")
    two.write_text("deployment: Demo\nsystems: {a: {kind: sim, optons: {}}}\n")
    assert run(["check", str(one), str(two), str(EXAMPLE)]) == Exit.WRONG
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{one}:2:21", f"{two}:1:13", f"{two}:2:26", str(EXAMPLE)]
    assert lines[0].endswith('did you mean "sim"?')

    assert run(["check", "--json", str(one), str(two)]) == Exit.WRONG
    reports = json.loads(capsys.readouterr().out)["files"]
    assert [report["ok"] for report in reports] == [False, False]
    places = [(each["path"], each["line"], each["hint"]) for report in reports for each in report["problems"]]
    assert places == [("systems.a.kind", 2, '"sim"'), ("deployment", 1, ""), ("systems.a.optons", 2, '"options"')]


def test_an_allowed_plugin_that_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "moorage.yaml"
    file.write_text("deployment: demo\nsystems: {a: {kind: sim}}\nplugins: [moorage-of-nobody]\n")
    assert run(["check", str(file)]) == Exit.WRONG
    assert "moorage-of-nobody is refused: it is allowed, but not installed" in capsys.readouterr().out


def test_the_schema_accepts_the_example_and_refuses_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["schema"]) == Exit.FINE
    schema = json.loads(capsys.readouterr().out)
    assert run(["schema", "--output", str(tmp_path / "schema.json")]) == Exit.FINE
    assert json.loads((tmp_path / "schema.json").read_text()) == schema
    validator = jsonschema.Draft202012Validator(schema)
    example = document.plain(document.parse(EXAMPLE.read_text(), "example", Report()))
    assert list(validator.iter_errors(example)) == []
    assert validator.is_valid({"deployment": "demo", "systems": {"a": {"kind": "sim", "options": {"nodes": 3}}}})
    assert not validator.is_valid({"deployment": "demo", "systems": {"a": {"kind": "sims"}}})
    assert not validator.is_valid({"deployment": "demo", "systems": {"a": {"kind": "sim", "options": {"node": 3}}}})


def test_plugins_are_listed_with_origin_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    run(["plugins", "--json"])
    listed = json.loads(capsys.readouterr().out)
    kinds = {(each["of"], each["kind"]): each for each in listed["kinds"]}
    assert {("system", "sim"), ("system", "unicore"), ("system", "slurm"), ("tunnel", "openssh")} <= set(kinds)
    assert kinds["system", "sim"]["distribution"] == "moorage"
    assert kinds["system", "sim"]["version"]
    run(["plugins"])
    assert "sim (moorage" in capsys.readouterr().out


def test_a_plugin_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plugins", "--allow", "moorage-of-nobody"]) == Exit.WRONG
    assert "not installed" in capsys.readouterr().err


def test_a_hub_configuration_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "jupyterhub_config.py"
    assert run(["hub-config", "--output", str(file), "--config", "/etc/moorage"]) == Exit.FINE
    text = file.read_text()
    assert "'/etc/moorage'" in text
    compile(text, str(file), "exec")
    assert run(["hub-config", "--output", str(file)]) == Exit.WRONG
    assert file.read_text() == text
    capsys.readouterr()
    assert run(["hub-config", "--config", "/etc/moorage"]) == Exit.FINE
    assert capsys.readouterr().out == text


# sim serve -------------------------------------------------------------------------------------------------------


def test_a_simulated_site_serves_until_it_is_interrupted() -> None:
    """The first line is its address; Ctrl-C ends it well."""
    arguments = ["sim", "serve", "unicore", "--site", "HERE", "--user", "me:secret", "--execute", "virtual"]
    with subprocess.Popen(
        [sys.executable, "-m", "moorage.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert url.endswith("/HERE/rest/core")
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(url + "/jobs", headers={"Authorization": "Basic eDp5"}))
            refused.value.close()
            assert refused.value.code in (401, 403)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(20) == Exit.FINE


# demo ------------------------------------------------------------------------------------------------------------


def test_a_demonstration_in_a_folder_that_ssh_cannot_name_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "my demo"
    assert run(["demo", "--directory", str(directory)]) == Exit.USAGE
    assert f"'--directory': found '{directory}', expected a path of letters, digits" in capsys.readouterr().err
    assert not directory.exists()
