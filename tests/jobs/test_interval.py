"""How sure a mean is: the interval covers the truth as often as it says."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jobs.evaluation.interval import margin, margins
from jobs.evaluation.metrics import table
from jobs.evaluation.protocols import Score, mean
from jobs.evaluation.scores import read_scores, write_scores
from pipeline.errors import UserError

FIGURES = st.lists(st.floats(5, 50), min_size=2, max_size=30)


@given(FIGURES)
def test_the_margin_is_that_of_students_t(values):
    found = margin(values)
    error = stats.sem(values)
    assert found == pytest.approx(error * stats.t.ppf(0.975, len(values) - 1), abs=1e-9)


@given(FIGURES, st.floats(0.1, 100), st.randoms(use_true_random=False))
def test_equal_weights_are_no_weights_and_the_order_does_not_matter(values, weight, random):
    alone = margin(values)
    assert margin(values, [weight] * len(values)) == pytest.approx(alone, abs=1e-9)
    pairs = [(value, 1 + i % 3) for i, value in enumerate(values)]
    weighted = margin(*map(list, zip(*pairs, strict=True)))
    random.shuffle(pairs)
    assert margin(*map(list, zip(*pairs, strict=True))) == weighted  # fsum is exact


@pytest.mark.parametrize("n", [3, 5, 100])
def test_the_interval_of_few_images_holds_the_true_mean_in_95_of_100_samples(n):
    rng = np.random.default_rng(n)
    samples = rng.normal(30, 3, (4000, n))
    held = np.mean([abs(np.mean(each) - 30) <= margin(list(each)) for each in samples])
    assert held == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors


def test_a_percentile_bootstrap_of_five_images_would_hold_it_in_83():
    """Why it is not one."""
    rng = np.random.default_rng(0)
    held = []
    for each in rng.normal(30, 3, (2000, 5)):
        means = rng.choice(each, (1000, 5)).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        held.append(low <= 30 <= high)
    assert np.mean(held) == pytest.approx(0.83, abs=0.02)


def test_the_interval_of_errors_per_pixel_holds_the_ratio_of_all_pixels():
    """Large regions count more: figures and weights are drawn together, and the truth is sum(w x) / sum(w)."""
    rng = np.random.default_rng(1)
    weights = rng.choice([1000.0, 9000.0], (3000, 60))
    values = 5 + weights / 1000 + rng.normal(0, 6, weights.shape)
    truth = 5 + np.mean([1, 81]) / np.mean([1, 9])
    means = (values * weights).sum(axis=1) / weights.sum(axis=1)
    held = np.mean([abs(m - truth) <= margin(list(v), list(w)) for m, v, w in zip(means, values, weights, strict=True)])
    assert held == pytest.approx(0.95, abs=0.016)


def test_there_is_none_for_one_image_and_for_identical_ones():
    assert margin([30.0]) is None
    assert margin([30.0, math.inf]) is None
    assert margin([30.0, 30.0]) == 0
    scores = [Score({"psnr": math.inf, "ssim": 1.0}), Score({"psnr": 30.0, "ssim": 0.8})]
    found = margins(scores)
    assert found["psnr"] is None
    assert found["ssim"] == pytest.approx(0.1 * 12.706205)  # t of one degree of freedom
    assert json.loads(json.dumps(found)) == found


def row(**more):
    score = mean([Score({"psnr": 30.0, "ssim": 0.8}), Score({"psnr": 31.0, "ssim": 0.9})])
    rest = {"images": 2, "protocol": "p", "baseline": {"psnr": 20.0, "ssim": 0.5}, "paper": {}}
    return score.json() | rest | more


def test_it_stands_behind_the_mean_in_tables_and_not_in_the_metrics_of_dvc(tmp_path):
    written = row(margin={"psnr": 6.353, "ssim": None})
    assert table(written) == [("PSNR (dB)", "20.00", "30.50 ± 6.35", ""), ("SSIM", "0.5000", "0.8500", "")]
    write_scores(tmp_path, {"a/b": written})
    assert json.loads((tmp_path / "scores.json").read_text()) == {"a/b": {"psnr": 30.5, "ssim": pytest.approx(0.85)}}
    assert read_scores(tmp_path, "again")["a/b"] == written


def test_scores_without_margins_are_read_and_margins_of_other_metrics_are_not(tmp_path):
    write_scores(tmp_path, {"a/b": row()})
    assert "margin" not in read_scores(tmp_path, "again")["a/b"]
    for wrong in ({"psnr": 1.0}, {"psnr": 1.0, "ssim": "0.1"}):
        write_scores(tmp_path, {"a/b": row(margin=wrong)})
        with pytest.raises(UserError, match="margin"):
            read_scores(tmp_path, "again")
