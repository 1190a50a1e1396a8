"""A plan that exists is valid; a wrong one names every wrong field; rendering is constant text and data."""

import copy
import json
import pickle
import stat
import subprocess
from pathlib import Path

import attrs
import pytest

from moorage.core.plan import (
    LAUNCHER_NAME,
    PLAN_LIMIT,
    SCRIPT,
    SECRETS_LIMIT,
    GatePort,
    Lab,
    LaunchPlan,
    LaunchSecrets,
    PlanError,
    Resources,
    batch_script,
    directives,
    parse_directives,
    parse_plan,
    render,
)
from moorage.core.secret import Secret

KEY = "ab" * 32
BAD_TEXTS = ["a\nb", "a\0b", "a\u202eb", "a\x1b[31m", "\ud800", "x" * (1 << 20), 7, None, [["deep"]], {"a": 1}]
BAD_WORDS = [*BAD_TEXTS, "-x", "--account=other", 'a"b', "a'b", "a b", "$(id)", "`id`", "ä", "a;b", "x\n#SBATCH -A y"]


def a_plan(**changes: object) -> LaunchPlan:
    plan = LaunchPlan(
        tag="m0moorageabc0001",
        attempt=1,
        owner="alice",
        command=("jupyter", "lab", "--ServerApp.sock={socket}"),
        args=("--debug", "--Foo.bar=$(id) 'x' \"y\"", "notebook.ipynb"),
        modules=("Stages/2025", "Python/3.11"),
        setup=("export A=1\n. ./env.sh",),
        environment=(("Z", "last"), ("A", "$(touch /tmp/x) `id` \"'")),
        walltime_s=3661,
        resources=Resources(nodes=2, cores=4, memory_mib=1024, gpus=1, account="proj_1", partition="batch"),
    )
    return attrs.evolve(plan, **changes)


def problems_of(**changes: object) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        a_plan(**changes)
    return {problem.field: problem.wrong for problem in caught.value.problems}


@pytest.mark.parametrize("field", ["tag", "service", "owner", "directory", "callback"])
@pytest.mark.parametrize("bad", BAD_TEXTS, ids=lambda bad: repr(bad)[:12])
def test_bad_text_is_refused_with_the_name_of_its_field(field, bad):
    assert set(problems_of(**{field: bad})) == {field}


@pytest.mark.parametrize("field", ["account", "partition", "reservation", "qos"])
@pytest.mark.parametrize("bad", BAD_WORDS, ids=lambda bad: repr(bad)[:12])
def test_resource_names_have_a_closed_grammar(field, bad):
    assert set(problems_of(resources=attrs.evolve(Resources(), **{field: bad}))) == {f"resources.{field}"}


@pytest.mark.parametrize("field", ["nodes", "cores", "memory_mib", "gpus"])
@pytest.mark.parametrize("bad", [-1, 1 << 40, "4", 1.5, True, [4]])
def test_resource_numbers_are_whole_numbers_in_range(field, bad):
    assert set(problems_of(resources=attrs.evolve(Resources(), **{field: bad}))) == {f"resources.{field}"}


@pytest.mark.parametrize("bad", [*BAD_TEXTS, "-x", "-", "--", "--=x", "--a b", ""], ids=lambda bad: repr(bad)[:12])
def test_lab_options_are_options_or_words(bad):
    assert set(problems_of(args=("--fine", bad))) == {"args[1]"}


@pytest.mark.parametrize("name", ["1A", "A-B", "A=B", "", "BASH_FUNC_ls%%", "A\n", "-A", 7])
def test_environment_names_are_identifiers(name):
    assert list(problems_of(environment=((name, "x"),))) == ["environment[0] (its name)"]


@pytest.mark.parametrize("name", ["BASH_ENV", "PS4", "SHELLOPTS", "PROMPT_COMMAND", "IFS", "MOORAGE_TAG"])
def test_no_variable_makes_a_shell_run_a_value(name):
    assert set(problems_of(environment=((name, "x"),))) == {f"environment.{name}"}


def test_every_wrong_field_is_named_with_what_would_be_right():
    with pytest.raises(PlanError) as caught:
        a_plan(
            tag="a b",
            attempt=-1,
            command=(),
            args=("-x",),
            modules=("m; rm",),
            environment=(("A", "1"), ("A", "2"), ("B", "\n")),
            walltime_s="1h",
            requeue="yes",
            callback="file:///etc/passwd",
            resources=Resources(account="two words"),
            gate=GatePort(port_first=9, port_last=8),
            lab=Lab(probe_path="api\r\nX: y"),
        )
    fields = [problem.field for problem in caught.value.problems]
    assert fields == [
        "tag",
        "attempt",
        "args[0]",
        "modules[0]",
        "environment.A",
        "environment.B",
        "walltime_s",
        "requeue",
        "callback",
        "resources.account",
        "lab.probe_path",
        "command",
        "gate.port_last",
    ]
    assert all(problem.right for problem in caught.value.problems)
    assert "tag: does not fit from position 1 on (character U+0020); expected up to 63 letters" in str(caught.value)


def test_an_error_does_not_repeat_values():
    with pytest.raises(PlanError) as caught:
        a_plan(environment=(("TOKEN", "hunter2hunter2\n"),), args=("-hunter2hunter2",))
    assert "hunter2" not in str(caught.value)


def test_the_command_says_where_the_lab_listens():
    assert problems_of(command=("jupyter", "lab")) == {"command": "does not hold {socket}"}
    assert problems_of(lab=Lab(listen="tcp")) == {"command": "does not hold {port}"}


@pytest.mark.parametrize("bad", ["../x", "/a/../b", "x/y", "~root/x", "~x"])
def test_the_directory_does_not_leave_its_root(bad):
    assert set(problems_of(directory=bad)) == {"directory"}


def test_a_plan_of_more_than_a_mebibyte_is_refused():
    assert set(problems_of(environment=tuple((f"V{n}", "ü" * 30_000) for n in range(10)))) == {"plan"}
    rest = PLAN_LIMIT - len(render(a_plan(environment=(("V", ""),)), LaunchSecrets(Secret(KEY))).plan)
    fill = [("V", "")]
    while rest > 0:
        name = f"W{len(fill):02}"
        overhead = len(json.dumps({name: ""}, indent=2)) - len("{\n\n}") + len(",\n")
        size = min(30_000, rest - overhead)
        fill.append((name, "x" * size))
        rest -= size + overhead
    assert len(render(a_plan(environment=tuple(fill)), LaunchSecrets(Secret(KEY))).plan) == PLAN_LIMIT
    fill[-1] = (fill[-1][0], fill[-1][1] + "x")
    with pytest.raises(PlanError, match=r"^plan: has 1048577 bytes as JSON; expected at most 1048576$"):
        a_plan(environment=tuple(fill))


# What is said, word by word, because operators and users read it ------------------------------------------------------

NAME = "up to 64 of A-Z a-z 0-9 _ . @ + : - beginning with a letter, digit or _"
OPTION = "--name, --name=value, or a word that does not begin with '-'"
VARIABLE = "up to 128 letters, digits and underscores, not beginning with a digit"
RESERVED = "another name: shells execute or split by this one, or it is the launcher's own"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tag": ""}, "tag: is empty; expected up to 63 letters and digits beginning with a letter"),
        ({"tag": 7}, "tag: is of type int; expected up to 63 letters and digits beginning with a letter"),
        ({"tag": None}, "tag: is missing; expected up to 63 letters and digits beginning with a letter"),
        (
            {"tag": "ä"},
            "tag: does not fit (1 characters); expected up to 63 letters and digits beginning with a letter",
        ),
        (
            {"tag": "aä"},
            "tag: does not fit from position 1 on (character U+00E4); expected up to 63 letters and digits beginning "
            "with a letter",
        ),
        ({"service": "-x"}, "service: begins with '-'; expected up to 64 of A-Z a-z 0-9 _ . -"),
        ({"service": "a\tb"}, "service: has character U+0009 at position 1; expected up to 64 of A-Z a-z 0-9 _ . -"),
        (
            {"service": "a" * 256},
            "service: does not fit from position 64 on (character U+0061); expected up to 64 of A-Z a-z 0-9 _ . -",
        ),
        ({"service": "a" * 257}, "service: does not fit (257 characters); expected up to 64 of A-Z a-z 0-9 _ . -"),
        (
            {"service": "a" * 4096 + "\n"},
            "service: does not fit (4097 characters); expected up to 64 of A-Z a-z 0-9 _ . -",
        ),
        ({"service": "a" * 5000}, "service: does not fit (5000 characters); expected up to 64 of A-Z a-z 0-9 _ . -"),
        ({"owner": None}, "owner: is missing; expected up to 255 visible characters on one line"),
        ({"owner": "a" * 256}, "owner: has 256 characters; expected up to 255 visible characters on one line"),
        (
            {"owner": "a\n"},
            "owner: has character U+000A at position 1; expected up to 255 visible characters on one line",
        ),
        (
            {"command": ("{socket}", "\r")},
            "command[1]: has character U+000D at position 0; expected up to 4096 visible characters",
        ),
        (
            {"setup": ("\x1b",)},
            "setup[0]: has character U+001B at position 0; expected up to 16384 characters of shell text",
        ),
        ({"attempt": True}, "attempt: is of type bool; expected a whole number from 0 to 999999"),
        ({"attempt": 1.0}, "attempt: is of type float; expected a whole number from 0 to 999999"),
        ({"attempt": -1}, "attempt: is too small; expected a whole number from 0 to 999999"),
        ({"attempt": 1_000_000}, "attempt: is too large; expected a whole number from 0 to 999999"),
        ({"walltime_s": None}, "walltime_s: is missing; expected a whole number from 0 to 31536000"),
        (
            {"resources": Resources(cores=0, gpus=-1, account="x" * 65)},
            "resources.cores: is too small; expected a whole number from 1 to 100000 or none\n"
            "resources.gpus: is too small; expected a whole number from 0 to 1024 or none\n"
            f"resources.account: does not fit from position 64 on (character U+0078); expected empty, or {NAME}",
        ),
        ({"requeue": 1}, "requeue: is of type int; expected true or false"),
        ({"args": ["--debug"]}, "args: is of type list; expected a tuple"),
        ({"args": ("x",) * 257}, "args: has 257 entries; expected at most 256"),
        ({"args": ("",)}, f"args[0]: begins with '-' or is empty; expected {OPTION}"),
        ({"args": (None,)}, "args[0]: is missing; expected up to 4096 visible characters on one line"),
        ({"environment": {}}, "environment: is of type dict; expected a tuple of pairs"),
        (
            {"environment": tuple((f"V{n}", "") for n in range(257))},
            "environment: has 257 entries; expected at most 256",
        ),
        (
            {"environment": ("AB", ("A", "1", "2"), ("B", "\n"), ("1", ""), ("C", 1))},
            "environment[0]: does not fit (2 characters); expected a pair of name and value\n"
            "environment[1]: is of type tuple; expected a pair of name and value\n"
            "environment.B: has character U+000A at position 0; expected up to 32768 visible characters on one line\n"
            f"environment[3] (its name): does not fit (1 characters); expected {VARIABLE}\n"
            "environment.C: is of type int; expected up to 32768 visible characters on one line",
        ),
        (
            {"environment": (("A", "A"), ("B", "A"), ("A", "B"))},
            "environment.A: is there twice; expected every variable once",
        ),
        (
            {"environment": (("IFS", "x"), ("MOORAGE_X", "y"), ("X", "IFS"), ("Y", "MOORAGE_Z"), ("moorage_x", ""))},
            f"environment.IFS: is a reserved name; expected {RESERVED}\n"
            f"environment.MOORAGE_X: is a reserved name; expected {RESERVED}",
        ),
        ({"command": ("-c", "{socket}")}, "command: names no program; expected a program, then its arguments"),
        ({"command": ("lab",)}, "command: does not hold {socket}; expected {socket} where the lab is told its socket"),
        ({"directory": "x"}, "directory: is no such path; expected '~', '.', or a path below ~/ or / without '..'"),
        (
            {"gate": GatePort(port_first=9, port_last=8)},
            "gate.port_last: does not fit gate.port_first; expected two ports in order, or twice 0",
        ),
        ({"gate": None}, "gate: is missing; expected GatePort"),
        ({"gate": 7}, "gate: is of type int; expected GatePort"),
        ({"command": 7}, "command: is of type int; expected a tuple"),
        ({"lab": Lab(listen="udp")}, "lab.listen: does not fit (3 characters); expected unix or tcp"),
    ],
    ids=range(40),
)
def test_what_is_said_about_a_wrong_value(changes, said):
    with pytest.raises(PlanError) as caught:
        a_plan(**changes)
    assert str(caught.value) == said


def test_fifty_problems_are_enough():
    with pytest.raises(PlanError) as caught:
        a_plan(args=("-",) * 60)
    assert len(caught.value.problems) == 60
    lines = str(caught.value).split("\n")
    assert lines == [f"args[{n}]: begins with '-' or is empty; expected {OPTION}" for n in range(50)] + ["and 10 more"]
    for count, last in ((50, "args[49]: begins"), (51, "and 1 more")):
        with pytest.raises(PlanError) as caught:
            a_plan(args=("-",) * count)
        lines = str(caught.value).split("\n")
        assert len(lines) == count
        assert lines[-1].startswith(last)


def test_values_at_their_limits():
    """The longest, smallest and largest that are still right."""
    plan = a_plan(
        owner="o" * 255,
        attempt=999_999,
        walltime_s=0,
        args=("x" * 4096,) * 10 + ("y",) * 246,
        environment=tuple((f"V{n}", "v" * 2000) for n in range(256)),
        setup=("s" * 16_384,),
        resources=Resources(nodes=1, cores=1, memory_mib=1, gpus=0, account="a" * 64),
        gate=GatePort(port_first=9, port_last=9),
    )
    assert a_plan(attempt=0, walltime_s=31_536_000, environment=(("V", "v" * 32_768),)).attempt == 0
    assert len(plan.environment) == len(plan.args) == 256
    secret = LaunchSecrets(Secret(KEY), (("A", Secret("x" * 65_536)),))
    assert len(secret.environment[0][1].reveal()) == 65_536


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ((("A", "x"),), "environment.A: does not fit (1 characters); expected a Secret"),
        ((("A", None),), "environment.A: is missing; expected a Secret"),
        *(
            (
                (("A", Secret(text)),),
                "environment.A: cannot be the value of an environment variable; expected up to 65536 characters "
                "without NUL",
            )
            for text in ("x" * 65_537, "\0", "\ud800")
        ),
    ],
    ids=range(5),
)
def test_what_is_said_about_a_secret(environment, said):
    with pytest.raises(PlanError) as caught:
        LaunchSecrets(Secret(KEY), environment)
    assert str(caught.value) == said
    with pytest.raises(PlanError) as caught:
        LaunchSecrets(Secret("x"))
    assert str(caught.value) == "gate: is not that; expected a Secret of 64 lower-case hexadecimal digits"


def test_what_is_said_about_members_of_a_plan_file():
    """Known members are named, unknown ones only if they look like a name."""
    document = json.loads(render(a_plan(), LaunchSecrets(Secret(KEY))).plan)
    assert list(document) == [each.name for each in attrs.fields(LaunchPlan)] + ["version", "secret_file"]
    document["lab"] = {"Colour": "red", "listen": "unix", "<script>": 1, "x" * 41: 2}
    del document["owner"]
    del document["limits"]
    with pytest.raises(PlanError) as caught:
        parse_plan(json.dumps(document))
    assert str(caught.value).split("\n") == [
        "owner: is missing; expected for people; nothing depends on it",
        "limits: is missing; expected an object",
        "lab.Colour: is unknown; expected one of listen, probe_path",
        "lab.(a member): is unknown; expected one of listen, probe_path",
        "lab.(a member): is unknown; expected one of listen, probe_path",
        "lab.probe_path: is missing; expected without credentials",
    ]


def test_a_plan_that_asks_for_little_has_few_directives():
    """What is left open is left to the site; an option without a value is written without one."""
    plan = LaunchPlan(tag="m1", attempt=1, owner="", command=("lab", "{socket}"))
    bare = (("job-name", "m1"), ("comment", "m1"), ("nodes", "1"), ("no-requeue", ""))
    assert directives(plan) == bare
    assert render(plan, LaunchSecrets(Secret(KEY))).directives == bare
    more = attrs.evolve(plan, walltime_s=60, resources=Resources(qos="urgent", reservation="course"))
    assert directives(more)[3:] == (("time", "1"), ("qos", "urgent"), ("reservation", "course"), ("no-requeue", ""))
    assert batch_script(bare).split("\n")[:6] == [
        "#!/bin/bash",
        "#SBATCH --job-name=m1",
        "#SBATCH --comment=m1",
        "#SBATCH --nodes=1",
        "#SBATCH --no-requeue",
        "# The same bytes for every job: what varies is data in plan.json.",
    ]


def test_the_rendered_plan_parses_back_and_the_script_is_constant():
    plan = a_plan()
    rendered = render(plan, LaunchSecrets(Secret(KEY), (("JUPYTERHUB_API_TOKEN", Secret("tok\nen")),)))
    assert parse_plan(rendered.plan) == plan
    assert rendered.script == SCRIPT
    assert rendered.plan.isascii()
    assert json.loads(rendered.secret.reveal()) == {"gate": KEY, "environment": {"JUPYTERHUB_API_TOKEN": "tok\nen"}}
    assert KEY not in repr(rendered)
    assert KEY not in rendered.plan


def test_the_directives_are_the_typed_values():
    plan = a_plan(requeue=True)
    assert directives(plan) == (
        ("job-name", "m0moorageabc0001"),
        ("comment", "m0moorageabc0001"),
        ("nodes", "2"),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", "4"),
        ("mem", "1024M"),
        ("gpus-per-node", "1"),
        ("time", "62"),
        ("account", "proj_1"),
        ("partition", "batch"),
        ("requeue", ""),
    )
    script = batch_script(directives(plan))
    assert parse_directives(script) == directives(plan)
    assert [line for line in script.split("\n") if not line.startswith("#SBATCH")] == SCRIPT.split("\n")


NO_JSON = "plan: is no JSON that we can read; expected one JSON object"
NO_VERSION = "version: is another one or missing; expected 1"
RENDERED = render(a_plan(), LaunchSecrets(Secret(KEY))).plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", NO_JSON),
        ("{", NO_JSON),
        ("[" * 10_000, NO_JSON),
        (b"\xff", NO_JSON),
        ("1" * 5000, NO_JSON),
        ('{"version": 1, "version": 1}', NO_JSON),
        (RENDERED.replace('"attempt": 1', '"attempt": 2, "attempt": 1'), NO_JSON),
        ("[]", NO_VERSION),
        ("{}", NO_VERSION),
        ('{"version": 2}', NO_VERSION),
        ("x" * (PLAN_LIMIT + 1), "plan: has 1048577 bytes; expected at most 1048576"),
    ],
    ids=range(11),
)
def test_what_is_no_plan_is_refused_in_words(text, said):
    with pytest.raises(PlanError) as caught:
        parse_plan(text)
    assert str(caught.value) == said


def test_a_plan_file_for_people_and_of_any_length_that_is_allowed():
    """One member per line; it may be as long as the limit, and need not say where its secret is."""
    assert RENDERED.split("\n")[:3] == ["{", ' "tag": "m0moorageabc0001",', ' "attempt": 1,']
    assert parse_plan(RENDERED + " " * (PLAN_LIMIT - len(RENDERED))) == a_plan()
    document = json.loads(RENDERED)
    del document["secret_file"]
    assert parse_plan(json.dumps(document)) == a_plan()


def test_a_changed_plan_file_names_every_wrong_member():
    document = json.loads(render(a_plan(), LaunchSecrets(Secret(KEY))).plan)
    document["surprise"] = 1
    del document["tag"]
    document["resources"]["nodes"] = "two"
    document["resources"]["colour"] = "red"
    document["limits"] = None
    document["args"] = [["nested"]]
    with pytest.raises(PlanError) as caught:
        parse_plan(json.dumps(document))
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"surprise", "tag", "resources.nodes", "resources.colour", "limits", "args[0]"}


def test_a_plan_file_with_one_member_too_many_is_refused():
    document = json.loads(render(a_plan(), LaunchSecrets(Secret(KEY))).plan)
    with pytest.raises(PlanError, match=r"^surprise: is unknown; expected one of tag, attempt, owner, "):
        parse_plan(json.dumps(document | {"surprise": 1}))
    with pytest.raises(PlanError, match=r"^environment\[0\]: is of type list; expected a pair of name and value$"):
        parse_plan(json.dumps(document | {"environment": [["A"]]}))


def test_directives_end_where_the_script_begins():
    """As sbatch reads them: comments and blank lines may come between, nothing else."""
    script = "#!/bin/sh\n#SBATCH --a=1\n\n# b\n#SBATCH   --c\n"
    assert parse_directives(script) == (("a", "1"), ("c", ""))
    assert parse_directives(script + "true\n#SBATCH --d=1\n") == (("a", "1"), ("c", ""))


def test_secrets_are_checked_without_being_shown():
    with pytest.raises(PlanError) as caught:
        LaunchSecrets(Secret("hunter2"), (("A", Secret("x\0hunter2")), ("B", "hunter2"), ("BASH_ENV", Secret("x"))))  # type: ignore[arg-type]
    assert {problem.field for problem in caught.value.problems} == {
        "gate",
        "environment.A",
        "environment.B",
        "environment.BASH_ENV",
    }
    assert "hunter2" not in str(caught.value)


def test_a_name_is_either_secret_or_not():
    with pytest.raises(PlanError, match=r"^environment\.A: is also a secret variable; expected one of the two$"):
        render(a_plan(), LaunchSecrets(Secret(KEY), (("A", Secret("x")),)))


def test_too_many_secrets_are_refused():
    names = [f"V{n}" for n in range(4)]
    empty = len(json.dumps({"gate": KEY, "environment": dict.fromkeys(["V", *names], "")}))
    rest = SECRETS_LIMIT - empty - 4 * 60_000
    for more, refused in ((0, False), (1, True)):
        many = (("V", Secret("x" * (rest + more))), *((name, Secret("x" * 60_000)) for name in names))
        secrets = LaunchSecrets(Secret(KEY), many)
        if refused:
            said = "^secrets: have 262145 bytes as JSON; expected at most 262144$"
            with pytest.raises(PlanError, match=said):
                render(a_plan(), secrets)
        else:
            assert len(render(a_plan(), secrets).secret.reveal()) == SECRETS_LIMIT


def test_the_script_finds_a_python_and_gives_it_the_launcher(tmp_path: Path):
    """Run for real with a launcher that only tells how it was started."""
    (tmp_path / LAUNCHER_NAME).write_text(
        "import os, sys; print(sys.argv, sys.flags.isolated, oct(os.umask(0)), os.environ['MOORAGE_UMASK'])"
    )
    script = tmp_path / "start.sh"
    script.write_text(batch_script(directives(a_plan())))
    script.chmod(stat.S_IRUSR | stat.S_IXUSR)
    command = ["bash", "-c", "umask 027; exec ./start.sh"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "['moorage_launcher.py', 'plan.json'] 1 0o77 0027\n"


def test_without_a_python_the_script_says_so(tmp_path: Path):
    (tmp_path / "start.sh").write_text(SCRIPT.replace("/usr/", "/nonexistent/"))
    done = subprocess.run(
        ["/bin/bash", "start.sh"],
        cwd=tmp_path,
        env={"PATH": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (127, "moorage: no Python 3.6 or newer on this node\n")


def test_a_secret_shows_stars_and_does_not_travel():
    secret = Secret("hunter2")
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>30}", f"{secret!r}", "%s" % secret, repr([secret])]  # noqa: UP031
    assert not any("hunter2" in text for text in shown)
    assert secret.reveal() == "hunter2"
    for refuse in (pickle.dumps, json.dumps, bytes, hash, vars, lambda it: "" + it):
        with pytest.raises(TypeError):
            refuse(secret)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    assert secret == Secret("hunter2")
    assert secret != Secret("hunter3")
    assert secret != "hunter2"
    with pytest.raises(TypeError, match="not int"):
        Secret(7)  # type: ignore[arg-type]
