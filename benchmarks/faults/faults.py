"""The faults: what to do to a run. A yield waits for so many seconds."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import psutil

from benchmarks.faults.processes import ORPHAN, POLL, check, end
from benchmarks.faults.run import Training

OUTAGE = 20.0  # seconds that a store or a network is away
GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def rank0(run: Training) -> Iterator[float]:
    """SIGKILL of rank 0."""
    yield from kill_rank(run, 0)


def rank1(run: Training) -> Iterator[float]:
    """SIGKILL of rank 1."""
    yield from kill_rank(run, 1)


def kill_rank(run: Training, rank: int) -> Iterator[float]:
    """SIGKILL of a rank, as soon as there is one."""
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
    """The second node is told to go, and is killed after a while."""
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
    """Connections are refused."""
    yield from outage(run, "down")


def outage(run: Training, kind: int | str) -> Iterator[float]:
    """The bucket is away."""
    run.series.proxy.fail(kind)
    try:
        yield OUTAGE
    finally:
        run.series.proxy.fail(None)


def full(run: Training) -> Iterator[float]:
    """The store has no space left until the command has ended."""
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
    """The driver is killed, and a file of the newest checkpoint loses its second half."""
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
    """The clock of the second node jumps an hour ahead or back."""
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
