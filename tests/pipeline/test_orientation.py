import itertools

import numpy as np
import pytest
import torch
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.degradations.base import Degradation
from pipeline.degradations.orientation import MADE, Turns, apart, dihedral, fewest, upright
from pipeline.degradations.scale import Scale, bicubic_lowres, imresize
from pipeline.depth import fixed, unit
from pipeline.loading.loader import Loader, Position
from pipeline.sampling.patches import Grid
from pipeline.shards.shard_set import ShardSet
from pipeline.task import recorded

LONG = {"kind": "blur", "sigma": 4, "radius": 6, "sigma_y": 0.5}


def chain(*steps: dict, **options) -> Degradation:
    return recorded({"kind": "chain", "steps": list(steps), **options})


# a degradation, its turns, and how many grey levels rms rounding may make of them
CLAIMS: list[tuple[Degradation, Turns, float]] = [
    (recorded({"kind": "jpeg", "quality": [10]}), "flips", 0.6),
    (recorded({"kind": "scale", "factor": [3]}), "all", 0.01),
    (chain({"kind": "blur", "sigma": 2}), "all", 0.1),
    (chain({"kind": "sinc", "cutoff": 0.4, "radius": 5}), "all", 0.1),
    (chain({"kind": "scale", "factor": 0.4, "filter": "area"}), "all", 0.4),
    (chain({"kind": "blur", "sigma": 1.5}, {"kind": "jpeg", "quality": 15}), "flips", 1.0),
    (chain(LONG), "flips", 0.1),
    (chain(LONG | {"rotation": 30}), "half turn", 0.1),
    (chain({"kind": "jpeg", "quality": 15}, LONG | {"rotation": 30}), "half turn", 0.4),
    (
        chain({"kind": "one_of", "choices": [{"weight": 1, "steps": [LONG]}, {"weight": 1e-6, "steps": [LONG]}]}),
        "flips",
        0.1,
    ),
]


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square((unit(a) - unit(b)) * 255))))


def degraded(degradation: Degradation, image: np.ndarray, view: int) -> np.ndarray:
    (level,) = degradation.levels
    return degradation.made(np.ascontiguousarray(dihedral(image, view)), level, "key")[1]


@pytest.mark.parametrize(("degradation", "turns", "rounding"), CLAIMS)
def test_the_views_that_a_degradation_claims_are_what_it_makes_of_the_view_and_no_others_are(
    degradation, turns, rounding
):
    assert degradation.turns == turns
    assert degradation.views == apart(turns)
    image = photograph(3, 96, 144, 1)
    made = [upright(degraded(degradation, image, view), view) for view in range(8)]
    for a, b in itertools.combinations(range(8), 2):
        difference = rms(made[a], made[b])
        assert (difference <= rounding) == (MADE[turns][a] == MADE[turns][b]), (a, b, difference)


@pytest.mark.parametrize(
    ("rotation", "turns"),
    [
        ([-180, 180], "all"),
        ([0, 180], "all"),
        ([0, 90], "half turn"),
        ({"any": [0, 90]}, "half turn"),
        (0, "half turn"),
    ],
)
def test_a_kernel_has_no_direction_where_all_are_drawn_alike(rotation, turns):
    assert chain(LONG | {"rotation": rotation}).turns == turns


def test_what_the_loader_draws_is_drawn_on_the_turned_patch():
    assert chain({"kind": "jpeg", "quality": 10}, drawn="online").views == (0,)
    assert recorded({"kind": "noise"}).views == (0,)


@given(st.integers(0, 7), st.integers(1, 5), st.integers(1, 5))
def test_upright_undoes_a_view(view, height, width):
    patch = np.arange(height * width * 3).reshape(height, width, 3)
    assert (upright(dihedral(patch, view), view) == patch).all()


@given(st.lists(st.sampled_from(list(MADE))))
def test_several_degradations_keep_only_the_turns_that_all_keep(turns):
    for a, b in itertools.product(range(8), repeat=2):
        together = MADE[fewest(turns)]
        assert (together[a] == together[b]) == all(MADE[each][a] == MADE[each][b] for each in turns)


# inputs of super-resolution


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_the_inputs_of_super_resolution_are_those_of_evaluation_to_half_a_step(builder, codec):
    files = {"train/a.png": photograph(1, 50, 61, 1), "train/b.png": photograph(2, 47, 40, 1)}
    folder = builder(f"orientation-scale-{codec}", files, degradation={"kind": "scale", "factor": [2, 3]}, codec=codec)
    loader = Loader(folder, batch=8, sampling=Grid(24, 16))
    versions = list(ShardSet(folder, "train").versions())
    inputs = [Scale.benchmark(version.planes["gt"], version.level)[0][0] for version in versions]
    worst = levels = 0.0
    for i in range(len(loader)):
        batch = loader.to_device(loader.cut(Position(0, i)), torch.device("cpu"))
        for sample, lq in zip(batch["sample"].tolist(), batch["lq"].numpy(), strict=True):
            version = int(np.searchsorted(loader.first, sample, side="right")) - 1
            number = np.array([sample - loader.first[version]])
            place = loader.sampling.place(number, loader.sizes[[version]], number, 0, 0)
            top, left, view = (int(each[0]) for each in place)
            wanted = dihedral(inputs[version][top : top + 24, left : left + 24], view)[..., 0]
            worst = max(worst, float(np.abs(lq[0] - wanted).max()))
            levels = max(levels, float(np.abs(lq[0] * 255 - np.rint(lq[0] * 255)).max()))
    assert worst <= 1 / 32768 + 1e-7
    assert levels > 0.49  # they are no levels of 8 bits


@given(st.integers(2, 8), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_bicubic_input_of_any_image_fits_and_is_that_of_two_resizes(factor, seed):
    image = np.random.default_rng(seed).integers(0, 2, (3 * factor, 4 * factor, 1)).astype(np.float64)  # black or white
    stored = fixed(bicubic_lowres(image, factor))
    low = imresize(image, 1 / factor)
    assert np.abs(stored / 16384 - imresize(low, size=image.shape[:2])).max() <= 1 / 32768 + 1e-12
    assert np.abs(stored / 16384 - 0.5).max() <= 0.78


def test_numbers_that_do_not_fit_are_refused():
    assert fixed(np.array([-2.0, 0.0, 1.0, 1.9999])).tolist() == [-32768, 0, 16384, 32766]
    for wrong in (2.0, -2.01, np.nan):
        with pytest.raises(ValueError, match=r"expected \[-2, 2\)"):
            fixed(np.array([0.0, wrong]))


# stored mixtures of turned inputs


def test_a_build_without_the_views_is_not_turned(builder, monkeypatch):
    monkeypatch.setattr(Degradation, "views", (0,))
    folder = builder("orientation-before", {"train/a.png": photograph(1, 50, 61, 1)})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"the inputs of split 'train' cannot be turned, .* run `memoir build` again"):
        Loader(folder, batch=8, sampling=Grid(24, 16))
    assert len(Loader(folder, batch=8, sampling=Grid(24, 16, dihedral=False)))
