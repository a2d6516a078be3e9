"""Evaluation: folders in, a row of the papers' tables out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.evaluate import dataset_name, evaluate, identity, score_folder
from jobs.protocols import GRAY_FLOAT, Y_MATLAB, benchmark, psnr
from pipeline.degradations.jpeg import jpeg
from pipeline.errors import UserError
from pipeline.images import write_image


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
    row = evaluate("identity", "jpeg-q10", photos, tmp_path)
    assert row["images"] == 3
    assert row["dataset"] == "Kodak"
    assert row["protocol"] == str(GRAY_FLOAT)
    assert (row["psnr"], row["ssim"]) == (row["baseline"]["psnr"], row["baseline"]["ssim"])
    assert json.loads(json.dumps(row)) == row


def test_the_mean_is_over_images_and_each_is_scored_against_its_own_target(photos):
    chosen = benchmark("jpeg-q20")
    scored = score_folder(identity, chosen, photos)
    assert len(scored) == 3
    for image in scored:
        target = np.rint(image.pair.gt * 255).astype(np.uint8)
        assert image.output.psnr == pytest.approx(psnr(jpeg(target, 20), target), abs=1e-4)


def test_a_better_restorer_scores_higher(photos):
    chosen = benchmark("noise-50")
    worse = score_folder(identity, chosen, photos)[0]
    better = score_folder(lambda lq: lq * 0.5 + 0.5 * worse.pair.gt, chosen, photos)[0]
    assert better.output.psnr > worse.output.psnr + 3
    assert better.baseline == worse.baseline


def test_super_resolution_is_scored_on_y_without_its_border(photos, tmp_path):
    assert evaluate("identity", "sr-x3", photos, tmp_path)["protocol"] == str(Y_MATLAB)


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
        evaluate("identity", "jpeg-q10", photos, tmp_path)
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
