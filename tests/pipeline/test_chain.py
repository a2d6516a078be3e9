"""Degradations one after another, stored and online."""

import itertools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.degradations.chain import Chain
from pipeline.degradations.jpeg import jpeg
from pipeline.errors import UserError
from pipeline.loading.loader import Loader, Position
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards import kept
from pipeline.shards.format import verify
from pipeline.shards.inspect import inspect
from pipeline.shards.shard_set import ShardSet, validation_pair
from pipeline.task import Task, read_task, recorded

OUT = Path("data/tiny")
PATCH, BATCH = 24, 12
STEPS = [
    {"kind": "blur", "sigma": [0.2, 2], "probability": 0.7},
    {"kind": "scale", "factor": [0.3, 1.4], "filter": ["area", "bilinear", "bicubic"], "keep": True},
    {"kind": "noise", "sigma": {"any": [5, 20]}, "grey": 0.5},
    {"kind": "jpeg", "quality": [30, 95], "subsampling": ["4:2:0", "4:4:4"]},
    {"kind": "scale", "factor": 0.5},
    {"kind": "jpeg", "quality": 50, "probability": 0.5},
    {
        "kind": "one_of",
        "choices": [
            {"weight": 2, "steps": [{"kind": "poisson", "scale": [0.1, 1], "grey": 0.5}]},
            {
                "weight": 1,
                "steps": [{"kind": "sinc", "cutoff": [0.3, 1], "radius": [1, 6]}, {"kind": "jpeg", "quality": 90}],
            },
        ],
    },
]
FILES = {
    f"{split}/{i}.png": photograph(10 * i + n, 60 + 9 * i, 70)
    for n, split in enumerate(("train", "val"))
    for i in range(3)
}
FILES["train/grey.png"] = photograph(99, 50, 60, 1)


def chain(*steps: dict, **options) -> dict:
    return {"kind": "chain", "steps": list(steps) or STEPS, **options}


def made(*steps: dict, **options) -> Chain:
    return Chain.model_validate(chain(*steps, **options))


@pytest.fixture(scope="session")
def online(builder) -> Path:
    return builder("chain-online", FILES, degradation=chain(drawn="online"), colour="rgb")


def load(folder: Path, **changes) -> Loader:
    return Loader(folder, **{"batch": BATCH, "sampling": RandomCrops(PATCH, 20), "seed": 5} | changes)


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    names = parts[0].keys() - {"epoch", "count"}
    return {name: torch.cat([part[name] for part in parts]) for name in names}


# online


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.integers(0, 2), st.integers(0, 10**6))
@settings(max_examples=15)
def test_a_run_with_an_online_chain_continues_at_any_batch_with_any_world_size_and_threads(
    online, world_size, threads, epoch, batch
):
    one = load(online)
    start = Position(epoch, len(one) - 2 if batch % 3 == 0 else batch % len(one))
    ranks = [load(online, rank=r, world_size=world_size, threads=threads).batches(start) for r in range(world_size)]
    undisturbed = itertools.islice(one.batches(Position(epoch)), start.batch, start.batch + 4)
    for position, expected in undisturbed:
        parts = [next(rank) for rank in ranks]
        assert {at for at, _ in parts} == {position}
        found, wanted = joined([part for _, part in parts]), joined([expected])
        assert found.keys() == wanted.keys() >= {"gt", "lq"}
        assert all(torch.equal(found[name], wanted[name]) for name in found)
    for rank in ranks:
        rank.close()


def test_an_input_belongs_to_its_sample_and_epoch_and_to_no_global_state(online):
    loader = load(online, sampling=Grid(PATCH, 40))  # places that are the same in each epoch

    def inputs(epoch: int) -> dict[int, bytes]:
        found = {}
        for i in range(len(loader)):
            batch = loader.cut(Position(epoch, i))
            assert batch["lq"].dtype == batch["gt"].dtype == torch.uint8
            assert batch["lq"].shape == batch["gt"].shape
            found |= {int(s): lq.numpy().tobytes() for s, lq in zip(batch["sample"], batch["lq"], strict=True)}
        return found

    first = inputs(0)
    np.random.seed(7)
    cv2.setRNGSeed(7)
    assert inputs(0) == first
    second = inputs(1)
    assert first.keys() == second.keys() == set(range(loader.samples))
    assert not any(first[sample] == second[sample] for sample in first)
    assert len(set(first.values())) == len(first)
    assert loader.digest != load(online, sampling=Grid(PATCH, 40), seed=6).digest


def test_jpeg_online_is_that_of_the_encoder_that_stores(builder):
    folder = builder(
        "chain-jpeg", FILES, degradation=chain({"kind": "jpeg", "quality": 10}, drawn="online"), colour="rgb"
    )
    batch = load(folder).cut(Position())
    for gt, lq in zip(batch["gt"].permute(0, 2, 3, 1).numpy(), batch["lq"].permute(0, 2, 3, 1).numpy(), strict=True):
        assert (lq == jpeg(np.ascontiguousarray(gt), 10)).all()


def test_an_online_chain_delivers_floats_and_its_negatives(builder):
    folder = builder("chain-negatives", FILES, degradation=chain(drawn="online"), colour="rgb", negatives={})
    loader = load(folder)
    assert loader.delivers == {"gt", "lq", "intra negatives"}
    batch = loader.to_device(loader.cut(Position()), torch.device("cpu"))
    lq, gt = batch["lq"].double(), batch["gt"].double()
    assert batch["lq"].dtype == batch["negatives"].dtype == torch.float32
    # not rounded to levels: what is left are roundings of float32, at most 2**-25 each below 1
    assert (batch["negatives"][:, 0] - lq).abs().max() <= 2 * 2**-25
    assert (batch["negatives"][:, 1] - (0.95 * lq + 0.05 * gt)).abs().max() <= 4 * 2**-25


def test_a_whole_image_is_validated_with_the_same_draw_each_time(online):
    for version in ShardSet(online, "val").versions():
        lq, gt = validation_pair(version)
        assert (lq == validation_pair(version)[0]).all()
        assert lq.shape == gt.shape
        assert 0.005 < np.abs(lq - gt).mean() < 0.2
    assert inspect(online, online.parent / "sheet.png")["splits"]["val"]["levels"] == {"version 0": 3}


def test_the_shards_of_a_chain_drawn_online_are_those_of_noise_drawn_online(workplace, without_ray):
    for name, pixels in FILES.items():
        workplace.add(name, pixels)
    workplace.ingest()
    noise = workplace.build(degradation={"kind": "noise"})
    listing = workplace.build(degradation=chain(drawn="online"))
    assert (listing["encoded"], listing["digest"]) == (0, noise["digest"])


# stored


def test_a_stored_chain_has_the_same_bytes_for_any_number_of_builders_and_of_neighbours(
    workplace, without_ray, monkeypatch
):
    for name, pixels in FILES.items():
        workplace.add(name, pixels)
    workplace.ingest()
    digests = set()
    for cpus in (1, 2, 4):
        monkeypatch.setattr(kept, "STORE", Path(f".cache/{cpus}"))
        shutil.rmtree(OUT, ignore_errors=True)  # else its shards are taken
        listing = workplace.build(degradation=chain(versions=3), colour="rgb", cpus=cpus)
        digests.add((listing["digest"], listing["parts"][0]["index"]))
        assert listing["encoded"] == len(listing["shards"])
    assert len(digests) == 1
    assert list(verify(OUT)) == []
    first = {(v.key, v.level): v.planes["lq"].tobytes() for v in ShardSet(OUT, "train").versions()}
    assert sorted({level for _, level in first}) == [0, 1, 2]
    assert len(set(first.values())) == len(first)
    (workplace.root / "photos/train/1.png").unlink()
    workplace.ingest()
    workplace.build(degradation=chain(versions=3), colour="rgb")
    without = {(v.key, v.level): v.planes["lq"].tobytes() for v in ShardSet(OUT, "train").versions()}
    assert without.items() < first.items()
    workplace.build(degradation=chain(versions=3, seed=1), colour="rgb")
    other = {(v.key, v.level): v.planes["lq"].tobytes() for v in ShardSet(OUT, "train").versions()}
    assert not any(other[name] == without[name] for name in other)


def test_what_was_drawn_is_in_the_index(workplace, without_ray):
    workplace.add("train/1.png", photograph(1, 40, 48))
    workplace.ingest()
    steps = ({"kind": "scale", "factor": [0.5, 0.9], "filter": "area"}, {"kind": "jpeg", "quality": [20, 40]})
    workplace.build(degradation=chain(*steps), colour="rgb")
    (row,) = (row for row in pq.read_table(OUT / "index").to_pylist() if row["role"] == "lq")
    (scale, coded) = json.loads(row["parameters"])
    assert (row["member"], row["level"]) == ("lq-v0.npy", 0)
    assert 0.5 <= scale["scale"]["factor"] < 0.9
    assert 20 <= coded["jpeg"]["quality"] <= 40
    (version,) = ShardSet(OUT, "train").versions()
    gt, (h, w) = version.planes["gt"], (round(side * scale["scale"]["factor"]) for side in (40, 48))
    low = cv2.resize(gt, (w, h), interpolation=cv2.INTER_AREA)
    assert (
        version.planes["lq"] == jpeg(cv2.resize(low, (48, 40), interpolation=cv2.INTER_AREA), coded["jpeg"]["quality"])
    ).all()


# one image


RADII = st.sampled_from([1, 25, (3, 10), {"any": [2, (5, 50)]}])
AMOUNTS = st.floats(0.05, 3) | st.tuples(st.floats(0.05, 1), st.floats(1, 3)) | st.just({"any": [0.5, 2]})
ANY_STEP = st.one_of(
    st.fixed_dictionaries({"kind": st.just("blur"), "sigma": AMOUNTS}),
    st.fixed_dictionaries(
        {
            "kind": st.just("scale"),
            "factor": AMOUNTS,
            "keep": st.booleans(),
            "filter": st.sampled_from(["bicubic", "bilinear", "area", ["area", "bilinear"]]),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("noise"), "sigma": AMOUNTS, "grey": st.sampled_from([0, 0.5, 1])}),
    st.fixed_dictionaries({"kind": st.just("jpeg"), "quality": st.sampled_from([1, (20, 90), {"any": [5, 100]}])}),
    st.fixed_dictionaries({"kind": st.just("poisson"), "scale": AMOUNTS, "grey": st.sampled_from([0, 0.5, 1])}),
    st.fixed_dictionaries({"kind": st.just("sinc"), "cutoff": st.sampled_from([0.01, (0.2, 1)]), "radius": RADII}),
    st.fixed_dictionaries({"kind": st.just("blur"), "sigma": AMOUNTS, "radius": RADII}),
    st.fixed_dictionaries(
        {
            "kind": st.just("blur"),
            "sigma": AMOUNTS,
            "sigma_y": AMOUNTS,
            "rotation": st.sampled_from([0, 30.5, (-180, 180)]),
            "radius": RADII,
            "shape": st.sampled_from(["generalised", "plateau"]),
            "beta": st.sampled_from([0.1, 10, {"any": [1, (0.5, 4)]}]),
        }
    ),
)


def kinds(steps: list[dict]) -> list[str]:
    return [step["kind"] for step in steps]


@given(
    st.lists(ANY_STEP, min_size=1, max_size=5),
    st.lists(st.lists(ANY_STEP, min_size=1, max_size=3), min_size=2, max_size=3),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3])),
    st.sampled_from([np.uint8, np.uint16]),
)
def test_any_chain_keeps_size_and_dtype_and_leaves_its_input_alone(steps, choices, shape, dtype):
    if dtype == np.uint16:
        steps, *choices = (
            [step for step in each if step["kind"] != "jpeg"] or [{"kind": "blur", "sigma": 1}]
            for each in (steps, *choices)
        )
    last = {"kind": "one_of", "choices": [{"weight": 0.3, "steps": each} for each in choices]}
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    before = image.copy()
    degraded, happened = made(*steps, last).degraded(image, ("a", 1))
    assert (degraded.shape, degraded.dtype) == (image.shape, image.dtype)
    assert (image == before).all()
    found = [next(iter(each)) for each in happened]
    assert found in [kinds(steps) + kinds(each) for each in choices]
    assert (made(*steps, last).degraded(image, ("a", 1))[0] == degraded).all()
    kept = json.loads(json.dumps(made(*steps, last).model_dump(mode="json")))
    assert recorded(kept) == made(*steps, last)
    json.dumps(happened)


def test_a_draw_is_keyed_by_all_that_names_its_image():
    image = np.full((8, 8, 3), 128, np.uint8)
    noise = {"kind": "noise", "sigma": 20}

    def patches(samples: list[int], seed: int, epoch: int) -> list[bytes]:
        out = np.empty((len(samples), *image.shape), np.uint8)
        gt, level = np.stack([image] * len(samples)), np.zeros(len(samples), np.int64)
        made(noise).patches(gt, level, np.array(samples), seed, epoch, out)
        return [each.tobytes() for each in out]

    online = [patches([sample], seed, epoch)[0] for sample in (3, 4) for seed in (0, 1) for epoch in (0, 1)]
    assert patches([4, 3], 0, 0) == [online[4], online[0]]
    versions = itertools.product((0, 1), ("a", "b"), (0, 1))
    stored = [made(noise, seed=seed).made(image, level, key)[1].tobytes() for level, key, seed in versions]
    whole = [
        made(noise).whole(image, level, key, seed).tobytes() for level in (0, 1) for key in "ab" for seed in (0, 1)
    ]
    assert len({*online, *stored, *whole}) == 24


def test_draws_fill_their_ranges_evenly():
    steps = (
        {"kind": "jpeg", "quality": [30, 33]},
        {"kind": "noise", "sigma": [2, 6], "grey": 0.25},
        {"kind": "scale", "factor": {"any": [0.5, 1]}, "filter": ["area", "bicubic", "bilinear"]},
        {"kind": "blur", "sigma": 1, "probability": 0.3},
    )
    image = np.zeros((4, 4, 3), np.uint8)
    found = [made(*steps).degraded(image, ("a", i))[1] for i in range(2000)]
    drawn = {
        kind: [p for happened in found for each in happened for k, p in each.items() if k == kind]
        for kind in ("jpeg", "noise", "scale", "blur")
    }

    def share(kind: str, name: str, value: object) -> float:
        return float(np.mean([parameters[name] == value for parameters in drawn[kind]]))

    for quality in (30, 31, 32, 33):
        assert share("jpeg", "quality", quality) == pytest.approx(0.25, abs=0.04)
    sigmas = [parameters["sigma"] for parameters in drawn["noise"]]
    assert 2 <= min(sigmas) < 2.05
    assert 5.95 < max(sigmas) < 6
    assert np.mean(sigmas) == pytest.approx(4, abs=0.1)
    assert share("noise", "grey", True) == pytest.approx(0.25, abs=0.04)
    assert share("scale", "factor", 0.5) == pytest.approx(0.5, abs=0.05)
    for name in ("area", "bicubic", "bilinear"):
        assert share("scale", "filter", name) == pytest.approx(1 / 3, abs=0.05)
    assert len(drawn["blur"]) / 2000 == pytest.approx(0.3, abs=0.04)


def test_noise_has_its_deviation_in_each_channel_and_grey_noise_is_one_for_all():
    image = np.full((200, 200, 3), 128, np.uint8)
    for grey in (0, 1):
        noisy, _ = made({"kind": "noise", "sigma": 10, "grey": grey}).degraded(image, ("a",))
        noise = noisy.astype(float) - image
        assert noise.std((0, 1)) == pytest.approx([10, 10, 10], rel=0.03)
        assert (noise[..., 0] == noise[..., 1]).all() == bool(grey)


def test_kept_sizes_come_back_last_and_16_bits_are_the_same_picture():
    image = photograph(3, 40, 60)
    kept, _ = made({"kind": "scale", "factor": 0.5, "keep": True}, {"kind": "jpeg", "quality": 20}).degraded(
        image, ("a",)
    )
    low = jpeg(cv2.resize(image, (30, 20), interpolation=cv2.INTER_CUBIC), 20)
    assert (kept == cv2.resize(low, (60, 40), interpolation=cv2.INTER_CUBIC)).all()
    steps = (
        {"kind": "blur", "sigma": 1.5},
        {"kind": "noise", "sigma": 8},
        {"kind": "scale", "factor": 0.6, "filter": "bilinear"},
    )
    narrow, _ = made(*steps).degraded(image, ("a",))
    wide, _ = made(*steps).degraded(image.astype(np.uint16) * 257, ("a",))
    assert np.abs(wide / 257 - narrow).max() < 2


# tasks


@pytest.mark.parametrize(
    ("degradation", "problem"),
    [
        (chain(drawn="online", versions=2), "a chain drawn online is another one in each epoch: leave out versions"),
        (chain(drawn="online", seed=2), "leave out versions and seed"),
        ({"kind": "chain", "steps": []}, "at least 1 item"),
        (chain({"kind": "blur"}), "steps.0.blur.sigma"),
        (
            chain({"kind": "blur", "sigma": [2, 1]}),
            r"expected a number from 0.05 to 50, \[low, high\] to draw it from, or",
        ),
        (chain({"kind": "blur", "sigma": 0}), "expected a number from 0.05 to 50"),
        (chain({"kind": "blur", "sigma": True}), "expected a number"),
        (chain({"kind": "noise", "sigma": {"some": [1]}}), r"or {any: \[...\]}"),
        (chain({"kind": "noise", "sigma": [1, 2, 3]}), r"or {any: \[...\]}"),
        (chain({"kind": "noise", "sigma": float("nan")}), "expected a number from 0 to 255"),
        (chain({"kind": "jpeg", "quality": 30.5}), "expected a whole number from 1 to 100"),
        (chain({"kind": "jpeg", "quality": [0, 30]}), "expected a whole number from 1 to 100"),
        (chain({"kind": "scale", "factor": 0.5, "filter": "lanczos"}), "'bicubic', 'bilinear' or 'area'"),
        (chain({"kind": "rain"}), "'blur', 'sinc', 'scale', 'noise', 'poisson', 'jpeg', 'one_of'"),
        (chain({"kind": "blur", "sigma": 1, "probability": 0}), "greater than 0"),
    ],
)
def test_a_chain_that_cannot_be_is_refused(degradation, problem):
    with pytest.raises(ValueError, match=problem):
        Task.model_validate({"colour": "rgb", "degradation": degradation, "splits": {"train": ("photos/train",)}})


def test_a_misspelt_option_of_a_step_is_told_with_its_line(tmp_path):
    path = tmp_path / "task.yaml"
    lines = ["colour: rgb", "degradation:", "  kind: chain", "  steps:", "    - {kind: blur, sigma: 1}"]
    lines += ["    - {kind: noise, sgima: 2}", "splits: {train: [photos/train]}"]
    path.write_text("\n".join(lines))
    with pytest.raises(
        UserError, match=r"task.yaml:6: degradation.chain.steps.1.noise.sgima: unknown key; did you mean 'sigma'"
    ):
        read_task(str(path))


def test_jpeg_in_a_chain_holds_8_bits():
    fields = {"colour": "rgb", "bits": 16, "splits": {"train": ("photos/train",)}}
    with pytest.raises(ValueError, match="JPEG holds 8 bits a channel"):
        Task.model_validate(fields | {"degradation": chain()})
    assert Task.model_validate(fields | {"degradation": chain({"kind": "blur", "sigma": 1})}).bits == 16
