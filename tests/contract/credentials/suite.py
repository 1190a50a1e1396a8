"""
What every `Credentials` with a `Vault` does: functions that take `make`, which opens the same vault each time.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from moorage.core.model import Instant, Owner, SessionId, SessionKey, SessionSpec, SystemName
from moorage.core.secret import Secret
from moorage.ports.credentials import Credentials, Vault


class Both(Credentials, Vault, Protocol):
    """One object that answers both ports."""


Make = Callable[[], Both]
Claim = Callable[[Make], Awaitable[None]]


def a_spec(letter: str = "a", key: SessionKey | None = None) -> SessionSpec:
    key = key or SessionKey("hub", Owner("ada"), "lab")
    return SessionSpec(SessionId(letter * 26), key, SystemName("jureca"), Instant(0), seed=0)


def env(**values: str) -> dict[str, Secret]:
    return {name: Secret(value) for name, value in values.items()}


def shown(environment: object) -> dict[str, str]:
    assert isinstance(environment, dict)
    return {name: value.reveal() for name, value in environment.items()}


async def a_gate_secret_is_made_once_per_attempt(make: Make) -> None:
    vault, spec = make(), a_spec()
    with pytest.raises(KeyError):
        await vault.gate(spec.id, 1)
    await vault.issue(spec, 1)
    first = await vault.gate(spec.id, 1)
    assert len(bytes.fromhex(first.reveal())) == 32
    await vault.issue(spec, 1)
    await vault.issue(spec, 2)
    assert (await make().gate(spec.id, 1)).reveal() == first.reveal()
    assert (await vault.gate(spec.id, 2)).reveal() != first.reveal()
    with pytest.raises(KeyError):
        await vault.gate(a_spec("b").id, 1)


async def what_was_kept_is_the_sessions(make: Make) -> None:
    vault, spec = make(), a_spec()
    await vault.keep(spec.key, env(TOKEN="old"))
    await vault.keep(spec.key, env(TOKEN="tök\n", OTHER=""))
    assert await vault.environment(spec.id) == {}
    await vault.issue(spec, 1)
    assert shown(await make().environment(spec.id)) == {"TOKEN": "tök\n", "OTHER": ""}


async def a_later_start_has_its_own(make: Make) -> None:
    """The first session is still stopping when the second one is asked for, and with the same content."""
    vault, first, second = make(), a_spec("a"), a_spec("b")
    await vault.keep(first.key, env(TOKEN="same"))
    await vault.issue(first, 1)
    await vault.keep(second.key, env(TOKEN="same"))
    await vault.issue(first, 2)
    await vault.revoke(first.id)
    await vault.issue(second, 1)
    assert shown(await vault.environment(second.id)) == {"TOKEN": "same"}


async def a_running_session_keeps_what_it_started_with(make: Make) -> None:
    vault, spec = make(), a_spec()
    await vault.keep(spec.key, env(TOKEN="one"))
    await vault.issue(spec, 1)
    await vault.keep(spec.key, env(TOKEN="two"))
    await vault.issue(spec, 2)
    assert shown(await vault.environment(spec.id)) == {"TOKEN": "one"}


async def after_revoke_nothing_is_left(make: Make) -> None:
    vault, spec, other = make(), a_spec("a"), a_spec("b", SessionKey("hub", Owner("bob")))
    for each in (spec, other):
        await vault.keep(each.key, env(TOKEN="t"))
        await vault.issue(each, 1)
    await vault.issue(spec, 2)
    await vault.revoke(spec.id)
    await vault.revoke(spec.id)
    for attempt in (1, 2):
        with pytest.raises(KeyError):
            await make().gate(spec.id, attempt)
    assert await vault.environment(spec.id) == {}
    await vault.issue(a_spec("c"), 1)
    assert await vault.environment(a_spec("c").id) == {}
    assert shown(await vault.environment(other.id)) == {"TOKEN": "t"}
    assert await vault.gate(other.id, 1)


async def keys_that_look_alike_are_apart(make: Make) -> None:
    vault = make()
    parts = ["", "a", "A", "a/b", "..", "/etc/passwd", "a\x00", "ä", "a\u0308", "\ud800", "x" * 5000]
    keys = [SessionKey("h", Owner(part), "") for part in parts] + [SessionKey("h", Owner(""), part) for part in parts]
    keys = list(dict.fromkeys(keys))
    letters = "abcdefghijklmnopqrstuvwxyz"
    for number, key in enumerate(keys):
        await vault.keep(key, env(N=str(number)))
    for number, key in enumerate(keys):
        spec = a_spec(letters[number], key)
        await vault.issue(spec, 1)
        assert shown(await vault.environment(spec.id)) == {"N": str(number)}


CLAIMS: tuple[Claim, ...] = (
    a_gate_secret_is_made_once_per_attempt,
    what_was_kept_is_the_sessions,
    a_later_start_has_its_own,
    a_running_session_keeps_what_it_started_with,
    after_revoke_nothing_is_left,
    keys_that_look_alike_are_apart,
)
