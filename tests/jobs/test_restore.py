"""Restoring pictures: colours, files and folders."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import encode, untrained_run
from PIL import Image
from stand_ins import Brighter, photograph

from jobs.publishing.publish import publish
from jobs.restoring import restore as module
from jobs.restoring import tiles
from jobs.restoring.restore import restore_image
from pipeline.degradations.scale import imresize
from pipeline.errors import UserError
from pipeline.images import read_image, read_picture, write_image

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


def restore(model: str, source: Path, target: Path, runs: Path, **options: Any) -> Iterator[module.Restored]:
    """`restore` with the store beside the folder of runs."""
    return module.restore(model, source, target, runs, store=str(runs.parent / "store"), **options)


def problems(*arguments: Any, **options: Any) -> list[str]:
    """What `restore` cannot restore, a line each."""
    return [f"{each.source}: {each.problem}" for each in restore(*arguments, **options) if each.problem is not None]


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
    assert problems("tiny", pictures, tmp_path / "out", runs) == []
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
    found = problems("tiny", pictures, tmp_path / "out", runs)
    assert sorted(problem.split(": ")[0].rpartition("/")[2] for problem in found) == [
        "a.png",
        "cut.jpg",
        "photo.heic",
        "text.png",
    ]
    assert any("would overwrite that of" in problem for problem in found)
    assert not any("\n" in problem for problem in found)
    assert files(tmp_path / "out") == ["a.png", "deep/b.png", "deep/grey.png"]


@pytest.mark.parametrize("name", ["out.png", "deep/out.jpg", "out.JPEG"])
def test_one_image_is_written_in_the_format_of_its_suffix(runs, pictures, tmp_path, name):
    assert problems("tiny", pictures / "a.png", tmp_path / name, runs) == []
    head = (tmp_path / name).read_bytes()[:4]
    assert head == (b"\x89PNG" if name.endswith("png") else b"\xff\xd8\xff\xe0")


def test_one_image_goes_into_a_folder_under_its_name(runs, pictures, tmp_path):
    (tmp_path / "out").mkdir()
    problems("tiny", pictures / "deep" / "b.jpg", tmp_path / "out", runs)
    assert files(tmp_path / "out") == ["b.png"]


def test_one_image_that_cannot_be_read_is_named(runs, tmp_path):
    (tmp_path / "x.png").write_text("not an image")
    (problem,) = problems("tiny", tmp_path / "x.png", tmp_path / "out.png", runs)
    assert problem.startswith(f"{tmp_path}/x.png: not an image")
    assert not (tmp_path / "out.png").exists()


def test_a_large_image_goes_through_in_tiles(runs, pictures, tmp_path, monkeypatch):
    problems("tiny", pictures, tmp_path / "whole", runs)
    monkeypatch.setattr(tiles.restore_tiled, "__defaults__", (16,))
    problems("tiny", pictures, tmp_path / "tiled", runs)
    for name in files(tmp_path / "whole"):
        whole, tiled = (read_image(tmp_path / kind / name)[0].astype(int) for kind in ("whole", "tiled"))
        assert np.abs(whole - tiled).max() <= 1


def test_a_model_needs_no_task_file_here(runs, pictures, tmp_path, monkeypatch):
    problems("tiny", pictures, tmp_path / "before", runs)
    monkeypatch.setattr("pipeline.task.TASKS", tmp_path / "no tasks")
    problems("tiny", pictures, tmp_path / "trained", runs)
    uri = publish("tiny", str(tmp_path / "team"), runs, str(runs.parent / "store"))["uri"]
    problems(uri, pictures, tmp_path / "published", tmp_path / "no runs")
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
        problems("tiny", tmp_path / source, tmp_path / target, runs)
    assert files(tmp_path) == before


def test_only_models_of_super_resolution_enlarge(runs, super_resolution, pictures, tmp_path):
    assert problems("tiny", pictures / "a.png", tmp_path / "big.png", super_resolution, scale=2) == []
    assert read_image(tmp_path / "big.png")[0].shape == (40, 60, 3)
    assert problems("tiny", pictures / "a.png", tmp_path / "same.png", super_resolution) == []
    assert read_image(tmp_path / "same.png")[0].shape == (20, 30, 3)
    with pytest.raises(UserError, match=r"--scale 5: tiny was trained for the factors 2, 3, 4"):
        problems("tiny", pictures / "a.png", tmp_path / "out.png", super_resolution, scale=5)
    with pytest.raises(UserError, match=r"--scale 2: tiny is no model of super-resolution but of jpeg"):
        problems("tiny", pictures / "a.png", tmp_path / "out.png", runs, scale=2)


def test_a_write_that_fails_leaves_no_half_picture(runs, pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        problems("tiny", pictures / "a.png", tmp_path / "out.png", runs)
    assert not (tmp_path / "out.png").exists()


def test_what_cannot_be_restored_is_told_when_it_is_met_and_not_at_the_end(runs, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    (pictures / "b.png").write_text("not an image")
    for number in range(10):
        write_image(pictures / f"c{number}.png", photograph(8, 8))
    told = restore("tiny", pictures, tmp_path / "out", runs)
    first, second = next(told), next(told)
    assert (first.source.name, first.problem) == ("a.png", None)
    assert second.source.name == "b.png"
    assert len(files(tmp_path / "out")) < 10
    assert "not an image" in second.problem
    assert [each.problem for each in told] == [None] * 12


# a folder on all CPUs


class Remembers(torch.nn.Module):
    """Keeps what it is given in itself while it computes, as a network of one's own may."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0]))
        self.barrier = threading.Barrier(3)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Remembers":
        other = Remembers()
        other.weight, other.barrier = memo[id(self.weight)], self.barrier
        return other

    def forward(self, number: int) -> float:
        self.given = number
        self.barrier.wait(timeout=60)  # until each of the three threads has been here
        return self.weight.item() * self.given


def test_each_thread_has_a_network_and_threads_of_its_own_and_results_keep_their_order(monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 9)
    monkeypatch.setattr(module, "available_memory", lambda: 3 * module.PER_IMAGE + 1)
    before, network = torch.get_num_threads(), Remembers()

    def one(network: Any, number: int, _: Any) -> Any:
        return number, network(number), torch.get_num_threads(), network.weight.data_ptr()

    found = list(module.in_threads(network, one, range(9)))
    assert found == [(number, 3.0 * number, 3, network.weight.data_ptr()) for number in range(9)]
    assert torch.get_num_threads() == before
    with ThreadPoolExecutor(1) as pool:  # a thread begins with as many as were last set anywhere
        assert pool.submit(torch.get_num_threads).result() == before


@pytest.mark.parametrize(
    ("cpus", "memory", "most", "threads"), [(8, 99, None, 4), (2, 99, None, 2), (8, 0, None, 1), (8, 99, 1, 1)]
)
def test_there_are_as_many_at_a_time_as_cpus_memory_and_images_allow(monkeypatch, cpus, memory, most, threads):
    monkeypatch.setattr(module, "available_cpus", lambda: cpus)
    monkeypatch.setattr(module, "available_memory", lambda: memory * module.PER_IMAGE)
    seen = set()

    def one(_: Any, number: int, __: Any) -> int:
        time.sleep(0.05)
        seen.add(threading.get_ident())
        return number

    assert list(module.in_threads(torch.nn.Linear(1, 1), one, range(4), most)) == [0, 1, 2, 3]
    assert len(seen) == threads


def test_whoever_takes_no_more_waits_for_one_tile_and_not_for_the_image(monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    first, after = threading.Event(), []

    def one(_: Any, number: int, watch: Any) -> int:
        for tile in watch(range(3)):
            if number > 0:
                first.wait(60)  # they are in their first tile when the results are taken no more
                after.append((number, tile))
        return number

    results = module.in_threads(torch.nn.Linear(1, 1), one, range(9))
    assert next(results) == 0
    threading.Timer(0.2, first.set).start()
    results.close()
    assert {tile for _, tile in after} <= {0}
    assert len(after) <= 2


@pytest.mark.parametrize(
    "model", ["memnet, memory_blocks: 2, recursions: 1, channels: 8", "drcnet, width: 8, levels: 3, contrastive: null"]
)
def test_a_folder_has_the_same_bytes_whatever_the_number_of_cpus(tmp_path, monkeypatch, model):
    recipe = f"""
model: {{name: {model}}}
data: {{task: {"photos-jpeg" if "memnet" in model else "rain-pairs"}, patch: 32, stride: 32, batch: 4}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 6}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{{benchmark: jpeg-q10, data: datasets/Classic5}}]}}
"""
    runs = untrained_run(tmp_path / "project", recipe)
    for number in range(5):
        write_image(tmp_path / "in" / f"{number}.png", photograph(50 + 20 * number, 70, seed=number))
    for cpus in (1, 4):
        monkeypatch.setattr(module, "available_cpus", lambda cpus=cpus: cpus)
        assert problems("tiny", tmp_path / "in", tmp_path / f"of {cpus}", runs) == []
    for number in range(5):
        assert (tmp_path / f"of 1/{number}.png").read_bytes() == (tmp_path / f"of 4/{number}.png").read_bytes()


# in bf16


def test_a_folder_is_restored_in_bf16_by_threads_of_their_own_networks(runs, pictures, tmp_path, monkeypatch):
    for precision, cpus in (("fp32", 1), ("bf16", 1), ("bf16", 3)):
        monkeypatch.setattr(module, "available_cpus", lambda cpus=cpus: cpus)
        assert problems("tiny", pictures, tmp_path / f"{precision} {cpus}", runs, precision=precision) == []
    data = [(tmp_path / each / "a.png").read_bytes() for each in ("fp32 1", "bf16 1", "bf16 3")]
    assert data[0] != data[1] == data[2]


# what lies beside the pixels


def exif_of(description: str) -> bytes:
    exif = Image.Exif()
    exif[270], exif[274] = description, 6  # ImageDescription, and an orientation: turned by a quarter
    return exif.tobytes()


@pytest.mark.parametrize("name", ["out.png", "out.jpg"])
def test_profile_exif_and_dpi_pass_through_and_colours_stay_in_the_files_own_space(runs, tmp_path, name):
    pixels = photograph(20, 30)
    profile = b"any bytes: the colours are restored as they lie in the file"
    data = encode(pixels, "PNG", icc_profile=profile, exif=exif_of("a rainy street"), dpi=(300, 300))
    (tmp_path / "in.png").write_bytes(data)
    (tmp_path / "bare.png").write_bytes(encode(np.ascontiguousarray(np.rot90(pixels, -1)), "PNG"))
    assert problems("tiny", tmp_path / "in.png", tmp_path / name, runs) == []
    assert problems("tiny", tmp_path / "bare.png", tmp_path / f"bare-{name}", runs) == []
    after, bare = read_picture(tmp_path / name)[0], read_picture(tmp_path / f"bare-{name}")[0]
    assert after.icc == profile
    assert Image.open(tmp_path / name).getexif()[270] == "a rainy street"
    assert after.dpi == pytest.approx((300, 300), abs=0.1)
    assert after.pixels.shape == (30, 20, 3)  # upright, and not turned once more
    assert np.array_equal(after.pixels, bare.pixels)
    assert (bare.icc, bare.exif, bare.dpi) == (None, None, bare.dpi)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_passes_through_and_colours_are_restored(runs, tmp_path, channels):
    pixels = photograph(20, 30, channels)
    alpha = np.linspace(0, 255, 600).round().astype(np.uint8).reshape(20, 30)
    write_image(tmp_path / "in.png", pixels, alpha=alpha)
    write_image(tmp_path / "bare.png", pixels)
    for name in ("in", "bare"):
        assert problems("tiny", tmp_path / f"{name}.png", tmp_path / f"out-{name}.png", runs) == []
    after, _ = read_picture(tmp_path / "out-in.png")
    assert np.array_equal(after.alpha, alpha)
    assert np.array_equal(after.pixels, read_image(tmp_path / "out-bare.png")[0])
    (problem,) = problems("tiny", tmp_path / "in.png", tmp_path / "out.jpg", runs)
    assert "holds no transparency; write a PNG" in problem
    assert not (tmp_path / "out.jpg").exists()


def test_transparency_is_enlarged_with_the_image(super_resolution, tmp_path):
    alpha = np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(8, axis=1)
    write_image(tmp_path / "in.png", photograph(8, 16), alpha=alpha)
    assert problems("tiny", tmp_path / "in.png", tmp_path / "out.png", super_resolution, scale=2) == []
    after, _ = read_picture(tmp_path / "out.png")
    assert after.pixels.shape == (16, 32, 3)
    assert (after.alpha[:, :12] == 0).all()
    assert (after.alpha[:, -12:] == 255).all()


def test_more_exif_than_a_jpeg_holds_is_told_before_anything_is_computed(runs, tmp_path, monkeypatch):
    (tmp_path / "in.png").write_bytes(encode(photograph(20, 30), "PNG", exif=exif_of("x" * 70_000)))
    monkeypatch.setattr("jobs.restoring.restore.restore_image", lambda *_, **__: pytest.fail("computed"))
    (problem,) = problems("tiny", tmp_path / "in.png", tmp_path / "out.jpg", runs)
    assert "bytes of EXIF, and a JPEG holds 65,533; write a PNG" in problem
    monkeypatch.undo()
    assert problems("tiny", tmp_path / "in.png", tmp_path / "out.png", runs) == []


def test_what_the_decoder_complains_of_is_told_with_the_result(runs, tmp_path):
    (tmp_path / "in.png").write_bytes(encode(photograph(20, 30), "PNG", exif=b"Exif\0\0garbage"))
    (after,) = restore("tiny", tmp_path / "in.png", tmp_path / "out.png", runs)
    assert after.problem is None
    assert after.warnings == ("its EXIF cannot be read, and an orientation in it is not heeded",)
    assert (tmp_path / "out.png").exists()


def test_a_jpeg_has_the_quality_and_the_colours_that_were_asked_for(runs, pictures, tmp_path):
    def written(**options: Any) -> tuple[int, Any]:
        assert problems("tiny", pictures / "a.png", tmp_path / "out.jpg", runs, **options) == []
        with Image.open(tmp_path / "out.jpg") as image:
            return sum(image.quantization[0]), image.layer[0][1:3]

    assert written() == written(quality=95, subsampling="4:4:4")
    assert written()[1] == (1, 1)
    assert written(subsampling="4:2:0")[1] == (2, 2)
    assert written(quality=50)[0] > written()[0]
    for options in ({"quality": 50}, {"subsampling": "4:2:0"}):
        with pytest.raises(UserError, match="are of JPEG, and the output is PNG"):
            problems("tiny", pictures / "a.png", tmp_path / "out.png", runs, **options)
    with pytest.raises(UserError, match="4:4:4, 4:2:2 or 4:2:0"):
        problems("tiny", pictures / "a.png", tmp_path / "out.jpg", runs, subsampling="4:1:1")


# what a model is for


def of_model(place: Path, model: str, task: str, **more: str) -> Path:
    """The checkpoint of an untrained model; returns the folder of runs."""
    recipe = f"""
model: {model}
data: {{task: {task}, patch: 32, crops: 1, batch: 2}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 6}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{{benchmark: pairs-rgb, data: datasets/rain, layout: rain13k}}]}}
"""
    return untrained_run(place, recipe, scores={}, metrics={})


MODELS = [
    ("{name: memnet, memory_blocks: 1, recursions: 1, channels: 4}", "photos-jpeg"),
    ("{name: memorynet, n: 8, u: 2, o: 2, cabs: 1}", "shadow-pairs"),
    ("{name: timelapse, channels: 4, memory: {items: 3}}", "timelapse-pairs"),
    ("{name: drcnet, width: 4, contrastive: null}", "rain-pairs"),
]


@pytest.mark.parametrize(("model", "task"), MODELS)
def test_every_model_restores_images_of_a_few_pixels(tmp_path, model, task):
    runs = of_model(tmp_path / "trained", model, task)
    for number, (height, width, channels) in enumerate(
        [(1, 1, 3), (1, 40, 3), (40, 1, 1), (3, 2, 1), (15, 16, 3), (17, 9, 3)]
    ):
        write_image(tmp_path / "in" / f"{number}.png", photograph(height, width, channels, seed=number))
    assert problems("tiny", tmp_path / "in", tmp_path / "out", runs) == []
    for name in files(tmp_path / "in"):
        before, after = (read_image(tmp_path / folder / name)[0] for folder in ("in", "out"))
        assert before.shape == after.shape


@pytest.mark.parametrize(("model", "task"), MODELS)
def test_every_model_restores_in_bf16_nearly_what_it_restores_in_fp32(tmp_path, model, task):
    runs = of_model(tmp_path / "trained", model, task)
    network = module.load_model("tiny", runs, store=str(runs.parent / "store")).model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # some begin as the identity
            parameter += 0.05 * torch.randn_like(parameter)
    plane = photograph(40, 56, channels=network.in_channels).astype(np.float32) / 255
    exact, narrow = (tiles.restore_plane(module.on_device(network, precision), plane) for precision in ("fp32", "bf16"))
    assert narrow.dtype == np.float32
    off = np.square(narrow - exact).mean() / np.square(exact - plane).mean()
    assert 1e-12 < off < 0.05**2


def test_16_bits_are_restored_as_such_where_the_task_has_them(runs, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    write_image(tmp_path / "in.png", pixels)
    (problem,) = problems("tiny", tmp_path / "in.png", tmp_path / "out.png", runs)
    assert problem.endswith("16 bits a channel, and tiny was trained on 8; convert it to 8")
    assert np.array_equal(restore_image(Brighter(0.0), pixels, "rgb"), pixels)
    assert (restore_image(Brighter(1 / 65535), pixels // 2, "rgb") == pixels // 2 + 1).all()
    monkeypatch.setattr("jobs.restoring.checkpoint.Trained.bits", 16)
    assert problems("tiny", tmp_path / "in.png", tmp_path / "out.png", runs) == []
    after, _ = read_image(tmp_path / "out.png", bits=16)
    assert after.dtype == np.uint16
    (problem,) = problems("tiny", tmp_path / "in.png", tmp_path / "out.jpg", runs)
    assert "8 bits a channel, and these are 16; write a PNG" in problem


def test_a_model_that_does_not_take_its_tasks_planes_is_refused(tmp_path):
    runs = of_model(
        tmp_path / "trained",
        "{name: memnet, in_channels: 3, memory_blocks: 1, recursions: 1, channels: 4}",
        "photos-jpeg",
    )
    write_image(tmp_path / "in.png", photograph(20, 30))
    with pytest.raises(UserError, match="the model takes 3 channels, and the y planes of its task have 1"):
        problems("tiny", tmp_path / "in.png", tmp_path / "out.png", runs)


def test_an_enlarged_image_beyond_the_limit_of_pixels_is_refused(super_resolution, tmp_path, monkeypatch):
    write_image(tmp_path / "in.png", photograph(20, 30))
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "0.009")
    assert problems("tiny", tmp_path / "in.png", tmp_path / "out.png", super_resolution, scale=3) == []
    (problem,) = problems("tiny", tmp_path / "in.png", tmp_path / "out.png", super_resolution, scale=4)
    assert "120x80 pixels when enlarged" in problem


def test_a_large_image_of_global_statistics_is_restored_in_blended_tiles_or_whole(tmp_path, monkeypatch):
    runs = of_model(
        tmp_path / "trained", MODELS[3][0], MODELS[3][1]
    )  # whose untrained result depends on the whole input
    write_image(tmp_path / "in.png", photograph(300, 400))
    (as_it_is,) = restore("tiny", tmp_path / "in.png", tmp_path / "whole.png", runs)
    monkeypatch.setattr(tiles, "WHOLE", 300 * 300)
    (blended,) = restore("tiny", tmp_path / "in.png", tmp_path / "blended.png", runs)
    (whole,) = restore("tiny", tmp_path / "in.png", tmp_path / "again.png", runs, whole=True)
    assert [each.blended for each in (as_it_is, blended, whole)] == [False, True, False]
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert (tmp_path / "whole.png").read_bytes() != (tmp_path / "blended.png").read_bytes()


def test_a_single_large_image_shows_how_far_it_is(runs, tmp_path, monkeypatch):
    seen: list[int] = []

    def bar(items: Any, *_: Any, total: int, disable: bool, **__: Any) -> Iterator[Any]:
        assert disable == (not terminal)
        seen.append(total)
        return iter(items)

    terminal = True
    monkeypatch.setattr("jobs.restoring.restore.Console", lambda **_: SimpleNamespace(is_terminal=terminal))

    monkeypatch.setattr("jobs.restoring.restore.track", bar)
    write_image(tmp_path / "in" / "a.png", photograph(600, 300))
    write_image(tmp_path / "in" / "b.png", photograph(20, 30))
    assert problems("tiny", tmp_path / "in" / "a.png", tmp_path / "out.png", runs) == []
    assert seen == [6]
    assert problems("tiny", tmp_path / "in", tmp_path / "out", runs) == []
    assert seen == [6, 2]
    terminal = False
    assert problems("tiny", tmp_path / "in", tmp_path / "out", runs) == []
