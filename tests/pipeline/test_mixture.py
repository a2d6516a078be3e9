"""Batches mixed of several tasks and levels: proportions, every sample once in each epoch of its own, any world size."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.loading.loader import Loader, Position
from pipeline.loading.mixture import MixedBatch, Mixture, Source
from pipeline.sampling.patches import Grid, RandomCrops

CPU = torch.device("cpu")
SIDE = 16
WHOLE = Grid(SIDE, SIDE, dihedral=False)  # one sample for each input, the whole image


def images(values: list[int], channels: int = 1) -> dict[str, np.ndarray]:
    """An image of each value."""
    return {f"train/{value}.png": np.full((SIDE, SIDE, channels), value, np.uint8) for value in values}


@pytest.fixture(scope="module")
def jpeg(builder: Callable[..., Path]) -> Path:
    return builder("mixture-jpeg", images([10, 20, 30]), degradation={"kind": "jpeg", "quality": [10, 20]})


@pytest.fixture(scope="module")
def noise(builder: Callable[..., Path]) -> Path:
    values = [100, 110, 120, 130, 140]
    return builder("mixture-noise", images(values), degradation={"kind": "noise", "sigma": [5]})


@pytest.fixture(scope="module")
def colour(builder: Callable[..., Path]) -> Path:
    degradation = {"kind": "jpeg", "quality": [10]}
    files = {name: pixels + np.uint8([0, 1, 2]) for name, pixels in images([50, 60], 3).items()}
    return builder("mixture-colour", files, colour="rgb", degradation=degradation)


def mixture(
    *parts: tuple[str, Path, int, int | None],
    batch: int = 8,
    rank: int = 0,
    world: int = 1,
    threads: int = 1,
    seed: int = 0,
) -> Mixture:
    """parts: name, place, weight and level of each source."""
    sources = [
        Source(
            name,
            Loader(
                place,
                batch=batch,
                sampling=WHOLE,
                seed=seed + i,
                rank=rank,
                world_size=world,
                threads=threads,
                level=level,
            ),
            weight,
        )
        for i, (name, place, weight, level) in enumerate(parts)
    ]
    return Mixture(sources, seed=seed)


def numbers(mixed: Mixture, batch: MixedBatch) -> list[int]:
    """The samples of a batch, in the order of its slots, as numbers that differ between the sources."""
    return mixed.to_device(batch, CPU)["sample"].tolist()


@settings(max_examples=25, deadline=None)
@given(
    weights=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)),
    world=st.sampled_from([1, 2, 4, 8]),
    first=st.integers(0, 40),
    threads=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_global_batches_depend_on_the_position_alone(jpeg, noise, weights, world, first, threads, seed):
    """Whatever the weights, the ranks, the threads and where a run goes on; and every sample comes once in its own epochs."""
    parts = [(f"{i}", *each, level) for i, (each, level) in enumerate(zip([(jpeg, weights[0]), (jpeg, weights[1]), (noise, weights[2])], [10, 20, None], strict=True))]  # fmt: skip
    alone = mixture(*parts, seed=seed)
    whole = [numbers(alone, batch) for _, batch in islice(alone.batches(), 48)]
    start = Position(*divmod(first, len(alone)))
    ranks = [mixture(*parts, rank=rank, world=world, threads=threads, seed=seed) for rank in range(world)]
    taken = [[(p, numbers(one, batch)) for p, batch in islice(one.batches(start), 48 - first)] for one in ranks]
    joined = [[sample for _, part in each for sample in part] for each in zip(*taken, strict=True)]
    assert joined == whole[first:]
    assert [p for p, _ in taken[0]] == [Position(*divmod(i, len(alone))) for i in range(first, 48)]
    drawn = np.array(whole).ravel()
    block = sum(weights) // np.gcd.reduce(weights)
    for i, size in enumerate((3, 3, 5)):
        mine = drawn[(drawn >= alone.first[i]) & (drawn < alone.first[i + 1])]
        for epoch in range(len(mine) // size):
            assert len(set(mine[epoch * size : (epoch + 1) * size])) == size
        blocks = (drawn[: len(drawn) // block * block].reshape(-1, block)[..., None] == mine[:size]).sum((1, 2))
        assert set(blocks) <= {weights[i] // np.gcd.reduce(weights)}  # exact in every block


def test_a_slot_has_the_images_of_its_sample(jpeg, noise):
    mixed = mixture(("jpeg", jpeg, 2, 20), ("noise", noise, 1, None))
    value = {"jpeg": [10, 20, 30], "noise": [100, 110, 120, 130, 140]}
    for position in (Position(0, 0), Position(3, 0)):
        batch = mixed.to_device(mixed.cut(position), CPU)
        assert batch["gt"].shape == batch["lq"].shape == (8, 1, SIDE, SIDE)
        assert (batch["weight"] == 1).all()
        assert (batch["count"], batch["epoch"]) == (8, position.epoch)
        for i, sample in enumerate(batch["sample"].tolist()):
            task, said = mixed.name(sample).split(": ")
            key = int(said.split()[0].rpartition("-")[2])
            assert key in value[task]
            assert torch.equal(batch["gt"][i], torch.full((1, SIDE, SIDE), key) / 255)
            error = (batch["lq"][i] - batch["gt"][i]).std() * 255
            assert 3 < error < 7 if task == "noise" else error < 1
            assert batch["level"][i] == {"noise": 5, "jpeg": 20}[task]
        assert mixed.names(position) == [mixed.name(sample) for sample in batch["sample"].tolist()]


def test_what_is_drawn_is_drawn_anew_in_each_epoch_of_a_source(noise):
    """And is the same for the same place in the run, however that was reached."""
    sources = [Source(n, Loader(noise, batch=4, sampling=WHOLE, seed=i), 1) for i, n in enumerate("ab")]
    mixed = Mixture(sources)
    seen: dict[int, set[float]] = {}
    for position, batch in islice(mixed.batches(), 20):
        moved = mixed.to_device(batch, CPU)
        again = mixed.to_device(mixed.cut(position), CPU)
        assert all(torch.equal(moved[name], again[name]) for name in moved)
        for sample, lq in zip(moved["sample"].tolist(), moved["lq"], strict=True):
            seen.setdefault(sample, set()).add(float(lq[0, 0, 0]))
    assert len(seen) == 10
    assert all(len(values) == 8 for values in seen.values())  # 80 slots, 40 of each source, 8 epochs of 5 samples


def test_a_batch_that_was_handed_back_is_used_again(jpeg, noise):
    mixed = mixture(("jpeg", jpeg, 1, None), ("noise", noise, 1, None))
    kept = [mixed.to_device(batch, CPU) for _, batch in islice(mixed.batches(), 6)]
    for (position, batch), before in zip(islice(mixed.batches(), 6), kept, strict=True):
        moved = mixed.to_device(batch, CPU)
        batch.hand_back()
        batch.hand_back()  # a second call does nothing
        assert all(torch.equal(moved[name], before[name]) for name in moved), position


def test_an_epoch_has_as_many_samples_as_the_sources_have_together(jpeg, noise):
    mixed = mixture(("jpeg", jpeg, 7, None), ("noise", noise, 1, None), batch=4)
    assert len(mixed) == 3  # 6 and 5 samples
    assert mixed.digest != mixture(("jpeg", jpeg, 6, None), ("noise", noise, 1, None), batch=4).digest
    assert mixed.digest == mixture(("jpeg", jpeg, 14, None), ("noise", noise, 2, None), batch=4).digest


def test_sources_that_do_not_fit_into_one_batch_are_one_line(jpeg, colour):
    with pytest.raises(UserError, match=r"^a mixture of tasks with other image channels: jpeg has 1, and colour 3$"):
        mixture(("jpeg", jpeg, 1, None), ("colour", colour, 1, None))


def test_a_level_that_the_task_has_not_is_one_line(jpeg):
    with pytest.raises(UserError, match=r"no input of level 30 in split train; there are 10, 20$"):
        Loader(jpeg, batch=2, sampling=RandomCrops(8), level=30)


def test_a_loader_of_one_level_has_that_alone(jpeg):
    loader = Loader(jpeg, batch=3, sampling=RandomCrops(8, 2), level=20)
    assert loader.samples == 6
    batches = [loader.cut(Position(0, i)) for i in range(2)]
    assert {level for batch in batches for level in batch["level"].tolist()} == {20}
    assert sorted(s for batch in batches for s in batch["sample"].tolist()) == list(range(6))
    assert all("at level 20" in loader.name(i) for i in range(6))
