import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from conftest import photograph, table_file
from fuzz.readers import put_right

from pipeline.errors import UserError
from pipeline.shards.format import (
    INDEX_SCHEMA,
    LISTING,
    Member,
    check_present,
    file_sha256,
    json_member,
    npy_member,
    read_shards_json,
    verify,
    write_shard,
)
from pipeline.storage import storage

FILES = {
    f"{split}/{i}.png": photograph(seed, 60 + 7 * i, 90, 3 if i % 2 else 1)
    for seed, (split, i) in enumerate((split, i) for split, n in (("train", 9), ("val", 2)) for i in range(n))
}


@pytest.fixture(scope="session")
def whole(builder) -> Path:
    return builder("shards", FILES)


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of a built dataset, to spoil."""
    shutil.copytree(whole, tmp_path / "tiny")
    return tmp_path / "tiny"


def samples(number: int = 3) -> list[tuple[str, list[Member]]]:
    return [
        (
            f"photos-train-{i}",
            [
                npy_member("gt.npy", photograph(i, 20 + i, 30, 1), role="gt"),
                npy_member("lq-q10.npy", photograph(100 + i, 20 + i, 30, 1), role="lq", level=10, parameters="{}"),
                json_member({"i": i}),
            ],
        )
        for i in range(number)
    ]


def members(shard: Path) -> dict[str, dict]:
    """key -> member -> array or JSON, by tarfile."""
    found: dict[str, dict] = {}
    with tarfile.open(shard) as tar:
        for entry in tar:
            key, name = entry.name.split(".", 1)
            data = tar.extractfile(entry).read()
            value = json.loads(data) if name == "json" else np.load(io.BytesIO(data), allow_pickle=False)
            found.setdefault(key, {})[name] = value
    return found


# the format


def test_a_shard_written_twice_has_the_same_bytes_and_is_named_by_them(tmp_path):
    first = write_shard(samples(), tmp_path / "a")
    second = write_shard(samples(), tmp_path / "b")
    assert first == second
    data = (tmp_path / "a" / first["name"]).read_bytes()
    assert data == (tmp_path / "b" / first["name"]).read_bytes()
    assert len(data) == first["bytes"]
    assert file_sha256(tmp_path / "a" / first["name"]) == first["sha256"]
    assert first["name"] == f"{first['sha256'][:16]}.tar"
    assert write_shard(samples(2), tmp_path / "a")["name"] != first["name"]


def test_nothing_of_the_machine_is_in_a_shard(tmp_path):
    shard = write_shard(samples(), tmp_path)
    with tarfile.open(tmp_path / shard["name"]) as tar:
        for entry in tar:
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")
            assert (entry.mode, entry.type, entry.pax_headers) == (0o644, tarfile.REGTYPE, {})


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_shard_that_fails_halfway_leaves_nothing(tmp_path, error):
    def failing():
        yield from samples()
        raise error

    with pytest.raises(error):
        write_shard(failing(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_index_says_where_the_pixels_are(whole):
    rows = pq.read_table(whole / "index", schema=INDEX_SCHEMA).to_pylist()
    expected = {
        shard: members(whole / split / shard) for split, shard in {(row["split"], row["shard"]) for row in rows}
    }
    assert [(row["role"], row["level"]) for row in rows[:6]] == [
        *(("gt", None), ("lq", 10), ("lq1", 10), ("lq", 20), ("lq1", 20), ("json", None))
    ]
    for row in rows:
        value = expected[row["shard"]][row["key"]].pop(row["member"])
        shard = np.memmap(whole / row["split"] / row["shard"], np.uint8, mode="r")
        if row["role"] == "json":
            assert json.loads(shard[row["offset"] : row["offset"] + row["length"]].tobytes()) == value
            continue
        begin = row["offset"] + row["header"]
        assert begin % 64 == 0
        pixels = shard[begin : row["offset"] + row["length"]].reshape(row["shape"])
        assert (pixels == value).all()
        assert pixels.dtype == np.dtype(row["dtype"])
    assert not any(left for shard in expected.values() for left in shard.values())


# other readers


def test_stock_webdataset_reads_every_sample(whole):
    for split in ("train", "val"):
        shards = sorted((whole / split).iterdir())
        expected = {key: value for shard in shards for key, value in members(shard).items()}
        urls = [str(shard) for shard in shards]
        for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
            wanted = expected.pop(sample["__key__"])
            assert sample["json"] == wanted.pop("json")
            turned = {"lq1-q10.npy", "lq1-q20.npy"} if split == "train" else set()
            assert wanted.keys() == {"gt.npy", "lq-q10.npy", "lq-q20.npy"} | turned
            for name, pixels in wanted.items():
                assert sample[name].dtype == np.uint8
                assert (sample[name] == pixels).all()
        assert not expected


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_reads_every_sample(whole):
    import ray

    shards = sorted((whole / "train").iterdir())
    expected = {key: value for shard in shards for key, value in members(shard).items()}
    dataset = ray.data.read_webdataset([str(shard) for shard in shards])
    for sample in dataset.iter_rows():
        wanted = expected.pop(sample["__key__"])
        for name in ("gt.npy", "lq-q10.npy", "lq-q20.npy"):
            assert (np.asarray(sample[name]) == wanted[name]).all()
    assert not expected


# verify


def shard_of(folder: Path, split: str = "train") -> Path:
    listing = read_shards_json(folder)
    return folder / split / next(shard["name"] for shard in listing["shards"] if shard["split"] == split)


def test_a_whole_dataset_is_whole(folder):
    assert list(verify(folder)) == []


def test_a_flipped_byte_is_found_and_its_sample_named(folder):
    rows = pq.read_table(folder / "index").to_pylist()
    for row in (rows[2], rows[-1]):
        path = folder / row["split"] / row["shard"]
        data = bytearray(path.read_bytes())
        data[row["offset"] + row["length"] - 1] ^= 1
        path.write_bytes(data)
        where = f"{row['key']}.{row['member']} at byte {row['offset']:,}"
        assert list(verify(folder)) == [f"{path}: changed since it was built, in {where}; build again"]
        data[row["offset"] + row["length"] - 1] ^= 1
        path.write_bytes(data)


def test_a_flipped_byte_between_the_members_is_found(folder):
    path = shard_of(folder)
    data = bytearray(path.read_bytes())
    data[120] ^= 1  # in the first header
    path.write_bytes(data)
    assert list(verify(folder)) == [f"{path}: changed since it was built, between its members; build again"]


def test_a_shard_that_is_cut_or_longer_is_found(folder):
    path = shard_of(folder)
    data = path.read_bytes()
    for changed, what in ((data[:-512], "truncated"), (b"", "truncated"), (data + b"\0", "too long")):
        path.write_bytes(changed)
        size = f"{len(changed):,} bytes of {len(data):,}"
        assert list(verify(folder)) == [f"{path}: {what}: {size}; build again"]


def test_missing_and_extra_shards_are_found(folder):
    train, val = shard_of(folder), shard_of(folder, "val")
    extra = train.with_name(val.name)
    val.rename(extra)
    assert list(verify(folder)) == [
        f"{extra}: not in shards.json; remove it, or build again",
        f"{val}: missing; build again, or `dvc pull`",
    ]


def test_what_is_missing_or_cut_off_is_told_before_anything_is_read(folder):
    place = storage(str(folder))
    listing = read_shards_json(place)
    check_present(place, listing)
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:-512])
    (table,) = folder.glob("index/*")
    table.unlink()
    with pytest.raises(UserError, match=f"missing or cut off: index/{table.name}, train/{path.name}; `dvc pull`"):
        check_present(place, listing)


def test_the_index_of_another_build_is_found(folder, builder):
    other = builder("shards-of-another-build", {name: FILES[name] for name in ("train/1.png", "val/1.png")})
    index = table_file(folder)
    shutil.copyfile(table_file(other), index)
    stale = f"{index}: damaged, or of another build than shards.json; build again"
    assert list(verify(folder)) == [stale]
    path = shard_of(folder)
    path.write_bytes(path.read_bytes().replace(b"ustar", b"USTAR", 1))
    assert list(verify(folder)) == [stale, f"{path}: changed since it was built; build again"]
    index.unlink()
    path.unlink()
    assert list(verify(folder)) == [
        f"{index}: missing; build again, or `dvc pull`",
        f"{path}: missing; build again, or `dvc pull`",
    ]


def rewrite(folder: Path, **changes) -> None:
    path = folder / "shards.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_index_that_does_not_describe_the_shards_is_found(folder):
    rows = pq.read_table(table_file(folder), schema=INDEX_SCHEMA).to_pylist()
    lost = rows[1]
    path = folder / lost["split"] / lost["shard"]
    n = sum(row["shard"] == lost["shard"] for row in rows)

    def said(rows: list[dict]) -> list[str]:
        path = table_file(folder)
        pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), path)
        put_right(folder, path.relative_to(folder))
        return list(verify(folder))

    problems = said([rows[0], *rows[2:], rows[-1]])
    assert problems[0] == f"{path}: its {n} members are not the {n - 1} of the index; build again"
    assert problems[1].startswith(f"{folder / rows[-1]['split'] / rows[-1]['shard']}: its ")
    again = "run `memoir build` again, or fetch it anew"
    few = said(rows[1:])
    assert few == [f"{table_file(folder)}: has {len(rows) - 1:,} rows, and shards.json counts {len(rows):,}; {again}"]
    strange = said([rows[0] | {"shard": f"{'0' * 16}.tar"}, *rows[1:]])
    assert strange == [
        f"{table_file(folder)}: lists 'train/{'0' * 16}.tar', which shards.json lacks; run `memoir build` again"
    ]


def test_a_changed_shards_json_is_found(folder):
    path = folder / "shards.json"
    listing = read_shards_json(folder)
    shards = listing["shards"]
    first = folder / "train" / shards[0]["name"]
    rewrite(folder, shards=shards[1:], parts=[listing["parts"][0] | {"shards": len(shards) - 1}])
    problems = list(verify(folder))
    assert f"{path}: its dataset digest does not match its shards; build again" in problems
    assert f"{first}: not in shards.json; remove it, or build again" in problems
    rewrite(folder, shards=[shards[0] | {"groups": 1}, *shards[1:]], parts=listing["parts"])
    counted = f"1 groups and {shards[0]['members']} members"
    assert list(verify(folder)) == [f"{first}: not the {counted} that shards.json counts; build again"]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda text: text[:-20], "not JSON"),
        (lambda text: "", "not JSON"),
        (lambda text: "[]", "not JSON"),
        (lambda text: text.replace('"digest"', '"dgiest"'), "digest"),
        (lambda text: text.replace('"bytes": ', '"bytes": "x",\n"b": ', 1), "shards.0.bytes"),
        (lambda text: text.replace('"name": "', '"name": "../', 1), "shards.0.name"),
        (lambda text: text.replace(f'"format": {LISTING}', '"format": 1'), "format"),
        (lambda text: text.replace('"task"', '"t\x00sk"'), "not JSON"),
    ],
)
def test_a_damaged_shards_json_is_one_line(folder, damage, what):
    path = folder / "shards.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError) as error:
        list(verify(folder))
    assert str(error.value) == f"{path}: damaged, or of another version of memoir ({what}); build again"


def test_a_folder_without_a_build_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UserError) as error:
            list(verify(place))
        assert str(error.value) == f"{place}/shards.json: not found; `memoir build` writes it"


def test_the_shards_json_of_a_bucket_is_that_of_the_folder(folder, s3):
    place = storage(f"{s3}/data")
    with pytest.raises(UserError) as error:
        read_shards_json(place)
    assert str(error.value) == f"{s3}/data/shards.json: not found; `memoir build` writes it"
    place.write("shards.json", folder / "shards.json")
    assert read_shards_json(place) == read_shards_json(folder)


def test_the_command_prints_a_line_for_each_problem(folder, cli):
    listing = read_shards_json(folder)
    size = sum(shard["bytes"] for shard in listing["shards"])
    assert cli("verify", str(folder)) == (0, f"{folder}: {len(listing['shards'])} shards, {size:,} bytes: whole\n", "")
    train, val = shard_of(folder), shard_of(folder, "val")
    train.unlink()
    val.write_bytes(b"")
    code, out, err = cli("verify", str(folder))
    assert (code, out) == (1, "")
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        [str(train), "missing; build again, or `dvc pull`"],
        [str(val), "truncated"],
    ]
    (folder / "shards.json").write_text("{")
    code, out, err = cli("verify", str(folder))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"memoir: {folder}/shards.json: damaged")
