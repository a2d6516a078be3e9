"""Datasets and shared stores that were made to harm: one clear line, or a result as good as any; nothing outside is touched."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Workplace, photograph, table_file
from fuzz.readers import _built, put_right, read_dataset
from hostile import EXAMPLES, canary, mutated, nasty, one_line
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.loading.loader import Loader, Position
from pipeline.sampling.patches import RandomCrops
from pipeline.shards.format import read_listing, store_of_shards, verify
from pipeline.shards.inspect import inspect
from pipeline.shards.shard_set import ShardSet
from pipeline.storage import Bucket, storage
from pipeline.tables import GROUP_ROWS, INDEX_SCHEMA, PAIRS_SCHEMA, read_table


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """Two built datasets: JPEG pairs with extra negatives as raw pixels, and pairs of frames as PNG."""
    photos, scenes = _built(tmp_path_factory.mktemp("hostile"))
    return {"photos": photos, "scenes": scenes}


def sandbox(built: Path, place: Path) -> Path:
    """A copy of a dataset that an example may change."""
    folder = place / "sandbox" / "data"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(built, folder, copy_function=os.link))


def replace(path: Path, data: bytes) -> None:
    """New contents, and not those of the file that it is linked with."""
    path.unlink()
    path.write_bytes(data)


def read_all(folder: Path) -> None:
    """By everything that reads a dataset."""
    one_line(lambda: read_dataset(folder))
    one_line(lambda: inspect(folder, folder / "sheet.png"))


@pytest.mark.parametrize("kind", ["photos", "scenes"])
@EXAMPLES
@given(data=st.data())
def test_a_hostile_shards_json_is_one_line_and_reaches_nothing(built, tmp_path, kind, data):
    folder = sandbox(built[kind], tmp_path)
    listing = json.loads((folder / "shards.json").read_text())
    with canary(tmp_path) as outside:
        replace(folder / "shards.json", json.dumps(mutated(data, listing, nasty(outside))).encode())
        read_all(folder)


@pytest.mark.parametrize(
    ("kind", "table"), [("photos", "index"), ("photos", "negatives"), ("scenes", "index"), ("scenes", "pairs")]
)
@EXAMPLES
@given(data=st.data())
def test_a_hostile_table_is_one_line_and_reaches_nothing(built, tmp_path, kind, table, data):
    folder = sandbox(built[kind], tmp_path)
    held = pq.read_table(folder / table)
    name = data.draw(st.sampled_from(held.schema.names))
    rows = held.to_pylist()
    with canary(tmp_path) as outside:
        values = nasty(outside) if name != "shape" else st.lists(st.integers(-1, 2**31 - 1) | st.none(), max_size=4)
        row = data.draw(st.sampled_from(rows))
        row[name] = data.draw(values)
        try:
            changed = pa.Table.from_pylist(rows, held.schema)
        except (
            pa.ArrowException,
            OverflowError,
            TypeError,
            UnicodeEncodeError,
        ):  # then the whole column is of another type
            changed = held.set_column(held.schema.get_field_index(name), name, pa.array(range(len(held)), pa.float32()))
        sink = io.BytesIO()
        pq.write_table(changed, sink)
        path = table_file(folder, table)
        replace(path, sink.getvalue())
        put_right(folder, path.relative_to(folder))
        read_all(folder)


@pytest.mark.parametrize("kind", ["photos", "scenes"])
@EXAMPLES
@given(data=st.data())
def test_a_hostile_shard_is_one_line_and_reaches_nothing(built, tmp_path, kind, data):
    folder = sandbox(built[kind], tmp_path)
    path = next(folder.glob("train/*.tar"))
    contents = bytearray(path.read_bytes())
    heads = sorted({row["offset"] for row in pq.read_table(folder / "index").to_pylist()})
    for _ in range(data.draw(st.integers(1, 4))):  # of headers of tar and of what is in it, most of all
        at = data.draw(st.sampled_from(heads)) + data.draw(st.integers(-512, 200))
        contents[at % len(contents)] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del contents[data.draw(st.integers(0, len(contents))) :]
    with canary(tmp_path):
        replace(path, bytes(contents))
        put_right(folder, path.relative_to(folder))
        read_all(folder)


@EXAMPLES
@given(data=st.data())
def test_a_hostile_recipe_of_a_shared_store_is_one_line_and_reaches_nothing(store, tmp_path, monkeypatch, data):
    shared = tmp_path / "sandbox" / "shared"
    shutil.rmtree(tmp_path / "sandbox", ignore_errors=True)
    shutil.copytree(store.root / "shared", shared)
    work = Workplace(tmp_path / "sandbox" / "work")
    shutil.copytree(store.root / "photos", work.root / "photos")
    monkeypatch.chdir(work.root)
    work.ingest()
    path = data.draw(st.sampled_from(sorted((shared / "recipes").iterdir())))
    with canary(tmp_path) as outside:
        path.write_text(json.dumps(mutated(data, json.loads(path.read_text()), nasty(outside))))
        if one_line(lambda: work.build(store=str(shared))) is None:
            assert list(verify(work.root / "data/tiny")) == []
            assert ShardSet(work.root / "data/tiny", "train").shards
    assert {path.name for path in tmp_path.iterdir()} <= {"canary", "sandbox"}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Workplace:
    """A workplace whose shards are in the store `shared` too."""
    with pytest.MonkeyPatch.context() as patch:
        from pipeline.shards import build as stage

        work = Workplace(tmp_path_factory.mktemp("shared"))
        patch.chdir(work.root)
        patch.setattr(stage, "FEW", 10**6)
        for seed, name in enumerate(("train/1.png", "val/2.png")):
            work.add(name, photograph(seed, 24, 20))
        work.ingest()
        work.build(store="shared")
        return work


@pytest.fixture(autouse=True)
def _here(without_ray): ...


# what is too rare for chance


def drop_a_member(rows: list[dict]) -> None:
    del rows[1]


def swap_two_members(rows: list[dict]) -> None:
    rows[1:3] = rows[2:0:-1]


def transpose_an_image(rows: list[dict]) -> None:
    rows[1]["shape"] = [rows[1]["shape"][i] for i in (1, 0, 2)]


@pytest.mark.parametrize("change", [drop_a_member, swap_two_members, transpose_an_image])
def test_a_recipe_of_a_shared_store_that_is_not_of_its_shard_is_not_taken(store, tmp_path, monkeypatch, change):
    shared = tmp_path / "shared"
    shutil.copytree(store.root / "shared", shared)
    for path in (shared / "recipes").iterdir():
        entry = json.loads(path.read_text())
        change(entry["rows"])
        path.write_text(json.dumps(entry))
    work = Workplace(tmp_path / "work")
    shutil.copytree(store.root / "photos", work.root / "photos")
    monkeypatch.chdir(work.root)
    work.ingest()
    listing = work.build(store=str(shared))
    assert listing["encoded"] == len(listing["shards"]) == 2
    assert list(verify(work.root / "data/tiny")) == []
    shutil.rmtree(".cache")
    shutil.rmtree("data/tiny")
    assert work.build(store=str(shared))["encoded"] == 0  # the build has put it right


@pytest.mark.parametrize("offset", [-(2**62), -512, 512 * 10**12, 2**63 - 512, 1])
def test_an_index_that_points_out_of_its_shard_names_the_row(built, tmp_path, offset):
    folder = sandbox(built["photos"], tmp_path)
    table = pq.read_table(folder / "index", schema=INDEX_SCHEMA)
    offsets = table["offset"].to_pylist()
    offsets[1] = offset
    table = table.set_column(table.schema.get_field_index("offset"), "offset", pa.array(offsets, pa.int64()))
    path = table_file(folder)
    path.unlink()
    pq.write_table(table, path)
    put_right(folder, path.relative_to(folder))
    with pytest.raises(
        UserError, match=r"index/\w+\.parquet: row 1: it(s offset is no place of a member| lies outside its shard)"
    ):
        ShardSet(folder, "train")
    assert any(".parquet: row 1: it" in line for line in verify(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "../../canary/file"},
        {"sha256": "0" * 64},
        {"name": "../../canary/file.tar"},
        {"bytes": -1},
        {"bytes": 2**70},
        {"members": 10**9},
        {"split": "../train"},
    ],
)
def test_a_shards_json_of_impossible_shards_is_refused_as_a_whole(built, changes):
    listing = json.loads((built["photos"] / "shards.json").read_text())
    listing["shards"][0] |= changes
    with pytest.raises(UserError, match=r"^here: damaged, or of another version of memoir \(shards\.0"):
        read_listing(json.dumps(listing).encode(), "here")


@pytest.mark.parametrize(
    "changes",
    [
        [{"shards": 1}],
        [{"shards": 0}, {}],
        [{}, {}],
        [{"index": "../../canary/file"}],
        [{"negatives": None}],
        [{"pairs": "0" * 64}],
        [],
    ],
)
def test_tables_of_other_shards_or_of_another_kind_are_refused_as_a_whole(built, changes):
    listing = json.loads((built["photos"] / "shards.json").read_text())
    listing["parts"] = [listing["parts"][0] | each for each in changes]
    with pytest.raises(UserError, match=r"^here: damaged, or of another version of memoir \((parts|tables|the tables)"):
        read_listing(json.dumps(listing).encode(), "here")


@pytest.mark.parametrize(
    ("place", "shards_in", "fits"),
    [
        ("s3://team/data/x", "s3://team/shards", True),
        ("s3://team/data/x", "s3://other/shards", False),
        ("s3://team/data/x", "/home", False),
        ("s3://team/data/x", "file:///home", False),
        ("data/x", "s3://team/shards", True),
        ("data/x", "store/shards", True),
    ],
)
def test_a_shards_json_in_a_bucket_has_its_shards_there(place, shards_in, fits):
    said = one_line(lambda: store_of_shards(storage(place), {"shards_in": shards_in}))
    assert fits == (said is None)
    assert isinstance(storage(place), Bucket) or fits


def parquet(table: pa.Table, **options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False, **options)  # else a dictionary stays one
    return sink.getvalue()


def test_a_short_text_that_stands_for_gigabytes_is_not_written_out():
    n = 200_000
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["x" * 10**6]))
    ones = pa.array(np.ones(n, np.int32))
    table = pa.table({"split": text, "key": text, "v": ones, "w": ones})  # of 400 GB
    with pytest.raises(UserError, match="its column split has a text of more than 2,000 bytes"):
        read_table(parquet(table), PAIRS_SCHEMA, "here")


def test_an_enormous_row_group_is_not_read():
    n = GROUP_ROWS + 1
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array(["train"]))
    ones = pa.array(np.ones(n, np.int32))
    table = pa.table({"split": text, "key": text, "v": ones, "w": ones})
    with pytest.raises(UserError, match=r"has a row group of 1,048,577 rows; up to 1,048,576 are read"):
        read_table(parquet(table, row_group_size=n), PAIRS_SCHEMA, "here")
    assert len(read_table(parquet(table, row_group_size=10**5), PAIRS_SCHEMA, "here")) == n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["w"]), "its column w is missing, not int32"),
        (lambda t: t.append_column("z", t["w"]), "its columns are not split, key, v, w"),
        (lambda t: t.set_column(3, "w", pa.array([1.5, 2.5])), "its column w is double, not int32"),
        (lambda t: t.set_column(3, "w", pa.array([1, None], pa.int32())), "its column w has rows without a value"),
        (lambda t: t.set_column(1, "key", pa.array([b"\xff", b"a"]).cast(pa.string(), safe=False)), "not readable as Parquet"),
    ],
)  # fmt: skip
def test_a_table_of_another_schema_says_which_column(change, message):
    table = pa.table({"split": ["train", "val"], "key": ["a", "b"], "v": [0, 1], "w": [1, 2]}, PAIRS_SCHEMA)
    with pytest.raises(UserError, match=f"^here: {message}; "):
        read_table(parquet(change(table)), PAIRS_SCHEMA, "here")


@pytest.mark.parametrize("kind", ["photos", "scenes"])
def test_a_member_that_is_another_array_than_the_index_says_is_named(built, tmp_path, kind):
    folder = sandbox(built[kind], tmp_path)
    path = next(folder.glob("train/*.tar"))
    row = next(row for row in pq.read_table(folder / "index").to_pylist() if row["split"] == "train")
    contents = bytearray(path.read_bytes())
    if kind == "photos":
        contents = contents.replace(b"(24, 20, 1)", b"(20, 24, 1)", 1)
    else:
        at = row["offset"] + 16
        contents[at : at + 8] = contents[at + 4 : at + 8] + contents[at : at + 4]  # width and height
    replace(path, bytes(contents))
    put_right(folder, path.relative_to(folder))
    named = rf"{row['key']}\.{row['member']} at byte {row['offset']:,} is no uint8 array of \(24, 20, "
    loader = Loader(folder, batch=2, sampling=RandomCrops(12, 1))
    with pytest.raises(UserError, match=named):
        loader.cut(Position())
    assert any(f"{row['key']}.{row['member']}" in line for line in verify(folder))


def test_another_shard_of_the_same_length_is_not_taken(store, tmp_path, monkeypatch):
    """A store that answers with more bytes than the recipe lists is not copied on and on."""
    shared = shutil.copytree(store.root / "shared", tmp_path / "shared")
    for path in shared.glob("*.tar"):
        with path.open("ab") as file:
            file.truncate(10**9)
    work = Workplace(tmp_path / "work")
    shutil.copytree(store.root / "photos", work.root / "photos")
    monkeypatch.chdir(work.root)
    work.ingest()
    assert work.build(store=str(shared))["encoded"] == 2
    assert list(verify(Path("data/tiny"))) == []
    assert hashlib.sha256(next(Path("data/tiny/train").glob("*.tar")).read_bytes()).hexdigest()
