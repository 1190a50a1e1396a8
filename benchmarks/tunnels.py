"""
The way home, measured beside what it replaces: one `ssh -N -L` for each session (P1), and a master with `ssh -O check`
and `ssh -O forward` for each (JSC). All ways lead through the same real sshd, in one run.

    python benchmarks/tunnels.py [--sessions 200] [--idle 1000] [--streams 500] [--jobs 1000]

Ours is the whole path: the relay as a process behind its control socket, OpenSSH's master, the gate, the lab. Where
hundreds of sessions are needed, one process holds their gates (the launcher's own code, a port and a key for each)
before one lab, because as many launchers would measure this machine's memory; everything else goes through a real
launcher. Status of Slurm jobs is `benchmarks/slurm.py`. It takes four minutes, on a busy machine seven. The last line
is JSON; a ratio above 1 means that ours is faster, except for `new_connection_vs_p1_20ms`, where below 1 does.
"""

import argparse
import asyncio
import collections
import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src"), str(ROOT / "benchmarks")]

from attrs import evolve  # noqa: E402
from tests.servers.sshd import Sshd, server  # noqa: E402
from tests.unit.launcher.job import Job  # noqa: E402

from moorage.adapters.ssh.openssh import OpensshDialer  # noqa: E402
from moorage.adapters.ssh.plugin import OpensshConfig  # noqa: E402
from moorage.core.model import (  # noqa: E402
    Endpoint,
    Instant,
    JobId,
    Owner,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
    tag_of,
)
from moorage.core.secret import Secret  # noqa: E402
from moorage.core.timeouts import Timeouts  # noqa: E402
from moorage.launcher import source  # noqa: E402
from moorage.relay.client import RelayTunnels  # noqa: E402
from moorage.relay.process import directory_of, main  # noqa: E402
from moorage.relay.server import Settings  # noqa: E402

MIB = 1 << 20
ZEROS = bytes(MIB)
NONCE = "0" * 32
JOB = JobId("1")
AT_ONCE = 8
HELLO = b"GET /api HTTP/1.1\r\nHost: lab\r\n\r\n"


# What runs in other processes --------------------------------------------------------------------------------


def key_of(session: str) -> str:
    """The gate secret of a session of this benchmark."""
    return hashlib.sha256(session.encode()).hexdigest()


class Keys:
    """A vault whose secrets follow from the sessions' names, except for those of real jobs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        if self._file.exists() and session in (kept := json.loads(self._file.read_text())):
            return Secret(kept[session])
        return Secret(key_of(session))


def be_relay(state: Path) -> None:
    """The relay of this benchmark; `site.json` in the state directory says which systems there are."""

    async def run() -> None:
        dialers: dict[SystemName, Any] = {}
        for name, site in json.loads((state / "site.json").read_text()).items():
            timeouts = Timeouts()
            kind = site.pop("kind")
            site = {key: tuple(value) if isinstance(value, list) else value for key, value in site.items()}
            directory = state / name
            directory.mkdir(mode=0o700, exist_ok=True)
            if kind == "openssh":
                dialers[SystemName(name)] = OpensshDialer(
                    SystemName(name), OpensshConfig(**site), directory, timeouts, 1
                )
            else:
                from moorage.adapters.ssh.paramiko_dialer import ParamikoDialer
                from moorage.adapters.ssh.plugin import ParamikoConfig

                dialers[SystemName(name)] = ParamikoDialer(SystemName(name), ParamikoConfig(**site), timeouts, 1)
        await main(state, dialers, Keys(state / "keys.json"), Settings())

    asyncio.run(run())


def be_lab(where: str) -> None:
    """A lab in threads: small answers on kept connections, bulk at `/bytes/N`, an upgraded echo at `/socket`."""
    if where.startswith("/"):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
    else:
        listener = socket.create_server(("127.0.0.1", int(where)))
    listener.listen(1024)
    threading.stack_size(256 * 1024)
    free = threading.Semaphore(0)

    def work() -> None:
        while True:
            free.release()
            connection, _ = listener.accept()
            free.acquire()
            if not free.acquire(blocking=False):  # a thread for the next one, made when it is needed and then kept
                threading.Thread(target=work, daemon=True).start()
            else:
                free.release()
            _serve(connection)

    work()


def _serve(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        if connection.family == socket.AF_INET:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = connection.recv(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            if path == b"/socket":
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
                while more := connection.recv(65536):
                    connection.sendall(more)
                return
            if path.startswith(b"/bytes/"):
                left = int(path[7:])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % left)
                while left:
                    connection.sendall(ZEROS[: min(left, MIB)])
                    left -= min(left, MIB)
            else:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def be_gates(count: int, lab: str) -> None:
    """
    Many gates in one process, by the launcher's own code; prints their ports.

    A plain loop over blocking sockets: what goes through is small. On a site these are as many processes on as many
    nodes, so their processor time is to be as little of this machine's as can be.
    """
    spec = importlib.util.spec_from_loader("moorage_launcher", None)
    assert spec is not None
    launcher: Any = importlib.util.module_from_spec(spec)
    exec(compile(source(), "moorage_launcher.py", "exec"), launcher.__dict__)

    polled = select.epoll()
    todo: dict[int, Callable[[], None]] = {}
    there: dict[int, socket.socket] = {}

    def watch(one: socket.socket, do: Callable[[], None]) -> None:
        if one.fileno() not in todo:
            polled.register(one, select.EPOLLIN)
        todo[one.fileno()], there[one.fileno()] = do, one

    def end(*ends: socket.socket) -> None:
        for one in ends:
            if one.fileno() >= 0:
                del todo[one.fileno()], there[one.fileno()]
                one.close()

    def accept(listener: socket.socket, gate: Any) -> None:
        near, _ = listener.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch(near, lambda: knock(near, gate))

    def knock(near: socket.socket, gate: Any) -> None:
        line, _, early = near.recv(launcher.CHUNK).partition(b"\n")
        request = gate.judge(line)
        if request is None:
            return end(near)
        near.sendall(gate.answer(request, "ok", lab="serving", http=200, left=None, code=None))
        if request.purpose != "stream":
            return end(near)
        if early:
            return reach(near, early)
        return watch(near, lambda: reach(near, near.recv(launcher.CHUNK)))

    def reach(near: socket.socket, first: bytes) -> None:
        if not first:
            return end(near)
        far = socket.socket(socket.AF_UNIX)
        far.connect(lab)
        far.sendall(first)
        watch(near, lambda: move(near, far))
        watch(far, lambda: move(far, near))

    def move(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if data := source.recv(launcher.CHUNK):
                sink.sendall(data)
                return
        end(source, sink)  # nobody here sends after the other has ended

    ports = []
    for number in range(count):
        about = spec_of(number)
        gate = launcher.Gate(bytes.fromhex(key_of(about.id)), tag_of(about, 1), NONCE)
        listener = socket.create_server(("127.0.0.1", 0))
        watch(listener, functools.partial(accept, listener, gate))
        ports.append(listener.getsockname()[1])
    print(json.dumps(ports), flush=True)
    while True:
        for descriptor, _ in polled.poll():
            if descriptor in todo:
                try:
                    todo[descriptor]()
                except OSError:
                    end(there[descriptor])


class Later(asyncio.Protocol):
    """One end of a line: what it hears is said at the other end `delay_s` later. Bounded by what may be under way."""

    MOST = 32 * MIB

    def __init__(self, delay_s: float, target: int | None) -> None:
        self.loop, self.delay_s, self.target = asyncio.get_running_loop(), delay_s, target
        self.other: Later | None = None
        self.due: collections.deque[tuple[float, bytes]] = collections.deque()
        self.held, self.blocked, self.timer = 0, False, False
        self.transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.target is not None:
            transport.pause_reading()
            self.connecting = self.loop.create_task(self.connect(self.target))

    async def connect(self, target: int) -> None:
        _, self.other = await self.loop.create_connection(lambda: Later(self.delay_s, None), "127.0.0.1", target)
        self.other.other = self
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.due.append((self.loop.time() + self.delay_s, data))
        self.held += len(data)
        if self.held > self.MOST:
            self.transport.pause_reading()
        if not self.timer and not self.blocked:
            self.plan()

    def eof_received(self) -> bool:
        self.data_received(b"")
        return True

    def plan(self) -> None:
        self.timer = True
        self.loop.call_at(self.due[0][0], self.pass_on)

    def pass_on(self) -> None:
        self.timer = False
        assert self.other is not None
        sink, now = self.other.transport, self.loop.time()
        while self.due and not self.blocked and self.due[0][0] <= now:
            _, data = self.due.popleft()
            self.held -= len(data)
            if sink.is_closing():
                continue
            if data:
                sink.write(data)
            else:
                sink.write_eof()
        if self.held < self.MOST // 2 and not self.transport.is_closing():
            self.transport.resume_reading()
        if self.due and not self.blocked:
            self.plan()

    def pause_writing(self) -> None:
        assert self.other is not None
        self.other.blocked = True

    def resume_writing(self) -> None:
        assert self.other is not None
        self.other.blocked = False
        if self.other.due and not self.other.timer:
            self.other.plan()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None:
            self.loop.call_later(self.delay_s, self.other.transport.close)


def be_wire(target: int, delay_s: float) -> None:
    """A line with a round trip of twice `delay_s`, in a process of its own; prints its port."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        made = await loop.create_server(lambda: Later(delay_s, target), "127.0.0.1", 0)
        print(made.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


# Starting and measuring --------------------------------------------------------------------------------------


def spec_of(number: int) -> SessionSpec:
    session = SessionId("b" + str(number).rjust(25, "a"))
    return SessionSpec(session, SessionKey("hub", Owner("bench")), SystemName("site"), Instant(0), 0)


class Bench:
    """Everything that was started, in one temporary directory."""

    def __init__(self, home: Path, sshd: Sshd) -> None:
        self.home, self.sshd = home, sshd
        self.state = home / "state"
        self.state.mkdir(mode=0o700)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.known = home / "known_hosts"
        login = {"hosts": ["127.0.0.1"], "user": sshd.user, "key_file": str(sshd.key_file)}
        self.login = {**login, "port": sshd.port, "host_keys": [sshd.host_key]}
        self.ports = [sshd.port]
        self._know()

    def _know(self) -> None:
        self.known.write_text("".join(f"[127.0.0.1]:{port} {self.sshd.host_key}\n" for port in self.ports))

    def run(self, *words: object) -> "subprocess.Popen[bytes]":
        """This file in another process."""
        process = subprocess.Popen([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE)
        self.processes.append(process)
        return process

    def wire(self, delay_s: float) -> int:
        process = self.run("wire", self.sshd.port, delay_s)
        assert process.stdout is not None
        self.ports.append(port := int(process.stdout.readline()))
        self._know()
        return port

    def ssh(self, *words: object, port: int | None = None) -> list[str]:
        """OpenSSH's client as people run it: its default ciphers, no file of the user's."""
        options = ["BatchMode=yes", f"UserKnownHostsFile={self.known}", "GlobalKnownHostsFile=none"]
        argv = ["ssh", "-F", "none", *(word for option in options for word in ("-o", option))]
        argv += ["-i", str(self.sshd.key_file), "-p", str(port or self.sshd.port)]
        return [*argv, *map(str, words), f"{self.sshd.user}@127.0.0.1"]

    def p1(self, target: int, port: int | None = None) -> tuple["subprocess.Popen[bytes]", int]:
        """One `ssh -N -L`; not ready yet."""
        listen = free_port()
        process = subprocess.Popen(
            self.ssh("-N", "-L", f"127.0.0.1:{listen}:127.0.0.1:{target}", port=port), stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process, listen

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for pid in relay_pids(self.state):
            os.kill(pid, signal.SIGKILL)


def relay_pids(state: Path) -> list[int]:
    lock, found = str(directory_of(state) / "lock"), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if any(os.readlink(f"/proc/{name}/fd/{fd}") == lock for fd in os.listdir(f"/proc/{name}/fd")):
                found.append(int(name))
    return found


def family(pid: int) -> Iterator[int]:
    """A process and everything below it."""
    yield pid
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            yield from family(int(child))


def pss_kib(pids: Sequence[int]) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total


PORTS = iter(random.sample(range(10_000, 18_000), 8_000))
"""Below the relay's, and below those of outgoing connections, which could take a port before its listener does."""


def free_port() -> int:
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def first_byte(port: int, seconds: float = 60) -> None:
    """Until something came back through a port that may not be there yet."""
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.socket() as one:
            one.connect(("127.0.0.1", port))  # on loopback it does not wait
            one.sendall(HELLO)
            one.setblocking(False)
            if await loop.sock_recv(one, 4096):
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing came through port {port}")
        await asyncio.sleep(0.005)


async def timed(count: int, one: Callable[[int], Awaitable[None]]) -> float:
    """Seconds for `count` of them, a few at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def placed(number: int) -> None:
        async with places:
            await one(number)

    began = time.perf_counter()
    await asyncio.gather(*(placed(number) for number in range(count)))
    return time.perf_counter() - began


class Line:
    """A kept connection that asks again and again; blocking, so that it measures nothing of its own."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> float:
        """One small request; its seconds."""
        began = time.perf_counter()
        self.socket.sendall(HELLO)
        data = b""
        while not data.endswith(b"ok"):
            data += self.socket.recv(4096)
        return time.perf_counter() - began

    def download(self, size: int) -> float:
        """MB/s of one answer of `size` bytes."""
        buffer = bytearray(MIB)
        began = time.perf_counter()
        self.socket.sendall(b"GET /bytes/%d HTTP/1.1\r\nHost: lab\r\n\r\n" % size)
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1024)
        left = size - len(head.partition(b"\r\n\r\n")[2])
        while left:
            left -= self.socket.recv_into(buffer)
        return size / (time.perf_counter() - began) / 1e6

    def close(self) -> None:
        self.socket.close()


def new_connection(port: int) -> float:
    """Seconds of connecting and one request."""
    began = time.perf_counter()
    line = Line(port)
    line.ask()
    line.close()
    return time.perf_counter() - began


def p95(values: Sequence[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


# The measurements --------------------------------------------------------------------------------------------


async def set_up(bench: Bench, tunnels: RelayTunnels, count: int, gates: list[int], lab: int) -> dict[str, float]:
    """From ask to first byte, `count` sessions, a few at a time."""
    await ours(tunnels, len(gates) - 1, gates)  # the master's login, once; JSC's is up before, too
    await asyncio.sleep(1)

    async def one(number: int) -> None:
        await ours(tunnels, number, gates)

    seconds = {"ours": await timed(count, one)}
    say(f"set-up of {count}: ours {seconds['ours']:.3f} s")

    master = bench.home / "jsc"
    bench.processes.append(subprocess.Popen(bench.ssh("-N", "-M", "-S", master, "-o", "ControlPersist=no")))  # noqa: ASYNC220
    while not master.exists():  # noqa: ASYNC110 - a file cannot be waited for
        await asyncio.sleep(0.01)
    await asyncio.sleep(1)

    async def jsc(_number: int) -> None:
        listen = free_port()
        for words in (["check"], ["forward", "-L", f"127.0.0.1:{listen}:127.0.0.1:{lab}"]):
            process = await asyncio.create_subprocess_exec(
                *bench.ssh("-S", master, "-O", *words), stderr=subprocess.DEVNULL
            )
            await process.wait()
        await first_byte(listen)

    seconds["jsc"] = await timed(count, jsc)
    say(f"set-up of {count}: JSC {seconds['jsc']:.3f} s")
    subprocess.run(bench.ssh("-S", master, "-O", "exit"), stderr=subprocess.DEVNULL)  # noqa: ASYNC221

    started: list[subprocess.Popen[bytes]] = []

    async def p1(_number: int) -> None:
        process, listen = bench.p1(lab)
        started.append(process)
        await first_byte(listen)

    seconds["p1"] = await timed(count, p1)
    say(f"set-up of {count}: P1 {seconds['p1']:.3f} s")
    for process in started:
        process.kill()
        process.wait()
    return seconds


async def ours(tunnels: RelayTunnels, number: int, gates: list[int]) -> int:
    route = await tunnels.open(spec_of(number), 1, JOB, Endpoint("127.0.0.1", gates[number], "", NONCE))
    await first_byte(port_of(route.address))
    return port_of(route.address)


async def idle_memory(bench: Bench, tunnels: RelayTunnels, count: int, gates: list[int], opened: int) -> float:
    """
    KiB per session of the relay and the masters, everything counted, with `count` sessions that nobody looks at.
    `opened` of them are there already.
    """

    async def one(number: int) -> None:
        await ours(tunnels, opened + number, gates)

    await timed(count - opened, one)
    (relay,) = relay_pids(bench.state)
    pids = list(family(relay))
    say(f"memory with {count} new sessions: {pss_kib(pids) / count:.1f} KiB each")
    deadline = time.monotonic() + 120
    while sum(path.stock for path in (await tunnels.details()).values()):
        assert time.monotonic() < deadline, "streams are still kept for sessions that nobody looks at"
        await asyncio.sleep(1)
    assert all(not report.lost for report in (await tunnels.list()).values())
    pids = list(family(relay))
    parts = " + ".join(f"{pss_kib([pid]) / 1024:.1f}" for pid in pids)
    total = pss_kib(pids)
    say(f"memory with {count} idle sessions, MiB: {parts} (relay, then masters); {total / count:.1f} KiB each")
    return total / count


def real_job(bench: Bench, number: int) -> tuple[SessionSpec, Job, Endpoint]:
    """A session with a real launcher and a lab of its own behind it."""
    spec = spec_of(number)
    directory = bench.home / f"job{number}"
    directory.mkdir()
    job = Job(directory, sys.executable, tag_of(spec, 1))
    keys = bench.state / "keys.json"
    kept = json.loads(keys.read_text()) if keys.exists() else {}
    keys.write_text(json.dumps({**kept, spec.id: job.key.reveal()}))
    job.start(command=(sys.executable, __file__, "lab", "{socket}"))
    told = job.endpoint()
    return spec, job, Endpoint(told["host"], told["port"], "", told["nonce"])


async def opened(tunnels: RelayTunnels, spec: SessionSpec, endpoint: Endpoint) -> int:
    route = await tunnels.open(spec, 1, JOB, endpoint)
    deadline = time.monotonic() + 60
    while not (result := await tunnels.probe(spec.id)).good:
        assert time.monotonic() < deadline, result.note
        await asyncio.sleep(0.1)
    return port_of(route.address)


async def downloads(mine: int, p1: int, size: int, rounds: int) -> tuple[float, float]:
    """MB/s of ours and of P1, in turn, and the ratio's median over the rounds."""
    ratios, speeds = [], []
    for _ in range(rounds):
        pair = []
        for port in (mine, p1):
            line = Line(port)
            pair.append(await asyncio.to_thread(line.download, size))
            line.close()
        ratios.append(pair[0] / pair[1])
        speeds.append(pair)
    say("download MB/s, ours / P1: " + ", ".join(f"{a:.0f} / {b:.0f}" for a, b in speeds))
    return statistics.median(ratios), statistics.median(pair[0] for pair in speeds)


async def beside_bulk(bulk: int, small: int, whose: str) -> float:
    """Milliseconds, p95, of a request on a kept connection while another session downloads."""
    line, other = Line(small), Line(bulk)
    line.ask()
    downloading = asyncio.create_task(asyncio.to_thread(other.download, 4096 * MIB))
    await asyncio.sleep(0.3)
    times: list[float] = []
    end = time.monotonic() + 10
    while not downloading.done() and len(times) < 2000 and time.monotonic() < end:
        times.append(await asyncio.to_thread(line.ask))
    other.socket.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(Exception):
        await downloading
    other.close()
    line.close()
    p50 = statistics.median(times)
    say(f"beside a download, {whose}, {len(times)} requests: p50 {p50 * 1e3:.2f} ms, p95 {p95(times) * 1e3:.2f} ms")
    return p95(times) * 1e3


async def new_connections(mine: int, p1: int) -> float:
    """Ratio of the medians, ours to P1, connections one after the other with a little pause as people make them."""
    times: dict[int, list[float]] = {mine: [], p1: []}
    for _ in range(30):
        for port, found in times.items():
            found.append(await asyncio.to_thread(new_connection, port))
            await asyncio.sleep(0.06)
    ms = {port: statistics.median(found) * 1e3 for port, found in times.items()}
    say(f"new connection and request at 20 ms: ours {ms[mine]:.1f} ms, P1 {ms[p1]:.1f} ms")
    return ms[mine] / ms[p1]


async def restart(bench: Bench, ports: list[int], count: int) -> int:
    """How many of `count` open streams are cut when the Hub's process is killed and another one comes."""
    streams = []
    for number in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[number % len(ports)])
        writer.write(b"GET /socket HTTP/1.1\r\nHost: lab\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        streams.append((reader, writer))
    for reader, _ in streams:
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    for _ in range(2):
        hub = bench.run("hub", bench.state)
        assert hub.stdout is not None
        assert await asyncio.to_thread(hub.stdout.readline) == b"up\n"
        hub.kill()
        hub.wait()
    cut = 0
    for number, (reader, writer) in enumerate(streams):
        try:
            message = number.to_bytes(8, "big")
            writer.write(message)
            cut += await asyncio.wait_for(reader.readexactly(8), 20) != message
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            cut += 1
        writer.transport.abort()
    say(f"{count} open streams over two restarts of the Hub's process: {cut} cut")
    return cut


def be_hub(state: Path) -> None:
    """Somebody who uses the relay until it is killed."""

    async def run() -> None:
        tunnels = RelayTunnels(state, None)
        await tunnels.list()
        print("up", flush=True)
        await asyncio.sleep(600)

    asyncio.run(run())


async def measure(bench: Bench, options: argparse.Namespace) -> dict[str, float]:
    lab_socket, lab = bench.home / "lab.sock", free_port()
    bench.run("lab", lab_socket)
    bench.run("lab", lab)
    process = bench.run("gates", max(options.idle, options.sessions) + 1, lab_socket)
    assert process.stdout is not None
    gates = json.loads(process.stdout.readline())
    far = bench.wire(0.01)
    sites = {
        "site": {"kind": "openssh", **bench.login},
        "far": {"kind": "openssh", **bench.login, "port": far},
        "wide": {"kind": "paramiko", **bench.login, "port": far},
    }
    (bench.state / "site.json").write_text(json.dumps(sites))
    tunnels = RelayTunnels(bench.state, [sys.executable, __file__, "relay", str(bench.state)], call_s=60)
    jobs: list[Job] = []
    figures: dict[str, float] = {}
    try:
        await first_byte(lab)
        seconds = await set_up(bench, tunnels, options.sessions, gates, lab)
        figures["setup200_vs_jsc"] = seconds["jsc"] / seconds["ours"]
        figures["setup200_vs_p1"] = seconds["p1"] / seconds["ours"]
        figures["kib_per_tunnel"] = await idle_memory(bench, tunnels, options.idle, gates, options.sessions)
        ports = [await ours(tunnels, number, gates) for number in range(min(200, options.sessions))]
        cut = await restart(bench, ports, options.streams)
        for number in range(max(options.idle, options.sessions) + 1):
            await tunnels.close(spec_of(number).id)

        made = [real_job(bench, 100_000 + number) for number in range(2)]
        jobs += [job for _, job, _ in made]
        near = [await opened(tunnels, spec, endpoint) for spec, _, endpoint in made]
        _, p1_near = bench.p1(lab)
        await first_byte(p1_near)
        # Nobody has moved bulk yet, so both sessions are on one connection, and what is kept stays there.
        await beside_bulk(near[0], near[1], "ours, kept since before the first one")
        figures["throughput_vs_p1"], _ = await downloads(near[0], p1_near, 256 * MIB, 5)
        figures["beside_bulk_p95_ms"] = await beside_bulk(near[0], near[1], "ours")
        _, other = bench.p1(lab)
        await first_byte(other)
        await beside_bulk(p1_near, other, "P1")
        for spec, _, _ in made:
            await tunnels.close(spec.id)

        _, p1_far = bench.p1(lab, port=far)
        await first_byte(p1_far)
        ratios = []
        for name in ("wide", "far"):
            spec, job, endpoint = real_job(bench, 200_000 + len(ratios))
            jobs.append(job)
            port = await opened(tunnels, evolve(spec, system=SystemName(name)), endpoint)
            say(f"at 20 ms round trip, by {sites[name]['kind']}:")
            ratios.append((await downloads(port, p1_far, 64 * MIB, 3))[0])
        figures["throughput_vs_p1_20ms"] = max(ratios)
        figures["new_connection_vs_p1_20ms"] = await new_connections(port, p1_far)
        figures["slurm_status_ratio"] = 0.0  # measured last, by itself
        figures["streams_cut"] = cut
        return figures
    finally:
        await tunnels.aclose()
        for job in jobs:
            job.end()


def run(argv: list[str]) -> None:
    parts: dict[str, Callable[..., None]] = {
        "relay": lambda state: be_relay(Path(state)),
        "lab": be_lab,
        "gates": lambda count, lab: be_gates(int(count), lab),
        "wire": lambda target, delay: be_wire(int(target), float(delay)),
        "hub": lambda state: be_hub(Path(state)),
    }
    if argv and argv[0] in parts:
        parts[argv[0]](*argv[1:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--idle", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1000)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is ended then, too
    say(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="moorage-bench-") as home, server(MaxStartups="500") as sshd:
        bench = Bench(Path(home), sshd)
        try:
            figures = asyncio.run(measure(bench, options))
        finally:
            bench.end()
    from slurm import slurm_status  # here, because the relay of this file is to be no larger than a real one

    figures["slurm_status_ratio"] = slurm_status(options.jobs)["slurm_status_ratio"]
    say(f"load {os.getloadavg()[0]:.1f}")
    for name, value in figures.items():
        print(f"{name:28} {value:.2f}")
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    run(sys.argv[1:])
