"""
A tiny lab for tests: standard library, Python 3.6 or newer.

Answers HTTP GET with 200 and its path, and a first line "RAW" with an echo of all bytes until the end of the stream,
which it passes on. Options:

--sock=PATH or --port=N     where to listen
--report=FILE               tell there how it was started
--print=LINE|LINE  --colours  --print-variable=NAME with --indent=N before it
--exit=CODE                 after printing
--ignore-term
--leave-child=FILE          a process in a session of its own that ignores TERM and writes its pid there
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def serve(connection):
    with connection:
        first = b""
        while b"\n" not in first and len(first) < 4096:
            data = connection.recv(4096)
            if not data:
                return
            first += data
        line, _, rest = first.partition(b"\n")
        if line == b"RAW":
            while True:
                connection.sendall(rest)
                rest = connection.recv(65536)
                if not rest:
                    break
            connection.shutdown(socket.SHUT_WR)
            return
        body = line.split()[1]
        head = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n".format(len(body))  # noqa: UP032
        connection.sendall(head.encode() + body)


def main(argv):
    options = dict(item.lstrip("-").partition("=")[::2] for item in argv if item.startswith("--"))
    report = {"argv": argv, "cwd": os.getcwd(), "umask": oct(os.umask(0o22)), "environment": dict(os.environ)}
    if "report" in options:
        with open(options["report"], "w") as file:
            json.dump(report, file)
    if "ignore-term" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "leave-child" in options:
        code = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        code += "open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code, options["leave-child"]], start_new_session=True)
        while not (os.path.exists(options["leave-child"]) and os.path.getsize(options["leave-child"])):
            time.sleep(0.01)
    for line in options.get("print", "").split("|"):
        sys.stdout.write(line + "\n")
    if "colours" in options:
        sys.stdout.write("\x1b[31mred\x1b[0m\x07\n")
    if "print-variable" in options:
        value = os.environ[options["print-variable"]]
        sys.stdout.write("x" * int(options.get("indent", 0)) + "token=" + value + "\n")
    sys.stdout.flush()
    if "exit" in options:
        sys.exit(int(options["exit"]))
    if "sock" in options:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(options["sock"])
    else:
        listener = socket.socket()
        listener.bind(("127.0.0.1", int(options["port"])))
    listener.listen(128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
