import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.averages import dssim_reduction, over_sets, rmse_reduction

# Li et al., DRCNet, table 2: PSNR, its reduction in percent, SSIM, its reduction; on SIDD and DND
BRACKETS = {
    "DnCNN": ((23.66, 84.90, 0.583, 93.29), (32.43, 57.44, 0.790, 79.05)),
    "MLP": ((24.71, 82.96, 0.641, 92.20), (34.23, 47.64, 0.833, 73.65)),
    "BM3D": ((25.65, 81.01, 0.685, 91.11), (34.51, 45.93, 0.851, 70.47)),
    "CBDNet": ((30.78, 65.72, 0.801, 85.93), (38.06, 18.62, 0.942, 24.14)),
    "RIDNet": ((38.71, 14.59, 0.951, 42.86), (39.26, 6.57, 0.953, 6.38)),
    "AINDNet": ((38.95, 12.20, 0.952, 41.67), (39.37, 5.38, 0.951, 10.20)),
    "VDN": ((39.28, 8.80, 0.956, 36.36), (39.38, 5.27, 0.952, 8.33)),
    "SADNet": ((39.46, 6.89, 0.957, 34.88), (39.59, 2.95, 0.952, 8.33)),
    "DANet+": ((39.47, 6.78, 0.957, 34.88), (39.58, 3.06, 0.955, 2.22)),
    "CycleISP": ((39.52, 6.25, 0.957, 34.88), (39.56, 3.29, 0.956, 0.00)),
    "InvDN": ((39.28, 8.80, 0.955, 37.78), (39.57, 3.17, 0.952, 8.33)),
    "MPRNet": ((39.71, 4.17, 0.958, 33.33), (39.80, 0.58, 0.954, 4.35)),
    "DRCNet": ((40.08, 0.00, 0.972, 0.00), (39.85, 0.00, 0.956, 0.00)),
}
# table 1: PSNR and SSIM of Test100, Rain100H, Rain100L, Test2800, Test1200, and their averages as printed
RAIN = {
    "RESCAN": ([25.00, 26.36, 29.80, 31.29, 30.51], [0.835, 0.786, 0.881, 0.904, 0.882], (28.59, 0.857)),
    "MPRNet": ([30.27, 30.41, 36.40, 33.64, 32.91], [0.897, 0.890, 0.965, 0.938, 0.916], (32.73, 0.921)),
    "HINet": ([30.29, 30.65, 37.28, 33.91, 33.05], [0.906, 0.894, 0.970, 0.941, 0.919], (33.03, 0.926)),
    "DRCNet": ([32.18, 30.96, 38.23, 33.89, 33.40], [0.917, 0.895, 0.976, 0.946, 0.940], (33.73, 0.933)),
}


@pytest.mark.parametrize("method", BRACKETS)
def test_the_brackets_of_a_table_are_those_printed(method):
    for row, best in zip(BRACKETS[method], BRACKETS["DRCNet"], strict=True):
        assert 100 * rmse_reduction(best[0], row[0]) == pytest.approx(row[1], abs=0.0101)
        assert 100 * dssim_reduction(best[2], row[2]) == pytest.approx(row[3], abs=0.0101)


@pytest.mark.parametrize("method", RAIN)
def test_the_average_column_is_the_mean_of_the_sets(method):
    psnr, ssim, printed = RAIN[method]
    found = over_sets([{"psnr": p, "ssim": s, "images": 100} for p, s in zip(psnr, ssim, strict=True)])
    assert list(found) == ["psnr", "ssim"]
    assert found["psnr"] == pytest.approx(printed[0], abs=0.01)
    # the paper prints 0.933 for itself, and its own five figures have the mean 0.9348
    assert found["ssim"] == pytest.approx(printed[1], abs=0.0019 if method == "DRCNet" else 0.001)


def test_an_average_is_of_the_metrics_that_all_sets_have_and_infinite_with_identical_images():
    assert over_sets([{"psnr": 30.0, "ssim": 0.9}, {"psnr": 40.0}]) == {"psnr": 35.0}
    assert over_sets([{"psnr": None}, {"psnr": 40.0}]) == {"psnr": math.inf}


@given(st.floats(0, 60), st.floats(0, 60))
def test_a_reduction_takes_one_error_to_the_other(psnr, reference):
    errors = [10 ** (-each / 20) for each in (psnr, reference)]
    assert errors[1] * (1 - rmse_reduction(psnr, reference)) == pytest.approx(errors[0])


def test_reductions_of_perfect_images():
    assert rmse_reduction(math.inf, 40) == 1
    assert rmse_reduction(math.inf, math.inf) == 0
    assert dssim_reduction(1, 0.9) == pytest.approx(1)
    assert dssim_reduction(1, 1) == 0
    assert dssim_reduction(0.9, 1) == -math.inf
