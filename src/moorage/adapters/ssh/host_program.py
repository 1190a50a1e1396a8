# What runs on a host without a batch system, for the kind `ssh-host`: one call, one answer, nothing that stays.
#
# This file is the program's text and is not imported; it goes to `python3 -I -` as input. Python 3.6 or newer, Linux.
# Arguments: verb, directory of jobs, tag or its beginning, job id, seconds (of walltime, or of grace before a kill).
# Output: one JSON document.
#
# A job is a wrapper with a session of its own that runs start.sh, waits for it, and writes its exit code. Its id is
# pid, start time in ticks since boot, and boot, so a number that is used again is never taken for it. Processes of a
# job are found by a variable in their environment, because kernels of a lab have sessions of their own.
#
# ruff: noqa: UP006, UP035, UP045 (types as Python 3.6 writes them)
import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional

WRAPPER = """\
trap : TERM INT HUP
timeout -k 30 "$1" /bin/bash ./start.sh >stdout 2>stderr </dev/null
code=$?
printf '%s\\n' "$code" >exit.tmp && mv exit.tmp exit.code
"""
TAG = re.compile("m[a-z0-9]{1,63}$")


def main(verb: str, base: str, tag: str, job: str, seconds: str) -> Dict[str, Any]:
    base = os.path.expanduser(base)
    if verb == "start":
        return {"job": start(os.path.join(base, tag), tag, str(int(float(seconds))))}
    if verb == "clean":
        # What the job left running when it ended.
        end(tag, signal.SIGKILL)
        return {}
    if verb == "list":
        return {"jobs": [told(os.path.join(base, name), name) for name in sorted(tags(base)) if name.startswith(tag)]}
    if verb == "cancel":
        cancel(os.path.join(base, tag), tag, job, float(seconds))
        return {"jobs": [told(os.path.join(base, tag), tag)]}
    raise SystemExit("unknown verb")


def tags(base: str) -> List[str]:
    try:
        return [name for name in os.listdir(base) if TAG.match(name)]
    except FileNotFoundError:
        return []


def start(directory: str, tag: str, walltime: str) -> str:
    """Start the job unless it was started before; its id."""
    lock = os.open(directory, os.O_RDONLY)
    try:
        # Held by nobody but another start of this very job.
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = noted(directory)
        if before:
            return before
        process = subprocess.Popen(  # noqa: S603 (constants only)
            ["/bin/bash", "-c", WRAPPER, "moorage-job", walltime],
            cwd=directory,
            env=dict(os.environ, MOORAGE_JOB=tag),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        job = f"{process.pid}.{started(process.pid) or 0}.{boot()}"
        write(os.path.join(directory, "job.id"), job)
        process.returncode = 0  # it is init's child from now on; nothing is to warn about it
        return job
    finally:
        os.close(lock)


def told(directory: str, tag: str) -> Dict[str, Any]:
    """What can be said about the job of a directory; `job` is empty if none was ever started."""
    job = noted(directory)
    alive = bool(job) and is_alive(directory, job, tag)
    code = exit_code(directory) if job and not alive else None
    ended = os.path.exists(os.path.join(directory, "cancelled"))
    same_boot = job.endswith("." + boot())
    return {"tag": tag, "job": job, "alive": alive, "code": code, "cancelled": ended, "same_boot": same_boot}


def is_alive(directory: str, job: str, tag: str) -> bool:
    pid, begun, booted = job.split(".")
    if booted != boot():
        return False
    # Without its wrapper a job still lives in what it started, unless it ended as it should.
    return started(int(pid)) == begun or (exit_code(directory) is None and bool(members(tag)))


def cancel(directory: str, tag: str, job: str, grace: float) -> None:
    """Ask all processes of the job to end; once they were asked longer ago than `grace`, do not ask."""
    if noted(directory) != job or not is_alive(directory, job, tag):
        return
    mark = os.path.join(directory, "cancelled")
    try:
        asked = os.stat(mark).st_mtime
    except FileNotFoundError:
        write(mark, "")
        asked = time.time()
    end(tag, signal.SIGKILL if time.time() - asked > grace else signal.SIGTERM)


def end(tag: str, number: int) -> None:
    for pid in members(tag):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def exit_code(directory: str) -> Optional[int]:
    try:
        with open(os.path.join(directory, "exit.code")) as file:
            return int(file.read(16))
    except (OSError, ValueError):
        return None


def noted(directory: str) -> str:
    try:
        with open(os.path.join(directory, "job.id")) as file:
            job = file.read(200)
    except OSError:
        return ""
    return job if re.match(r"[0-9]+\.[0-9]+\.[0-9a-f]{8}$", job) else ""


def members(tag: str) -> List[int]:
    """Live processes of a job."""
    wanted = b"MOORAGE_JOB=" + tag.encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if wanted not in file.read().split(b"\0"):
                        continue
                if started(int(name)):
                    found.append(int(name))
            except OSError:
                pass
    return found


def started(pid: int) -> str:
    """Start time of a process in ticks since boot; empty if it is gone or only waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read(8)


def write(path: str, text: str) -> None:
    with open(path + ".tmp", "w") as file:
        file.write(text)
    os.rename(path + ".tmp", path)


if __name__ == "__main__":
    os.umask(0o077)
    json.dump(main(*sys.argv[1:6]), sys.stdout)
    sys.stdout.write("\n")
