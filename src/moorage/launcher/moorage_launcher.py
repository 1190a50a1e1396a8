#!/usr/bin/env python3
"""
moorage's launcher: holds the gate of one job, starts its lab when admitted, moves bytes, reports, cleans up.

    python3 -I -S moorage_launcher.py plan.json

One file, standard library only, Python 3.6 or newer, because sites are old. It is started in the job directory
by a constant script. It reads `plan.json` and the secret file (which it unlinks at once), binds the gate, writes
`endpoint.json`, and waits for a line that proves knowledge of the session's secret. Only then the lab is started.
Nobody admits it: it exits by itself. What it has to say is in `status.json` and `lab.log`, all files 0600.

The lines of the gate and the files are described in the decision record "Launch plan and gate".

Everything has a limit: lines, connections, streams, bytes in flight, log, steps, status writes, waiting times.
The secret is in the memory of this process and in the environment of the lab, which only the same uid (and root)
can read; it is never in an argument list, in this process's own environment, or in a file.
"""
# Old sites: this file must run on Python 3.6, so older spellings stay; asyncio.TimeoutError is another class there.
# Polling is robust where futures would cross several ends; short try-except-pass reads well with its reason.
# Somebody waits for every start: what few jobs need (HTTP, random ports) is imported where it is used, and what takes
# longest to load when the endpoint is told already; so nothing that is evaluated before may name it.
# ruff: noqa: UP006, UP035, UP041, UP045, ASYNC110, SIM105

import base64
import collections
import ctypes
import errno
import fcntl
import hashlib
import heapq
import hmac
import json
import os
import re
import signal
import socket
import stat
import struct
import sys
import threading
import time
from typing import Any, Callable, Deque, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

if __name__ != "__main__":
    import asyncio
    import subprocess

VERSION = 1
PROTOCOL = "moorage/1"
LINE_BYTES = 512  # a request has at most 232; room for another version
REPLAY_WINDOW = 4096  # counters remembered; older ones are refused as stale
CHUNK = 65536  # bytes per read; a stalled stream holds at most about five of these per direction
BULK_BYTES = 1 << 20  # so many within BULK_S, and a direction is moved by the kernel until it rests for so long
BULK_S = 0.25
BULK_PIPES = 32  # directions at once that may be; each holds a pipe of BULK_BYTES
CHECK_S = 4.0  # one HTTP check of the lab; below the five seconds that a probe has in all
CHECK_FRESH_S = 1.0  # many probes at once are one check
CHECK_FAILED_S = 0.1  # a lab that comes up is not called silent for longer than that
COMES_UP_S = 1.0  # so long after its start a check waits for a lab that does not listen yet, and tells of it at once
LOOK_S = (0.01, 0.05)  # between two looks whether it listens: first, and at most
FAREWELL_S = 1.0  # to read the answer before the socket closes
LINGER_S = 30.0  # a closed connection may flush for so long
TICK_S = 0.25
SPARE_TASKS = 256  # beyond one per unproven connection and three per stream: probes, the ticker
MAX_PLAN_BYTES = 4 << 20
MAX_SECRET_BYTES = 1 << 20
MAX_STEPS = 64
LOG_LINE_CHARS = 500
LOG_TAIL_BYTES = 32768  # as JSON; keeps status.json below 64 KiB
LAB_LINE_BYTES = 8192
LAB_LOG_BYTES = 1 << 20  # lab.log, and as much again in lab.log.1
SOCKET_PATH_BYTES = 100  # sun_path has 108 on Linux
CALLBACK_S = 5.0

# "Unless you have it": a lab that lives says 304, which Jupyter, asked every ten seconds, does not write into its log.
QUESTION = "GET {} HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\nConnection: close\r\n\r\n"

# What JupyterHub gives every server beside its token. Every address in a lab's log holds one of these.
NO_SECRETS = {
    "JUPYTERHUB_ACTIVITY_URL",
    "JUPYTERHUB_API_URL",
    "JUPYTERHUB_BASE_URL",
    "JUPYTERHUB_CLIENT_ID",
    "JUPYTERHUB_HOST",
    "JUPYTERHUB_OAUTH_CALLBACK_URL",
    "JUPYTERHUB_SERVER_NAME",
    "JUPYTERHUB_SERVICE_PREFIX",
    "JUPYTERHUB_SERVICE_URL",
    "JUPYTERHUB_USER",
}

F_SETPIPE_SZ = 1031  # Linux, include/uapi/linux/fcntl.h and splice(2)
SPLICE_F_NONBLOCK = 2

# Exit codes of the launcher itself; otherwise it exits as its lab did (128 + n for signal n).
EXIT_PLAN = 64
EXIT_SECRET = 65
EXIT_GATE = 66
EXIT_BUG = 70
EXIT_UNADMITTED = 75
EXIT_WALLTIME = 124

# Whoever gave the job its walltime ends it then and knows best why. On a login node nobody does.
WALLTIME_GRACE_S = 60

# Only the operator's words reach a shell as text: module names as arguments, set-up commands by eval. The start
# command and everything of the user's are arguments of exec. They are copied first, so that a set-up command
# which calls `set --` or `shift` cannot touch them. "\036" marks a boot step in the output.
WRAPPER = r"""
_moorage_modules=("${@:3:$1}")
_moorage_commands=("${@:3+$1:$2}")
_moorage_lab=("${@:3+$1+$2}")
set --
for _moorage_item in "${_moorage_modules[@]}"; do
    printf '\036module %s\n' "$_moorage_item"
    module load "$_moorage_item" || { echo "moorage: module load $_moorage_item failed" >&2; exit 96; }
done
_moorage_number=0
for _moorage_item in "${_moorage_commands[@]}"; do
    _moorage_number=$((_moorage_number + 1))
    printf '\036set-up %s\n' "$_moorage_number"
    eval "$_moorage_item" || { echo "moorage: set-up command $_moorage_number failed" >&2; exit 97; }
done
printf '\036exec\n'
exec "${_moorage_lab[@]}"
"""


# Turns a fresh Python into the lab: `PARENT UMASK COMMAND...`. A stage of its own and not `preexec_fn`, because the
# launcher has threads and code between its fork and exec could deadlock; and not this file, which takes ten times as
# long to load. 1 is PR_SET_PDEATHSIG, 15 SIGTERM: the lab does not outlive a killed launcher. The last lines are
# EXIT_BUG and what a shell says of a command that it cannot start.
BECOME = """
import ctypes, os, sys
parent, umask, command = int(sys.argv[1]), int(sys.argv[2], 8), sys.argv[3:]
try:
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
except (OSError, AttributeError):
    pass
if os.getppid() != parent:
    sys.exit(70)
os.umask(umask)
try:
    os.execvp(command[0], command)
except OSError as error:
    sys.stderr.write("moorage: cannot start {!r}: {}\\n".format(command[0], error.strerror))
sys.exit(127)
"""


def main(argv: List[str]) -> int:
    """Run one job; the result is the exit code."""
    if len(argv) != 1:
        sys.stderr.write("usage: moorage_launcher.py plan.json\n")
        return EXIT_PLAN
    os.umask(0o077)
    harden()
    for name in ("endpoint.json", "status.json"):  # of an earlier run of a requeued job
        remove(name)
    try:
        plan = read_plan(argv[0])
        job = Job(plan, read_secrets(plan))
        job.open_gate()
    except Failure as failure:
        return failure.tell()
    # While the Hub's side sees the report and connects; who does waits in the listener's backlog.
    for name in ("asyncio", "subprocess"):
        globals()[name] = __import__(name)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(quiet)
    try:
        return loop.run_until_complete(Launcher(loop, job).run())
    except Failure as failure:
        return failure.tell()
    finally:
        loop.close()


class Failure(Exception):
    """The launcher cannot work; says so on stderr and in an unsigned status.json (there may be no key)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason

    def tell(self) -> int:
        sys.stderr.write(f"moorage: {self.reason}\n")
        document = {"kind": "status", "version": VERSION, "state": "ended", "reason": self.reason[:500]}
        document["exit_code"] = self.code
        try:
            write_atomically("status.json", json.dumps(document, sort_keys=True))
        except OSError:
            pass  # the exit code and stderr still tell
        return self.code


# -- what we are given ------------------------------------------------------------------------------------------


class Secrets(NamedTuple):
    gate: bytes
    environment: Dict[str, str]


def read_plan(path: str) -> Dict[str, Any]:
    """The plan as rendered by `moorage.core.plan`, which has checked every value; here only its shape counts."""
    try:
        plan = json.loads(read_bounded(path, MAX_PLAN_BYTES, private=False).decode("utf-8"))
        if plan["version"] != VERSION:
            raise Failure(EXIT_PLAN, "plan.json has version {!r}, not {}".format(plan["version"], VERSION))
        for name in ("tag", "command", "args", "modules", "setup", "environment", "gate", "lab", "limits"):
            plan[name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Failure(EXIT_PLAN, f"plan.json is unusable: {type(error).__name__}: {error}") from None
    return dict(plan)


def read_secrets(plan: Dict[str, Any]) -> Secrets:
    """Read the secret file and unlink it, unless the plan expects the job to be requeued; fails closed."""
    path = plan["secret_file"]
    try:
        text = read_bounded(path, MAX_SECRET_BYTES, private=True)
        if not plan["requeue"]:
            os.unlink(path)
    except FileNotFoundError:
        raise Failure(EXIT_SECRET, "the secret file is missing; has this job run before?") from None
    except OSError as error:
        raise Failure(EXIT_SECRET, f"the secret file is unusable: {error.strerror}") from None
    try:
        document = json.loads(text.decode("utf-8"))
        key = bytes.fromhex(document["gate"])
        environment = {str(name): str(value) for name, value in document["environment"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        key, environment = b"", {}  # the error's text could quote the secret
    if len(key) < 32:
        raise Failure(EXIT_SECRET, "the secret file does not hold a gate secret of 32 bytes")
    return Secrets(key, environment)


def read_bounded(path: str, limit: int, private: bool) -> bytes:
    """At most `limit` bytes of a regular file, following no link; `private` insists on ours and mode 0?00."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise OSError(22, f"not a regular file of at most {limit} bytes")
        if private and (status.st_uid != os.getuid() or status.st_mode & 0o077):
            raise OSError(1, f"others could read it: owner {status.st_uid}, mode {status.st_mode & 0o777:o}")
        return file.read(limit)


# -- the gate ---------------------------------------------------------------------------------------------------

REQUEST = re.compile(
    rb"moorage/1 (admit|stream|probe|stop) ([A-Za-z0-9]{1,64}) ([0-9a-f]{32}) ([0-9]{1,18}) ([0-9a-f]{32})"
    rb" ([0-9a-f]{64})"
)


class Request(NamedTuple):
    purpose: str
    counter: int
    line: bytes
    fresh: bool  # False: a counter seen before or too old


class Gate:
    """Judges request lines of one run of one job. `nonce` is public and names this very run."""

    def __init__(self, key: bytes, tag: str, nonce: str) -> None:
        self._key, self._tag, self._nonce = key, tag.encode("ascii"), nonce.encode("ascii")
        self._seen: Set[int] = set()
        self._heap: List[int] = []
        self.floor = 0

    def judge(self, line: bytes) -> Optional[Request]:
        """
        What a line asks for, or None if it proves nothing; such a stream gets no answer at all.

        Counters are accepted in any order, each once, while they are above `floor`: the largest counter that was
        forgotten. So memory is bounded, no clocks are compared, and streams may overtake each other.
        """
        match = REQUEST.fullmatch(line)
        if not match:
            return None
        proof = self.mac("request", line[: match.start(6) - 1]).encode("ascii")
        known = hmac.compare_digest(proof, match.group(6))
        if not known or match.group(2) != self._tag or match.group(3) != self._nonce:
            return None
        counter = int(match.group(4))
        fresh = counter > self.floor and counter not in self._seen
        if fresh:
            self._remember(counter)
        return Request(match.group(1).decode("ascii"), counter, line, fresh)

    def answer(self, request: Request, verdict: str, **fields: Any) -> bytes:
        """The far side's proof: it covers the whole request line, so it fits this one stream only."""
        words = [PROTOCOL, verdict]
        words += [f"{name}={value}" for name, value in sorted(fields.items()) if value is not None]
        text = " ".join(words).encode("ascii")
        return text + b" " + self.mac("answer", request.line + b"\n" + text).encode("ascii") + b"\n"

    def mac(self, label: str, message: bytes) -> str:
        return hmac.new(self._key, label.encode("ascii") + b"\n" + message, hashlib.sha256).hexdigest()

    def sign(self, document: Dict[str, Any]) -> str:
        """A document as JSON text with a `mac` over its canonical form (integers and ASCII only)."""
        body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        mac = self.mac("document", body.encode("ascii"))
        return json.dumps(dict(document, mac=mac), sort_keys=True, ensure_ascii=True) + "\n"

    def _remember(self, counter: int) -> None:
        self._seen.add(counter)
        heapq.heappush(self._heap, counter)
        if len(self._heap) > REPLAY_WINDOW:
            self.floor = heapq.heappop(self._heap)
            self._seen.discard(self.floor)


# -- the job ----------------------------------------------------------------------------------------------------


class Job:
    """What is done before the event loop: the gate is bound and told of, so that somebody can be on the way to it."""

    def __init__(self, plan: Dict[str, Any], secrets: Secrets) -> None:
        self.plan, self.secrets = plan, secrets
        self.began = time.monotonic()
        self.steps = [("launcher", int(time.time() * 1000))]
        self.nonce = base64.b16encode(os.urandom(16)).decode("ascii").lower()
        self.gate = Gate(secrets.gate, plan["tag"], self.nonce)
        self.endpoint = ""
        self.signals: List[int] = []
        # nohup means it
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self.heeded = [signal.SIGTERM, signal.SIGINT] + ([] if ignored else [signal.SIGHUP])

    def open_gate(self) -> None:
        """Connections are taken in from now on, into the backlog; they are answered when the event loop runs."""
        for number in self.heeded:
            signal.signal(number, self.signalled)
        self.listener, where = self.bind()
        document = {"kind": "endpoint", "version": VERSION, "protocol": PROTOCOL, "time": int(time.time())}
        document.update(self.identity())
        document.update(where)
        self.endpoint = self.gate.sign(document)
        try:
            write_atomically("endpoint.json", self.endpoint)
        except OSError:
            pass  # quota or a sick file system: perhaps the callback tells it
        self.steps.append(("gate", int(time.time() * 1000)))

    def signalled(self, number: int, _frame: Any) -> None:
        """Whoever ends the job while it loads waits until it can end in order."""
        self.signals.append(number)

    def bind(self) -> Tuple[socket.socket, Dict[str, Any]]:
        """The gate's listening socket, and where it is. Ports of a range are tried in random order."""
        gate = self.plan["gate"]
        try:
            if gate["kind"] == "unix":
                return bind_unix()
            return bind_tcp(gate["interface"], gate["port_first"], gate["port_last"], gate["host"])
        except OSError as error:
            raise Failure(EXIT_GATE, f"cannot bind the gate: {error.strerror or error}") from None

    def identity(self) -> Dict[str, Any]:
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        return {
            "tag": self.plan["tag"],
            "attempt": self.plan["attempt"],
            "nonce": self.nonce,
            "node": ascii_text(socket.gethostname(), 255),
            "restarts": int(restarts) if re.fullmatch("[0-9]{1,6}", restarts) else 0,
        }


# -- what the lab is told ---------------------------------------------------------------------------------------

# A container of webpack's module federation, written by hand: JupyterLab calls init, then get, and activates what that
# gives. The lab's clock is the node's, as its answers tell it; the browser's may be wrong by more than the warning.
# Source: jupyterlab/staging/bootstrap.js and index.js (createModule), apputils-extension (apputils:notify, since 4.0).
WARNING = """\
(function () {
  var ends = %(ends)d, warned = Infinity, ahead = 0;
  function words(left) {
    var minutes = Math.max(1, Math.round(left / 60000));
    var at = new Date(ends - ahead).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    var span = minutes + (minutes === 1 ? " minute" : " minutes");
    return "This session ends at " + at + ", in " + span + ": save your work.";
  }
  function banner(text) {
    var box = document.getElementById("%(name)s") || document.createElement("div");
    box.id = "%(name)s";
    box.setAttribute("role", "alert");
    box.style.cssText = "position:fixed;right:1em;bottom:2em;z-index:9999;padding:1em;background:#fff3cd;color:#000";
    box.textContent = text;
    box.onclick = function () { box.remove(); };
    document.body.appendChild(box);
  }
  function say(app, text) {
    if (app.commands.hasCommand("apputils:notify"))
      app.commands.execute("apputils:notify", { message: text, type: "warning", options: { autoClose: false } });
    else banner(text);
  }
  function look(app) {
    var left = ends - (Date.now() + ahead);
    var due = [15, 5, 1].filter(function (minutes) { return left <= minutes * 60000; }).pop();
    if (due === undefined || left < 0 || due >= warned) return;
    warned = due;
    say(app, words(left));
  }
  function begin(app) {
    fetch(app.serviceManager.serverSettings.baseUrl + "api").then(function (answer) {
      ahead = (Date.parse(answer.headers.get("Date")) || Date.now()) - Date.now();
    }).catch(function () {}).then(function () {
      look(app);
      setInterval(function () { look(app); }, 10000);
    });
  }
  var plugin = {
    id: "%(name)s:plugin", autoStart: true,
    activate: function (app) { app.restored.then(function () { begin(app); }); }
  };
  (window._JUPYTERLAB = window._JUPYTERLAB || {})["%(name)s"] = {
    init: function () {},
    get: function () { return Promise.resolve(function () { return plugin; }); }
  };
})();
"""

# -- the launcher -----------------------------------------------------------------------------------------------


class Stream:
    """One connection to the gate and, once it has sent a byte, its connection to the lab."""

    def __init__(self, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        self.reader, self.writer = reader, writer
        self.lab_writer: Optional[asyncio.StreamWriter] = None
        self.active = time.monotonic()
        self.waits: Set[asyncio.Future[None]] = set()

    def abort(self) -> None:
        for writer in (self.writer, self.lab_writer):
            if writer is not None and writer.transport is not None:
                writer.transport.abort()
        for wait in self.waits:
            wake(wait)


class Launcher:
    """One job: gate, lab, streams and reports, all in one event loop."""

    def __init__(self, loop: "asyncio.AbstractEventLoop", job: Job) -> None:
        self.loop, self.job = loop, job
        plan, secrets = job.plan, job.secrets
        self.plan, self.limits, self.gate = plan, plan["limits"], job.gate
        hidden = [value for name, value in secrets.environment.items() if name not in NO_SECRETS]
        self.redactor = Redactor([secrets.gate.hex(), *hidden])
        self.scribe = Scribe()
        self.callback = Callback(plan["callback"]) if plan["callback"] else None
        self.report = Report(self)
        for name, at in job.steps:
            self.report.step(name, at)
        self.lab = Lab(self, secrets.environment)
        self.began = job.began
        self.ends_at = walltime_end(plan["walltime_s"])
        # By a clock that nobody sets.
        self.overdue_at = self.ends_at and time.monotonic() + self.ends_at - time.time() + WALLTIME_GRACE_S
        self.finished: asyncio.Future[None] = loop.create_future()
        self.stopping = False
        self.exit_code = 0
        self.unproven: collections.OrderedDict[Stream, None] = collections.OrderedDict()
        self.streams: Set[Stream] = set()
        self.tasks: Set[asyncio.Future[Any]] = set()
        self.bytes_in = self.bytes_out = 0
        self.last_activity = 0
        self.pipes = 0

    # The life of a job, in order.

    async def run(self) -> int:
        listener = self.job.listener
        if listener.family == socket.AF_UNIX:
            server = await asyncio.start_unix_server(self.accept, sock=listener, limit=CHUNK)
        else:
            server = await asyncio.start_server(self.accept, sock=listener, limit=CHUNK)
        for number in self.job.heeded:
            self.loop.add_signal_handler(number, self.signalled, number)
        self.loop.add_signal_handler(signal.SIGCHLD, self.lab.reap)
        try:
            if self.callback:
                self.callback.post("endpoint", self.job.endpoint)
            for heard in self.job.signals[:1]:
                self.signalled(heard)
            ticker = self.spawn(self.tick())
            await self.finished
            ticker.cancel()
        finally:
            server.close()
            await self.clean_up()
        return self.exit_code

    async def tick(self) -> None:
        """What happens with time: admission ends, the lab comes up, idle streams go, reports are written."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.lab.reap()
            if self.lab.state == "waiting" and now - self.began > self.limits["admission_s"]:
                self.stop("nobody admitted this job", EXIT_UNADMITTED)
            if self.overdue_at is not None and now > self.overdue_at and not self.stopping:
                self.stop("the walltime is over", EXIT_WALLTIME)
            if self.lab.state == "starting" and not self.lab.checking:
                self.spawn(self.lab.check())
            for stream in list(self.streams):
                limit = self.limits["idle_s"] if stream.lab_writer else self.limits["warm_s"]
                if now - stream.active > limit:
                    stream.abort()
            self.report.flush()

    def admit(self) -> None:
        """Start the lab, the first time. A plan that cannot be carried out ends the job with a reason."""
        if self.lab.state != "waiting" or self.stopping:
            return
        self.report.step("admitted")
        try:
            self.lab.start()
        except (OSError, ValueError) as error:
            self.stop("cannot start the lab: " + str(getattr(error, "strerror", "") or type(error).__name__), 127)

    def signalled(self, number: int) -> None:
        self.stop(f"signal {signal.Signals(number).name}", 128 + number)

    def stop(self, reason: str, code: int) -> None:
        """End the job: the lab's exit code wins over that of a stop. Asked again, the lab is killed at once."""
        if self.stopping:
            self.lab.kill_now()
            return
        self.stopping = True
        self.exit_code = code
        self.report.reason = reason
        self.report.step("stopping")
        self.spawn(self.bring_down())

    async def bring_down(self) -> None:
        """TERM to the lab's process group, then KILL; then whatever it left behind, the same way."""
        await self.lab.end()
        if self.lab.exit_code is not None and self.exit_code != EXIT_WALLTIME:
            self.exit_code = self.lab.exit_code
        self.lab.state = "ended"
        self.report.step("ended")
        deadline = time.monotonic() + FAREWELL_S  # let streams deliver what the lab said last
        while self.streams and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        if not self.finished.done():
            self.finished.set_result(None)

    async def clean_up(self) -> None:
        for stream in list(self.streams) + list(self.unproven):
            stream.abort()
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=2)
        self.lab.remove_sockets()
        self.scribe.remove("endpoint.json")
        self.report.flush(final=True)
        self.scribe.close()
        if self.callback:
            self.callback.close()

    def spawn(self, coroutine: Any) -> "asyncio.Future[Any]":
        task: asyncio.Future[Any] = asyncio.ensure_future(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.done)
        return task

    def done(self, task: "asyncio.Future[Any]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            quiet(self.loop, {"exception": task.exception()})

    # One stream, in order.

    def accept(self, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter") -> None:
        """
        A new connection. With too many unproven ones the oldest goes: an honest client sends its line at once,
        so whoever waits longest is most likely the one who fills the table.
        """
        stream = Stream(reader, writer)
        if len(self.tasks) > self.limits["unproven"] + 3 * self.limits["streams"] + SPARE_TASKS:
            stream.abort()  # only who knows the secret can get so far: a crowd of probes, say
            return
        self.unproven[stream] = None
        if len(self.unproven) > self.limits["unproven"]:
            oldest, _ = self.unproven.popitem(last=False)
            oldest.abort()
        self.spawn(self.serve(stream))

    async def serve(self, stream: Stream) -> None:
        try:
            line, early = await asyncio.wait_for(read_line(stream.reader), self.limits["line_s"])
            self.unproven.pop(stream, None)
            request = self.gate.judge(line) if line is not None else None
            if request is not None:
                await self.answer(stream, request, early)
        except (asyncio.TimeoutError, OSError, EOFError):
            stream.abort()
        finally:
            self.unproven.pop(stream, None)
            self.streams.discard(stream)
            for writer in (stream.writer, stream.lab_writer):
                if writer is not None:
                    writer.close()
                    self.loop.call_later(LINGER_S, writer.transport.abort)

    async def answer(self, stream: Stream, request: Request, early: bytes) -> None:
        verdict = self.verdict(request)
        if verdict == "ok" and request.purpose in ("admit", "stream"):
            self.admit()
        http = await self.lab.check() if request.purpose == "probe" and verdict == "ok" else None
        fields = {"lab": self.lab.state, "http": http, "left": self.walltime_left(), "code": self.lab.exit_code}
        if verdict == "stale":
            fields = {"floor": self.gate.floor}
        stream.writer.write(self.gate.answer(request, verdict, **fields))
        if verdict == "ok" and request.purpose == "stream":
            self.streams.add(stream)
            await self.relay(stream, early)
            return
        await farewell(stream)
        if verdict == "ok" and request.purpose == "stop":
            self.stop("asked to stop through the gate", 0)

    def verdict(self, request: Request) -> str:
        if not request.fresh:
            return "stale"
        if request.purpose in ("admit", "stream") and (self.stopping or self.lab.state == "ended"):
            return "gone"
        if request.purpose == "stream" and len(self.streams) >= self.limits["streams"]:
            return "full"
        return "ok"

    async def relay(self, stream: Stream, early: bytes) -> None:
        """
        Move bytes both ways. The lab hears of a stream with its first byte, so proven streams can be kept in
        stock without costing the lab a connection.
        """
        first = early or await stream.reader.read(CHUNK)
        if not first:
            return
        lab_reader, stream.lab_writer = await self.lab.connect(time.monotonic() + self.limits["lab_start_s"])
        stream.active = time.monotonic()
        self.bytes_in += len(first)
        stream.lab_writer.write(first)
        ways = [
            self.spawn(self.pump(stream, stream.reader, stream.lab_writer, True)),
            self.spawn(self.pump(stream, lab_reader, stream.writer, False)),
        ]
        try:
            await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()

    async def pump(
        self, stream: Stream, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter", inwards: bool
    ) -> None:
        """One direction until its end, which is passed on; the other direction may go on. An error cuts both."""
        size, since = 0, 0.0
        try:
            while True:
                data = await reader.read(CHUNK)
                if not data:
                    break
                self.moved(stream, inwards, len(data))
                writer.write(data)
                await writer.drain()
                if stream.active - since > BULK_S:
                    size, since = 0, stream.active
                size += len(data)
                if size > BULK_BYTES and self.pipes < BULK_PIPES and Pipe.works():
                    await self.bulk(stream, reader, writer, inwards)
                    size = 0
            if writer.can_write_eof() and not writer.transport.is_closing():
                writer.write_eof()
        except OSError:
            stream.abort()

    def moved(self, stream: Stream, inwards: bool, size: int) -> None:
        stream.active = time.monotonic()
        self.last_activity = int(time.time())
        if inwards:
            self.bytes_in += size
        else:
            self.bytes_out += size

    async def bulk(
        self, stream: Stream, reader: "asyncio.StreamReader", writer: "asyncio.StreamWriter", inwards: bool
    ) -> None:
        """
        From socket to socket by way of a pipe, so that the bytes never come here, until none comes for a while.
        An end is left for the reader to find.
        """
        source, sink = (stream.writer if inwards else stream.lab_writer).transport, writer.transport  # type: ignore[union-attr]
        reading(source, False)
        while reader._buffer:  # type: ignore[attr-defined]
            data = await reader.read(CHUNK)  # which may have it read on
            reading(source, False)
            self.moved(stream, inwards, len(data))
            writer.write(data)
            await writer.drain()
        try:
            pipe = Pipe(source.get_extra_info("socket").fileno(), sink.get_extra_info("socket").fileno())
        except OSError:
            reading(source, True)  # no descriptors left, or an end is closed: as before
            return
        self.pipes += 1
        try:
            while sink.get_write_buffer_size() and not sink.is_closing():
                await asyncio.sleep(0.002)
            await self.splice(stream, inwards, pipe, lambda: source.is_closing() or sink.is_closing())
        finally:
            self.pipes -= 1
            pipe.close()
            reading(source, True)

    async def splice(self, stream: Stream, inwards: bool, pipe: "Pipe", ended: Callable[[], bool]) -> None:
        loop, idle_s = self.loop, self.limits["idle_s"]
        while not ended():
            if pipe.held:
                size = pipe.empty()
                if size is None:  # as long as a reader may stall otherwise
                    await ready(stream, idle_s, pipe.sink, loop.add_writer, loop.remove_writer)
                continue
            size = pipe.fill()
            if size is None:
                if not await ready(stream, BULK_S, pipe.source, loop.add_reader, loop.remove_reader):
                    return
            elif not size:
                return
            else:
                self.moved(stream, inwards, size)
                await asyncio.sleep(0)  # others first

    def walltime_left(self) -> Optional[int]:
        return None if self.ends_at is None else max(0, int(self.ends_at - time.time()))


async def read_line(reader: "asyncio.StreamReader") -> Tuple[Optional[bytes], bytes]:
    """The first line without its end, and what came after it; None for a line that is too long or cut."""
    data = b""
    while len(data) < LINE_BYTES:
        more = await reader.read(LINE_BYTES - len(data))
        data += more
        line, end, rest = data.partition(b"\n")
        if end:
            return line, rest
        if not more:
            break
    return None, b""


async def farewell(stream: Stream) -> None:
    """
    Let the answer arrive: a socket that is closed with unread bytes sends a reset, which can overtake it.
    """
    stream.writer.write_eof()
    deadline = time.monotonic() + FAREWELL_S
    try:
        while time.monotonic() < deadline:
            if not await asyncio.wait_for(stream.reader.read(CHUNK), FAREWELL_S):
                return
    except asyncio.TimeoutError:
        pass


def reading(transport: Any, on: bool) -> None:
    """Pause or resume; to be told what it does already is an error for early versions of Python 3.6."""
    try:
        if not transport.is_closing():
            transport.resume_reading() if on else transport.pause_reading()
    except RuntimeError:
        pass


async def ready(stream: Stream, seconds: float, descriptor: int, add: Any, remove: Any) -> bool:
    """Wait for a descriptor; False after `seconds`, or when the stream was aborted."""
    loop = asyncio.get_event_loop()
    wait = loop.create_future()
    timer = loop.call_later(seconds, wake, wait, False)
    stream.waits.add(wait)
    add(descriptor, wake, wait, True)
    try:
        return bool(await wait)
    finally:
        timer.cancel()
        stream.waits.discard(wait)
        remove(descriptor)


def wake(wait: "asyncio.Future[Any]", result: bool = False) -> None:
    if not wait.done():
        wait.set_result(result)


class Pipe:
    """
    A pipe between two sockets: `fill` from the one, `empty` into the other, nothing is copied. The sockets are
    duplicates, because asyncio watches the ones it was given itself. Source: splice(2), fcntl(2).
    """

    _works: Optional[bool] = None

    @classmethod
    def works(cls) -> bool:
        """Whether this kernel does it; tried once."""
        if cls._works is None:
            here, there = socket.socketpair()
            with here, there:
                try:
                    pipe = cls(here.fileno(), there.fileno())
                    there.setblocking(False)
                    there.send(b"x")
                    cls._works = pipe.fill() == 1 and pipe.empty() == 1 and here.recv(2) == b"x"
                    pipe.close()
                except (OSError, AttributeError):
                    cls._works = False
        return cls._works

    def __init__(self, source: int, sink: int) -> None:
        self.held = 0
        self._splice = ctypes.CDLL(None, use_errno=True).splice
        self._splice.restype = ctypes.c_ssize_t
        one = (ctypes.c_int, ctypes.c_void_p)
        self._splice.argtypes = (*one, *one, ctypes.c_size_t, ctypes.c_uint)
        self._ends: List[int] = []
        try:
            self._ends += [os.dup(source), os.dup(sink)]
            self._ends += os.pipe()
        except OSError:
            self.close()
            raise
        self.source, self.sink, self._out, self._in = self._ends
        try:
            fcntl.fcntl(self._in, F_SETPIPE_SZ, BULK_BYTES)
        except OSError:
            pass  # beyond what a user may have: it stays small, and still saves the copies

    def fill(self) -> Optional[int]:
        """How much came; None if there is nothing now, 0 at the end."""
        size = self._move(self.source, self._in, BULK_BYTES)
        self.held += size or 0
        return size

    def empty(self) -> Optional[int]:
        """How much went; None if nothing can go now."""
        size = self._move(self._out, self.sink, self.held)
        self.held -= size or 0
        return size

    def close(self) -> None:
        for end in self._ends:
            os.close(end)

    def _move(self, source: int, sink: int, size: int) -> Optional[int]:
        moved = int(self._splice(source, None, sink, None, size, SPLICE_F_NONBLOCK))
        if moved >= 0:
            return moved
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR):
            return None
        raise OSError(number, os.strerror(number))


# -- sockets ----------------------------------------------------------------------------------------------------


def bind_unix() -> Tuple[socket.socket, Dict[str, Any]]:
    """`private/gate.sock` (0600) in a 0700 directory of the job directory; bound by its short relative name."""
    make_private()
    path = "private/gate.sock"
    remove(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    return listener, {"socket": path, "directory": ascii_text(os.getcwd(), 4096)}


def bind_tcp(interface: str, first: int, last: int, host: str) -> Tuple[socket.socket, Dict[str, Any]]:
    address = interface_address(interface)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    ports = list(range(first, last + 1))
    if len(ports) > 1:
        import random

        random.SystemRandom().shuffle(ports)
    error = OSError("no port in the range")
    for port in ports:
        # Without SO_REUSEADDR: a port that somebody else still uses in any way is not ours to take.
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.bind((address, port))
            listener.listen(128)
        except OSError as failed:
            listener.close()
            error = failed
            continue
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted sockets inherit it
        name = socket.gethostname()
        shown = host.replace("{fqdn}", name).replace("{hostname}", name.split(".")[0]).replace("{address}", address)
        return listener, {"host": ascii_text(shown, 255), "port": listener.getsockname()[1]}
    raise error


def interface_address(interface: str) -> str:
    """An address as it is; the IPv4 address of a network interface given by name, like `ib0`."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, interface)
            return interface
        except OSError:
            pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode("ascii")[:15])
        answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR, Linux sockios.h
    return socket.inet_ntoa(answer[20:24])


def make_private() -> str:
    """The directory `private` of the job directory: ours, 0700, no link."""
    try:
        os.mkdir("private", 0o700)
    except FileExistsError:
        status = os.lstat("private")
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise OSError(20, "'private' in the job directory is not a directory of ours") from None
        os.chmod("private", 0o700)
    return os.path.abspath("private")


def lab_directory() -> str:
    """
    A 0700 directory whose path is short enough for a socket and whose file system can hold one: in the job
    directory if possible, otherwise among the temporary files of this node.
    """
    for candidate in (make_private, lambda: temporary("moorage-"), lambda: temporary("m-", "/tmp")):  # noqa: S108 - mkdtemp
        directory = candidate()
        path = os.path.join(directory, "lab.sock")
        try:
            if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
                remove(path)
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
                    attempt.bind(path)
                remove(path)
                return directory
        except OSError:
            pass
        if os.path.basename(directory) != "private":
            os.rmdir(directory)
    raise OSError(36, "no directory for the lab's socket")


def temporary(prefix: str, directory: Optional[str] = None) -> str:
    import tempfile

    return tempfile.mkdtemp(prefix=prefix, dir=directory)


def listener_uids(port: int) -> Set[int]:
    """Who listens on a TCP port of this machine, whatever the address. Source: proc(5), /proc/net/tcp."""
    uids: Set[int] = set()
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(name, encoding="ascii") as table:
                for row in table:
                    words = row.split()
                    if len(words) > 7 and words[3] == "0A" and int(words[1].rsplit(":", 1)[1], 16) == port:
                        uids.add(int(words[7]))
        except FileNotFoundError:
            pass
    return uids


# -- the lab ----------------------------------------------------------------------------------------------------


class Lab:
    """The child process. `state`: waiting (for admission), starting, serving, ended."""

    def __init__(self, launcher: Launcher, secrets: Dict[str, str]) -> None:
        self.launcher, self.plan, self._secrets = launcher, launcher.plan, secrets
        # At another place than JupyterHub has it serve the lab answers with a 404, and a warning in its log each time.
        prefix = secrets.get("JUPYTERHUB_SERVICE_PREFIX", "").rstrip("/")
        self._target = (prefix if re.fullmatch("/[!-~]*", prefix) else "") + self.plan["lab"]["probe_path"]
        self.state = "waiting"
        self.exit_code: Optional[int] = None
        self.signal: Optional[int] = None
        self.checking: Optional[asyncio.Future[int]] = None
        self.http = 0
        self._checked_at = float("-inf")
        self._began = 0.0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._directory = ""
        self._socket = ""
        self._port = 0
        self._output = LineReader()
        self._killed = False

    def start(self) -> None:
        """Begin with the first admission; raises OSError."""
        if self.plan["lab"]["listen"] == "unix":
            self._directory = lab_directory()
            self._socket = os.path.join(self._directory, "lab.sock")
        else:
            with socket.socket() as attempt:
                attempt.bind(("127.0.0.1", 0))
                self._port = attempt.getsockname()[1]
        process = subprocess.Popen(  # noqa: S603 - argv, no shell; see WRAPPER for the one that reads operator text
            self._argv(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=os.path.expanduser(self.plan["directory"]),
            env=self._environment(),
            start_new_session=True,
        )
        self._secrets = {}
        self._process = process
        self._began = time.monotonic()
        self.state = "starting"
        self.launcher.report.step("lab-started")
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        self.launcher.loop.add_reader(process.stdout.fileno(), self._read_output)

    def _argv(self) -> List[str]:
        # Placeholders are for the operator's command; what a user writes stays as it is.
        names = {"{socket}": self._socket, "{port}": str(self._port)}
        command = []
        for item in self.plan["command"]:
            for name, value in names.items():
                item = item.replace(name, value)
            command.append(item)
        command += self.plan["args"]
        modules, setup = self.plan["modules"], self.plan["setup"]
        if modules or setup:
            counts = [str(len(modules)), str(len(setup))]
            command = ["bash", "-lc", WRAPPER, "moorage", *counts, *modules, *setup, *command]
        umask = os.environ.get("MOORAGE_UMASK", "077")
        umask = umask if re.fullmatch("[0-7]{1,4}", umask) else "077"
        # -S: no code of the site's between us and the lab, and a third of the time.
        return [sys.executable, "-I", "-S", "-c", BECOME, str(os.getpid()), umask, *command]

    def _environment(self) -> Dict[str, str]:
        environment = dict(os.environ)
        environment.pop("MOORAGE_UMASK", None)
        environment.update(self.plan["environment"])
        environment.update(self._secrets)
        environment["MOORAGE_TAG"] = self.plan["tag"]
        if self.launcher.ends_at is not None:
            path = [environment.get("JUPYTER_PATH", ""), warning_folder(self.launcher.ends_at)]
            environment["JUPYTER_PATH"] = os.pathsep.join(part for part in path if part)
        return environment

    async def connect(self, deadline: float) -> "Tuple[asyncio.StreamReader, asyncio.StreamWriter]":
        """A connection to the lab, waiting while it starts; raises OSError, or EOFError when the lab has ended."""
        pause_s, longest_s = LOOK_S
        while True:
            if self.state == "ended":
                raise EOFError("the lab has ended")
            sock = socket.socket(socket.AF_UNIX if self._socket else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                if self._socket:
                    # Not by asyncio, which takes the EAGAIN of a full backlog for a connection under way.
                    sock.connect(self._socket)
                    return await asyncio.open_unix_connection(sock=sock, limit=CHUNK)
                await self.launcher.loop.sock_connect(sock, ("127.0.0.1", self._port))
                if listener_uids(self._port) != {os.getuid()}:
                    # Between our choice of the port and the lab's bind it can be taken by another user.
                    raise PermissionError(13, "the lab's port is held by somebody else")
                return await asyncio.open_connection(sock=sock, limit=CHUNK)
            except (BlockingIOError, ConnectionRefusedError, FileNotFoundError, PermissionError):
                sock.close()
                if time.monotonic() > deadline:
                    raise
            except BaseException:
                sock.close()
                raise
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, longest_s)

    async def check(self) -> int:
        """
        The HTTP status with which the lab answers now, 0 for none; one check at a time serves all who ask.

        One that has just been started is waited for, so that who asks again and again learns of it at once; not longer
        than a second in all, because at the other end each of these questions takes a place that others wait for.
        """
        fresh_s = CHECK_FRESH_S if self.http else CHECK_FAILED_S
        if self.state not in ("starting", "serving") or time.monotonic() - self._checked_at < fresh_s:
            return self.http if self.state in ("starting", "serving") else 0
        if self.checking is None:
            self.checking = self.launcher.spawn(self._check())
        return await asyncio.shield(self.checking)

    async def _check(self) -> int:
        try:
            self.http = await asyncio.wait_for(self._ask(), CHECK_S)
        except (asyncio.TimeoutError, OSError, EOFError, ValueError):
            self.http = 0
        self._checked_at = time.monotonic()
        self.checking = None
        if 100 <= self.http < 500 and self.state == "starting":
            self.state = "serving"
            self.launcher.report.step("lab-serving")
        return self.http

    async def _ask(self) -> int:
        now = time.monotonic()
        reader, writer = await self.connect(max(now, self._began + COMES_UP_S) if self.state == "starting" else now)
        try:
            writer.write(QUESTION.format(self._target).encode("ascii"))
            line = (await reader.readline())[:64]  # the reader's limit bounds it
        finally:
            writer.transport.abort()
        match = re.match(rb"HTTP/1\.[01] ([1-5][0-9][0-9])\b", line)
        return int(match.group(1)) if match else 0

    def _read_output(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.launcher.loop.remove_reader(self._process.stdout.fileno())
        for line in self._output.lines(data):
            text = self.launcher.redactor.clean(line)
            if text.startswith("\x1e"):
                self.launcher.report.step(ascii_text(printable(text[1:]), 80))
            else:
                self.launcher.report.log(printable(text))

    def reap(self) -> None:
        """
        Collect every child that has ended. We are a subreaper: what the lab leaves behind becomes our child, so
        waiting for the lab alone would pile up zombies.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._process is not None and pid == self._process.pid:
                self._ended(status)

    def _ended(self, status: int) -> None:
        assert self._process is not None
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        self.exit_code = 128 + self.signal if self.signal else os.WEXITSTATUS(status)
        self._process.returncode = self.exit_code  # tells Popen that nothing is left to wait for
        for _ in range(64):  # the last words of the lab; bounded, a grandchild may still write
            before = self._output.received
            self._read_output()
            if self._output.received == before:
                break
        self.state = "ended"
        self.launcher.report.step("lab-ended")
        if not self.launcher.stopping:
            self.launcher.stop("the lab ended", self.exit_code)

    async def end(self) -> None:
        """Afterwards neither the lab nor anything that it started is running; bounded by `stop_s` and 4 s."""
        limit = self.launcher.limits["stop_s"]
        if self._process is not None and self.exit_code is None:
            self._signal_group(signal.SIGTERM)
            await self._until(limit, lambda: self.exit_code is not None or self._killed)
        for number, seconds in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            if self.exit_code is None and self._process is not None:
                number = signal.SIGKILL
            for pid in descendants(os.getpid()):
                kill(pid, number)
            await self._until(0 if self._killed and number != signal.SIGKILL else seconds, self._alone)
            for pid in descendants(os.getpid()):  # started while we looked
                kill(pid, signal.SIGKILL)

    def _alone(self) -> bool:
        self.reap()
        return (self._process is None or self.exit_code is not None) and not descendants(os.getpid())

    async def _until(self, seconds: float, condition: Any) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def kill_now(self) -> None:
        self._killed = True
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: int) -> None:
        if self._process is not None and self.exit_code is None:
            try:
                os.killpg(self._process.pid, number)
            except OSError:
                kill(self._process.pid, number)  # before its setsid

    def remove_sockets(self) -> None:
        for path in (self._socket, "private/gate.sock"):
            if path:
                remove(path)
        for directory in (self._directory, "private"):
            try:
                if directory:
                    os.rmdir(directory)
            except OSError:
                pass  # not empty or not there: whatever is in it is not ours


# -- reports ----------------------------------------------------------------------------------------------------


class Report:
    """`status.json`: what the job is doing, written at a bounded rate."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._lines: Deque[str] = collections.deque()
        self._bytes = 0
        self._steps: List[List[Any]] = []
        self._sequence = 0
        self._written_at = float("-inf")
        self._stepped = self._logged = False
        self.reason = ""

    def step(self, name: str, at: Optional[int] = None) -> None:
        if len(self._steps) < MAX_STEPS or name in ("lab-serving", "lab-ended", "stopping", "ended"):
            self._steps.append([name, at or int(time.time() * 1000)])
        self._stepped = True

    def log(self, line: str) -> None:
        self._launcher.scribe.log(line)
        short = line[:LOG_LINE_CHARS]
        self._lines.append(short)
        self._bytes += len(json.dumps(short))
        while len(self._lines) > self._launcher.limits["log_lines"] or self._bytes > LOG_TAIL_BYTES:
            self._bytes -= len(json.dumps(self._lines.popleft()))
        self._logged = True

    def flush(self, final: bool = False) -> None:
        """Steps after `status_s`, log lines at a tenth of that rate, and a sign of life every `heartbeat_s`."""
        age = time.monotonic() - self._written_at
        limits = self._launcher.limits
        due = (self._stepped and age >= limits["status_s"]) or (self._logged and age >= 10 * limits["status_s"])
        if not (due or final or age >= limits["heartbeat_s"]):
            return
        stepped, self._stepped, self._logged = self._stepped, False, False
        self._written_at = time.monotonic()
        self._sequence += 1
        text = self._launcher.gate.sign(self._document())
        self._launcher.scribe.write("status.json", text)
        if self._launcher.callback and (stepped or final):
            self._launcher.callback.post("status", text)

    def _document(self) -> Dict[str, Any]:
        launcher, lab = self._launcher, self._launcher.lab
        document = launcher.job.identity()
        document.update(
            kind="status",
            version=VERSION,
            sequence=self._sequence,
            time=int(time.time()),
            state="stopping" if launcher.stopping and lab.state != "ended" else lab.state,
            reason=printable(self.reason)[:500],
            steps=self._steps,
            walltime_left_s=launcher.walltime_left(),
            exit_code=launcher.exit_code if lab.state == "ended" else None,
            lab_exit_code=lab.exit_code,
            lab_signal=lab.signal,
            http=lab.http,
            streams=len(launcher.streams),
            bytes_in=launcher.bytes_in,
            bytes_out=launcher.bytes_out,
            last_activity=launcher.last_activity,
            log=list(self._lines),
        )
        return document


class Redactor:
    """Stars for every secret in the lab's output: labs like to print the address with its token."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: Set[bytes] = set()
        for secret in secrets:
            for part in [secret, *secret.splitlines()]:
                raw = part.encode("utf-8", "surrogateescape")
                if len(raw) < 8:
                    continue  # "yes" is not a secret, and starring it would garble every log
                forms.update((raw, raw.hex().encode("ascii"), raw.hex().upper().encode("ascii")))
                forms.update((base64.b64encode(raw).rstrip(b"="), base64.urlsafe_b64encode(raw).rstrip(b"=")))
                forms.add(re.sub(rb"[^A-Za-z0-9_.~-]", lambda char: b"%%%02X" % ord(char.group()), raw))
                forms.add(json.dumps(part)[1:-1].encode("ascii", "replace"))
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(re.escape(form) for form in ordered)) if ordered else None

    def clean(self, line: bytes) -> str:
        if self._pattern is not None:
            line = self._pattern.sub(b"********", line)
        return line[:LAB_LINE_BYTES].decode("utf-8", "replace")


class LineReader:
    """
    Lines out of chunks. A long line keeps its first 2 * LAB_LINE_BYTES bytes: it is cut for good only after the
    redactor has seen it, so that no secret is cut in two and missed.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.received = 0

    def lines(self, data: bytes) -> List[bytes]:
        """Complete lines; at the end (no data) also the incomplete one."""
        self.received += len(data)
        if not data:
            last, self._rest = self._rest, b""
            return [last] if last else []
        parts = (self._rest + data).split(b"\n")
        self._rest = parts.pop()[: 2 * LAB_LINE_BYTES]
        return [part[: 2 * LAB_LINE_BYTES].rstrip(b"\r") for part in parts]


class Scribe:
    """Writes files in a thread, because a file system that hangs must not cut streams. Latest text wins."""

    def __init__(self) -> None:
        self._pending: collections.OrderedDict[str, Optional[str]] = collections.OrderedDict()
        self._lines: Deque[str] = collections.deque(maxlen=1000)
        self._log_bytes = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="scribe", daemon=True)
        self._thread.start()

    def write(self, name: str, text: str) -> None:
        self._put(name, text)

    def remove(self, name: str) -> None:
        self._put(name, None)

    def log(self, line: str) -> None:
        with self._changed:
            self._lines.append(line)
            self._changed.notify()

    def close(self) -> None:
        """Write what is pending, for at most five seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(5)

    def _put(self, name: str, text: Optional[str]) -> None:
        with self._changed:
            self._pending[name] = text
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._pending or self._lines or self._closed):
                    self._changed.wait()
                if not (self._pending or self._lines):
                    return
                pending, self._pending = self._pending, collections.OrderedDict()
                lines = list(self._lines)
                self._lines.clear()
            for name, text in pending.items():
                try:
                    if text is None:
                        remove(name)
                    else:
                        write_atomically(name, text)
                except OSError:
                    pass  # quota or a sick file system: the session is worth more than its report
            self._append("".join(line + "\n" for line in lines))

    def _append(self, text: str) -> None:
        data = text.encode("utf-8", "replace")
        try:
            if not data:
                return
            if self._log_bytes + len(data) > LAB_LOG_BYTES and self._log_bytes:
                os.replace("lab.log", "lab.log.1")
                self._log_bytes = 0
            self._log_bytes += len(data)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            with os.fdopen(os.open("lab.log", flags, 0o600), "ab") as file:
                file.write(data[-LAB_LOG_BYTES:])
        except OSError:
            pass


class Callback:
    """Posts documents to the Hub's side where that can be reached; a hint only, so failures are ignored."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pending: collections.OrderedDict[str, str] = collections.OrderedDict()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="callback", daemon=True)
        self._thread.start()

    def post(self, kind: str, text: str) -> None:
        with self._changed:
            self._pending[kind] = text
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(2)

    def _work(self) -> None:
        import urllib.request

        class NoRedirect(urllib.request.HTTPRedirectHandler):
            """Documents go where the plan says and nowhere else."""

            def redirect_request(self, *_arguments: Any) -> None:
                return None

        opener = urllib.request.build_opener(NoRedirect)
        while True:
            with self._changed:
                while not (self._pending or self._closed):
                    self._changed.wait()
                if not self._pending:
                    return
                _, text = self._pending.popitem(last=False)
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(self._url, text.encode("ascii"), headers)  # noqa: S310 - the plan allows http and https only
            try:
                with opener.open(request, timeout=CALLBACK_S) as answer:
                    answer.read(1024)
            except Exception:  # noqa: BLE001, S110 - whatever a web server can do to us, the session goes on
                pass


# -- the operating system ---------------------------------------------------------------------------------------

# Source: Linux, include/uapi/linux/prctl.h
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the protection is simply not there."""
    try:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
    except (OSError, AttributeError):
        pass


def harden() -> None:
    prctl(PR_SET_DUMPABLE, 0)  # the secret is in our memory: no core dump, no ptrace by other processes of the user
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # kernels live in sessions of their own; orphaned, they come to us


def descendants(root: int) -> List[int]:
    """Every living process below `root`, children before grandchildren. Source: proc(5), /proc/PID/stat."""
    children: Dict[int, List[int]] = collections.defaultdict(list)
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                words = file.read(4096).rpartition(b")")[2].split()
        except OSError:
            continue
        if words and words[0] not in (b"Z", b"X"):
            children[int(words[1])].append(int(name))
    found: List[int] = []
    level = [root]
    while level:
        level = [child for parent in level for child in children.pop(parent, [])]
        found += level
    return found


def kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        pass  # it has just ended


def walltime_end(walltime_s: int) -> Optional[float]:
    """When the batch system ends the job, seconds since the epoch. Slurm says it itself since 22.05."""
    told = os.environ.get("SLURM_JOB_END_TIME", "")
    if re.fullmatch("[0-9]{1,12}", told) and int(told) > 0:
        return float(told)
    return time.time() + walltime_s if walltime_s else None


def warning_folder(ends_at: float) -> str:
    """
    A folder for JUPYTER_PATH that makes JupyterLab warn before the batch system ends the job; "" if it cannot be made.

    It holds an extension as JupyterLab finds them in `labextensions`, small enough to be written without its tools.
    Anything but JupyterLab takes no notice of it.
    """
    name = "moorage-time-left"
    folder = os.path.join("jupyter", "labextensions", name)
    build = {"load": "static/entry.js", "extension": "./it"}
    files = {
        "package.json": json.dumps({"name": name, "version": "1.0.0", "jupyterlab": {"_build": build}}),
        "install.json": json.dumps({"packageManager": "moorage", "uninstallInstructions": "ends with the session"}),
        "static/entry.js": WARNING % {"name": name, "ends": int(ends_at * 1000)},
    }
    try:
        os.makedirs(os.path.join(folder, "static"), 0o700, exist_ok=True)
        for file, text in files.items():
            with open(os.path.join(folder, file), "w", encoding="ascii") as opened:
                opened.write(text)
    except OSError:
        return ""  # a full quota: no warning, but a lab
    return os.path.abspath("jupyter")


def write_atomically(name: str, text: str) -> None:
    temporary = f".{name}.new"
    remove(temporary)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    os.replace(temporary, name)


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # not there


def printable(text: str) -> str:
    """Without colours and other terminal commands, and without characters that nobody can see."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)
    return "".join(
        char if char.isprintable() else " " if char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def ascii_text(text: str, limit: int) -> str:
    return text.encode("ascii", "replace").decode("ascii")[:limit]


def quiet(_loop: Any, context: Dict[str, Any]) -> None:
    """Name the class of an unexpected error, not its text, which could hold anything."""
    error = context.get("exception")
    if not isinstance(error, OSError):
        name = type(error).__name__ if error else context.get("message", "")
        trace = error.__traceback__ if error else None
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        line = trace.tb_lineno if trace is not None else 0
        sys.stderr.write(f"moorage: unexpected {name} in line {line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
