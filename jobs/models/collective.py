"""Collectives of small tensors over the ranks of torch's process group; without a group the process is the only rank."""

import time
from collections.abc import Generator
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor

_seconds = 0.0


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
    ranks = x.new_empty(world_size() * x.numel())
    with _counted():
        dist.all_gather_single(ranks, x.contiguous().view(-1))
    return ranks.view(-1, *x.shape)


def all_reduce(x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """x reduced over the ranks; x itself may be overwritten."""
    if world_size() > 1:
        x = x.contiguous()
        with _counted():
            dist.all_reduce(x, op)
    return x


def seconds() -> float:
    """The seconds that this process has spent in collectives, with waiting for other ranks; on a GPU only their starts."""
    return _seconds


@contextmanager
def _counted() -> Generator[None]:
    global _seconds
    began = time.perf_counter()
    yield
    _seconds += time.perf_counter() - began
