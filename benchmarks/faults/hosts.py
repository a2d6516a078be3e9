"""The two hosts, this machine or two network namespaces, and the Ray cluster of a node on each."""

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.faults.processes import BIN, check, descendants, end, family, free_port, title
from pipeline.errors import UserError

# What a raylet keeps when a run is over: idle workers, its agents, Ray Train's coordinator of the whole cluster.
KEPT = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")


class Host(NamedTuple):
    """Where a node runs. prefix: what a command to run there begins with. link: what connects it, None for this machine."""

    address: str
    prefix: list[str]
    link: str | None


class Hosts(NamedTuple):
    """The two hosts, the interface that ranks talk over, and this process's address as they see it."""

    each: tuple[Host, Host]
    interface: str
    here: str


@contextmanager
def local() -> Iterator[Hosts]:
    """Both nodes on this machine; Ray Train takes them for two by their addresses."""
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
        self.nodes: list[list[psutil.Process]] = []  # for each node, what `ray start` has left running

    def start(self) -> None:
        """Start both nodes."""
        port = self.address.rpartition(":")[2]
        client = ["--ray-client-server-port", str(free_port("127.0.0.1"))]
        # With its dashboard, which Ray Train asks whether a controller lives.
        dashboard = ["--dashboard-host", self.hosts.each[0].address, "--dashboard-port", str(free_port("127.0.0.1"))]
        self._node(0, ["--head", "--port", port, *client, *dashboard, "--temp-dir", str(self.folder)])
        self.join()

    def join(self, faked: bool = False) -> None:
        """Start a second node. faked: it reads its wall clock's error from self.clock."""
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
        """Have both nodes running for the next run."""
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
