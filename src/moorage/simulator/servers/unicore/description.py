"""What a job description asks for, read as leniently and as late as the server reads it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Factory, frozen

from .config import Partition, SiteConfig


class Failed(Exception):
    """The job ends as FAILED; the text is its `statusMessage`."""


_ems = "Processing failed: eu.unicore.xnjs.ems.ExecutionException: "
_kinds = {
    "batch": "BATCH",
    "normal": "BATCH",
    "on_login_node": "ON_LOGIN_NODE",
    "interactive": "ON_LOGIN_NODE",
    "raw": "RAW",
    "allocate": "ALLOCATE",
}


@frozen
class Command:
    """A pre- or post-command."""

    text: str
    on_login_node: bool
    ignore_exit_code: bool


@frozen
class Import:
    source: str
    target: str
    data: bytes | None
    permissions: str | None
    mode: str
    fail_on_error: bool


@frozen
class Export:
    source: str
    target: str
    fail_on_error: bool


@frozen
class Notify:
    """Where and when the site tells about state changes."""

    url: str
    status: frozenset[str] = frozenset(("RUNNING", "SUCCESSFUL", "FAILED"))
    batch: tuple[re.Pattern[str], ...] = ()


@frozen
class Description:
    kind: str = "BATCH"
    name: str = "UNICORE_Job"
    executable: str | None = None
    application: tuple[str, str | None] | None = None
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    stdout: str = "stdout"
    stderr: str = "stderr"
    stdin: str | None = None
    ignore_exit_code: bool = False
    pre: Command | None = None
    post: Command | None = None
    login_node: str | None = None
    raw_file: str | None = None
    resources: Mapping[str, str] = Factory(dict)
    imports: tuple[Import, ...] = ()
    exports: tuple[Export, ...] = ()
    waits_for_start: bool = False
    notify: Notify | None = None
    umask: int = 0o027
    not_before: str | None = None
    email: str | None = None

    @property
    def executes(self) -> bool:
        return bool(self.executable or self.application or self.raw_file or self.kind == "ALLOCATE")


def parse(data: Mapping[str, Any]) -> Description:
    """
    Understand a description. Unknown keys are ignored.

    Raises:
        Failed: With the text the job will carry.

    Source: UNICORE-EU/unicorex xnjs JSONParser.
    """
    application = _text(data, "ApplicationName")
    executable = _text(data, "Executable")
    kind_word = _text(data, "Job type") or "batch"
    kind = _kinds.get(kind_word.lower())
    if kind is None:
        raise Failed(
            "Processing failed: java.lang.IllegalArgumentException: No enum constant "
            f"eu.unicore.xnjs.idb.ApplicationInfo.JobType.{kind_word.upper()}"
        )
    raw_file = _text(data, "BSS file") if kind == "RAW" else None
    if kind == "RAW" and not raw_file:
        raise Failed("Processing failed: java.lang.IllegalArgumentException: Job type 'raw' requires 'BSS file'")
    return Description(
        kind=kind,
        name=_text(data, "Name") or application or "UNICORE_Job",
        executable=executable,
        application=(application, _text(data, "ApplicationVersion")) if application else None,
        arguments=_strings(data, "Arguments"),
        environment=_parameters(data) + _environment(data),
        stdout=_text(data, "Stdout") or "stdout",
        stderr=_text(data, "Stderr") or "stderr",
        stdin=_text(data, "Stdin"),
        ignore_exit_code=_true(data.get("IgnoreNonZeroExitCode")),
        pre=_command(data, "User precommand", "UserPrecommandIgnoreNonZeroExitCode"),
        post=_command(data, "User postcommand", "UserPostcommandIgnoreNonZeroExitCode"),
        login_node=_text(data, "Login node"),
        raw_file=raw_file,
        resources=_resources(data),
        # An object instead of an array is accepted and its imports are never run.
        imports=tuple(map(_import, _array(data, "Imports"))),
        exports=tuple(map(_export, _array(data, "Exports"))),
        waits_for_start=_true(data.get("haveClientStageIn")),
        notify=_notify(data),
        umask=_umask(data),
        not_before=_text(data, "Not before"),
        email=_text(data, "User email"),
    )


def tags_of(data: Mapping[str, Any]) -> list[str]:
    """Tags are an array; a plain string is ignored."""
    tags = data.get("Tags", data.get("tags"))
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def without_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """The description as kept once it was processed: inline data is `n/a`."""
    kept = dict(data)
    if isinstance(kept.get("Imports"), list):
        kept["Imports"] = [
            {**item, "Data": "n/a"} if isinstance(item, dict) and "Data" in item else item for item in kept["Imports"]
        ]
    return kept


def _true(value: Any) -> bool:
    return str(value).lower() == "true"


def _text(data: Mapping[str, Any], key: str) -> str | None:
    """org.json's `optString`: null and absent are the same, numbers become text."""
    value = data.get(key)
    if value is None:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def _array(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = data.get(key)
    if not isinstance(value, list):
        return []
    if not all(isinstance(item, dict) for item in value):
        raise Failed(f"Processing failed: org.json.JSONException: {key} must be an array of objects.")
    return value


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        java = {bool: "java.lang.Boolean", int: "java.lang.Integer", float: "java.math.BigDecimal"}
        kind = java.get(type(value), "org.json.JSONObject")
        raise Failed(
            f'Processing failed: org.json.JSONException: JSONObject["{key}"] is not a string '
            f"(class {kind} : {json.dumps(value)[:100]})."
        )
    return value


def _strings(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if not isinstance(value, list):
        return ()
    for position, item in enumerate(value):
        if not isinstance(item, str):
            raise Failed(
                f"Processing failed: org.json.JSONException: JSONArray[{position}] is not a String "
                f"({json.dumps(item)[:100]})."
            )
    return tuple(value)


def _environment(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = data.get("Environment")
    if isinstance(value, dict):
        return tuple((key, _string(item, key)) for key, item in value.items())
    if isinstance(value, list):
        return tuple((name, text) for name, _, text in (str(item).partition("=") for item in value))
    return ()


def _parameters(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = data.get("Parameters")
    if not isinstance(value, dict):
        return ()
    if any(isinstance(item, dict) for item in value.values()):
        raise Failed("Processing failed: this simulated site has no parameter sweeps")
    return tuple((key, _string(item, key)) for key, item in value.items())


def _command(data: Mapping[str, Any], key: str, ignore: str) -> Command | None:
    value = data.get(key)
    text = "\n".join(map(str, value)) if isinstance(value, list) else _text(data, key)
    if not text:
        return None
    where = "RunUserPrecommandOnLoginNode" if "pre" in key else "RunUserPostcommandOnLoginNode"
    return Command(text, _true(data.get(where, True)), _true(data.get(ignore, False)))


def _resources(data: Mapping[str, Any]) -> Mapping[str, str]:
    value = data.get("Resources")
    resources = {
        ("MemoryPerNode" if key == "Memory" else key): item if isinstance(item, str) else json.dumps(item)
        for key, item in (value.items() if isinstance(value, dict) else ())
    }
    project = _text(data, "Project")
    if project:
        resources["Project"] = project
    return resources


def _import(item: Mapping[str, Any]) -> Import:
    data = item.get("Data")
    if isinstance(data, list):
        data = "".join(line if str(line).endswith("\n") else f"{line}\n" for line in map(str, data))
    source = _text(item, "From") or _text(item, "source") or ("inline://dummy" if data is not None else "")
    target = _text(item, "To") or _text(item, "file") or ""
    if not source or not target:
        raise Failed("Processing failed: java.lang.IllegalArgumentException: Import needs 'From' and 'To'")
    return Import(
        source,
        target,
        None if data is None else str(data).encode("utf-8", "replace"),
        _text(item, "Permissions"),
        (_text(item, "Mode") or "overwrite").lower(),
        # A JSON boolean is not read and means true: only the string counts.
        item.get("FailOnError") != "false",
    )


def _export(item: Mapping[str, Any]) -> Export:
    source = _text(item, "From") or _text(item, "file") or ""
    target = _text(item, "To") or _text(item, "target") or ""
    return Export(source, target, item.get("FailOnError") != "false")


def _notify(data: Mapping[str, Any]) -> Notify | None:
    """`NotificationSettings` wins even when its URL is missing; then nothing is sent at all."""
    settings = data.get("NotificationSettings")
    if not isinstance(settings, dict):
        url = _text(data, "Notification")
        return Notify(url) if url else None
    url = _text(settings, "URL")
    if not url:
        return None
    status, batch = settings.get("status"), settings.get("bssStatus")
    try:
        patterns = tuple(re.compile(str(p)) for p in batch) if isinstance(batch, list) else ()
    except re.error as error:
        raise Failed(f"Processing failed: java.util.regex.PatternSyntaxException: {error}") from error
    if not isinstance(status, list):
        return Notify(url, batch=patterns)
    return Notify(url, frozenset(map(str, status)), patterns)


def _umask(data: Mapping[str, Any]) -> int:
    text = _text(data, "Umask") or _text(data, "umask")
    try:
        return int(text, 8) & 0o777 if text else 0o027
    except ValueError as error:
        raise Failed(f'Processing failed: java.lang.NumberFormatException: For input string: "{text}"') from error


# --- resources -------------------------------------------------------------------------------------------

_time_units = (
    ("seconds", 1),
    ("sec", 1),
    ("minutes", 60),
    ("min", 60),
    ("hours", 3600),
    ("h", 3600),
    ("days", 86_400),
    ("d", 86_400),
)
_size_units = (
    ("bytes", 1),
    ("kilobytes", 1 << 10),
    ("K", 1 << 10),
    ("kb", 1 << 10),
    ("megabytes", 1 << 20),
    ("M", 1 << 20),
    ("mb", 1 << 20),
    ("gigabytes", 1 << 30),
    ("G", 1 << 30),
    ("gb", 1 << 30),
    ("terabytes", 1 << 40),
    ("T", 1 << 40),
    ("tb", 1 << 40),
)
_plain_numbers = {"Nodes", "CPUsPerNode", "TotalCPUs", "GPUsPerNode", "ArraySize", "ArrayLimit"}
_unchecked = {"Reservation", "Queue", "ArraySize", "ArrayLimit"}
_unchecked_if_undefined = {"Project", "NodeConstraints", "QoS", "Exclusive"}
_processors = {"Nodes", "CPUsPerNode", "TotalCPUs"}


@frozen
class Request:
    """Resources in base units (seconds, bytes), checked against a partition."""

    partition: Partition
    values: Mapping[str, str]

    def number(self, name: str, default: int) -> int:
        return int(self.values.get(name, default))


def amount(name: str, text: str) -> int:
    """
    A number in base units: an integer, an optional blank and a case-sensitive prefix of a unit's name.

    `"90 min"` is 5400 and `"4G"` is 4 GiB; `"1.5h"`, `"4GB"` and `"2H"` cannot be parsed.
    """
    units = _time_units if name == "Runtime" else _size_units if name.startswith("Memory") else ()
    found = re.fullmatch(r"(-?[0-9]{1,18}) ?([A-Za-z]*)", text.strip())
    if found:
        number, unit = int(found[1]), found[2]
        if not unit:
            return number
        for word, factor in units:
            if word.startswith(unit):
                return number * factor
    if name in _plain_numbers:
        try:
            return round(float(text))
        except (ValueError, OverflowError):
            pass
    raise Failed(
        "Processing failed: java.lang.IllegalArgumentException: Could not parse requested resource "
        f"<{name}>: {text[:200]}"
    )


def check_resources(description: Description, config: SiteConfig, queues: Sequence[str] | None) -> Request:
    """Match a request with a partition. Source: UNICORE-EU/unicorex xnjs IncarnationSanityChecker, IDB."""
    asked = description.resources
    allowed = [p for p in config.partitions if queues is None or p.name in queues]
    wanted = asked.get("Queue")
    partition = next((p for p in allowed if wanted is None or p.name.lower() == wanted.lower()), None)
    if partition is None:
        raise Failed(f"{_ems}Resource request <Queue = {wanted}> is out of range. (Invalid resource request)")
    values = {"Queue": partition.name}
    for name, text in asked.items():
        if name != "Queue":
            values[name] = _check(name, text, partition)
    if not _processors & set(values):
        values["Nodes"] = "1"
    values.setdefault("Runtime", str(partition.default_runtime_s))
    return Request(partition, values)


def _check(name: str, text: str, partition: Partition) -> str:
    limit = partition.resources.get(name)
    numeric = name in _plain_numbers or name == "Runtime" or name.startswith("Memory")
    if isinstance(limit, str) and re.fullmatch(r"-?\d+-\d+", limit):
        value = amount(name, text)
        low, _, high = limit.rpartition("-")
        if not int(low) <= value <= int(high):
            raise Failed(f"{_ems}Resource request <{name}={value}> is out of range. (Invalid resource request)")
        return str(value)
    if isinstance(limit, (list, tuple)):
        if text not in limit:
            raise Failed(f"{_ems}Resource request <{name}={text}> is out of range. (Invalid resource request)")
        return text
    if limit == "*" or partition.name == "*" or name in _unchecked or name in _unchecked_if_undefined:
        return str(amount(name, text)) if numeric else text
    if limit is None:
        raise Failed(
            f"{_ems}Resource <{name}> is not available for partition <{partition.name}> (Invalid resource request)"
        )
    return text
