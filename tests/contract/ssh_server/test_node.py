"""The simulated login node as a server: sshd's limits, its command, its configuration; and nothing is left of it."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest

from moorage.simulator.servers.ssh import (
    Account,
    ConfigError,
    Faults,
    Limits,
    ManualClock,
    NodeConfig,
    Nodes,
    Rule,
    Running,
    Timing,
    catalogue,
    load,
    serve,
)
from moorage.simulator.servers.ssh.config import from_data
from moorage.simulator.servers.ssh.faults import load as load_faults
from moorage.simulator.servers.ssh.faults import rule_of, verdicts

ALICE = (Account("alice"),)


def login(running: Running, user: str = "alice", key: Any = None) -> Any:
    """An authenticated transport; the caller closes it."""
    transport = paramiko.Transport(socket.create_connection((running.host, running.port), timeout=5))
    try:
        transport.start_client(timeout=5)
        transport.auth_publickey(user, key or paramiko.PKey.from_path(str(running.key_file)))
    except BaseException:
        transport.close()
        raise
    return transport


def run(transport: Any, line: str) -> str:
    channel = transport.open_session(timeout=5)
    channel.settimeout(10)
    channel.exec_command(line)
    data = bytearray()
    while piece := channel.recv(65_536):
        data += piece
    return data.decode()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


# Limits ------------------------------------------------------------------------------------------------------


def test_connections_that_do_not_log_in_are_dropped_beyond_a_number() -> None:
    """MaxStartups with a rate of 100 %: the fourth is dropped; when the others go, there is room again."""
    limits = Limits(startups=(3, 100, 3), login_grace_s=30)
    with serve(NodeConfig(accounts=ALICE, limits=limits)) as running:
        waiting = [socket.create_connection((running.host, running.port), timeout=5) for _ in range(3)]
        for sock in waiting:
            assert sock.recv(4) == b"SSH-"
        with socket.create_connection((running.host, running.port), timeout=5) as fourth:
            assert fourth.recv(4) == b""
        for sock in waiting:
            sock.close()
        until(lambda: _logs_in(running))
        assert running.counted["dropped connections"] >= 1


def test_who_does_not_log_in_in_time_is_dropped() -> None:
    limits = Limits(login_grace_s=0.2)
    with (
        serve(NodeConfig(accounts=ALICE, limits=limits)) as running,
        socket.create_connection((running.host, running.port), timeout=5) as sock,
    ):
        while sock.recv(1000):
            pass


def test_an_address_that_failed_is_refused_for_a_while() -> None:
    """PerSourcePenalties: one bad key locks out everybody from there."""
    with serve(NodeConfig(accounts=ALICE, limits=Limits(penalty_s=0.5))) as running:
        with pytest.raises(paramiko.AuthenticationException):
            login(running, key=paramiko.ECDSAKey.generate())
        with pytest.raises((paramiko.SSHException, EOFError, OSError)):
            login(running)
        until(lambda: _logs_in(running))


def test_too_many_wrong_keys_end_the_connection() -> None:
    with serve(NodeConfig(accounts=ALICE, limits=Limits(auth_tries=2))) as running:
        transport = paramiko.Transport(socket.create_connection((running.host, running.port), timeout=5))
        try:
            transport.start_client(timeout=5)
            for _ in range(3):
                with pytest.raises((paramiko.SSHException, EOFError)):
                    transport.auth_publickey("alice", paramiko.ECDSAKey.generate())
            until(lambda: not transport.is_active())
        finally:
            transport.close()


def test_an_account_has_keys_of_its_own(tmp_path: Path) -> None:
    key = paramiko.ECDSAKey.generate()
    bob = Account("bob", keys=(f"{key.get_name()} {key.get_base64()} bob@laptop",))
    with serve(NodeConfig(accounts=(*ALICE, bob))) as running:
        login(running, "bob", key).close()
        with pytest.raises(paramiko.AuthenticationException):
            login(running, "alice", key)


def _logs_in(running: Running) -> bool:
    try:
        login(running).close()
    except (paramiko.SSHException, EOFError, OSError):
        return False
    return True


# Life and end --------------------------------------------------------------------------------------------------


def test_nothing_is_left() -> None:
    """Jobs with children in sessions of their own, commands under way, open connections: all gone, no thread stays."""
    before = set(threading.enumerate())
    with serve(NodeConfig(accounts=ALICE, timing=Timing.fast())) as running:
        directory, marker = running.directory, running.cluster.marker
        transport = login(running)
        job = '#!/bin/sh\\nsetsid sleep 1000 &\\ntrap \\"\\" TERM\\nwhile :; do sleep 1; done'
        run(transport, f'printf "{job}" > job.sh; for i in 1 2 3; do sbatch job.sh; done')
        busy = transport.open_session()
        busy.exec_command("setsid sleep 1000 & sleep 1000")
        until(lambda: len(_carrying(marker)) >= 8)
    assert _carrying(marker) == []
    assert not directory.exists()
    transport.close()
    until(lambda: not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("sim-ssh")])


def test_a_cancelled_job_takes_with_it_what_left_its_session() -> None:
    with serve(NodeConfig(accounts=ALICE, timing=Timing.fast())) as running:
        transport = login(running)
        run(transport, "sbatch --wrap 'setsid sleep 1000 & sleep 1000'")
        mark = f"{running.cluster.marker}-1-"
        until(lambda: len(_carrying(mark)) >= 3)
        run(transport, "scancel 1")
        until(lambda: _carrying(mark) == [])
        transport.close()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", ["scancel", "close"])
def test_a_job_that_hides_its_environment_ends(
    tmp_path: Path, keep: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the launcher does, in the place of the script."""
    hides = "import ctypes, os, time; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); print(os.getpid(), flush=True)"
    script = f"#!/bin/sh\nexec {sys.executable} -c '{hides}; time.sleep(1000)'\n"
    with serve(NodeConfig(accounts=ALICE, timing=Timing.fast(), keep=keep), directory=tmp_path) as running:
        (tmp_path / "homes" / "alice" / "job.sh").write_text(script)
        transport = login(running)
        run(transport, "sbatch --output=out job.sh")
        out = tmp_path / "homes" / "alice" / "out"
        until(lambda: out.exists() and out.read_text().endswith("\n"))
        pid = int(out.read_text())
        if os.geteuid() == 0:
            _hide_from_root(Path(f"/proc/{pid}/environ"), monkeypatch)
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
        if how == "scancel":
            run(transport, "scancel 1")
            until(lambda: run(transport, "squeue -h") == "")
        else:
            transport.close()
    until(lambda: not Path(f"/proc/{pid}").exists())
    transport.close()


def _hide_from_root(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so what anybody else is told is told in the kernel's place."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path == file:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)


def test_virtual_jobs_pass_time_that_a_test_moves() -> None:
    config = NodeConfig(accounts=ALICE, nodes=Nodes(1, 1), execute="virtual", timing=Timing.real())
    with serve(config, clock=ManualClock()) as running:
        transport = login(running)
        for _ in range(2):
            run(transport, "sbatch --export=SIM_RUNTIME_MS=3600000 --time=2:00:00 --wrap=true")
        running.advance(3.5)
        assert run(transport, "squeue -h -S i -o '%i %T'") == "1 CONFIGURING\n2 PENDING\n"
        running.advance(3600)
        running.advance(10)
        assert run(transport, "squeue -h -t all -S i -o '%i %t'") == "1 CD\n2 R\n"
        transport.close()


def test_scripts_find_the_commands_on_their_path() -> None:
    with serve(NodeConfig(accounts=ALICE, timing=Timing.fast())) as running:
        transport = login(running)
        run(transport, "sbatch --output=out --wrap 'squeue -h -o %i; echo $SLURM_JOB_ID $SLURMD_NODENAME'")
        out = running.homes / "alice" / "out"
        until(lambda: out.exists() and out.read_text().count("\n") == 2)
        assert out.read_text() == "1\n1 n1\n"
        transport.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_tells_its_address_first_and_ends_when_told(tmp_path: Path, number: int) -> None:
    program = (
        "from pathlib import Path; from moorage.simulator.servers.ssh import main_serve;"
        f"main_serve(directory=Path({str(tmp_path / 'node')!r}), config=Path({str(tmp_path / 'c.yaml')!r}))"
    )
    (tmp_path / "c.yaml").write_text("accounts: [{name: alice}]\ntiming: fast\n")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        while not lines or lines[-1] != "ready\n":
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended before it was ready"
        told = dict(line.rstrip("\n").split(": ", 1) for line in lines[1:-1])
        assert lines[0].startswith("ssh://127.0.0.1:")
        port = int(lines[0].rpartition(":")[2])
        assert told["accounts"] == "alice"
        assert told["directory"] == str(tmp_path / "node")
        known = tmp_path / "known_hosts"
        known.write_text(f"[127.0.0.1]:{port} {told['host-key']}\n")
        options = ["-F", "none", "-o", f"UserKnownHostsFile={known}", "-i", told["key"], "-p", str(port)]
        said = subprocess.run(["ssh", *options, "alice@127.0.0.1", "sinfo -h -o %R"], capture_output=True, text=True)
        assert said.stdout == "batch\ndevel\n", said.stderr
        process.send_signal(number)
        assert process.wait(10) == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    # A directory that was asked for stays, with the same keys for the next time.
    assert (tmp_path / "node" / "host_key").exists()


def test_a_server_that_is_started_again_keeps_its_keys(tmp_path: Path) -> None:
    lines = []
    for _ in range(2):
        with serve(NodeConfig(accounts=ALICE), directory=tmp_path) as running:
            login(running).close()
            lines.append((running.host_key, (tmp_path / "id_ed25519").read_bytes()))
    assert lines[0] == lines[1]


def test_a_port_that_is_taken_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError),
        serve(NodeConfig(accounts=ALICE), port=taken.getsockname()[1]),
    ):
        pass


# Configuration -------------------------------------------------------------------------------------------------


def test_a_configuration_is_read_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "accounts: [{name: alice, accounts: [a, b]}]\nnodes: {count: 3, cores: 8}\ntiming: real\n"
        "partitions: [{name: batch, preempt: REQUEUE}]\nlimits: {startups: [1, 2, 3]}\n"
    )
    config = load(tmp_path / "c.yaml")
    assert tuple(config.accounts[0].accounts) == ("a", "b")
    assert (config.nodes.count, config.timing, config.limits.startups) == (3, Timing.real(), (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("nodes: {count: 0}", "nodes"),
        ("unknown: 1", "unknown"),
        ("execute: maybe", "execute"),
        ("accounts: [{name: '-x'}]", "accounts"),
        ("accounts: 3", "accounts"),
        ("[1, 2]", "mapping"),
        ("a: [", "c.yaml"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=place):
        load(tmp_path / "c.yaml")


def test_every_row_of_the_catalogue_is_a_rule() -> None:
    for fault, variants in catalogue.items():
        for variant in variants:
            assert rule_of({"fault": fault, "variant": variant}).do in verdicts


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"fault": "F-X1"}, "fault"),
        ({"fault": "F-S8", "variant": "nope"}, "variant"),
        ({"do": "explode"}, "do"),
        ({"do": "fail", "on": ["nowhere"]}, "on"),
        ({"do": "fail", "probability": 2}, "probability"),
        ({"do": "fail", "colour": "red"}, "colour"),
    ],
)
def test_a_mistake_in_a_rule_is_named(data: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        rule_of(data)


def test_rules_are_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("faults: [{fault: F-S8, times: 1}]\nseed: 7\n")
    rules, seed = load_faults(tmp_path / "f.yaml")
    assert ([rule.fault for rule in rules], seed) == (["F-S8"], 7)
    for wrong in ("[]", "faults: 3", "faults: [3]", "{}", "a: ["):
        (tmp_path / "f.yaml").write_text(wrong)
        with pytest.raises(ConfigError):
            load_faults(tmp_path / "f.yaml")


def test_chance_is_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[bool]:
        faults = Faults(seed)
        faults.add(Rule("fail", ["squeue"], probability=0.5))
        return [bool(faults.draw("squeue")) for _ in range(50)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_rule_skips_and_stops_as_it_says() -> None:
    faults = Faults()
    faults.add({"do": "fail", "on": ["squeue"], "skip": 2, "times": 2})
    assert [bool(faults.draw("squeue")) for _ in range(6)] == [False, False, True, True, False, False]
    assert not faults.draw("sbatch")
    assert faults.fired["fail"] == 2


def test_unknown_timing_is_refused() -> None:
    with pytest.raises(ConfigError):
        from_data({"timing": "slow"})


def _carrying(marker: str) -> list[int]:
    """Live processes with the mark of a server in their environment."""
    wanted, found = f"MOORAGE_SIM_NODE={marker}".encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if wanted in Path(f"/proc/{name}/environ").read_bytes():
                    state = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[0]
                    found += [int(name)] if state not in (b"Z", b"X") else []
            except OSError:
                continue
    return found
