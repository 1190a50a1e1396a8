"""The real launcher as a process: what is true of its gate, its lab, its reports and its end."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import pytest

from moorage.core.gate import LabState, Purpose, Unproven, Verdict, check_answer, request
from moorage.core.plan import EXIT_WALLTIME, GatePort, Lab
from moorage.core.secret import Secret
from moorage.launcher import source


def ends(stream: socket.socket) -> bool:
    """The far side ends the stream without another byte, politely or not."""
    try:
        return stream.recv(1) == b""
    except ConnectionError:
        return True


def answers_nothing(job, line: bytes) -> bool:
    """A stream that begins like this gets no byte back."""
    with job.connect() as stream, contextlib.suppress(ConnectionError):
        stream.sendall(line)
        return ends(stream)
    return True


# The normal life ---------------------------------------------------------------------------------------------


def test_a_life_from_admission_to_stop(make_job, every_python):
    job = make_job(every_python).start()
    assert job.ask(Purpose.PROBE).lab is LabState.WAITING
    assert job.ask(Purpose.ADMIT).lab is LabState.STARTING
    assert job.get("/first").endswith(b"/first")
    assert job.get("/second").endswith(b"/second")
    job.eventually(lambda: job.ask(Purpose.PROBE).http == 200, "the check that a moment ago found no lab to be over")
    probe = job.ask(Purpose.PROBE)
    assert (probe.verdict, probe.lab, probe.http) == (Verdict.OK, LabState.SERVING, 200)
    assert job.ask(Purpose.STOP).verdict is Verdict.OK
    assert job.wait() == 128 + signal.SIGTERM
    status = job.status()
    assert (status["state"], status["reason"]) == ("ended", "asked to stop through the gate")
    names = [step[0] for step in status["steps"]]
    assert names == ["launcher", "gate", "admitted", "lab-started", "lab-serving", "stopping", "lab-ended", "ended"]
    assert status["bytes_in"] > 0
    assert status["bytes_out"] > 0
    assert not (job.directory / "endpoint.json").exists()
    assert job.stderr() == ""


def test_the_first_valid_stream_starts_the_lab_and_its_bytes_wait(job):
    job.start()
    assert job.get("/hello").endswith(b"\r\n\r\n/hello")


def test_bytes_may_follow_the_line_in_the_same_packet(job):
    job.start().serving()
    with job.stream(b"RAW\nabc") as stream:
        stream.shutdown(socket.SHUT_WR)
        assert job.read_all(stream) == b"abc"


def test_64_mib_go_through_both_ways_with_half_close(job):
    job.start().serving()
    block = os.urandom(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()
    with job.stream(b"RAW\n") as stream:

        def send() -> None:
            for _ in range(64):
                sent.update(block)
                stream.sendall(block)
            stream.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        size = 0
        while data := stream.recv(1 << 16):
            received.update(data)
            size += len(data)
        sender.join()
    assert size == 64 << 20
    assert received.digest() == sent.digest()


def test_a_reader_that_stalls_stops_the_writer_and_costs_no_memory(job):
    """Back-pressure: neither socket nor launcher swallows what nobody reads."""
    job.start().serving()
    with job.stream(b"RAW\n") as stream:
        stream.settimeout(1)
        swallowed = 0
        with contextlib.suppress(TimeoutError):
            while swallowed < 64 << 20:
                swallowed += stream.send(bytes(1 << 16))
        assert swallowed < 64 << 20  # kernel buffers of four sockets; far from endless
        with open(f"/proc/{job.process.pid}/status") as status:
            resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
        assert resident < 64 * 1024
        assert job.get("/beside").endswith(b"/beside")


def test_bulk_goes_on_after_rests_and_small_talk_and_leaves_no_descriptor(job):
    """A direction that the kernel moves goes back to its old way when it rests, and is cut as quickly as any."""
    job.start().serving()
    quiet = descriptors_at_rest(job)
    block = os.urandom(4 << 20)
    with job.stream(b"RAW\n") as stream:
        for message in (block, b"small", block, b"talk"):
            sender = threading.Thread(target=stream.sendall, args=(message,))
            sender.start()
            received = b""
            while len(received) < len(message):
                received += stream.recv(1 << 20)
            sender.join()
            assert received == message
            time.sleep(0.4)  # longer than BULK_S
        job.eventually(lambda: descriptors_of(job) == quiet + 2, "only the two ends of the stream to be open")
        stream.settimeout(1)
        with contextlib.suppress(TimeoutError):
            while True:
                stream.sendall(block)  # until nothing moves any more
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    job.eventually(lambda: descriptors_of(job) == quiet, "every descriptor to be closed")
    assert job.get("/still").endswith(b"/still")
    assert job.stderr() == ""


def descriptors_at_rest(job) -> int:
    """What is open once the probes that found it ready are closed."""
    readings = []
    for _ in range(10):
        readings.append(descriptors_of(job))
        time.sleep(0.1)
    return min(readings)


def descriptors_of(job) -> int:
    return len(os.listdir(f"/proc/{job.process.pid}/fd"))


def test_an_aborted_stream_ends_at_the_lab_and_harms_no_other(job):
    job.start(limits={"heartbeat_s": 5}).serving()  # nothing else may write the report once the stream is forgotten
    stream = job.stream(b"RAW\nx")
    assert stream.recv(1) == b"x"
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()
    assert job.get("/still").endswith(b"/still")
    job.eventually(lambda: job.status()["streams"] == 0, "the stream to be forgotten")


# The gate ----------------------------------------------------------------------------------------------------


def test_the_answer_comes_before_any_byte_of_the_lab_and_is_bound_to_the_request(job):
    job.start().serving()
    asked, other = job.request(Purpose.STREAM), job.request(Purpose.STREAM)
    with job.connect() as stream:
        stream.sendall(asked.line + b"GET /x HTTP/1.1\r\n\r\n")
        line = job.read_line(stream)
    assert check_answer(job.key, asked, line).verdict is Verdict.OK
    with pytest.raises(Unproven):
        check_answer(job.key, other, line)
    with pytest.raises(Unproven):
        check_answer(Secret("00" * 32), asked, line)


def test_who_proves_nothing_hears_nothing_and_starts_nothing(job):
    job.start()
    good = job.request(Purpose.STREAM).line
    lines = {
        "wrong secret": job.request(Purpose.STREAM, secret=Secret("00" * 32)).line,
        "another attempt": job.request(Purpose.STREAM, tag=job.plan.tag[:-1] + "2").line,
        "an earlier run of the job": job.request(Purpose.STREAM, nonce="0" * 32).line,
        "purpose changed": good.replace(b" stream ", b" stop "),
        "counter changed": good.replace(good.split()[4], b"%d" % (int(good.split()[4]) + 1)),
        "challenge changed": good.replace(good.split()[5], b"0" * 32),
        "another version": good.replace(b"moorage/1", b"moorage/2"),
        "carriage return": good.replace(b"\n", b"\r\n"),
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "giant line": b"A" * 100_000,
        "giant after a good beginning": good[:-1] + b" " * 1000 + b"\n",
        "binary": bytes(range(256)) * 4,
        "empty line": b"\n",
        "tls": bytes.fromhex("16030100") + b"\n",
    }
    spoken = {name for name, line in lines.items() if not answers_nothing(job, line)}
    assert spoken == set()
    with job.connect() as stream:  # half a line, then the end
        stream.sendall(good[:100])
        stream.shutdown(socket.SHUT_WR)
        assert stream.recv(1) == b""
    assert job.ask(Purpose.PROBE).lab is LabState.WAITING
    assert job.stderr() == ""


def test_a_line_is_good_once(job):
    job.start().serving()
    asked = job.request(Purpose.STREAM)
    with job.connect() as stream:
        stream.sendall(asked.line)
        assert check_answer(job.key, asked, job.read_line(stream)).verdict is Verdict.OK
    with job.connect() as stream:
        stream.sendall(asked.line + b"GET /again HTTP/1.1\r\n\r\n")
        answer = check_answer(job.key, asked, job.read_line(stream))
        assert job.read_all(stream) == b""
    assert (answer.verdict, answer.lab) == (Verdict.STALE, None)


def test_a_recorded_stop_does_not_stop_another_run(make_job, python):
    """A requeued job has another nonce, so nothing recorded before works there."""
    first = make_job(python).start()
    recorded = first.request(Purpose.STOP).line
    first.signal(signal.SIGTERM)
    first.wait()
    second = make_job(python)
    second.key = first.key
    second.start()
    assert answers_nothing(second, recorded)
    assert second.ask(Purpose.PROBE).lab is LabState.WAITING


def test_counters_are_remembered_in_bounded_memory(job, python):
    """After more requests than the window holds, the oldest counters are refused as stale, with the floor."""
    window, start, nonce = 4096, 10_000, "0" * 32
    counters = [start, start - 1, start - 1, *range(start + 1, start + 1 + window), start - 2, start + window + 1]
    lines = [request(job.key, Purpose.PROBE, job.tag, nonce, each, "1" * 32).line for each in counters]
    job.directory.joinpath("moorage_launcher.py").write_text(source())
    judge = (
        "import sys, moorage_launcher as m\n"
        "gate = m.Gate(bytes.fromhex(sys.argv[1]), sys.argv[2], sys.argv[3])\n"
        "for line in sys.stdin.buffer:\n"
        "    print(int(gate.judge(line[:-1]).fresh))\n"
        "print(gate.floor, len(gate._seen), len(gate._heap))"
    )
    command = [python, "-B", "-c", judge, job.key.reveal(), job.tag, nonce]
    told = subprocess.run(command, input=b"".join(lines), cwd=job.directory, capture_output=True, timeout=60)
    *fresh, state = told.stdout.decode().splitlines()
    overtaken, replayed = "1", "0"
    assert fresh == ["1", overtaken, replayed, *"1" * window, "0", "1"], told.stderr
    assert state.split() == [str(start + 1), str(window), str(window)]


def test_a_slow_line_is_cut_off(job):
    job.start(limits={"line_s": 1})
    line = job.request(Purpose.STREAM).line
    began = time.monotonic()
    with job.connect() as stream:
        stream.settimeout(5)
        for byte in line[:40]:
            try:
                stream.sendall(bytes([byte]))
                time.sleep(0.05)
            except ConnectionError:
                break
        assert ends(stream)
    assert time.monotonic() - began < 4
    assert job.ask(Purpose.PROBE).lab is LabState.WAITING


def test_a_crowd_of_silent_connections_does_not_lock_us_out(job):
    job.start(limits={"unproven": 4, "line_s": 60})
    crowd = [job.connect() for _ in range(40)]
    assert job.ask(Purpose.PROBE).verdict is Verdict.OK
    descriptors = len(os.listdir(f"/proc/{job.process.pid}/fd"))
    assert descriptors < 20
    for stream in crowd:
        stream.close()


def test_streams_are_counted_and_the_table_can_be_full(job):
    job.start(limits={"streams": 2}).serving()
    kept = [job.stream(), job.stream()]
    asked = job.request(Purpose.STREAM)
    with job.connect() as stream:
        stream.sendall(asked.line)
        assert check_answer(job.key, asked, job.read_line(stream)).verdict is Verdict.FULL
    kept.pop().close()
    job.eventually(lambda: job.get("/free").endswith(b"/free"), "a place")
    kept.pop().close()


def test_streams_without_bytes_end(job):
    """Warm streams by their own limit, used ones by theirs."""
    job.start(limits={"warm_s": 1, "idle_s": 2}).serving()
    with job.stream() as warm, job.stream(b"RAW\nx") as used:
        assert used.recv(1) == b"x"
        began = time.monotonic()
        assert warm.recv(1) == b""
        assert time.monotonic() - began < 1.9
        assert ends(used)
        assert time.monotonic() - began > 1.5


def test_the_gate_can_be_a_unix_socket_that_others_cannot_reach(job):
    job.start(gate=GatePort(kind="unix"))
    where = job.endpoint()
    path = job.directory / where["socket"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert where["directory"] == str(job.directory)
    assert job.get("/unix").endswith(b"/unix")


def test_a_taken_port_of_the_range_is_passed_over(job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job.start(gate=GatePort(interface="127.0.0.1", host="127.0.0.1", port_first=port, port_last=port + 9))
        assert port < job.endpoint()["port"] <= port + 9
        assert job.ask(Purpose.PROBE).verdict is Verdict.OK


def test_a_port_in_use_is_said_plainly(job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        job.configure(gate=GatePort(interface="127.0.0.1", port_first=port, port_last=port)).write_files()
        job.launch()
        assert job.wait() == 66
    assert "cannot bind the gate: Address already in use" in job.stderr()
    assert json.loads((job.directory / "status.json").read_text())["exit_code"] == 66


def test_an_interface_goes_by_name_too(job):
    job.start(gate=GatePort(interface="lo", host="{address}"))
    assert job.endpoint()["host"] == "127.0.0.1"
    assert job.ask(Purpose.PROBE).verdict is Verdict.OK


# Admission and end -------------------------------------------------------------------------------------------


def test_unadmitted_it_exits_by_itself_and_never_starts_the_lab(job):
    job.start(limits={"admission_s": 1})
    assert job.ask(Purpose.PROBE).lab is LabState.WAITING  # a probe admits nobody
    assert job.wait(10) == 75
    assert job.status()["reason"] == "nobody admitted this job"
    assert "lab-started" not in [step[0] for step in job.status()["steps"]]


def test_the_exit_code_and_the_last_lines_are_the_labs(job):
    lines = "|".join(f"line {n}" for n in range(100))
    job.start(args=("--colours", "--exit=3"), command=(*job.plan.command, f"--print={lines}"))
    job.ask(Purpose.ADMIT)
    assert job.wait() == 3
    status = job.status()
    assert (status["exit_code"], status["lab_exit_code"], status["reason"]) == (3, 3, "the lab ended")
    assert status["log"][-2:] == ["line 99", "red\N{REPLACEMENT CHARACTER}"]
    assert len(status["log"]) == 50
    assert (job.directory / "lab.log").read_text().splitlines()[0] == "line 0"


def test_a_probe_after_the_end_of_the_lab_tells_its_exit_code(job):
    job.start(command=("/bin/sh", "-c", "trap '' TERM; sleep 600 & exec sh -c 'exit 7' {socket}"))
    answer = job.ask(Purpose.ADMIT)
    while answer.exit_code is None and not job.ended():
        try:
            answer = job.ask(Purpose.PROBE)
        except (OSError, Unproven):
            break
    assert answer.exit_code in (None, 7)
    assert job.wait() == 7


def test_a_probe_waits_a_moment_for_a_lab_that_was_just_started(job, python):
    """So who asks for it learns of it at once; but a second in all, because others wait for the place of the probe."""
    job.start(command=(python, "-c", "import time; time.sleep(600)", "{socket}"))
    job.ask(Purpose.ADMIT)
    began = time.monotonic()
    assert job.ask(Purpose.PROBE).http == 0
    assert 0.5 < time.monotonic() - began < 4
    took = []
    for _ in range(5):
        began = time.monotonic()
        assert job.ask(Purpose.PROBE).http == 0
        took.append(time.monotonic() - began)
    assert min(took) < 0.5


def test_a_probe_that_waits_learns_of_the_end_of_the_lab_at_once(job):
    job.start(command=("/bin/sh", "-c", "trap '' TERM; sleep 600 & exec sleep 0.2", "{socket}"))
    job.ask(Purpose.ADMIT)
    began = time.monotonic()
    answer = job.ask(Purpose.PROBE)
    assert (answer.lab, answer.http, answer.exit_code) == (LabState.ENDED, 0, 0)
    assert time.monotonic() - began < 4


def test_a_lab_that_cannot_start_is_told(job):
    job.start(command=("/nonexistent/lab", "{socket}"))
    job.ask(Purpose.ADMIT)
    assert job.wait() == 127
    assert job.status()["log"] == ["moorage: cannot start '/nonexistent/lab': No such file or directory"]


def test_a_directory_that_is_not_there_is_told(job):
    job.start(directory="/nonexistent")
    job.ask(Purpose.ADMIT)
    assert job.wait() == 127
    assert job.status()["reason"].startswith("cannot start the lab: No such file or directory")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_lab(job, number):
    job.start().serving()
    job.signal(number)
    assert job.wait() == 128 + signal.SIGTERM
    assert job.status()["reason"] == f"signal {number.name}"
    assert job.status()["lab_signal"] == signal.SIGTERM


def test_a_signal_before_admission_ends_the_job(job):
    job.start().signal(signal.SIGTERM)
    assert job.wait() == 143


def test_a_stop_before_admission_ends_the_job(job):
    assert job.start().ask(Purpose.STOP).lab is LabState.WAITING
    assert job.wait() == 0
    assert "lab-started" not in [step[0] for step in job.status()["steps"]]


def gone(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("stubborn", [(), ("--ignore-term",)], ids=["polite", "stubborn"])
def test_nothing_that_the_lab_started_survives(job, stubborn):
    """Neither a lab that ignores TERM nor its child in a session of its own that ignores it too."""
    pid_file = job.directory / "child.pid"
    job.start(args=(*stubborn, f"--leave-child={pid_file}"), limits={"stop_s": 1}).serving()
    job.signal(signal.SIGTERM)
    assert job.wait() == 128 + (signal.SIGKILL if stubborn else signal.SIGTERM)
    assert gone(int(pid_file.read_text()))


def test_a_second_signal_kills_at_once(job):
    job.start(args=("--ignore-term",), limits={"stop_s": 600}).serving()
    job.signal(signal.SIGTERM)
    job.eventually(lambda: job.status()["state"] == "stopping", "the stop")
    job.signal(signal.SIGTERM)
    assert job.wait(10) == 137


def test_the_lab_does_not_outlive_a_killed_launcher(job):
    report = job.directory / "report.json"
    job.start(args=(f"--report={report}",)).serving()
    lab = next(int(pid) for pid in os.listdir("/proc") if pid.isdigit() and is_child(int(pid), job.process.pid))
    job.signal(signal.SIGKILL)
    job.wait()
    job.eventually(lambda: gone(lab), "the lab to end")


def is_child(pid: int, parent: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1]) == parent
    except OSError:
        return False


# What the lab gets -------------------------------------------------------------------------------------------


def test_only_the_operators_words_reach_a_shell(job, tmp_path):
    """A hostile argument and value arrive as they are; set-up commands cannot lose the arguments."""
    bait = tmp_path / "bait"
    hostile = f"$(touch {bait}) `touch {bait}` '; touch {bait} #\" {{socket}} *"
    report = job.directory / "report.json"
    job.environment["MOORAGE_UMASK"] = "0027"
    job.start(
        setup=(
            "FROM_SETUP=1\nexport FROM_SETUP",
            '[ "$#" = 0 ] && set -- lost',
            'export QUOTED="$USERS"; [ "$*" = lost ]',
        ),
        args=(f"--report={report}", f"--User.value={hostile}"),
        environment=(("USERS", hostile),),
    ).serving()
    told = json.loads(report.read_text())
    assert f"--User.value={hostile}" in told["argv"]
    assert told["environment"]["USERS"] == hostile
    assert told["environment"]["QUOTED"] == hostile
    assert told["environment"]["FROM_SETUP"] == "1"
    assert told["environment"]["LAB_TOKEN"] == job.canary
    assert told["environment"]["MOORAGE_TAG"] == job.plan.tag
    assert told["umask"] == "0o27"
    assert told["cwd"] == str(job.directory)
    assert not bait.exists()
    job.eventually(lambda: "lab-serving" in [step[0] for step in job.status()["steps"]], "the report")
    names = [step[0] for step in job.status()["steps"]]
    assert names[3:8] == ["lab-started", "set-up 1", "set-up 2", "set-up 3", "exec"]


def test_modules_are_loaded_by_name_and_a_missing_one_is_told(job):
    """With a `module` function as login shells define it."""
    home = job.directory / "home"
    home.mkdir()
    (home / ".bash_profile").write_text(
        'module() { [ "$2" != missing ] || return 1; LOADED="$LOADED<$1:$2>"; export LOADED; }\n'
    )
    job.environment["HOME"] = str(home)
    report = job.directory / "report.json"
    job.start(modules=("Stages/2025", "Python/3.11"), args=(f"--report={report}",)).serving()
    assert json.loads(report.read_text())["environment"]["LOADED"] == "<load:Stages/2025><load:Python/3.11>"
    job.signal(signal.SIGTERM)
    job.wait()
    job.start(modules=("missing",)).ask(Purpose.ADMIT)
    assert job.wait() == 96
    assert job.status()["log"][-1] == "moorage: module load missing failed"
    assert "module missing" in [step[0] for step in job.status()["steps"]]


def test_a_failing_set_up_command_is_told_by_number(job):
    job.start(setup=("true", "false")).ask(Purpose.ADMIT)
    assert job.wait() == 97
    assert job.status()["log"][-1] == "moorage: set-up command 2 failed"


def test_the_lab_can_listen_on_a_loopback_port(job):
    job.start(lab=Lab(listen="tcp"), command=(*job.plan.command[:-1], "--port={port}"))
    assert job.get("/tcp").endswith(b"/tcp")


THIEF = """
import os, socket, sys
os.setuid(65534)
listener = socket.socket()
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(5)
print("LISTENING", flush=True)
while True:
    data = listener.accept()[0].recv(99)
    if data:
        print("GOT", data, flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as a second user")
def test_a_loopback_port_that_another_user_took_gets_no_byte(job):
    """The lab of this plan is another user's listener; the real one could not bind."""
    thief = job.directory / "thief.py"
    thief.write_text(THIEF)
    command = (job.python, str(thief), "{port}")
    job.start(lab=Lab(listen="tcp"), command=command, limits={"lab_start_s": 2})
    with job.stream(b"GET /secret HTTP/1.1\r\n\r\n") as stream:
        assert ends(stream)
    assert job.ask(Purpose.PROBE).http == 0
    job.signal(signal.SIGTERM)
    job.wait()
    log = (job.directory / "lab.log").read_text()
    assert "LISTENING" in log
    assert "GOT" not in log


def test_a_job_directory_with_a_long_path_still_has_a_lab_socket(make_job, python, tmp_path):
    job = make_job(python)
    job.directory = tmp_path / ("d" * 120)
    job.environment["TMPDIR"] = str(tmp_path / "short")
    (tmp_path / "short").mkdir()
    job.start()
    assert job.get("/long").endswith(b"/long")
    job.signal(signal.SIGTERM)
    job.wait()
    assert os.listdir(tmp_path / "short") == []


# Reports -----------------------------------------------------------------------------------------------------


def test_walltime_left_comes_from_the_plan_or_from_slurm(make_job, python):
    job = make_job(python).start(walltime_s=3600)
    assert 3590 <= job.ask(Purpose.PROBE).left_s <= 3600
    job.eventually(lambda: job.directory.joinpath("status.json").exists(), "status.json")
    assert 3590 <= job.status()["walltime_left_s"] <= 3600
    slurm = make_job(python)
    slurm.environment["SLURM_JOB_END_TIME"] = str(int(time.time()) + 120)
    assert 110 <= slurm.start(walltime_s=3600).ask(Purpose.PROBE).left_s <= 120
    assert make_job(python).start().ask(Purpose.PROBE).left_s is None


def test_a_job_that_nobody_ends_at_its_walltime_ends_itself_a_minute_later(job):
    job.environment["SLURM_JOB_END_TIME"] = str(int(time.time()) - 57)
    job.start(walltime_s=3600).serving()
    assert job.wait(20) == EXIT_WALLTIME
    assert job.status()["reason"] == "the walltime is over"


def test_jupyterlab_finds_a_warning_with_the_time_of_the_end(make_job, python):
    """Beside what the site says in JUPYTER_PATH; without a walltime there is nothing to warn of."""
    job = make_job(python)
    job.environment |= {"SLURM_JOB_END_TIME": "2000000000", "JUPYTER_PATH": "/site/jupyter"}
    report = job.directory / "report.json"
    job.start(walltime_s=3600, args=(f"--report={report}",)).serving()
    site, ours = json.loads(report.read_text())["environment"]["JUPYTER_PATH"].split(os.pathsep)
    assert (site, ours) == ("/site/jupyter", str(job.directory / "jupyter"))
    extension = Path(ours, "labextensions", "moorage-time-left")
    build = json.loads((extension / "package.json").read_text())["jupyterlab"]["_build"]
    assert "2000000000000" in (extension / build["load"]).read_text()
    endless = make_job(python)
    endless.start(args=(f"--report={endless.directory / 'report.json'}",)).serving()
    assert not (endless.directory / "jupyter").exists()


def test_reports_are_posted_where_they_can_be(job, postbox):
    url, received = postbox
    job.start(callback=url).serving()
    job.signal(signal.SIGTERM)
    job.wait()
    kinds = [document["kind"] for document in received]
    assert kinds[0] == "endpoint"
    assert received[-1]["state"] == "ended"
    for document in received:  # proven like the files
        proof = document.pop("mac")
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        key = bytes.fromhex(job.key.reveal())
        assert proof == hmac.new(key, b"document\n" + text.encode(), hashlib.sha256).hexdigest()


def test_a_callback_that_nobody_answers_changes_nothing(job):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # accepts and says nothing
        job.start(callback=f"http://127.0.0.1:{silent.getsockname()[1]}/x").serving()
        job.signal(signal.SIGTERM)
        began = time.monotonic()
        assert job.wait() == 143
        assert time.monotonic() - began < 8


def test_a_chatty_lab_fills_neither_disk_nor_report(job):
    code = "import sys\nfor n in range(60000): print('%d ' % n + 'ü' * 99)\nprint('end')\nsys.exit(5)"
    job.start(command=(job.python, "-c", code, "{socket}"), environment=(("PYTHONIOENCODING", "utf-8"),))
    job.ask(Purpose.ADMIT)
    assert job.wait() == 5
    sizes = {name: len(data) for name, data in job.files().items()}
    assert sizes["lab.log"] <= 2 << 20
    assert sizes["lab.log.1"] <= 2 << 20
    assert sizes["status.json"] < 65_536
    assert job.status()["log"][-1] == "end"


# Secrets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [0, 8180, 8192 * 2 - 20])
def test_no_secret_is_left_anywhere(job, indent, postbox):
    """The lab prints its token, also across the place where long lines are cut; nobody reads it afterwards."""
    url, received = postbox
    command = (*job.plan.command, "--print-variable=LAB_TOKEN", f"--indent={indent}")
    job.start(command=command, callback=url)
    assert not (job.directory / "secret.json").exists()
    job.serving()
    argv = process_list()
    with open(f"/proc/{job.process.pid}/environ", "rb") as file:
        environment = file.read()
    job.signal(signal.SIGTERM)
    job.wait()
    files = job.files()
    assert b"token=" in files["lab.log"] or indent > 8000
    places = {**files, "process list": argv, "environment": environment, "posted": json.dumps(received).encode()}
    for secret in (job.canary, job.key.reveal()):
        raw = secret.encode()
        pieces = [raw[n : n + 12] for n in range(len(raw) - 11)]
        pieces += [base64.b64encode(raw)[:24], raw.hex()[:24].encode(), urllib.parse.quote(secret).encode()]
        leaks = {place for place, data in places.items() for piece in pieces if piece in data}
        assert leaks == set()


def process_list() -> bytes:
    text = b""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            text += Path(f"/proc/{pid}/cmdline").read_bytes() + b"\n"
        except OSError:
            continue
    return text


def test_files_are_the_owners_alone(job):
    job.start().serving()
    job.signal(signal.SIGTERM)
    job.wait()
    for name in ("status.json", "lab.log"):
        assert stat.S_IMODE((job.directory / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_file_that_others_can_read_is_refused(job, mode):
    job.write_files()
    (job.directory / "secret.json").chmod(mode)
    job.launch()
    assert job.wait() == 65
    assert "the secret file is unusable: others could read it" in job.stderr()
    assert job.canary not in job.stderr()


@pytest.mark.parametrize("kind", ["link", "directory", "missing", "huge", "pipe", "not json", "short key"])
def test_a_secret_file_that_is_none_is_refused(job, kind):
    job.write_files()
    path = job.directory / "secret.json"
    path.rename(job.directory / "elsewhere")
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "directory":
        path.mkdir(0o700)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind != "missing":
        texts = {
            "huge": "x" * (2 << 20),
            "not json": job.canary,
            "short key": json.dumps({"gate": "ab", "environment": {}}),
        }
        path.touch(0o600)
        path.write_text(texts[kind])
    job.launch()
    assert job.wait() == 65
    assert "secret file" in job.stderr()
    assert job.canary not in job.stderr()
    assert not (job.directory / "endpoint.json").exists()


def test_a_job_that_may_be_requeued_keeps_its_secret_and_follows_to_the_next_run(job):
    job.start(requeue=True)
    nonce = job.endpoint()["nonce"]
    job.signal(signal.SIGTERM)
    job.wait()
    job.environment["SLURM_RESTART_COUNT"] = "1"
    job.launch()
    again = job.endpoint()
    assert again["nonce"] != nonce
    assert again["restarts"] == 1
    assert job.ask(Purpose.PROBE).lab is LabState.WAITING  # a new admission is needed
    assert job.get("/again").endswith(b"/again")


def test_a_job_that_is_requeued_unexpectedly_ends(job):
    job.start().signal(signal.SIGTERM)
    job.wait()
    job.launch()
    assert job.wait() == 65
    assert "has this job run before?" in job.stderr()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "[" * 100_000, "\udcff"], ids=range(6))
def test_an_unusable_plan_is_told(job, text):
    job.write_files()
    (job.directory / "plan.json").write_text(text, errors="surrogateescape")
    job.launch()
    assert job.wait() == 64
    assert "plan.json" in job.stderr()
    assert (job.directory / "secret.json").exists()  # not touched before the plan is known


# The real thing ----------------------------------------------------------------------------------------------


def test_a_real_jupyterlab_answers_through_the_gate(make_job):
    """
    HTTP and a WebSocket upgrade, with the lab on a unix socket that nobody else can open, below JupyterHub's prefix.

    Its log is for what its user did: that it is asked whether it lives, again and again, is not in there.
    """
    job = make_job(sys.executable)
    job.secrets["JUPYTERHUB_SERVICE_PREFIX"] = "/user/ada/lab/"
    job.environment |= {"HOME": str(job.directory), "JUPYTER_PLATFORM_DIRS": "1"}
    job.configure(
        command=(sys.executable, "-m", "jupyterlab", "--ServerApp.sock={socket}", "--no-browser", "--allow-root"),
        args=("--ServerApp.base_url=/user/ada/lab/",),
        environment=(("JUPYTER_TOKEN", "test-token"),),
        limits={"stop_s": 10},
    )
    job.write_files()
    job.launch()
    job.endpoint()
    assert b'"version"' in job.get("/user/ada/lab/api")
    headers = {"Host": "localhost", "Authorization": "token test-token", "Content-Type": "application/json"}
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with job.stream(
        f"POST /user/ada/lab/api/kernels HTTP/1.1\r\n{text}Content-Length: 2\r\n\r\n{{}}".encode()
    ) as stream:
        head = stream.recv(65536)
        while b"\r\n\r\n{" not in head:
            head += stream.recv(65536)
        kernel = json.loads(head.split(b"\r\n\r\n", 1)[1])["id"]
    upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    with job.stream(
        f"GET /user/ada/lab/api/kernels/{kernel}/channels HTTP/1.1\r\n{text}{upgrade}\r\n".encode()
    ) as stream:
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += stream.recv(4096)
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer  # the sample of RFC 6455, section 1.3
    assert job.ask(Purpose.PROBE).http == 304
    job.signal(signal.SIGTERM)
    job.wait(30)
    log = (job.directory / "lab.log").read_text()
    assert "/user/ada/lab/" in log
    assert "GET /user/ada/lab/api (" not in log
    assert " 404 " not in log
    assert [pid for pid in os.listdir("/proc") if pid.isdigit() and kernel.encode() in command_of(pid)] == []


def command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
