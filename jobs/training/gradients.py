"""Gradients that ranks exchange: by torch's DistributedDataParallel, and in bfloat16, half of the bytes of its own exchange."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from jobs.models import collective
from jobs.training import compiler


def distributed(objective: nn.Module, *, forward_sync_buffers: bool) -> DistributedDataParallel:
    """A DistributedDataParallel of the objective. forward_sync_buffers: see there."""
    with compiler.spared():
        joined = DistributedDataParallel(objective, forward_sync_buffers=forward_sync_buffers)
        with joined._inside_ddp_forward():  # which is kept out of what is compiled when it is called first
            return joined


def exchange_in_bf16(objective: DistributedDataParallel, device: torch.device) -> None:
    """Have it average its gradients in bfloat16: over NCCL by torch's hook, and with `Bf16` where gloo has no such numbers."""
    if device.type == "cuda":
        objective.register_comm_hook(None, bf16_compress_hook)
    else:
        objective.register_comm_hook(Bf16(), average)


class Bf16:
    """The buckets of gradients on their way in this backward pass."""

    def __init__(self) -> None:
        self.sent: list[tuple[Tensor, Tensor, Any, torch.futures.Future[Tensor]]] = []


def average(state: Bf16, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Replace a bucket's gradients by their mean over the ranks, a hook of DistributedDataParallel.

    Each rank sums one part of a bucket, in fp32 and in the ranks' order, and sends the rounded mean to the others: what one rank
    computes all have, to the bit, in 2 (W - 1) / W times the bytes of a bucket. Parts are sent beside the backward pass, and means when the
    last bucket is there, for collectives must begin in the same order on all ranks.
    """
    buffer = bucket.buffer()
    ranks = collective.world_size()
    parts = torch.zeros(ranks, -(-buffer.numel() // ranks), dtype=torch.bfloat16)
    parts.view(-1)[: buffer.numel()] = buffer
    received = torch.empty_like(parts)
    work = dist.all_to_all_single(_bytes(received), _bytes(parts), async_op=True)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    state.sent.append((buffer, received, work, future))
    if bucket.is_last():
        sent, state.sent = state.sent, []
        with collective.counted():
            _finish(sent, ranks)
    return future


def _finish(sent: list[tuple[Tensor, Tensor, Any, torch.futures.Future[Tensor]]], ranks: int) -> None:
    """Average the parts that came, and have all ranks get all of them."""
    coming = []
    for _, received, work, _ in sent:
        work.wait()
        mean = (received.float().sum(0) / ranks).bfloat16()
        means = torch.empty_like(received)
        coming.append((means, dist.all_gather_single(_bytes(means), _bytes(mean), async_op=True)))
    for (buffer, _, _, future), (means, work) in zip(sent, coming, strict=True):
        assert work is not None
        work.wait()
        buffer.copy_(means.view(-1)[: buffer.numel()])
        future.set_result(buffer)


def _bytes(x: Tensor) -> Tensor:
    """What gloo sends: it knows no bfloat16."""
    return x.view(-1).view(torch.uint8)
