"""What an operator says about a UNICORE site."""

from collections.abc import Mapping
from typing import Annotated, Literal

from attrs import field, frozen, validators

from moorage.config.fields import Misfit, Seconds, SecretRef, Text, Words, doc

Url = Annotated[
    str,
    Text(
        r"https?://(?:[A-Za-z0-9-]{1,63}\.){0,20}[A-Za-z0-9-]{1,63}(?::[0-9]{1,5})?"
        r"(?:/[A-Za-z0-9._-]{1,64}){0,3}/rest/core/?",
        "the address of a site's REST API, such as https://gateway.example.org:8080/SITE/rest/core",
        500,
    ),
]
NotifyUrl = Annotated[
    str,
    Text(
        r"https?://[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~%+=-]{0,200}){0,20}",
        "an http(s) address without user name and query",
        1000,
    ),
]
Path = Annotated[str, Text(r"/[^\x00]+", "the absolute path of a file", 4096)]
Word = Annotated[str, Text(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}", "a name of letters, digits, _ . @ and -", 64)]
Pattern = Annotated[
    str, Text(r"(?:any:)?[A-Za-z0-9_.?*-]{1,128}", 'a login node, such as "login1", "login*" or "any:gpu"', 132)
]
Umask = Annotated[str, Text(r"0?[0-7]{3}", 'an octal umask, such as "0077"', 4)]
ResourceName = Annotated[
    str,
    Words(
        {
            "nodes": "number of nodes",
            "cores": "processor cores on each node",
            "memory": "memory of each node",
            "gpus": "graphics processors of each node",
            "account": "budget or project",
            "reservation": "reservation",
            "qos": "quality of service",
        }
    ),
]
Resource = Annotated[str, Text(r"[A-Za-z][A-Za-z0-9_ ]{0,63}", "a resource's name as the site defines it", 64)]


@frozen(kw_only=True)
class OwnerToken:
    """Everybody acts with a token of their own, as the Hub's login gives it."""

    kind: Literal["owner"] = field(default="owner", metadata=doc("the owner's own token, sent as a bearer token"))


@frozen(kw_only=True)
class BasicLogin:
    """All sessions act with one account of the site."""

    kind: Literal["basic"] = field(metadata=doc("user name and password of one account"))
    username: Annotated[str, Text(r"[^\x00-\x1f:]{1,255}", "a user name without colon", 255)] = field(
        metadata=doc("the account's name")
    )
    password: SecretRef = field(metadata=doc("the account's password, as a reference"))


@frozen(kw_only=True)
class UnicoreConfig:
    """A UNICORE site, as its REST API shows it. The same words serve for the tunnel of this kind."""

    url: Url = field(metadata=doc("address of the site's REST API; ends in /SITE/rest/core"))
    aliases: tuple[Url, ...] = field(
        default=(), metadata=doc("further addresses of the same site that appear in its links; never connected to")
    )
    ca_file: Path | None = field(
        default=None, metadata=doc("certificates (PEM) that sign the site's; without it, those of the system")
    )
    insecure: bool = field(
        default=False, metadata=doc("do not verify the site's certificate; refused outside the simulator")
    )
    credentials: OwnerToken | BasicLogin = field(
        factory=OwnerToken, metadata=doc("who we are at the site: {kind: owner} or {kind: basic, ...}")
    )
    accounts: Mapping[str, Word] = field(
        factory=dict, metadata=doc("login at the site by the owner's name in the Hub; without it, the site chooses")
    )
    role: Word | None = field(default=None, metadata=doc("role to ask for, where users have several"))
    group: Word | None = field(default=None, metadata=doc("Unix group to ask for, where users have several"))
    login_nodes: Mapping[Word, Pattern] = field(
        factory=dict, metadata=doc("partitions that are login nodes: their jobs run at once on the node named")
    )
    resources: Mapping[ResourceName, Resource] = field(
        factory=dict, metadata=doc("where the site calls a resource by another name than UNICORE does")
    )
    directives_fixed: bool = field(
        default=False,
        metadata=doc("the server passes GPUs and memory of 2 GiB or more on rightly; UNICORE/X 10.1 to 11.1 do not"),
    )
    umask: Umask = field(
        default="0077", metadata=doc("of the job; files of a session are private unless this says otherwise")
    )
    notify_url: NotifyUrl | None = field(
        default=None, metadata=doc("where the site tells of changes; without it, it is only asked")
    )
    connections: int = field(
        default=32,
        validator=[validators.ge(4), validators.le(512)],
        metadata=doc("most connections to the site at a time"),
    )
    stuck_after: Seconds = field(
        default=900.0,
        validator=validators.gt(0),
        metadata=doc("a job that never got from the site to its batch system is given up after this time"),
    )
    forward_from: Word | None = field(
        default=None, metadata=doc("login node that tunnels start from; without it, the one the job was submitted from")
    )

    def __attrs_post_init__(self) -> None:
        if self.insecure and self.ca_file is not None:
            raise Misfit("insecure", "either ca_file or insecure, not both")
