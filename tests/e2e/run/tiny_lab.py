"""A lab of few lines for tests: HTTP on the unix socket that it is told. `/end` makes it end with code 3."""

import http.server
import os
import socketserver
import sys


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/end":
            sys.stdout.write("the lab was told to end\n")
            sys.stdout.flush()
            os._exit(3)
        body = f"hello from {os.getpid()}, asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

    def address_string(self):
        return "the gate"  # a unix socket has no address


class Lab(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


Lab(sys.argv[1], Page).serve_forever()
