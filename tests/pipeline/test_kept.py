"""Shards that a build need not make: those of an earlier output, pulled or not; and what `memoir cache` does with them."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import Workplace, photograph, table_file
from fuzz.readers import put_right

from pipeline.errors import UserError
from pipeline.shards import build as stage
from pipeline.shards import kept, plan
from pipeline.shards.format import read_shards_json, verify
from pipeline.shards.pruning import prune, unneeded
from pipeline.shards.shard_set import ShardSet

OUT = Path("data/tiny")
ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def filled(workplace, without_ray) -> Workplace:
    """A dataset of several shards, built; its store is gone, as for whoever has pulled it."""
    for i in range(12):
        workplace.add(f"train/{i}.png", photograph(i, 85, 85 + i))
    workplace.add("val/1.png", photograph(1000, 110, 110))
    workplace.ingest()
    assert workplace.build()["encoded"] > 5
    shutil.rmtree(kept.STORE)
    return workplace


def edited(filled: Workplace) -> dict:
    filled.add("train/4-more.png", photograph(50, 70, 70))
    filled.ingest()
    return filled.build()


def from_nothing(filled: Workplace) -> dict[str, bytes]:
    """What a build gives that finds no shard anywhere."""
    shutil.rmtree(kept.STORE)
    shutil.rmtree(OUT)
    filled.build()
    return contents(OUT)


def test_an_edit_takes_the_other_shards_from_the_pulled_output_and_gives_the_same_bytes(filled):
    listing = edited(filled)
    assert 1 <= listing["encoded"] <= 4 < len(listing["shards"])
    found = contents(OUT)
    assert list(verify(OUT)) == []
    assert found == from_nothing(filled)


def damage_shard() -> None:
    path = sorted((OUT / "train").iterdir())[0]
    path.write_bytes(path.read_bytes()[:-1])


def damage_index() -> None:
    table_file(OUT).write_bytes(b"damaged")


def lose_index() -> None:
    table_file(OUT).unlink()


def older() -> None:
    listing = json.loads((OUT / "shards.json").read_text())
    (OUT / "shards.json").write_text(json.dumps(listing | {"format": 2}))


def swap_recipes() -> None:
    recipes = json.loads((OUT / "recipes.json").read_text())
    a, b = list(recipes)[:2]
    (OUT / "recipes.json").write_text(json.dumps(recipes | {a: recipes[b], b: recipes[a]}))


def spoil_recipes() -> None:
    (OUT / "recipes.json").write_text('{"train/a.tar": 1}')


def other_member() -> None:
    """A shard whose bytes and sums are right, but with another array than the index says."""
    path = sorted((OUT / "train").iterdir())[0]
    sound = path.read_bytes()
    damaged = sound.replace(b"(85, ", b"(86, ")
    assert damaged != sound
    path.write_bytes(damaged)
    put_right(OUT, path.relative_to(OUT))


@pytest.mark.parametrize(
    ("damage", "encoded"),
    [
        (damage_shard, 1),
        (damage_index, None),
        (lose_index, None),
        (older, None),
        (swap_recipes, 2),
        (spoil_recipes, None),
        (other_member, 1),
    ],
)
def test_what_is_damaged_or_of_other_images_is_not_taken(filled, damage, encoded):
    before = contents(OUT)
    damage()
    listing = filled.build()
    assert listing["encoded"] == (len(listing["shards"]) if encoded is None else encoded)
    assert contents(OUT) == before
    assert list(verify(OUT)) == []


def test_shards_of_other_libraries_are_not_taken_and_one_line_says_which(filled, monkeypatch, cli):
    there = stage.versions()["numpy"]
    monkeypatch.setattr(stage, "versions", lambda: stage.__dict__["_here"] | {"numpy": "9.9"})
    monkeypatch.setitem(stage.__dict__, "_here", json.loads((OUT / "versions.json").read_text()))
    filled.task()
    code, out, err = cli("build", "tiny.yaml")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("data/tiny: the build that was there is of other libraries")
    assert f"numpy {there} there and 9.9 here" in err
    shards = len(read_shards_json(OUT)["shards"])
    assert f"{shards} encoded now" in out
    assert cli("build", "tiny.yaml")[2] == ""  # it is told once


def dvc(*arguments: str) -> None:
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"}, capture_output=True)


def test_an_output_that_dvc_removed_is_taken_from_its_cache_and_every_byte_is_kept_once(filled):
    """`dvc repro` removes the output of a stage before it runs it."""
    subprocess.run(["git", "init", "-q"], check=True)
    dvc("init")
    shutil.copy(ROOT / ".dvc/config", ".dvc/config")
    dvc("add", "data/tiny")
    before = contents(OUT)
    shutil.rmtree(OUT)
    listing = edited(filled)
    assert 1 <= listing["encoded"] <= 4 < len(listing["shards"])
    dvc("add", "data/tiny")
    for shard in listing["shards"]:  # in the output, in the store of shards and in DVC's cache
        stat = (OUT / shard["split"] / shard["name"]).stat()
        assert (stat.st_nlink, stat.st_mode & 0o222) == (3, 0)
    (filled.root / "photos/train/4-more.png").unlink()
    filled.ingest()
    filled.build()  # replaces files that DVC made read-only
    assert contents(OUT) == before


def test_the_shared_store_of_params_yaml_is_the_default(filled, cli, tmp_path):
    shutil.rmtree(OUT)
    filled.task()
    Path("params.yaml").write_text("store: store\nshards: shared\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    assert cli("build", "tiny.yaml")[0] == 0
    names = {shard["name"] for shard in read_shards_json(OUT)["shards"]}
    assert {path.name for path in Path("shared").glob("*.tar")} == names
    shutil.rmtree(OUT)
    shutil.rmtree(kept.STORE)
    assert ", 0 encoded now" in cli("build", "tiny.yaml")[1]


# parts of tables


def test_a_dataset_of_many_parts_reads_like_one_of_a_single_part(filled, monkeypatch):
    filled.build(negatives={"number": 1})
    whole = ShardSet(OUT, "train")
    monkeypatch.setattr(plan, "PART", 2)
    listing = filled.build(negatives={"number": 1})
    assert len(listing["parts"]) > 3
    assert len(list((OUT / "index").iterdir())) == len(listing["parts"]) == len(list((OUT / "negatives").iterdir()))
    assert list(verify(OUT)) == []
    parts = ShardSet(OUT, "train")
    assert [whole.key(i) for i in range(len(whole))] == [parts.key(i) for i in range(len(parts))]
    for name in ("shard", "begin", "length", "level", "permille"):
        assert (getattr(whole, name) == getattr(parts, name)).all()
    for ours, theirs in zip(whole.versions(), parts.versions(), strict=True):
        assert (ours.planes["lq"] == theirs.planes["lq"]).all()
    before = {path.name for path in (OUT / "index").iterdir()}
    filled.add("train/4-more.png", photograph(50, 110, 110))
    filled.ingest()
    after = filled.build(negatives={"number": 1})
    assert 1 <= len({part["index"][:16] + ".parquet" for part in after["parts"]} - before) <= 3
    extra = OUT / "index" / "0.parquet"
    extra.write_bytes(b"")
    assert list(verify(OUT)) == [f"{extra}: not in shards.json; remove it, or build again"]


def test_a_part_of_the_index_that_was_lost_spoils_no_other(filled, monkeypatch):
    monkeypatch.setattr(plan, "PART", 2)
    parts = filled.build()["parts"]
    lost = OUT / "index" / f"{parts[1]['index'][:16]}.parquet"
    lost.unlink()
    assert list(verify(OUT)) == [f"{lost}: missing; build again, or `dvc pull`"]
    shutil.rmtree(kept.STORE)
    assert filled.build()["encoded"] == parts[1]["shards"]


# memoir cache


def test_pruning_removes_what_no_dataset_names_and_nothing_else(filled, cli):
    first = filled.build()
    old = {shard["name"] for shard in first["shards"]}
    shards = edited(filled)["shards"]
    new = {shard["name"] for shard in shards}
    assert old - new
    gone = sum((kept.STORE / name).stat().st_size for name in old - new)
    code, out, err = cli("cache", "show")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    held = sum(path.stat().st_size for path in kept.STORE.glob("*.tar"))
    assert lines[0] == f".cache/shards: {len(old | new)} built shards, {held:,} bytes"
    assert lines[1].startswith(f".cache/shards: {len(old - new)} of no data set in data, {gone:,} bytes; ")
    assert lines[1].endswith(f"frees {gone:,} bytes")
    before = contents(OUT)
    code, out, err = cli("cache", "prune")
    said = f".cache/shards: {len(old - new)} shards removed, {gone:,} bytes, {gone:,} of them freed\n"
    assert (code, out, err) == (0, said, "")
    assert {path.name for path in kept.STORE.glob("*.tar")} == new
    assert {path.stem for path in kept.STORE.glob("recipes/*")} == set(
        json.loads((OUT / "recipes.json").read_text()).values()
    )
    assert unneeded(Path("data")) == []
    assert contents(OUT) == before
    assert filled.build()["encoded"] == 0


def test_nothing_is_pruned_while_a_build_runs_or_a_dataset_is_damaged(filled, cli):
    filled.build()
    edited(filled)
    held = set(kept.STORE.rglob("*"))
    builds, ends = threading.Event(), threading.Event()

    def build() -> None:
        with kept.claimed():
            builds.set()
            ends.wait(60)

    thread = threading.Thread(target=build)
    thread.start()
    try:
        assert builds.wait(60)
        with pytest.raises(UserError, match=r"^\.cache/shards: a build is running"):
            prune(Path("data"))
    finally:
        ends.set()
        thread.join()
    text = (OUT / "shards.json").read_text()
    (OUT / "shards.json").write_text(text[:-20])
    for command in ("show", "prune"):
        code, _, err = cli("cache", command)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("memoir: data/tiny/shards.json: damaged")
    assert set(kept.STORE.rglob("*")) == held
    (OUT / "shards.json").write_text(text)
    assert prune(Path("data")).number > 0
