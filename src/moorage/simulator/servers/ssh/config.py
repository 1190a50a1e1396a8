"""What a simulated login node is: accounts, nodes, partitions, sshd's limits; from YAML or made in Python."""

import getpass
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
import yaml
from attrs import Attribute, Factory, evolve, field, frozen, validators
from cattrs.errors import BaseValidationError
from cattrs.v import format_exception, transform_error

_positive: Any = validators.gt(0)
_natural: Any = validators.ge(0)


class ConfigError(ValueError):
    """Something in the configuration is wrong; the text names the place."""


@frozen
class Limits:
    """
    What sshd allows. Defaults are those of OpenSSH 9.2.

    `startups` is MaxStartups: from the first number of connections that are not logged in on, the second number in
    percent is dropped, from the third on all. `penalty_s` is how long an address is refused after a failed login;
    OpenSSH has that since 9.8.

    Source: sshd_config(5).
    """

    sessions: int = field(default=10, validator=_positive)
    startups: tuple[int, int, int] = (10, 30, 100)
    login_grace_s: float = field(default=120.0, validator=_positive)
    auth_tries: int = field(default=6, validator=_positive)
    penalty_s: float = field(default=0.0, validator=_natural)


@frozen
class Account:
    """
    Somebody who can log in.

    `keys` are lines as in authorized_keys, beside those that are good for every account. `accounts` are what Slurm
    calls accounts, the first one is the default.
    """

    name: str = field(validator=validators.matches_re(r"[a-z_][a-z0-9_.-]{0,31}"))
    keys: Sequence[str] = ()
    accounts: Sequence[str] = ("project",)


@frozen
class Nodes:
    """Compute nodes that are alike: n1, n2, ..."""

    count: int = field(default=16, validator=_positive)
    cores: int = field(default=48, validator=_positive)
    memory_mib: int = field(default=192_000, validator=_natural)
    prefix: str = field(default="n", validator=validators.matches_re(r"[a-z][a-z-]{0,20}"))


@frozen
class Partition:
    """
    A queue over the first `nodes` nodes, all of them with 0.

    Jobs of a partition with a higher `priority` take nodes away from this one's as `preempt` says.
    """

    name: str = field(validator=validators.matches_re(r"[A-Za-z0-9_-]{1,64}"))
    nodes: int = field(default=0, validator=_natural)
    max_minutes: int = field(default=1440, validator=_positive)
    default_minutes: int = field(default=60, validator=_positive)
    priority: int = 1
    preempt: str = field(default="OFF", validator=validators.in_(("OFF", "REQUEUE", "CANCEL")))
    grace_s: float = field(default=30.0, validator=_natural)


@frozen
class Timing:
    """
    Seconds of the batch system. The defaults are brisk, for demonstrations.

    `real()` is what slurm.conf has by default, `fast()` is for tests.
    """

    schedule_s: float = field(default=0.3, validator=_natural)
    configuring_s: float = field(default=0.0, validator=_natural)
    epilog_s: float = field(default=0.0, validator=_natural)
    kill_wait_s: float = field(default=5.0, validator=_natural)
    job_age_s: float = field(default=300.0, validator=_natural)
    requeue_s: float = field(default=2.0, validator=_natural)

    @classmethod
    def real(cls) -> "Timing":
        return cls(schedule_s=3, configuring_s=1, epilog_s=1, kill_wait_s=30, job_age_s=300, requeue_s=120)

    @classmethod
    def fast(cls) -> "Timing":
        return cls(schedule_s=0.02, kill_wait_s=0.5, job_age_s=300, requeue_s=0.1)


@frozen
class NodeConfig:
    """
    One login node and the cluster behind it.

    Args:
        accounts: Who can log in; without any, the person who runs the simulation.
        accounting: Whether `sacct` knows anything.
        execute: `process`: jobs are processes of this machine. `virtual`: jobs only pass time.
        keep: Jobs outlive a server that is killed, and the next one in the same directory goes on with them; only with
            jobs that are processes.
        speed: How many seconds of a virtual cluster pass in one of ours.
        environment: Variables of commands and jobs, beside the usual ones. PATH is put before theirs.
        forwards: Whether connections and sockets are forwarded.
        greeting: What a careless start-up file prints before every command.
    """

    cluster: str = "simulated"
    accounts: Sequence[Account] = ()
    nodes: Nodes = Nodes()
    partitions: Sequence[Partition] = (Partition("batch"), Partition("devel", 2, 120, 30))
    limits: Limits = Limits()
    timing: Timing = Timing()
    accounting: bool = True
    execute: str = field(default="process", validator=validators.in_(("process", "virtual")))
    keep: bool = field(default=False)
    speed: float = field(default=1.0, validator=_positive)
    environment: Mapping[str, str] = Factory(dict)
    forwards: bool = True
    greeting: str = ""
    largest_file: int = field(default=64 << 20, validator=_positive)

    @keep.validator
    def _check_keep(self, attribute: "Attribute[bool]", value: bool) -> None:
        if value and self.execute != "process":
            raise ValueError("keep: only jobs that are processes can be kept (execute: process)")

    def everybody(self) -> tuple[Account, ...]:
        """The accounts, with the default filled in."""
        return tuple(self.accounts) or (Account(_me()),)


def told(error: Exception) -> str:
    """What did not fit, with its place; in the words of the validators."""
    if isinstance(error, BaseValidationError):
        return "; ".join(transform_error(error, format_exception=_told_one))[:2000]
    return str(error)[:2000]


def _told_one(error: BaseException, kind: type | None) -> str:
    if isinstance(error, ValueError) and error.args:
        return str(error.args[0])
    return format_exception(error, kind)


def _me() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "user"


def load(path: Path) -> NodeConfig:
    """
    The configuration in a YAML file; keys are the fields of the classes here.

    Raises:
        ConfigError: Names what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text) if len(text) < 1 << 20 else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return from_data(data or {})


def from_data(data: Any) -> NodeConfig:
    """The same from plain data. `timing` may also be "real" or "fast"."""
    if not isinstance(data, dict):
        raise ConfigError("a mapping is expected")
    data = dict(data)
    converter = cattrs.Converter(forbid_extra_keys=True)
    named = {"real": Timing.real, "fast": Timing.fast}
    timing = named[data.pop("timing")]() if data.get("timing") in ("real", "fast") else None
    try:
        config = converter.structure(data, NodeConfig)
    except (BaseValidationError, TypeError, ValueError) as error:
        raise ConfigError(told(error)) from error
    return evolve(config, timing=timing) if timing else config
