"""The store that fails: a proxy before the S3 server."""

import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Proxy(ThreadingHTTPServer):
    """Before the S3 server. fault: None, 503, or "down": it drops its connections and refuses others."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, upstream: str, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.upstream = upstream.removeprefix("http://")
        self.fault: int | str | None = None
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, fault: int | str | None) -> None:
        """Have this fault from now on."""
        before, self.fault = self.fault, fault
        if fault == "down":
            self.shutdown()
            self.server_close()
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()  # the port stays taken, and nobody listens
        elif before == "down":
            self.server_activate()
            self._serve()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """Passes requests on."""

    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_any(self) -> None:
        """Answer with the fault, or with what the S3 server says."""
        server = self.server
        body = self.body()
        if server.fault == "down":
            self.close_connection = True
            return
        if server.fault == 503:
            error = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            status, headers, body = 503, [("Content-Type", "application/xml")], error
        else:
            upstream = http.client.HTTPConnection(server.upstream, timeout=60)
            upstream.request(self.command, self.path, body=body, headers=self.passed())
            with upstream.getresponse() as answer:
                status, headers, body = answer.status, answer.getheaders(), answer.read()
            upstream.close()
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        """Of the request; pyarrow sends it in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def passed(self) -> dict[str, str]:
        """The headers of the request, for a body that is whole."""
        own = ("transfer-encoding", "content-length", "connection", "expect")
        return {name: value for name, value in self.headers.items() if name.lower() not in own}

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""
