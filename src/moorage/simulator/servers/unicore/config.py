"""What a simulated site is: users, partitions, login nodes, storages, delays; read from YAML or made in Python."""

import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import attrs
import yaml
from attrs import Factory, frozen, validators


class ConfigError(ValueError):
    """Something in the configuration is wrong; the text names the place."""


@frozen
class Timing:
    """
    How long the server takes for things, in seconds. The defaults are brisk, for demonstrations.

    `Timing.real()` is what the source says, `Timing.fast()` is for tests.
    Source: UNICORE-EU/unicorex xnjs (JobProcessor, Execution, XNJSProperties).
    """

    directory_s: float = 0.2  # from the submission to the working directory
    step_s: float = 0.02  # between two steps of a job's processing
    staging_s: float = 0.1  # server-side imports
    precommand_s: float = 0.3  # least time of a pre- or post-command on a login node
    submit_s: float = 0.02  # one sbatch; they are strictly one at a time
    submit_retry_s: float = 0.2
    queue_s: float = 0.2  # least time in the queue
    configuring_s: float = 0.0  # nodes get ready; 0 leaves the state out
    listing_s: float = 0.5  # between two listings of the batch system
    vanished_s: float = 5.0  # a job missing from the listing without an exit code: first grace
    filesystem_s: float = 1.0  # second grace
    kill_s: float = 2.0  # from SIGTERM to SIGKILL
    expiry_s: float = 5.0  # between two looks for resources past their life time
    lock_s: float = 30.0  # longest time an upload waits for the working directory

    @classmethod
    def real(cls) -> "Timing":
        return cls(
            directory_s=0.5,
            step_s=0.2,
            staging_s=0.5,
            precommand_s=3,
            submit_s=0.3,
            submit_retry_s=10,
            queue_s=1,
            configuring_s=1,
            listing_s=10,
            vanished_s=120,
            filesystem_s=10,
            kill_s=30,
            expiry_s=60,
        )

    @classmethod
    def fast(cls) -> "Timing":
        return cls(
            directory_s=0.02,
            step_s=0.005,
            staging_s=0.02,
            precommand_s=0.01,
            submit_s=0.002,
            submit_retry_s=0.01,
            queue_s=0.02,
            configuring_s=0,
            listing_s=0.03,
            vanished_s=0.3,
            filesystem_s=0.1,
            kill_s=0.5,
            expiry_s=0.1,
        )


@frozen
class Partition:
    """
    A part of the batch system.

    `resources` holds what `GET factories/ID` shows: name to range `"1-16"`, list of choices or `"*"`.
    `nodes` is how many nodes really are there, so how many jobs run at once.
    """

    name: str = "batch"
    nodes: int = 16
    cpus_per_node: int = 48
    default_runtime_s: int = 3600
    resources: Mapping[str, Any] = Factory(
        lambda: {
            "Nodes": "1-16",
            "CPUsPerNode": "1-48",
            "Runtime": "10-86400",
            "MemoryPerNode": "1-137438953472",
            "Exclusive": ["true", "false"],
            "Comment": "*",
        }
    )


@frozen
class User:
    """
    A person the site knows.

    `role` is user, admin or banned; None makes an authenticated person without a mapping, whom the
    server shows as anonymous. `queues` limits the partitions. `public_keys` (PEM or OpenSSH) are for
    tokens a user signs; `subject` is the name an OpenID provider gives (default: the user's name).
    """

    name: str
    password: str
    dn: str | None = None
    uids: Sequence[str] = ()
    groups: Sequence[str] = ("users",)
    supplementary: Sequence[str] = ()
    role: str | None = "user"
    queues: Sequence[str] | None = None
    public_keys: Sequence[str] = ()
    subject: str | None = None


@frozen
class Issuer:
    """An OpenID provider whose bearer tokens are accepted: the token is sent to its userinfo endpoint."""

    userinfo: str
    claim: str = "preferred_username"


@frozen
class Application:
    """Software of the site that a job can name instead of an executable."""

    name: str
    version: str
    command: str
    description: str | None = None


@frozen
class SiteConfig:
    """One UNICORE/X. Sizes in bytes; bounds keep a broken client from taking the machine down."""

    name: str = attrs.field(default="DEMO-SITE", validator=validators.matches_re(r"[A-Za-z0-9._-]{1,64}"))
    version: str = "11.1.0"
    users: Sequence[User] = (User("demouser", "test123", "CN=Demo User, O=UNICORE, C=EU"),)
    partitions: Sequence[Partition] = (Partition(),)
    login_nodes: Sequence[str] = ("login1",)
    projects: Sequence[str] = ("proj",)
    storages: Sequence[str] = ("HOME", "WORK")
    applications: Sequence[Application] = (
        Application("Date", "1.0", "date"),
        Application("Bash shell", "5.1", "/bin/bash $SOURCE"),
    )
    issuers: Sequence[Issuer] = ()
    execute: str = attrs.field(default="process", validator=validators.in_(("process", "virtual")))
    timing: Timing = Timing()
    session_s: float = 28_800
    sessions_per_user: int = 5
    job_lifetime_s: float = 86_400
    longest_lifetime_s: float = 31_536_000
    anonymous_allowed: bool = True
    login_nodes_allowed: bool = True
    script_header: str = "#!/bin/bash -l"
    job_environment: Mapping[str, str] = Factory(dict)
    directive_bugs: bool = False  # GPUsPerNode and Memory arithmetic of 10.1 to 11.1
    virtual_runtime_s: float = 60
    largest_body: int = 16 * 1024 * 1024
    largest_file: int = 4 * 1024 * 1024 * 1024
    keep: bool = False  # what runs outlives a killed server; the next start with its directory goes on with it
    most_jobs: int = 100_000
    most_sessions: int = 100_000

    def __attrs_post_init__(self) -> None:
        if self.keep and self.execute != "process":
            raise ValueError(f"keep: found execute: {self.execute}, expected process; nothing else outlives the server")


@frozen
class ServerConfig:
    """Several sites behind one gateway address, and the registry that lists them."""

    sites: Sequence[SiteConfig] = (SiteConfig(),)
    host: str = "127.0.0.1"
    port: int = 0
    tls: bool = False
    external_url: str | None = None
    directory: Path | None = None  # kept afterwards; without one a temporary directory that goes away


def load(path: Path) -> ServerConfig:
    """Read a YAML or JSON file; raises `ConfigError` naming the key that is wrong."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return from_data(data or {})


def from_data(data: Any) -> ServerConfig:
    """A server from plain data; a mapping without `sites` is understood as the only site."""
    if isinstance(data, dict) and "sites" not in data:
        server_keys = {field.name for field in attrs.fields(ServerConfig)}
        site = {key: value for key, value in data.items() if key not in server_keys}
        data = {key: value for key, value in data.items() if key in server_keys} | {"sites": [site]}
    config = structure(ServerConfig, data, "")
    assert isinstance(config, ServerConfig)
    return config


_PRESETS = {"real": Timing.real, "fast": Timing.fast, "brisk": Timing}


def structure(wanted: Any, data: Any, place: str) -> Any:
    """Plain data as the class `wanted`; every mistake names its place, `sites[0].partitions[1].nodes`."""
    origin = get_origin(wanted)
    if wanted is Any:
        return data
    if wanted is Timing and isinstance(data, str) and data in _PRESETS:
        return _PRESETS[data]()
    if attrs.has(wanted):
        return _structure_class(wanted, data, place)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in get_args(wanted):
            return None
        return structure(next(a for a in get_args(wanted) if a is not type(None)), data, place)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(data, dict):
            raise ConfigError(f"{place}: a mapping is expected")
        inner = get_args(wanted)[1]
        return {str(key): structure(inner, value, f"{place}.{key}") for key, value in data.items()}
    if origin is not None and issubclass(origin, Sequence):
        if not isinstance(data, list):
            raise ConfigError(f"{place}: a list is expected")
        return tuple(structure(get_args(wanted)[0], item, f"{place}[{i}]") for i, item in enumerate(data))
    if wanted is Path:
        return Path(str(data))
    if wanted is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, wanted) or (wanted is int and isinstance(data, bool)):
        raise ConfigError(f"{place}: {wanted.__name__} is expected, not {type(data).__name__}")
    return data


def _structure_class(wanted: Any, data: Any, place: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{place or 'configuration'}: a mapping is expected")
    hints = get_type_hints(wanted)
    unknown = sorted(set(map(str, data)) - set(hints))
    if unknown:
        raise ConfigError(f"{place}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(hints))}")
    values = {key: structure(hints[key], value, f"{place}.{key}".lstrip(".")) for key, value in data.items()}
    try:
        return wanted(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place or 'configuration'}: {error}") from error
