"""Restoring pictures: tiles, colours, files and folders."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import untrained_run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jobs import restore as module
from jobs.models.memnet import MemNet
from jobs.publish import publish
from jobs.restore import _starts, restore, restore_image, restore_plane, restore_tiled
from pipeline.degradations.scale import imresize
from pipeline.errors import UserError
from pipeline.images import read_image, write_image


def untrained(**options) -> MemNet:
    """A MemNet with random weights and running statistics that are not those of its initialisation."""
    torch.manual_seed(0)
    model = MemNet(channels=4, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(0, 1, (5, 5, channels))
    return np.clip(np.rint(imresize(coarse, size=(height, width)) * 255), 0, 255).astype(np.uint8)


class Brighter(nn.Module):
    """Adds a constant: what becomes of a colour can be worked out by hand."""

    size_multiple, receptive_field = 1, 1

    def __init__(self, by: float = 0.1) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))
        self.seen: list[Tensor] = []

    def restore(self, lq: Tensor) -> Tensor:
        self.seen.append(lq)
        return lq + self.by


class Shuffled(nn.Module):
    """A U-net's phase: means of 4x4 blocks, convolved and spread again. Where a block begins matters."""

    size_multiple = 4
    receptive_field = 2 * (4 + 3) + 1  # the block itself and one to each side

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def restore(self, lq: Tensor) -> Tensor:
        H, W = lq.shape[2:]
        blocks = F.avg_pool2d(lq, 4, ceil_mode=True, count_include_pad=False)
        return F.interpolate(self.conv(blocks), scale_factor=4)[:, :, :H, :W] + lq


# tiles


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(40, 90))
def test_tiles_give_what_the_whole_image_gives(height, width, tile):
    model = untrained(memory_blocks=2, recursions=1)
    assert model.receptive_field == 1 + 2 * (2 * 2 + 2)
    lq = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(height * 151 + width))
    assert (restore_tiled(model, lq, tile) - model.restore(lq)).abs().max() < 1e-5


def test_tiles_of_a_model_that_sees_further_than_a_tile_give_the_same():
    model = untrained(memory_blocks=3, recursions=2)
    assert model.receptive_field == 29
    lq = torch.rand(2, 1, 61, 83)
    assert (restore_tiled(model, lq, tile=20) - model.restore(lq)).abs().max() < 1e-5


def test_with_less_overlap_the_seams_would_show():
    model = untrained(memory_blocks=2, recursions=1)
    lq = torch.rand(1, 1, 100, 100)
    model.receptive_field -= 6
    assert (restore_tiled(model, lq, tile=40) - model.restore(lq)).abs().max() > 1e-4


@pytest.mark.parametrize("tile", [32, 37, 50])
def test_tiles_begin_at_multiples_of_the_size_multiple(tile):
    model = Shuffled()
    lq = torch.rand(1, 1, 71, 93)
    assert (restore_tiled(model, lq, tile) - model.restore(lq)).abs().max() < 1e-6


def test_no_tile_is_larger_than_asked_for():
    sizes = []
    model = untrained(memory_blocks=2, recursions=1)
    whole = model.restore
    model.restore = lambda lq: sizes.append(lq.shape[2:]) or whole(lq)
    restore_tiled(model, torch.rand(1, 1, 150, 70), tile=64)
    assert len(sizes) > 4
    assert max(max(size) for size in sizes) == 64


def test_a_model_with_global_statistics_is_not_tiled():
    model = Brighter()
    model.receptive_field = None
    restore_tiled(model, torch.rand(1, 1, 100, 70), tile=32)
    assert [tuple(lq.shape) for lq in model.seen] == [(1, 1, 100, 70)]


# tiles that are images of their own


@given(st.integers(1, 2000), st.integers(8, 300))
def test_as_few_tiles_as_cover_a_side_are_spread_over_it(side, tile):
    starts = _starts(side, tile)
    ends = [start + min(tile, side) for start in starts]
    assert (starts[0], ends[-1]) == (0, side)
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    assert len(starts) == -(-side // tile)
    assert starts == sorted(set(starts))
    gaps = np.diff(starts)
    assert len(gaps) == 0 or gaps[:-1].tolist() == [gaps[0]] * (len(gaps) - 1)


def test_tiles_of_gopros_frames_begin_where_the_release_has_them():
    assert _starts(720, 256) == [0, 232, 464]
    assert _starts(1280, 256) == [0, 256, 512, 768, 1024]
    assert _starts(481, 256) == [0, 225]
    assert _starts(256, 256) == [0]
    assert _starts(100, 256) == [0]


class MeanOf(nn.Module):
    """A network of global statistics, at its simplest: every pixel becomes the mean of its image."""

    size_multiple, receptive_field = 1, None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def restore(self, lq: Tensor) -> Tensor:
        return self.scale * lq.mean((2, 3), keepdim=True).expand_as(lq)


def test_where_tiles_overlap_their_mean_is_taken():
    row = np.arange(10, dtype=np.float32)
    plane = np.broadcast_to(row[None, :, None], (4, 10, 3)).copy()
    output = restore_plane(MeanOf(), plane, tile=6)  # columns 0..5 and 4..9, of means 2.5 and 6.5
    assert output.dtype == np.float32
    assert output[..., 0].tolist() == [[2.5] * 4 + [4.5] * 2 + [6.5] * 4] * 4
    assert (restore_plane(MeanOf(), plane) == 4.5).all()
    assert (restore_plane(MeanOf(), plane, tile=10) == 4.5).all()


def test_tiles_change_nothing_for_a_model_without_context():
    plane = np.random.default_rng(0).random((50, 41, 1), np.float32)
    for tile in (8, 20, 64):
        np.testing.assert_allclose(restore_plane(Brighter(), plane, tile), plane + np.float32(0.1), atol=1e-6)


# colours


def test_a_y_model_changes_luma_and_keeps_both_chroma_planes():
    # MATLAB's rgb2ycbcr, and its inverse, as matrices
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    image = photograph(20, 30)
    model = Brighter(20 / 255)
    output = restore_image(model, image, "y")
    ycbcr = image.astype(np.float64) @ matrix.T + (16, 128, 128)
    assert np.abs(model.seen[0][0, 0].numpy() * 255 - ycbcr[..., 0]).max() < 1e-3
    ycbcr[..., 0] += 20
    expected = (ycbcr - (16, 128, 128)) @ np.linalg.inv(matrix).T
    assert np.abs(output - np.clip(expected, 0, 255)).max() < 0.51
    assert (output > image).any()


@pytest.mark.parametrize("colour", ["y", "gray", "rgb"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_model_leaves_alone_comes_back_to_the_last_bit(colour, channels):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), np.uint8)
    image[0, :4] = [[0], [255], [1], [254]]
    model = Brighter(0.0)
    assert np.array_equal(restore_image(model, image, colour), image)
    expected = {"y": [1], "gray": [1] * channels, "rgb": [3]}[colour]
    assert [lq.shape[1] for lq in model.seen] == expected


@pytest.mark.parametrize("colour", ["y", "gray", "rgb"])
def test_a_grey_image_is_restored_as_it_is(colour):
    image = photograph(20, 30, channels=1) // 2
    assert np.array_equal(restore_image(Brighter(26 / 255), image, colour), image + 26)


def test_channels_are_not_mixed_up():
    image = photograph(20, 30)
    for colour in ("gray", "rgb"):
        model = Brighter(0.0)
        restore_image(model, image, colour)
        seen = torch.cat(model.seen, dim=1)[0].permute(1, 2, 0).numpy()
        assert np.allclose(seen * 255, image)


def test_values_out_of_range_are_clipped_and_not_wrapped():
    image = photograph(20, 30)
    assert (restore_image(Brighter(2.0), image, "rgb") == 255).all()
    assert (restore_image(Brighter(-2.0), image, "rgb") == 0).all()


def test_a_diverged_model_is_an_error_and_no_picture():
    with pytest.raises(UserError, match="NaN or infinity"):
        restore_image(Brighter(float("nan")), photograph(20, 30), "gray")


def test_planes_of_a_later_version_are_refused():
    with pytest.raises(UserError, match="'lab' planes"):
        restore_image(Brighter(), photograph(20, 30), "lab")


def test_enlarging_is_bicubic_and_comes_before_the_model():
    image = photograph(10, 14)
    model = Brighter(0.0)
    output = restore_image(model, image, "rgb", scale=3)
    bicubic = imresize(image / 255, scale=3)
    assert output.shape == (30, 42, 3)
    assert np.abs(output / 255 - bicubic.clip(0, 1)).max() < 0.51 / 255
    assert np.allclose(model.seen[0][0].permute(1, 2, 0).numpy(), bicubic, atol=1e-6)


# files and folders


def train(place: Path, task: str) -> Path:
    """The checkpoint of a small model, as the training leaves it; returns the folder of runs."""
    recipe = f"""
model: {{name: memnet, memory_blocks: 1, recursions: 1, channels: 4}}
data: {{task: {task}, patch: 31, stride: 21, batch: 16}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 6}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{{benchmark: jpeg-q10, data: datasets/Classic5}}]}}
"""
    return untrained_run(place, recipe, scores={}, metrics={})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "jpeg", "photos-jpeg")


@pytest.fixture(scope="module")
def super_resolution(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "sr", "photos-sr")


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    write_image(folder / "a.png", photograph(20, 30))
    write_image(folder / "deep" / "b.jpg", photograph(30, 20, seed=1))
    write_image(folder / "deep" / "grey.bmp", photograph(7, 9, channels=1, seed=2))
    (folder / "README.md").write_text("where they come from")
    return folder


def test_every_image_of_a_folder_has_its_restored_one(runs, pictures, tmp_path):
    assert restore("tiny", pictures, tmp_path / "out", runs) == []
    assert files(tmp_path / "out") == ["a.png", "deep/b.png", "deep/grey.png"]
    assert read_image(tmp_path / "out" / "a.png")[0].shape == (20, 30, 3)
    assert read_image(tmp_path / "out" / "deep" / "b.png")[0].shape == (30, 20, 3)
    assert read_image(tmp_path / "out" / "deep" / "grey.png")[0].shape == (7, 9, 1)


def test_every_input_that_cannot_be_restored_is_named_and_the_others_are_done(runs, pictures, tmp_path):
    data = (pictures / "deep" / "b.jpg").read_bytes()
    (pictures / "cut.jpg").write_bytes(data[: len(data) // 2])
    (pictures / "text.png").write_text("not an image")
    (pictures / "photo.heic").write_bytes(b"another format")
    shutil.copy(pictures / "deep" / "b.jpg", pictures / "a.jpg")
    problems = restore("tiny", pictures, tmp_path / "out", runs)
    assert sorted(problem.split(": ")[0].rpartition("/")[2] for problem in problems) == [
        "a.png",
        "cut.jpg",
        "photo.heic",
        "text.png",
    ]
    assert any("would overwrite that of" in problem for problem in problems)
    assert not any("\n" in problem for problem in problems)
    assert files(tmp_path / "out") == ["a.png", "deep/b.png", "deep/grey.png"]


@pytest.mark.parametrize("name", ["out.png", "deep/out.jpg", "out.JPEG"])
def test_one_image_is_written_in_the_format_of_its_suffix(runs, pictures, tmp_path, name):
    assert restore("tiny", pictures / "a.png", tmp_path / name, runs) == []
    head = (tmp_path / name).read_bytes()[:4]
    assert head == (b"\x89PNG" if name.endswith("png") else b"\xff\xd8\xff\xe0")


def test_one_image_goes_into_a_folder_under_its_name(runs, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    restore("tiny", pictures / "deep" / "b.jpg", tmp_path / "out", runs)
    assert files(tmp_path / "out") == ["b.png"]


def test_one_image_that_cannot_be_read_is_named(runs, tmp_path):
    (tmp_path / "x.png").write_text("not an image")
    (problem,) = restore("tiny", tmp_path / "x.png", tmp_path / "out.png", runs)
    assert problem.startswith(f"{tmp_path}/x.png: not an image")
    assert not (tmp_path / "out.png").exists()


def test_a_large_image_goes_through_in_tiles(runs, pictures, tmp_path, monkeypatch):
    restore("tiny", pictures, tmp_path / "whole", runs)
    monkeypatch.setattr(module.restore_tiled, "__defaults__", (16,))
    restore("tiny", pictures, tmp_path / "tiled", runs)
    for name in files(tmp_path / "whole"):
        whole, tiled = (read_image(tmp_path / kind / name)[0].astype(int) for kind in ("whole", "tiled"))
        assert np.abs(whole - tiled).max() <= 1


def test_a_model_needs_no_task_file_here(runs, pictures, tmp_path, monkeypatch):
    restore("tiny", pictures, tmp_path / "before", runs)
    monkeypatch.setattr("pipeline.task.TASKS", tmp_path / "no tasks")
    restore("tiny", pictures, tmp_path / "trained", runs)
    uri = publish("tiny", str(tmp_path / "team"), runs)["uri"]
    restore(uri, pictures, tmp_path / "published", tmp_path / "no runs")
    for name in files(tmp_path / "before"):
        for after in ("trained", "published"):
            assert (tmp_path / "before" / name).read_bytes() == (tmp_path / after / name).read_bytes()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("absent", "out", "absent: not found"),
        ("empty", "out", "empty: no images in it"),
        ("pictures", "pictures", "lies in the folder of the inputs"),
        ("pictures", "pictures/deep/out", "lies in the folder of the inputs"),
        ("pictures", "pictures/a.png", "is a file; the images of a folder go into a folder"),
        ("pictures/a.png", "pictures/a.png", "would overwrite its own input"),
        ("pictures/a.png", "pictures", "would overwrite its own input"),
        ("pictures/a.png", "out.tiff", "the output is PNG or JPEG"),
        ("pictures/a.png", "out", "the output is PNG or JPEG"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(runs, pictures, tmp_path, source, target, message):
    (tmp_path / "empty").mkdir()
    before = files(tmp_path)
    with pytest.raises(UserError, match=message):
        restore("tiny", tmp_path / source, tmp_path / target, runs)
    assert files(tmp_path) == before


def test_only_models_of_super_resolution_enlarge(runs, super_resolution, pictures, tmp_path):
    assert restore("tiny", pictures / "a.png", tmp_path / "big.png", super_resolution, scale=2) == []
    assert read_image(tmp_path / "big.png")[0].shape == (40, 60, 3)
    assert restore("tiny", pictures / "a.png", tmp_path / "same.png", super_resolution) == []
    assert read_image(tmp_path / "same.png")[0].shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"--scale 5: tiny was trained for the factors 2, 3, 4"):
        restore("tiny", pictures / "a.png", tmp_path / "out.png", super_resolution, scale=5)
    with pytest.raises(UserError, match=r"--scale 2: tiny is no model of super-resolution but of jpeg"):
        restore("tiny", pictures / "a.png", tmp_path / "out.png", runs, scale=2)


def test_a_write_that_fails_leaves_no_half_picture(runs, pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        restore("tiny", pictures / "a.png", tmp_path / "out.png", runs)
    assert not (tmp_path / "out.png").exists()
