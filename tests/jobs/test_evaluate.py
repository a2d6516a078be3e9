"""Evaluation: folders in, a row of the papers' tables out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluate import dataset_name, evaluate, identity, memory_sheets, score_folder
from jobs.protocols import GRAY_FLOAT, RGB, Y_MATLAB, Y_RGB, benchmark, psnr
from jobs.recipe import BenchmarkRun
from pipeline.degradations.jpeg import jpeg
from pipeline.errors import UserError
from pipeline.images import write_image


def run(benchmark: str, folder: Path, **more: str) -> BenchmarkRun:
    return BenchmarkRun(benchmark=benchmark, data=str(folder), **more)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "Kodak"
    for i in range(3):
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        write_image(folder / f"kodim {i}.png", np.kron(coarse, np.ones((8, 8, 1), np.uint8)))
    (folder / "readme.txt").write_text("not an image")
    return folder


def test_identity_scores_the_degraded_input_itself(photos, tmp_path):
    row = evaluate("identity", run("jpeg-q10", photos), tmp_path)
    assert row["images"] == 3
    assert row["dataset"] == "Kodak"
    assert row["protocol"] == str(GRAY_FLOAT)
    assert (row["psnr"], row["ssim"]) == (row["baseline"]["psnr"], row["baseline"]["ssim"])
    assert json.loads(json.dumps(row)) == row


def test_the_mean_is_over_images_and_each_is_scored_against_its_own_target(photos):
    chosen = benchmark("jpeg-q20")
    scored = score_folder(identity, chosen, run(chosen.name, photos))
    assert len(scored) == 3
    for image in scored:
        target = np.rint(image.pair.gt * 255).astype(np.uint8)
        assert image.output.psnr == pytest.approx(psnr(jpeg(target, 20), target), abs=1e-4)


def test_a_better_restorer_scores_higher(photos):
    chosen = benchmark("noise-50")
    worse = score_folder(identity, chosen, run(chosen.name, photos))[0]
    better = score_folder(lambda lq: lq * 0.5 + 0.5 * worse.pair.gt, chosen, run(chosen.name, photos))[0]
    assert better.output.psnr > worse.output.psnr + 3
    assert better.baseline == worse.baseline


def test_super_resolution_is_scored_on_y_without_its_border(photos, tmp_path):
    assert evaluate("identity", run("sr-x3", photos), tmp_path)["protocol"] == str(Y_MATLAB)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: [p.unlink() for p in folder.glob("*.png")], "no images"),
        (lambda folder: shutil.rmtree(folder), "not a folder"),
        (lambda folder: (folder / "kodim 1.png").write_bytes(b"x"), "kodim 1.png: not an image"),
        (lambda folder: write_image(folder / "kodim 2.png", np.zeros((5, 5, 1), np.uint8)), "kodim 2.png: 5x5"),
    ],
)
def test_a_folder_that_cannot_give_a_comparable_mean_is_one_line(photos, tmp_path, break_it, says):
    break_it(photos)
    with pytest.raises(UserError, match=says) as error:
        evaluate("identity", run("jpeg-q10", photos), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("data/Classic5", "Classic5"),
        ("x/LIVE1_gray", "LIVE1"),
        ("BSDS500/data/images/val", "BSD100"),
        ("datasets/photos/test", "photos-test"),
        ("Set5/HR", "Set5"),
    ],
)
def test_a_folder_is_called_what_the_tables_call_it(folder, name):
    assert dataset_name(Path(folder)) == name


# published pairs


@pytest.fixture
def rain(tmp_path: Path) -> Path:
    """Two of the test sets of Rain13K, two pairs each; their inputs are darker by 10 and 20."""
    rng = np.random.default_rng(1)
    for n, subset in enumerate(("Rain100L", "Test100"), 1):
        for i in (2, 10):
            clean = rng.integers(30, 226, (24, 32, 3), np.uint8)
            write_image(tmp_path / f"rain/test/{subset}/target/{i}.png", clean)
            write_image(tmp_path / f"rain/test/{subset}/input/{i}.png", clean - np.uint8(10 * n))
    return tmp_path / "rain"


def test_published_pairs_are_scored_with_their_own_targets_on_y_and_in_rgb(rain, tmp_path):
    both = evaluate("identity", run("pairs-rgb", rain, layout="rain13k"), tmp_path)
    assert (both["images"], both["dataset"], both["protocol"]) == (4, "rain", str(RGB))
    light = evaluate("identity", run("pairs-rgb", rain, layout="rain13k", subset="Rain100L"), tmp_path)
    assert (light["images"], light["dataset"]) == (2, "Rain100L")
    assert light["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert both["psnr"] == pytest.approx(np.mean([20 * np.log10(255 / 10), 20 * np.log10(255 / 20)]))
    on_y = evaluate("identity", run("pairs-y", rain, layout="rain13k", subset="Rain100L"), tmp_path)
    assert on_y["protocol"] == str(Y_RGB)
    assert on_y["paper"]["DRCNet"] == {"psnr": 38.23, "ssim": 0.976}
    # 10 of RGB are 8.6 of Y, rounded to 8 or 9
    assert 20 * np.log10(255 / 9) < on_y["psnr"] < 20 * np.log10(255 / 8)
    half = score_folder(lambda lq: lq + 5 / 255, benchmark("pairs-rgb"), run("pairs-rgb", rain, layout="rain13k"))
    assert [image.key for image in half] == ["Rain100L-2", "Rain100L-10", "Test100-2", "Test100-10"]
    assert half[0].output.psnr == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)


@pytest.mark.parametrize(
    ("break_it", "more", "says"),
    [
        (None, {}, "pairs-y: pairs are found by their layout: --layout NAME"),
        (None, {"layout": "rain31k"}, "unknown layout 'rain31k'; did you mean 'rain13k'"),
        (None, {"layout": "rain13k", "subset": "Rain200"}, "no test pairs of Rain200 in layout rain13k"),
        ("unlink", {"layout": "rain13k"}, "Rain100L/input/2.png: .*target"),
        ("resize", {"layout": "rain13k"}, "Rain100L/input/2.png: 32x24 and 20x20 pixels"),
    ],
)
def test_pairs_that_cannot_give_a_comparable_mean_are_one_line(rain, tmp_path, break_it, more, says):
    target = rain / "test/Rain100L/target/2.png"
    if break_it == "unlink":
        target.unlink()
    if break_it == "resize":
        write_image(target, np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(UserError, match=says) as error:
        evaluate("identity", run("pairs-y", rain, **more), tmp_path)
    assert "\n" not in str(error.value)


# what a memory responds to


class Remembering:
    """Reads two banks: items that answer to the left and to the right half, and too many."""

    def read_weights(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        left = torch.zeros(1, 1, *x.shape[2:])
        left[..., : x.shape[3] // 2] = 0.25
        return {"items": torch.cat((left, 0.25 - left, left * 0 + 0.1), 1), "parts": torch.rand(1, 100, *x.shape[2:])}


def test_a_sheet_shows_the_image_and_what_each_item_responds_to():
    lq = np.random.default_rng(0).random((40, 60, 3), np.float32)
    sheets = memory_sheets(Remembering(), lq)
    assert set(sheets) == {"items"}  # a hundred parts are too many to look at
    sheet = sheets["items"]
    width, height = 150 + 4, 100 + 4
    assert sheet.shape == (height, 6 * width, 3)
    cells = [sheet[2:-2, i * width + 2 : (i + 1) * width - 2] for i in range(6)]
    assert abs(cells[0].mean() - lq.mean() * 255) < 3
    assert (cells[1][:, :74].min(), cells[1][:, 76:].max()) == (255, 0)
    assert (cells[2][:, :74].max(), cells[2][:, 76:].min()) == (0, 255)
    assert not cells[3].any()  # everywhere the same
    assert (cells[4] == 255).all()
