from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.degradations.scene_pairs import scene_pairs

FRAMES = st.lists(st.text("abcdef0123456789", min_size=4, max_size=4), min_size=2, max_size=14, unique=True)


@given(FRAMES, st.integers(1, 100), st.integers(0, 3))
def test_so_many_pairs_are_drawn_each_once_and_in_order(frames, number, seed):
    everything = scene_pairs(frames)
    assert len(everything) == comb(len(frames), 2)
    drawn = scene_pairs(frames, number, seed=seed, scene="s")
    assert len(drawn) == min(number, len(everything))
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(everything)
    assert all(0 <= v < w < len(frames) for v, w in everything)


def test_the_scenes_of_the_paper_have_its_number_of_pairs():
    pairs = scene_pairs([str(i) for i in range(30)])
    assert (186 * len(pairs), 170 * len(pairs)) == (80_910, 73_950)  # TimeLap, SPA


@given(FRAMES, st.integers(1, 20), st.data())
def test_a_frame_that_goes_changes_no_pair_of_others_that_was_drawn(frames, number, data):
    gone = data.draw(st.integers(0, len(frames) - 1))
    rest = frames[:gone] + frames[gone + 1 :]

    def drawn(of):
        return {frozenset((of[v], of[w])) for v, w in scene_pairs(of, number, scene="s")}

    kept = {pair for pair in drawn(frames) if frames[gone] not in pair}
    assert kept <= drawn(rest)


@pytest.mark.parametrize("other", [{"seed": 1}, {"scene": "other"}])
def test_seed_and_scene_draw_other_pairs(other):
    frames = [str(i) for i in range(30)]
    assert scene_pairs(frames, 20, scene="s") != scene_pairs(frames, 20, **{"scene": "s"} | other)
    assert scene_pairs(frames, 20, scene="s") == scene_pairs(frames, 20, scene="s")
