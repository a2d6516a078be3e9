"""`memoir compare`: two sides on the same images, by what differs image by image."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import photograph, untrained_run
from scipy import stats

from jobs.evaluation.benchmark import Pair, benchmark
from jobs.evaluation.evaluate import identity, score_folder
from jobs.evaluation.paired import CROP, compare, crops
from jobs.evaluation.protocols import Score
from jobs.evaluation.scoring import Scored
from jobs.recipe import BenchmarkRun
from pipeline.degradations.colour import rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.errors import UserError
from pipeline.images import read_image, write_image

N = 5


@pytest.fixture
def rain(tmp_path) -> Path:
    """Pairs of which the input is darker by 4, 8, ... 20."""
    for i in range(1, N + 1):
        clean = photograph(i, 70, 90).clip(30, 220)
        write_image(tmp_path / f"Rain/test/lq/{i}.png", clean - np.uint8(4 * i))
        write_image(tmp_path / f"Rain/test/gt/{i}.png", clean)
    return tmp_path / "Rain"


def run(folder: Path, name: str = "pairs-rgb") -> BenchmarkRun:
    return BenchmarkRun(benchmark=name, data=str(folder), layout="pairs" if name.startswith("pairs") else None)


def restored(rain: Path, by: list[int], names: str = "{}") -> Path:
    """A folder of results that are brighter than their inputs by so much."""
    folder = rain.parent / f"by-{'-'.join(map(str, by))}"
    for i, more in enumerate(by, 1):
        pixels = read_image(rain / f"test/lq/{i}.png")[0].astype(int) + more
        write_image(folder / f"{names.format(i)}.png", pixels.astype(np.uint8))
    return folder


def test_the_differences_are_those_of_each_image_with_their_interval(rain, tmp_path):
    """Inputs are 4 i darker; A leaves them, B takes 2 levels away in the first three images, and adds 2 to the others' errors."""
    b = restored(rain, [2, 2, 2, -2, -2])
    found = compare("identity", str(b), run(rain), tmp_path, tmp_path / "sheet.png")
    errors = np.array([4 * i for i in range(1, N + 1)]), np.array([2, 6, 10, 18, 22])
    psnr_a, psnr_b = (20 * np.log10(255 / each) for each in errors)
    each = psnr_b - psnr_a
    row = found["metrics"]["psnr"]
    assert row["a"] == pytest.approx(psnr_a.mean())
    assert row["b"] == pytest.approx(psnr_b.mean())
    assert row["difference"] == pytest.approx(each.mean())
    assert row["margin"] == pytest.approx(stats.sem(each) * stats.t.ppf(0.975, N - 1))
    assert row["margin"] < 0.7 * stats.sem(psnr_a) * stats.t.ppf(0.975, N - 1)  # less than of either mean
    assert (row["better"], row["worse"], row["equal"]) == (3, 2, 0)
    assert [one["image"] for one in found["each"]] == ["4", "5", "3", "2", "1"]
    assert [one["difference"]["psnr"] for one in found["each"]] == pytest.approx(sorted(each))
    assert (found["images"], found["dataset"]) == (N, "Rain")
    assert json.loads(json.dumps(found)) == found
    back = compare(str(b), "identity", run(rain), tmp_path)
    assert back["metrics"]["psnr"]["difference"] == pytest.approx(-each.mean())
    assert (back["metrics"]["psnr"]["better"], back["metrics"]["psnr"]["worse"]) == (2, 3)


def test_a_metric_of_which_less_is_better_counts_so(tmp_path):
    for i in (1, 2):
        clean = photograph(i, 48, 64)
        mask = np.zeros((48, 64, 1), np.uint8)
        mask[:, : 20 * i] = 255
        dark = np.where(mask, clean // 2, clean)
        for letter, image in (("A", dark), ("B", mask), ("C", clean)):
            write_image(tmp_path / f"ISTD/test/test_{letter}/{i}.png", image)
        write_image(tmp_path / f"lifted/{i}.png", np.where(mask, (clean * 0.9).astype(np.uint8), clean))
    asked = BenchmarkRun(benchmark="pairs-istd", data=str(tmp_path / "ISTD"), layout="istd:istd")
    found = compare("identity", str(tmp_path / "lifted"), asked, tmp_path)["metrics"]
    assert found["lab_rmse_pi_480_shadow"]["difference"] < 0
    assert [found[name]["better"] for name in ("lab_rmse_pi_480_shadow", "psnr")] == [2, 2]
    pp = found["lab_mae_pp_256_shadow"]  # per pixel: the difference of the two means, which weigh by pixels
    assert pp["difference"] == pytest.approx(pp["b"] - pp["a"])


def test_identical_images_have_no_finite_difference_and_are_counted(rain, tmp_path, cli):
    b = restored(rain, [4, 8, 0, 0, -1])
    found = compare("identity", str(b), run(rain), tmp_path)
    row = found["metrics"]["psnr"]
    assert (row["b"], row["difference"], row["margin"]) == (None, None, None)
    assert (row["better"], row["worse"], row["equal"]) == (2, 1, 2)
    same = compare(str(b), str(b), run(rain), tmp_path)["metrics"]["psnr"]
    assert (same["difference"], same["margin"], same["equal"]) == (0, 0, N)
    pairs = ("--benchmark", "pairs-rgb", "--data", str(rain), "--layout", "pairs", "--sheet", str(tmp_path / "s.png"))
    code, out, _ = cli("compare", "identity", str(b), *pairs)
    assert code == 0
    assert "identical" in out
    assert "best by PSNR: 2 infinite, 1 infinite" in out


def test_a_folder_is_scored_on_the_benchmarks_plane(tmp_path):
    """Results in colour of a benchmark on Y: what counts is their Y; and what the benchmark cuts off is cut off."""
    images = {f"p{i}": photograph(i, 50, 61) for i in range(3)}
    for name, pixels in images.items():
        write_image(tmp_path / f"Kodak/{name}.png", pixels)
        write_image(tmp_path / f"grey/{name}.png", jpeg(rgb2ycbcr_y(pixels), 40))
        write_image(tmp_path / f"colour/deep/{name}.png", pixels)
    of_quality = compare("identity", str(tmp_path / "grey"), run(tmp_path / "Kodak", "jpeg-q10"), tmp_path)
    best = score_folder(identity, benchmark("jpeg-q40"), run(tmp_path / "Kodak", "jpeg-q40"))
    assert of_quality["metrics"]["psnr"]["b"] == pytest.approx(
        np.mean([s.output.values["psnr"] for s in best]), abs=1e-4
    )
    of_scale = compare("identity", str(tmp_path / "colour"), run(tmp_path / "Kodak", "sr-x4"), tmp_path)
    assert of_scale["metrics"]["psnr"]["b"] is None  # it is the target


def test_a_model_and_its_own_results_hardly_differ(rain, tmp_path, monkeypatch, cli):
    recipe = """
model: {name: drcnet, width: 2, levels: 2, contrastive: null}
data: {task: rain-pairs, patch: 16, crops: 1, batch: 2}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 1}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: pairs-rgb, data: nowhere}]}
"""
    untrained_run(tmp_path, recipe)
    monkeypatch.chdir(tmp_path)
    assert cli("restore", "--model", "tiny.yaml", "Rain/test/lq", "out")[0] == 0
    asked = ("--benchmark", "pairs-rgb", "--data", "Rain", "--layout", "pairs")
    code, out, err = cli("compare", "tiny.yaml", "out", *asked, "--json")
    assert code == 0, err
    row = json.loads(out)["metrics"]["psnr"]
    assert abs(row["difference"]) < 1e-6  # rounded to 8 bits in both
    code, out, err = cli("compare", "identity", "tiny.yaml", *asked, "--sheet", "s.png")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("Rain/pairs-rgb (5 images, rgb@")
    assert lines[1:3] == ["A: identity", "B: tiny.yaml"]
    assert lines[4].startswith("  PSNR (dB)")
    assert " ± " in lines[4]
    assert lines[-1] == "sheet: s.png"
    assert Path("s.png").is_file()


# the sheet


def test_the_sheet_shows_the_two_worst_and_the_two_best_images(rain, tmp_path):
    b = restored(rain, [2, 2, 2, -2, -2])
    compare("identity", str(b), run(rain), tmp_path, tmp_path / "sheet.png")
    sheet, _ = read_image(tmp_path / "sheet.png")
    side = 2 * CROP
    assert sheet.shape == (22 + 4 * (22 + side + 4), 4 * (side + 4) + 4, 3)
    for place, key in enumerate((4, 5, 2, 1)):
        top = 22 + place * (22 + side + 4) + 22
        cells = [sheet[top : top + side, 4 + i * (side + 4) :][:, :side].astype(int) for i in range(4)]
        errors = [np.abs(cell - cells[3]).mean() for cell in cells[:3]]
        assert errors == pytest.approx([4 * key, 4 * key, 4 * key - (2 if key < 4 else -2)], abs=0.2)


def test_crops_are_cut_where_the_two_differ_most_in_that_direction():
    gt = np.full((300, 200, 1), 0.5, np.float32)
    a, b = gt.copy(), gt.copy()
    a[10:60, 20:70] += 0.2  # where b is better
    b[220:260, 120:160] -= 0.3  # where it is worse
    scored = [Scored("x", Score({}), Score({}), (Pair(gt, gt), plane)) for plane in (a, b)]
    for gain, y, x, which in ((1.0, 10, 20, 1), (-1.0, 220, 120, 2)):
        cells = crops(*scored, gain)
        assert {cell.shape for cell in cells} == {(CROP, CROP, 1)}
        wrong = np.abs(cells[which] - cells[3])
        assert np.count_nonzero(wrong) == (2500 if which == 1 else 1600), (y, x)
    assert {
        cell.shape for cell in crops(*[Scored("x", Score({}), Score({}), (Pair(gt[:40], gt[:40]), gt[:40]))] * 2, 1.0)
    } == {(40, 40, 1)}


# folders that are not the benchmark's


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: (b / "3.png").unlink(), "by-1-1-1-1-1: not the images of pairs-rgb: 1 of 5 missing: 3"),
        (lambda b: shutil.copy(b / "3.png", b / "9.png"), "1 that the benchmark has not: 9.png"),
        (lambda b: (b / "3.png").rename(b / "x.png"), "1 of 5 missing: 3; 1 that the benchmark has not: x.png"),
        (
            lambda b: shutil.copytree(b, b / "more"),
            "more/1.png: .*by-1-1-1-1-1/1.png is of the same image, 1; leave one",
        ),
        (lambda b: write_image(b / "3.png", np.zeros((7, 9, 3), np.uint8)), "3.png: 9x7 pixels, its input has 90x70"),
        (
            lambda b: write_image(b / "3.png", np.zeros((71, 90, 3), np.uint8)),
            "3.png: 90x71 pixels, its input has 90x70",
        ),
        (lambda b: (b / "3.png").write_bytes(b"x"), "by-1-1-1-1-1/3.png: not an image"),
    ],
)
def test_other_images_than_the_benchmarks_are_one_line(rain, tmp_path, change, says):
    b = restored(rain, [1] * N)
    change(b)
    with pytest.raises(UserError, match=says) as error:
        compare("identity", str(b), run(rain), tmp_path)
    assert "\n" not in str(error.value)


def test_results_are_found_by_the_names_of_keys_and_of_inputs(tmp_path):
    """The data set has two images called 2: only whole keys tell them apart."""
    for subset in ("Rain100L", "Test100"):
        for role, less in (("target", 0), ("input", 9)):
            write_image(tmp_path / f"rain/test/{subset}/{role}/2.png", photograph(1, 40, 50).clip(30) - np.uint8(less))
        write_image(tmp_path / f"keys/{subset}-2.png", photograph(1, 40, 50).clip(30))
        write_image(tmp_path / f"folders/{subset}/2.png", photograph(1, 40, 50).clip(30))
    asked = BenchmarkRun(benchmark="pairs-rgb", data=str(tmp_path / "rain"), layout="rain13k")
    for folder in ("keys", "folders"):
        assert compare("identity", str(tmp_path / folder), asked, tmp_path)["metrics"]["psnr"]["better"] == 2
    (tmp_path / "flat").mkdir()
    shutil.copy(tmp_path / "keys/Test100-2.png", tmp_path / "flat/2.png")
    with pytest.raises(UserError, match=r"2 of 2 missing: .*; 1 that the benchmark has not: 2\.png"):
        compare("identity", str(tmp_path / "flat"), asked, tmp_path)
    one = asked.model_copy(update={"subset": "Test100"})
    found = compare("identity", str(tmp_path / "flat"), one, tmp_path)
    assert found["images"] == 1
    assert found["metrics"]["psnr"]["margin"] is None
    assert math.isfinite(found["metrics"]["psnr"]["a"])


def test_noise_has_three_draws_and_no_one_result(tmp_path):
    write_image(tmp_path / "set/a.png", photograph(1, 40, 50))
    with pytest.raises(UserError, match=r"noise-30 restores three draws .* give models"):
        compare("identity", str(tmp_path / "set"), run(tmp_path / "set", "noise-30"), tmp_path)
