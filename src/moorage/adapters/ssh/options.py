"""What can be configured for the kinds of systems `slurm` and `ssh-host`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from attrs import field, frozen

from moorage.config.fields import Misfit, Text, doc

from .hosts import KeyPath, LoginConfig, UserName

_PART = r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,63}"
DirectoryPath = Annotated[
    str,
    Text(
        rf"~?(?:/(?!\.\.?/|\.\.?$){_PART}){{1,20}}",
        'a path below ~/ or / without blanks, quotes or "..", such as "~/.moorage"',
        400,
    ),
]
ProgramPath = Annotated[
    str, Text(rf"(?:/(?!\.\.?/|\.\.?$){_PART}){{1,20}}", "an absolute path without blanks, quotes or ..", 400)
]
OwnerName = Annotated[str, Text(r"[^\s\x00-\x1f\x7f]{1,200}", "the name of a person at the Hub, without blanks", 200)]


@frozen(kw_only=True)
class SshSystemConfig(LoginConfig):
    """
    A system that is used through its login nodes.

    Either everything is done by the one account `user`, or, with `people_keys`, each person's jobs by the person's
    own account.
    """

    people_keys: KeyPath | None = field(
        default=None,
        metadata=doc("directory with a private key for each account; with it, everybody acts as themselves"),
    )
    accounts: Mapping[OwnerName, UserName] = field(
        factory=dict, metadata=doc("accounts of people whose name there differs from that at the Hub")
    )
    directory: DirectoryPath = field(
        default="~/.moorage", metadata=doc("where job directories are made; on a file system that the nodes share")
    )

    def __attrs_post_init__(self) -> None:
        if self.people_keys is None:
            LoginConfig.__attrs_post_init__(self)
            if self.accounts:
                raise Misfit("accounts", "people_keys beside it; without it, all jobs belong to `user`")
            return
        if self.key_file or self.agent or self.certificate_file:
            raise Misfit("people_keys", "no key_file, certificate_file and agent beside it")
        for name, values in (("hosts", self.hosts), ("host_keys", self.host_keys)):
            if not values:
                raise Misfit(name, "at least one")


@frozen(kw_only=True)
class SlurmConfig(SshSystemConfig):
    """A Slurm cluster behind login nodes."""

    commands: ProgramPath | None = field(
        default=None, metadata=doc("directory of sbatch and the other commands, if they are not on the account's PATH")
    )
    accounting: Literal["auto", "yes", "no"] = field(
        default="auto", metadata=doc("whether sacct is asked about jobs that squeue does not list any more")
    )


@frozen(kw_only=True)
class SshHostConfig(SshSystemConfig):
    """A host without a batch system, such as a workstation: sessions are processes."""

    python: ProgramPath = field(
        default="/usr/bin/python3", metadata=doc("Python 3.6 or newer on the host, for starting and finding processes")
    )
