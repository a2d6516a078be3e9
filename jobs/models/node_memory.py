"""Exchanges of small tensors between ranks of one node through its shared memory, a hundred times as fast as through sockets.

BatchNorm's statistics take two exchanges for each map of a step. Through gloo one of them takes half a millisecond, most of which
goes into waking threads that wait for a socket; here a rank looks for the others' numbers where they write them.
"""

import mmap
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

FOLDER = Path("/dev/shm")
MOST = 1 << 16  # bytes of a tensor
LINE = 64  # bytes of a line of cache: each rank has a counter in one of its own
LOOK_S = 0.2  # between two looks at whether the others are still there


class NodeMemory:
    """What the ranks of one node share: of each rank a counter of its exchanges, and room for the tensors of two of them.

    A rank writes the tensor of exchange k, then k to its counter, and waits until all counters are k. When it writes that of k + 2 to
    the same room all have read k, for they have begun k + 1.
    """

    def __init__(self, memory: mmap.mmap, rank: int, others: list[psutil.Process], timeout_s: float) -> None:
        """memory: of `size` bytes, zeros at first. others: the processes of all ranks."""
        W = len(others)
        self.rank, self.processes, self.timeout_s = rank, others, timeout_s
        self.number = 0
        self.counters = memoryview(memory).cast("q")
        self.room = torch.frombuffer(memory, dtype=torch.uint8, offset=W * LINE).view(2, W, MOST)

    @staticmethod
    def size(ranks: int) -> int:
        """Bytes of memory for so many."""
        return ranks * (LINE + 2 * MOST)

    @classmethod
    def of_group(cls, timeout_s: float) -> Self | None:
        """That of torch's process group, whose ranks all call this; None if they are not all on one node that can do this.

        timeout_s: after which a rank is lost that has not come.
        """
        rank, W = dist.get_rank(), dist.get_world_size()
        offered: list[Any] = [None]
        memory: mmap.mmap | None = None
        path = ""
        # Other processors may show what a rank writes in another order than it was written in.
        if rank == 0 and platform.machine() in ("x86_64", "AMD64") and os.access(FOLDER, os.W_OK):
            try:
                descriptor, path = tempfile.mkstemp(prefix="memoir-", dir=FOLDER)
                os.posix_fallocate(descriptor, 0, cls.size(W))  # now, and not as a crash when it is written to
                memory = mmap.mmap(descriptor, cls.size(W))
                os.close(descriptor)
                offered = [path]
            except OSError:
                offered = [None]
        dist.broadcast_object_list(offered)
        if offered[0] is not None and rank > 0:
            memory = _opened(offered[0], cls.size(W))
        held: list[Any] = [None] * W
        dist.all_gather_object(held, (memory is not None, os.getpid(), _started()))
        if path:
            Path(path).unlink(
                missing_ok=True
            )  # all have it, or none will: it ends with the processes, however they end
        processes = [_process(pid, started) for _, pid, started in held]
        seen: list[Any] = [None] * W
        dist.all_gather_object(seen, all(opened for opened, _, _ in held) and None not in processes)
        if memory is None or not all(seen):
            return None
        return cls(memory, rank, [process for process in processes if process is not None], timeout_s)

    def gather(self, x: Tensor) -> Tensor:
        """x of all ranks, in their order: (W, *x.shape). x: on the CPU, of at most MOST bytes, of the same shape on all ranks.

        Raises DistNetworkError if another rank is gone, or has not come in time.
        """
        self.number += 1
        numbers = x.contiguous().view(-1).view(torch.uint8)
        room = self.room[self.number % 2, :, : len(numbers)]
        room[self.rank].copy_(numbers)
        self.counters[self.rank * LINE // 8] = self.number
        for rank in range(len(self.processes)):
            if self.counters[rank * LINE // 8] < self.number:
                self._wait(rank)
        return room.clone().view(x.dtype).view(-1, *x.shape)

    def _wait(self, rank: int) -> None:
        counter, began = rank * LINE // 8, time.monotonic()
        look = began + LOOK_S
        while self.counters[counter] < self.number:
            now = time.monotonic()
            # Others of this process, such as the loader's threads, have their turn; and other processes, after a while.
            time.sleep(0 if now - began < 2e-3 else 5e-5)
            if now > look:
                process, look = self.processes[rank], now + LOOK_S
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    raise dist.DistNetworkError(f"rank {rank} is gone")
                if now - began > self.timeout_s:
                    raise dist.DistNetworkError(f"rank {rank} has not come for {self.timeout_s:g} s")


def _opened(path: str, size: int) -> mmap.mmap | None:
    """The file of rank 0; None where it is not there: this is another node."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid() or found.st_size != size:
            return None
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)


def _started() -> float:
    return psutil.Process().create_time()


def _process(pid: int, started: float) -> psutil.Process | None:
    """The process of a rank; None where it cannot be seen, as from another container."""
    try:
        process = psutil.Process(pid)
    except psutil.Error:
        return None
    return process if abs(process.create_time() - started) < 1 else None
