"""Images that go through a network in pieces."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins import Brighter, MeanOf, untrained
from torch import Tensor, nn

from jobs.restoring import tiles as module
from jobs.restoring.tiles import _starts, restore_blended, restore_grid, restore_plane, restore_tiled


class Shuffled(nn.Module):
    """A U-net's phase: means of 4x4 blocks, convolved and spread again. Where a block begins matters."""

    size_multiple = 4
    receptive_field = 2 * (4 + 3) + 1  # the block itself and one to each side

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def restore(self, lq: Tensor) -> Tensor:
        H, W = lq.shape[2:]
        blocks = F.avg_pool2d(lq, 4, ceil_mode=True, count_include_pad=False)
        return F.interpolate(self.conv(blocks), scale_factor=4)[:, :, :H, :W] + lq


def plane(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def at_once(model: nn.Module, lq: np.ndarray) -> np.ndarray:
    return model.restore(torch.from_numpy(lq).permute(2, 0, 1)[None])[0].permute(1, 2, 0).detach().numpy()


# tiles of a model that says how far it sees


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(40, 90))
def test_tiles_give_what_the_whole_image_gives(height, width, tile):
    model = untrained(memory_blocks=2, recursions=1)
    assert model.receptive_field == 1 + 2 * (2 * 2 + 2)
    lq = plane(height, width, seed=height * 151 + width)
    assert np.abs(restore_tiled(model, lq, tile) - at_once(model, lq)).max() < 1e-5


def test_tiles_of_a_model_that_sees_further_than_a_tile_give_the_same():
    model = untrained(memory_blocks=3, recursions=2)
    assert model.receptive_field == 29
    lq = plane(61, 83)
    assert np.abs(restore_tiled(model, lq, tile=20) - at_once(model, lq)).max() < 1e-5


def test_a_tile_of_a_model_that_sees_further_is_more_than_its_overlap():
    model, seen = untrained(memory_blocks=3, recursions=2), []
    restore_tiled(model, plane(61, 83), tile=20, watch=lambda pieces: seen.extend(pieces) or pieces)
    assert [part for part in seen if part[0] == 0] == [(0, 42, 0, 42), (0, 42, 42, 83)]  # three times the overlap of 14


def test_with_less_overlap_the_seams_would_show():
    model = untrained(memory_blocks=2, recursions=1)
    lq = plane(100, 100)
    model.receptive_field -= 6
    assert np.abs(restore_tiled(model, lq, tile=40) - at_once(model, lq)).max() > 1e-4


@pytest.mark.parametrize("tile", [32, 37, 50])
def test_tiles_begin_at_multiples_of_the_size_multiple(tile):
    model = Shuffled()
    lq = plane(71, 93)
    assert np.abs(restore_tiled(model, lq, tile) - at_once(model, lq)).max() < 1e-6


def test_no_tile_is_larger_than_asked_for():
    sizes = []
    model = untrained(memory_blocks=2, recursions=1)
    whole = model.restore
    model.restore = lambda lq: sizes.append(lq.shape[2:]) or whole(lq)
    restore_tiled(model, plane(150, 70), tile=64)
    assert len(sizes) > 4
    assert max(max(size) for size in sizes) == 64


def test_whoever_watches_sees_every_tile_of_an_image_and_may_count_them_first():
    seen = []

    def watch(pieces):
        assert len(pieces) > 4
        for piece in pieces:
            seen.append(piece)
            yield piece

    lq = plane(150, 70)
    expected = restore_tiled(untrained(memory_blocks=2, recursions=1), lq, 64)
    assert np.array_equal(restore_tiled(untrained(memory_blocks=2, recursions=1), lq, 64, watch=watch), expected)
    covered = np.zeros((150, 70))
    for top, bottom, left, right in seen:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()


# tiles of global statistics, which pass into each other


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(20, 300), st.integers(1, 19))
def test_blended_tiles_change_nothing_for_a_model_without_context(height, width, tile, overlap):
    lq = plane(height, width, 3)
    # Of tiles that all but cover each other, a pixel is the sum of hundreds of shares.
    np.testing.assert_allclose(restore_blended(Brighter(), lq, tile, overlap), lq + np.float32(0.1), atol=1e-5)


def test_blended_tiles_pass_into_each_other_without_a_step():
    lq = np.zeros((300, 700, 3), np.float32)
    lq[:, 350:] = 1
    output = restore_blended(MeanOf(), lq, 256, 64)[..., 0]
    assert (output[:, :100] == 0).all()
    assert (output[:, -100:] == 1).all()
    assert (
        0.005 < np.abs(np.diff(output, axis=1)).max() < 0.03
    )  # of the whole step of 1, spread over 64 pixels and more
    assert np.abs(np.diff(output, axis=0)).max() < 1e-6


def test_a_tile_of_the_blended_has_its_size_and_covers_the_image():
    model = Brighter()
    restore_blended(model, plane(300, 700, 3))
    assert {tuple(lq.shape[2:]) for lq in model.seen} == {(256, 256)}
    assert len(model.seen) == 2 * 4
    model.seen.clear()
    restore_blended(model, plane(100, 700, 3))
    assert {tuple(lq.shape[2:]) for lq in model.seen} == {(100, 256)}


def test_only_a_large_image_of_global_statistics_is_blended(monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 300 * 300)
    model = MeanOf()
    assert (restore_plane(model, plane(300, 300, 3)).std((0, 1)) < 1e-6).all()
    lq = np.linspace(0, 1, 301 * 300 * 3, dtype=np.float32).reshape(301, 300, 3)
    assert (restore_plane(model, lq, whole=True).std((0, 1)) < 1e-6).all()
    assert (restore_plane(model, lq).std((0, 1)) > 0.01).all()
    assert np.array_equal(restore_plane(model, lq), restore_blended(model, lq))


# tiles of a release


@given(st.integers(1, 2000), st.integers(8, 300))
def test_as_few_tiles_as_cover_a_side_are_spread_over_it(side, tile):
    starts = _starts(side, tile)
    ends = [start + min(tile, side) for start in starts]
    assert (starts[0], ends[-1]) == (0, side)
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    assert len(starts) == -(-side // tile)
    assert starts == sorted(set(starts))
    gaps = np.diff(starts)
    assert len(gaps) == 0 or gaps[:-1].tolist() == [gaps[0]] * (len(gaps) - 1)


def test_tiles_of_gopros_frames_begin_where_the_release_has_them():
    assert _starts(720, 256) == [0, 232, 464]
    assert _starts(1280, 256) == [0, 256, 512, 768, 1024]
    assert _starts(481, 256) == [0, 225]
    assert _starts(256, 256) == [0]
    assert _starts(100, 256) == [0]


def test_where_tiles_overlap_their_mean_is_taken():
    row = np.arange(10, dtype=np.float32)
    lq = np.broadcast_to(row[None, :, None], (4, 10, 3)).copy()
    output = restore_grid(MeanOf(), lq, tile=6)  # columns 0..5 and 4..9, of means 2.5 and 6.5
    assert output.dtype == np.float32
    assert output[..., 0].tolist() == [[2.5] * 4 + [4.5] * 2 + [6.5] * 4] * 4
    assert (restore_plane(MeanOf(), lq) == 4.5).all()
    assert (restore_grid(MeanOf(), lq, tile=10) == 4.5).all()


def test_tiles_change_nothing_for_a_model_without_context():
    lq = plane(50, 41)
    for tile in (8, 20, 64):
        np.testing.assert_allclose(restore_grid(Brighter(), lq, tile), lq + np.float32(0.1), atol=1e-6)
