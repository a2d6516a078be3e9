import hashlib
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.layouts.base import LONGEST_KEY
from pipeline.manifest import SCHEMA
from pipeline.plan import Group, ShardPlan, _cut, plan, recipe_digest
from pipeline.task import Jpeg, Noise, Task

AVERAGE = 2**16


def row(key: str, split: str = "train", **changes) -> dict:
    """A used image of the manifest; its content is named by dataset, split and key."""
    given = {"dataset": "photos", "split": split, "key": key, "role": "gt", "group": key} | changes
    name = "{dataset}/{split}/{key}".format_map(given)
    sha256 = hashlib.sha256(name.encode()).hexdigest()
    sizes = {"width": 100, "height": 80, "channels": 3, "bit_depth": 8}
    return {**dict.fromkeys(SCHEMA.names), "path": f"{name}.png", "sha256": sha256, **sizes, **given}


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def task(*sources: str, **changes) -> Task:
    fields = {
        "colour": "y",
        "degradation": Jpeg(kind="jpeg", quality=(10, 20)),
        "splits": {"train": sources or ("photos/train",)},
        "shard_bytes": AVERAGE,
    }
    return Task(**fields | changes)


def keys(shards: list[ShardPlan]) -> list[str]:
    return [group.key for shard in shards for group in shard.groups]


# which groups, in which order


@given(st.lists(st.integers(1, 400), max_size=60), st.randoms(use_true_random=False))
def test_every_group_is_in_one_shard_whatever_the_order_of_the_rows(sides, shuffler):
    rows = [row(f"scene{i}", width=side, height=300) for i, side in enumerate([100, *sides])]
    first = plan(table(rows), task())
    shuffler.shuffle(rows)
    assert plan(table(rows), task()) == first
    assert keys(first) == [f"photos-train-scene{i}" for i in range(len(rows))]
    assert all(shard.groups for shard in first)


def test_groups_stand_in_the_order_of_their_sources_and_count_by_their_numbers():
    rows = [row(key, dataset=dataset) for dataset in ("b", "a") for key in ("frame10", "frame9", "frame09")]
    rows += [row("frame1", role="lq"), row("frame1", dataset="c")]
    shards = plan(table(rows), task("b/train", "a/train"))
    assert keys(shards) == [f"{dataset}-train-{key}" for dataset in "ba" for key in ("frame09", "frame9", "frame10")]


def test_splits_are_planned_apart():
    rows = [row(str(i), split) for split in ("train", "val") for i in range(4)]
    shards = plan(table(rows), task(splits={"val": ("photos/val",), "train": ("photos/train",)}))
    assert [(shard.split, len(shard.groups)) for shard in shards if shard.split == "val"] == [("val", 3), ("val", 1)]
    for shard in shards:
        assert {group.key.split("-")[1] for group in shard.groups} == {shard.split}


@given(st.integers(1, LONGEST_KEY), st.integers(1, LONGEST_KEY - 1))
def test_a_sample_of_any_name_fits_into_the_header_of_a_tar_member(dataset, key):
    rows = [row("k" * key + end, dataset="d" * dataset) for end in ("", "x")]
    first, second = keys(plan(table(rows), task("d" * dataset + "/train")))
    assert first != second
    assert max(len(f"{name}.lq-q100.npy") for name in (first, second)) <= 100


def test_a_group_counts_the_bytes_of_all_its_versions():
    rows = table([row("colour"), row("grey", channels=1)])

    def sizes(**changes):
        return [group.nbytes for shard in plan(rows, task(**changes)) for group in shard.groups]

    assert sizes() == [3 * 8000, 3 * 8000]
    assert sizes(colour="rgb") == [3 * 3 * 8000, 3 * 8000]
    assert sizes(colour="rgb", degradation=Noise(kind="noise", sigma=(30, 50))) == [3 * 8000, 8000]


# mistakes


def test_one_image_in_two_splits_names_both_files():
    rows = [row("1"), row("2"), row("9", "val", sha256=row("2")["sha256"])]
    with pytest.raises(UserError) as error:
        plan(table(rows), task(splits={"train": ("photos/train",), "val": ("photos/val",)}))
    assert str(error.value) == (
        "photos/val/9.png (val) and photos/train/2.png (train) are the same image: remove one of them"
    )


def test_one_image_twice_in_one_split_is_no_mistake():
    assert len(keys(plan(table([row("1"), row("2", sha256=row("1")["sha256"])]), task()))) == 2


def test_an_unknown_source_names_the_nearest():
    with pytest.raises(UserError) as error:
        plan(table([row("1"), row("1", "val"), row("2", "test", role="lq")]), task("photo/train"))
    assert str(error.value) == (
        "the manifest has no images in 'photo/train'; did you mean 'photos/train'? known: photos/train, photos/val"
    )


def test_two_images_of_one_key_name_both_files():
    rows = [row("x", dataset="a-train"), row("train-x", dataset="a")]
    with pytest.raises(UserError) as error:
        plan(table(rows), task("a-train/train", "a/train"))
    assert str(error.value) == (
        "a/train/train-x.png and a-train/train/x.png have the same key a-train-train-x: rename one of them"
    )


# where the cuts are


def groups(seed: int, number: int) -> list[Group]:
    """Images of 3:1 in size, as those of a data set are; 25 of them make an average shard of 1,000,000 bytes."""
    sizes = np.random.default_rng(seed).integers(20_000, 60_000, number)
    return [Group(f"d{seed}-train-{i:06d}", "", "", int(size)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 5 * AVERAGE), max_size=200), st.integers(0, 9))
def test_shards_have_the_sizes_that_are_promised(sizes, salt):
    cut = list(_cut([Group(f"{salt}-{i}", "", "", size) for i, size in enumerate(sizes)], AVERAGE))
    assert [group.nbytes for shard in cut for group in shard] == sizes
    for shard in cut[:-1]:
        assert sum(group.nbytes for group in shard) >= 0.4 * AVERAGE
    for shard in cut:
        assert sum(group.nbytes for group in shard[:-1]) < 2 * AVERAGE


def test_shards_have_about_the_average_size():
    sizes = np.array([sum(g.nbytes for g in shard) for shard in list(_cut(groups(0, 10_000), 10**6))[:-1]]) / 10**6
    assert 0.9 < sizes.mean() < 1.2
    assert 0.4 <= sizes.min() < sizes.max() < 2.06
    assert (sizes < 1.6).mean() > 0.9


@pytest.mark.parametrize(("per_shard", "mean", "within_three"), [(25, 2.1, 0.85), (100, 1.4, 0.95)])
def test_an_edit_changes_the_shards_around_it_and_no_others(per_shard, mean, within_three):
    average = per_shard * 40_000
    changed = []
    for seed in range(20):
        before = groups(seed, 3000)
        shards = {tuple(shard) for shard in _cut(before, average)}
        rng = random.Random(seed)
        place, number = rng.randrange(2950), rng.choice([1, 1, 1, 5, 20])
        added = [Group(f"{before[place].key}-{i}", "", "", 40_000) for i in range(number)]
        inserted = before[:place] + added + before[place:]
        deleted = before[:place] + before[place + number :]
        changed += [len({tuple(shard) for shard in _cut(after, average)} - shards) for after in (inserted, deleted)]
    assert np.mean(changed) < mean
    assert np.mean(np.array(changed) <= 3) >= within_three
    assert max(changed) <= 10


# what a shard's bytes depend on


def test_the_recipe_is_the_same_wherever_the_files_are_and_another_for_all_that_counts():
    versions = {"opencv": "5", "numpy": "2"}

    def digest(groups=None, versions=versions, **changes):
        shard = ShardPlan("train", tuple(groups or [Group("a", "here/a.png", "0", 10)]))
        return recipe_digest(shard, task(**changes), versions)

    assert digest(groups=[Group("a", "there/a.png", "0", 10)]) == digest()
    assert digest(splits={"train": ("photos/train",), "val": ("other/val",)}, shard_bytes=2**20) == digest()
    others = [
        digest(groups=[Group("b", "here/a.png", "0", 10)]),
        digest(groups=[Group("a", "here/a.png", "1", 10)]),
        digest(groups=[Group("a", "", "0", 10), Group("b", "", "1", 10)]),
        digest(groups=[Group("b", "", "1", 10), Group("a", "", "0", 10)]),
        digest(versions=versions | {"numpy": "3"}),
        digest(colour="rgb"),
        digest(degradation=Jpeg(kind="jpeg", quality=(10,))),
    ]
    assert len({digest(), *others}) == 8
