import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling.patches import Grid, RandomCrops

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=8)
SAMPLINGS = st.one_of(
    st.builds(Grid, patch=st.integers(1, 40), stride=st.integers(1, 30), dihedral=st.booleans()),
    st.builds(RandomCrops, patch=st.integers(1, 40), crops=st.integers(1, 5), dihedral=st.booleans()),
)


def enumerated(sampling: Grid | RandomCrops, sizes: np.ndarray, seed: int = 0, epoch: int = 0):
    """Which image each sample of an epoch is of, and where: arrays of one length."""
    counts = sampling.counts(sizes)
    image = np.repeat(np.arange(len(sizes)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    return image, *sampling.place(number, sizes[image], np.arange(len(image)), seed, epoch)


@given(SAMPLINGS, SIZES, st.integers(0, 2**40), st.integers(0, 1000))
def test_every_sample_lies_in_its_image(sampling, sizes, seed, epoch):
    sizes = np.array(sizes)
    image, top, left, view = enumerated(sampling, sizes, seed, epoch)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (
        top + sampling.patch <= np.maximum(sizes[image, 0], sampling.patch)
    ).all()  # a short side has its place at 0
    assert (left + sampling.patch <= np.maximum(sizes[image, 1], sampling.patch)).all()
    assert ((view >= 0) & (view < (8 if sampling.dihedral else 1))).all()
    assert (sampling.counts(sizes) > 0).all()


def test_a_grid_has_every_place_and_view_once():
    image, top, left, view = enumerated(Grid(5, 3), np.array([[4, 9], [9, 12], [5, 5]]))
    expected = [(0, 0, x, v) for x in (0, 3) for v in range(8)]  # lower than a patch
    expected += [(1, y, x, v) for y in (0, 3) for x in (0, 3, 6) for v in range(8)]
    expected += [(2, 0, 0, v) for v in range(8)]
    assert list(zip(image, top, left, view, strict=True)) == expected


def test_random_crops_are_so_many_of_each_image_and_reach_every_place_and_view_evenly():
    sampling, sizes = RandomCrops(8, crops=30_000), np.array([[10, 9], [7, 100]])
    assert sampling.counts(sizes).tolist() == [30_000, 30_000]
    image, top, left, view = enumerated(sampling, sizes)
    assert not top[image == 1].any()
    assert set(left[image == 1]) == set(range(93))
    top, left, view = (each[image == 0] for each in (top, left, view))
    found, times = np.unique(np.stack((top, left, view)), axis=1, return_counts=True)
    assert found.shape[1] == 3 * 2 * 8
    expected = 30_000 / 48
    assert ((times - expected) ** 2 / expected).sum() < 80  # chi square of 47 degrees: 1 in 500 is above


def test_random_crops_without_flips_and_rotations_are_upright():
    assert not enumerated(RandomCrops(8, 100, dihedral=False), np.array([[20, 20]]))[3].any()


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_a_random_crop_is_drawn_by_seed_epoch_and_sample_alone(other):
    sampling, sizes = RandomCrops(8, 4), np.array([[200, 300]] * 5)
    place = np.stack(enumerated(sampling, sizes))
    again = np.stack(sampling.place(np.zeros(3, int), sizes[[4, 1, 0]], np.array([19, 6, 1]), 0, 0))
    assert (again == place[1:, [19, 6, 1]]).all()
    assert (np.stack(enumerated(sampling, sizes, **other))[1:3] != place[1:3]).any(0).mean() > 0.9
