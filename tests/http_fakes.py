"""What the tests of bad connections share: a server with one answer, and a proxy with a fault for each request."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.faults import proxy
from benchmarks.faults.proxy import SLOW_DOWN, refusal

REFUSALS = {503: SLOW_DOWN, 403: refusal(403, "AccessDenied", "Access Denied")}


@contextmanager
def answering(body: bytes, status: int = 200, length: int | None = None) -> Iterator[str]:
    """The URL of a server that gives this answer to every GET. length: what it tells of the body; None: the truth."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class Handler(proxy.Handler):
    server: "Proxy"

    def answer(self, body: bytes) -> None:
        if self.command != "GET":
            super().answer(body)
            return
        server, name = self.server, self.path.split("/", 2)[-1]
        with server.lock:
            server.gets.append((name, self.headers["Range"]))
            fault = server.fault(len(server.gets) - 1, name)
        kind, value = fault if isinstance(fault, tuple) else (None, None)
        answer = REFUSALS[fault] if isinstance(fault, int) else self.upstream(body)
        if kind == "other":
            answer = answer._replace(headers=[], body=value)
        if kind == "slow":
            time.sleep(value)
        passes = value if kind in ("cut", "stall") else len(answer.body)
        self.close_connection |= kind in ("cut", "stall")
        self.give(answer, passes)
        with server.lock:
            server.sent += passes
        if kind == "stall":
            server.stalled.set()
            server.ending.wait()


class Proxy(proxy.Proxy):
    """Also counts. `fault(n, name)` says what becomes of the n-th GET: None, a status, ("cut", bytes that pass),
    ("stall", bytes that pass until it ends), ("other", contents) or ("slow", seconds)."""

    def __init__(self, upstream: str) -> None:
        self.ending = threading.Event()
        self.lock = threading.Lock()
        self.reset()
        super().__init__(upstream, "127.0.0.1", Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def reset(self) -> None:
        """As at first, but for a failure."""
        self.fault: Callable[[int, str], object] = lambda n, name: None
        self.gets: list[tuple[str, str | None]] = []  # name, Range
        self.sent = 0  # bytes of bodies
        self.stalled = threading.Event()

    def end(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()

    def names(self) -> Counter[str]:
        return Counter(name for name, _ in self.gets)
