"""The steps of a chain, beside small computations in float64."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from conftest import photograph
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.degradations.chain import Chain
from pipeline.degradations.chain.kernels import bell, sinc
from pipeline.degradations.colour import rgb2gray
from pipeline.degradations.jpeg import jpeg
from pipeline.depth import peak
from pipeline.errors import UserError
from pipeline.keyed import philox
from pipeline.task import Task, read_task, recorded


def made(*steps: dict) -> Chain:
    return Chain.model_validate({"kind": "chain", "steps": list(steps)})


def drawn(chain: Chain, many: int) -> list[list[dict]]:
    """What happens to so many tiny images."""
    image = np.zeros((2, 2, 3), np.uint8)
    return [chain.degraded(image, ("a", i))[1] for i in range(many)]


# kernels


@given(
    st.integers(1, 12),
    st.floats(0.05, 5),
    st.floats(0.05, 5),
    st.floats(-360, 360),
    st.sampled_from(["gaussian", "generalised", "plateau"]),
    st.floats(0.1, 10),
)
def test_a_bell_has_the_published_formula(radius, sigma, sigma_y, rotation, shape, beta):
    kernel = bell(radius, sigma, sigma_y, rotation, shape, beta)
    cos, sin = math.cos(rotation * math.pi / 180), math.sin(rotation * math.pi / 180)
    turn = np.array([[cos, -sin], [sin, cos]])
    inverse = turn @ np.diag([sigma**-2, sigma_y**-2]) @ turn.T
    fall = {
        "gaussian": lambda q: math.exp(-q / 2),
        "generalised": lambda q: math.exp(-(q**beta) / 2),
        "plateau": lambda q: 1 / (1 + q**beta),
    }[shape]
    at = range(-radius, radius + 1)
    wanted = np.array([[fall(max(0.0, np.array([x, y]) @ inverse @ [x, y])) for x in at] for y in at])
    assert kernel.shape == (2 * radius + 1, 2 * radius + 1)
    assert kernel.sum() == pytest.approx(1)
    assert kernel == pytest.approx(wanted / wanted.sum(), rel=1e-6, abs=1e-12)


def test_a_bell_is_turned_from_the_rows_downwards():
    flat, turned, upright = (bell(4, 3, 1, rotation) for rotation in (0, 45, 90))
    assert flat[4, 8] > 5 * flat[8, 4]  # long along x
    assert turned[8, 8] > 5 * turned[0, 8]  # to the lower right
    assert upright == pytest.approx(flat.T)


def bessel(x: np.ndarray) -> np.ndarray:
    """J1 by its integral, of which the trapezoidal sum is exact to 1e-15."""
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    return np.cos(angle - x[..., None] * np.sin(angle)).mean(-1)


@given(st.integers(1, 20), st.floats(0.01, 1))
def test_a_sinc_has_the_closed_form_of_a_disc_of_frequencies(radius, cutoff):
    kernel, w = sinc(radius, cutoff), math.pi * cutoff
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    r = np.maximum(np.hypot(x, y), 1e-6)  # so near the middle is its limit
    wanted = w * bessel(w * r) / (2 * math.pi * r)
    assert kernel.sum() == pytest.approx(1)
    assert kernel == pytest.approx(wanted / wanted.sum(), rel=1e-6, abs=1e-9)


def test_a_sinc_passes_what_is_below_its_cutoff_and_overshoots():
    kernel = sinc(25, 0.5)
    x = np.arange(-25, 26)
    response = {of: float((kernel * np.cos(of * math.pi * x)).sum()) for of in (0, 0.3, 0.7)}
    assert response == pytest.approx({0: 1, 0.3: 1, 0.7: 0}, abs=0.05)
    edge = np.full((40, 60, 1), 60, np.uint8)
    edge[:, 30:] = 180
    rung, _ = made({"kind": "sinc", "cutoff": 0.4, "radius": 10}).degraded(edge, ("a",))
    assert rung.min() < 55
    assert rung.max() > 185


# filters


KERNELS = [
    {"kind": "blur", "sigma": 2.5, "radius": 3},
    {"kind": "blur", "sigma": 2, "radius": 8, "sigma_y": 0.7, "rotation": 30},
    {"kind": "blur", "sigma": 2, "radius": 10, "shape": "generalised", "beta": 3},
    {"kind": "blur", "sigma": 2, "radius": 5, "sigma_y": 0.4, "shape": "plateau", "beta": 1.5},
    {"kind": "sinc", "cutoff": 0.4, "radius": 10},
    {"kind": "sinc", "cutoff": 0.8, "radius": 3},
]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(40, 50, 3), (7, 30, 1)])
@pytest.mark.parametrize("step", KERNELS)
def test_a_filter_mirrors_the_border_and_rounds_once(step, shape, dtype):
    image = np.random.default_rng(3).integers(0, peak(dtype), shape, dtype, endpoint=True)
    options = {name: value for name, value in step.items() if name != "kind"}
    kernel = sinc(**options) if step["kind"] == "sinc" else bell(**{"sigma_y": step["sigma"]} | options)
    exact = ndimage.correlate(image.astype(float), kernel[..., None], mode="mirror").clip(0, peak(dtype))
    filtered, happened = made(step).degraded(image, ("a",))
    assert filtered.dtype == dtype
    assert np.abs(filtered - exact).max() <= 0.5 + 1e-6 * peak(dtype)
    assert happened == [{step["kind"]: options}]


@pytest.mark.parametrize("step", KERNELS)
def test_a_filter_does_the_same_to_16_bits(step):
    image = photograph(3, 40, 60)
    narrow, _ = made(step).degraded(image, ("a",))
    wide, _ = made(step).degraded(image.astype(np.uint16) * 257, ("a",))
    assert np.abs(wide / 257 - narrow).max() < 0.51


# Poisson noise


@pytest.mark.parametrize(("levels", "photons", "scale"), [(256, 256, 0.7), (64, 64, 0.7), (65, 128, 0.7), (5, 8, 0.3)])
def test_poisson_noise_has_the_mean_and_the_variance_of_counted_photons(levels, photons, scale):
    at = np.linspace(60, 140, levels).astype(np.uint8) if levels < 80 else np.arange(levels, dtype=np.uint8)
    image = np.tile(at, (12_000, 1))[..., None]
    step = {"kind": "poisson", "scale": scale}
    wide = made(step).degraded(image.astype(np.uint16) * 257, ("a",))[0] / 257
    noise = (wide - image)[..., 0]
    clear = (at > 55) & (at < 165)  # nothing is clipped there
    variance = scale**2 * 255 * at[clear].astype(float) / photons
    off = noise[:, clear].mean(0) / np.sqrt(variance / len(image))
    assert np.abs(off).max() < 4.5  # of its standard error
    assert (off**2).mean() < 2
    spread = noise[:, clear].var(0) / variance
    assert np.abs(spread - 1).max() < 0.1
    assert spread.mean() == pytest.approx(1, abs=0.02)
    assert np.abs(made(step).degraded(image, ("a",))[0] - wide).max() < 0.51  # the same noise, rounded


def test_poisson_noise_on_one_level_counts_single_photons():
    image = np.full((300, 300, 1), 51, np.uint8)  # a fifth of white
    noisy, _ = made({"kind": "poisson", "scale": 1}).degraded(image, ("a",))
    assert set(np.unique(noisy)) == {0, 255}
    assert (noisy > 0).mean() == pytest.approx(1 - math.exp(-0.2), abs=0.01)
    black = np.zeros((9, 9, 3), np.uint8)
    assert (made({"kind": "poisson", "scale": 3, "grey": 1}).degraded(black, ("a",))[0] == black).all()


def test_grey_poisson_noise_is_that_of_the_luma_in_all_channels():
    image = photograph(5, 300, 200) // 8 + np.array([140, 70, 80], np.uint8)
    noises = []
    for grey in (0, 1):
        noisy, happened = made({"kind": "poisson", "scale": 0.53, "grey": grey}).degraded(image, ("a",))
        noises.append(noisy.astype(float) - image)
        assert happened == [{"poisson": {"scale": 0.53, "grey": bool(grey)}}]
    colour, grey = noises
    assert (colour[..., 0] != colour[..., 1]).mean() > 0.5
    assert (grey[..., :1] == grey).all()
    luma = rgb2gray(image)
    photons = 2 ** math.ceil(math.log2(len(np.unique(luma))))
    expected = 0.53**2 * 255 * luma.astype(float).mean() / photons + 1 / 12
    assert grey[..., 0].var() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("width", [3, 40_000])
def test_poisson_noise_is_drawn_pixel_by_pixel_whatever_the_size(width):
    image = np.random.default_rng(1).integers(0, 256, (120_000 // width, width, 1), np.uint8)
    noisy, _ = made({"kind": "poisson", "scale": 1}).degraded(image, ("a", 7))
    rng = philox("a", 7)
    rng.random(3)
    light = image / 255
    exact = image + 255 * (rng.poisson(light * 256) / 256 - light)
    assert (noisy == np.rint(exact).clip(0, 255)).all()


# draws


def test_kernels_are_drawn_evenly_and_independently():
    found = drawn(
        made(
            {
                "kind": "blur",
                "sigma": [0.2, 3],
                "sigma_y": [0.2, 3],
                "rotation": [-180, 180],
                "radius": [3, 10],
                "shape": "plateau",
                "beta": {"any": [1, [1, 2], [3, 4]]},
            },
            {"kind": "sinc", "cutoff": [0.2, 1], "radius": {"any": [2, [5, 6]]}},
        ),
        3000,
    )
    blurs, sincs = ([each[i][kind] for each in found] for i, kind in enumerate(("blur", "sinc")))
    table = {name: np.array([each[name] for each in blurs]) for name in blurs[0] if name != "shape"}
    table |= {f"sinc {name}": np.array([each[name] for each in sincs]) for name in sincs[0]}
    assert np.abs(np.corrcoef(list(table.values())) - np.eye(len(table))).max() < 0.08
    for name, low, high in (("sigma", 0.2, 3), ("sigma_y", 0.2, 3), ("rotation", -180, 180), ("sinc cutoff", 0.2, 1)):
        even = (np.sort(table[name]) - low) / (high - low)
        assert np.abs(even - (np.arange(3000) + 0.5) / 3000).max() < 0.035
    assert Counter(table["radius"]).keys() == set(range(3, 11))
    assert max(Counter(table["radius"]).values()) < 3000 / 8 * 1.2
    beta = table["beta"]
    shares = [(beta == 1).mean(), ((beta > 1) & (beta < 2)).mean(), ((beta >= 3) & (beta < 4)).mean()]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)
    assert beta[(beta > 1) & (beta < 2)].mean() == pytest.approx(1.5, abs=0.04)
    counts = Counter(table["sinc radius"])
    assert [counts[radius] / 3000 for radius in (2, 5, 6)] == pytest.approx([1 / 2, 1 / 4, 1 / 4], abs=0.04)


def test_the_two_parameters_of_a_step_are_drawn_independently():
    found = drawn(
        made(
            {"kind": "noise", "sigma": [2, 6], "grey": 0.5},
            {"kind": "poisson", "scale": [1, 2], "grey": 0.3},
            {"kind": "scale", "factor": [0.5, 1], "filter": ["area", "bicubic"], "keep": True},
            {"kind": "jpeg", "quality": [30, 90], "subsampling": ["4:2:0", "4:4:4"]},
        ),
        3000,
    )
    rows = [[value for step in each for drawn in step.values() for value in drawn.values()] for each in found]
    first = {"area": 0, "bicubic": 1, "4:2:0": 0, "4:4:4": 1}
    columns = [np.array([float(first.get(value, value)) for value in column]) for column in zip(*rows, strict=True)]
    assert np.abs(np.corrcoef(columns) - np.eye(8)).max() < 0.08
    assert columns[3].mean() == pytest.approx(0.3, abs=0.03)  # grey


def test_chroma_is_stored_as_drawn_and_factors_are_of_the_targets_sides():
    image = photograph(4, 40, 60)
    coded, happened = made({"kind": "jpeg", "quality": 30, "subsampling": ["4:4:4"]}).degraded(image, ("a",))
    assert happened == [{"jpeg": {"quality": 30, "subsampling": "4:4:4"}}]
    assert (coded == jpeg(image, 30, "4:4:4")).all()
    assert (coded != jpeg(image, 30)).any()
    half = {"kind": "scale", "factor": 0.5, "keep": True}
    once = made(half).degraded(image, ("a",))[0]
    for again in (half, {"kind": "one_of", "choices": [{"weight": 1, "steps": [half]}] * 2}):
        assert (made(half, again).degraded(image, ("a",))[0] == once).all()


def test_alternatives_are_drawn_by_weight():
    steps = [[{"kind": "blur", "sigma": 1}], [{"kind": "noise", "sigma": [1, 2]}], [{"kind": "jpeg", "quality": 9}] * 2]
    choices = [{"weight": weight, "steps": each} for weight, each in zip((0.2, 1, 0.4), steps, strict=True)]
    found = drawn(made({"kind": "one_of", "choices": choices, "probability": 0.6}), 4000)
    counts = Counter(tuple(next(iter(step)) for step in each) for each in found)
    wanted = {(): 0.4, ("blur",): 0.6 / 8, ("noise",): 0.6 * 5 / 8, ("jpeg", "jpeg"): 0.6 / 4}
    assert {kinds: counts[kinds] / 4000 for kinds in counts} == pytest.approx(wanted, abs=0.03)


def test_a_choice_is_its_steps_with_their_own_draws_and_probabilities():
    image = photograph(2, 30, 40)
    below = {"kind": "blur", "sigma": [0.5, 3], "probability": 0.5}
    choices = [{"weight": 1, "steps": [below, {"kind": "noise", "sigma": [1, 20]}]}] * 2
    found = [made({"kind": "one_of", "choices": choices}).degraded(image, ("a", i)) for i in range(200)]
    assert np.mean([len(happened) == 2 for _, happened in found]) == pytest.approx(0.5, abs=0.12)
    assert len({happened[-1]["noise"]["sigma"] for _, happened in found}) == 200
    for i, (degraded, happened) in enumerate(found):
        rng = philox("a", i)
        rng.random(3)
        plain = [{"kind": kind, **drawn} for each in happened for kind, drawn in each.items()]
        expected = made(*plain[:-1]).degraded(image, ("b",))[0] if plain[:-1] else image
        rng.random(6)
        noise = np.float32(plain[-1]["sigma"]) * rng.standard_normal(image.shape, np.float32)
        assert (degraded == np.rint(expected + noise).clip(0, 255)).all()


# tasks


SINC = {"kind": "sinc", "cutoff": 0.5, "radius": 3}


def either(*steps: dict, **options) -> dict:
    return {
        "kind": "one_of",
        "choices": [{"weight": 1, "steps": [SINC]}, {"weight": 1, "steps": list(steps)}],
        **options,
    }


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"kind": "blur", "sigma": 1, "sigma_y": 2}, "only a round Gaussian finds its own size: add radius"),
        ({"kind": "blur", "sigma": 1, "shape": "plateau", "beta": 1}, "only a round Gaussian finds its own size"),
        ({"kind": "blur", "sigma": 1, "radius": 3, "rotation": 0}, "a round kernel has no rotation: add sigma_y"),
        ({"kind": "blur", "sigma": 1, "radius": 3, "beta": 1}, "generalised or plateau and beta go together"),
        ({"kind": "blur", "sigma": 1, "radius": 3, "shape": "plateau"}, "and beta go together: give both, or neither"),
        ({"kind": "blur", "sigma": 1, "radius": 3, "shape": "round"}, "'gaussian', 'generalised' or 'plateau'"),
        ({"kind": "blur", "sigma": 1, "radius": 3.5}, "expected a whole number from 1 to 50"),
        ({"kind": "blur", "sigma": 1, "radius": 0}, "expected a whole number from 1 to 50"),
        ({"kind": "blur", "sigma": None}, "expected a number from 0.05 to 50"),
        ({"kind": "blur", "sigma": {"any": [[2, 1]]}}, r"or {any: \[...\]} of numbers and ranges"),
        ({"kind": "blur", "sigma": {"any": [{"any": [1]}]}}, r"or {any: \[...\]} of numbers and ranges"),
        ({"kind": "sinc", "cutoff": 1.1, "radius": 3}, "expected a number from 0.01 to 1"),
        ({"kind": "sinc", "cutoff": 0.5}, "radius"),
        ({"kind": "poisson", "scale": -1}, "expected a number from 0 to 20"),
        ({"kind": "one_of", "choices": [{"weight": 1, "steps": [SINC]}]}, "at least 2 items"),
        (either(), "at least 1 item"),
        (either(either(SINC)), "Input tag 'one_of' found"),
        ({"kind": "one_of", "choices": [{"weight": w, "steps": [SINC]} for w in (1, 0)]}, "greater than 0"),
        ({"kind": "one_of", "choices": [{"weight": w, "steps": [SINC]} for w in (1, float("inf"))]}, "finite number"),
    ],
)
def test_a_step_that_cannot_be_is_refused(step, problem):
    with pytest.raises(ValueError, match=problem):
        made(step)


def test_a_misspelt_option_below_a_choice_is_told_with_its_line(tmp_path):
    path = tmp_path / "task.yaml"
    lines = ["colour: rgb", "degradation:", "  kind: chain", "  steps:", "    - kind: one_of", "      choices:"]
    lines += ["        - {weight: 1, steps: [{kind: jpeg, quality: 9}]}", "        - weight: 1", "          steps:"]
    lines += ["            - {kind: sinc, radius: 3, cutof: 0.5}", "splits: {train: [photos/train]}"]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"task.yaml:10: .*sinc.cutof: unknown key; did you mean 'cutoff'"):
        read_task(str(path))


def test_jpeg_below_a_choice_holds_8_bits():
    fields = {"colour": "rgb", "bits": 16, "splits": {"train": ("photos/train",)}}
    coded = {"kind": "chain", "steps": [either({"kind": "jpeg", "quality": 9})]}
    with pytest.raises(ValueError, match="JPEG holds 8 bits a channel"):
        Task.model_validate(fields | {"degradation": coded})
    assert Task.model_validate(fields | {"degradation": {"kind": "chain", "steps": [either(SINC)]}}).bits == 16


def test_the_sample_task_draws_what_real_esrgan_publishes():
    task = read_task("photos-real-esrgan")
    assert isinstance(task.degradation, Chain)
    found = drawn(task.degradation, 4000)

    def share(name: str, index: int, of: list[dict] | None = None) -> float:
        return float(np.mean([[*each[index]] == [name] for each in of or found]))

    first = [each[0] for each in found]
    kernels = Counter(
        (each["blur"].get("shape", "gaussian"), "sigma_y" in each["blur"]) for each in first if "blur" in each
    )
    published = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]  # kernel_prob
    order = [(shape, elliptic) for shape in ("gaussian", "generalised", "plateau") for elliptic in (False, True)]
    assert [kernels[each] / 4000 for each in order] == pytest.approx([0.9 * p for p in published], abs=0.025)
    assert share("sinc", 0) == pytest.approx(0.1, abs=0.02)
    radii = Counter(next(iter(each.values()))["radius"] for each in first)
    assert [radii[radius] / 4000 for radius in range(3, 11)] == pytest.approx([1 / 8] * 8, abs=0.02)
    for short in (True, False):
        cutoffs = [e["sinc"]["cutoff"] for e in first if "sinc" in e and (e["sinc"]["radius"] < 6) == short]
        assert min(cutoffs) == pytest.approx(1 / 3 if short else 1 / 5, abs=0.03)
    factors = np.array([each[1]["scale"]["factor"] for each in found])
    assert [(factors > 1).mean(), (factors < 1).mean()] == pytest.approx([0.2, 0.7], abs=0.03)
    assert (factors.min(), factors.max()) == pytest.approx((0.15, 1.5), abs=0.01)
    assert share("noise", 2) == pytest.approx(0.5, abs=0.03)
    assert share("poisson", 2) == pytest.approx(0.5, abs=0.03)
    assert share("jpeg", 3) == 1
    blurred = [each for each in found if {*each[4]} & {"blur", "sinc"}]
    assert len(blurred) / 4000 == pytest.approx(0.8, abs=0.02)
    assert share("sinc", 4, blurred) == pytest.approx(0.1, abs=0.02)
    assert max(each[4]["blur"]["sigma"] for each in blurred if "blur" in each[4]) == pytest.approx(1.5, abs=0.01)
    ends = [each[5:] if {*each[4]} & {"blur", "sinc"} else each[4:] for each in found]
    second = np.array([each[0]["scale"]["factor"] for each in ends]) * 4
    assert [(second > 1).mean(), (second < 1).mean()] == pytest.approx([0.3, 0.4], abs=0.03)
    assert (second.min(), second.max()) == pytest.approx((0.3, 1.2), abs=0.01)
    assert share("poisson", 1, ends) == pytest.approx(0.5, abs=0.03)
    orders = Counter(tuple(next(iter(step)) for step in each[2:]) for each in ends)
    wanted = {("scale", "sinc", "jpeg"): 0.4, ("scale", "jpeg"): 0.1, ("jpeg", "scale", "sinc"): 0.4}
    assert {each: orders[each] / 4000 for each in orders} == pytest.approx(wanted | {("jpeg", "scale"): 0.1}, abs=0.03)
    assert {step["scale"]["factor"] for each in ends for step in each[2:] if "scale" in step} == {0.25}


def test_a_card_says_the_steps_of_a_record():
    kept = read_task("photos-real-esrgan").degradation.model_dump(mode="json")
    chain = recorded(json.loads(json.dumps(kept)))
    assert chain == read_task("photos-real-esrgan").degradation
    said = chain.said()["in this order:"]
    assert said[2] == "one of: 0.5 noise (sigma 1 to 30, grey 0.4); 0.5 poisson (scale 0.05 to 3, grey 0.4)"
    assert said[4].startswith("one of (probability 0.8): 0.405 blur (sigma 0.2 to 1.5, radius 3 to 10); 0.225 blur (")
    assert "beta 0.5 to 1 or 1 to 4" in said[0]
    assert "then sinc (probability 0.8, cutoff 0.3333 to 1, radius 3 to 10), then jpeg (quality 30 to 95)" in said[-1]
