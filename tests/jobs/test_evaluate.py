"""Evaluation: folders in, a row of the papers' tables out."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import untrained_run
from stand_ins import Brighter, MeanOf

from jobs.evaluation import evaluate as evaluation
from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.evaluate import (
    blended_distance,
    dataset_name,
    evaluate,
    evaluate_recipe,
    identity,
    memory_sheets,
    score_folder,
)
from jobs.evaluation.items import items
from jobs.evaluation.metrics import psnr
from jobs.evaluation.protocols import GRAY_FLOAT, ISTD, RGB, Y_MATLAB, Y_RGB, score
from jobs.evaluation.scores import read_scores
from jobs.evaluation.scoring import here, score_runs
from jobs.origin import begin, digest, origin
from jobs.recipe import BenchmarkRun, read_recipe
from jobs.restoring.tiles import restore_blended, restore_plane
from pipeline.degradations.jpeg import jpeg
from pipeline.errors import UserError
from pipeline.images import read_image, write_image
from pipeline.storage import storage


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
        assert image.output.values["psnr"] == pytest.approx(psnr(jpeg(target, 20), target), abs=1e-4)


def test_a_better_restorer_scores_higher(photos):
    chosen = benchmark("noise-50")
    worse = score_folder(identity, chosen, run(chosen.name, photos))[0]
    better = score_folder(lambda lq, _: lq * 0.5 + 0.5 * worse.pair.gt, chosen, run(chosen.name, photos))[0]
    assert better.output.values["psnr"] > worse.output.values["psnr"] + 3
    assert better.baseline == worse.baseline


def test_the_tiles_of_a_benchmark_reach_the_restorer(photos):
    asked = []

    def restore(lq: np.ndarray, tile: int | None) -> np.ndarray:
        asked.append(tile)
        return lq

    shutil.copytree(photos, photos.parent / "pairs/test/lq", ignore=shutil.ignore_patterns("*.txt"))
    shutil.copytree(photos.parent / "pairs/test/lq", photos.parent / "pairs/test/gt")
    for name in ("pairs-rgb", "pairs-rgb-tile24"):
        score_folder(restore, benchmark(name), run(name, photos.parent / "pairs", layout="pairs"))
    assert asked == [None] * 3 + [24] * 3


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


def test_what_a_folder_holds_and_is_not_scored_is_named_and_not_opened(photos, cli):
    (photos / "more").mkdir()
    os.mkfifo(photos / "queue")  # whoever opens it waits
    (photos / "scan.png.txt").write_text("")
    (photos / ".hidden").write_text("")
    code, out, err = cli("evaluate", "--model", "identity", "--benchmark", "jpeg-q10", "--data", str(photos))
    assert code == 0
    assert "3 images" in out
    assert [line for line in err.splitlines() if line.strip()] == [
        f"not scored: {photos}/more: a folder",
        f"not scored: {photos}/queue: not an image by its suffix",
        f"not scored: {photos}/readme.txt: not an image by its suffix",
        f"not scored: {photos}/scan.png.txt: not an image by its suffix",
    ]


@pytest.mark.timeout(60)
def test_a_pipe_with_the_name_of_an_image_is_one_line(photos, tmp_path):
    os.mkfifo(photos / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png: not a regular file$"):
        evaluate("identity", run("jpeg-q10", photos), tmp_path)


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
    half = score_folder(lambda lq, _: lq + 5 / 255, benchmark("pairs-rgb"), run("pairs-rgb", rain, layout="rain13k"))
    assert [image.key for image in half] == ["Rain100L-2", "Rain100L-10", "Test100-2", "Test100-10"]
    assert half[0].output.values["psnr"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)


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


@pytest.fixture
def fourteen(tmp_path: Path) -> Path:
    """The release of MemNet with the 14 images of the denoising table, and a result beside them."""
    rng = np.random.default_rng(3)
    for i in range(1, 15):
        path = tmp_path / f"MemNet/data/GaussianDenoising/S14/{i}.bmp"
        write_image(path.with_suffix(".png"), rng.integers(0, 256, (16, 16, 1), np.uint8))
    write_image(tmp_path / "MemNet/test/results/1_Noise30.png", np.zeros((16, 16, 1), np.uint8))
    return tmp_path / "MemNet"


def test_clean_images_are_found_by_the_layout_of_their_release(fourteen, tmp_path):
    row = evaluate("identity", run("noise-30", fourteen, layout="s14"), tmp_path)
    assert row["images"] == 14
    assert row["psnr"] == pytest.approx(20 * np.log10(255 / 30), abs=0.3)
    keys = [item.key for item in items(benchmark("noise-30"), run("noise-30", fourteen, layout="s14"))[0]]
    assert keys == [str(n) for n in range(1, 15)]


def test_clean_images_that_are_not_as_many_as_published_are_one_line(fourteen, tmp_path):
    (fourteen / "data/GaussianDenoising/S14/3.png").unlink()
    with pytest.raises(UserError, match="13 test images in layout s14, 14 published; complete them"):
        evaluate("identity", run("noise-30", fourteen, layout="s14"), tmp_path)
    with pytest.raises(UserError, match="0 test images in layout t91; complete them"):
        evaluate("identity", run("noise-30", fourteen / "data/GaussianDenoising/S14", layout="t91"), tmp_path)


# shadows


@pytest.fixture
def shadow(tmp_path: Path) -> Path:
    """Two triples of ISTD; in the shadow, a part that differs in size, the light is halved."""
    rng = np.random.default_rng(2)
    folder = tmp_path / "shadow/test"
    for i, width in enumerate((8, 20), 1):
        clean = np.kron(rng.integers(60, 226, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        mask = np.zeros((24, 32, 1), np.uint8)
        mask[:, :width] = 255
        dark = np.where(mask, clean // (1 + i), clean)
        for letter, image in (("A", dark), ("B", mask), ("C", clean)):
            write_image(folder / f"test_{letter}/9{i}-1.png", image)
    return tmp_path / "shadow"


def test_a_shadow_is_scored_by_its_own_mask(shadow, tmp_path):
    row = evaluate("identity", run("pairs-istd", shadow, layout="istd:istd"), tmp_path)
    assert (row["images"], row["dataset"], row["protocol"]) == (2, "shadow-istd", str(ISTD))
    assert {metric.name for metric in ISTD.metrics} <= row.keys()
    each = []
    for i in (1, 2):
        a, b, c = (read_image(shadow / f"test/test_{letter}/9{i}-1.png")[0] for letter in "ABC")
        each.append(score(ISTD, a / 255, c / 255, mask=b))
    for name in ("psnr", "ssim_3d_shadow", "lab_rmse_pi_480", "lab_mae_pi_480_shadow"):
        assert row[name] == pytest.approx(np.mean([s.values[name] for s in each]), rel=1e-4)
    pp = "lab_mae_pp_256_shadow"
    pixels = [s.weights[pp] for s in each]
    assert 2 * pixels[0] < pixels[1]
    assert row[pp] == pytest.approx(np.average([s.values[pp] for s in each], weights=pixels), rel=1e-4)
    assert row["lab_mae_pp_256_nonshadow"] < 1 < 20 < row[pp]  # bicubic blurs the edge


def test_a_restorer_that_lifts_the_shadow_lowers_the_error_in_lab(shadow):
    chosen, of = benchmark("pairs-istd"), run("pairs-istd", shadow, layout="istd:istd")
    for image in score_folder(lambda lq, _: lq * 1.3, chosen, of):
        before, after = image.baseline.values, image.output.values
        assert after["lab_rmse_pi_480_shadow"] < before["lab_rmse_pi_480_shadow"]
        assert after["lab_rmse_pi_480_nonshadow"] > before["lab_rmse_pi_480_nonshadow"]


def test_scores_of_two_variants_have_two_names(shadow, tmp_path):
    shutil.copytree(shadow / "test/test_C", shadow / "test/test_C_fixed_official")
    names = {
        evaluate("identity", run("pairs-rgb", shadow, layout=f"istd:{v}"), tmp_path)["dataset"]
        for v in ("istd", "istd+")
    }
    assert names == {"shadow-istd", "shadow-istd+"}


def test_the_command_prints_a_line_for_each_metric(shadow, photos, cli):
    asked = ("evaluate", "--model", "identity", "--benchmark")
    code, out, _ = cli(*asked, "pairs-istd", "--data", str(shadow), "--layout", "istd:istd")
    assert code == 0
    head, columns, *lines = out.splitlines()
    assert head == f"shadow-istd/pairs-istd (2 images, {ISTD})"
    assert columns.split() == ["input", "output", "as", "published"]
    assert [line[2:48].strip() for line in lines] == [metric.heading for metric in ISTD.metrics]
    assert all(re.fullmatch(r"  .{46} +(\S+) +\1 ± \d+[.]\d+", line) for line in lines)
    named = photos.rename(photos.parent / "Classic5")
    _, out, _ = cli(*asked, "jpeg-q10", "--data", str(named))
    assert out.splitlines()[3].endswith("JPEG 0.7595, ARCNN 0.7929, TNRD 0.7992, DnCNN 0.8026, MemNet 0.8107")


@pytest.mark.parametrize(
    ("break_it", "layout", "says"),
    [
        ("no masks", "pairs", "lq/91-1.png: no mask, and pairs-istd scores the shadow by it"),
        ("one mask less", "istd:istd", "test_A/91-1.png: .*test_B/91-1.png is missing"),
        ("empty", "istd:istd", "test_A/91-1.png: its mask shows no shadow"),
        ("small", "istd:istd", "test_A/91-1.png: 32x24 and 32x24 and 9x9 pixels"),
    ],
)
def test_masks_that_are_no_masks_are_one_line(shadow, tmp_path, break_it, layout, says):
    mask = shadow / "test/test_B/91-1.png"
    if break_it == "no masks":
        (shadow / "test/test_A").rename(shadow / "test/lq")
        (shadow / "test/test_C").rename(shadow / "test/gt")
        shutil.rmtree(shadow / "test/test_B")
    elif break_it == "one mask less":
        mask.unlink()
    else:
        write_image(mask, np.zeros((24, 32, 1) if break_it == "empty" else (9, 9, 1), np.uint8))
    with pytest.raises(UserError, match=says) as error:
        evaluate("identity", run("pairs-istd", shadow, layout=layout), tmp_path)
    assert "\n" not in str(error.value)


# all benchmarks of a recipe


def train(place: Path, benchmarks: str) -> Path:
    """The checkpoint of a small DRCNet, whose statistics are those of the whole image; returns the folder of runs."""
    recipe = f"""
model: {{name: drcnet, width: 2, levels: 2, contrastive: null}}
data: {{task: shadow-pairs, patch: 16, crops: 1, batch: 2}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 1}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: {benchmarks}}}
"""
    return untrained_run(place, recipe)


def test_benchmarks_with_other_metrics_and_in_tiles_stand_in_one_table(shadow, tmp_path, monkeypatch):
    data = f"data: {shadow}, layout: 'istd:istd'"
    names = ("pairs-y", "pairs-y-tile16", "pairs-istd")
    runs = train(tmp_path / "trained", f"[{', '.join(f'{{benchmark: {name}, {data}}}' for name in names)}]")
    monkeypatch.chdir(tmp_path / "trained")
    scores = evaluate_recipe("tiny.yaml", runs)
    assert list(scores) == [f"shadow-istd/{name}" for name in names]
    whole, tiled, istd = scores.values()
    assert whole["baseline"] == tiled["baseline"]
    assert whole["psnr"] != tiled["psnr"]
    assert scores == read_scores(runs / "tiny", "again")
    figures = json.loads(
        (runs / "tiny/scores.json").read_text()
    )  # DVC's metrics: one number of each benchmark and metric
    assert figures["shadow-istd/pairs-y"] == {"psnr": whole["psnr"], "ssim": whole["ssim"]}
    assert all(isinstance(value, float) for row in figures.values() for value in row.values())
    assert not any("blended" in row for row in scores.values())  # the images are smaller than a tile
    rows = pq.read_table(runs / "tiny/scores.parquet").to_pylist()
    assert [(row["benchmark"], row["image"]) for row in rows] == [(n, f"9{i}-1") for n in names for i in (1, 2)]
    assert [row["lab_mae_pi_480"] is None for row in rows] == [True] * 4 + [False] * 2
    assert istd["lab_mae_pi_480"] == pytest.approx(np.mean([row["lab_mae_pi_480"] for row in rows[4:]]))
    assert istd["baseline"]["lab_mae_pi_480"] == pytest.approx(
        np.mean([row["baseline_lab_mae_pi_480"] for row in rows[4:]])
    )
    pictures = {path.name for path in (runs / "tiny/pictures/output").iterdir()}
    assert pictures == {f"shadow-istd-{name}-9{i}-1.png" for name in names for i in (1, 2)}


@pytest.mark.parametrize("asked", ["jpeg-q10", "sr-x3", "noise-30"])
def test_a_model_that_does_not_take_a_benchmarks_channels_is_refused(photos, shadow, tmp_path, monkeypatch, asked):
    pairs = f"{{benchmark: pairs-rgb, data: {shadow}, layout: 'istd:istd'}}"
    runs = train(tmp_path / "trained", f"[{pairs}, {{benchmark: {asked}, data: {photos}}}]")
    monkeypatch.chdir(tmp_path / "trained")
    says = f"^{asked}: is on images of 1 channels, and tiny takes 3; pairs-... are for such models$"
    with pytest.raises(UserError, match=says):
        evaluate_recipe("tiny.yaml", runs)
    with pytest.raises(UserError, match=says):
        evaluate("tiny", run(asked, photos), runs)
    assert not (runs / "tiny/scores.json").exists()


def test_the_distance_of_blended_tiles_is_that_of_the_two_results():
    lq = np.linspace(0, 1, 400 * 300 * 3, dtype=np.float32).reshape(400, 300, 3)
    mse = np.square(restore_blended(MeanOf(), lq).astype(np.float64) - lq.mean((0, 1))).mean()
    assert blended_distance(MeanOf(), lq) == pytest.approx(-10 * np.log10(mse), abs=1e-3)
    assert blended_distance(MeanOf(), np.full((400, 300, 3), 0.5, np.float32)) > 120
    assert blended_distance(MeanOf(), lq[:256, :256]) is None
    assert blended_distance(Brighter(), lq) is None


def test_the_distance_of_blended_tiles_is_of_what_can_be_seen():
    """Both results are clipped first, as pictures are."""
    lq = np.linspace(0, 1, 400 * 300 * 3, dtype=np.float32).reshape(400, 300, 3)
    outside = np.full_like(lq, 3)
    mse = np.square(restore_blended(MeanOf(), lq).astype(np.float64) - 1).mean()
    assert blended_distance(MeanOf(), lq, outside) == pytest.approx(-10 * np.log10(mse), abs=1e-3)


def test_an_image_that_was_restored_whole_is_not_restored_again():
    model = Brighter()
    model.receptive_field = None
    lq = np.random.default_rng(0).random((640, 300, 3), np.float32)
    whole = restore_plane(model, lq, whole=True)
    alone = blended_distance(model, lq)
    assert (1, 3, 640, 300) in {tuple(x.shape) for x in model.seen}
    model.seen.clear()
    assert blended_distance(model, lq, whole) == alone
    assert {tuple(x.shape) for x in model.seen} == {(1, 3, 256, 256)}
    model.seen.clear()
    large = np.pad(lq, ((0, 1), (0, 400), (0, 0)))  # the corner's result is another than that corner of the result
    blended_distance(model, large, restore_plane(model, large, whole=True))
    assert [tuple(x.shape) for x in model.seen[:2]] == [(1, 3, 641, 700), (1, 3, 640, 640)]


@pytest.mark.parametrize("names", [("pairs-y", "pairs-y-tile16"), ("pairs-y-tile16", "pairs-y")])
def test_the_distance_of_blended_tiles_is_measured_where_an_image_is_large_enough(shadow, tmp_path, monkeypatch, names):
    for path in shadow.rglob("*-1.png"):
        image, _ = read_image(path)
        write_image(path, np.tile(image, (3, 10, 1)))
    data = f"data: {shadow}, layout: 'istd:istd'"
    runs = train(tmp_path / "trained", f"[{', '.join(f'{{benchmark: {name}, {data}}}' for name in names)}]")
    monkeypatch.chdir(tmp_path / "trained")
    known = []

    def spy(model, lq, whole):
        known.append(whole is not None)
        return blended_distance(model, lq, whole)

    monkeypatch.setattr(evaluation, "blended_distance", spy)
    row, tiled = evaluate_recipe("tiny.yaml", runs).values()
    # once, as both have the same input; where it was restored in tiles of the benchmark, it is not known whole
    assert known == [names[0] == "pairs-y"]
    assert tiled["blended"] == row["blended"]
    assert row["blended"]["image"] == "91-1"
    assert 20 < row["blended"]["psnr"] < 150
    assert read_scores(runs / "tiny", "again")["shadow-istd/pairs-y"]["blended"] == row["blended"]


# several protocols in one pass


def test_benchmarks_of_one_input_restore_it_once_and_score_as_they_do_alone(shadow, photos, tmp_path, monkeypatch):
    of_pairs = [("pairs-y", 0), ("pairs-rgb", 0), ("pairs-y-rcd", 0), ("pairs-istd", 0), ("pairs-y-tile16", 1)]
    runs = [run(name, shadow, layout="istd:istd") for name, _ in of_pairs]
    seen = []

    def restore(lq: np.ndarray, tile: int | None) -> np.ndarray:
        seen.append((lq.tobytes(), tile))
        return lq * np.float32(1.1) + (0 if tile is None else 0.01)

    asked = [(benchmark(each.benchmark), each) for each in runs]
    together = score_runs(here(restore, 8), asked)
    assert len(seen) == len(set(seen)) == 2 * 2  # two images, whole and in tiles
    apart = [score_folder(restore, *each) for each in asked]
    assert len(seen) == 4 + 2 * 5
    for one, other in zip(together, apart, strict=True):
        assert [(s.key, s.output, s.baseline) for s in one] == [(s.key, s.output, s.baseline) for s in other]
        assert all(np.array_equal(a.restored, b.restored) for a, b in zip(one, other, strict=True))
    seen.clear()
    asked = [(benchmark(name), run(name, photos)) for name in ("jpeg-q10", "jpeg-q20", "jpeg-q10", "noise-30")]
    first, other, again, _ = score_runs(here(restore, 8), asked)
    assert len(seen) == 3 + 3 + 9  # the qualities are two inputs, noise has three draws
    assert [s.output for s in first] == [s.output for s in again] != [s.output for s in other]


def test_sets_that_share_some_images_keep_their_own_order(rain):
    whole = run("pairs-y", rain, layout="rain13k")
    part = run("pairs-rgb", rain, layout="rain13k", subset="Test100")
    found = score_runs(here(identity, 8), [(benchmark("pairs-rgb"), part), (benchmark("pairs-y"), whole)], pixels=1)
    assert [[s.key for s in each] for each in found] == [
        ["Test100-2", "Test100-10"],
        ["Rain100L-2", "Rain100L-10", "Test100-2", "Test100-10"],
    ]
    assert [[s.pixels is not None for s in each] for each in found] == [[True, False], [True, False, False, False]]


def test_a_recipe_restores_each_image_once_for_all_its_benchmarks_of_that_input(shadow, tmp_path, monkeypatch):
    data = f"data: {shadow}, layout: 'istd:istd'"
    names = ("pairs-y", "pairs-rgb", "pairs-y-rcd")
    runs = train(tmp_path / "trained", f"[{', '.join(f'{{benchmark: {name}, {data}}}' for name in names)}]")
    monkeypatch.chdir(tmp_path / "trained")
    count = []
    of_model = evaluation.restorer
    monkeypatch.setattr(
        evaluation, "restorer", lambda model: lambda *given: (count.append(1), of_model(model)(*given))[1]
    )
    together = evaluate_recipe("tiny.yaml", runs)
    assert len(count) == 2
    for name in names:
        alone = evaluate("tiny", run(name, shadow, layout="istd:istd"), runs)
        assert {key: alone[key] for key in ("psnr", "ssim", "margin", "baseline")} == {
            key: together[f"shadow-istd/{name}"][key] for key in ("psnr", "ssim", "margin", "baseline")
        }


# what a memory responds to


class Remembering(torch.nn.Linear):
    """Reads two banks: items that answer to the left and to the right half, and too many."""

    def read_weights(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        left = torch.zeros(1, 1, *x.shape[2:])
        left[..., : x.shape[3] // 2] = 0.25
        return {"items": torch.cat((left, 0.25 - left, left * 0 + 0.1), 1), "parts": torch.rand(1, 100, *x.shape[2:])}


def test_a_sheet_shows_the_image_and_what_each_item_responds_to():
    lq = np.random.default_rng(0).random((40, 60, 3), np.float32)
    sheets = memory_sheets(Remembering(1, 1), lq)
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


# whose checkpoint it is


@pytest.fixture
def trained(photos, tmp_path, monkeypatch) -> Path:
    """The folder of runs of a recipe tiny.yaml, in the current directory."""
    recipe = f"""
model: {{name: memnet, memory_blocks: 1, recursions: 1, channels: 2}}
data: {{task: photos-jpeg, patch: 31, stride: 21, batch: 12}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 6}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{{benchmark: jpeg-q10, data: {photos}}}]}}
"""
    monkeypatch.chdir(tmp_path)
    return untrained_run(tmp_path, recipe)


@pytest.mark.parametrize("kept", [True, False])
def test_scores_of_the_checkpoint_of_another_recipe_are_refused_with_what_differs(trained, kept):
    recipe = Path("tiny.yaml").read_text()
    pointer = json.loads((trained / "tiny/checkpoint.json").read_text())
    if kept:
        begin(storage("store"), "tiny", origin(read_recipe("tiny.yaml"), pointer["samples"]))
    evaluate_recipe("tiny.yaml", trained)
    Path("tiny.yaml").write_text(recipe.replace("workers: 1", "workers: 3"))
    evaluate_recipe("tiny.yaml", trained)  # the weights would be the same
    Path("tiny.yaml").write_text(recipe.replace("lr: 0.001", "lr: 0.002"))
    with pytest.raises(UserError) as error:
        evaluate_recipe("tiny.yaml", trained)
    differs = "other optimisation.lr: 0.001 there, 0.002 here" if kept else "another recipe or other code, and "
    assert f"of the run {pointer['run']}, which is not that of tiny.yaml here: {differs}" in str(error.value)
    assert str(error.value).endswith("; `memoir train tiny.yaml`")


def test_a_checkpoint_that_is_not_its_recipes_is_scored_on_a_folder_with_a_line_that_says_so(trained, photos, cli):
    asked = ("evaluate", "--benchmark", "jpeg-q20", "--data", str(photos), "--model")

    def said(model: str) -> list[str]:
        code, out, err = cli(*asked, model)
        assert code == 0, err
        assert "Kodak/jpeg-q20 (3 images" in out
        return [line for line in err.splitlines() if line.startswith("warning")]

    assert said("tiny.yaml") == []
    recipe = Path("tiny.yaml").read_text()
    pointer = json.loads((trained / "tiny/checkpoint.json").read_text())
    begin(storage("store"), "tiny", origin(read_recipe("tiny.yaml"), pointer["samples"]))
    Path("tiny.yaml").write_text(recipe.replace("workers: 1", "workers: 3"))
    assert said("tiny.yaml") == []
    Path("tiny.yaml").write_text(recipe.replace("lr: 0.001", "lr: 0.002"))
    (line,) = said("tiny.yaml")
    assert line == (
        f"warning runs/tiny/checkpoint.json: of the run {pointer['run']}, which is not that of tiny here: "
        "other optimisation.lr: 0.001 there, 0.002 here; scored as it was trained"
    )
    (line,) = said("tiny")  # no recipe of this name is here
    assert "cannot be compared with its recipe: unknown recipe 'tiny'" in line


def test_a_checkpoint_of_other_overrides_is_not_taken_for_its_recipes_own(trained, photos, tmp_path, cli):
    """Its pointer says with which values it was trained; under the recipe's plain name they are a departure."""
    values = ["optimisation.lr=0.002"]
    run = f"tiny-{digest(origin(read_recipe('tiny.yaml', values), 'd1935'))}"
    pointer = json.loads((trained / "tiny/checkpoint.json").read_text())
    (tmp_path / "store/runs" / pointer["run"]).rename(tmp_path / "store/runs" / run)
    pointer |= {"run": run, "checkpoint": f"runs/{run}/step-00000006", "overrides": values}
    (trained / "tiny/checkpoint.json").write_text(json.dumps(pointer))
    asked = ("evaluate", "--benchmark", "jpeg-q20", "--data", str(photos), "--model")
    code, _, err = cli(*asked, "tiny.yaml")
    assert code == 0
    assert f"warning runs/tiny/checkpoint.json: of the run {run}, which is not that of tiny here" in err
    with pytest.raises(UserError, match=r"which is not that of tiny\.yaml here"):
        evaluate_recipe("tiny.yaml", trained)
    (trained / "tiny").rename(trained / "tiny+lr=0.002")
    code, _, err = cli(*asked, "tiny.yaml+lr=0.002")
    assert (code, [line for line in err.splitlines() if line.startswith("warning")]) == (0, [])
    evaluate_recipe("tiny.yaml+lr=0.002", trained)


def test_a_variant_is_evaluated_and_published_by_its_name_with_its_own_values(trained, photos, tmp_path, cli):
    other = shutil.copytree(photos, tmp_path / "Other", ignore=shutil.ignore_patterns("*.txt", "kodim 2*"))
    overrides = [f"evaluation.benchmarks=[{{benchmark: jpeg-q20, data: {other}}}]", "optimisation.lr=0.002"]
    run = f"tiny-{digest(origin(read_recipe('tiny.yaml', overrides), 'd1935'))}"
    pointer = json.loads((trained / "tiny/checkpoint.json").read_text())
    (tmp_path / "store/runs" / pointer["run"]).rename(tmp_path / "store/runs" / run)
    own = {"run": run, "checkpoint": f"runs/{run}/step-00000006", "overrides": overrides}
    (trained / "tiny+lr=0.002").mkdir()
    (trained / "tiny+lr=0.002/checkpoint.json").write_text(json.dumps(pointer | own))
    (trained / "tiny+lr=0.002/metrics.json").write_text("{}")
    code, out, err = cli("evaluate", "--model", "tiny.yaml+lr=0.002")
    assert code == 0, err
    assert "Other/jpeg-q20 (2 images" in out
    assert (trained / "tiny+lr=0.002/scores.json").is_file()
    assert not (trained / "tiny/scores.json").exists()
    code, out, err = cli("publish", "tiny.yaml+lr=0.002")
    assert code == 0, err
    (version,) = (tmp_path / "store/models/tiny+lr=0.002").glob("*/provenance.json")
    assert json.loads(version.read_text())["overrides"] == overrides
    image = str(other / "kodim 0.png")
    models = ["tiny+lr=0.002", "store/models/tiny+lr=0.002", "runs/tiny+lr=0.002/published.json"]
    for i, model in enumerate(models):
        assert cli("restore", "--model", model, image, f"{i}.png")[0] == 0
    assert len({Path(f"{i}.png").read_bytes() for i in range(3)}) == 1
    pointer = json.loads((trained / "tiny+lr=0.002/checkpoint.json").read_text()) | {"overrides": overrides[:1]}
    (trained / "tiny+lr=0.002/checkpoint.json").write_text(json.dumps(pointer))
    assert "which is not that of tiny.yaml+lr=0.002 here" in cli("evaluate", "--model", "tiny.yaml+lr=0.002")[2]


def test_a_pointer_whose_overrides_name_code_has_nothing_imported(trained):
    path = trained / "tiny/checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overrides": ["model.name=harmful:Net"]}))
    Path("harmful.py").write_text("from pathlib import Path\nPath('harmed').write_text('')\n")
    with pytest.raises(UserError, match=r"model\.name"):
        evaluate_recipe("tiny.yaml", trained)
    assert not Path("harmed").exists()


def test_without_a_store_and_a_project_one_line_says_what_to_give(trained, photos, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(photos)
    code, _, err = cli("restore", "--model", "tiny", "--runs", str(trained), "kodim 0.png", "out.png")
    assert code == 1
    assert err.startswith("memoir: which store? There is no params.yaml in ")
    arguments = ["--runs", str(trained), "--store", str(tmp_path / "store"), "kodim 0.png", "out.png"]
    assert cli("restore", "--model", "tiny", *arguments)[0] == 0
