import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sampling.scene_mean import scene_mean


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_mean_is_rounded_half_up_whatever_the_order_of_the_frames(number, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (number, 3, 4, 3), np.uint8)
    mean = scene_mean(list(frames))
    assert mean.dtype == np.uint8
    exact = frames.astype(float).mean(axis=0)
    assert (mean == np.floor(exact + 0.5)).all()
    assert (mean == scene_mean(list(frames[::-1]))).all()


def test_halves_go_up_and_nothing_overflows():
    def flat(value: int) -> np.ndarray:
        return np.full((1, 1, 3), value, np.uint8)

    assert scene_mean([flat(4), flat(5)]).tolist() == [[[5, 5, 5]]]
    assert scene_mean([flat(0), flat(1)]).tolist() == [[[1, 1, 1]]]
    assert scene_mean([flat(255)] * 1000).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("shapes", [[], [(2, 2, 3), (2, 2, 1)], [(2, 3, 1), (3, 2, 1)]])
def test_frames_of_several_shapes_or_none_have_no_mean(shapes):
    with pytest.raises(ValueError, match="one or more, all of one shape"):
        scene_mean([np.zeros(shape, np.uint8) for shape in shapes])
