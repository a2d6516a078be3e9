"""Gradients in bfloat16 over gloo: real ranks, and the real DistributedDataParallel."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.training.gradients import exchange_in_bf16

SHAPES = [(7, 5), (301,), (3, 1, 3, 3), (1,), (90, 70)]  # in several buckets, none of which three ranks divide


class Linear(nn.Module):
    """Its gradients are what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in SHAPES)

    def forward(self, gradients: list[Tensor]) -> Tensor:
        return torch.stack([(w * g).sum() for w, g in zip(self.weights, gradients, strict=True)]).sum()


def gradients_of(rank: int, step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(10 * step + rank)
    return [1e-3 * torch.randn(shape, generator=draw) for shape in SHAPES]


def of_a_rank(rank: int, folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    model = DistributedDataParallel(Linear(), bucket_cap_mb=0.01)
    exchange_in_bf16(model, torch.device("cpu"))
    found = []
    for step in range(3):  # DistributedDataParallel orders its buckets anew after the first
        model.zero_grad()
        model(gradients_of(rank, step)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_have_the_rounded_mean_of_rounded_gradients_in_the_order_of_the_ranks(ranks, tmp_path):
    torch.multiprocessing.spawn(of_a_rank, (tmp_path, ranks), nprocs=ranks)
    for rank in range(ranks):
        for step, found in enumerate(torch.load(tmp_path / f"{rank}.pt")):
            of_ranks = [gradients_of(each, step) for each in range(ranks)]
            for each, *sent in zip(found, *of_ranks, strict=True):
                total = torch.stack([g.bfloat16().float() for g in sent]).sum(0)
                assert torch.equal(each, (total / ranks).bfloat16().float())
