"""
The kinds of this package: systems `slurm` and `ssh-host`, tunnels `openssh`, `paramiko` and `direct`.

Heavy modules are loaded by the factories.
"""

import shutil
from typing import Any

import attrs
from attrs import field, frozen, validators

from moorage.config.fields import Misfit, doc
from moorage.core.model import SystemName
from moorage.plugins import SystemKind, TunnelKind, hookimpl

from .hosts import LoginConfig
from .options import SlurmConfig, SshHostConfig, SshSystemConfig


@frozen(kw_only=True)
class DirectConfig:
    """Nodes that the Hub's machine reaches by itself."""

    suffix: str = field(
        default="",
        validator=validators.matches_re(r"(\.[A-Za-z0-9-]{1,63}){0,20}"),
        metadata=doc('appended to the names of nodes, such as ".cluster.example.org"'),
    )
    loopback: bool = field(
        default=False, metadata=doc("allow this machine's own addresses; only for a system that is this machine")
    )


@frozen(kw_only=True)
class OpensshConfig(LoginConfig):
    """Login nodes, reached by the `ssh` program."""

    program: str = field(
        default="/usr/bin/ssh", validator=validators.matches_re(r"/[^\s\x00]+"), metadata=doc("OpenSSH's client")
    )
    forwards: int = field(
        default=200,
        validator=[validators.ge(1), validators.le(2000)],
        metadata=doc("sessions on one connection; beyond that another one is made"),
    )


@frozen(kw_only=True)
class ParamikoConfig(LoginConfig):
    """Login nodes, reached without the `ssh` program."""

    window_mib: int = field(
        default=8,
        validator=[validators.ge(1), validators.le(1024)],
        metadata=doc(
            "bytes of one stream that may be under way, MiB: what a second carries at most, times the round trip;"
            " a reader that stalls can hold twice as much memory, and a server's processor time for a window that fills"
            " grows with its square"
        ),
    )


@hookimpl
def moorage_system_kinds() -> list[SystemKind]:
    return [
        SystemKind("slurm", SlurmConfig, make_slurm, "a Slurm cluster behind login nodes"),
        SystemKind("ssh-host", SshHostConfig, make_host, "a host without a batch system, such as a workstation"),
    ]


@hookimpl
def moorage_tunnel_kinds() -> list[TunnelKind]:
    return [
        TunnelKind("openssh", OpensshConfig, make_openssh, "one ssh connection per login node, shared by all sessions"),
        TunnelKind("paramiko", ParamikoConfig, make_paramiko, "SSH without the ssh program"),
        TunnelKind(
            "slurm", SlurmConfig, make_same_login, "as the system itself is logged in to; used without `tunnel`"
        ),
        TunnelKind("ssh-host", SshHostConfig, make_same_login, "as the host itself is logged in to"),
        TunnelKind("direct", DirectConfig, make_direct, "the Hub's machine reaches the nodes by itself"),
    ]


def make_slurm(name: SystemName, options: SlurmConfig, /, **context: Any) -> object:
    """The system of one cluster; see `moorage.adapters.ssh.slurm`."""
    from .slurm import SlurmSystem

    return SlurmSystem(
        name, options, context["clock"], context["plans"], context["timeouts"], context["choices"].seed()
    )


def make_host(name: SystemName, options: SshHostConfig, /, **context: Any) -> object:
    """The system of one host; see `moorage.adapters.ssh.host`."""
    from .host import HostSystem

    return HostSystem(name, options, context["clock"], context["plans"], context["timeouts"], context["choices"].seed())


def make_openssh(name: SystemName, options: OpensshConfig, /, **context: Any) -> object:
    """The dialer of one system; see `moorage.adapters.ssh.openssh`."""
    from .openssh import OpensshDialer

    return OpensshDialer(name, options, context["directory"], context["timeouts"], context["choices"].seed())


def make_paramiko(name: SystemName, options: ParamikoConfig, /, **context: Any) -> object:
    """The dialer of one system; see `moorage.adapters.ssh.paramiko_dialer`."""
    from .paramiko_dialer import ParamikoDialer

    return ParamikoDialer(name, options, context["timeouts"], context["choices"].seed())


def make_same_login(name: SystemName, options: SshSystemConfig, /, **context: Any) -> object:
    """
    The dialer of a system whose configuration has no `tunnel`: the same login, with the ssh program if there is one.

    Raises:
        Misfit: Everybody acts under their own account there, and a tunnel has one for all.
    """
    if options.people_keys is not None:
        raise Misfit("tunnel", "a tunnel with an account of its own, because people_keys gives it none")
    login = {each.name: getattr(options, each.name) for each in attrs.fields(LoginConfig)}
    if shutil.which(OpensshConfig(**login).program):
        return make_openssh(name, OpensshConfig(**login), **context)
    return make_paramiko(name, ParamikoConfig(**login), **context)


def make_direct(name: SystemName, options: DirectConfig, /, **context: Any) -> object:
    """The dialer of one system; see `moorage.adapters.ssh.direct`. A simulated system is on this machine."""
    from .direct import DirectDialer

    loopback = options.loopback or bool(context.get("simulation"))
    return DirectDialer(name, options.suffix, loopback, context["timeouts"].connect_s)
