"""The store that fails: a proxy before the S3 server."""

import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a client is given. headers: all but those of the body's length."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def refusal(status: int, code: str, message: str) -> Answer:
    """An error as an S3 server tells it."""
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Answer(status, [("Content-Type", "application/xml")], error.encode())


SLOW_DOWN = refusal(503, "SlowDown", "Please reduce your request rate.")


class Handler(BaseHTTPRequestHandler):
    """Passes requests on."""

    protocol_version = "HTTP/1.1"
    server: "Proxy"

    def handle_any(self) -> None:
        """Answer, unless the store is down."""
        body = self.body()
        if self.server.failure == "down" or body is None:
            self.close_connection = True
        else:
            self.answer(body)

    def answer(self, body: bytes) -> None:
        """Give the failure, or what the S3 server says. body: the request's."""
        self.give(SLOW_DOWN if self.server.failure == 503 else self.upstream(body))

    def upstream(self, body: bytes) -> Answer:
        """What the S3 server says; to HEAD, with the length that it tells."""
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)
        connection.request(self.command, self.path, body=body, headers=self.passed())
        with connection.getresponse() as answer:
            told = Answer(answer.status, answer.getheaders(), answer.read())
        connection.close()
        return told

    def give(self, answer: Answer, passes: int | None = None) -> None:
        """Send an answer. passes: only this many bytes of the body, though its full length is told."""
        self.send_response_only(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:passes])

    def body(self) -> bytes | None:
        """The body of the request, which pyarrow sends in chunks; None if the client broke off."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None
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
        """Log nothing."""


class Proxy(ThreadingHTTPServer):
    """The proxy before the S3 server. failure: None, 503, or "down": it drops its connections and refuses others."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, upstream: str, address: str, handler: type[Handler] = Handler) -> None:
        super().__init__((address, 0), handler)
        self.upstream = upstream.removeprefix("http://")
        self.failure: int | str | None = None
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, failure: int | str | None) -> None:
        """Have this failure from now on."""
        before, self.failure = self.failure, failure
        if failure == "down":
            self.shutdown()
            self.server_close()
            self.socket = socket.socket(self.address_family, self.socket_type)
            self.server_bind()  # the port stays taken, and nobody listens
        elif before == "down":
            self.server_activate()
            self._serve()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
