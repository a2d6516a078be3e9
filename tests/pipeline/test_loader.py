import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from conftest import photograph, table_file
from fuzz.readers import put_right
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.degradations.jpeg import jpeg as compressed
from pipeline.degradations.orientation import dihedral
from pipeline.degradations.scene_mean import scene_mean
from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.loading import loader as module
from pipeline.loading import pool
from pipeline.loading.loader import Loader, Position
from pipeline.loading.symmetry import gather, turn
from pipeline.normal import counter_normal
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards.cache import ShardCache
from pipeline.shards.shard_set import ShardSet, validation_pair
from pipeline.storage import storage

PATCH, STRIDE, BATCH = 24, 16, 12
FILES = {
    f"{split}/{i}.png": photograph(seed, 60 + 9 * i, 100, 3)
    for seed, (split, i) in enumerate((split, i) for split, n in (("train", 7), ("val", 2)) for i in range(n))
} | {"train/low.png": photograph(99, 20, 90, 1)}  # lower than a patch
NOISE = {"kind": "noise", "sigma": [30, 50]}


@pytest.fixture(scope="session")
def jpeg(builder) -> Path:
    return builder("loader-jpeg", FILES, shard_bytes=2**17)


@pytest.fixture(scope="session")
def noise(builder) -> Path:
    return builder("loader-noise", FILES, degradation=NOISE)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 2)  # so that an epoch has several


def load(folder: Path, **changes) -> Loader:
    return Loader(folder, **{"batch": BATCH, "sampling": Grid(PATCH, STRIDE), "seed": 5} | changes)


def enumeration(folder: Path) -> Iterator[tuple[str, int, np.ndarray, np.ndarray | None]]:
    """(key, level, gt, lq) of every sample, in the order of its number; lq is None where noise is added online.

    The input of a patch that lies on its side is cut from a JPEG of the image that lay on its side, and images lower than a
    patch are mirrored at their lower edge.
    """
    for version in ShardSet(folder, "train").versions():
        gt, lq = (version.planes.get(name) for name in ("gt", "lq"))
        lying = None if lq is None else np.rot90(compressed(np.ascontiguousarray(np.rot90(gt)), version.level), -1)
        lower = max(0, PATCH - len(gt))
        gt, lq, lying = (
            whole if whole is None else np.concatenate([whole, whole[-2 : -2 - lower : -1]])
            for whole in (gt, lq, lying)
        )
        for y in range(0, gt.shape[0] - PATCH + 1, STRIDE):
            for x in range(0, gt.shape[1] - PATCH + 1, STRIDE):
                place = slice(y, y + PATCH), slice(x, x + PATCH)
                for turns, mirrored in ((turns, mirrored) for mirrored in (False, True) for turns in range(4)):
                    wholes = (gt, lying if turns % 2 else lq)
                    patches = [None if whole is None else whole[place] for whole in wholes]
                    views = [p if p is None else np.rot90(np.fliplr(p) if mirrored else p, turns) for p in patches]
                    yield version.key, version.level, *views


def epoch_of(loader: Loader, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
    return [loader.cut(Position(epoch, i)) for i in range(len(loader))]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The global batch of its ranks' parts, without the count, which is per rank."""
    names = parts[0].keys() - {"epoch", "count"}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


# an epoch


@pytest.mark.parametrize(("world_size", "batch"), [(1, BATCH), (4, BATCH), (1, 20), (4, 20), (3, 192), (64, 192)])
def test_the_ranks_see_every_sample_once_in_an_epoch(jpeg, world_size, batch):
    ranks = [load(jpeg, batch=batch, rank=rank, world_size=world_size) for rank in range(world_size)]
    total = len(list(enumeration(jpeg)))
    assert {(len(rank), rank.samples) for rank in ranks} == {(-(-total // batch), total)}
    seen: list[int] = []
    for i in range(len(ranks[0])):
        parts = [rank.cut(Position(1, i)) for rank in ranks]
        whole = joined(parts)
        seen += whole["sample"][whole["weight"] == 1].tolist()
        true = min(batch, total - i * batch)
        assert whole["weight"].tolist() == [1] * true + [0] * (batch - true)
        assert {float(part["count"]) for part in parts} == {np.float32(true / world_size)}
        assert {int(part["epoch"]) for part in parts} == {1}
    assert sorted(seen) == list(range(total))


def test_an_epoch_smaller_than_a_batch_is_one_batch(jpeg):
    loader = load(jpeg, batch=10_000)
    batch = loader.cut(Position())
    assert len(loader) == 1
    assert sorted(batch["sample"][batch["weight"] == 1].tolist()) == list(range(loader.samples))
    assert int(batch["count"]) == loader.samples


def test_another_epoch_is_another_order(jpeg):
    first, second = (load(jpeg).cut(Position(epoch, 0))["sample"] for epoch in range(2))
    assert not torch.equal(first, second)


# the same batches, however they are made


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(1, 3), st.integers(0, 2), st.integers(0, 10**6))
@settings(max_examples=25)
def test_a_run_continues_at_any_batch_with_any_world_size_and_threads(jpeg, world_size, threads, epoch, batch):
    one = load(jpeg)
    start = Position(epoch, len(one) - 2 if batch % 3 == 0 else batch % len(one))
    ranks = [load(jpeg, rank=rank, world_size=world_size, threads=threads).batches(start) for rank in range(world_size)]
    expected = [start]
    for _ in range(3):
        last = expected[-1]
        expected.append(Position(last.epoch, last.batch + 1) if last.batch + 1 < len(one) else Position(last.epoch + 1))
    for position in expected:
        parts = [next(rank) for rank in ranks]
        assert {at for at, _ in parts} == {position}
        assert same(joined([part for _, part in parts]), joined([one.cut(position)]))
    for rank in ranks:
        rank.close()


def test_the_digest_names_all_that_the_batches_depend_on(jpeg, noise):
    def digest(folder=jpeg, **changes):
        return load(folder, **changes).digest

    assert digest(rank=1, world_size=2, threads=3) == digest()
    samplings = [
        Grid(16, STRIDE),
        Grid(PATCH, 8),
        Grid(PATCH, STRIDE, False),
        RandomCrops(PATCH),
        RandomCrops(PATCH, 2),
    ]
    changes = [{"batch": 24}, {"seed": 6}, {"folder": noise}, *({"sampling": sampling} for sampling in samplings)]
    assert len({digest(), *(digest(**change) for change in changes)}) == 1 + len(changes)


# a sample


def test_patches_are_the_slices_of_the_images(jpeg):
    expected = list(enumeration(jpeg))
    keys = [key for key, *_ in expected]
    assert len(set(keys)) == 8
    assert "photos-train-low" in keys  # lower than a patch
    loader = load(jpeg, batch=60)
    for i in range(len(loader)):
        batch = loader.cut(Position(0, i))
        assert batch["gt"].shape == batch["lq"].shape == (60, 1, PATCH, PATCH)
        assert batch["gt"].dtype == batch["lq"].dtype == torch.uint8
        for sample, gt, lq, level in zip(*(batch[name] for name in ("sample", "gt", "lq", "level")), strict=True):
            _, wanted_level, wanted_gt, wanted_lq = expected[sample]
            assert (gt.permute(1, 2, 0).numpy() == wanted_gt).all()
            assert (lq.permute(1, 2, 0).numpy() == wanted_lq).all()
            assert level == wanted_level


def test_without_the_views_every_patch_comes_once_and_upright(jpeg):
    expected = [each for i, each in enumerate(enumeration(jpeg)) if i % 8 == 0]
    loader = load(jpeg, sampling=Grid(PATCH, STRIDE, dihedral=False))
    assert loader.samples == len(expected)
    batch = loader.cut(Position(0, 3))
    for sample, gt in zip(batch["sample"], batch["gt"], strict=True):
        assert (gt.permute(1, 2, 0).numpy() == expected[sample][2]).all()


def test_the_views_are_the_eight_symmetries_of_the_square():
    patch = np.arange(16).reshape(4, 4, 1)
    views = {dihedral(patch, view).tobytes() for view in range(8)}
    assert len(views) == 8
    assert patch.tobytes() in views
    for first, second in itertools.product(range(8), repeat=2):
        assert dihedral(dihedral(patch, first), second).tobytes() in views
    for symmetry in (np.flipud, np.fliplr, np.rot90, lambda image: image.swapaxes(0, 1)):
        assert symmetry(patch).tobytes() in views


def test_colour_images_have_three_planes(builder):
    folder = builder("loader-rgb", {"train/1.png": FILES["train/1.png"]}, colour="rgb")
    assert load(folder).cut(Position())["lq"].shape == (BATCH, 3, PATCH, PATCH)


def test_grey_images_among_colour_ones_are_grey_in_three_planes(builder):
    files = {"train/0.png": photograph(0, 60, 60, 1), "train/1.png": photograph(1, 60, 60, 3)}
    loader = load(builder("loader-mixed", files, colour="rgb"), batch=32)
    grey = 0
    for i in range(len(loader)):
        batch = loader.cut(Position(0, i))
        assert batch["gt"].shape == (32, 3, PATCH, PATCH)
        grey += sum(bool((patch == patch[:1]).all()) for patch in batch["gt"])
    assert grey == len(loader) * 32 // 2


# noise


def test_noise_belongs_to_the_sample_and_its_epoch(noise):
    def noisy(position: Position, **changes) -> dict[int, torch.Tensor]:
        """sample -> lq, of all ranks."""
        found = {}
        for rank in range(changes.get("world_size", 1)):
            loader = load(noise, rank=rank, **changes)
            batch = loader.to_device(loader.cut(position), torch.device("cpu"))
            found |= {int(sample): lq for sample, lq in zip(batch["sample"], batch["lq"], strict=True)}
        return found

    one = noisy(Position(0, 2))
    four = noisy(Position(0, 2), world_size=4)
    assert one.keys() == four.keys()
    assert all(torch.equal(one[sample], four[sample]) for sample in one)
    every = range(len(load(noise)))
    next_epoch = {sample: lq for batch in every for sample, lq in noisy(Position(1, batch)).items() if sample in one}
    assert one.keys() == next_epoch.keys()
    assert not any(torch.equal(one[sample], next_epoch[sample]) for sample in one)


def test_noise_has_the_deviation_of_its_level_and_is_neither_clipped_nor_rounded(noise):
    loader = load(noise, batch=600)
    batch = loader.to_device(loader.cut(Position()), torch.device("cpu"))
    assert batch["lq"].dtype == batch["gt"].dtype == torch.float32
    assert batch["gt"].min() >= 0
    assert batch["gt"].max() <= 1
    assert batch["lq"].min() < 0
    assert set(batch["level"].tolist()) == {30, 50}
    for level in (30, 50):
        drawn = (batch["lq"] - batch["gt"])[batch["level"] == level] * 255
        assert drawn.std() == pytest.approx(level, rel=0.01)
        assert abs(drawn.mean()) < 0.02 * level
        assert abs((drawn / level).pow(4).mean() - 3) < 0.1  # Gaussian


def test_stored_inputs_are_scaled_and_nothing_else(jpeg):
    loader = load(jpeg)
    batch = loader.cut(Position())
    ready = loader.to_device(batch, torch.device("cpu"))
    for name in ("gt", "lq"):
        assert torch.equal((ready[name] * 255).round().to(torch.uint8), batch[name])


def test_a_whole_image_is_scored_with_the_same_noise_each_time(jpeg, noise):
    for version in ShardSet(noise, "val").versions():
        lq, gt = validation_pair(version)
        assert (lq == validation_pair(version)[0]).all()
        assert (gt == version.planes["gt"].astype(np.float32) / 255).all()
        assert (lq - gt).std() * 255 == pytest.approx(version.level, rel=0.05)
    version = next(ShardSet(jpeg, "val").versions())
    assert (validation_pair(version)[0] == version.planes["lq"].astype(np.float32) / 255).all()


# mistakes


def test_a_world_that_does_not_divide_the_batch_is_told_which_do(jpeg):
    with pytest.raises(UserError) as error:
        load(jpeg, world_size=5)
    assert str(error.value) == ("5 workers do not divide the global batch of 12; these do: 1, 2, 3, 4, 6, 12")


def test_the_index_of_another_build_is_refused(jpeg, noise, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(jpeg, folder)
    shutil.copyfile(table_file(noise), table_file(folder))
    with pytest.raises(UserError, match=r"index/\w+\.parquet: damaged, or of another build than shards\.json"):
        load(folder)
    table_file(folder).unlink()
    with pytest.raises(UserError, match=r"index/\w+\.parquet: missing; run `memoir build` again, or `dvc pull`"):
        load(folder)


def test_a_missing_or_cut_shard_is_refused(jpeg, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(jpeg, folder)
    path = sorted((folder / "train").iterdir())[0]
    data = path.read_bytes()
    for change in (lambda: path.write_bytes(data[:-1]), path.unlink):
        change()
        with pytest.raises(UserError, match=f"{path.name}: missing or truncated; run `memoir build` again"):
            load(folder)


def test_a_split_without_images_is_refused(jpeg):
    with pytest.raises(UserError, match="no split 'test'"):
        load(jpeg, split="test")


def test_a_split_that_was_not_built_for_training_is_not_turned(jpeg):
    with pytest.raises(UserError, match="the inputs of split 'val' cannot be turned, for jpeg makes others"):
        load(jpeg, split="val")
    batch = load(jpeg, split="val", sampling=Grid(PATCH, STRIDE, dihedral=False)).cut(Position())
    assert batch["lq"].shape == (BATCH, 1, PATCH, PATCH)


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("sampling", [Grid(150, 40), RandomCrops(150, 4)])
def test_every_image_smaller_than_a_patch_is_mirrored_to_fill_it_and_named(builder, sampling, codec):
    folder = builder(f"loader-small-{codec}", FILES, codec=codec, degradation={"kind": "jpeg", "quality": [20]})
    loader = load(folder, sampling=sampling, batch=8)
    versions = list(ShardSet(folder, "train").versions())
    assert loader.samples == 8 * (8 if isinstance(sampling, Grid) else 4)
    assert loader.notes == [
        "8 of 8 images are smaller than a patch of 150x150, and mirrored at their lower and right edges to fill it: "
        "photos-train-0, photos-train-1, photos-train-2 and 5 more"
    ]
    seen = set()
    for batch in epoch_of(loader):
        for sample, gt, lq in zip(batch["sample"].tolist(), batch["gt"], batch["lq"], strict=True):
            version = versions[sample * len(versions) // loader.samples]
            planes = version.planes["gt"], version.planes["lq"]
            whole = [np.pad(p, ((0, 150 - p.shape[0]), (0, 150 - p.shape[1]), (0, 0)), "reflect") for p in planes]
            views = [v for v in range(8) if (dihedral(whole[0], v)[..., 0] == gt[0].numpy()).all()]
            assert len(views) == 1
            assert (dihedral(whole[1], views[0])[..., 0] == lq[0].numpy()).all() == (views[0] % 2 == 0)
            seen.add(version.key)
    assert len(seen) == 8


def test_frames_smaller_than_a_patch_are_mirrored_and_named(builder):
    scene = {f"train/s/{i}.png": photograph(i, 30, 20, 3) for i in range(3)}
    folder = builder("loader-small-scene", scene, layout="scenes", degradation={"kind": "timelapse"}, colour="rgb")
    loader = load(folder, batch=4, sampling=RandomCrops(PATCH, 4, dihedral=False))
    assert "1 of 1 images are smaller than a patch of 24x24" in loader.notes[0]
    wholes = [np.pad(v, ((0, 0), (0, 4), (0, 0)), "reflect") for v in scene.values()]
    for batch in epoch_of(loader):
        for frame in batch["frames"].flatten(0, 1).permute(0, 2, 3, 1).numpy():
            assert any((whole[y : y + PATCH] == frame).all() for whole in wholes for y in range(30 - PATCH + 1))


# published pairs, masks and time-lapse scenes


def test_published_inputs_come_beside_their_targets_and_masks(builder):
    images = {
        f"train/train_{letter}/{i}.png": photograph(10 * i + n, 40, 40, 1 if letter == "B" else 3)
        for i in range(3)
        for n, letter in enumerate("ABC")
    }
    folder = builder("loader-pairs", images, layout="istd:istd", degradation={"kind": "paired"}, colour="rgb")
    loader = load(folder, batch=24)
    assert loader.samples == 3 * 4 * 8
    seen = set()
    for i in range(len(loader)):
        batch = loader.cut(Position(0, i))
        assert batch["lq"].shape == batch["gt"].shape == (24, 3, PATCH, PATCH)
        assert batch["mask"].shape == (24, 1, PATCH, PATCH)
        for sample, *patches in zip(batch["sample"], *(batch[name] for name in ("lq", "mask", "gt")), strict=True):
            number, inside = divmod(int(sample), 4 * 8)
            cell, view = divmod(inside, 8)
            y, x = (STRIDE * side for side in divmod(cell, 2))
            for letter, patch in zip("ABC", patches, strict=True):
                whole = images[f"train/train_{letter}/{number}.png"]
                wanted = dihedral(whole[y : y + PATCH, x : x + PATCH], view)
                assert (patch.permute(1, 2, 0).numpy() == wanted).all()
            seen.add(int(sample))
    assert seen == set(range(loader.samples))
    floats = loader.to_device(loader.cut(Position()), torch.device("cpu"))
    assert floats["mask"].dtype == floats["lq"].dtype == torch.float32
    assert floats["mask"].max() <= 1


def test_two_frames_of_one_scene_are_a_sample_seen_from_the_same_side(builder):
    frames = {f"train/s{s}/{f}.png": photograph(10 * s + f, 24, 40, 3) for s in range(2) for f in range(4)}
    folder = builder("loader-scenes", frames, layout="scenes", degradation={"kind": "timelapse"}, colour="rgb")
    loader = load(folder, batch=8)
    assert loader.samples == 2 * (4 * 3 // 2) * 2 * 8
    assert loader.delivers == {"frames"}
    places = {
        dihedral(pixels[:, x : x + PATCH], view).tobytes(): (name, x, view)
        for name, pixels in frames.items()
        for x in (0, STRIDE)
        for view in range(8)
    }
    seen = set()
    for i in range(len(loader)):
        batch = loader.cut(Position(0, i))
        assert batch["frames"].shape == (8, 2, 3, PATCH, PATCH)
        assert not batch.keys() & {"gt", "lq", "v", "w"}
        for v, w in batch["frames"].permute(0, 1, 3, 4, 2).numpy():
            (first, *place), (second, *same_place) = places[v.tobytes()], places[w.tobytes()]
            assert place == same_place
            assert first.split("/")[1] == second.split("/")[1]
            assert first != second
            seen.add((*sorted((first, second)), *place))
    assert len(seen) == loader.samples


@pytest.fixture(scope="session")
def grey_scenes(builder) -> Path:
    frames = {f"train/s{s}/{f}.png": np.full((24, 24, 1), 10 * s + f, np.uint8) for s in range(3) for f in range(5)}
    return builder("loader-order", frames, layout="scenes", degradation={"kind": "timelapse"})


def ordered(loaders: list[Loader], epoch: int) -> dict[int, tuple[int, int]]:
    """sample -> the values of its first and second frame, of one epoch."""
    found: dict[int, tuple[int, int]] = {}
    for i in range(len(loaders[0])):
        for batch in (loader.cut(Position(epoch, i)) for loader in loaders):
            true = batch["weight"] == 1
            pairs = batch["frames"][true, :, 0, 0, 0].tolist()
            found |= dict(zip(batch["sample"][true].tolist(), map(tuple, pairs), strict=True))
    return found


def test_the_order_of_two_frames_is_drawn_anew_in_each_epoch_and_belongs_to_the_sample(grey_scenes):
    def loaders(world_size: int = 1, **changes) -> list[Loader]:
        ranks = range(world_size)
        return [load(grey_scenes, batch=6, rank=rank, world_size=world_size, **changes) for rank in ranks]

    one = loaders()
    epochs = [ordered(one, epoch) for epoch in range(8)]
    for found in epochs:  # C(5, 2) pairs of 3 scenes, in 8 views
        assert sorted(found) == list(range(3 * 10 * 8))
        each = [tuple(sorted(pair)) for pair in found.values()]
        assert {each.count(pair) for pair in set(each)} == {8}
    swapped = np.array([[found[i][0] > found[i][1] for i in range(3 * 10 * 8)] for found in epochs])
    assert abs(swapped.mean() - 0.5) < 0.04  # 1,920 draws: over three deviations
    assert (abs(swapped.mean(1) - 0.5) < 0.15).all()
    assert 0 < swapped.mean(0).min() + swapped.mean(0).max() < 2
    assert not (swapped[0] == swapped[1]).all()
    assert ordered(loaders(3, threads=2), 1) == epochs[1]
    assert ordered(loaders(seed=6), 1) != epochs[1]


def test_frames_with_and_without_colours_are_pairs_too(builder):
    frames = {f"train/s/{f}.png": photograph(f, 24, 24, 1 if f else 3) for f in range(3)}  # no pair has w in colour
    folder = builder("loader-coloured-scene", frames, layout="scenes", degradation={"kind": "timelapse"}, colour="rgb")
    loader = load(folder, batch=8, sampling=Grid(PATCH, STRIDE, dihedral=False))
    assert loader.samples == 3
    known = {np.broadcast_to(pixels, (24, 24, 3)).tobytes(): name for name, pixels in frames.items()}
    for epoch in range(4):
        pairs = loader.cut(Position(epoch, 0))["frames"][:3].permute(0, 1, 3, 4, 2).numpy()
        names = {tuple(sorted(known[frame.tobytes()] for frame in pair)) for pair in pairs}
        assert names == set(itertools.combinations(frames, 2))


def test_a_frame_and_the_mean_of_its_scene_are_a_sample(builder):
    frames = {f"train/s{s}/{f}.png": photograph(10 * s + f, 24, 40, 3) for s in range(2) for f in range(4)}
    mean = {"kind": "timelapse", "target": "mean"}
    loader = load(builder("loader-mean", frames, layout="scenes", degradation=mean, colour="rgb"), batch=8)
    assert loader.samples == 2 * 4 * 2 * 8
    assert loader.delivers == {"lq", "gt"}
    means = [scene_mean([frames[f"train/s{s}/{f}.png"] for f in range(4)]) for s in range(2)]
    for i in range(len(loader)):
        batch = loader.cut(Position(0, i))
        for sample, level, lq, gt in zip(*(batch[name] for name in ("sample", "level", "lq", "gt")), strict=True):
            (version, x), view = divmod(int(sample) // 8, 2), int(sample) % 8
            scene, frame = divmod(version, 4)
            assert int(level) == frame
            for whole, patch in ((frames[f"train/s{scene}/{frame}.png"], lq), (means[scene], gt)):
                wanted = dihedral(whole[:, STRIDE * x : STRIDE * x + PATCH], view)
                assert (patch.permute(1, 2, 0).numpy() == wanted).all()


def test_so_many_pairs_of_each_scene_are_drawn_and_belong_to_the_digest(builder):
    frames = {f"train/s{s}/{f}.png": photograph(10 * s + f, 24, 24, 1) for s in range(3) for f in range(6)}
    loaders = [
        load(
            builder(
                f"loader-drawn-{n}-{seed}",
                frames,
                layout="scenes",
                degradation={"kind": "timelapse", "pairs_per_scene": n, "seed": seed},
            ),
            batch=1,
        )
        for n, seed in ((5, 0), (5, 1), (15, 0))
    ]
    assert [loader.samples for loader in loaders] == [3 * 5 * 8, 3 * 5 * 8, 3 * 15 * 8]
    assert len({loader.digest for loader in loaders}) == 3
    listings = [loader.shard_set.listing for loader in loaders]
    assert len({listing["digest"] for listing in listings}) == 1, "the frames' shards are the same"


# random crops


def places_of(patch: np.ndarray, image: np.ndarray) -> list[tuple[int, int, int]]:
    """Where in a grey image a patch was cut, and in which view."""
    found = []
    for view in range(8):
        upright = next(u for v in range(8) if (dihedral(u := dihedral(patch, v), view) == patch).all())[..., 0]
        corners = np.argwhere(image[: image.shape[0] - PATCH + 1, : image.shape[1] - PATCH + 1, 0] == upright[0, 0])
        found += [(y, x, view) for y, x in corners if (image[y : y + PATCH, x : x + PATCH, 0] == upright).all()]
    return found


def test_random_crops_are_cut_where_they_were_drawn_and_elsewhere_in_the_next_epoch(jpeg):
    loader = load(jpeg, sampling=RandomCrops(PATCH, 3), batch=9)
    versions = list(ShardSet(jpeg, "train").versions())
    assert loader.samples == 3 * 8 * 2  # images, levels
    assert len(loader.notes) == 1
    assert load(jpeg, sampling=Grid(16, 16)).notes == []
    seen: dict[int, set[bytes]] = {}
    for epoch in range(2):
        for i in range(len(loader)):
            batch = loader.cut(Position(epoch, i))
            for sample, *patches in zip(batch["sample"], batch["gt"], batch["lq"], strict=True):
                version = versions[int(sample) // 3]
                gt, lq = (patch.permute(1, 2, 0).numpy() for patch in patches)
                seen.setdefault(int(sample), set()).add(gt.tobytes())
                if min(version.size) < PATCH:
                    continue
                found = places_of(gt, version.planes["gt"])
                assert len(found) == 1
                ((y, x, view),) = found
                whole = version.planes["lq"]
                if view % 2:
                    whole = np.rot90(
                        compressed(np.ascontiguousarray(np.rot90(version.planes["gt"])), version.level), -1
                    )
                assert (dihedral(whole[y : y + PATCH, x : x + PATCH], view) == lq).all()
    assert set(seen) == set(range(loader.samples))
    assert sum(len(each) for each in seen.values()) == 2 * loader.samples


# negatives


@pytest.mark.parametrize("kind", ["intra", "extra"])
@pytest.mark.parametrize("kept", ["planned", "stored"])
def test_the_kind_of_the_negatives_is_among_what_a_task_delivers(builder, kind, kept):
    sampling = {"kind": kind, "number": 1, "kept": kept}
    files = {name: pixels for name, pixels in FILES.items() if name != "train/low.png"}
    loader = load(builder(f"delivers-{kind}-{kept}", files, shard_bytes=2**18, negatives=sampling))
    assert loader.delivers == {"lq", "gt", f"{kind} negatives"}


def negatives_of(folder: Path, **changes) -> dict[int, tuple[list[float], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """sample -> (lambdas, negatives, lq, gt), on the device, of one epoch."""
    loader = load(folder, **changes)
    found = {}
    for i in range(len(loader)):
        batch = loader.to_device(loader.cut(Position(0, i)), torch.device("cpu"))
        assert batch["negatives"].shape == (BATCH, *batch["lambdas"].shape[1:], 1, PATCH, PATCH)
        columns = (batch[name] for name in ("sample", "lambdas", "negatives", "lq", "gt"))
        for sample, lambdas, *rest in zip(*columns, strict=True):
            found[int(sample)] = (lambdas.tolist(), *rest)
    return found


@pytest.mark.parametrize("degradation", [{"kind": "jpeg"}, {"kind": "scale", "factor": [3]}])
def test_planned_and_stored_negatives_are_the_same_mixtures(builder, degradation):
    found = [
        negatives_of(
            builder(
                f"negatives-{degradation['kind']}-{kept}",
                FILES,
                degradation=degradation,
                negatives={"kept": kept, "lambdas": [1, 0.95, 0.5]},
            )
        )
        for kept in ("planned", "stored")
    ]
    assert found[0].keys() == found[1].keys() != set()
    for sample, (lambdas, negatives, lq, gt) in found[0].items():
        assert lambdas == found[1][sample][0] == pytest.approx([1, 0.95, 0.5])
        assert (negatives - found[1][sample][1]).abs().max() <= 1 / 32768 + 1e-6  # half a step of what is stored
        for weight, negative in zip(lambdas, negatives, strict=True):
            assert (negative - (weight * lq.double() + (1 - weight) * gt.double())).abs().max() <= 2e-7


def test_planned_and_stored_extra_negatives_are_the_same_patches_of_other_inputs(builder):
    sampling = {"kind": "extra", "number": 2}
    folders = [
        builder(f"extra-{kept}", FILES, shard_bytes=2**18, negatives=sampling | {"kept": kept})
        for kept in ("planned", "stored")
    ]
    planned, stored = (negatives_of(folder) for folder in folders)
    versions = list(ShardSet(folders[0], "train").versions())
    inputs = [version.planes["lq"] for version in versions]
    for version in versions:  # of images that lie on their side
        lying = compressed(np.ascontiguousarray(np.rot90(version.planes["gt"])), version.level)
        inputs.append(np.rot90(lying, -1))
    inputs = [np.pad(lq, ((0, max(0, PATCH - len(lq))), (0, 0), (0, 0)), "reflect") for lq in inputs]
    assert planned.keys() == stored.keys() != set()
    for sample in list(planned)[::97]:
        lambdas, negatives, lq, _ = planned[sample]
        assert lambdas == [1, 1] == stored[sample][0]
        assert torch.equal(negatives, stored[sample][1])
        for negative in negatives:
            patch = (negative[0] * 255).round().byte().numpy()
            assert any(places_of(patch[..., None], lq) for lq in inputs)
            assert not torch.equal(negative, lq)


def test_negatives_of_online_noise_are_mixed_of_the_noisy_image(builder):
    folder = builder("negatives-noise", FILES, degradation=NOISE, negatives={"number": 2, "lambdas": [1, 0.5]})
    for lambdas, negatives, lq, gt in itertools.islice(negatives_of(folder).values(), 20):
        assert lambdas == [1, 0.5]
        assert torch.allclose(negatives[0], lq, atol=1e-6)
        assert torch.allclose(negatives[1], (lq + gt) / 2, atol=1e-6)


def test_the_negatives_belong_to_the_digest_and_a_table_of_another_build_is_refused(builder, tmp_path):
    folders = [builder(f"negatives-{n}", FILES, negatives={"number": n}) for n in (1, 2)]
    digests = [load(folder).digest for folder in folders]
    assert digests[0] != digests[1]
    assert ShardSet(folders[0], "train").listing["digest"] == ShardSet(folders[1], "train").listing["digest"]
    copy = tmp_path / "tiny"
    shutil.copytree(folders[0], copy)
    shutil.copyfile(table_file(folders[1], "negatives"), table_file(copy, "negatives"))
    with pytest.raises(UserError, match=r"negatives/\w+\.parquet: damaged, or of another build than shards\.json"):
        load(copy)


# noise in files


def test_quantised_noise_is_in_8_bits_online_and_stored(builder):
    sigma = {"kind": "noise", "sigma": [40], "quantised": True}
    online = load(builder("noise-quantised", FILES, degradation=sigma), batch=100)
    stored = load(builder("noise-stored", FILES, degradation=sigma | {"drawn": "stored"}), batch=100)
    for loader in (online, stored):
        batch = loader.to_device(loader.cut(Position()), torch.device("cpu"))
        levels = batch["lq"] * 255
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert (levels.min(), levels.max()) == (0, 255)
        inside = (batch["gt"] > 0.45) & (batch["gt"] < 0.55)
        assert (levels - batch["gt"] * 255)[inside].std() == pytest.approx(40, rel=0.03)
    fixed = [stored.to_device(stored.cut(Position(epoch, 0)), torch.device("cpu")) for epoch in (0, 0)]
    assert torch.equal(fixed[0]["lq"], fixed[1]["lq"])
    lq, gt = validation_pair(next(online.shard_set.versions()))
    assert np.allclose(lq * 255, np.rint(lq * 255), atol=1e-4)
    assert not np.allclose(lq, gt)


def test_the_levels_of_online_noise_belong_to_the_digest_though_the_shards_are_the_same(builder, noise):
    other = builder("loader-noise-other", FILES, degradation={"kind": "noise", "sigma": [30, 51]})
    assert ShardSet(other, "train").listing["digest"] == ShardSet(noise, "train").listing["digest"]
    assert load(other).digest != load(noise).digest


# views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("view", range(8))
def test_a_turned_patch_is_its_dihedral_view(view, channels):
    whole = photograph(1, 40, 50, channels)
    for p in (1, 8, 31):
        batch = np.zeros((2, p, p, channels), np.uint8)
        turn(whole[3 : 3 + p, 5 : 5 + p], view, batch[1])
        assert (batch[1] == dihedral(whole[3 : 3 + p, 5 : 5 + p], view)).all()
        assert not batch[0].any()


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**32))
@settings(max_examples=50)
def test_gathered_patches_are_their_views_from_whichever_shards_they_come(p, k, seed):
    rng = np.random.default_rng(seed)
    mapped = {shard: rng.integers(0, 256, 60 * 70 + 13, np.uint8) for shard in (3, 5, 8)}
    shards, view, line = rng.choice([3, 5, 8], k), rng.integers(0, 8, k), rng.choice([60, 70], k)
    begin = rng.integers(0, 13, k) + rng.integers(0, 60 - p, k, endpoint=True) * (line + 0)
    begin = np.minimum(begin, 60 * 70 + 13 - (p - 1) * line - p)
    out = np.zeros((k + 1, p, p, 1), np.uint8)
    gather({int(s): mapped[s] for s in np.unique(shards)}, shards, begin, line, view, out[1:, ..., 0])
    for i in range(k):
        patch = np.ndarray((p, p), np.uint8, mapped[shards[i]], int(begin[i]), (int(line[i]), 1))
        assert (out[1 + i, ..., 0] == dihedral(patch[..., None], view[i])[..., 0]).all()
    assert not out[0].any()


def copied(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in batch.items()}


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """The bytes of each piece of new memory that a pool makes."""
    sizes: list[int] = []
    monkeypatch.setattr(pool, "_new", lambda *of, new=pool._new: sizes.append(of[0]) or new(*of))
    return sizes


@pytest.mark.parametrize("together", [1, 2**20])
def test_a_batch_that_nobody_handed_back_is_never_overwritten(jpeg, monkeypatch, together):
    monkeypatch.setattr(module, "TOGETHER", together)
    batches = load(jpeg, threads=2).batches()
    held = [next(batches)[1] for _ in range(6)]
    copies = [copied(batch) for batch in held]
    kept = held[0]["gt"][:1]
    first = kept.clone()
    del held[0]
    for _ in range(40):
        next(batches)[1].hand_back()
    assert all(same(batch, copy) for batch, copy in zip(held, copies[1:], strict=True))
    assert torch.equal(kept, first)
    batches.close()


def test_batches_that_are_handed_back_need_no_new_memory(jpeg, monkeypatch, made):
    monkeypatch.setattr(module, "TOGETHER", 1)  # each batch has memory of its own
    loader = load(jpeg, threads=2)
    whole = len(loader) - 1  # the last one of an epoch is padded, and as large as the others
    batches = loader.batches()
    for _ in range(whole):
        next(batches)[1].hand_back()
    most = 2 * 2 + 2 + 1  # ahead, being cut, and taken
    assert 1 <= len(made) <= most
    for _ in range(3 * whole):
        next(batches)[1].hand_back()
    assert len(made) <= most
    held = [next(batches)[1] for _ in range(20)]
    assert len(made) >= 20  # it is counted
    assert len({batch["gt"].untyped_storage().data_ptr() for batch in held}) == 20
    batches.close()


def test_batches_that_share_memory_give_it_back_together(jpeg, made):
    loader = load(jpeg)
    places = loader._places(loader.order(0), 0, 3)
    first, second, third = (batch for _, batch in loader._cut(Position(), places))
    assert first["gt"].untyped_storage().data_ptr() == third["gt"].untyped_storage().data_ptr()
    right = copied(third)
    for batch in (first, second, first, first):  # a second time is none
        batch.hand_back()
        loader._cut(Position(0, 3), loader._places(loader.order(0), 3, 3))
    assert same(third, right)
    assert (first, len(made)) == ({}, 5)
    third.hand_back()
    loader._cut(Position(0, 3), loader._places(loader.order(0), 3, 3))
    assert len(made) == 5


def test_what_the_device_gets_is_no_view_of_a_batch_that_is_handed_back(builder, jpeg):
    folders = [jpeg, builder("loader-negatives", FILES, negatives={"kept": "stored"})]
    for loader in map(load, folders):
        batch = loader.cut(Position())
        ready = loader.to_device(batch, torch.device("cpu"))
        right = copied(ready)
        for name in {*batch} & {"gt", "lq", "negatives"}:
            batch[name].zero_()
        assert same(ready, right)


def test_no_two_threads_have_the_same_memory_of_a_pool_and_all_of_it_returns(made):
    lender = pool.Pool(pinned=False)
    wrong: list[int] = []

    def use(mine: int) -> None:
        for _ in range(300):
            loan = pool.Loan(lender, 2)
            tensors = [loan.take(2, 50, 50, dtype=torch.uint8) for _ in range(2)]
            for tensor in tensors:
                tensor.fill_(mine)
            time.sleep(0)  # another thread's turn
            if not all((tensor == mine).all() for tensor in tensors):
                wrong.append(mine)
            for _ in range(2):
                pool.Batch({}, loan).hand_back()

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    free = [tensor.data_ptr() for tensors in lender._free.values() for tensor in tensors]
    assert len(free) == len(set(free)) == len(made) <= 2 * 4


def test_memory_has_the_shape_and_the_type_that_were_asked_for_and_begins_a_page():
    lender = pool.Pool(pinned=False)
    for shape, dtype in (((3, 4), torch.uint8), ((3, 4), torch.uint16), ((4, 3), torch.uint8)):
        taken = lender.take(shape, dtype)
        assert (tuple(taken.shape), taken.dtype) == (shape, dtype)
        assert taken.data_ptr() % 4096 == 0  # copies to other places are slow
        lender.give_back(taken)


# normal numbers


@given(st.integers(1, 5), st.integers(1, 70_000), st.integers(0, 2**32))
@settings(max_examples=30)
def test_the_numbers_of_a_key_do_not_depend_on_the_keys_beside_it_or_on_threads(n_keys, n, seed):
    keys = torch.randint(-(2**63), 2**63 - 1, (n_keys,), generator=torch.Generator().manual_seed(seed))
    together = counter_normal(keys, n)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        alone = torch.cat([counter_normal(key[None], n) for key in keys])
    finally:
        torch.set_num_threads(threads)
    assert together.shape == (n_keys, n)
    assert together.dtype == torch.float32
    assert torch.equal(together, alone)
    assert len(keys) == 1 or n < 5 or not torch.equal(together[0], together[1])


def test_counter_based_numbers_are_standard_normal_and_independent():
    numbers = counter_normal(torch.arange(8) * 2**40 + 1, 500_001).double()
    assert numbers.isfinite().all()
    moments = [(numbers**k).mean() for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.01)
    assert (numbers.abs() > 3).double().mean() == pytest.approx(0.0026998, rel=0.05)
    assert np.abs(np.corrcoef(numbers.numpy()) - np.eye(8)).max() < 0.006
    half = numbers[:, :250_000]
    for lag in (1, 2, 64, 250_000):  # the last: the two numbers of one draw
        shifted = numbers[:, lag : lag + 250_000]
        shifted = shifted if lag < 250_000 else numbers[:, -250_000:]
        assert abs((half * shifted).mean()) < 0.004


# where the pixels lie


def test_png_members_give_the_batches_of_raw_ones(builder, jpeg):
    png = load(builder("loader-png", FILES, codec="png"), threads=2)
    raw = load(jpeg)
    names = {member.partition(".")[2] for member in png.shard_set._member.to_pylist() if member != "json"}
    assert names == {"png"}
    assert raw.samples == png.samples
    mine, theirs = ({} for _ in range(2))
    for loader, found in ((png, mine), (raw, theirs)):
        for i in range(len(loader)):
            batch = loader.cut(Position(0, i))
            found |= {int(s): (g, q) for s, g, q in zip(batch["sample"], batch["gt"], batch["lq"], strict=True)}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[s][0], theirs[s][0]) and torch.equal(mine[s][1], theirs[s][1]) for s in mine)


def damage(folder: Path, tmp_path: Path) -> tuple[Path, Path, str]:
    """A copy of a built dataset in which a pixel of one lq has changed: (folder, shard, member)."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    rows = pq.read_table(copy / "index").to_pylist()
    row = next(row for row in rows if row["role"] == "lq" and row["split"] == "train" and row["shape"][0] > PATCH)
    path = copy / "train" / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] - 1] ^= 255
    path.write_bytes(data)
    return copy, path, f"{row['key']}.{row['member']} at byte {row['offset']:,}"


def test_a_shard_that_was_edited_is_found_when_it_is_opened(jpeg, tmp_path):
    folder, path, member = damage(jpeg, tmp_path)
    loader = load(folder)
    with pytest.raises(UserError) as error:
        epoch_of(loader)
    assert str(error.value) == (
        f"{path}: changed since it was built, in {member}; run `memoir build` again, or `dvc checkout`"
    )


def test_a_shard_that_is_edited_while_it_is_used_is_found_when_it_is_opened_again(jpeg, tmp_path, monkeypatch):
    from pipeline.shards import shard_set

    monkeypatch.setattr(shard_set, "OPEN", 1)
    folder = tmp_path / "tiny"
    shutil.copytree(jpeg, folder)
    loader = load(folder)
    epoch_of(loader)
    path = folder / "train" / loader.shard_set.shards[0]["name"]
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(UserError, match=f"{path.name}: changed since it was built"):
        epoch_of(loader, 1)


def test_damaged_members_within_the_budget_have_no_weight_and_are_reported(jpeg, tmp_path):
    folder, path, member = damage(jpeg, tmp_path)
    loader = load(folder, quarantine=1)
    whole = load(jpeg)
    lost, kept = set(), set()
    for i in range(len(loader)):
        batch, right = loader.cut(Position(0, i)), whole.cut(Position(0, i))
        assert torch.equal(batch["sample"], right["sample"])
        lost |= set(batch["sample"][(batch["weight"] == 0) & (right["weight"] == 1)].tolist())
        kept |= set(batch["sample"][batch["weight"] == 1].tolist())
    (problem,) = loader.shard_set.quarantined.values()
    assert problem == f"{path}: {member}"
    assert lost == set(range(whole.samples)) - kept
    versions = [
        loader.shard_set.key(int(v)) for v in np.unique(np.searchsorted(loader.first, sorted(lost), "right") - 1)
    ]
    assert versions == [member.split(".")[0]]


def test_damage_between_the_members_is_within_no_budget(jpeg, tmp_path):
    folder = tmp_path / "tiny"
    shutil.copytree(jpeg, folder)
    path = sorted((folder / "train").iterdir())[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"x")
    with pytest.raises(UserError, match=f"{path.name}: changed since it was built; run `memoir build` again"):
        epoch_of(load(folder, quarantine=100))


def test_few_shards_are_mapped_at_a_time(jpeg, monkeypatch):
    from pipeline.shards import shard_set

    monkeypatch.setattr(shard_set, "OPEN", 2)
    loader, free = load(jpeg, threads=3), load(jpeg)
    for (at, batch), _ in zip(loader.batches(), range(2 * len(loader)), strict=False):
        assert len(loader.shard_set._mapped) <= 2 + 3
        monkeypatch.setattr(shard_set, "OPEN", 64)
        assert same(batch, free.cut(at))
        monkeypatch.setattr(shard_set, "OPEN", 2)


# shards in a bucket


@pytest.fixture
def bucket(jpeg, s3) -> str:
    """The URI of the dataset in a bucket."""
    for path in (path for path in jpeg.rglob("*") if path.is_file()):
        storage(f"{s3}/data").write(path.relative_to(jpeg).as_posix(), path)
    return f"{s3}/data"


def downloads(caplog) -> list[str]:
    """Names of the shards that the server was asked for so far."""
    asked = re.findall(r"GET /\S+/(\w+\.tar) ", caplog.text)
    caplog.clear()
    return asked


def test_two_ranks_load_a_bucket_s_batches_with_one_download_of_each_shard(jpeg, bucket, tmp_path, caplog):
    caplog.set_level("INFO", logger="werkzeug")
    cache = ShardCache(tmp_path / "cache")
    ranks = [load(bucket, rank=rank, world_size=2, threads=2, cache=cache).batches() for rank in range(2)]
    one = load(jpeg)
    for epoch in range(2):
        for i in range(len(one)):
            parts = [next(rank) for rank in ranks]
            assert {at for at, _ in parts} == {Position(epoch, i)}
            assert same(joined([part for _, part in parts]), joined([one.cut(Position(epoch, i))]))
    for rank in ranks:
        rank.close()
    assert sorted(downloads(caplog)) == sorted(shard["name"] for shard in one.shard_set.shards)
    warm = load(bucket, cache=ShardCache(tmp_path / "cache"))
    epoch_of(warm)
    assert downloads(caplog) == []
    assert warm.digest == one.digest


def test_the_shards_of_this_window_and_the_next_come_ahead_of_need(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 1)
    loader = load(bucket, cache=ShardCache(tmp_path / "cache"))
    assert len(loader.shard_set.shards) == 3
    batches = loader._work(Position())
    next(batches)  # nothing is cut yet
    order = loader.order(0).shard_order[: 2 * module.WINDOW]
    wanted = {loader.shard_set.shards[shard]["sha256"] for shard in order}
    deadline = time.monotonic() + 20
    while {path.name for path in (tmp_path / "cache").glob("??/*") if len(path.name) == 64} != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_cache_smaller_than_the_shards_gives_the_same_batches(jpeg, bucket, tmp_path, monkeypatch):
    from pipeline.shards import shard_set

    monkeypatch.setattr(shard_set, "OPEN", 1)
    one = load(jpeg)
    sizes = [shard["bytes"] for shard in one.shard_set.shards]
    monkeypatch.setattr(module, "WINDOW", 1)
    small = load(bucket, cache=ShardCache(tmp_path / "cache", limit_bytes=2 * max(sizes)))
    assert sum(sizes) > 2 * max(sizes)
    for (at, batch), _ in zip(small.batches(), range(len(small)), strict=False):
        assert same(batch, load(jpeg).cut(at))
        held = [path.stat().st_size for path in (tmp_path / "cache").glob("??/*") if path.suffix != ".lock"]
        assert sum(held) <= 2 * max(sizes)


def test_a_shard_with_other_contents_in_the_bucket_is_refused(bucket, tmp_path):
    loader = load(bucket, cache=ShardCache(tmp_path / "cache"))
    shard = loader.shard_set.shards[0]
    storage(bucket).write(f"train/{shard['name']}", b"x" * shard["bytes"])
    with pytest.raises(UserError, match=f"{bucket}/train/{shard['name']}: its sha256 is .* upload that shard again"):
        epoch_of(loader)


# 16 bits a channel


def deep(seed: int, height: int, width: int, channels: int) -> np.ndarray:
    """Another picture for each seed, whose low bits matter: uint16."""
    return widened(photograph(seed, height, width, channels), 16) ^ np.uint16(seed * 37 % 200 + 1)


DEEP = {
    "grey": {f"train/{i}.png": deep(i, 50 + 9 * i, 70, 1) for i in range(4)},
    "colour": {f"train/{i}.png": deep(i, 50 + 9 * i, 70, 3) for i in range(3)},
    "mixed": {f"train/{i}.png": deep(i, 50, 70, 1 if i % 2 else 3) for i in range(4)},
    "one patch": {f"train/{i}.png": deep(i, PATCH, PATCH, 3) for i in range(9)},
}


@pytest.mark.parametrize("codec", ["raw", "png"])
@pytest.mark.parametrize("files", DEEP)
def test_patches_of_16_bits_are_the_slices_of_the_images(builder, files, codec):
    folder = builder(
        f"deep-{files}-{codec}", DEEP[files], degradation=NOISE, colour="rgb", codec=codec, bits=16, shard_bytes=2**16
    )
    expected = list(enumeration(folder))
    ranks = [load(folder, rank=rank, world_size=3, batch=24) for rank in range(3)]
    channels = 1 if files == "grey" else 3
    seen = set()
    for i in range(len(ranks[0])):
        batch = joined([rank.cut(Position(0, i)) for rank in ranks])
        assert batch["gt"].dtype == torch.uint16
        assert batch["gt"].shape == (24, channels, PATCH, PATCH)
        for sample, gt in zip(batch["sample"].tolist(), batch["gt"].permute(0, 2, 3, 1).numpy(), strict=True):
            key, _, wanted, _ = expected[sample]
            assert (gt == wanted).all()
            seen.add(key)
    assert seen == {f"photos-{name.removesuffix('.png').replace('/', '-')}" for name in DEEP[files]}
    for version in ShardSet(folder, "train").versions():
        assert (
            version.planes["gt"] == DEEP[files][version.key.removeprefix("photos-").replace("-", "/") + ".png"]
        ).all()


def test_batches_of_16_bits_are_numbers_from_0_to_1_as_those_of_8_are(builder):
    shallow = {"train/1.png": photograph(3, 60, 60, 1)}
    options = {
        "colour": "rgb",
        "degradation": {"kind": "scale", "factor": [3]},
        "negatives": {"lambdas": [1, 0.95, 0.5]},
    }
    folders = [builder(f"deep-scale-{bits}", shallow, bits=bits, **options) for bits in (8, 16)]
    narrow, wide = (load(folder).to_device(load(folder).cut(Position()), torch.device("cpu")) for folder in folders)
    assert wide.keys() == narrow.keys()
    assert torch.equal(wide["gt"], narrow["gt"])  # the files have 8 bits: the same numbers, to the last bit
    for name in ("lq", "negatives"):
        assert torch.equal(wide[name], narrow[name])


@pytest.mark.parametrize("kind", ["intra", "extra"])
def test_planned_and_stored_negatives_of_16_bits_are_the_same(builder, kind):
    options = {"bits": 16, "degradation": {"kind": "scale", "factor": [2, 3]}, "shard_bytes": 2**20}
    kinds = {"intra": {"lambdas": [1, 0.95, 0.5]}, "extra": {"kind": "extra", "number": 2}}
    planned, stored = (
        negatives_of(builder(f"deep-{kind}-{kept}", DEEP["colour"], negatives=kinds[kind] | {"kept": kept}, **options))
        for kept in ("planned", "stored")
    )
    assert planned.keys() == stored.keys() != set()
    limit = 0 if kind == "extra" else 1 / 32768 + 1e-6
    assert all((planned[sample][1] - stored[sample][1]).abs().max() <= limit for sample in planned)


def test_noise_on_16_bits_is_rounded_to_their_levels_where_the_task_says_so(builder):
    folder = builder("deep-noise", DEEP["colour"], degradation=NOISE | {"quantised": True}, colour="rgb", bits=16)
    batch = load(folder, batch=600).to_device(load(folder, batch=600).cut(Position()), torch.device("cpu"))
    levels = batch["lq"] * 65535
    assert (levels - levels.round()).abs().max() < 0.01
    assert (levels.round() % 257 != 0).float().mean() > 0.9
    assert batch["lq"].min() >= 0
    assert batch["lq"].max() <= 1
    inside = (batch["gt"] > 0.4) & (batch["gt"] < 0.6)
    at30 = inside & (batch["level"] == 30).view(-1, 1, 1, 1)
    assert ((batch["lq"] - batch["gt"])[at30] * 255).std() == pytest.approx(30, rel=0.02)
    version = next(ShardSet(folder, "train").versions())
    lq, gt = validation_pair(version)
    assert (gt == version.planes["gt"].astype(np.float32) / 65535).all()
    assert np.abs(lq * 65535 - np.rint(lq * 65535)).max() < 0.01


def test_masks_that_only_some_samples_have_are_said_to_be_left_out(builder, tmp_path):
    images = {
        f"train/train_{letter}/{i}.png": photograph(10 * i + n, 40, 40, 1 if letter == "B" else 3)
        for i in range(3)
        for n, letter in enumerate("ABC")
    }
    folder = tmp_path / "tiny"
    shutil.copytree(
        builder("loader-masks", images, layout="istd:istd", degradation={"kind": "paired"}, colour="rgb"), folder
    )
    assert load(folder).notes == []
    index = pq.read_table(folder / "index")
    gone = pc.and_(pc.equal(index["role"], "mask"), pc.equal(index["key"], "photos-train-1"))
    path = table_file(folder)
    pq.write_table(index.filter(pc.invert(gone)), path)
    listing = json.loads((folder / "shards.json").read_text())
    (of_it,) = (shard for shard in listing["shards"] if shard["name"] == index.filter(gone)["shard"][0].as_py())
    of_it["members"] -= 1
    (folder / "shards.json").write_text(json.dumps(listing))
    put_right(folder, path.relative_to(folder))
    loader = load(folder)
    assert loader.notes == ["no mask is in the batches, for 1 of 3 have none: photos-train-1"]
    assert "mask" not in loader.cut(Position())
