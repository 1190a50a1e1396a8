"""What goes wrong on the way to a login node (F-T*), and what comes of it for a system behind SSH."""

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from tests.contract.system.ssh_world import TIMEOUTS, Login, simulated, slurm
from tests.contract.system.suite import SystemCase, a_spec, eventually, submitted

from moorage.adapters.ssh.hosts import JumpConfig
from moorage.adapters.ssh.slurm import SlurmSystem
from moorage.core.model import Alive, JobId, Owner, tag_of
from moorage.ports.errors import Overloaded, PortError, Refused, Unanswered, Unauthorised, Unreachable
from moorage.ports.system import Handle
from moorage.simulator.servers.ssh import Account, Limits, NodeConfig, Running, Timing, serve

QUICK = evolve(TIMEOUTS, call_s=1.5, submit_s=1.5, connect_s=1.5, auth_pause_s=0.8)
ALICE, BOB = Owner("alice"), Owner("bob")
Node = tuple[Running, Login]


@pytest.fixture
def node() -> Iterator[Node]:
    with simulated() as made:
        yield made


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


def wait_for_file(path: Path) -> None:
    until = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < until
        time.sleep(0.01)


async def ask(system: SlurmSystem, owner: Owner = ALICE) -> object:
    """Any question; the answer is that there is no such job."""
    case = SystemCase(system=system)
    return await system.find(tag_of(a_spec(case), 1), owner)


async def soon(system: SlurmSystem, owner: Owner = ALICE) -> object:
    """The same, until it is answered: pauses after failed connects are short, and pass."""
    for _ in range(300):
        try:
            return await ask(system, owner)
        except (Unreachable, Overloaded, Unanswered):
            await asyncio.sleep(0.02)
    return await ask(system, owner)


async def test_t1_a_login_node_that_refuses_is_passed_over(node: Node) -> None:
    """Both names lead here, and the first connection is refused: the next node of the list is asked."""
    node[0].faults.add({"fault": "F-T1", "times": 1})
    async with slurm(node[1], QUICK, hosts=("127.0.0.1", "localhost")) as system:
        assert await ask(system) == ()
    assert node[0].counted["connections"] == 2


async def test_t1_no_login_node_at_all_is_unreachable_and_soon_tried_again(node: Node) -> None:
    node[0].faults.add({"fault": "F-T1"})
    async with slurm(node[1], QUICK) as system:
        for _ in range(50):
            with pytest.raises((Unreachable, Overloaded)):
                await ask(system)
        assert node[0].counted["connections"] <= 3  # not one for each question
        node[0].faults.clear()
        assert await soon(system) == ()


async def test_t2_a_refused_key_is_tried_once_until_the_pause_is_over(node: Node) -> None:
    """Three sessions with a revoked key are one failed login, on whatever node (T24)."""
    node[0].faults.add({"fault": "F-T2", "times": 1})
    async with slurm(node[1], QUICK, hosts=("127.0.0.1", "localhost")) as system:
        for _ in range(3):
            with pytest.raises(Unauthorised):
                await ask(system)
        assert node[0].counted["refused logins"] == 1
        await asyncio.sleep(0.8)
        assert await ask(system) == ()


async def test_t2_one_persons_key_does_not_hurt_the_others(node: Node, tmp_path: Path) -> None:
    (tmp_path / "alice").write_bytes(node[1].key_file.read_bytes())
    make_key(tmp_path / "bob")
    async with slurm(node[1], QUICK, key_file=None, people_keys=str(tmp_path)) as system:
        with pytest.raises(Unauthorised):
            await ask(system, BOB)
        assert await ask(system, ALICE) == ()
        assert system.account(ALICE) == "alice"
        with pytest.raises(Unauthorised):
            await ask(system, BOB)
    assert node[0].counted["refused logins"] == 1


async def test_t3_another_host_key_is_refused_and_told(node: Node) -> None:
    node[0].faults.add({"fault": "F-T3"})
    async with slurm(node[1], QUICK) as system:
        with pytest.raises(Refused, match="host key"):
            await ask(system)
    assert "logins" not in node[0].counted


async def test_t3_a_changed_key_of_the_same_kind_is_refused(node: Node) -> None:
    with simulated() as (_, other):
        login = evolve(node[1], host_key=other.host_key)
    async with slurm(login, QUICK) as system:
        with pytest.raises(Refused, match="not configured"):
            await ask(system)
    assert "logins" not in node[0].counted
    assert "refused logins" not in node[0].counted  # no key of ours was offered to it


@pytest.mark.parametrize("variant", ["banner", "exchange"])
async def test_t4_a_dropped_handshake_asks_for_patience(node: Node, variant: str) -> None:
    node[0].faults.add({"fault": "F-T4", "variant": variant, "times": 1})
    async with slurm(node[1], QUICK) as system:
        with pytest.raises(Overloaded) as dropped:
            await ask(system)
        assert dropped.value.retry_after_s
        assert await soon(system) == ()


async def test_t4_many_questions_at_once_are_one_login(node: Node) -> None:
    async with slurm(node[1]) as system:
        assert await asyncio.gather(*(ask(system) for _ in range(40))) == [()] * 40
    assert node[0].counted["logins"] == 1


async def test_t4_many_people_at_once_stay_below_the_limit_of_startups(tmp_path: Path) -> None:
    """sshd drops every connection beyond four that are not logged in, and none of ours is dropped."""
    people = [Owner(f"user{number}") for number in range(24)]
    config = NodeConfig(
        accounts=tuple(Account(name) for name in people), timing=Timing.fast(), limits=Limits(startups=(5, 100, 6))
    )
    with simulated(config) as (running, login):
        for name in people:
            (tmp_path / name).write_bytes(login.key_file.read_bytes())
        async with slurm(login, key_file=None, people_keys=str(tmp_path)) as system:
            assert await asyncio.gather(*(ask(system, name) for name in people)) == [()] * 24
        assert running.counted["logins"] == 24
        assert "dropped connections" not in running.counted


async def test_t5_no_more_sessions_asks_for_patience(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        assert await ask(system) == ()
        node[0].faults.add({"fault": "F-T5", "variant": "sessions", "times": 1})
        with pytest.raises(Overloaded):
            await ask(system)
        assert await ask(system) == ()


async def test_t6_a_connection_on_which_nothing_moves_is_given_up_and_replaced(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        assert await ask(system) == ()
        node[0].faults.add({"fault": "F-T6", "after_bytes": 0, "times": 1})
        began = time.monotonic()
        with pytest.raises((Unanswered, Unreachable)):
            await ask(system)
        assert time.monotonic() - began < 2 * QUICK.call_s + 2
        node[0].faults.clear()
        assert await soon(system) == ()
        assert node[0].counted["logins"] == 2


async def test_t6_a_caller_that_loses_patience_first_leaves_the_dead_connection_too(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        assert await ask(system) == ()
        node[0].faults.add({"fault": "F-T6", "after_bytes": 0})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(system), 0.8 * QUICK.call_s * 0.9)
        node[0].faults.clear()
        assert await soon(system) == ()
        assert node[0].counted["logins"] == 2


@pytest.mark.parametrize("after", [0, 1, 4_000, 65_535])
async def test_t7_a_connection_cut_after_any_number_of_bytes(node: Node, after: int) -> None:
    """However much came, the question is not answered wrongly, and the next one is."""
    async with slurm(node[1], QUICK) as system:
        node[0].faults.add({"fault": "F-T7", "after_bytes": after, "times": 1})
        for _ in range(40):
            try:
                assert await ask(system) == ()
            except (Unanswered, Unreachable, Overloaded):
                break
        node[0].faults.clear()
        assert await soon(system) == ()


async def test_t7_a_submit_that_was_cut_off_is_found_once_or_not_at_all(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        case = SystemCase(system=system)
        for place in ("disconnect", "disconnect-after"):
            node[0].faults.add({"do": place, "on": ["sbatch"], "times": 1})
            spec = a_spec(case)
            with pytest.raises(Unanswered):
                await system.submit(tag_of(spec, 1), spec)
            found = await system.find(tag_of(spec, 1), ALICE)
            assert len(found) == (place == "disconnect-after")


async def test_t8_a_slow_line_is_bounded_by_the_deadline(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        assert await ask(system) == ()
        node[0].faults.add({"fault": "F-T8", "bytes_per_s": 20.0})
        began = time.monotonic()
        with pytest.raises(PortError):
            await ask(system)
        assert time.monotonic() - began < 2 * QUICK.call_s + 2


async def test_t9_connections_that_end_all_at_once_are_made_anew_once(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        assert await ask(system) == ()
        for rounds in range(1, 4):
            node[0].node.drop_connections()
            assert await asyncio.gather(*(soon(system) for _ in range(20))) == [()] * 20
            assert node[0].counted["logins"] == 1 + rounds


async def test_t16_a_key_that_expired_ends_nothing_that_is_connected(node: Node, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(node[1].key_file.read_bytes())
    async with slurm(evolve(node[1], key_file=key), QUICK) as system:
        assert await ask(system) == ()
        key.unlink()
        assert await ask(system) == ()
        node[0].node.drop_connections()
        with pytest.raises(PortError):
            await ask(system)
        for _ in range(100):
            try:
                await ask(system)
            except Unauthorised:
                break
            except PortError:
                await asyncio.sleep(0.02)
        else:
            pytest.fail("a missing key let somebody in")


async def test_t17_what_a_server_asks_for_by_itself_is_refused(node: Node) -> None:
    node[0].faults.add({"fault": "F-T17"})
    async with slurm(node[1], QUICK) as system:
        case = SystemCase(system=system)
        async with submitted(case) as job:
            said = await eventually(case, lambda: system.observe([job]), bool)
            assert isinstance(said, dict)
            assert isinstance(said[job.job], Alive)


# Other ways in --------------------------------------------------------------------------------------------------


async def test_a_login_through_a_jump_host(tmp_path: Path) -> None:
    """Each host shows its own key, and the login node is asked for by the host before it."""
    with simulated() as (gate, outside):
        public = outside.key_file.with_name(outside.key_file.name + ".pub")
        config = NodeConfig(accounts=(Account("bob"),), timing=Timing.fast())
        with serve(config, authorized_keys=public) as inside:
            jump = JumpConfig(host="127.0.0.1", port=gate.port, user="alice")
            keys = (f"127.0.0.1 {outside.host_key}", f"n1 {inside.host_key}")
            login = evolve(outside, port=inside.port, user="bob")
            async with slurm(login, QUICK, hosts=("n1",), jump=(jump,), host_keys=keys) as system:
                assert await ask(system) == ()
                assert inside.counted["squeue"] == 1
                assert gate.counted["forwards"] == 1
            # The other way round, no key fits.
            swapped = (f"n1 {outside.host_key}", f"127.0.0.1 {inside.host_key}")
            async with slurm(login, QUICK, hosts=("n1",), jump=(jump,), host_keys=swapped) as system:
                with pytest.raises(Refused):
                    await ask(system)


async def test_a_login_with_the_keys_of_an_agent(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keys, of which the second one fits."""
    make_key(tmp_path / "other")
    sock = str(tmp_path / "agent")
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", sock, stdout=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.to_thread(wait_for_file, Path(sock))
        monkeypatch.setenv("SSH_AUTH_SOCK", sock)
        async with slurm(node[1], QUICK, key_file=None, agent=True) as system:
            with pytest.raises(Unauthorised, match="no key"):
                await ask(system)
        for key in (tmp_path / "other", node[1].key_file):
            add = await asyncio.create_subprocess_exec("ssh-add", "-q", str(key))
            assert await add.wait() == 0
        async with slurm(node[1], QUICK, key_file=None, agent=True) as system:
            assert await ask(system) == ()
    finally:
        agent.terminate()
        await agent.wait()


# Cancelled callers, hostile names --------------------------------------------------------------------------------


async def test_a_caller_that_gives_up_frees_its_place(node: Node) -> None:
    """More hanging questions than there are channels, each given up: the next one is answered."""
    async with slurm(node[1]) as system:
        assert await ask(system) == ()
        node[0].faults.add({"do": "hang", "on": ["squeue"]})
        for _ in range(3):
            tasks = [asyncio.create_task(ask(system)) for _ in range(6)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        node[0].faults.clear()
        assert await asyncio.wait_for(ask(system), 5) == ()
        assert node[0].counted["logins"] == 1


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=x", "a b", "a'b", "a\nb", "$(id)", "a;b", "ålice", "a\u202eb", "", "a/../b", "a" * 65]
)
async def test_a_persons_name_that_is_no_account_is_refused_by_the_fields_name(
    node: Node, tmp_path: Path, name: str
) -> None:
    async with slurm(node[1], key_file=None, people_keys=str(tmp_path)) as system:
        with pytest.raises(Refused, match="owner"):
            system.account(Owner(name))
        with pytest.raises(Refused, match="owner"):
            await ask(system, Owner(name))
    assert "connections" not in node[0].counted


@pytest.mark.parametrize("name", ["", "../x", "/etc/passwd", "a/b", "a\nb", "-x", "a b", ".", ".."])
async def test_a_file_name_that_is_a_path_is_refused(node: Node, name: str) -> None:
    async with slurm(node[1]) as system:
        job = Handle(ALICE, tag_of(a_spec(SystemCase(system=system)), 1), JobId("1"))
        with pytest.raises(Refused, match="name"):
            await system.read(job, name)


@pytest.mark.parametrize("tag", ["", "../x", "m/../..", "M0", "m 0", "-rf", "m" * 65])
async def test_a_tag_that_is_none_leads_nowhere(node: Node, tag: Any) -> None:
    async with slurm(node[1]) as system:
        with pytest.raises(Refused, match="tag"):
            await system.remove(Handle(ALICE, tag, JobId("1")))


async def test_files_are_read_to_a_bound_and_links_are_not_followed(node: Node) -> None:
    async with slurm(node[1], QUICK) as system:
        case = SystemCase(system=system)
        async with submitted(case) as job:
            directory = node[0].homes / "alice" / ".moorage" / job.tag
            (directory / "big").write_bytes(b"x" * 200_000 + b"end")
            assert await system.read(job, "big", limit=10) == b"x" * 7 + b"end"
            (directory / "link").symlink_to("/etc/passwd")
            assert await system.read(job, "link") is None
            (directory / "folder").mkdir()
            assert await system.read(job, "folder") is None
            os.mkfifo(directory / "pipe")
            assert await system.read(job, "pipe") is None
