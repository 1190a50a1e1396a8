"""The suite over the vault of one machine; its files; and where its tokens come from."""

import asyncio
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.contract.credentials.suite import CLAIMS, Claim, Make, a_spec, env, shown

from moorage.adapters.local import tokens
from moorage.adapters.local.vault import LocalVault
from moorage.core.model import Owner, SessionId, SystemName
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unauthorised, Unreachable

ADA, JURECA = Owner("ada"), SystemName("jureca")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vault"


@pytest.fixture
def make(folder: Path) -> Iterator[Make]:
    opened: list[LocalVault] = []

    def make() -> LocalVault:
        opened.append(LocalVault(folder))
        return opened[-1]

    yield make
    for vault in opened:
        vault.close()


def below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
async def test_vault(claim: Claim, make: Make) -> None:
    await claim(make)


async def test_only_we_can_read_it(make: Make, folder: Path) -> None:
    old = os.umask(0)
    try:
        vault, spec = make(), a_spec()
        await vault.keep(spec.key, env(TOKEN="t"))
        await vault.issue(spec, 1)
    finally:
        os.umask(old)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (folder, *below(folder))}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert sum(path.is_file() for path in modes) == 3


async def test_after_revoke_no_file_is_left(make: Make, folder: Path) -> None:
    vault, spec = make(), a_spec()
    await vault.keep(spec.key, env(TOKEN="t"))
    await vault.issue(spec, 1)
    await vault.issue(spec, 2)
    await vault.revoke(spec.id)
    assert below(folder) == []


async def test_links_lead_nowhere(make: Make, folder: Path, tmp_path: Path) -> None:
    """Somebody put links where our files and directories go: nothing is read or written through them."""
    vault, spec = make(), a_spec()
    outside = tmp_path / "outside"
    outside.mkdir(0o700)
    (outside / "gate-1").write_text("0" * 64)
    (outside / "gate-1").chmod(0o600)
    (folder / f"session-{spec.id}").symlink_to(outside)
    for call in (vault.issue(spec, 2), vault.gate(spec.id, 1), vault.environment(spec.id), vault.revoke(spec.id)):
        with pytest.raises(Unreachable):
            await call
    assert [path.name for path in outside.iterdir()] == ["gate-1"]
    (folder / f"session-{spec.id}").unlink()
    await vault.issue(spec, 2)
    (folder / f"session-{spec.id}" / "gate-1").symlink_to(outside / "gate-1")
    with pytest.raises(Unreachable):
        await vault.gate(spec.id, 1)
    await vault.revoke(spec.id)
    assert (outside / "gate-1").read_text() == "0" * 64


async def test_a_file_that_others_could_read_or_that_is_damaged_is_not_believed(make: Make, folder: Path) -> None:
    vault, spec = make(), a_spec()
    await vault.keep(spec.key, env(TOKEN="t"))
    await vault.issue(spec, 1)
    gate, lab = (folder / f"session-{spec.id}" / name for name in ("gate-1", "lab"))
    gate.chmod(0o644)
    with pytest.raises(Unreachable):
        await vault.gate(spec.id, 1)
    gate.chmod(0o600)
    gate.write_text("0" * 63)
    with pytest.raises(Unreachable, match="damaged"):
        await vault.gate(spec.id, 1)
    lab.write_text("[")
    with pytest.raises(Unreachable, match="damaged"):
        await vault.environment(spec.id)
    await vault.revoke(spec.id)
    assert not gate.parent.exists()


def test_an_unsafe_directory_is_refused(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Unreachable, match="written by others"):
        LocalVault(folder)


async def test_an_unfinished_file_is_removed_at_the_next_start(make: Make, folder: Path) -> None:
    vault, spec = make(), a_spec()
    await vault.issue(spec, 1)
    leftover = folder / f"session-{spec.id}" / ".new-0123"
    leftover.write_text("secret")
    make()
    assert not leftover.exists()
    assert await vault.gate(spec.id, 1)


async def test_a_full_disk_is_unreachable_and_leaves_nothing_half_done(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, spec = make(), a_spec()
    real = os.fsync

    def full(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Unreachable, match="No space"):
        await vault.issue(spec, 1)
    assert [path for path in below(folder) if path.is_file()] == []
    monkeypatch.undo()
    await vault.issue(spec, 1)
    assert await vault.gate(spec.id, 1)


@pytest.mark.parametrize("name", ["", "../x", "a" * 25, "A" * 26, "a" * 25 + "/"])
async def test_no_path_can_be_a_session(make: Make, name: str) -> None:
    with pytest.raises(ValueError, match="no session id"):
        await make().gate(SessionId(name), 1)


async def test_secrets_are_stars_in_what_people_see(make: Make) -> None:
    vault, spec = make(), a_spec()
    await vault.keep(spec.key, env(TOKEN="canary"))
    await vault.issue(spec, 1)
    assert "canary" not in repr(await vault.environment(spec.id))


async def test_many_at_once(make: Make) -> None:
    vault, specs = make(), [a_spec(letter) for letter in "abcdefghij"]
    await asyncio.gather(*(vault.issue(spec, attempt) for spec in specs for attempt in (1, 2, 1, 2)))
    gates = [(await vault.gate(spec.id, attempt)).reveal() for spec in specs for attempt in (1, 2)]
    assert len(set(gates)) == 20


async def test_two_people_wait_for_the_disk_together(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of starts would otherwise wait for it one after the other."""
    vault, both, sync = make(), threading.Barrier(2, timeout=20), os.fsync

    def slow(descriptor: int) -> None:
        both.wait()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    await asyncio.gather(*(vault.issue(a_spec(letter), 1) for letter in "ab"))


async def test_it_is_closed_when_nothing_is_under_way_any_more(
    make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, begun, free, sync = make(), threading.Event(), threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        begun.set()
        assert free.wait(20)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    keeping = asyncio.ensure_future(vault.keep(a_spec().key, env(TOKEN="t")))
    await asyncio.to_thread(begun.wait, 20)
    closing = asyncio.ensure_future(asyncio.to_thread(vault.close))
    done, _ = await asyncio.wait([closing], timeout=0.1)
    assert not done
    with pytest.raises(Unreachable, match="closed"):
        await vault.keep(a_spec("b").key, env(TOKEN="t"))
    free.set()
    await asyncio.gather(keeping, closing)
    assert [path.name.partition("-")[0] for path in below(folder)] == ["kept"]


# Tokens


async def test_tokens_come_from_the_source_of_the_system(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from file\n")
    asked: list[Owner] = []

    async def per_person(owner: Owner) -> Token:
        asked.append(owner)
        return Token(Secret(f"of {owner}"))

    sources = {
        JURECA: per_person,
        SystemName("file"): tokens.from_file(file),
        SystemName("fixed"): tokens.fixed(Secret("fixed")),
    }
    vault = LocalVault(folder, sources)
    assert shown({"t": (await vault.token(ADA, JURECA)).secret}) == {"t": "of ada"}
    assert asked == [ADA]
    assert (await vault.token(ADA, SystemName("fixed"))).secret.reveal() == "fixed"
    assert (await vault.token(ADA, SystemName("file"))).secret.reveal() == "from file"
    file.write_text("renewed")
    assert (await vault.token(ADA, SystemName("file"))).secret.reveal() == "renewed"
    file.write_text(" \n")
    with pytest.raises(Unauthorised):
        await vault.token(ADA, SystemName("file"))
    file.unlink()
    with pytest.raises(Unauthorised):
        await vault.token(ADA, SystemName("file"))
    with pytest.raises(Unauthorised, match="elsewhere"):
        await vault.token(ADA, SystemName("elsewhere"))
    vault.close()
