from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.depth import unit
from pipeline.errors import UserError
from pipeline.sampling.negatives import mix, mixed_image, negatives
from pipeline.task import Negatives

SAMPLES = [(key, level) for key in "abcdefghij" for level in (10, 20)]


def planned(samples, **sampling):
    return list(negatives(samples, Negatives(**sampling)))


def test_intra_negatives_are_the_papers_mixtures_of_an_input_with_its_own_target():
    found = planned(SAMPLES)
    assert [n[:2] for n in found] == [sample for sample in SAMPLES for _ in range(3)]
    assert [(n.k, n.permille) for n in found] == [(0, 1000), (1, 950), (2, 900)] * len(SAMPLES)
    assert all((n.partner, n.partner_level) == (n.key, n.level) for n in found)


def test_of_more_weights_than_are_needed_each_sample_draws_its_own():
    weights = [i / 20 for i in range(20)]
    found = planned(SAMPLES, number=2, lambdas=weights)
    drawn = {}
    for n in found:
        drawn.setdefault(n[:2], []).append(n.permille)
    assert all(len(set(each)) == 2 and each == sorted(each) for each in drawn.values())
    assert len({tuple(each) for each in drawn.values()}) > 15
    assert {n.permille for n in planned([(str(i), 0) for i in range(200)], number=2, lambdas=weights)} == {
        50 * i for i in range(20)
    }
    assert found[4:] == planned(SAMPLES[2:], number=2, lambdas=weights)
    assert found != planned(SAMPLES, number=2, lambdas=weights, seed=1)


@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 99))
def test_extra_negatives_are_inputs_of_other_images_and_few_change_with_one(number, gone, seed):
    found = planned(SAMPLES, kind="extra", number=number, seed=seed)
    assert [(n.key, n.level, n.k) for n in found] == [(*sample, k) for sample in SAMPLES for k in range(number)]
    assert all(n.partner != n.key and n.permille == 1000 for n in found)
    assert len({n[:2] + n[4:] for n in found}) == len(found)
    rest = [sample for sample in SAMPLES if sample[0] != "abcdefghij"[gone]]
    after = {n[:3]: n for n in planned(rest, kind="extra", number=number, seed=seed)}
    changed = {n[:2] for n in found if n.key != "abcdefghij"[gone] and after[n[:3]] != n}
    # of the two inputs that are gone, each was a partner of the `number` before it, or of their neighbours' own levels
    assert len(changed) <= 4 * number


def test_extra_negatives_of_too_small_a_shard_are_an_error_that_says_what_to_do():
    assert len(planned(SAMPLES[:4], kind="extra", number=2)) == 8
    with pytest.raises(UserError, match=r"^a: its shard has 2 other .* and 3 .* raise shard_bytes"):
        planned(SAMPLES[:4], kind="extra", number=3)


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 1000))
def test_a_mixture_is_not_rounded_and_stored_it_is_half_a_step_off_at_most(I, J, permille):  # noqa: E741
    expected = (permille * Fraction(I, 255) + (1000 - permille) * Fraction(J, 255)) / 1000
    values = (torch.tensor([I / 255]), torch.tensor([J / 255]), torch.tensor([permille], dtype=torch.int32))
    assert abs(mix(*values).item() - expected) < 2e-7
    stored = mixed_image(np.full((2, 1, 3), I, np.uint8), np.full((2, 1, 3), J, np.uint8), permille)
    assert (stored.shape, stored.dtype) == ((2, 1, 3), np.int16)
    assert (np.abs(unit(stored).astype(float) - float(expected)) <= 1 / 32768 + 1e-7).all()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"number": 4}, "4 negatives need so many lambdas, and there are 3"),
        ({"lambdas": [1.2, 1, 1]}, "less than or equal to 1"),
        ({"lambdas": [0.9999, 1, 1]}, "multiple of 0.001"),
        ({"number": 0}, "greater than or equal to 1"),
    ],
)
def test_negatives_that_cannot_be_are_refused(given, problem):
    with pytest.raises(ValueError, match=problem):
        Negatives(**given)
