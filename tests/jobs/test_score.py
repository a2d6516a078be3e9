"""`memoir score`: anybody's images under the papers' protocols, and the metrics of pyiqa from local weights."""

import hashlib
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluation import perceptual as learned
from jobs.evaluation.anybodys import score_images
from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.interval import margin
from jobs.evaluation.metrics import psnr
from jobs.evaluation.perceptual import Files, perceptual
from jobs.evaluation.protocols import GRAY_FLOAT, RGB, Y_MATLAB, Y_RCD, Y_RGB, score
from jobs.recipe import BenchmarkRun
from pipeline.degradations.colour import rgb2ycbcr_y
from pipeline.errors import UserError
from pipeline.images import read_image, write_image


def images(folder: Path, names: str, channels: int = 3, shape: tuple[int, int] = (33, 46), seed: int = 0) -> Path:
    """Random pictures in 8 bits, or in 16 where the name says so."""
    rng = np.random.default_rng(seed)
    for name in names.split():
        pixels = rng.integers(0, 256, (*shape, channels), np.uint8)
        write_image(folder / f"{name}.png", pixels.astype(np.uint16) * 257 if "16" in name else pixels)
    return folder


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    return images(tmp_path / "ours", "a b10 b2 sub/c"), images(tmp_path / "gt", "a b10 b2 sub/c", seed=1)


def planes(folder: Path, name: str) -> np.ndarray:
    return read_image(folder / f"{name}.png")[0] / 255


def test_images_are_paired_by_name_and_scored_under_every_protocol_that_fits(pair):
    ours, gt = pair
    found = score_images(ours, gt)
    assert set(found["protocols"]) == {"y-rgb", "y-rcd", "y-raindrop", "rgb", "rgb-float"}
    assert list(found["each"]) == ["a", "b2", "b10", "sub/c"]
    assert (found["images"], found["unpaired"]) == (4, {"output": [], "target": []})
    for protocol in (RGB, Y_RGB, Y_RCD):
        row = found["protocols"][protocol.name]
        each = [score(protocol, planes(ours, key), planes(gt, key)).values for key in found["each"]]
        assert row["protocol"] == str(protocol)
        for metric in protocol.metrics:
            figures = [values[metric.name] for values in each]
            assert row[metric.name] == pytest.approx(np.mean(figures), abs=1e-9)
            assert row["margin"][metric.name] == pytest.approx(margin(figures), abs=1e-9)
            kept = [found["each"][key][protocol.name][metric.name] for key in found["each"]]
            assert kept == pytest.approx(figures, abs=1e-9)
    assert json.loads(json.dumps(found)) == found


def test_what_a_benchmark_scores_and_what_is_given_have_the_same_figures(tmp_path):
    images(tmp_path / "set/test/lq", "1 2")
    images(tmp_path / "set/test/gt", "1 2", seed=1)
    for name, protocol in (("pairs-y-raindrop", "y-raindrop"), ("pairs-rgb", "rgb")):
        asked = BenchmarkRun(benchmark=name, data=str(tmp_path / "set"), layout="pairs")
        row = evaluate("identity", asked, tmp_path)
        given = score_images(tmp_path / "set/test/lq", tmp_path / "set/test/gt", names=[protocol])
        for key in ("psnr", "ssim", "margin", "protocol"):
            assert given["protocols"][protocol][key] == row[key]


def test_super_resolution_leaves_out_the_border_on_y_and_cuts_to_multiples(tmp_path):
    ours = images(tmp_path / "ours", "a", shape=(33, 45))
    gt = images(tmp_path / "gt", "a", shape=(34, 46), seed=1)
    with pytest.raises(UserError, match=r"a\.png: 45x33 and 46x34 pixels"):
        score_images(ours, gt)
    found = score_images(ours, gt, names=["y-matlab"], scale=3)
    a, b = (rgb2ycbcr_y(read_image(folder / "a.png")[0])[3:30, 3:42] for folder in (ours, gt))
    assert found["protocols"]["y-matlab"]["psnr"] == pytest.approx(psnr(a, b))
    assert found["protocols"]["y-matlab"]["protocol"] == str(Y_MATLAB)
    with pytest.raises(UserError, match=r"y-matlab leaves out .*: give --scale"):
        score_images(ours, ours, names=["y-matlab"])


def test_grey_images_are_scored_as_they_are_and_16_bits_beside_8(tmp_path):
    ours = images(tmp_path / "ours", "a16 b", channels=1)
    gt = images(tmp_path / "gt", "a16 b", channels=1, seed=1)
    found = score_images(ours, gt, scale=2)
    assert set(found["protocols"]) == {"gray-float", "y-matlab"}
    wide = [read_image(folder / "a16.png", bits=16)[0] / 65535 for folder in (ours, gt)]
    assert found["each"]["a16"]["gray-float"]["psnr"] == pytest.approx(
        score(GRAY_FLOAT, *wide).values["psnr"], abs=1e-6
    )


def test_masks_make_the_protocol_of_shadows_fit(pair, tmp_path):
    ours, gt = pair
    for name in ("a", "b2", "b10", "sub/c"):
        mask = np.zeros((33, 46, 1), np.uint8)
        mask[:, :20] = 255
        write_image(tmp_path / f"mask/{name}.png", mask)
    with pytest.raises(UserError, match=r"istd has regions, .* give --mask"):
        score_images(ours, gt, names=["istd"])
    found = score_images(ours, gt, mask=tmp_path / "mask")
    assert "lab_rmse_pi_480_shadow" in found["protocols"]["istd"]


def test_what_has_no_partner_is_listed_and_not_scored(pair, cli):
    ours, gt = pair
    (ours / "a.png").unlink()
    (gt / "sub/c.png").unlink()
    code, out, err = cli("score", "--output", str(ours), "--target", str(gt), "--protocol", "rgb")
    assert code == 0
    assert [line for line in err.splitlines() if line.strip()] == [
        f"not scored: {ours}/sub/c.png: no target of this name",
        f"not scored: {gt}/a.png: no output of this name",
    ]
    head, *lines = out.splitlines()
    assert head == f"{ours} (2 images, {RGB})"
    row = score_images(ours, gt)["protocols"]["rgb"]
    assert lines[0].split() == ["PSNR", "(dB)", f"{row['psnr']:.2f}", "±", f"{row['margin']['psnr']:.2f}"]
    assert len(lines) == len(RGB.metrics)
    code, out, _ = cli("score", "--output", str(ours), "--target", str(gt), "--json")
    assert json.loads(out) == score_images(ours, gt)


@pytest.mark.parametrize(
    ("change", "more", "says"),
    [
        (None, {"names": ["rbg"]}, "no protocol 'rbg': did you mean 'rgb'"),
        (None, {"names": ["gray-float"]}, r"a\.png: gray-float is of grey images"),
        (
            lambda ours: write_image(ours / "b2.png", np.zeros((33, 46, 1), np.uint8)),
            {"names": ["rgb"]},
            "b2.png: rgb is",
        ),
        (lambda ours: write_image(ours / "b2.png", np.zeros((33, 46, 1), np.uint8)), {}, "b2.png: .* is grey"),
        (lambda ours: (ours / "b2.png").write_bytes(b"x"), {}, r"b2\.png: not an image"),
        (lambda ours: (ours / "a.jpg").write_bytes(b"x"), {}, "a.png: a.jpg has the same name"),
        (lambda ours: ours.rename(ours.parent / "away"), {}, "ours: not a folder of images"),
        (
            lambda ours: [p.rename(p.with_name(f"x{p.name}")) for p in ours.rglob("*.png")],
            {},
            "no two images have one name",
        ),
        (lambda ours: [p.unlink() for p in ours.rglob("*.png")], {}, "ours: no images in it"),
        (lambda ours: images(ours, "b2", shape=(9, 9)), {}, r"b2\.png: 9x9 and 46x33 pixels"),
    ],
)
def test_what_cannot_be_scored_is_one_line(pair, change, more, says):
    ours, gt = pair
    if change:
        change(ours)
    with pytest.raises(UserError, match=says) as error:
        score_images(ours, gt, **more)
    assert "\n" not in str(error.value)


# pyiqa, of which a stand-in has the interface


@pytest.fixture
def stand_in(monkeypatch, tmp_path) -> Path:
    """A module pyiqa whose metrics are the mean difference times the number in their file; returns the folder of weights."""
    weights = tmp_path / "weights"
    weights.mkdir()
    files = {}
    for name, (own, backbone) in learned.WEIGHTS.items():
        contents = b"3" if name == "lpips" else b"5"
        begins = hashlib.sha256(contents).hexdigest()[:8]
        own = f"{name}-{begins}.pth" if own.endswith(".pth") else own
        (weights / own).write_bytes(contents)
        if backbone:
            backbone = f"{name}-net-{hashlib.sha256(b'net').hexdigest()[:8]}.pth"
            (weights / backbone).write_bytes(b"net")
        files[name] = Files(own, backbone)
    monkeypatch.setattr(learned, "WEIGHTS", files)

    class Metric:
        def __init__(self, name, factor):
            self.metric_mode, self.lower_better, self.factor = ("NR" if name == "niqe" else "FR"), True, factor

        def __call__(self, target, ref=None):
            assert target.shape[:2] == (1, 3)
            assert target.dtype == torch.float32
            assert 0 <= float(target.min()) <= float(target.max()) <= 1
            assert (ref is None) == (self.metric_mode == "NR")
            return self.factor * (target - (0 if ref is None else ref)).abs().mean()[None]

    def create_metric(metric_name, as_loss=False, device=None, **kwargs):
        print("Loading pretrained model")
        own = Path(kwargs["pretrained_model_path"])
        if files[metric_name].backbone:  # as torchvision does
            url = f"https://download.pytorch.org/models/{files[metric_name].backbone}"
            cached = Path(torch.hub.get_dir(), "checkpoints", files[metric_name].backbone)
            if not cached.exists():
                torch.hub.download_url_to_file(url, str(cached))
        return Metric(metric_name, int(own.read_text()))

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    return weights


def test_metrics_of_pyiqa_stand_beside_the_protocols(pair, stand_in, cli):
    ours, gt = pair
    asked = ("score", "--output", str(ours), "--target", str(gt), "--protocol", "rgb", "--weights", str(stand_in))
    code, out, err = cli(*asked, "--metric", "lpips", "--metric", "niqe")
    assert code == 0, err
    a, b = (np.stack([planes(folder, key) for key in ("a", "b2", "b10", "sub/c")]) for folder in (ours, gt))
    away = 3 * np.abs(a - b).mean(axis=(1, 2, 3))
    lines = out.splitlines()
    assert lines[-4:-2] == [
        f"{ours} (4 images, lpips by pyiqa, lower is better)",
        f"  {'lpips':<46} {f'{away.mean():.4f} ± {margin(list(away)):.4f}':>17}",
    ]
    assert float(lines[-1].split()[1]) == pytest.approx(5 * a.mean(), abs=1e-4)
    assert "Loading" not in out
    found = score_images(ours, gt, names=["rgb"], perceptual=perceptual(["lpips"], stand_in))
    assert [each["lpips"]["lpips"] for each in found["each"].values()] == pytest.approx(list(away), rel=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_without_pyiqa_or_with_one_that_cannot_be_imported_a_line_says_what_to_install(
    pair, stand_in, monkeypatch, cli
):
    ours, gt = pair
    asked = ("score", "--output", str(ours), "--target", str(gt), "--metric", "lpips", "--weights", str(stand_in))
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    code, _, err = cli(*asked)
    assert (code, err.count("\n")) == (1, 1)
    assert "pip install 'memoir[iqa]'" in err
    torch_release = torch.__version__.partition("+")[0]
    assert f"with the torchvision of torch {torch_release}" in err
    assert cli(*asked[:5], "--protocol", "rgb")[0] == 0  # and nothing else needs it


@pytest.mark.parametrize(
    ("change", "names", "says"),
    [
        (None, ["lipps"], "no metric 'lipps'; did you mean 'lpips'"),
        (
            lambda folder: (folder / "niqe_modelparameters.mat").unlink(),
            ["niqe"],
            "niqe_modelparameters.mat: not found",
        ),
        (
            lambda folder: next(folder.glob("lpips-[!n]*")).write_bytes(b"4"),
            ["lpips"],
            "its sha256 does not begin with",
        ),
        (lambda folder: next(folder.glob("lpips-net*")).write_bytes(b"4"), ["lpips"], "its sha256 does not begin with"),
        (lambda folder: next(folder.glob("dists-net*")).unlink(), ["dists"], "dists-net-.*: not found; dists take"),
    ],
)
def test_weights_that_are_missing_or_others_are_one_line(stand_in, change, names, says):
    if change:
        change(stand_in)
    with pytest.raises(UserError, match=says):
        perceptual(names, stand_in)


def test_metrics_need_a_folder_and_nothing_is_downloaded(stand_in, monkeypatch):
    with pytest.raises(UserError, match=r"lpips: give --weights, a folder that holds lpips-.*, lpips-net-"):
        perceptual(["lpips"], None)
    asked_before = torch.hub.get_dir(), torch.hub.urlopen
    monkeypatch.setitem(learned.WEIGHTS, "lpips", Files(learned.WEIGHTS["lpips"].own, None))
    create = sys.modules["pyiqa"].create_metric

    def another(name, **kwargs):
        torch.hub.download_url_to_file("https://download.pytorch.org/models/resnet18-f37072fd.pth", "/dev/null")
        return create(name, **kwargs)

    monkeypatch.setattr(sys.modules["pyiqa"], "create_metric", another)
    with pytest.raises(
        UserError, match=r"resnet18-f37072fd\.pth: not in .*weights, and nothing is downloaded; bring it"
    ):
        perceptual(["lpips"], stand_in)
    assert (torch.hub.get_dir(), torch.hub.urlopen) == asked_before


def test_a_figure_that_is_not_finite_is_named(pair, stand_in, monkeypatch):
    (metric,) = perceptual(["niqe"], stand_in)
    metric._measure.factor = float("nan")
    with pytest.raises(UserError, match=r"a\.png: niqe gives nan"):
        score_images(*pair, names=["rgb"], perceptual=[metric])
