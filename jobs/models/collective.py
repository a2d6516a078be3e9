"""Collectives of small tensors over the ranks of torch's process group; without a group the process is the only rank."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from jobs.models.node_memory import MOST, NodeMemory

_seconds = 0.0
_memory: NodeMemory | None = None


def share_memory(timeout_s: float) -> None:
    """Have small tensors of the CPU go through the node's memory, if it is one node; all ranks of torch's process group call this.

    timeout_s: after which a rank is lost that has not come.
    """
    global _memory
    _memory = NodeMemory.of_group(timeout_s) if world_size() > 1 else None


def rank() -> int:
    """This process's rank."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_gather(x: Tensor) -> Tensor:
    """x of all ranks, in their order: (W, *x.shape). The fastest collective: gloo's all_reduce takes twice as many hops."""
    if world_size() == 1:
        return x[None]
    with counted():
        if _by_memory(x):
            assert _memory is not None
            return _memory.gather(x)
        ranks = x.new_empty(world_size() * x.numel())
        dist.all_gather_single(ranks, x.contiguous().view(-1))
    return ranks.view(-1, *x.shape)


def all_reduce(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """x reduced over the ranks; x itself may be overwritten."""
    if world_size() == 1:
        return x
    if _by_memory(x) and op in REDUCTIONS:
        return REDUCTIONS[op](all_gather(x))
    x = x.contiguous()
    with counted():
        dist.all_reduce(x, op)
    return x


# Over the ranks in their order, so that all have the same bits.
REDUCTIONS: dict[dist.ReduceOp.RedOpType, Callable[[Tensor], Tensor]] = {
    dist.ReduceOp.SUM: lambda ranks: ranks.sum(0),
    dist.ReduceOp.MAX: lambda ranks: ranks.amax(0),
    dist.ReduceOp.MIN: lambda ranks: ranks.amin(0),
}


def _by_memory(x: Tensor) -> bool:
    small = x.device.type == "cpu" and x.numel() * x.element_size() <= MOST
    return _memory is not None and small and not torch.compiler.is_compiling()


def seconds() -> float:
    """The seconds that this process has spent in collectives, with waiting for other ranks; on a GPU only their starts."""
    return _seconds


@contextmanager
def counted() -> Generator[None]:
    """Count the time inside as spent in collectives."""
    global _seconds
    began = time.perf_counter()
    yield
    _seconds += time.perf_counter() - began
