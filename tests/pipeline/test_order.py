import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling.order import Order, permute

KEYS = st.integers(0, 2**64 - 1)
SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any)


def chi_square(counts: np.ndarray) -> float:
    """Of counts that ought to be even, in standard deviations of chi-square from its mean, the degrees of freedom."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


# the permutation


@given(st.integers(1, 3000), KEYS)
def test_every_number_comes_once(n, key):
    assert (np.sort(permute(np.arange(n), n, key)) == np.arange(n)).all()


@given(st.integers(1, 10**15), KEYS, st.data())
def test_a_place_is_computed_by_itself_and_lies_inside(n, key, data):
    index = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20, unique=True)))
    together = permute(index, n, key)
    assert ((together >= 0) & (together < n)).all()
    assert len(set(together.tolist())) == len(index)
    assert [int(permute(index[i : i + 1], n, key)[0]) for i in range(len(index))] == together.tolist()


@pytest.mark.parametrize("n", [2, 3, 5, 16])
def test_every_number_comes_equally_often_at_every_place(n):
    drawn = np.array([permute(np.arange(n), n, key) for key in range(1000)])
    for place in range(n):
        assert chi_square(np.bincount(drawn[:, place], minlength=n)) < 5


def test_every_order_of_four_comes_equally_often():
    orders = {order: i for i, order in enumerate(itertools.permutations(range(4)))}
    drawn = [orders[tuple(permute(np.arange(4), 4, key).tolist())] for key in range(2400)]
    assert chi_square(np.bincount(drawn, minlength=24)) < 5


def test_neighbours_are_torn_apart():
    drawn = permute(np.arange(10_000), 10_000, 1)
    steps = np.abs(np.diff(drawn))
    assert abs(steps.mean() / 10_000 - 1 / 3) < 0.02  # of two even draws
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.04
    assert abs(np.corrcoef(drawn, np.arange(10_000))[0, 1]) < 0.04


# the order of an epoch


@given(SIZES, st.integers(1, 6), st.integers(0, 2**31), st.integers(0, 1000))
def test_every_sample_comes_once_in_an_epoch(sizes, window, seed, epoch):
    order = Order(np.array(sizes), window=window, seed=seed, epoch=epoch)
    assert len(order) == sum(sizes)
    assert np.sort(order.samples(np.arange(len(order)))).tolist() == list(range(len(order)))


@given(SIZES, st.integers(1, 6), st.integers(0, 100))
def test_a_window_touches_its_own_shards_only(sizes, window, seed):
    order = Order(np.array(sizes), window=window, seed=seed, epoch=0)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order.samples(np.arange(len(order)))]
    begin = 0
    for shards in np.array_split(order.shard_order, range(window, len(sizes), window)):
        end = begin + sum(sizes[shard] for shard in shards)
        assert set(shard_of[begin:end]) == {shard for shard in shards if sizes[shard]}
        begin = end
    assert begin == len(order)


@given(SIZES, st.integers(1, 6), st.integers(0, 100), st.data())
def test_positions_are_answered_in_any_order_and_number(sizes, window, seed, data):
    order = Order(np.array(sizes), window=window, seed=seed, epoch=3)
    whole = order.samples(np.arange(len(order)))
    some = np.array(data.draw(st.lists(st.integers(0, len(order) - 1), min_size=1, max_size=20)))
    assert order.samples(some).tolist() == whole[some].tolist()


@pytest.mark.parametrize("sizes", [[400], [50] * 8], ids=["one shard", "eight"])
def test_another_epoch_and_another_seed_are_another_order(sizes):
    def drawn(seed: int, epoch: int) -> np.ndarray:
        return Order(np.array(sizes), window=2, seed=seed, epoch=epoch).samples(np.arange(400))

    orders = [drawn(0, 0), drawn(0, 1), drawn(1, 0)]
    for a, b in itertools.combinations(orders, 2):
        assert (a == b).mean() < 0.02
    assert (drawn(0, 0) == orders[0]).all()


def test_the_samples_of_a_window_are_mixed():
    order = Order(np.full(16, 1000), window=16, seed=0, epoch=0)
    shard_of = order.samples(np.arange(16_000)) // 1000
    for batch in shard_of.reshape(-1, 500):
        assert len(set(batch)) == 16
        assert chi_square(np.bincount(batch, minlength=16)) < 5


def test_memory_does_not_grow_with_the_samples():
    def peak(samples_per_shard: int) -> int:
        tracemalloc.start()
        order = Order(np.full(1000, samples_per_shard), window=16, seed=0, epoch=0)
        positions = np.arange(256) + len(order) // 2
        samples = order.samples(positions)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(order) == 1000 * samples_per_shard
        assert len(set(samples.tolist())) == 256
        return most

    peak(10)  # what the first call imports and caches
    assert peak(10**7) < 1.2 * peak(10) + 10_000
