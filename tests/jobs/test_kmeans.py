"""k-means in one dimension against all ways to cut the values, and against plain dynamic programming."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.models import kmeans as module
from jobs.models.kmeans import kmeans

pytestmark = pytest.mark.usefixtures("one_thread")

NUMBERS = st.floats(0, 100, allow_subnormal=False) | st.integers(0, 9).map(float)


def scatter(values: np.ndarray, weight: np.ndarray) -> float:
    """The sum of squared distances to the mean."""
    mean = (weight * values).sum() / max(weight.sum(), 1)
    return float((weight * (values - mean) ** 2).sum())


def cost(values: np.ndarray, weight: np.ndarray, label: np.ndarray) -> float:
    return sum(scatter(values[label == k], weight[label == k]) for k in set(label.tolist()))


def best_cut(values: np.ndarray, weight: np.ndarray, clusters: int) -> float:
    """The least cost of all ways to cut the ordered values into so many intervals or fewer."""
    order = np.argsort(values, kind="stable")
    values, weight, n = values[order], weight[order], len(values)
    found = []
    for cuts in range(min(clusters, n)):
        for ends in itertools.combinations(range(1, n), cuts):
            parts = list(itertools.pairwise((0, *ends, n)))
            found.append(sum(scatter(values[a:b], weight[a:b]) for a, b in parts))
    return min(found)


def plain_programme(values: np.ndarray, clusters: int) -> float:
    """The least cost by n² comparisons in each layer, of costs that are no differences of sums."""
    values, n = np.sort(values), len(values)
    table = np.full((n + 1, n + 1), np.inf)
    for j in range(n):
        part = values[j:]
        number = np.arange(1, n - j + 1)
        mean = np.cumsum(part - part[0]) / number  # Welford's recurrence, from the first value on
        before = np.concatenate(([0], mean[:-1]))
        table[j, j + 1 :] = np.cumsum((part - part[0] - before) * (part - part[0] - mean))
    least = table[0].copy()
    for _ in range(min(clusters, n) - 1):
        least = (least[:, None] + table).min(0)
    return float(least[-1])


def run(values: np.ndarray, clusters: int, weight: np.ndarray | None = None) -> np.ndarray:
    weights = None if weight is None else torch.from_numpy(weight)[None]
    return kmeans(torch.from_numpy(values)[None], clusters, weights)[0].numpy()


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(NUMBERS, min_size=1, max_size=9), st.integers(1, 6), st.booleans())
def test_no_other_cut_costs_less(data, numbers, clusters, weighted):
    values = np.array(numbers)
    weight = np.ones(len(values))
    if weighted:
        weight = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))), float)
    label = run(values, clusters, weight if weighted else None)
    rounding = 1e-13 * float((weight * values**2).sum())
    assert cost(values, weight, label) <= best_cut(values, weight, clusters) + rounding
    assert label.min() == 0
    assert label.max() < clusters
    assert (np.diff(label[np.argsort(values, kind="stable")]) >= 0).all()  # in the order of the values
    assert all(len(set(label[values == value])) == 1 for value in values)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(10, 700), st.integers(1, 12), st.integers(1, 6))
def test_it_is_plain_dynamic_programming(seed, n, clusters, power):
    """n is beyond FAN, and beyond its square, where the refinement has several strides."""
    values = np.random.default_rng(seed).random(n) ** power
    found = cost(values, np.ones(n), run(values, clusters))
    assert found == pytest.approx(plain_programme(values, clusters), rel=1e-9, abs=1e-13 * float((values**2).sum()))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 255, 256, 257, 300])
def test_it_is_right_where_a_stride_ends(n):
    values = np.random.default_rng(n).random(n) ** 3
    for clusters in (1, 2, 3, 5):
        found = cost(values, np.ones(n), run(values, clusters))
        assert found == pytest.approx(plain_programme(values, clusters), rel=1e-9, abs=1e-13)


def test_it_costs_less_than_where_lloyds_iteration_ends():
    """Of skewed values, from the quantiles, as it was computed before."""
    values = np.sort(np.random.default_rng(0).random(400) ** 8)
    centres = values[(2 * np.arange(10) + 1) * len(values) // 20]
    for _ in range(20):
        lloyd = np.searchsorted((centres[1:] + centres[:-1]) / 2, values)
        centres = np.array([values[lloyd == k].mean() for k in range(10)])
    ones = np.ones(len(values))
    assert cost(values, ones, run(values, 10)) < 0.7 * cost(values, ones, lloyd)


def test_each_row_is_by_itself():
    rows = torch.rand(3, 50, generator=torch.Generator().manual_seed(0)) ** torch.tensor([[1], [4], [9]])
    together = kmeans(rows, 5)
    assert together.dtype == torch.int64
    assert all(torch.equal(kmeans(row[None], 5)[0], label) for row, label in zip(rows, together, strict=True))


def test_a_weight_is_how_often_a_value_counts():
    values = np.random.default_rng(0).random(40) ** 3
    times = np.random.default_rng(1).integers(0, 4, 40)
    label = run(np.repeat(values, times), 5)
    assert np.array_equal(np.repeat(run(values, 5, times.astype(float)), times), label)


@pytest.mark.parametrize("clusters", [4, 30])
def test_costs_that_differ_by_rounding_alone_lead_to_no_other_cut(clusters):
    """Which of them is the least then no longer grows with the number of values."""
    rng = np.random.default_rng(0)
    for values in (1 + 1e-9 * rng.random(500), np.append(0, 1e6 + 1e-6 * np.arange(300)), rng.random(400).round(2)):
        found = cost(values, np.ones(len(values)), run(values, clusters))
        least = plain_programme(values, clusters)
        assert found <= least * (1 + 1e-9) + 1e-13 * float(((values - values.min()) ** 2).sum())


def test_so_many_values_as_clusters_are_one_each_however_near():
    assert run(np.array([2.0, 0, 1, 1 + 1e-15, 0]), 4).tolist() == [3, 0, 1, 2, 0]
    assert run(np.array([2.0, 0, 1, 1 + 1e-15, 0]), 9).tolist() == [3, 0, 1, 2, 0]


def test_values_that_are_no_numbers_are_no_defect():
    values = torch.tensor([[np.nan, np.inf, -np.inf, *range(60)]])
    label = kmeans(values, 4)[0]
    assert (label[2], label[1]) == (0, label.max())
    assert not kmeans(torch.full((2, 40), np.nan), 4).any()


def test_the_sums_are_those_of_cumsum():
    values = torch.rand(2, 3, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sums = module._prefix_sums(values)
    torch.testing.assert_close(sums[..., 1:], values.cumsum(2), rtol=1e-14, atol=0)
    assert not sums[..., 0].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_the_same_clusters():
    values = torch.rand(16, 2016, generator=torch.Generator().manual_seed(0)) ** 6
    for clusters in (4, 50):
        labels = [kmeans(values.cuda(), clusters).cpu() for _ in range(3)]
        assert all(torch.equal(label, kmeans(values, clusters)) for label in labels)
