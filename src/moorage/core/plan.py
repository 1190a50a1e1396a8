"""
The launch plan: what a job shall run, as data, and its rendering into what the launcher reads.

Nothing here assembles text from values. The script is a constant; everything that varies is JSON, which the launcher
parses; batch directives are pairs of a fixed name and a value of a closed grammar. `parse_plan(render(plan).plan)`
gives the same plan.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
from attrs import field, frozen

from .secret import Secret

VERSION = 1

SCRIPT_NAME = "start.sh"
LAUNCHER_NAME = "moorage_launcher.py"
PLAN_NAME = "plan.json"
SECRET_NAME = "secret.json"  # noqa: S105 (a file's name)
ENDPOINT_NAME = "endpoint.json"
STATUS_NAME = "status.json"
LOG_NAME = "lab.log"
GATE_SOCKET_NAME = "private/gate.sock"
"""Where a gate of the kind unix listens, in the job directory; the only socket that a tunnel leads to."""

EXIT_WALLTIME = 124
"""The launcher's exit code when nobody else ended the job at its walltime; what `timeout` of coreutils says, too."""

PLAN_LIMIT = 1 << 20
"""Bytes of plan.json; far below what sites accept as inline data and what one process accepts as its arguments."""
SECRETS_LIMIT = 1 << 18

SCRIPT = """\
#!/bin/bash
# The same bytes for every job: what varies is data in plan.json.
# -S: the launcher needs no packages, and looking for them takes a while where files are far away.
MOORAGE_UMASK=$(umask)
export MOORAGE_UMASK
umask 077
for python in python3 /usr/bin/python3 /usr/libexec/platform-python \\
        python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 python3.7 python3.6; do
    if "$python" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1; then
        exec "$python" -I -S moorage_launcher.py plan.json
    fi
done
echo 'moorage: no Python 3.6 or newer on this node' >&2
exit 127
"""


@frozen
class Problem:
    """One wrong field: where, what is wrong with it, and what would be right. Values are described, never quoted."""

    field: str
    wrong: str
    right: str

    def __str__(self) -> str:
        return f"{self.field}: {self.wrong}; expected {self.right}"


class PlanError(ValueError):
    """A plan that cannot be. `problems` names every wrong field, in the order of the fields."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        shown = "\n".join(map(str, problems[:50]))
        super().__init__(shown if len(problems) <= 50 else f"{shown}\nand {len(problems) - 50} more")
        self.problems = problems


# Grammars ----------------------------------------------------------------------------------------------------

Rule = Callable[[str, object], Iterator[Problem]]
"""The problems of one value; the first argument is the name of its field."""


def _word(pattern: str, right: str) -> Rule:
    """Text that fits a regular expression as a whole. The expressions bound the length themselves."""
    grammar = re.compile(pattern, re.ASCII)

    def rule(name: str, value: object) -> Iterator[Problem]:
        if not isinstance(value, str) or len(value) > 4096 or not grammar.fullmatch(value):
            yield Problem(name, _describe(value, grammar), right)

    return rule


def _text(limit: int, also: str = "", right: str = "") -> Rule:
    """One line of visible characters, or also those of `also`; quotes and `$` are ordinary because nobody parses it."""
    right = right or f"up to {limit} visible characters on one line"

    def rule(name: str, value: object) -> Iterator[Problem]:
        if not isinstance(value, str):
            yield Problem(name, _describe(value), right)
        elif len(value) > limit:
            yield Problem(name, f"has {len(value)} characters", right)
        else:
            for position, char in enumerate(value):
                if not char.isprintable() and char not in also:
                    yield Problem(name, f"has character U+{ord(char):04X} at position {position}", right)
                    return

    return rule


def _integer(low: int, high: int, optional: bool = False) -> Rule:
    right = f"a whole number from {low} to {high}" + (" or none" if optional else "")

    def rule(name: str, value: object) -> Iterator[Problem]:
        if optional and value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int):
            yield Problem(name, _describe(value), right)
        elif not low <= value <= high:
            yield Problem(name, "is too small" if value < low else "is too large", right)

    return rule


def _truth(name: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, bool):
        yield Problem(name, _describe(value), "true or false")


def _secret(name: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, Secret):
        yield Problem(name, _describe(value), "a Secret")
    elif len(value.reveal()) > 65_536 or "\0" in value.reveal() or not _encodable(value.reveal()):
        yield Problem(name, "cannot be the value of an environment variable", "up to 65536 characters without NUL")


def _gate_secret(name: str, value: object) -> Iterator[Problem]:
    if not isinstance(value, Secret) or not re.fullmatch("[0-9a-f]{64}", value.reveal()):
        yield Problem(name, "is not that", "a Secret of 64 lower-case hexadecimal digits")


def _many(rule: Rule, limit: int) -> Rule:
    """A tuple, each entry by the same rule."""

    def many(name: str, value: object) -> Iterator[Problem]:
        if not isinstance(value, tuple):
            yield Problem(name, _describe(value), "a tuple")
        elif len(value) > limit:
            yield Problem(name, f"has {len(value)} entries", f"at most {limit}")
        else:
            for index, entry in enumerate(value):
                yield from rule(f"{name}[{index}]", entry)

    return many


def _environment(value_rule: Rule) -> Rule:
    """Pairs of a name and a value, each name once."""

    def rule(name: str, value: object) -> Iterator[Problem]:
        if not isinstance(value, tuple):
            yield Problem(name, _describe(value), "a tuple of pairs")
            return
        if len(value) > 256:
            yield Problem(name, f"has {len(value)} entries", "at most 256")
            return
        seen = set()
        for index, pair in enumerate(value):
            if not isinstance(pair, tuple) or len(pair) != 2:
                yield Problem(f"{name}[{index}]", _describe(pair), "a pair of name and value")
                continue
            wrong = list(_variable(f"{name}[{index}] (its name)", pair[0]))
            yield from wrong
            if wrong:
                continue
            if pair[0] in seen:
                yield Problem(f"{name}.{pair[0]}", "is there twice", "every variable once")
            seen.add(pair[0])
            if pair[0] in SHELL_VARIABLES or pair[0].startswith("MOORAGE_"):
                right = "another name: shells execute or split by this one, or it is the launcher's own"
                yield Problem(f"{name}.{pair[0]}", "is a reserved name", right)
            yield from value_rule(f"{name}.{pair[0]}", pair[1])

    return rule


SHELL_VARIABLES = frozenset(
    {"BASH_ENV", "ENV", "SHELLOPTS", "BASHOPTS", "PS0", "PS1", "PS2", "PS4", "PROMPT_COMMAND", "IFS"}
    | {"BASH_XTRACEFD", "BASH_LOADABLES_PATH"}
)
"""Variables whose value bash executes or parses by (bash(1), "Shell Variables"): a value would become shell."""

_variable = _word(
    "[A-Za-z_][A-Za-z0-9_]{0,127}", "up to 128 letters, digits and underscores, not beginning with a digit"
)
_option = _text(4096)


def _argument(name: str, value: object) -> Iterator[Problem]:
    """One lab option: `--name`, `--name=value`, or a word that cannot be taken for an option."""
    wrong = list(_option(name, value))
    yield from wrong
    if not wrong and isinstance(value, str) and not re.match("--[A-Za-z][A-Za-z0-9_.-]{0,127}(=|$)|[^-]", value):
        yield Problem(
            name, "begins with '-' or is empty", "--name, --name=value, or a word that does not begin with '-'"
        )


def _describe(value: object, grammar: re.Pattern[str] | None = None) -> str:
    """What is wrong with a value that fits no grammar, without quoting it: it can be hostile, huge or secret."""
    if not isinstance(value, str):
        return "is missing" if value is None else f"is of type {type(value).__name__}"
    if not value:
        return "is empty"
    for position, char in enumerate(value[:4096]):
        if not char.isprintable():
            return f"has character U+{ord(char):04X} at position {position}"
    if value.startswith("-"):
        return "begins with '-'"
    if grammar is not None and len(value) <= 256:
        # The longest beginning that could still become right ends before the first character that does not fit.
        fits = max((end for end in range(len(value)) if grammar.fullmatch(value[:end])), default=0)
        if fits:
            return f"does not fit from position {fits} on (character U+{ord(value[fits]):04X})"
    return f"does not fit ({len(value)} characters)"


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ruled(rule: Rule, meaning: str, default: Any = attrs.NOTHING) -> Any:
    return field(default=default, metadata={"rule": rule, "doc": meaning})


# Directives and resource names: a first character that cannot start an option, nothing that a shell, sbatch or an
# HTML page reads otherwise. Longest names of Slurm's database are 64 to 255 characters.
_name = _word(
    "|[A-Za-z0-9_][A-Za-z0-9_.@+:-]{0,63}",
    "empty, or up to 64 of A-Z a-z 0-9 _ . @ + : - beginning with a letter, digit or _",
)

_program = _text(4096, also="\n\t", right="up to 4096 visible characters")
_interface = _word("[A-Za-z0-9][A-Za-z0-9.:_-]{0,44}|::", "an address or an interface's name")


# The plan ----------------------------------------------------------------------------------------------------


@frozen
class Resources:
    """What the batch system is asked for. Empty or `None` leaves it to the site."""

    nodes: int = _ruled(_integer(1, 100_000), "number of nodes", 1)
    cores: int | None = _ruled(_integer(1, 100_000, optional=True), "per node", None)
    memory_mib: int | None = _ruled(_integer(1, 1 << 30, optional=True), "per node, MiB", None)
    gpus: int | None = _ruled(_integer(0, 1024, optional=True), "per node", None)
    account: str = _ruled(_name, "budget or project", "")
    partition: str = _ruled(_name, "partition or queue", "")
    reservation: str = _ruled(_name, "reservation", "")
    qos: str = _ruled(_name, "quality of service", "")


@frozen
class GatePort:
    """
    Where the launcher listens: on a TCP port of the node, or on `private/gate.sock` in the job directory.

    `interface` is an address or the name of a network interface with an IPv4 address; "0.0.0.0" is all of them. The
    ports are tried in random order; 0 to 0 lets the kernel choose. `host` is what the launcher reports as its name:
    `{hostname}` (up to the first dot), `{fqdn}` and `{address}` are replaced, so that a site where only "n17i" can be
    reached says "{hostname}i".
    """

    kind: str = _ruled(_word("tcp|unix", "tcp or unix"), "tcp or unix", "tcp")
    interface: str = _ruled(_interface, "tcp only", "0.0.0.0")  # noqa: S104 (the gate guards it)
    port_first: int = _ruled(_integer(0, 65_535), "tcp only", 0)
    port_last: int = _ruled(_integer(0, 65_535), "tcp only", 0)
    host: str = _ruled(
        _word(
            r"(?:[A-Za-z0-9.:-]|\{hostname\}|\{fqdn\}|\{address\}){1,255}",
            "a host name, {hostname}, {fqdn} or {address} in it",
        ),
        "tcp only",
        "{hostname}",
    )


@frozen
class Lab:
    """
    Where the lab listens and how it is asked whether it lives.

    `unix`: the launcher makes a 0700 directory and puts the path in place of `{socket}` in the command. `tcp`: a port
    of 127.0.0.1 in place of `{port}`; other users of the node can connect, so the lab needs a token of its own, which
    belongs into the secret environment (`JUPYTER_TOKEN`, `JUPYTERHUB_API_TOKEN`). Any HTTP status below 500 at
    `probe_path` is a living lab.
    """

    listen: str = _ruled(_word("unix|tcp", "unix or tcp"), "unix or tcp", "unix")
    probe_path: str = _ruled(
        _word("/[A-Za-z0-9._~/%@+=&?-]{0,1023}", "a path of up to 1024 URL characters beginning with /"),
        "without credentials",
        "/api",
    )


@frozen
class LaunchLimits:
    """Bounds inside the job. Seconds, unless the name says otherwise."""

    admission_s: int = _ruled(_integer(1, 86_400), "unadmitted, the launcher exits", 600)
    line_s: int = _ruled(_integer(1, 60), "for the first line of a stream", 10)
    unproven: int = _ruled(_integer(1, 1024), "connections without a proof at once; the oldest goes", 64)
    streams: int = _ruled(_integer(1, 4096), "proven streams at once", 256)
    warm_s: int = _ruled(_integer(1, 604_800), "a proven stream without a byte", 3600)
    idle_s: int = _ruled(_integer(1, 604_800), "a stream without a byte in either direction", 86_400)
    lab_start_s: int = _ruled(_integer(1, 86_400), "a stream waits for the lab to listen", 300)
    stop_s: int = _ruled(
        _integer(0, 3600), "from TERM to KILL; below the batch system's own (Slurm's KillWait: 30)", 10
    )
    status_s: int = _ruled(_integer(1, 3600), "between two writings of status.json; ten times that for log lines", 2)
    heartbeat_s: int = _ruled(_integer(1, 86_400), "status.json is written at least so often", 120)
    log_lines: int = _ruled(_integer(0, 1000), "last lines of the lab kept in status.json", 50)


@frozen
class LaunchPlan:
    """
    Everything about a job that is no secret; a plan that exists is valid.

    Args:
        command: From the operator's configuration, like `args` of the Hub's; `{socket}` and `{port}` are replaced.
        args: Lab options, the user's among them; appended to the command, nothing in them is replaced.
        modules: Loaded before the lab, from configuration.
        setup: Shell commands from the operator's configuration, run in the lab's shell; the only text that a shell
            interprets.
        environment: Pairs, the user's among them; set before modules are loaded, so modules can extend them.
        directory: Where the lab starts: `~`, `.` (the job directory), or a path below `~/` or `/`.
        walltime_s: 0 if the job has no limit.
        requeue: The batch system may run the job again. The secret file then stays (0600) until the files are
            removed; otherwise the launcher unlinks it at once.
        callback: A URL for reports, or empty.

    Raises:
        PlanError: With every wrong field.
    """

    tag: str = _ruled(
        _word("[A-Za-z][A-Za-z0-9]{0,62}", "up to 63 letters and digits beginning with a letter"),
        "names session and attempt",
    )
    attempt: int = _ruled(_integer(0, 999_999), "which try this is")
    owner: str = _ruled(_text(255), "for people; nothing depends on it")
    command: tuple[str, ...] = _ruled(_many(_program, 256), "start command")
    service: str = _ruled(
        _word("[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "up to 64 of A-Z a-z 0-9 _ . -"), "name of the service", "jupyterlab"
    )
    args: tuple[str, ...] = _ruled(_many(_argument, 256), "lab options", ())
    modules: tuple[str, ...] = _ruled(
        _many(_word("[A-Za-z0-9_][A-Za-z0-9_.+/:=~-]{0,127}", "up to 128 of A-Z a-z 0-9 _ . + / : = ~ -"), 128),
        "environment modules",
        (),
    )
    setup: tuple[str, ...] = _ruled(
        _many(_text(16_384, also="\n\t", right="up to 16384 characters of shell text"), 64), "operator's shell text", ()
    )
    environment: tuple[tuple[str, str], ...] = _ruled(_environment(_text(32_768)), "not secret", ())
    directory: str = _ruled(_text(4096), "working directory of the lab", "~")
    walltime_s: int = _ruled(_integer(0, 31_536_000), "0 for none", 0)
    requeue: bool = _ruled(_truth, "may run again", False)
    callback: str = _ruled(
        _word(
            r"|https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~/%@+=&?-]{0,1500})?",
            "empty or an http(s) URL without user name",
        ),
        "where reports are posted",
        "",
    )
    resources: Resources = field(factory=Resources)
    gate: GatePort = field(factory=GatePort)
    lab: Lab = field(factory=Lab)
    limits: LaunchLimits = field(factory=LaunchLimits)

    def __attrs_post_init__(self) -> None:
        problems = list(_problems(self, ""))
        problems += _disagreements(self, {re.split(r"[.\[ ]", problem.field)[0] for problem in problems})
        if problems:
            raise PlanError(tuple(problems))


@frozen
class LaunchSecrets:
    """
    What only the job may know.

    Args:
        gate: Key of this session and attempt for the gate: 32 random bytes as 64 hexadecimal digits.
        environment: Pairs for the lab's environment, like `JUPYTERHUB_API_TOKEN`.

    Raises:
        PlanError: With every wrong field.
    """

    gate: Secret = field(metadata={"rule": _gate_secret, "doc": "key of the gate"})
    environment: tuple[tuple[str, Secret], ...] = _ruled(_environment(_secret), "secret variables", ())

    def __attrs_post_init__(self) -> None:
        problems = tuple(_problems(self, ""))
        if problems:
            raise PlanError(problems)


def _problems(value: Any, prefix: str) -> Iterator[Problem]:
    """Every wrong field of a plan class, nested ones with their path."""
    for attribute in attrs.fields(type(value)):
        name, child = prefix + attribute.name, getattr(value, attribute.name)
        if "rule" in attribute.metadata:
            yield from attribute.metadata["rule"](name, child)
        elif not isinstance(child, attribute.type):
            yield Problem(name, _describe(child), attribute.type.__name__)
        else:
            yield from _problems(child, name + ".")


def _disagreements(plan: LaunchPlan, wrong: set[str]) -> Iterator[Problem]:
    """What is wrong between values that are right by themselves; fields in `wrong` are left out."""
    if "command" not in wrong:
        if not plan.command or not plan.command[0] or plan.command[0].startswith("-"):
            yield Problem("command", "names no program", "a program, then its arguments")
        place = {"unix": "{socket}", "tcp": "{port}"}[plan.lab.listen] if "lab" not in wrong else ""
        if place and not any(place in item for item in plan.command):
            yield Problem("command", f"does not hold {place}", f"{place} where the lab is told its {place[1:-1]}")
    if "directory" not in wrong and (
        not re.match(r"(~|\.|~?/.*)\Z", plan.directory) or ".." in plan.directory.split("/")
    ):
        yield Problem("directory", "is no such path", "'~', '.', or a path below ~/ or / without '..'")
    if "gate" not in wrong and (
        (plan.gate.port_first == 0) != (plan.gate.port_last == 0) or plan.gate.port_last < plan.gate.port_first
    ):
        yield Problem("gate.port_last", "does not fit gate.port_first", "two ports in order, or twice 0")
    size = len(_plan_json(plan)) if not wrong else 0
    if size > PLAN_LIMIT:
        yield Problem("plan", f"has {size} bytes as JSON", f"at most {PLAN_LIMIT}")


# Rendering ---------------------------------------------------------------------------------------------------


@frozen
class Rendered:
    """
    What is staged into the job directory, and what the batch system is told.

    Args:
        script: Constant; `SCRIPT_NAME`. Runs in the job directory.
        plan: JSON in ASCII; `PLAN_NAME`.
        secret: JSON; `SECRET_NAME`, mode 0600, or the launcher refuses it.
        directives: Slurm options without their dashes, values of closed grammars; an empty value means none.
    """

    script: str
    plan: str
    secret: Secret
    directives: tuple[tuple[str, str], ...]


def render(plan: LaunchPlan, secrets: LaunchSecrets) -> Rendered:
    """The plan as files and directives; raises `PlanError` if the secrets are too large or clash with the plan."""
    names = {name for name, _ in plan.environment}
    problems = [
        Problem(f"environment.{name}", "is also a secret variable", "one of the two")
        for name, _ in secrets.environment
        if name in names
    ]
    environment = {name: value.reveal() for name, value in secrets.environment}
    secret = json.dumps({"gate": secrets.gate.reveal(), "environment": environment})
    if len(secret) > SECRETS_LIMIT:
        problems.append(Problem("secrets", f"have {len(secret)} bytes as JSON", f"at most {SECRETS_LIMIT}"))
    if problems:
        raise PlanError(tuple(problems))
    return Rendered(SCRIPT, _plan_json(plan), Secret(secret), directives(plan))


def directives(plan: LaunchPlan) -> tuple[tuple[str, str], ...]:
    """
    Slurm options of a plan. The walltime is rounded up to minutes.

    Source: sbatch(1). The job's name is the tag, by which a lost job is found again; the comment repeats it because
    some sites rewrite names.
    """
    asked = plan.resources
    wished = (
        ("job-name", plan.tag),
        ("comment", plan.tag),
        ("nodes", str(asked.nodes)),
        ("ntasks-per-node", "1" if asked.cores else ""),
        ("cpus-per-task", str(asked.cores or "")),
        ("mem", f"{asked.memory_mib}M" if asked.memory_mib else ""),
        ("gpus-per-node", str(asked.gpus or "")),
        ("time", str(-(-plan.walltime_s // 60)) if plan.walltime_s else ""),
        ("account", asked.account),
        ("partition", asked.partition),
        ("qos", asked.qos),
        ("reservation", asked.reservation),
    )
    restart = ("requeue" if plan.requeue else "no-requeue", "")
    return (*((name, value) for name, value in wished if value), restart)


def batch_script(directives: tuple[tuple[str, str], ...]) -> str:
    """The constant script with `#SBATCH` lines between its first line and the rest."""
    first, rest = SCRIPT.split("\n", 1)
    lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in directives]
    return "\n".join([first, *lines, rest])


def parse_directives(script: str) -> tuple[tuple[str, str], ...]:
    """
    The directives that sbatch reads from a script, for checking what was rendered.

    Source: sbatch(1): options end at the first line that is neither blank nor a comment.
    """
    found = []
    for line in script.split("\n"):
        if line.startswith("#SBATCH"):
            name, _, value = line.removeprefix("#SBATCH").strip().removeprefix("--").partition("=")
            found.append((name, value))
        elif line.strip() and not line.startswith("#"):
            break
    return tuple(found)


def parse_plan(text: str | bytes) -> LaunchPlan:
    """
    The plan that was rendered.

    Raises:
        PlanError: The text is no JSON object of this version, or its fields are wrong; all of them are named.
    """
    if len(text) > PLAN_LIMIT:
        raise PlanError((Problem("plan", f"has {len(text)} bytes", f"at most {PLAN_LIMIT}"),))
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise PlanError((Problem("plan", "is no JSON that we can read", "one JSON object"),)) from None
    if not isinstance(document, dict) or document.pop("version", None) != VERSION:
        raise PlanError((Problem("version", "is another one or missing", str(VERSION)),))
    document.pop("secret_file", None)
    problems: list[Problem] = []
    members = _members(LaunchPlan, document, "", problems)
    for name in ("resources", "gate", "lab", "limits"):
        part = attrs.fields_dict(LaunchPlan)[name].type
        inner = members.get(name)
        if isinstance(inner, Mapping) and part is not None:
            members[name] = part(**_members(part, inner, name + ".", problems))
    if isinstance(members.get("environment"), Mapping):
        members["environment"] = tuple(members["environment"].items())
    try:
        plan = LaunchPlan(**members)
        if not problems:
            return plan
    except PlanError as error:
        named = {problem.field for problem in problems}
        problems += [problem for problem in error.problems if problem.field not in named]
    raise PlanError(tuple(problems))


_Class = TypeVar("_Class")


def _members(cls: type[_Class], data: Mapping[str, Any], prefix: str, problems: list[Problem]) -> dict[str, Any]:
    """The arguments for a class, with a problem for every member too many or too few; arrays become tuples."""
    known = attrs.fields_dict(cls)  # type: ignore[arg-type]  # every caller gives an attrs class
    for name in data:
        if name not in known:
            shown = name if re.fullmatch("[A-Za-z_]{1,40}", name) else "(a member)"
            problems.append(Problem(prefix + shown, "is unknown", "one of " + ", ".join(known)))
    for name in known:
        if name not in data:
            problems.append(Problem(prefix + name, "is missing", known[name].metadata.get("doc", "an object")))
    return {name: _tuples(data.get(name)) for name in known}


def _tuples(value: Any) -> Any:
    """Arrays as tuples, one level: no field nests deeper, and an array inside an array is a problem of its rule."""
    return tuple(value) if isinstance(value, list) else value


def _plan_json(plan: LaunchPlan) -> str:
    document = attrs.asdict(plan)
    document |= {"version": VERSION, "secret_file": SECRET_NAME, "environment": dict(plan.environment)}
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members
