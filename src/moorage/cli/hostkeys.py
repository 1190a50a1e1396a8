"""`moorage hostkeys SYSTEM`"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from attrs import asdict, frozen

from moorage.cli import CODES, Exit
from moorage.cli.output import config_option, json_option, print_json, results, table

KEY_TYPES = ("ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512")
"""What is asked for, one connection each: a server shows one key per connection, of the kind the client prefers."""

PATIENCE_S = 10.0


@frozen
class Shown:
    """A key that a host showed. `pinned`: the configuration has it already."""

    host: str
    port: int
    type: str
    key: str
    fingerprint: str
    pinned: bool


@click.command("hostkeys", epilog=CODES)
@click.argument("system", required=False)
@click.option("--host", "hosts", multiple=True, metavar="HOST[:PORT]", help="Ask this host instead. May be repeated.")
@config_option
@json_option
def command(system: str | None, hosts: tuple[str, ...], config_file: Path, as_json: bool) -> int:
    """
    Show the SSH host keys of a system's login nodes, for you to confirm.

    Compare the fingerprints with those that the site publishes, then copy the lines into "host_keys" of the system.
    moorage never learns a key by itself. Of a system behind jump hosts only the first of these is asked.
    """
    if bool(system) == bool(hosts):
        raise click.UsageError("name a system of the configuration, or hosts with --host")
    targets, pinned = _configured(system, config_file) if system else ([_split(host) for host in hosts], {})
    shown: list[Shown] = []
    failed: list[str] = []
    for host, port in targets:
        try:
            shown += _keys(host, port, pinned.get(host, frozenset()))
        except OSError as error:
            failed.append(f"{host}:{port}: {error.strerror or error}")
    _print(shown, failed, as_json)
    return Exit.UNREACHABLE if failed else Exit.FINE


def _print(shown: list[Shown], failed: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"keys": [asdict(each) for each in shown], "failed": failed})
        return
    fingerprints = table("HOST", "TYPE", "FINGERPRINT", "IN THE CONFIGURATION")
    for each in shown:
        fingerprints.add_row(f"{each.host}:{each.port}", each.type, each.fingerprint, "yes" if each.pinned else "no")
    if shown:
        results().print(fingerprints)
        click.echo("\nhost_keys:")
        for each in shown:
            click.echo(f'  - "{each.host} {each.type} {each.key}"')
    for line in failed:
        click.echo(f"moorage: {line}", err=True)


def _split(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or ":" in host.strip("[]").replace("]", ""):
        return text, 22
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise click.UsageError(f"{text}: HOST[:PORT] is expected")
    return host.strip("[]"), int(port)


def _configured(system: str, config_file: Path) -> tuple[list[tuple[str, int]], dict[str, frozenset[str]]]:
    """The hosts of a configured system, and the keys that are accepted for each."""
    from moorage.bootstrap import read_config
    from moorage.core.model import SystemName

    config, _ = read_config(config_file)
    found = config.systems.get(SystemName(system))
    if found is None:
        raise click.UsageError(f"there is no system {system!r}; there are: {', '.join(sorted(config.systems))}")
    ways: list[Any] = [found.options, found.tunnel.options if found.tunnel else None]
    logins = [each for each in ways if hasattr(each, "nodes") and hasattr(each, "keys_of")]
    if not logins:
        raise click.UsageError(f"the system {system!r} is not reached by SSH")
    targets: dict[tuple[str, int], None] = {}
    pinned: dict[str, frozenset[str]] = {}
    for login in logins:
        hosts = (
            [(login.jump[0].host, login.jump[0].port)] if login.jump else [(node, login.port) for node in login.nodes]
        )
        for host, port in hosts:
            targets[host, port] = None
            pinned[host] = pinned.get(host, frozenset()) | {key for _, key in login.keys_of(host)}
    return list(targets), pinned


def _keys(host: str, port: int, pinned: frozenset[str]) -> Iterator[Shown]:
    """One key of each kind that the host has. Raises `OSError` if it cannot be asked."""
    from moorage.adapters.ssh.hosts import fingerprint

    for key_type in KEY_TYPES:
        key = _key(host, port, key_type)
        if key is not None:
            name, text = key
            yield Shown(host, port, name, text, fingerprint(text), text in pinned)


def _key(host: str, port: int, key_type: str) -> tuple[str, str] | None:
    """The key of one kind; `None` if the host has none. No login is tried."""
    from paramiko import SSHException, Transport
    from paramiko.ssh_exception import IncompatiblePeer

    with socket.create_connection((host, port), PATIENCE_S) as connection:
        transport = Transport(connection)
        try:
            transport.get_security_options().key_types = (key_type,)
            transport.start_client(timeout=PATIENCE_S)
            key = transport.get_remote_server_key()
            return key.get_name(), key.get_base64()
        except IncompatiblePeer:
            return None
        except (SSHException, EOFError) as error:
            raise OSError(f"no SSH server that we understand ({error})") from error
        finally:
            transport.close()
