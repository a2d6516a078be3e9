"""Borders that are mirrored up to the size that a network takes."""

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from jobs.models.padding import mirrored


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 48))
def test_sides_become_multiples_and_the_image_stays_in_its_corner(height, width, multiple, least):
    x = torch.rand(2, 3, height, width)
    y = mirrored(x, multiple, least)
    for before, after in ((height, y.shape[2]), (width, y.shape[3])):
        assert after % multiple == 0
        assert max(before, least) <= after < max(before, least) + multiple
    assert torch.equal(y[..., :height, :width], x)
    if y.shape[2] < 2 * height and y.shape[3] < 2 * width:
        assert torch.equal(y, F.pad(x, (0, y.shape[3] - width, 0, y.shape[2] - height), mode="reflect"))


def test_an_image_that_is_used_up_is_mirrored_again():
    row = torch.tensor([1.0, 2, 3]).view(1, 1, 1, 3)
    assert mirrored(row, 1, 9)[0, 0, 0].tolist() == [1, 2, 3, 2, 1, 2, 3, 2, 1]
    assert mirrored(row, 1, 9)[0, 0, :, 1].tolist() == [2] * 9
