"""Tokens are fetched when they are needed, renewed early, and never sent after their end."""

import asyncio
from pathlib import Path

import attrs
import pytest

from moorage.adapters.unicore.config import BasicLogin, OwnerToken, UnicoreConfig
from moorage.adapters.unicore.rights import Rights
from moorage.config.fields import SecretRef
from moorage.core.model import Instant, Owner, SessionSpec, SystemName
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unauthorised, Unreachable

ALICE, BOB = Owner("alice"), Owner("bob")
URL = "https://gateway.example.org/S/rest/core"


@attrs.define
class Clock:
    at: int = 1_000_000

    def now(self) -> Instant:
        return Instant(self.at)

    async def sleep_until(self, at: Instant) -> None:
        raise AssertionError(at)


@attrs.define
class Issuer:
    """Numbers its tokens; each lives for `life_ms`."""

    clock: Clock
    life_ms: int | None = 300_000
    asked: int = 0
    raises: Exception | None = None
    text: str | None = None

    async def token(self, owner: Owner, system: SystemName) -> Token:
        self.asked += 1
        await asyncio.sleep(0)
        if self.raises:
            raise self.raises
        expires = None if self.life_ms is None else Instant(self.clock.at + self.life_ms)
        return Token(Secret(f"{owner}-{self.asked}" if self.text is None else self.text), expires)

    async def issue(self, spec: SessionSpec, attempt: int) -> None:
        raise AssertionError(spec)

    async def revoke(self, session: object) -> None:
        raise AssertionError(session)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def issuer(clock: Clock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
def rights(clock: Clock, issuer: Issuer) -> Rights:
    return Rights(SystemName("s"), UnicoreConfig(url=URL, credentials=OwnerToken()), issuer, clock)


async def test_a_token_serves_for_two_thirds_of_its_life(rights: Rights, issuer: Issuer, clock: Clock) -> None:
    assert (await rights.header(ALICE)).reveal() == "Bearer alice-1"
    clock.at += 199_000
    assert (await rights.header(ALICE)).reveal() == "Bearer alice-1"
    clock.at += 1_000
    assert (await rights.header(ALICE)).reveal() == "Bearer alice-2"
    assert (await rights.header(BOB)).reveal() == "Bearer bob-3"


async def test_a_token_without_end_is_fetched_once(rights: Rights, issuer: Issuer, clock: Clock) -> None:
    issuer.life_ms = None
    await rights.header(ALICE)
    clock.at += 10**12
    await rights.header(ALICE)
    assert issuer.asked == 1


def test_people_are_told_whose_credentials_a_site_was_shown(rights: Rights) -> None:
    assert rights.shown(ALICE) == "with the token of alice"
    login = BasicLogin(kind="basic", username="hub", password=SecretRef(file="/run/secrets/site"))
    assert attrs.evolve(rights, config=UnicoreConfig(url=URL, credentials=login)).shown(ALICE) == "as hub"


async def test_many_calls_at_once_fetch_one_token(rights: Rights, issuer: Issuer) -> None:
    said = await asyncio.gather(*(rights.header(ALICE) for _ in range(50)))
    assert {each.reveal() for each in said} == {"Bearer alice-1"}


@pytest.mark.parametrize("error", [Unauthorised("log in again"), Unreachable("away")])
async def test_the_old_token_serves_to_its_end_while_renewing_fails(
    rights: Rights, issuer: Issuer, clock: Clock, error: Exception
) -> None:
    await rights.header(ALICE)
    issuer.raises = error
    clock.at += 299_000
    assert (await rights.header(ALICE)).reveal() == "Bearer alice-1"
    clock.at += 1_000
    with pytest.raises(type(error)):
        await rights.header(ALICE)


async def test_an_expired_token_is_never_sent(rights: Rights, issuer: Issuer) -> None:
    issuer.life_ms = 0
    with pytest.raises(Unauthorised, match="expired"):
        await rights.header(ALICE)


@pytest.mark.parametrize("text", ["", "a b", "a\r\nX: y", "ä", "x" * 20_000])
async def test_what_cannot_stand_in_a_header_is_not_sent(rights: Rights, issuer: Issuer, text: str) -> None:
    issuer.text = text
    with pytest.raises(Unauthorised) as caught:
        await rights.header(ALICE)
    assert not text or text not in caught.value.note


async def test_a_refused_token_is_replaced_once(rights: Rights, issuer: Issuer) -> None:
    refused = await rights.header(ALICE)
    assert await rights.renew(ALICE, refused)
    assert (await rights.header(ALICE)).reveal() == "Bearer alice-2"
    issuer.raises = Unauthorised("log in again")
    assert not await rights.renew(ALICE, await rights.header(ALICE))


async def test_a_newer_token_is_not_thrown_away_for_an_older_refusal(rights: Rights, issuer: Issuer) -> None:
    refused = await rights.header(ALICE)
    await rights.renew(ALICE, refused)
    assert await rights.renew(ALICE, refused)
    assert issuer.asked == 2


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (SecretRef(env="NO_SUCH_VARIABLE"), "variable NO_SUCH_VARIABLE is not set"),
        (SecretRef(file="/no/such/file"), "from file /no/such/file: No such file or directory"),
    ],
)
async def test_a_password_that_is_not_there_is_said_in_words(
    clock: Clock, issuer: Issuer, reference: SecretRef, said: str
) -> None:
    login = BasicLogin(kind="basic", username="hub", password=reference)
    rights = Rights(SystemName("s"), UnicoreConfig(url=URL, credentials=login), issuer, clock)
    with pytest.raises(Unreachable, match=said):
        await rights.header(ALICE)


async def test_a_password_is_read_when_it_is_needed_and_again_when_it_is_refused(
    clock: Clock, issuer: Issuer, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    login = BasicLogin(kind="basic", username="müller", password=SecretRef(file=str(file)))
    rights = Rights(SystemName("s"), UnicoreConfig(url=URL, credentials=login), issuer, clock)
    with pytest.raises(Unreachable, match="password"):
        await rights.header(ALICE)
    file.write_text("old\n")
    old = await rights.header(ALICE)
    file.write_text("new\n")
    assert await rights.header(ALICE) == old
    assert await rights.renew(ALICE, old)
    assert not await rights.renew(ALICE, await rights.header(ALICE))
    assert issuer.asked == 0


def test_preferences_by_owner(clock: Clock, issuer: Issuer) -> None:
    config = UnicoreConfig(url=URL, accounts={"alice": "proj1"}, role="user", group="hpc")
    rights = Rights(SystemName("s"), config, issuer, clock)
    assert rights.preferences(ALICE) == "uid:proj1,role:user,group:hpc"
    assert rights.preferences(BOB) == "role:user,group:hpc"
    assert Rights(SystemName("s"), UnicoreConfig(url=URL), issuer, clock).preferences(BOB) is None
