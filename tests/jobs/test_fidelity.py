import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate
from skimage.data import astronaut

from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.fsim import fsim, phase_congruency
from jobs.evaluation.metrics import psnr, ssim_3d
from jobs.evaluation.protocols import VIDEO, score
from jobs.evaluation.vif import EDGES, LOW, LOW_FIRST, vif
from jobs.recipe import BenchmarkRun
from pipeline.images import UnusableImageError, write_image


def photographs(height: int = 200, width: int = 260) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, and the same with less light and noise: whole levels as float64."""
    target = astronaut()[:200, :260].astype(float)
    output = (target * 0.9 + np.random.default_rng(0).normal(0, 12, target.shape)).clip(0, 255).round()
    return output[:height, :width], target[:height, :width]


def test_vif_is_that_of_vifvec():
    """The figures of a public port of vifvec.m, with its pyramid in C, at the three levels of the original."""
    output, target = photographs()
    found = [vif(output[..., c], target[..., c]) for c in range(3)]
    assert found == pytest.approx([0.4512216010820093, 0.46369708082736255, 0.44852226493039504], abs=1e-12)
    assert vif(output[:151, :203, 0], target[:151, :203, 0]) == pytest.approx(0.44380119317976713, abs=1e-12)


def plain_vif(output: np.ndarray, target: np.ndarray) -> float:
    """The paper's formulas block by block."""
    x, y = (correlate(plane, LOW_FIRST, mode="mirror") for plane in (target, output))
    kept = there = 0.0
    for window, skip in ((9, 2), (5, 1), (3, 1)):
        for edges in (EDGES, -EDGES.T):
            a, b = (correlate(plane, edges, mode="mirror") for plane in (x, y))
            h, w = (side // 3 for side in a.shape)
            a, b = a[: 3 * h, : 3 * w], b[: 3 * h, : 3 * w]
            blocks = [a[i : i + 3, j : j + 3].ravel() for i in range(3 * h - 2) for j in range(3 * w - 2)]
            covariance = np.cov(np.array(blocks).T, bias=True)
            r = window // 2
            p, q = (np.pad(band, r, mode="reflect") for band in (a, b))
            for i in range(skip, h - skip):
                for j in range(skip, w - skip):
                    rows, columns = slice(3 * i + 1, 3 * i + 1 + window), slice(3 * j + 1, 3 * j + 1 + window)
                    (sx, sxy), (_, sy) = np.cov(p[rows, columns].ravel(), q[rows, columns].ravel(), bias=True)
                    gain, error = (sxy / sx, sy - sxy**2 / sx) if sxy > 0 else (0.0, sy * window**2)
                    vector = a[3 * i : 3 * i + 3, 3 * j : 3 * j + 3].ravel()
                    strength = vector @ np.linalg.solve(covariance, vector) / 9
                    for each in np.linalg.eigvalsh(covariance):
                        kept += math.log2(1 + gain**2 * strength * each / (error + 0.4))
                        there += math.log2(1 + strength * each / 0.4)
        x, y = (correlate(plane, LOW, mode="mirror")[::2, ::2] for plane in (x, y))
    return kept / there


@settings(max_examples=5, deadline=None)
@given(st.integers(36, 70), st.integers(36, 70), st.integers(0, 9))
def test_vif_equals_its_formulas_worked_out_block_by_block(height, width, seed):
    rng = np.random.default_rng(seed)
    target = rng.normal(0, 1, (height, width)).cumsum(axis=0).cumsum(axis=1) + 20 * rng.random((height, width))
    output = 0.7 * target + rng.normal(0, 5, target.shape)
    output[: height // 2] *= -0.1  # a negative gain counts as none
    assert vif(output, target) == pytest.approx(plain_vif(output, target), rel=1e-8)


def test_vif_of_no_change_no_information_and_more_contrast():
    _, target = photographs()
    plane = target[..., 0]
    assert vif(plane, plane) == pytest.approx(1, abs=1e-9)
    assert vif(np.full_like(plane, 80), plane) == pytest.approx(0, abs=1e-9)
    assert vif(1.2 * plane, plane) > 1.01


@pytest.mark.parametrize("size", [(35, 60), (60, 35)])
def test_a_plane_too_small_for_the_pyramid_is_named(size):
    with pytest.raises(UnusableImageError, match=f"{size[1]}x{size[0]} pixels to score, VIF needs 36x36"):
        vif(np.zeros(size), np.zeros(size))


def test_a_target_without_structure_has_no_vif():
    with pytest.raises(UnusableImageError, match="no structure"):
        vif(np.zeros((40, 40)), np.full((40, 40), 7.0))


def test_fsim_is_that_of_another_implementation():
    """The figures of piq 0.8.0, whose colours have weights of more digits; the third image is shrunk first, by 2."""
    output, target = photographs()
    cases = [
        (output, target, 0.8903604064, 0.8801651486),
        (output[:199, :259], target[:199, :259], 0.8902436331, 0.8800340196),
        (np.tile(output, (3, 3, 1)), np.tile(target, (3, 3, 1)), 0.9691224482, 0.9661113308),
    ]
    for a, b, luma, colour in cases:
        found = fsim(a, b)
        assert found.fsim == pytest.approx(luma, abs=2e-6)
        assert found.fsimc == pytest.approx(colour, abs=4e-5)


def test_fsim_of_grey_images_has_no_colours_and_is_1_for_equal_ones():
    output, target = photographs(80, 90)
    grey = fsim(output[..., :1], target[..., :1])
    assert grey.fsim == grey.fsimc < 0.95
    assert fsim(np.repeat(output[..., :1], 3, 2), np.repeat(target[..., :1], 3, 2)).fsim == pytest.approx(grey.fsim)
    assert fsim(target, target) == pytest.approx((1, 1))
    flipped = target[..., ::-1]  # other colours, much the same edges
    assert fsim(flipped, target).fsimc < fsim(flipped, target).fsim - 0.01


def test_colours_that_are_opposed_keep_the_real_part_of_the_power():
    target = np.full((40, 40, 3), 120.0)
    target[10:30, 10:30] = (220, 100, 20)
    output = target.copy()
    output[10:30, 10:30] = (20, 140, 220)
    found = fsim(output, target)
    assert math.isfinite(found.fsimc)
    assert 0 < found.fsimc < found.fsim


def test_flat_images_have_no_fsim():
    with pytest.raises(UnusableImageError, match="nothing but flat areas"):
        fsim(np.zeros((20, 20, 1)), np.full((20, 20, 1), 9.0))


def test_phase_congruency_does_not_depend_on_contrast_and_is_high_at_edges():
    plane = np.full((64, 64), 60.0)
    plane[:, 20:44] = 180
    found = phase_congruency(plane)
    assert found[32, 20] > 0.8 > 0.2 > found[32, 10]
    assert phase_congruency(plane / 4) == pytest.approx(found, abs=1e-3)


# the protocol of the video table


def test_a_frame_has_the_figures_of_the_table_by_channel():
    output, target = (image / 255 for image in photographs(60, 70))
    target = target.copy()
    target[..., 2] *= 0.5  # its maximum, and not 255, is the peak of PSNR
    found = score(VIDEO, output, target).values
    a, b = (np.floor(255 * image + 0.5) for image in (output, target))
    each = [psnr(a[..., c], b[..., c]) - 20 * np.log10(255 / b[..., c].max()) for c in range(3)]
    assert found["psnr"] == pytest.approx(np.mean(each), abs=1e-9)
    assert found["vif"] == pytest.approx(np.mean([vif(a[..., c], b[..., c]) for c in range(3)]))
    assert (found["fsim"], found["fsimc"]) == fsim(a, b)
    assert found["ssim_3d"] == ssim_3d(a, b)
    assert list(found) == [metric.name for metric in VIDEO.metrics]
    assert [metric.name for metric in VIDEO.published] == ["psnr", "vif", "fsimc", "ssim_3d"]


def test_the_frames_of_clips_in_folders_are_scored_one_by_one(tmp_path):
    output, target = photographs(60, 70)
    for clip, gain in (("highway", 1.0), ("park", 0.8)):
        for n in (1, 2):
            write_image(tmp_path / f"test/gt/{clip}/{n}.png", (gain * target).astype(np.uint8))
            write_image(tmp_path / f"test/lq/{clip}/{n}.png", (gain * output).astype(np.uint8))
    run = BenchmarkRun(benchmark="pairs-video", data=str(tmp_path), layout="pairs")
    row = evaluate("identity", run, tmp_path)
    assert (row["images"], row["protocol"]) == (4, str(VIDEO))
    assert row["protocol"].startswith("video@1 (colour=RGB border=none rounding=uint8")
    assert 0 < row["vif"] < row["fsimc"] < 1
