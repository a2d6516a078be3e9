"""`memoir inspect`: the counts of a built dataset, and the pixels on its contact sheet."""

import json
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from conftest import photograph
from hypothesis import given
from hypothesis import strategies as st

import pipeline.shards.inspect
from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.raw.manifest import write_table
from pipeline.shards.format import (
    INDEX_SCHEMA,
    LISTING,
    dataset_digest,
    file_sha256,
    json_member,
    npy_member,
    table_file,
    write_shard,
)
from pipeline.shards.inspect import CROP, ROWS, ZOOM, _detail, inspect
from pipeline.shards.shard_set import ShardSet, validation_pair

DEGRADATIONS = {
    "jpeg": {"kind": "jpeg", "quality": [10, 20]},
    "scale": {"kind": "scale", "factor": [2, 3]},
    "noise": {"kind": "noise", "sigma": [30, 50], "drawn": "online"},
}


def write_dataset(folder: Path, kind: str, channels: int, splits: dict[str, list[tuple[int, int]]]) -> Path:
    """What a build leaves: an image of each (height, width), two images a shard, at two levels each."""
    rng = np.random.default_rng(0)
    shards, rows = [], []
    for split, sizes in splits.items():
        samples = []
        for i, (height, width) in enumerate(sizes):
            gt = rng.integers(0, 256, (height, width, channels), np.uint8)
            members = [npy_member("gt.npy", gt, role="gt")]
            for level in {"jpeg": (10, 20), "scale": (2, 3), "noise": ()}[kind]:
                lq = gt // level
                if kind == "scale":  # cut to a multiple, as a build does
                    lq = lq[: height - height % level, : width - width % level]
                members.append(npy_member(f"lq-{level}.npy", lq, role="lq", level=level))
            samples.append((f"{split}-{i}", [*members, json_member({})]))
        for pair in (samples[i : i + 2] for i in range(0, len(samples), 2)):
            shard = write_shard(pair, folder / split)
            entries = shard.pop("rows")
            rows += [{"split": split, **entry} for entry in entries]
            shards.append({"split": split, "groups": len(pair), "members": len(entries), **shard})
    write_table(folder / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
    sha256 = file_sha256(folder / "index.parquet")
    (folder / "index").mkdir()
    (folder / "index.parquet").rename(folder / table_file("index", sha256))
    listing = {
        "task": "tiny",
        "format": LISTING,
        "licences": {"photos": "CC BY 4.0", "mine": None},
        "colour": "rgb" if channels == 3 else "y",
        "degradation": DEGRADATIONS[kind],
        "splits": {},
        "codec": "raw",
        "images": {"found": 0, "used": 0, "rejected": 0},
        "digest": dataset_digest(shards),
        "parts": [{"shards": len(shards), "index": sha256}],
        "shards": shards,
    }
    (folder / "shards.json").write_text(json.dumps(listing))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def sheet_of(folder: Path) -> np.ndarray:
    """The contact sheet, uint8 (H, W, 3)."""
    inspect(folder, folder.parent / "sheet.png")
    return read_image(folder.parent / "sheet.png")[0]


def shows(sheet: np.ndarray, pixels: np.ndarray) -> bool:
    """Whether the sheet has a place with exactly these pixels, enlarged. pixels: uint8 (H, W, 1) or (H, W, 3)."""
    wanted = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
    y, x = cv2.minMaxLoc(cv2.matchTemplate(sheet, wanted, cv2.TM_SQDIFF))[2][::-1]
    return np.array_equal(sheet[y : y + wanted.shape[0], x : x + wanted.shape[1]], wanted)


def test_a_split_is_counted(data):
    write_dataset(data, "jpeg", 1, {"train": [(40, 60), (50, 50), (20, 30), (60, 40)], "val": [(16, 24)]})
    found = inspect(data, data.parent / "sheet.png")
    assert list(found["splits"]) == ["train", "val"]
    assert found["splits"]["train"] == {
        "shards": 2,
        "samples": 4,
        "bytes": sum(path.stat().st_size for path in (data / "train").iterdir()),
        "sizes": {"min": [30, 20], "median": [60, 40], "max": [50, 50]},
        "levels": {"q10": 4, "q20": 4},
    }
    assert found["splits"]["val"]["sizes"] == {name: [24, 16] for name in ("min", "median", "max")}
    assert found["digest"] == json.loads((data / "shards.json").read_text())["digest"]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(("kind", "levels"), [("scale", ["x2", "x3"]), ("noise", ["sigma 30", "sigma 50"])])
def test_levels_carry_the_name_of_their_degradation(data, kind, levels):
    write_dataset(data, kind, 1, {"train": [(30, 30)] * 3})
    assert inspect(data, data.parent / "sheet.png")["splits"]["train"]["levels"] == dict.fromkeys(levels, 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_the_sheet_shows_the_clean_image_and_each_level_pixel_by_pixel(data, kind, channels):
    sheet = sheet_of(write_dataset(data, kind, channels, {"train": [(71, 91)]}))
    versions = list(ShardSet(data, "train").versions())
    assert len(versions) == 2
    assert shows(sheet, versions[0].planes["gt"])
    for version in versions:
        assert shows(sheet, np.clip(np.rint(validation_pair(version)[0] * 255), 0, 255).astype(np.uint8))
    assert not shows(sheet, 255 - versions[0].planes["gt"])


def test_a_large_image_is_shown_where_it_has_detail(data):
    sheet = sheet_of(write_dataset(data, "jpeg", 1, {"train": [(200, 300)]}))
    gt = next(ShardSet(data, "train").versions()).planes["gt"]
    top, left = _detail(gt)
    assert shows(sheet, gt[top : top + CROP, left : left + CROP])
    flat = np.full((200, 300, 1), 128, np.uint8)
    flat[30 : 30 + CROP, 150 : 150 + CROP] = gt[:CROP, :CROP]
    assert _detail(flat) == (30, 150)


@given(st.integers(1, 250), st.integers(1, 250))
def test_the_part_with_detail_lies_inside_the_image(height, width):
    gt = np.random.default_rng(height * width).integers(0, 256, (height, width, 1), np.uint8)
    top, left = _detail(gt)
    assert 0 <= top <= max(0, height - CROP)
    assert 0 <= left <= max(0, width - CROP)


def test_a_long_split_is_shown_from_its_first_sample_to_its_last(data, monkeypatch):
    write_dataset(data, "noise", 1, {"train": [(8, 8)] * 34, "val": [(8, 8)] * 2})
    keys = []
    row = pipeline.shards.inspect._row
    monkeypatch.setattr(
        pipeline.shards.inspect, "_row", lambda sample, level: keys.append(sample[0].key) or row(sample, level)
    )
    sheet_of(data)
    assert keys == [f"train-{i}" for i in range(0, 34, 3)] + ["val-0", "val-1"]
    assert len(keys) == ROWS + 2


def test_an_image_of_one_pixel_or_one_line_is_drawn(data):
    sheet = sheet_of(write_dataset(data, "jpeg", 1, {"train": [(1, 1), (1, 300)]}))
    for version in ShardSet(data, "train").versions():
        _, left = _detail(version.planes["gt"])
        assert shows(sheet, version.planes["gt"][:, left : left + CROP])


def test_a_level_without_a_difference_has_no_psnr(data, monkeypatch):
    write_dataset(data, "jpeg", 1, {"train": [(20, 20)]})
    notes = []
    monkeypatch.setattr(
        pipeline.shards.inspect,
        "validation_pair",
        lambda version: (version.planes["gt"] / 255, version.planes["gt"] / 255),
    )
    monkeypatch.setattr(
        pipeline.shards.inspect, "_write", lambda strip, x, y, text, note, size: notes.append((text, note))
    )
    sheet_of(data)
    assert notes[-2:] == [("q10", "the same"), ("q20", "the same")]


def test_a_dataset_has_one_contact_sheet(data):
    write_dataset(data, "noise", 1, {"train": [(30, 40), (50, 20)]})
    assert np.array_equal(sheet_of(data), sheet_of(data))


def test_images_smaller_than_a_patch_are_named(data, tmp_path, cli):
    write_dataset(data, "scale", 1, {"train": [(30, 40), (10, 50), (26, 26)], "val": [(60, 60)]})
    splits = inspect(data, tmp_path / "sheet.png", patch=25)["splits"]
    assert splits["train"]["smaller"] == ["train-1", "train-2 at level 3"]  # cut to 24x24
    assert splits["val"]["smaller"] == []
    assert "smaller" not in inspect(data, tmp_path / "sheet.png")["splits"]["train"]
    code, out, _ = cli("inspect", str(data), "--patch", "30", "--sheet", str(tmp_path / "sheet.png"))
    assert code == 0
    assert "  train: smaller than a patch of 30x30: 2, train-1, train-2\n" in out
    assert "  val: smaller than a patch of 30x30: none\n" in out
    assert "  photos: licence CC BY 4.0\n  mine: licence not known; say `licence:` beside mine in params.yaml\n" in out


def test_images_of_16_bits_are_drawn_in_8(builder, tmp_path, cli):
    pixels = photograph(3, 40, 40, 3)
    degradation = {"kind": "noise", "sigma": [30]}
    folder = builder(
        "inspect-deep", {"train/1.png": widened(pixels, 16)}, degradation=degradation, colour="rgb", bits=16
    )
    code, out, _ = cli("inspect", str(folder), "--sheet", str(tmp_path / "sheet.png"))
    assert code == 0
    assert "rgb planes of 16 bits" in out
    assert shows(read_image(tmp_path / "sheet.png")[0], pixels)


def test_what_cannot_be_inspected_is_one_line(data, tmp_path):
    with pytest.raises(UserError, match=r"shards.json: not found; `memoir build` writes it"):
        inspect(tmp_path, tmp_path / "sheet.png")
    write_dataset(data, "jpeg", 1, {"train": [(30, 30)]})
    with pytest.raises(UserError, match=r"sheet.jpg: the contact sheet is a PNG"):
        inspect(data, tmp_path / "sheet.jpg")
    next((data / "train").iterdir()).unlink()
    with pytest.raises(UserError, match="missing or truncated"):
        inspect(data, tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("layout", "files", "kind", "levels"),
    [
        ("istd:istd", [f"train/train_{x}/{i}.png" for i in range(2) for x in "ABC"], "paired", {"input 0": 2}),
        ("scenes", [f"train/s/{i}.png" for i in range(3)], "timelapse", {"frame 0": 2, "frame 1": 1}),
    ],
)
def test_pairs_and_scenes_have_a_sheet_too(builder, tmp_path, layout, files, kind, levels):
    images = {file: photograph(i, 40, 40, 3) for i, file in enumerate(files)}
    folder = builder(f"inspect-{kind}", images, layout=layout, degradation={"kind": kind}, colour="rgb")
    found = inspect(folder, tmp_path / "sheet.png")
    assert found["splits"]["train"]["levels"] == levels
    assert found["splits"]["train"]["sizes"]["max"] == [40, 40]
    sheet = read_image(tmp_path / "sheet.png")[0]
    for file in files[:2]:
        if "_B" not in file:
            assert shows(sheet, images[file]), file
