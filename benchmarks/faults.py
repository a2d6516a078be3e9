"""What training does when things break: faults at random moments of a small run, and what became of each.

    python benchmarks/faults.py --work DIR [--fault NAME ...] [--times 10] [--seed 0] [--hosts local] [--json FILE]

A recipe of seconds trains on a Ray cluster of two nodes with one rank each: undisturbed, and then for each fault and time
in a store of its own, with the fault at a moment that is drawn evenly from the start of the fit to the last step of the
undisturbed run: so long after the step that was seen last at that moment. Where `memoir train` ends with an error, or is
killed, the cause is mended and the same command is given once more. Faults:

- rank0, rank1: SIGKILL of a rank;
- node: SIGKILL of the second node with all its processes; a new node joins;
- preempted: SIGTERM to all processes of the second node, SIGKILL after 10 s; a new node joins;
- driver: SIGKILL of `memoir train`, and the same command again at once;
- network: the second host is cut off for 20 s (two-hosts only);
- unavailable, down: the bucket answers 503, or refuses connections, for 20 s;
- full: the store's file system has no space left (needs root);
- truncated: the driver is killed, and a file of the newest checkpoint loses its second half;
- clock: the wall clock of the second node jumps an hour ahead or back (needs `pip install libfaketime`).

--hosts local: two nodes on this machine; two-hosts: two network namespaces with addresses of their own (needs root and
`ip`). The bucket is moto's server behind a proxy. DIR keeps the log of each run; FILE (DIR/faults.jsonl) has a line for
each, and a series that was stopped goes on after the last.

Outcomes: recovered (without help), again (by the same command), error (told in a line, twice); and bad ones: weights
(others than undisturbed), loss (records missing or doubled), hang (ten times as long as undisturbed),
traceback, crash (no line at all). Steps lost are those done again, seconds lost those of `memoir train` beyond the one
undisturbed run, so a machine whose speed changes meanwhile changes them. Orphans are processes that outlive the run by
60 s. Ends with 1 after a bad outcome or an orphan.
"""

import argparse
import ctypes
import fcntl
import hashlib
import http.client
import importlib.util
import json
import logging
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from pipeline.errors import UserError, nearest
from pipeline.images import write_image

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
POLL = 0.1  # seconds between two looks at a run
PATIENCE = 10.0  # undisturbed runs that a command may last
OUTAGE = 20.0  # seconds that a store or a network is away
GRACE = 10.0  # seconds between SIGTERM and SIGKILL
ORPHAN = 60.0  # seconds that the processes of a run have to end after it
TRIES = 5  # of a run that ends before its fault
BUCKET = "faults"
NOTE = ".cluster"  # in DIR: the cluster's folder
BAD = ("weights", "loss", "hang", "traceback", "crash")
# What a raylet keeps when a run is over: idle workers, its agents, Ray Train's coordinator of the whole cluster.
KEPT = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")
RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 8, "bn_momentum": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 16},
    "optimisation": {
        "optimiser": "adam",
        "lr": 0.002,
        "schedule": "cosine",
        "length": {"steps": 400},
        "precision": "bf16",
    },
    "training": {"workers": 2, "log_every": 4, "validate_every": 200, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10, 20]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
    "shard_bytes": 65536,
}
PARAMS = {
    "store": "store",
    "datasets": {"photos": {"layout": "folder", "root": "photos"}},
    "tasks": ["tiny"],
    "recipes": {"tiny": {"task": "tiny"}},
}


class MissedError(Exception):
    """The run was over before its fault."""


# what a run was


class Attempt(NamedTuple):
    """One command. code: its exit code, None: it did not end in its time. killed: by the fault."""

    code: int | None
    output: str
    killed: bool
    seconds: float

    @property
    def line(self) -> str:
        """The line that tells the user what to mend; "" where there is none."""
        told = [line for line in self.output.splitlines() if line.startswith("memoir: ")]
        return told[-1] if told else ""

    @property
    def last(self) -> str:
        """That line, or else the last one."""
        return self.line or (self.output.strip().splitlines() or [""])[-1]


class Result(NamedTuple):
    """What a finished run has left: its name, sha256 of the weights in the store, and of the curve, which has no timings."""

    run: str
    weights: str
    curve: str


def outcome(attempts: list[Attempt], result: Result | None, undisturbed: Result) -> str:
    """One word for a run; see the top of this file. result: None if no attempt has finished."""
    for attempt in attempts:
        if attempt.code is None:
            return "hang"
        if "Traceback (most recent call last)" in attempt.output:
            return "traceback"
        if attempt.code and not attempt.killed and not attempt.line:
            return "crash"
    if result is None:
        return "error"
    if result.weights != undisturbed.weights:
        return "weights"
    if result.curve != undisturbed.curve:
        return "loss"
    return "recovered" if len(attempts) == 1 else "again"


class Moment(NamedTuple):
    """Seconds after the first sight of a step; of step 0: after the start of the fit."""

    step: int
    seconds: float


def moment(seed: int, fault: str, time: int, attempt: int, seen: list[tuple[float, int]]) -> Moment:
    """When a fault strikes: uniform over the time of the undisturbed run, the same for the same arguments.

    seen: seconds after the start of its fit, and the steps that were seen then, from (0, 0) to the last.
    """
    at = random.Random(f"{seed} {fault} {time} {attempt}").uniform(0, seen[-1][0])
    since, step = max(each for each in seen if each[0] <= at)
    return Moment(step, at - since)


def started_ranks(log: str) -> list[dict[int, int]]:
    """Of each group of workers that the log of Ray Train's controller tells of: rank -> process id."""
    groups = []
    for line in log.splitlines():
        with suppress(json.JSONDecodeError):  # a line that is being written
            message = json.loads(line).get("message", "")
            if message.startswith("Started training worker group"):
                groups.append({int(r): int(pid) for pid, r in re.findall(r"pid=(\d+)\) world_rank=(\d+)", message)})
    return groups


class Steps:
    """How far a run is, and how many steps it did again: what is seen of it falls back at a resume."""

    def __init__(self) -> None:
        self.last = self.lost = 0

    def see(self, step: int) -> None:
        """The run stands at this step."""
        self.lost += max(self.last - step, 0)
        self.last = step


def summary(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The cells of a fault's line in the table. rows: of this fault, at least one."""
    outcomes = [row["outcome"] for row in rows]
    finished = [row for row in rows if row["equal"] is not None]
    bad = {name: outcomes.count(name) for name in BAD if name in outcomes}

    def mean_max(key: str) -> str:
        values = [row[key] for row in finished]
        return f"{sum(values) / len(values):.1f} ({max(values):.1f})" if values else "-"

    return {
        "n": str(len(rows)),
        **{name: str(outcomes.count(name)) for name in ("recovered", "again", "error")},
        "equal": f"{sum(row['equal'] for row in finished)} of {len(finished)}",
        "steps lost": mean_max("steps_lost"),
        "s lost": mean_max("seconds_lost"),
        "orphans": str(sum(len(row["orphans"]) for row in rows)),
        "bad": ", ".join(f"{name} {n}" for name, n in bad.items()) or "-",
    }


def is_bad(row: dict[str, Any]) -> bool:
    """Whether a series with this run has failed."""
    return row["outcome"] in BAD or bool(row["orphans"])


# processes: all that is started here stays below this process, also what Ray detaches and what a killed parent leaves


def adopt() -> None:
    """Have orphaned descendants handed to this process, instead of to the system's first."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def descendants() -> list[psutil.Process]:
    """Every living process below this one."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
            elif process.ppid() == os.getpid() and process.pid not in Command.pids:
                os.waitpid(process.pid, os.WNOHANG)
    return living


def title(process: psutil.Process) -> str:
    """Its command line, as Ray rewrites it."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def end(processes: list[psutil.Process]) -> None:
    """SIGKILL, and wait."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and {p.pid for p in processes} & {p.pid for p in descendants()}:
        time.sleep(POLL)


def sweep(note: Path) -> None:
    """End the cluster that a killed series has left. note: a file with the name of its folder, which its daemons name."""
    if note.exists():
        folder = note.read_text()
        for process in psutil.process_iter():
            if folder in title(process):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink()


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


class Command(subprocess.Popen[bytes]):
    """A process that this one waits for."""

    pids: ClassVar[set[int]] = set()

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        with log.open("ab") as file:
            super().__init__(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)
        self.pids.add(self.pid)


def check(command: list[str], **options: Any) -> None:
    """Run it. Raises UserError with its last line if it fails."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    Command.pids.add(process.pid)
    output, _ = process.communicate()
    if process.returncode:
        last = (output.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command)}: exit code {process.returncode}: {last}")


def free_port(address: str) -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


# the two hosts


class Host(NamedTuple):
    """Where a node runs. prefix: of a command that is to run there. link: what connects it, None for this machine."""

    address: str
    prefix: list[str]
    link: str | None


class Hosts(NamedTuple):
    """The two, the interface that ranks talk over, and this process's address as they see it."""

    each: tuple[Host, Host]
    interface: str
    here: str


@contextmanager
def local() -> Iterator[Hosts]:
    """Both nodes on this machine; by their addresses Ray Train takes them for two."""
    yield Hosts((Host("127.0.0.1", [], None), Host("127.0.0.2", [], None)), "lo", "127.0.0.1")


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Two network namespaces joined by a bridge."""
    if os.geteuid() or not shutil.which("ip"):
        raise UserError("--hosts two-hosts: needs root and the command `ip` (package iproute2)")

    def ip(*arguments: str) -> None:
        check(["ip", *arguments])

    def remove() -> None:
        for i in (1, 2):
            name = f"faults{i}"
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
            end([psutil.Process(int(pid)) for pid in pids if psutil.pid_exists(int(pid))])
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", "faults0"], capture_output=True)

    remove()  # what a killed series has left
    try:
        ip("link", "add", "faults0", "type", "bridge")
        ip("addr", "add", "10.79.0.254/24", "dev", "faults0")
        ip("link", "set", "faults0", "up")
        for i in (1, 2):
            ip("netns", "add", f"faults{i}")
            ip("link", "add", f"faults-v{i}", "type", "veth", "peer", "name", "e0", "netns", f"faults{i}")
            ip("link", "set", f"faults-v{i}", "master", "faults0", "up")
            ip("-n", f"faults{i}", "addr", "add", f"10.79.0.{i}/24", "dev", "e0")
            for link in ("e0", "lo"):
                ip("-n", f"faults{i}", "link", "set", link, "up")
        first, second = (Host(f"10.79.0.{i}", ["ip", "netns", "exec", f"faults{i}"], f"faults-v{i}") for i in (1, 2))
        yield Hosts((first, second), "e0", "10.79.0.254")
    finally:
        remove()


class Cluster:
    """A Ray cluster: a head on the first host and a node on the second, with a CPU each. It outlives the runs."""

    def __init__(self, hosts: Hosts, environment: dict[str, str], note: Path) -> None:
        self.hosts = hosts
        self.folder = Path(tempfile.mkdtemp(prefix="faults-"))  # short: paths of sockets are
        note.write_text(str(self.folder))
        self.clock = self.folder / "clock"
        self.clock.write_text("+0")
        self.address = f"{hosts.each[0].address}:{free_port('127.0.0.1')}"
        self.environment = environment | {
            "GLOO_SOCKET_IFNAME": hosts.interface,
            "RAY_ADDRESS": self.address,  # for what runs on the nodes too: on this machine there may be other clusters
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(24),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        }
        self.faked = False
        self.nodes: list[list[psutil.Process]] = []  # of each, what `ray start` has left running

    def start(self) -> None:
        """Both nodes."""
        port = self.address.rpartition(":")[2]
        client = ["--ray-client-server-port", str(free_port("127.0.0.1"))]
        # With its dashboard, which Ray Train asks whether a controller lives.
        dashboard = ["--dashboard-host", self.hosts.each[0].address, "--dashboard-port", str(free_port("127.0.0.1"))]
        self._node(0, ["--head", "--port", port, *client, *dashboard, "--temp-dir", str(self.folder)])
        self.join()

    def join(self, faked: bool = False) -> None:
        """A second node. faked: it reads its wall clock's error from self.clock."""
        library: dict[str, str] = {}
        if faked:
            self.clock.write_text("+0")
            library = {
                "LD_PRELOAD": str(faketime()),
                "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        self.faked = faked
        self._node(1, ["--address", self.address], library)

    def _node(self, i: int, options: list[str], environment: dict[str, str] | None = None) -> None:
        host = self.hosts.each[i]
        common = ["--node-ip-address", host.address, "--num-cpus", "1", "--object-store-memory", "100000000"]
        ports = ["--min-worker-port", "0", "--max-worker-port", "0"]  # any that is free: both may be on one machine
        before = set(psutil.Process().children())
        check(
            [*host.prefix, str(BIN / "ray"), "start", *options, *common, *ports, "--include-log-monitor", "false"],
            env=self.environment | (environment or {}),
        )
        descendants()
        self.nodes[i:] = [[process for process in psutil.Process().children() if process not in before]]

    def second(self) -> list[psutil.Process]:
        """Every process of the second node."""
        return [process for daemon in self.nodes[1] for process in family(daemon)]

    def left(self) -> list[psutil.Process]:
        """Processes that are neither the cluster's own nor idle."""
        kept: set[psutil.Process] = set()
        for daemon in (daemon for node in self.nodes for daemon in node):
            each = family(daemon)
            raylet = "/raylet/raylet " in title(daemon)
            kept |= {daemon, *(p for p in each if not raylet or title(p).startswith(KEPT))}
        return [process for process in descendants() if process not in kept]

    def ready(self, faked: bool) -> None:
        """Have both nodes, for the next run."""
        if not self.nodes:
            self.start()
        if not {process for node in self.nodes for process in node} <= set(descendants()):
            self.stop()
            self.start()
        if self.faked or faked:  # Ray's timers stand still for the hour that a clock was put back
            end(self.second())
            self.join(faked)

    def stop(self) -> None:
        """End every process of it, and whatever else is left below this process."""
        end(descendants())
        self.nodes = []

    def controllers(self) -> set[Path]:
        """The logs of Ray Train's controllers, one for each fit."""
        return set(self.folder.glob("session_2*/logs/train/ray-train-sys-controller-*.log"))


def faketime() -> Path:
    """The library that fakes the clock. Debian 12's own (0.9.10) breaks Python's time.sleep."""
    found = importlib.util.find_spec("libfaketime")
    if found is None or found.origin is None:
        raise UserError("fault clock: needs libfaketime: pip install libfaketime, or leave the fault out")
    return Path(found.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"


# the bucket


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


# a run


class Training:
    """One run of the recipe in a store of its own, by one command or two."""

    def __init__(self, series: "Series", name: str, store: str, limit: float = 600) -> None:
        """limit: seconds after which a command hangs."""
        self.series, self.cluster, self.store = series, series.cluster, store
        self.folder = series.work / "runs" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.place = {"folder": self.folder / "store", "full": series.small / name}.get(store)
        if self.place:
            shutil.rmtree(self.place, ignore_errors=True)
        self.uri = str(self.place) if self.place else f"s3://{BUCKET}/{name}"
        self.limit = limit
        self.random = random.Random(f"{series.seed} {name}")
        self.steps = Steps()
        self.attempts: list[Attempt] = []
        self.controllers = self.cluster.controllers()
        self.groups = 0
        self.fit: float | None = None  # when it began
        self.seen: list[tuple[float, int]] = []  # seconds since then, and a step that was reached
        self.struck: int | None = None  # the step that was seen last

    def start(self) -> None:
        """Give the command."""
        self.log = self.folder / f"{len(self.attempts) + 1}.log"
        options = ["--data", str(self.series.work / "data"), "--store", self.uri, "--runs", str(self.folder / "runs")]
        self.began = time.monotonic()
        self.process = Command(
            [*self.cluster.hosts.each[0].prefix, sys.executable, "-m", "memoir", "train", "tiny.yaml", *options],
            self.log,
            cwd=self.series.work,
            env=self.cluster.environment,
            start_new_session=True,
        )
        self.killed = False

    def look(self) -> None:
        """Take note of how far the run is."""
        groups = started_ranks("".join(p.read_text() for p in self._new_controllers()))
        if self.fit is None and self._new_controllers():
            self.fit = time.monotonic()
            self.seen.append((0.0, 0))
        if self.place:
            for path in self.place.glob("runs/*/metrics.jsonl"):
                self.steps.see(logged(path))
        else:
            if len(groups) > max(self.groups, 1):
                self.steps.see(max([0, *self.checkpoints()]))
            shown = re.findall(r"^tiny-\w+ (\d+)/\d+ ", self.log.read_text(), re.MULTILINE)
            self.steps.see(max([self.steps.last, *map(int, shown)]))
        self.groups = len(groups)
        if self.fit is not None and self.steps.last > self.seen[-1][1]:
            self.seen.append((round(time.monotonic() - self.fit, 2), self.steps.last))

    def _new_controllers(self) -> list[Path]:
        return sorted(self.cluster.controllers() - self.controllers, key=lambda path: path.stat().st_ctime)

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks that train now."""
        groups = started_ranks("".join(p.read_text() for p in self._new_controllers()))
        living = {process.pid: process for process in descendants()}
        return {rank: living[pid] for rank, pid in (groups[-1] if groups else {}).items() if pid in living}

    def checkpoints(self) -> dict[int, str]:
        """Those in the store: step -> name."""
        if self.place:
            names = [str(path) for path in self.place.glob("runs/*/step-*/model.safetensors")]
        else:
            names = self.series.objects(self.uri)
        found = [re.search(r"step-(\d+)", name) for name in names]
        return {int(match[1]): match[0] for match in found if match}

    def until(self, found: Callable[[], Any]) -> Generator[float, None, Any]:
        """Wait for something to become true, and return it. Raises MissedError if the run ends before."""
        while not (value := found()):
            if self.process.poll() is not None:
                raise MissedError
            yield POLL
        self.struck = self.steps.last
        return value

    def kill(self) -> None:
        """SIGKILL to the driver. Raises MissedError if it has ended."""
        if self.process.poll() is not None:
            raise MissedError
        self.process.kill()
        self.killed = True

    def reached(self, at: Moment) -> bool:
        """Whether it is this moment, or later."""
        since = next((seconds for seconds, step in self.seen if step >= at.step), None)
        return self.fit is not None and since is not None and time.monotonic() >= self.fit + since + at.seconds

    def follow(self, at: Moment | None = None, fault: Callable[["Training"], Iterator[float]] | None = None) -> None:
        """See the command, and the fault that strikes at that moment, through. Raises MissedError."""
        acts: Iterator[float] | None = None
        wake, deadline = 0.0, self.began + self.limit
        try:
            while True:
                self.look()
                ended = self.process.poll() is not None
                now = time.monotonic()
                if fault and at and acts is None and not ended and self.reached(at):
                    self.struck = self.steps.last
                    acts = fault(self)
                    wake = now
                if acts and now >= wake:
                    try:
                        wake = now + next(acts)
                    except StopIteration:
                        fault = acts = None
                if ended and acts is None:
                    break
                if now > deadline and not ended:
                    stacks(self.folder / "stacks.txt")
                    end(family(psutil.Process(self.process.pid)))
                    self.attempts.append(Attempt(None, self.log.read_text(), self.killed, now - self.began))
                    return
                time.sleep(POLL)
                if not ended:
                    self.ended = time.monotonic()
        finally:
            if acts is not None:
                acts.close()  # type: ignore[attr-defined]  # mends what it broke
        self.attempts.append(
            Attempt(self.process.returncode, self.log.read_text(), self.killed, self.ended - self.began)
        )
        if fault and self.process.returncode == 0:
            raise MissedError

    def result(self) -> Result | None:
        """What the last command has left, if it finished."""
        if self.attempts[-1].code != 0:
            return None
        runs = self.folder / "runs/tiny"
        pointer = json.loads((runs / "checkpoint.json").read_text())
        return Result(pointer["run"], pointer["sha256"], hashlib.sha256((runs / "curve.tsv").read_bytes()).hexdigest())


def logged(path: Path) -> int:
    """The last step in a metrics.jsonl; 0 where there is none."""
    with suppress(FileNotFoundError):
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return int(json.loads(whole[-1])["step"]) if whole else 0
    return 0


def stacks(path: Path) -> None:
    """What the Python processes of a hanging run do, by py-spy, which comes with Ray."""
    with path.open("w") as file:
        for process in descendants():
            if title(process).startswith(("ray::RayTrain", "ray::Train")) or "memoir train" in title(process):
                file.write(f"{process.pid} {title(process)}\n")
                file.flush()
                dump = subprocess.Popen([BIN / "py-spy", "dump", "--pid", str(process.pid)], stdout=file, stderr=file)
                Command.pids.add(dump.pid)
                dump.wait()


# the faults: what to do; a yield waits for so many seconds


def rank0(run: Training) -> Iterator[float]:
    """SIGKILL of rank 0."""
    yield from kill_rank(run, 0)


def rank1(run: Training) -> Iterator[float]:
    """SIGKILL of rank 1."""
    yield from kill_rank(run, 1)


def kill_rank(run: Training, rank: int) -> Iterator[float]:
    """As soon as there is one."""
    while True:
        victim = yield from run.until(lambda: run.ranks().get(rank))
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            return


def node(run: Training) -> Iterator[float]:
    """The second node dies, and another takes its place."""
    end(run.cluster.second())
    yield 3
    run.cluster.join()


def preempted(run: Training) -> Iterator[float]:
    """The second node is told to go, and after a while made to."""
    going = run.cluster.second()
    for process in going:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    yield GRACE
    end(going)
    run.cluster.join()


def driver(run: Training) -> Iterator[float]:
    """SIGKILL of the command."""
    run.kill()
    yield 0


def network(run: Training) -> Iterator[float]:
    """The second host is cut off."""
    link = run.cluster.hosts.each[1].link
    assert link
    check(["ip", "link", "set", link, "down"])
    try:
        yield OUTAGE
    finally:
        check(["ip", "link", "set", link, "up"])


def unavailable(run: Training) -> Iterator[float]:
    """Every request is answered with 503."""
    yield from outage(run, 503)


def down(run: Training) -> Iterator[float]:
    """No connection."""
    yield from outage(run, "down")


def outage(run: Training, kind: int | str) -> Iterator[float]:
    """The bucket is away."""
    run.series.proxy.fail(kind)
    try:
        yield OUTAGE
    finally:
        run.series.proxy.fail(None)


def full(run: Training) -> Iterator[float]:
    """No space left, until the command has ended."""
    filler = run.series.small / "filler"
    try:
        while run.process.poll() is None:
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            yield POLL  # a checkpoint that is removed makes room
    finally:
        filler.unlink(missing_ok=True)


def truncated(run: Training) -> Iterator[float]:
    """A file of the newest checkpoint is half, and nobody runs."""
    assert run.place
    yield from run.until(run.checkpoints)
    run.kill()
    deadline = time.monotonic() + ORPHAN
    while run.cluster.left() and time.monotonic() < deadline:
        yield POLL
    checkpoints = run.checkpoints()
    (folder,) = run.place.glob(f"runs/*/{checkpoints[max(checkpoints)]}")
    file = run.random.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    os.truncate(file, file.stat().st_size // 2)


def clock(run: Training) -> Iterator[float]:
    """An hour ahead or back, on the second node."""
    run.cluster.clock.write_text(run.random.choice(["+3600", "-3600"]))
    yield 0


class Fault(NamedTuple):
    """What to do, and the kind of store that the run has: a folder, s3, or a small file system."""

    strike: Callable[[Training], Iterator[float]]
    store: str = "folder"


FAULTS = {
    "rank0": Fault(rank0),
    "rank1": Fault(rank1),
    "node": Fault(node),
    "preempted": Fault(preempted),
    "driver": Fault(driver),
    "network": Fault(network),
    "unavailable": Fault(unavailable, "s3"),
    "down": Fault(down, "s3"),
    "full": Fault(full, "full"),
    "truncated": Fault(truncated),
    "clock": Fault(clock),
}


# the series


class Undisturbed(NamedTuple):
    """result: of every run. seen: see `moment`. seconds: of a run, by store."""

    result: Result
    seen: list[tuple[float, int]]
    seconds: dict[str, float]


class Series:
    """Runs of the recipe in one work folder, on one cluster."""

    def __init__(self, work: Path, hosts: Hosts, seed: int) -> None:
        from moto.server import ThreadedMotoServer

        self.work, self.small, self.seed = work, work / "small", seed
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        address, port = server.get_host_and_port()
        self.direct = f"http://{address}:{port}"
        self.proxy = Proxy(self.direct, hosts.here)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
        environment = kept | {
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": f"http://{hosts.here}:{self.proxy.server_port}",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self.client = self._client(environment)
        self.client.create_bucket(Bucket=BUCKET)
        self.cluster = Cluster(hosts, environment, work / NOTE)

    def _client(self, environment: dict[str, str]) -> Any:
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.direct,
            region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )

    def objects(self, uri: str) -> list[str]:
        """The names in the bucket, asked for behind the proxy."""
        prefix = uri.removeprefix(f"s3://{BUCKET}/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [each["Key"] for page in pages for each in page.get("Contents", ())]

    def undisturbed(self, store: str, name: str) -> tuple[Result, list[tuple[float, int]], float]:
        """Train without a fault: the result, what was seen when, and seconds. Raises UserError if that fails."""
        self.cluster.ready(faked=False)
        run = Training(self, name, store)
        run.start()
        run.follow()
        result, attempt = run.result(), run.attempts[-1]
        if result is None or not run.seen:
            raise UserError(f"{run.log}: the undisturbed run failed: {attempt.line or 'no clear error'}")
        return result, run.seen, attempt.seconds

    def disturbed(self, name: str, time_: int, undisturbed: Undisturbed) -> dict[str, Any]:
        """Train with a fault, and say what became of it."""
        fault = FAULTS[name]
        for attempt in range(TRIES):
            self.cluster.ready(faked=name == "clock")
            limit = OUTAGE + PATIENCE * undisturbed.seconds[fault.store]
            run = Training(self, f"{name}-{time_}", fault.store, limit)
            at = moment(self.seed, name, time_, attempt, undisturbed.seen)
            run.start()
            try:
                run.follow(at, fault.strike)
                break
            except MissedError:
                self.settle()
        else:
            raise UserError(
                f"{run.folder}: {TRIES} runs were over before their fault: is the undisturbed run too slow?"
            )
        first = run.attempts[0]
        if first.code is not None and (first.killed or first.code):
            run.start()
            run.follow()
        result = run.result()
        if result and result.run != undisturbed.result.run:
            raise UserError(f"{run.folder}: the code is not that of the undisturbed run: begin with another --json")
        word = outcome(run.attempts, result, undisturbed.result)
        orphans = self.settle()
        if word == "hang" or orphans:
            self.cluster.stop()
        row = {
            "fault": name,
            "time": time_,
            "at": [at.step, round(at.seconds, 2)],
            "step": run.struck,
            "outcome": word,
            "lines": [attempt.last for attempt in run.attempts if attempt.code != 0 and not attempt.killed],
            "equal": result.weights == undisturbed.result.weights if result else None,
            "steps_lost": run.steps.lost,
            "seconds_lost": round(sum(a.seconds for a in run.attempts) - undisturbed.seconds[fault.store], 1),
            "orphans": orphans,
        }
        if not is_bad(row) and run.place:
            shutil.rmtree(run.place, ignore_errors=True)
        return row

    def settle(self) -> list[str]:
        """Wait for what the last run has started; returns what is still there."""
        deadline = time.monotonic() + ORPHAN
        while (left := self.cluster.left()) and time.monotonic() < deadline:
            time.sleep(POLL)
        names = [title(process)[:80] for process in left]
        end(left)
        return names


@contextmanager
def small_file_system(path: Path) -> Iterator[None]:
    """A file system of 16 MiB."""
    if os.geteuid():
        raise UserError("fault full: needs root, to mount a small file system; leave it out with --fault")
    path.mkdir(exist_ok=True)
    subprocess.run(["umount", "-l", str(path)], capture_output=True)  # of a killed series
    check(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)])
    try:
        yield
    finally:
        check(["umount", "-l", str(path)])


def prepare(work: Path) -> None:
    """The recipe and its shards, as a user makes them."""
    if (work / "data/tiny/shards.json").exists():
        return
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for i in range(count):
            low = rng.integers(0, 256, (8, 8, 1), np.uint8)
            write_image(work / f"photos/{split}/{i}.png", np.kron(low, np.ones((8, 8, 1), np.uint8)))
    for name, content in (("params", PARAMS), ("task/tiny", TASK), ("tiny", RECIPE)):
        path = work / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for arguments in (["ingest"], ["build", "task/tiny.yaml", "--cpus", "1"]):
        command = [sys.executable, "-m", "memoir", *arguments]
        check(command, cwd=work, env=environment | {"PYTHONPATH": str(ROOT)})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: dict[str, Any]) -> None:
    """One more."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def reference(series: Series, hosts: str, results: Path, stores: set[str]) -> Undisturbed:
    """The undisturbed runs, one for each kind of store; those that were run before are read."""
    known = {row["store"]: row for row in read_lines(results) if row["fault"] == "none" and row["hosts"] == hosts}
    for store in ("warm", *sorted(stores | {"folder"})):
        if store not in known:
            kind = "folder" if store == "warm" else store
            result, seen, seconds = series.undisturbed(kind, f"none-{store}")
            times = {"seen": seen, "seconds": round(seconds, 2)}
            known[store] = {"fault": "none", "hosts": hosts, "store": store, "result": result, **times}
            append(results, known[store])
    every = {Result(*row["result"]) for row in known.values()}
    if len(every) > 1:
        raise UserError(
            f"{results}: undisturbed runs differ: begin again without it, and if that does not help, mend that"
        )
    (result,) = every
    return Undisturbed(result, known["folder"]["seen"], {store: row["seconds"] for store, row in known.items()})


def run_series(arguments: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """Every run that is not recorded yet; returns the records that were asked for."""
    wanted = {(fault, i) for fault in arguments.fault for i in range(arguments.times)}
    stores = {FAULTS[fault].store for fault in arguments.fault}

    def mine() -> list[dict[str, Any]]:
        same = [
            row for row in read_lines(results) if row["hosts"] == arguments.hosts and row.get("seed") == arguments.seed
        ]
        return [row for row in same if (row["fault"], row["time"]) in wanted]

    if len(mine()) < len(wanted):
        if "clock" in arguments.fault:
            faketime()
        sweep(arguments.work / NOTE)
        prepare(arguments.work)
        with (two_hosts if arguments.hosts == "two-hosts" else local)() as hosts:
            series = Series(arguments.work, hosts, arguments.seed)
            with small_file_system(series.small) if "full" in stores else nullcontext():
                try:
                    undisturbed = reference(series, arguments.hosts, results, stores)
                    for fault in arguments.fault:
                        for i in range(arguments.times):
                            if (fault, i) not in {(row["fault"], row["time"]) for row in mine()}:
                                row = series.disturbed(fault, i, undisturbed)
                                append(results, {"hosts": arguments.hosts, "seed": arguments.seed, **row})
                                told = f"{fault} {i}: {row['outcome']}, at step {row['step']}, {row['seconds_lost']} s"
                                print(" ".join([told, *row["lines"][:1]]), file=sys.stderr, flush=True)
                finally:
                    series.cluster.stop()
                    sweep(arguments.work / NOTE)
    return mine()


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    table = Table(caption="equal: weights; lost: mean (max)")
    lines = {fault: summary(each) for fault in FAULTS if (each := [row for row in rows if row["fault"] == fault])}
    table.add_column("fault")
    for column in next(iter(lines.values())):
        table.add_column(column, justify="right")
    for fault, cells in lines.items():
        table.add_row(fault, *cells.values())
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """A user's mistake is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", nargs="+", metavar="NAME", help="; ".join(FAULTS))
    parser.add_argument("--times", type=int, default=10, help="runs of each fault")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--hosts", choices=("local", "two-hosts"), default="local")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one line for each run; DIR/faults.jsonl by default")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster ends with this process
    try:
        sys.exit(series(arguments))
    except UserError as error:
        sys.exit(f"faults: {error}")


def series(arguments: argparse.Namespace) -> int:
    """Run and show what was asked for; returns the exit code. Raises UserError for what cannot be run here."""
    possible = [name for name in FAULTS if name != "network" or arguments.hosts == "two-hosts"]
    for name in arguments.fault or ():
        if name not in FAULTS:
            raise UserError(f"--fault {name}: unknown; {nearest(name, list(FAULTS))}")
        if name not in possible:
            raise UserError(f"--fault {name}: needs --hosts two-hosts")
    if arguments.times < 1:
        raise UserError(f"--times {arguments.times}: give 1 or more")
    arguments.fault = arguments.fault or possible
    arguments.work = arguments.work.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    adopt()
    with (arguments.work / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{arguments.work}: another series runs here; wait, or give another folder") from None
        rows = run_series(arguments, arguments.json or arguments.work / "faults.jsonl")
    show(rows)
    return int(any(map(is_bad, rows)))


if __name__ == "__main__":
    main()
