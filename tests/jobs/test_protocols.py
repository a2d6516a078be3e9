import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from scipy.ndimage import uniform_filter
from skimage.color import rgb2xyz, xyz2lab
from skimage.metrics import structural_similarity

from jobs.evaluation.benchmark import Pair, benchmark
from jobs.evaluation.metrics import METRICS, measured, psnr, srgb2lab, ssim, ssim_3d, ssim_downsampled, table
from jobs.evaluation.protocols import (
    GRAY_FLOAT,
    ISTD,
    PAIRS,
    RGB,
    RGB_FLOAT,
    Y_MATLAB,
    Y_RAINDROP,
    Y_RCD,
    Y_RGB,
    Score,
    mean,
    score,
)
from jobs.evaluation.published import beside
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.scale import imresize
from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.images import SUFFIXES, UnusableImageError, read_image

FOLDERS = {
    "Classic5": "Classic5",
    "LIVE1": "LIVE1_gray",
    "Set5": "Set5",
    "Set14": "Set14",
    "BSD100": "BSDS500/data/images/val",
    "Urban100": "Urban100",
}


def photograph(height: int = 40, width: int = 50, channels: int = 3, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [120 + 60 * np.sin(x / (7 + c)) + 50 * np.cos(y / (5 + c)) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 6, (height, width, channels))
    return (np.stack(planes, axis=-1) + noise).clip(0, 255).astype(np.uint8)


# the published baselines: the degraded input, scored by itself


BASELINES = [row for row, methods in beside().items() if methods.keys() & {"JPEG", "Bicubic"}]


@pytest.mark.parametrize(("dataset", "name"), BASELINES)
def test_the_degraded_input_scores_what_was_published(dataset, name):
    root = os.environ.get("MEMOIR_DATA")
    folder = FOLDERS.get(dataset, dataset)
    if not root or not Path(root, folder).is_dir():
        pytest.skip(f"needs {folder} in the folder named by MEMOIR_DATA")
    files = [file for file in sorted(Path(root, folder).iterdir()) if file.suffix in SUFFIXES]
    column = benchmark(name)
    scores = []
    for file in files:
        image = read_image(file)[0]
        for pair in column.prepare(image):
            # the published rows fit a bicubic Y clipped to its range of 16..235, which tells in the white of Set14's ppt3
            studio = column.kind == "sr" and image.shape[2] == 3
            scores.append(column.score(pair.lq.clip(16 / 255, 235 / 255) if studio else pair.lq, pair))
    found = mean(scores).values
    published_psnr, published_ssim = next(iter(beside()[dataset, name].values()))
    assert found["psnr"] == pytest.approx(published_psnr, abs=0.01)
    assert found["ssim"] == pytest.approx(published_ssim, abs=0.0005 if column.kind == "jpeg" else 0.00015)


# the measures


def test_psnr_is_on_the_scale_of_8_bits():
    black = np.zeros((12, 12, 1))
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 1) == pytest.approx(20 * math.log10(255))
    whole = np.array([[0, 255]], np.uint8)
    assert psnr(whole, whole[:, ::-1]) == pytest.approx(0)  # no wrap-around of uint8
    with pytest.raises(ValueError, match="cannot compare"):
        psnr(black, black[:1])


def test_identical_images_have_an_infinite_psnr_that_json_shows_as_null():
    image = photograph(channels=1) / 255
    same = score(GRAY_FLOAT, image, image)
    assert same.values["psnr"] == math.inf
    assert same.values["ssim"] == pytest.approx(1, abs=1e-12)
    assert mean([same, Score({"psnr": 30.0, "ssim": 0.9})]).values["psnr"] == math.inf
    assert json.loads(json.dumps(same.json(), allow_nan=False))["psnr"] is None
    assert Score({"psnr": 30.0, "ssim": 0.9}).json() == {"psnr": 30.0, "ssim": 0.9}


@pytest.mark.parametrize("shape", [(11, 11), (12, 30), (40, 50)])
def test_ssim_equals_an_independent_implementation(shape):
    a = photograph(*shape, channels=1)[..., 0].astype(float)
    b = photograph(*shape, channels=1, seed=1)[..., 0] * 0.9
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-10)
    assert ssim(a[..., None], b[..., None]) == ssim(a, b)


def test_ssim_refuses_colour_and_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="two planes"):
        ssim(photograph(), photograph())
    with pytest.raises(UnusableImageError, match="30x10 pixels to score, SSIM needs 11x11"):
        ssim(np.zeros((10, 30)), np.zeros((10, 30)))


# the protocols


def test_y_matlab_rounds_clips_and_cuts_the_border():
    target = photograph(30, 30, 1) / 255
    output = target + 0.4 / 255
    output[:3], output[-3:], output[:, :3], output[:, -3:] = 0, 1, 0, 1
    assert score(Y_MATLAB, output, target, scale=3).values["psnr"] == math.inf
    assert score(Y_MATLAB, output, target, scale=2).values["psnr"] < 40
    white = np.ones((30, 30, 1))
    assert score(Y_MATLAB, white + 0.2, white, scale=2).values["psnr"] == math.inf


def test_gray_float_neither_rounds_nor_clips_nor_cuts():
    white = np.ones((30, 30, 1))
    assert score(GRAY_FLOAT, white + 0.1 / 255, white).values["psnr"] == pytest.approx(20 * math.log10(255 / 0.1))
    corner = white.copy()
    corner[0, 0] = 0
    assert score(GRAY_FLOAT, corner, white).values["psnr"] == pytest.approx(10 * math.log10(900))


def test_a_protocol_prints_the_same_line_for_ever():
    assert str(Y_MATLAB) == "y-matlab@1 (colour=Y border=scale rounding=uint8 ssim=wang2004)"
    assert str(GRAY_FLOAT) == "gray-float@1 (colour=grey border=none rounding=none ssim=wang2004)"
    assert str(Y_RCD) == "y-rcd@1 (colour=float Y of RGB border=none rounding=uint8 ssim=wang2004-downsampled)"
    assert str(RGB) == "rgb@2 (colour=RGB border=none rounding=uint8 ssim=wang2004,matlab3d)"
    assert str(ISTD) == (
        "istd@1 (colour=RGB border=none rounding=uint8 ssim=wang2004,matlab3d regions=shadow size=480x640,256x256)"
    )


@pytest.mark.parametrize("protocol", [Y_MATLAB, GRAY_FLOAT])
def test_a_diverged_model_gets_no_score(protocol):
    target = photograph(30, 30, 1) / 255
    output = target.copy()
    output[15, 15] = math.nan
    with pytest.raises(UserError, match="diverged"):
        score(protocol, output, target)


def test_a_score_needs_two_planes_of_one_size():
    plane = photograph(30, 30, 1) / 255
    for output, target in (
        (plane, plane[1:]),
        (plane[..., 0], plane[..., 0]),
        (photograph() / 255, photograph() / 255),
    ):
        with pytest.raises(ValueError, match=r"\(H, W, 1\)"):
            score(GRAY_FLOAT, output, target)


# the benchmarks


@pytest.mark.parametrize(
    ("name", "kind", "level", "protocol"),
    [
        ("jpeg-q1", "jpeg", 1, GRAY_FLOAT),
        ("jpeg-q10", "jpeg", 10, GRAY_FLOAT),
        ("jpeg-q100", "jpeg", 100, GRAY_FLOAT),
        ("sr-x3", "sr", 3, Y_MATLAB),
        ("noise-50", "noise", 50, GRAY_FLOAT),
        ("noise-0.5", "noise", 0.5, GRAY_FLOAT),
        ("noise-12.25", "noise", 12.25, GRAY_FLOAT),
    ],
)
def test_a_name_says_kind_level_and_protocol(name, kind, level, protocol):
    found = benchmark(name)
    assert (found.name, found.kind, found.level, found.protocol) == (name, kind, level, protocol)


@pytest.mark.parametrize(
    "name",
    ["", "jpeg-q0", "jpeg-q101", "jpeg-q010", "jpeg-q10 ", "sr-x5", "noise-0", "noise-030", "noise-30.0", "noise-"],
)
def test_an_unknown_name_is_refused_in_one_line_that_lists_the_known(name):
    with pytest.raises(UserError, match=r"known: .*jpeg-q10.*sr-x2") as caught:
        benchmark(name)
    assert "\n" not in str(caught.value)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'sr-x3'"):
        benchmark("sr_x3")


@pytest.mark.parametrize("name", ["jpeg-q10", "sr-x3", "noise-30"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pairs_are_float_planes_of_one_size(name, channels):
    pairs = benchmark(name).prepare(photograph(40, 50, channels))
    assert len(pairs) == (3 if name.startswith("noise") else 1)
    for pair in pairs:
        lq, gt, _ = pair
        assert lq.dtype == gt.dtype == np.float32
        assert lq.shape == gt.shape == ((39, 48, 1) if name == "sr-x3" else (40, 50, 1))
        assert gt.min() >= 0
        assert gt.max() <= 1
        assert 10 < benchmark(name).score(lq, pair).values["psnr"] < 45


@pytest.mark.parametrize(
    ("name", "convert"), [("jpeg-q20", rgb2ycbcr_y), ("sr-x2", rgb2ycbcr_y), ("noise-30", rgb2gray)]
)
def test_each_benchmark_takes_its_own_plane_of_a_colour_image(name, convert):
    image = photograph()
    for _, gt, _ in benchmark(name).prepare(image):
        np.testing.assert_allclose(gt * 255, convert(image), atol=1e-4)
    grey = photograph(channels=1)
    for _, gt, _ in benchmark(name).prepare(grey):
        np.testing.assert_allclose(gt * 255, grey, atol=1e-4)


def test_the_jpeg_input_is_the_coded_plane():
    image = photograph()
    ((lq, _, _),) = benchmark("jpeg-q20").prepare(image)
    np.testing.assert_allclose(lq * 255, jpeg(rgb2ycbcr_y(image), 20), atol=1e-4)


def test_the_super_resolution_input_is_not_rounded():
    ((lq, _, _),) = benchmark("sr-x2").prepare(photograph())
    levels = lq * 255
    assert np.abs(levels - levels.round()).mean() > 0.2


def test_noise_is_drawn_three_times_and_the_same_for_the_same_pixels():
    column = benchmark("noise-50")
    first = [pair.lq for pair in column.prepare(photograph())]
    again = [pair.lq for pair in column.prepare(photograph())]
    for i in range(3):
        np.testing.assert_array_equal(first[i], again[i])
        assert (first[i] - photograph_grey()).std() == pytest.approx(50 / 255, rel=0.1)
        assert (first[i] != first[(i + 1) % 3]).all()
    other = column.prepare(photograph(seed=1))[0].lq
    assert np.corrcoef((first[0] - photograph_grey()).ravel(), (other - photograph_grey(seed=1)).ravel())[0, 1] < 0.2


def photograph_grey(seed: int = 0) -> np.ndarray:
    return rgb2gray(photograph(seed=seed)) / 255


def test_the_border_of_super_resolution_is_its_factor():
    column = benchmark("sr-x4")
    (pair,) = column.prepare(photograph())
    output = pair.gt.copy()
    output[:4], output[:, -4:] = 0, 0
    assert column.score(output, pair).values["psnr"] == math.inf
    output[4, 4] = 0
    assert column.score(output, pair).values["psnr"] < math.inf


def test_images_too_small_for_a_benchmark_are_named():
    with pytest.raises(UnusableImageError, match="3x50 pixels, smaller than the scale factor 4"):
        benchmark("sr-x4").prepare(photograph(50, 3))
    column = benchmark("sr-x4")
    (pair,) = column.prepare(photograph(16, 50))
    with pytest.raises(UnusableImageError, match="40x8 pixels to score"):
        column.score(pair.lq, pair)
    (pair,) = column.prepare(photograph(5, 50))
    with pytest.raises(UnusableImageError, match="40x0 pixels to score"):
        column.score(pair.lq, pair)


def test_a_mean_is_over_each_figure():
    average = mean([Score({"psnr": 30.0, "ssim": 0.9}), Score({"psnr": 32.0, "ssim": 0.8})])
    assert average.values == pytest.approx({"psnr": 31, "ssim": 0.85})
    assert average.weights == {}


def test_a_mean_per_pixel_is_over_the_pixels_of_all_images():
    names = ("lab_mae_pi_480", "lab_mae_pp_256")
    scores = [
        Score(dict.fromkeys(names, value), {"lab_mae_pp_256": pixels}) for value, pixels in ((2.0, 300), (6.0, 100))
    ]
    average = mean(scores)
    assert average.values == pytest.approx({"lab_mae_pi_480": 4, "lab_mae_pp_256": 3})
    assert mean([average, Score(dict.fromkeys(names, 3.0), {"lab_mae_pp_256": 1600})]).values["lab_mae_pp_256"] == 3


def test_protocols_need_neither_ray_nor_dvc_nor_boto3_nor_torch():
    check = "import sys, jobs.evaluation.protocols; print([m for m in ('ray', 'dvc', 'boto3', 'torch') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_half_size_noise_is_added_after_the_shrinking() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    for pair in benchmark("noise-50-half").prepare(image):
        assert pair.gt.shape == (20, 30, 1)
        assert np.array_equal(np.rint(pair.gt * 255).astype(np.uint8), rgb2gray(imresize(image, scale=0.5)))
        assert 40 < np.std(255 * (pair.lq - pair.gt)) < 60


# what MATLAB, RCDNet and DeRaindrop measure


@pytest.mark.parametrize("shape", [(11, 11), (20, 33)])
def test_the_ssim_of_three_dimensions_equals_the_plain_convolution_with_a_cube(shape):
    a, b = photograph(*shape), photograph(*shape, seed=1) // 2 + 60
    axis = torch.arange(-5, 6, dtype=torch.float64)
    squares = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    cube = torch.exp(-squares / (2 * 1.5**2))
    cube /= cube.sum()

    def means(volume: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(volume[None, None], (5,) * 6, mode="replicate")
        return torch.nn.functional.conv3d(padded, cube[None, None])

    x, y = (torch.from_numpy(image).double() for image in (a, b))
    var_x, var_y = means(x * x) - means(x) ** 2, means(y * y) - means(y) ** 2
    index = (2 * means(x) * means(y) + 6.5025) * (2 * (means(x * y) - means(x) * means(y)) + 58.5225)
    index /= (means(x) ** 2 + means(y) ** 2 + 6.5025) * (var_x + var_y + 58.5225)
    assert ssim_3d(a, b) == pytest.approx(float(index.mean()), abs=1e-12)
    assert abs(ssim_3d(a, b) - score(RGB, a / 255, b / 255).values["ssim"]) > 0.001


def test_an_rgb_score_has_both_kinds_of_ssim():
    a, b = photograph() / 255, photograph(seed=1) / 255
    values = score(RGB, a, b).values
    whole = [np.floor(255 * image + 0.5) for image in (a, b)]
    assert values["ssim_3d"] == ssim_3d(*whole)
    assert values["ssim"] == pytest.approx(np.mean([ssim(whole[0][..., c], whole[1][..., c]) for c in range(3)]))


def test_blocks_of_sidd_are_clipped_and_not_rounded():
    target = np.full((16, 16, 3), 100.2 / 255)
    target[0] = 1.0
    output = target.copy()
    output[0] = 1.5
    output[1, 0, 0] += 0.1 / 255
    expected = 10 * math.log10(255**2 / (0.1**2 / (16 * 16 * 3)))
    assert score(RGB_FLOAT, output, target).values["psnr"] == pytest.approx(expected)
    assert score(RGB, output, target).values["psnr"] == math.inf


def test_the_luma_of_rcdnet_is_not_rounded_and_that_of_mprnet_is():
    black, nearly = np.zeros((16, 16, 3)), np.zeros((16, 16, 3))
    nearly[..., 2] = 1 / 255  # blue by one level is 0.098 of Y
    assert score(Y_RCD, nearly, black).values["psnr"] == pytest.approx(20 * math.log10(255 / (24.966 / 255)))
    assert score(Y_RGB, nearly, black).values["psnr"] == math.inf
    white = np.ones((16, 16, 3))
    assert score(Y_RCD, white, black).values["psnr"] == pytest.approx(20 * math.log10(255 / 219))
    assert score(Y_RCD, white - 0.1 / 255, white).values["psnr"] == math.inf  # of the image that is saved


@pytest.mark.parametrize(
    ("height", "width", "f"), [(100, 90, 1), (383, 500, 1), (384, 500, 2), (513, 700, 2), (640, 650, 3)]
)
def test_large_images_are_shrunk_before_ssim(height, width, f):
    a, b = photograph(height, width, 1), photograph(height, width, 1, seed=1)

    def shrunk(image: np.ndarray) -> np.ndarray:
        before, after = (f - 1) // 2, f // 2  # MATLAB's window of even length reaches further down than up
        padded = np.pad(image[..., 0].astype(float), (before, after), mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (f, f))
        return windows.mean((2, 3))[::f, ::f]

    assert ssim_downsampled(a, b) == pytest.approx(ssim(shrunk(a), shrunk(b)), abs=1e-12)
    if f == 2 and height % 2 == width % 2 == 0:
        blocks = [image[..., 0].reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for image in (a, b)]
        assert ssim_downsampled(a, b) == pytest.approx(ssim(*blocks), abs=1e-12)
    assert (ssim_downsampled(a, b) == pytest.approx(ssim(a, b), abs=1e-9)) == (f == 1)


def test_raindrops_are_scored_on_the_full_range_with_uniform_windows():
    a, b = photograph(32, 40), photograph(32, 40, seed=1)
    x, y = (np.floor(image @ [0.299, 0.587, 0.114] + 0.5) for image in (a, b))
    values = score(Y_RAINDROP, a / 255, b / 255).values
    assert values["psnr"] == pytest.approx(psnr(x, y), abs=0.02)  # OpenCV's weights are of 14 bits
    size, n = 7, 49

    def means(plane: np.ndarray) -> np.ndarray:
        return uniform_filter(plane, size)[3:-3, 3:-3]

    var_x, var_y = (n / (n - 1) * (means(z * z) - means(z) ** 2) for z in (x, y))
    covariance = n / (n - 1) * (means(x * y) - means(x) * means(y))
    index = (2 * means(x) * means(y) + 6.5025) * (2 * covariance + 58.5225)
    index /= (means(x) ** 2 + means(y) ** 2 + 6.5025) * (var_x + var_y + 58.5225)
    assert values["ssim"] == pytest.approx(index.mean(), abs=2e-4)


def test_raindrop_images_are_cut_to_multiples_of_four():
    image = photograph(43, 50)
    pair = benchmark("pairs-y-raindrop").pair(image, image)
    assert pair.lq.shape == pair.gt.shape == (40, 48, 3)
    assert np.array_equal(np.rint(pair.gt * 255), image[:40, :48])
    assert benchmark("pairs-y-rcd").pair(image, image).lq.shape == (43, 50, 3)


# shadows


def colours() -> np.ndarray:
    levels = np.array([0, 1, 9, 10, 11, 40, 100, 128, 200, 254, 255], np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 11, 3)


def test_lab_is_that_of_colours_adapted_to_d50():
    # Bradford's transform of XYZ from D65 to D50, built from its definition
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65, d50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])
    adapt = np.linalg.inv(cones) @ np.diag(cones @ d50 / (cones @ d65)) @ cones
    xyz = rgb2xyz(colours() / 255) @ adapt.T
    # xyz2lab divides by a D50 of its own
    own_d50 = np.array([0.9642956660812443, 1.0, 0.8251045485672053])
    assert np.abs(srgb2lab(colours()) - xyz2lab(xyz / d50 * own_d50, illuminant="D50")).max() < 0.06


def test_lab_equals_a_colour_management_systems_to_8_bits():
    srgb, cielab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")  # of D50
    transform = ImageCms.buildTransform(srgb, cielab, "RGB", "LAB", flags=ImageCms.Flags.NOOPTIMIZE)
    coded = np.asarray(ImageCms.applyTransform(Image.fromarray(colours()), transform)).astype(float)
    coded[..., 1:] = np.where(coded[..., 1:] > 127, coded[..., 1:] - 256, coded[..., 1:])  # two's complement
    lab = srgb2lab(colours())
    assert np.abs(lab[..., 0] - coded[..., 0] * 100 / 255).max() < 0.5 * 100 / 255 + 0.01
    assert np.abs(lab[..., 1:] - coded[..., 1:]).max() < 0.5 + 0.02


def test_lab_of_greys_can_be_worked_out_by_hand():
    greys = np.array([0, 119, 255], np.uint8)[None, :, None].repeat(3, axis=2)
    lab = srgb2lab(greys)[0]
    assert lab[:, 0] == pytest.approx([0, 50.03, 100], abs=0.01)  # 119: ((119/255 + .055)/1.055)^2.4 = .18448
    assert np.abs(lab[:, 1:]).max() < 0.03


def frame(level: int) -> np.ndarray:
    return np.full((480, 640, 3), level / 255)


def half_mask() -> np.ndarray:
    mask = np.zeros((480, 640, 1), np.uint8)
    mask[:, :160] = 255  # a quarter, in whole blocks of the smaller size
    return mask


def test_the_errors_of_a_shadow_by_hand():
    output, target = frame(119), frame(119)
    output[:, :160] = 0  # black where L is 50.03
    values = score(ISTD, output, target, mask=half_mask()).values
    L = 50.03
    assert list(values) == [metric.name for metric in ISTD.metrics]
    for name, all_, shadow in (
        ("lab_rmse_pi_480", math.sqrt(L**2 / 4), L),
        ("lab_mae_pi_480", L / 4, L),
    ):
        assert [values[f"{name}{end}"] for end in ("", "_shadow", "_nonshadow")] == pytest.approx(
            [all_, shadow, 0], abs=0.03
        )
    # at 256x256 the edge is blurred over a pixel or two
    assert values["lab_mae_pp_256"] == pytest.approx(L / 4, rel=0.02)
    assert values["lab_mae_pp_256_shadow"] == pytest.approx(L, rel=0.05)
    # of the whole frame, with the region's error alone
    expected = 10 * math.log10(255**2 / (119**2 / 4))
    assert values["psnr"] == values["psnr_shadow"] == pytest.approx(expected)
    assert values["psnr_nonshadow"] == math.inf
    assert values["ssim_3d_nonshadow"] == pytest.approx(1, abs=1e-12)
    assert values["ssim_3d"] == pytest.approx(0.75, abs=0.02)  # black against grey is 0


def test_outside_its_region_a_psnr_sees_nothing():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (480, 640, 3)) / 255
    output = target.copy()
    output[:, 160:] = 0
    values = score(ISTD, output, target, mask=half_mask()).values
    assert values["psnr_shadow"] == math.inf
    assert values["lab_mae_pi_480_shadow"] == 0
    assert values["psnr_nonshadow"] == values["psnr"] < 10


def test_rmse_and_mae_in_lab_are_of_three_channels_summed():
    rng = np.random.default_rng(0)
    output, target = (rng.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(2))
    values = score(ISTD, output / 255, target / 255, mask=half_mask()).values
    difference = srgb2lab(output) - srgb2lab(target)
    assert values["lab_rmse_pi_480"] == pytest.approx(np.sqrt((difference**2).sum(2).mean()))
    assert values["lab_mae_pi_480"] == pytest.approx(np.abs(difference).sum(2).mean())
    assert values["lab_mae_pi_480_shadow"] == pytest.approx(np.abs(difference).sum(2)[:, :160].mean())
    for end in ("", "_shadow", "_nonshadow"):
        assert values[f"lab_rmse_pi_480{end}"] >= values[f"lab_mae_pi_480{end}"] / math.sqrt(3)
    small = [imresize(image, size=(256, 256)) for image in (output, target)]
    difference = np.abs(srgb2lab(small[0]) - srgb2lab(small[1])).sum(2)
    assert values["lab_mae_pp_256"] == pytest.approx(difference.mean())


def test_a_mean_per_pixel_weighs_by_the_shadow():
    large, small = half_mask(), np.zeros((480, 640, 1), np.uint8)
    small[:120, :160] = 255
    target = frame(119)
    dark, darker = (score(ISTD, frame(level), target, mask=mask) for level, mask in ((60, large), (0, small)))
    pixels = [score.weights["lab_mae_pp_256_shadow"] for score in (dark, darker)]
    assert pixels[0] == pytest.approx(256 * 64, rel=0.05)
    assert pixels[1] == pytest.approx(64 * 64, rel=0.1)
    average = mean([dark, darker]).values
    each = [score.values["lab_mae_pp_256_shadow"] for score in (dark, darker)]
    assert average["lab_mae_pp_256_shadow"] == pytest.approx(np.average(each, weights=pixels))
    assert average["lab_mae_pi_480_shadow"] == pytest.approx(np.mean(each), rel=1e-6)
    assert average["lab_mae_pp_256"] == pytest.approx(np.mean(each), rel=1e-6)  # every image has as many pixels


def test_images_of_another_size_are_resized_for_the_shadow():
    rng = np.random.default_rng(0)
    output, target = (rng.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(2))
    mask = np.zeros((120, 160, 1), np.uint8)
    mask[30:60, 30:90] = 1  # not 0 is in it, whatever the level
    values = score(ISTD, output / 255, target / 255, mask=mask * 255).values
    a, b = (imresize(image, size=(480, 640)) for image in (output, target))
    shadow = imresize(mask * 255, size=(480, 640))[..., 0] > 0
    expected = np.abs(srgb2lab(a) - srgb2lab(b)).sum(2)[shadow].mean()
    assert values["lab_mae_pi_480_shadow"] == pytest.approx(expected)
    assert values["psnr"] == pytest.approx(psnr(a, b))


def test_a_mask_that_divides_nothing_is_named():
    for level, says in ((0, "no shadow"), (255, "nothing but shadow")):
        with pytest.raises(UnusableImageError, match=f"its mask shows {says}"):
            score(ISTD, frame(10), frame(20), mask=np.full((480, 640, 1), level, np.uint8))
    with pytest.raises(ValueError, match="istd needs a mask"):
        score(ISTD, frame(10), frame(20))


# tables


@pytest.mark.parametrize("protocol", [Y_MATLAB, GRAY_FLOAT, *PAIRS.values()], ids=lambda protocol: protocol.name)
def test_a_protocol_gives_the_metrics_that_it_declares(protocol):
    image = photograph(40, 48, 3 if protocol.colour.endswith("RGB") else 1) / 255
    mask = np.zeros((40, 48, 1), np.uint8)
    mask[:10] = 255
    values = score(protocol, image * 0.9, image, mask=mask).values
    assert list(values) == [metric.name for metric in protocol.metrics]
    assert set(protocol.published) <= set(protocol.metrics)
    assert all(METRICS[metric.name] == metric for metric in protocol.metrics)
    worse = score(protocol, image * 0.5, image, mask=mask).values
    for metric in protocol.metrics:
        assert (worse[metric.name] < values[metric.name]) == (metric.better == "higher"), metric.name


def test_published_rows_have_no_more_figures_than_their_protocol_names():
    for (_, name), rows in beside().items():
        published = benchmark(name).protocol.published
        assert all(1 <= len(row) <= len(published) for row in rows.values())
    row = benchmark("pairs-istd").paper("ISTD-istd")
    assert row["MemoryNet"]["lab_rmse_pi_480"] == 6.03
    assert row["MemoryNet"]["lab_rmse_pi_480_shadow"] == 9.72
    assert "lab_rmse_pi_480" not in row["DHAN"]
    assert benchmark("pairs-rgb-tile256").paper("HIDE")["DRCNet"] == {"psnr": 31.08, "ssim_3d": 0.940}
    assert benchmark("pairs-rgb-float").paper("SIDD")["DRCNet"] == {"psnr": 40.08}


def test_a_row_of_scores_as_text():
    row = {
        "psnr": None,
        "lab_mae_pi_480_shadow": 5.126,
        "images": 3,
        "baseline": {"psnr": 20.0, "lab_mae_pi_480_shadow": 30.0},
        "paper": {"A": {"psnr": 28.0}, "B": {"psnr": 27.5, "ssim": 0.9}},
    }
    assert [metric.name for metric in measured(row)] == ["psnr", "lab_mae_pi_480_shadow"]
    assert table(row) == [
        ("PSNR (dB)", "20.00", "identical", "A 28.00, B 27.50"),
        ("Lab MAE pi 480, shadow (lower is better)", "30.00", "5.13", ""),
    ]


@pytest.mark.parametrize(
    ("name", "tile", "protocol"),
    [
        ("pairs-y", None, Y_RGB),
        ("pairs-y-tile256", 256, Y_RGB),
        ("pairs-y-tile16", 16, Y_RGB),
        ("pairs-y-rcd-tile64", 64, Y_RCD),
        ("pairs-istd-tile100", 100, ISTD),
        ("pairs-rgb-float", None, RGB_FLOAT),
    ],
)
def test_a_name_says_whether_the_model_sees_tiles(name, tile, protocol):
    found = benchmark(name)
    assert (found.name, found.tile, found.protocol) == (name, tile, protocol)
    assert found.column == name.split("-tile")[0]


@pytest.mark.parametrize(
    "name", ["pairs-y-tile0", "pairs-y-tile15", "pairs-y-tile", "pairs-y-tile256-tile256", "pairs-lab", "pairs-"]
)
def test_an_unknown_benchmark_of_pairs_is_refused(name):
    with pytest.raises(UserError, match=r"no benchmark .*pairs-istd"):
        benchmark(name)


def test_a_mask_has_the_size_of_its_images():
    image = photograph(20, 30)
    mask = np.zeros((20, 30, 3), np.uint8)
    mask[2, 3, 1] = 7
    pair = benchmark("pairs-istd").pair(image, image, mask)
    assert isinstance(pair, Pair)
    assert pair.mask is not None
    assert pair.mask.shape == (20, 30, 1)
    assert np.argwhere(pair.mask).tolist() == [[2, 3, 0]]
    with pytest.raises(UnusableImageError, match="30x20 and 30x20 and 30x19 pixels"):
        benchmark("pairs-istd").pair(image, image, mask[1:])


# 16 bits a channel


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["sr-x3", "noise-30", "noise-30-half", "pairs-rgb"])
def test_an_image_of_16_bits_is_prepared_in_16(name, channels):
    image = widened(photograph(channels=channels), 16) ^ np.uint16(77)
    which = benchmark(name)
    pairs = [which.pair(image, image)] if which.kind == "pairs" else which.prepare(image)
    for each in pairs:
        assert each.gt.dtype == np.float32
        levels = each.gt.astype(np.float64) * 65535
        assert np.abs(levels - np.rint(levels)).max() < 0.01
        assert (np.rint(levels) % 257 != 0).mean() > 0.9
    shallow = which.pair(*[photograph(channels=channels)] * 2) if which.kind == "pairs" else None
    if shallow:
        assert np.abs(pairs[0].gt - shallow.gt).max() < 1 / 255
        assert (which.pair(*[widened(photograph(channels=channels), 16)] * 2).gt == shallow.gt).all()


def test_a_benchmark_of_jpeg_refuses_16_bits_in_one_line():
    with pytest.raises(
        UnusableImageError, match=r"^16 bits a channel, and jpeg-q10 is of JPEG, which holds 8; convert"
    ):
        benchmark("jpeg-q10").prepare(np.zeros((20, 20, 1), np.uint16))


def test_the_shadow_of_a_mask_does_not_depend_on_its_bits():
    image, mask = photograph(), np.zeros((40, 50, 1), np.uint8)
    mask[10:30, 13:40] = 255
    which = benchmark("pairs-istd")
    narrow, wide = (which.pair(image, image, each) for each in (mask, widened(mask, 16)))
    assert wide.mask.dtype == np.uint8
    assert (wide.mask == narrow.mask).all()
