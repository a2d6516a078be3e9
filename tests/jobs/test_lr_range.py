"""The learning-rate range test."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import photograph

from jobs.training.lr_range import judged, lr_range
from pipeline.errors import UserError

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4, bn_momentum: 0.1, recon_init: zero}
data: {task: tiny, patch: 8, crops: 4, batch: 4}
optimisation: {optimiser: sgd, lr: 0.1, schedule: cosine, warmup: {steps: 3}, length: {steps: 9}}
training: {workers: 2}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(builder: Callable[..., Path], tmp_path, monkeypatch) -> Path:
    built = builder("lr-range", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    return built.parent


def test_rates_rise_and_the_test_ends_where_the_loss_diverges(data):
    found = lr_range("tiny.yaml", data=str(data), lowest=1e-6, highest=1e3, steps=60)
    rates = [point.lr for point in found.points]
    assert rates[:2] == pytest.approx([1e-6, 1e-6 * 1e9 ** (1 / 59)])
    assert 10 < len(rates) < 60
    assert found.diverges == rates[-1]
    assert rates[0] < found.steepest < found.diverges
    low = lr_range("tiny.yaml", data=str(data), lowest=1e-7, highest=1e-6, steps=12)
    assert (len(low.points), low.diverges) == (12, None)
    assert not list(Path().rglob("checkpoint*"))  # nothing is kept


def test_the_steepest_place_is_where_the_smoothed_loss_falls_fastest():
    """A loss that is flat, falls around 0.01, is flat, and rises."""
    rates = [10 ** (-6 + i / 20) for i in range(141)]
    losses = [2 - 1 / (1 + math.exp(-4 * (math.log10(rate) + 2))) for rate in rates]
    found = judged(rates, losses)
    assert 0.005 < found.steepest < 0.05  # a smoothed loss lags behind
    assert found.diverges is None
    losses = [loss + (1000 * (rate - 3) if rate > 3 else 0) for rate, loss in zip(rates, losses, strict=True)]
    ended = next(i for i in range(3, 141) if judged(rates, losses[:i]).diverges and losses[i - 1] > 2)
    assert 3 < rates[ended - 1] < 5


def test_rates_that_cannot_be_are_one_line(data):
    with pytest.raises(UserError, match=r"^lr-range: from 1 to 0\.1; give two rates, the lower one first$"):
        lr_range("tiny.yaml", data=str(data), lowest=1, highest=0.1, steps=9)
    with pytest.raises(UserError, match=r"^lr-range: diverged at step 2 already, at a rate of 2; begin lower$"):
        judged([1, 2, 3, 4], [1, math.inf])
