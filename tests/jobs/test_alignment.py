import cv2
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from jobs.evaluation.alignment import Aligned, aligned, masked_psnr, masked_ssim
from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.protocols import REALBLUR, RGB, score
from jobs.recipe import BenchmarkRun
from pipeline.errors import UserError
from pipeline.images import write_image

SIZE = (240, 180)  # width, height


def scene(seed: int = 0) -> np.ndarray:
    """Smooth colours with structure in every direction, so that bicubic interpolation loses next to nothing of them."""
    coarse = np.random.default_rng(seed).uniform(0.1, 0.9, (18, 24, 3))
    return cv2.GaussianBlur(cv2.resize(coarse, SIZE, interpolation=cv2.INTER_CUBIC), (0, 0), 2).clip(0, 1)


def seen_through(homography: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The image whose pixel at p is that of `image` at homography @ p; OpenCV 5.0 warps float64 wrongly at the border."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image.astype(np.float32), homography, SIZE, flags=flags, borderMode=cv2.BORDER_REFLECT)


@settings(max_examples=5, deadline=None, phases=[Phase.generate])
@given(
    shift=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    linear=st.tuples(*[st.floats(-0.01, 0.01)] * 4),
    gain=st.floats(0.6, 1.1),
)
def test_an_output_that_is_moved_and_darkened_scores_as_if_it_were_not(shift, linear, gain):
    target = scene()
    homography = np.array(
        [[1 + linear[0], linear[1], shift[0]], [linear[2], 1 + linear[3], shift[1]], [1e-5, -1e-5, 1]]
    )
    found = aligned(gain * seen_through(homography, target), target)
    assert masked_psnr(found) > 31  # ECC stops within a few hundredths of a pixel
    assert masked_ssim(found) > 0.97


def test_without_alignment_such_an_output_would_score_low():
    target = scene()
    output = seen_through(np.array([[1, 0, 4.0], [0, 1, -3.0], [0, 0, 1]]), target)
    assert score(RGB, output, target).values["psnr"] < 22 < 31 < score(REALBLUR, output, target).values["psnr"]


def test_pixels_that_the_moved_output_does_not_cover_do_not_count():
    target = scene(1)
    found = aligned(seen_through(np.array([[1, 0, 6.0], [0, 1, 0], [0, 0, 1]]), target), target)
    # what lay in the first 6 columns of the target is not in the output
    assert found.mask[:, :4].max() == 0
    assert found.mask[:, 8:].min() == 1
    assert (found.output[found.mask == 0] == 0).all()
    assert (found.target[found.mask == 0] == 0).all()
    assert masked_psnr(found) > 31


def images(seed: int = 0) -> Aligned:
    rng = np.random.default_rng(seed)
    mask = (rng.random((30, 40)) > 0.3).astype(np.float32)
    a, b = (rng.random((30, 40, 3)).astype(np.float32) * mask[..., None] for _ in range(2))
    return Aligned(a, b, mask)


def test_the_error_is_over_the_pixels_of_the_mask():
    given = images()
    inside = given.mask.astype(bool)
    mse = np.mean(np.square(given.output[inside].astype(float) - given.target[inside]))
    assert masked_psnr(given) == pytest.approx(-10 * np.log10(mse), abs=1e-9)
    assert masked_psnr(given._replace(output=given.target)) == np.inf


def test_the_similarity_is_that_of_mprnets_script():
    """structural_similarity's map with a range of 1, times the mask, without 5 pixels at the border, by channel."""
    given = images(1)
    _, index = structural_similarity(
        given.target.astype(float), given.output.astype(float), channel_axis=2, gaussian_weights=True,
        use_sample_covariance=False, data_range=1.0, full=True,
    )  # fmt: skip
    cube = np.repeat(given.mask[..., None], 3, axis=2)
    each = (index * cube)[5:-5, 5:-5].sum(axis=(0, 1)) / cube[5:-5, 5:-5].sum(axis=(0, 1))
    assert masked_ssim(given) == pytest.approx(each.mean(), abs=1e-9)


def test_the_gain_is_one_for_all_channels_and_fits_best():
    target = scene(2)
    tinted = target * np.array([0.5, 0.5, 0.7])
    found = aligned(tinted, target)
    best = min(np.linspace(1, 3, 2001), key=lambda gain: np.square(gain * tinted - target).sum())
    assert np.median(found.output / np.maximum(tinted, 1e-6)) == pytest.approx(best, abs=2e-3)


@pytest.mark.parametrize("output", [np.zeros((180, 240, 3)), np.full((180, 240, 3), 0.5), 1 - scene()])
def test_an_output_with_nothing_of_the_target_is_one_line(output):
    with pytest.raises(UserError, match="cannot be aligned with its target") as error:
        score(REALBLUR, output, scene())
    assert "\n" not in str(error.value)


def test_a_protocol_with_alignment_says_so():
    assert str(REALBLUR) == (
        "realblur@1 (colour=RGB border=none rounding=uint8 ssim=wang2004 alignment=gain,ecc)"
    )  # fmt: skip


def test_the_benchmark_of_realblur_finds_the_pairs_of_its_test_list(tmp_path):
    root = tmp_path / "RealBlur"
    folder = "RealBlur-J_ECC_IMCORR_centroid_itensity_ref"
    for n in (1, 2):
        sharp = scene(n)
        moved = seen_through(np.array([[1, 0, n], [0, 1, -n], [0, 0, 1.0]]), sharp)
        write_image(root / f"{folder}/scene00{n}/gt/gt_1.png", np.rint(255 * sharp).astype(np.uint8))
        write_image(root / f"{folder}/scene00{n}/blur/blur_1.png", np.rint(255 * moved.clip(0, 1)).astype(np.uint8))
    (root / "RealBlur_J_test_list.txt").write_text(
        f"{folder}/scene002/gt/gt_1.png {folder}/scene002/blur/blur_1.png \n"
    )
    run = BenchmarkRun(benchmark="pairs-realblur", data=str(root), layout="realblur:J")
    row = evaluate("identity", run, tmp_path)
    assert (row["dataset"], row["images"], row["protocol"]) == ("RealBlur-J", 1, str(REALBLUR))
    assert row["psnr"] > 31
