import hashlib
import itertools
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cuts import minima
from pipeline.degradations.scale import Scale
from pipeline.errors import UserError
from pipeline.layouts.files import LONGEST_KEY
from pipeline.raw.manifest import SCHEMA
from pipeline.shards import plan as module
from pipeline.shards.plan import ShardPlan, _nbytes, average_bytes, parts, plan, recipe_digest, unused
from pipeline.task import Jpeg, Noise, Paired, Task, TimeLapse

AVERAGE = 2**16
PAIRS, MEAN = TimeLapse(kind="timelapse"), TimeLapse(kind="timelapse", target="mean")


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


def contents(shards: list[ShardPlan]) -> list[tuple[str, list]]:
    return [(shard.split, shard.groups) for shard in shards]


def keys(shards: list[ShardPlan]) -> list[str]:
    return [group.key for shard in shards for group in shard.groups]


# which groups, in which order


@given(st.lists(st.integers(1, 400), max_size=60), st.randoms(use_true_random=False))
def test_every_group_is_in_one_shard_whatever_the_order_of_the_rows(sides, shuffler):
    rows = [row(f"scene{i}", width=side, height=300) for i, side in enumerate([100, *sides])]
    first = contents(plan(table(rows), task()))
    shuffler.shuffle(rows)
    shards = plan(table(rows), task())
    assert contents(shards) == first
    assert keys(shards) == [f"photos-train-scene{i}" for i in range(len(rows))]
    assert all(shard.groups for shard in shards)


def test_groups_stand_in_the_order_of_their_sources_and_count_by_their_numbers():
    rows = [row(key, dataset=dataset) for dataset in ("b", "a") for key in ("frame10", "frame9", "frame09")]
    rows += [row("frame1", role="lq"), row("frame1", dataset="c")]
    shards = plan(table(rows), task("b/train", "a/train"))
    assert keys(shards) == [f"{dataset}-train-{key}" for dataset in "ba" for key in ("frame09", "frame9", "frame10")]


def test_splits_are_planned_apart():
    rows = [row(str(i), split) for split in ("train", "val") for i in range(9)]
    shards = plan(table(rows), task(splits={"val": ("photos/val",), "train": ("photos/train",)}))
    splits = [shard.split for shard in shards]
    assert splits == sorted(splits, reverse=True)
    assert len(splits) > 3
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
        return _nbytes(rows, np.arange(len(rows)), np.arange(len(rows)), task(**changes)).tolist()

    assert sizes() == [3 * 8000, 3 * 8000]
    assert sizes(colour="rgb") == [3 * 3 * 8000, 3 * 8000]
    assert sizes(colour="rgb", degradation=Noise(kind="noise", sigma=(30, 50))) == [3 * 8000, 8000]
    assert sizes(degradation=Scale(kind="scale", factor=(2, 3))) == [5 * 8000, 5 * 8000]  # its inputs have 16 bits
    assert _nbytes(rows, np.arange(2), np.arange(2), task(), views=2).tolist() == [5 * 8000, 5 * 8000]


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


Sized = tuple[str, int]  # a group's key and bytes


def groups(seed: int, number: int) -> list[Sized]:
    """Images of 3:1 in size, as those of a data set are; 25 of them make an average shard of 1,000,000 bytes."""
    sizes = np.random.default_rng(seed).integers(20_000, 60_000, number)
    return [(f"d{seed}-train-{i:06d}", int(size)) for i, size in enumerate(sizes)]


def cut(groups: list[Sized], average: int) -> list[tuple[Sized, ...]]:
    """The shards."""
    hashes = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) for key, _ in groups]
    ends = minima(hashes, list(itertools.accumulate(size for _, size in groups)), average // 2)
    return [tuple(groups[a:b]) for a, b in itertools.pairwise([0, *(end + 1 for end in ends), len(groups)])]


@given(st.lists(st.integers(1, 5 * AVERAGE), min_size=1, max_size=200), st.integers(0, 9))
def test_no_shard_is_under_half_the_average_unless_it_is_alone(sizes, salt):
    shards = cut([(f"{salt}-{i}", size) for i, size in enumerate(sizes)], AVERAGE)
    assert [size for shard in shards for _, size in shard] == sizes
    assert len(shards) < 2 or min(sum(size for _, size in shard) for shard in shards) >= AVERAGE // 2


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 30)), max_size=60, unique_by=lambda g: g[0]))
def test_the_cuts_are_the_localminima(groups):
    """Against the definition, written down without its clever order."""
    window = 50
    hashes, ends = [h for h, _ in groups], list(itertools.accumulate(n for _, n in groups))
    expected = [
        i
        for i, end in enumerate(ends)
        if end >= window
        and ends[-1] - end >= window
        and all(hashes[i] < h for h, e in zip(hashes, ends, strict=True) if e != end and abs(e - end) < window)
    ]
    assert minima(hashes, ends, window) == expected


def test_shards_have_about_the_average_size():
    sizes = np.array([sum(size for _, size in shard) for shard in cut(groups(0, 10_000), 10**6)]) / 10**6
    assert 0.9 < sizes.mean() < 1.1
    assert 0.5 <= sizes.min() < sizes.max() < 3
    assert (sizes < 1.7).mean() > 0.9


@pytest.mark.parametrize("per_shard", [8, 25, 100])
def test_an_edit_changes_three_shards_at_the_most(per_shard):
    average = per_shard * 40_000
    for seed in range(20):
        before = groups(seed, 3000)
        shards = set(cut(before, average))
        rng = random.Random(seed)
        place, number = rng.randrange(2950), rng.choice([1, 1, 5])
        added = [(f"{before[place][0]}-{i}", 40_000) for i in range(number)]
        inserted = before[:place] + added + before[place:]
        deleted = before[:place] + before[place + number :]
        larger = [*before[:place], (before[place][0], 59_000), *before[place + 1 :]]
        for after in (inserted, deleted, larger):
            assert len(set(cut(after, average)) - shards) <= 3


# the size that follows the split


def default_cut(groups: list[Sized]) -> list[tuple[Sized, ...]]:
    return cut(groups, average_bytes(sum(size for _, size in groups)))


@pytest.mark.parametrize("number", [1, 40, 64, 90, 200, 255, 256, 400, 1000, 5000])
def test_a_split_has_at_least_64_shards_or_as_many_as_it_has_groups(number):
    for seed in range(20):
        shards = default_cut([(key, 40 * size) for key, size in groups(seed, number)])
        assert min(64, round(0.9 * number)) <= len(shards) <= 300


def test_the_shards_of_a_large_split_stay_under_256_mib():
    sizes = [
        sum(size for _, size in shard) for shard in default_cut([(key, 50 * size) for key, size in groups(1, 20_000)])
    ]
    assert sum(sizes) > 2**33
    assert max(sizes) <= 2**28
    assert 0.9 * 2**26 < np.mean(sizes) < 1.1 * 2**26


@given(st.integers(0, 2**45), st.integers(0, 2**45))
def test_the_size_is_a_power_of_two_that_grows_with_the_total(a, b):
    sizes = [average_bytes(total) for total in sorted((a, b))]
    assert sizes == sorted(sizes)
    assert all(2**16 <= size <= 2**26 and size.bit_count() == 1 for size in sizes)
    assert average_bytes(2**27) == 2 * average_bytes(2**27 - 1) == 2**20


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=30)
def test_an_edit_of_k_images_changes_at_most_3k_shards_except_where_the_size_doubles(seed, k):
    rng = random.Random(seed)
    before = groups(seed, rng.randrange(300, 3000))
    after = list(before)
    for i in range(k):
        place = rng.randrange(len(after))
        new = (f"{after[place][0]}-{i}", rng.randrange(20_000, 60_000))
        after[place : place + rng.randrange(2)] = rng.choice([[], [new]])
    totals = [average_bytes(sum(size for _, size in each)) for each in (before, after)]
    if totals[0] == totals[1]:
        assert len(set(default_cut(after)) - set(default_cut(before))) <= 3 * k


def test_where_the_size_doubles_every_cut_is_one_of_the_cuts_before():
    each = groups(3, 3000)
    few, many = ({shard[-1] for shard in cut(each, average)} for average in (2**21, 2**20))
    assert few < many
    assert len(many) > 1.5 * len(few)


@pytest.mark.parametrize("part", [2, 40, 10**6])
def test_every_shard_is_in_one_part_of_the_tables(part, monkeypatch):
    monkeypatch.setattr(module, "PART", part)
    rows = [row(f"scene{i}", split) for split in ("train", "val") for i in range(150)]
    shards = plan(table(rows), task(splits={"train": ("photos/train",), "val": ("photos/val",)}))
    counts = parts(shards)
    assert sum(counts) == len(shards)
    assert {2: len(shards) - 1, 10**6: 1}.get(part, 5) <= len(counts) <= len(shards)


# pairs and scenes


def test_a_target_and_its_inputs_and_masks_are_one_group():
    rows = [row("b", role="gt"), row("b_10", role="lq", group="b"), row("b_9", role="lq", group="b")]
    rows += [row("b_9", role="mask", group="b", channels=1, sha256="m"), row("a"), row("a", role="lq", sha256="x")]
    (shard,) = plan(table(rows), task(degradation=Paired(kind="paired"), colour="rgb", shard_bytes=2**20))
    assert [(group.key, [file.name for file in group.files]) for group in shard.groups] == [
        ("photos-train-a", ["gt", "lq-0"]),
        ("photos-train-b", ["gt", "lq-0", "lq-1", "mask-0"]),
    ]
    assert [file.path[13:] for file in shard.groups[1].files] == ["b.png", "b_9.png", "b_10.png", "b_9.png"]
    sizes = _nbytes(
        table(rows), np.arange(len(rows)), np.arange(len(rows)), task(degradation=Paired(kind="paired"), colour="rgb")
    )
    assert sizes.tolist() == [24000, 24000, 24000, 8000, 24000, 24000]


def test_the_frames_of_a_scene_are_one_group_in_their_order():
    rows = [row(f"s-{i}", role="frame", group="s", scene="s", frame=i) for i in (10, 2, 1)] + [row("clean")]
    (shard,) = plan(table(rows), task(degradation=TimeLapse(kind="timelapse")))
    assert [(g.key, [file.name for file in g.files]) for g in shard.groups] == [
        ("photos-train-s", ["frame-1", "frame-2", "frame-10"])
    ]


def test_with_a_target_the_frames_of_a_scene_are_its_inputs_and_the_target_counts_as_one_more():
    rows = [row(f"{s}-{f}", role="frame", group=f"{s}", scene=f"{s}", frame=f) for s in range(300) for f in (2, 1)]
    pairs, targets = (plan(table(rows), task(degradation=each, shard_bytes=10 * AVERAGE)) for each in (PAIRS, MEAN))
    assert keys(targets) == keys(pairs)
    assert {tuple(file.name for file in group.files) for shard in targets for group in shard.groups} == {
        ("lq-1", "lq-2")
    }
    assert 1.3 < len(targets) / len(pairs) < 1.7  # three images in the place of two


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Paired(kind="paired"), "photos/train/1.png: has no input, and the task is of pairs; leave its split out"),
        (TimeLapse(kind="timelapse"), "the manifest has no scenes in 'photos/train'"),
    ],
)
def test_a_task_of_pairs_or_scenes_names_what_clean_images_lack(kind, message):
    with pytest.raises(UserError) as error:
        plan(table([row("1")]), task(degradation=kind))
    assert str(error.value).startswith(message)


# what a shard's bytes depend on


def test_the_recipe_is_the_same_wherever_the_files_are_and_another_for_all_that_counts():
    versions = {"opencv": "5", "numpy": "2"}

    def digest(*rows, names=None, versions=versions, **changes):
        shard = ShardPlan("train", table(rows or [row("a")]), np.arange(len(rows) or 1), names, 0)
        return recipe_digest(shard, task(**changes), versions)

    assert digest(row("a", path="there/a.png")) == digest()
    assert digest(splits={"train": ("photos/train",), "val": ("other/val",)}, shard_bytes=2**20) == digest()
    others = [
        digest(row("b", sha256=row("a")["sha256"])),
        digest(row("a", sha256="1")),
        digest(row("a", part="left")),
        digest(row("a"), names=("lq-0",)),
        digest(row("a"), row("b")),
        digest(row("b"), row("a")),
        digest(versions=versions | {"numpy": "3"}),
        digest(colour="rgb"),
        digest(degradation=Jpeg(kind="jpeg", quality=(10,))),
        digest(degradation=Paired(kind="paired")),
        digest(degradation=Paired(kind="paired"), bits=16),
    ]
    assert len({digest(), *others}) == 12


def test_a_task_of_8_bits_has_the_recipe_that_it_had_before_there_were_others():
    """Where only the images as they are were degraded: to validate on, and before there were turned inputs to train on."""
    split = {split: ShardPlan(split, table([row("a")]), np.arange(1), None, 0) for split in ("train", "val")}
    assert recipe_digest(split["val"], task(), {"opencv": "5"}).startswith("7e85b988bb235f61")
    assert recipe_digest(split["train"], task(), {"opencv": "5"}).startswith("a94fa5163dcfc29c")


# images of more bits than the task's


def test_a_task_of_8_bits_leaves_out_images_of_16_and_one_of_16_takes_both():
    rows = [row(str(i), bit_depth=16 if i in (2, 3) else 8) for i in range(5)]
    noise = Noise(kind="noise", sigma=(30,))
    assert keys(plan(table(rows), task(degradation=noise))) == [f"photos-train-{i}" for i in (0, 1, 4)]
    assert keys(plan(table(rows), task(degradation=noise, bits=16))) == [f"photos-train-{i}" for i in range(5)]
    for each in rows:
        each["bit_depth"] = 16
    with pytest.raises(UserError, match=r"nothing is left of photos/train .* photos/train/0\.png: 16 bits a"):
        plan(table(rows), task(degradation=noise))


def test_the_pixels_of_16_bits_are_counted_twice():
    rows, noise = [row("a"), row("b")], Noise(kind="noise", sigma=(30,))
    narrow, wide = (
        _nbytes(table(rows), np.arange(2), np.arange(2), task(degradation=noise, bits=bits)) for bits in (8, 16)
    )
    assert (2 * narrow).tolist() == wide.tolist()


@pytest.mark.parametrize("degradation", [PAIRS, MEAN])
def test_the_last_frame_of_a_scene_is_no_sample_and_is_listed(degradation):
    frames = {"a": (8, 8, 16), "b": (16, 8), "c": (8,), "d": (8, 8)}
    rows = [
        row(f"{scene}{i}", group=scene, role="frame", frame=i, bit_depth=bits)
        for scene, depths in frames.items()
        for i, bits in enumerate(depths)
    ]
    manifest, wanted = table(rows), task(degradation=degradation)
    used = np.concatenate([shard.rows for shard in plan(manifest, wanted)])
    assert [rows[i]["key"] for i in used] == ["a0", "a1", "d0", "d1"]
    lost = unused(manifest, np.setdiff1d(np.arange(len(rows)), used), wanted).to_pylist()
    assert {row["path"][-6:-4]: row["reason"].split(",")[0] for row in lost} == {
        **dict.fromkeys(["a2", "b0"], "16 bits a channel"),
        **dict.fromkeys(["b1", "c0"], "the only frame of its scene that can be used"),
    }
    with pytest.raises(UserError, match=r"nothing is left of photos/train .*: the only frame of its scene"):
        plan(table(rows[5:6]), wanted)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=7), min_size=1, max_size=6))
def test_of_pairs_what_belongs_to_an_image_of_16_bits_is_left_out_with_it(deep):
    rows = [row("whole"), row("whole-0", group="whole", role="lq")]
    expected = {("whole", "gt"), ("whole-0", "lq")}
    for g, (target, *others) in enumerate(deep):
        bits = (8, 16)
        rows.append(row(f"g{g}", role="gt", bit_depth=bits[target]))
        inputs = [others[i : i + 2] for i in range(0, len(others), 2)]  # of each the lq, and a mask perhaps
        used = set()
        for i, (lq, *mask) in enumerate(inputs):
            key = f"g{g}-{i}"
            rows.append(row(key, group=f"g{g}", role="lq", bit_depth=bits[lq]))
            rows += [row(key, group=f"g{g}", role="mask", bit_depth=bits[each]) for each in mask]
            if not (lq or target or any(mask)):
                used |= {(key, "lq"), *((key, "mask") for _ in mask)}
        expected |= used | ({(f"g{g}", "gt")} if used else set())
    manifest = table(rows)
    shards = plan(manifest, task(degradation=Paired(kind="paired")))
    used = np.concatenate([shard.rows for shard in shards])
    found = {(rows[i]["key"], rows[i]["role"]) for i in used}
    assert found == expected
    assert len(used) == len(found)


def test_the_size_of_the_frames_and_their_target_change_the_shard():
    shard = ShardPlan("train", table([row("a", role="frame")]), np.arange(1), ("lq-0",), 0)
    kinds = [{"size": size, "target": target} for size in (None, 32, 64) for target in (None, "mean")]
    digests = {recipe_digest(shard, task(degradation=TimeLapse(kind="timelapse", **kind)), {}) for kind in kinds}
    assert len(digests) == len(kinds)


def test_which_pairs_of_a_scene_are_drawn_changes_no_shard():
    shard = ShardPlan("train", table([row("a", role="frame")]), np.arange(1), ("frame-0",), 0)
    digests = {
        recipe_digest(shard, task(degradation=TimeLapse(kind="timelapse", pairs_per_scene=n)), {})
        for n in (1, 2, "all")
    }
    assert len(digests) == 1
