import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.degradations.scene_mean import scene_mean


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([np.uint8, np.uint16]))
def test_the_mean_is_rounded_half_up_whatever_the_order_of_the_frames(number, seed, dtype):
    frames = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (number, 3, 4, 3), dtype)
    mean = scene_mean(list(frames))
    assert mean.dtype == dtype
    exact = frames.astype(float).mean(axis=0)
    assert (mean == np.floor(exact + 0.5)).all()
    assert (mean == scene_mean(list(frames[::-1]))).all()


def test_halves_go_up_and_nothing_overflows():
    def flat(value: int) -> np.ndarray:
        return np.full((1, 1, 3), value, np.uint8)

    assert scene_mean([flat(4), flat(5)]).tolist() == [[[5, 5, 5]]]
    assert scene_mean([flat(0), flat(1)]).tolist() == [[[1, 1, 1]]]
    assert scene_mean([flat(255)] * 1000).tolist() == [[[255, 255, 255]]]
    white = np.full((1, 1, 1), 65535, np.uint16)
    assert scene_mean([white] * 40_000).tolist() == [[[65535]]]


def test_frames_of_two_depths_have_no_mean():
    with pytest.raises(ValueError, match="all of one shape and dtype"):
        scene_mean([np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 1), np.uint16)])


@pytest.mark.parametrize("shapes", [[], [(2, 2, 3), (2, 2, 1)], [(2, 3, 1), (3, 2, 1)]])
def test_frames_of_several_shapes_or_none_have_no_mean(shapes):
    with pytest.raises(ValueError, match="one or more, all of one shape"):
        scene_mean([np.zeros(shape, np.uint8) for shape in shapes])
