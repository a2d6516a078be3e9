import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.models.collective import all_gather, all_reduce, rank, seconds, world_size


def of_a_rank(index: int, folder: Path) -> None:
    """What two ranks get, the second of which comes half a second late to the last collective."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    image = (torch.arange(24.0).view(1, 2, 3, 4) + 100 * index).contiguous(memory_format=torch.channels_last)
    results = {
        "place": (rank(), world_size()),
        "gathered": all_gather(image),
        "flags": all_gather(torch.tensor([True, index == 1])),
        "sum": all_reduce(torch.tensor([1.0, 10.0 + index])),
        "most": all_reduce(torch.tensor([1.0, 10.0 + index]), dist.ReduceOp.MAX),
    }
    before = seconds()
    time.sleep(0.5 * index)
    all_gather(torch.ones(1))
    torch.save({**results, "waited": seconds() - before}, folder / f"rank-{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("collective")
    torch.multiprocessing.spawn(of_a_rank, (folder,), nprocs=2)
    return [torch.load(folder / f"rank-{i}.pt") for i in range(2)]


def test_every_rank_gets_what_all_have_in_their_order(ranks):
    image = torch.arange(24.0).view(1, 2, 3, 4)
    for index, results in enumerate(ranks):
        assert results["place"] == (index, 2)
        assert torch.equal(results["gathered"], torch.stack((image, image + 100)))
        assert results["flags"].tolist() == [[True, False], [True, True]]
        assert results["sum"].tolist() == [2, 21]
        assert results["most"].tolist() == [1, 11]


def test_the_seconds_are_those_of_waiting_for_the_other_rank(ranks):
    assert ranks[0]["waited"] > 0.4
    assert ranks[0]["waited"] - ranks[1]["waited"] > 0.3


def test_without_a_group_a_process_is_its_only_rank():
    x, before = torch.ones(2, 3), seconds()
    assert (rank(), world_size()) == (0, 1)
    assert torch.equal(all_gather(x), x[None])
    assert torch.equal(all_reduce(x), x)
    assert seconds() == before
