import tracemalloc
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import encode, photograph

from pipeline.images import decode_image
from pipeline.raw.leaks import AT_ONCE, LEAKS_SCHEMA, NEAR, _near, leaks, perceptual_hash
from pipeline.raw.manifest import SCHEMA, Source, ingest

SKIMAGE = Path(pytest.importorskip("skimage").__file__).parent / "data"
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


def read(name: str) -> np.ndarray:
    return decode_image((SKIMAGE / name).read_bytes())


def hashed(image: np.ndarray) -> int:
    value = perceptual_hash(image)
    assert value is not None
    return value


def copies(image: np.ndarray) -> dict[str, np.ndarray]:
    """The same photograph as others would publish it."""
    noise = np.random.default_rng(0).normal(0, 10, image.shape)
    height, width, channels = image.shape
    half = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return {
        "JPEG of quality 50": decode_image(encode(image.squeeze(), "JPEG", quality=50)),
        "noise of sigma 10": (image + noise).round().clip(0, 255).astype(np.uint8),
        "half the size": half.reshape(height // 2, width // 2, channels),
        "grey": cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if channels == 3 else image,
    }


def table(*images: dict[str, Any]) -> pa.Table:
    """A manifest: each image is a clean one in train with bytes and a hash of its own, except for what is said of it."""
    rng = np.random.default_rng(0)
    rows = [
        {"dataset": "d", "split": "train", "role": "gt", "key": str(i), "group": str(i), "path": f"{i}.png"}
        | {"sha256": f"sha {i}", "phash": int(rng.integers(1 << 64, dtype=np.uint64))}
        | image
        for i, image in enumerate(images)
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def found(manifest: pa.Table) -> list[tuple[str, int, str, str]]:
    """(kind, bits, path, path)"""
    shared = leaks(manifest)
    assert shared.schema.equals(LEAKS_SCHEMA)
    return [(row["kind"], row["bits"], row["path_a"], row["path_b"]) for row in shared.to_pylist()]


# the hash


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_hash_of_a_photograph_survives_what_copies_suffer(name):
    image = read(name)
    for what, copy in copies(image).items():
        assert (hashed(image) ^ hashed(copy)).bit_count() <= NEAR, what


def test_the_hashes_of_different_photographs_are_far_apart():
    hashes = [hashed(read(name)) for name in PHOTOGRAPHS]
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) > 2 * NEAR


def test_a_hash_is_none_or_fits_into_the_manifest():
    images = [photograph(seed, 32 + seed, 64, 1 + 2 * (seed % 2)) for seed in range(20)]
    for image in images:
        assert pa.array([hashed(image)], pa.uint64())[0].as_py() == hashed(image)
    assert any(hashed(image) >= 1 << 63 for image in images)


def flat_images() -> list[np.ndarray]:
    ramp = np.linspace(100, 102, 64).round().astype(np.uint8)
    noisy = np.random.default_rng(0).normal(128, 10, (512, 512, 3)).round().astype(np.uint8)
    return [
        np.full((40, 50, 3), 255, np.uint8),
        np.zeros((16, 16, 1), np.uint8),
        np.tile(ramp, (64, 1))[..., None],
        noisy,
    ]


def test_a_flat_image_has_no_hash_and_no_copies():
    assert [perceptual_hash(image) for image in flat_images()] == [None] * 4
    assert found(table({"phash": None}, {"phash": None, "split": "test"})) == []


# exact and near copies


def test_an_exact_copy_in_another_split_is_found_in_one_dataset_and_over_two():
    manifest = table(
        {"sha256": "same"},
        {"sha256": "same", "dataset": "more"},
        {"sha256": "same", "split": "val"},
        {"sha256": "same", "split": "test", "dataset": "other"},
        {"split": "test"},
    )
    assert found(manifest) == [
        ("exact", 0, "0.png", "2.png"),
        ("exact", 0, "0.png", "3.png"),
        ("exact", 0, "2.png", "3.png"),
    ]
    places = [
        f"{side}: {row[f'dataset_{side}']}/{row[f'split_{side}']}"
        for row in leaks(manifest).to_pylist()
        for side in "ab"
    ]
    assert places == ["a: d/train", "b: d/val", "a: d/train", "b: other/test", "a: d/val", "b: other/test"]


def test_copies_within_one_split_are_no_leak():
    assert found(table({"sha256": "same", "phash": 7}, {"sha256": "same", "phash": 7, "dataset": "other"})) == []


@pytest.mark.parametrize("bits", range(NEAR + 2))
def test_hashes_that_differ_in_few_bits_are_near_wherever_those_bits_are(bits):
    rng = np.random.default_rng(bits)
    for _ in range(50):
        flips = sum(1 << int(bit) for bit in rng.choice(64, bits, replace=False))
        value = int(rng.integers(1 << 64, dtype=np.uint64))
        manifest = table({"phash": value}, {}, {"phash": value ^ flips, "split": "test"})
        assert found(manifest) == ([("near", bits, "0.png", "2.png")] if bits <= NEAR else [])


def test_of_several_copies_the_exact_one_is_reported_then_the_nearest_then_the_first():
    copies = [{"phash": 0b111}, {"phash": 0b1}, {"phash": 0b10}, {"sha256": "same", "phash": 0b1111}]
    assert found(table(*copies, {"phash": 0, "split": "test"})) == [("near", 1, "1.png", "4.png")]
    assert found(table(*copies, {"phash": 0, "split": "test", "sha256": "same"})) == [("exact", 0, "3.png", "4.png")]


@pytest.mark.parametrize("at_once", [1, 50, AT_ONCE])
def test_all_pairs_are_found_that_comparing_each_with_each_finds(at_once, monkeypatch):
    monkeypatch.setattr("pipeline.raw.leaks.AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(1 << 64, size=40, dtype=np.uint64)]
    for value in hashes * 3:
        hashes.append(value ^ sum(1 << int(bit) for bit in rng.choice(64, int(rng.integers(8)), replace=False)))
    splits = [("train", "val", "test")[i] for i in rng.integers(3, size=len(hashes))]
    wanted = set()
    for i, value in enumerate(hashes):
        for split in {"train", "val", "test"} - {splits[i]}:
            near = [((value ^ hashes[j]).bit_count(), j) for j in range(i) if splits[j] == split]
            if near and min(near)[0] <= NEAR:
                wanted.add(("near", min(near)[0], f"{min(near)[1]}.png", f"{i}.png"))
    assert len(wanted) > 50
    assert set(found(table(*({"phash": h, "split": s} for h, s in zip(hashes, splits, strict=True))))) == wanted


def test_what_stands_for_a_group_is_its_target_else_its_inputs_and_the_first_frame_of_a_scene():
    pair = [
        {"role": role, "group": "1", "phash": phash} for role, phash in (("lq", 1 << 20), ("gt", 1), ("mask", 3 << 40))
    ]
    scene = [{"role": "frame", "group": "s", "frame": frame, "phash": 1 << 30 | frame << 50} for frame in (1, 2)]
    here = [*pair, *scene, {"role": "lq", "group": "alone", "phash": 5 << 10}]
    for i, manifest in enumerate(table(*here, each | {"split": "test", "group": "x", "role": "gt"}) for each in here):
        compared = i in (1, 3, 5)  # the gt, the first frame that can be used (0 was damaged), the lq without gt
        hits = [row for row in found(manifest) if row[1] == 0]
        assert hits == ([("near", 0, f"{i}.png", "6.png")] if compared else []), here[i]


# many


def many(number: int, hashes: np.ndarray) -> pa.Table:
    splits = ("train", "train", "train", "val", "test")
    return table(*({"phash": int(h), "split": splits[i % 5]} for i, h in zip(range(number), hashes, strict=True)))


@pytest.mark.parametrize("kind", ["apart", "crowded", "equal"])
def test_twenty_thousand_images_take_seconds_and_a_copy_among_them_is_found(kind):
    number = 20_000
    hashes = np.random.default_rng(1).integers(1 << 64, size=number, dtype=np.uint64)
    if kind == "crowded":  # all agree in one band, and may be near for all that this band says
        hashes &= ~np.uint64((1 << 13) - 1)
    if kind == "equal":
        hashes[:] = 0xABCDEF
    else:
        hashes[-1] = hashes[0] ^ np.uint64(0b11 << 20)
    manifest = many(number, hashes)
    start = perf_counter()
    pairs = found(manifest)
    assert perf_counter() - start < 20
    if kind == "equal":  # both other splits have one before each, but for the first four images
        assert len(pairs) == 2 * (number - 4) + 1
        assert {row[:2] for row in pairs} == {("near", 0)}
    else:
        assert pairs == [("near", 2, "0.png", f"{number - 1}.png")]


def test_the_memory_does_not_grow_with_the_comparisons():
    hashes = np.random.default_rng(1).integers(1 << 64, size=8_000, dtype=np.uint64) & ~np.uint64((1 << 13) - 1)
    tracemalloc.start()
    assert list(_near(hashes[::2], hashes[1::2])) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 64 * AT_ONCE


# from files


def test_ingest_finds_copies_of_photographs_over_splits_and_datasets_and_nothing_else(workplace):
    names = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "gravel.png")
    for name in names:
        workplace.add(f"train/{name}", (SKIMAGE / name).read_bytes())
    cat, camera = copies(read("chelsea.png")), copies(read("camera.png"))
    workplace.add("val/cat.jpg", encode(cat["JPEG of quality 50"], "JPEG", quality=50))
    workplace.add("val/coins.png", (SKIMAGE / "coins.png").read_bytes())
    for i, flat in enumerate(flat_images()):
        workplace.add(f"{('train', 'val')[i % 2]}/flat-{i}.png", flat)
    other = {"half.png": camera["half the size"], "noise.png": camera["noise of sigma 10"]}
    for name, pixels in other.items():
        workplace.add(f"../other/test/{name}", pixels)
    workplace.add("../other/test/rocket.jpg", (SKIMAGE / "rocket.jpg").read_bytes())
    sources = {name: Source(layout="folder", root=name) for name in ("photos", "other")}
    shared = ingest(sources, Path("data/manifest")).leaks
    assert [(row["kind"], row["path_a"], row["path_b"]) for row in shared.to_pylist()] == [
        ("near", "photos/train/chelsea.png", "photos/val/cat.jpg"),
        ("near", "photos/train/camera.png", "other/test/half.png"),
        ("near", "photos/train/camera.png", "other/test/noise.png"),
        ("exact", "photos/train/rocket.jpg", "other/test/rocket.jpg"),
    ]
    assert pq.read_table("data/manifest/leaks.parquet").equals(shared)
