import os
import random
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from jobs.models import collective, node_memory
from jobs.models.collective import all_gather, all_reduce, rank, seconds, share_memory, world_size


def join(index: int, folder: Path, ranks: int = 2) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=ranks)


def of_a_rank(index: int, folder: Path, by_memory: bool) -> None:
    """What two ranks get, the second of which comes half a second late to the last collective."""
    join(index, folder)
    if by_memory:
        share_memory(60)
        assert collective._memory is not None
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


@pytest.fixture(scope="module", params=[False, True], ids=["gloo", "memory"])
def ranks(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("collective")
    torch.multiprocessing.spawn(of_a_rank, (folder, request.param), nprocs=2)
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


# through the node's memory


def of_many(index: int, folder: Path) -> None:
    """Three ranks, now and then late, exchange tensors of many sizes; those that are too large go through gloo."""
    join(index, folder, 3)
    share_memory(60)
    sizes, own = random.Random(0), random.Random(index)
    for number in range(300):
        n = sizes.choice([1, 7, 100, 5000, node_memory.MOST // 4, node_memory.MOST // 4 + 1])
        x = torch.full((n,), number * 10.0 + index)
        if own.random() < 0.1:
            time.sleep(own.random() / 100)
        found = all_gather(x)
        assert torch.equal(found, torch.stack([torch.full((n,), number * 10.0 + i) for i in range(3)]))
        assert float(all_reduce(x)[-1]) == 30 * number + 3
    dist.destroy_process_group()


def test_no_tensor_is_taken_for_another(tmp_path):
    torch.multiprocessing.spawn(of_many, (tmp_path,), nprocs=3)


def of_one_that_goes(index: int, folder: Path, stays: bool) -> None:
    join(index, folder)
    share_memory(1.5)
    assert all_gather(torch.ones(1)).sum() == 2
    if index == 1:
        if stays:
            time.sleep(4)
        os._exit(0)
    began = time.monotonic()
    try:
        all_gather(torch.ones(1))
    except dist.DistError as error:
        (folder / "told").write_text(f"{time.monotonic() - began} {error}")
    os._exit(0)


@pytest.mark.parametrize(("stays", "told"), [(False, "rank 1 is gone"), (True, "rank 1 has not come for 1.5 s")])
def test_a_lost_rank_is_an_error_as_with_gloo(tmp_path, stays, told):
    torch.multiprocessing.spawn(of_one_that_goes, (tmp_path, stays), nprocs=2)
    seconds, _, line = (tmp_path / "told").read_text().partition(" ")
    assert line == told
    assert float(seconds) < 3


def of_another_node(index: int, folder: Path) -> None:
    join(index, folder)
    if index == 1:
        node_memory._opened = lambda path, size: None  # type: ignore[assignment]
    share_memory(60)
    (folder / str(index)).write_text(f"{collective._memory} {all_gather(torch.tensor([index])).tolist()}")
    dist.destroy_process_group()


def test_ranks_of_two_nodes_have_no_memory_in_common_and_leave_none_behind(tmp_path):
    before = set(node_memory.FOLDER.glob("memoir-??????*"))
    torch.multiprocessing.spawn(of_another_node, (tmp_path,), nprocs=2)
    assert [(tmp_path / str(i)).read_text() for i in range(2)] == ["None [[0], [1]]"] * 2
    assert {path for path in node_memory.FOLDER.glob("memoir-??????*") if path.is_file()} <= before
