import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from conftest import SECRET, Workplace, encode, photograph, table_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.noise import awgn
from pipeline.degradations.scale import bicubic_lowres, modcrop
from pipeline.degradations.scene_mean import scene_mean
from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.images import read_image, source_image, write_image
from pipeline.loading.loader import Loader, Position
from pipeline.raw import sources
from pipeline.raw.manifest import Source, ingest, read_manifest
from pipeline.sampling.patches import Grid
from pipeline.shards import assemble, kept
from pipeline.shards import build as stage
from pipeline.shards import format as shard_format
from pipeline.shards.build import versions
from pipeline.shards.encode import UnusableImagesError, sample_planes, samples
from pipeline.shards.format import file_sha256, read_shards_json, verify
from pipeline.shards.kept import STORE
from pipeline.shards.plan import File, Group
from pipeline.shards.shard_set import ShardSet
from pipeline.storage import storage
from pipeline.task import Jpeg, Noise, Paired, Scale, Task

OUT = Path("data/tiny")


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert files
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fill(workplace: Workplace, number: int = 10, side: int = 110) -> None:
    for i in range(number):
        workplace.add(f"train/{i}.png", photograph(i, side, side + i, 3 if i % 2 else 1))
    workplace.add("val/1.png", photograph(1000, side, side))
    workplace.ingest()


@pytest.fixture
def filled(workplace, without_ray) -> Workplace:
    """Ten photographs in several shards, ingested; builds need no Ray."""
    fill(workplace)
    return workplace


def forget() -> None:
    """Remove the shards that were built, also from the output."""
    shutil.rmtree(STORE)
    shutil.rmtree(OUT, ignore_errors=True)


# the members of a sample


@pytest.mark.parametrize("colour", ["y", "gray", "rgb"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sample_has_the_clean_planes_each_level_and_its_origin(workplace, colour, channels):
    path = workplace.add("train/1.png", photograph(1, 33, 50, channels))
    pixels = photograph(1, 33, 50, channels)
    planes = {"y": rgb2ycbcr_y(pixels), "gray": rgb2gray(pixels), "rgb": pixels}[colour]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    common = {"colour": colour, "splits": {"train": ("photos/train",)}}

    def members(degradation: Jpeg | Scale | Noise) -> dict[str, object]:
        group = Group("a", (File("gt", str(path), sha256),))
        ((key, found),) = samples([group], Task(degradation=degradation, **common))
        assert key == "a"
        for name, data, columns in found[:-1]:
            array = np.frombuffer(data[columns["header"] :], columns["dtype"]).reshape(columns["shape"])
            yield name, columns["role"], columns.get("level"), array
        name, data, columns = found[-1]
        assert (name, json.loads(data)) == ("json", {"sources": {"gt": sha256}, "colour": colour})

    (gt, *stored) = members(Jpeg(kind="jpeg", quality=(10, 40)))
    assert gt[:3] == ("gt.npy", "gt", None)
    assert gt[3].dtype == np.uint8
    assert (gt[3] == planes).all()
    assert [each[:3] for each in stored] == [("lq-q10.npy", "lq", 10), ("lq-q40.npy", "lq", 40)]
    for _, _, quality, lq in stored:
        assert lq.dtype == np.uint8
        assert (lq == jpeg(planes, quality)).all()

    (gt, *stored) = members(Scale(kind="scale", factor=(2, 3)))
    assert [(*each[:3], each[3].shape[:2]) for each in stored] == [
        ("lq-x2.npy", "lq", 2, (32, 50)),
        ("lq-x3.npy", "lq", 3, (33, 48)),
    ]
    assert gt[3].dtype == np.uint8
    assert (gt[3] == planes).all()
    for _, _, factor, lq in stored:
        assert lq.dtype == np.int16
        exact = bicubic_lowres(modcrop(planes, factor) / 255, factor)
        assert (lq == np.rint(exact * 16384)).all()
        error = lq / 16384 * 255 - gt[3][: lq.shape[0], : lq.shape[1]]
        assert abs(error.mean()) < 0.5  # a shift or another plane would show
        assert 1 < error.std() < 25

    assert [each[0] for each in members(Noise(kind="noise", sigma=(30,)))] == ["gt.npy"]


def test_a_published_pair_is_stored_as_it_is_with_its_mask(workplace, without_ray):
    files = {
        workplace.add(f"train/train_{letter}/{i}.png", photograph(10 * i + n, 40, 50, 1 if letter == "B" else 3)): None
        for i in range(2)
        for n, letter in enumerate("ABC")
    }
    workplace.ingest("istd:istd")
    workplace.build(degradation={"kind": "paired"}, colour="rgb")
    rows = pq.read_table(OUT / "index").to_pylist()
    assert [(row["key"], row["member"], row["role"], row["level"]) for row in rows] == [
        (f"photos-train-{i}", member, role, level)
        for i in range(2)
        for member, role, level in (
            ("gt.npy", "gt", None),
            ("lq-0.npy", "lq", 0),
            ("mask-0.npy", "mask", 0),
            ("json", "json", None),
        )
    ]
    for row in (row for row in rows if row["role"] != "json"):
        letter = {"gt": "C", "lq": "A", "mask": "B"}[row["role"]]
        data = (OUT / "train" / row["shard"]).read_bytes()[row["offset"] :][: row["length"]]
        stored = np.load(io.BytesIO(data))
        assert (stored == photograph(10 * int(row["key"][-1]) + "ABC".index(letter), 40, 50, stored.shape[2])).all()
    assert list(verify(OUT)) == []
    assert len(files) == 6


def test_one_clean_image_is_stored_once_for_all_its_inputs(workplace, without_ray):
    group = Group(
        "a",
        tuple(
            File(name, str(path), hashlib.sha256(path.read_bytes()).hexdigest())
            for name, path in (
                (name, workplace.add(f"{name}.png", photograph(seed, 20, 20)))
                for seed, name in enumerate(("gt", "lq-0", "lq-1", "lq-2"))
            )
        ),
    )
    task = Task(degradation=Paired(kind="paired"), colour="rgb", splits={"train": ("photos/train",)})
    ((_, members),) = samples([group], task)
    assert [name for name, _, _ in members] == ["gt.npy", "lq-0.npy", "lq-1.npy", "lq-2.npy", "json"]
    assert [columns.get("level") for _, _, columns in members] == [None, 0, 1, 2, None]


def test_half_of_a_side_by_side_image_is_built_and_a_changed_one_is_named(workplace, without_ray):
    path = workplace.add("1.png", photograph(3, 20, 40))
    pixels, sha256 = source_image(path, "right")
    assert (pixels == photograph(3, 20, 40)[:, 20:]).all()
    task = Task(degradation=Paired(kind="paired"), colour="rgb", splits={"train": ("photos/train",)})
    file = File("gt", str(path), sha256, "right")
    ((_, ((_, data, columns), _)),) = samples([Group("a", (file,))], task)
    assert data[columns["header"] :] == pixels.tobytes()
    workplace.add("1.png", photograph(4, 20, 40))
    with pytest.raises(UnusableImagesError, match=r"1\.png: changed since it was ingested; run `memoir ingest` again$"):
        list(samples([Group("a", (file,))], task))


def test_time_lapse_scenes_are_stored_once_and_their_pairs_are_rows(workplace, without_ray):
    for scene, frame in ((scene, frame) for scene in "ab" for frame in range(4)):
        workplace.add(f"train/{scene}/{frame}.png", photograph(ord(scene) + frame, 20, 20, 1))
    workplace.ingest("scenes")
    first = workplace.build(degradation={"kind": "timelapse"})
    members = [row["member"] for row in pq.read_table(OUT / "index").to_pylist()]
    assert members == [*(f"frame-{i}.npy" for i in range(4)), "json"] * 2
    pairs = pq.read_table(OUT / "pairs").to_pylist()
    assert [(row["key"], row["v"], row["w"]) for row in pairs] == [
        (f"photos-train-{scene}", v, w) for scene in "ab" for v in range(4) for w in range(v + 1, 4)
    ]
    second = workplace.build(degradation={"kind": "timelapse", "pairs_per_scene": 2})
    assert second["encoded"] == 0
    assert second["digest"] == first["digest"]
    assert pq.read_table(OUT / "pairs").num_rows == 4
    assert list(verify(OUT)) == []
    table_file(OUT, "pairs").write_bytes(b"x")
    assert [problem.split(": ", 1)[1] for problem in verify(OUT)] == [
        "damaged, or of another build than shards.json; build again"
    ]


# the same bytes


@pytest.mark.usefixtures("ray_cluster")
def test_the_bytes_do_not_depend_on_the_number_of_cpus_or_on_ray(workplace, monkeypatch):
    fill(workplace)
    built = []
    monkeypatch.setattr(stage, "FEW", 0)
    for cpus, ahead in ((1, 1024), (2, 3), (4, 1)):  # shards at a time, and in one dataset of Ray Data
        monkeypatch.setattr(stage, "AHEAD", ahead)
        listing = workplace.build(cpus)
        assert listing["encoded"] == len(listing["shards"]) > 4
        built.append(digests(OUT))
        STORE.parent.rename(f"cache-{cpus}")
        shutil.rmtree(OUT)
    monkeypatch.setattr(stage, "FEW", 100)
    monkeypatch.setattr(stage, "connect", None)  # it would fail if Ray were asked for
    workplace.build()
    assert built == [digests(OUT)] * 3
    assert list(verify(OUT)) == []


def test_a_second_build_encodes_nothing_and_gives_the_same_bytes(filled):
    first = filled.build()
    before = digests(OUT)
    assert filled.build() == first | {"encoded": 0}
    assert digests(OUT) == before
    assert sorted(path.name for path in OUT.parent.iterdir()) == ["manifest", "tiny"]


def test_a_build_takes_from_the_store_what_is_there_and_whole(filled):
    shards = filled.build()["shards"]
    before = digests(OUT)
    names = [shard["name"] for shard in shards]
    OUT.rename("taken-away")
    for name in names[::2]:
        (STORE / name).unlink()
    damaged = STORE / names[1]
    damaged.unlink()  # its bytes are those of taken-away
    damaged.write_bytes(b"damaged")
    assert filled.build()["encoded"] == len(names[::2]) + 1
    assert digests(OUT) == before
    shutil.rmtree(OUT)
    for recipe, text in zip(sorted((STORE / "recipes").iterdir()), ("", "[]", "{}", '{"name": 1}'), strict=False):
        recipe.write_text(text)
    assert filled.build()["encoded"] == 4
    assert digests(OUT) == before


def test_a_shard_damaged_in_place_is_built_again(filled):
    """The file in the output and the one in the store are one file."""
    shards = filled.build()["shards"]
    before = digests(OUT)
    path = OUT / shards[0]["split"] / shards[0]["name"]
    path.write_bytes(path.read_bytes()[:-1])
    assert len(list(verify(OUT))) == 1
    assert filled.build()["encoded"] == 1
    assert digests(OUT) == before


def test_more_images_change_few_shards_and_fewer_leave_none_behind(filled):
    before = digests(OUT) if filled.build() else {}
    added = filled.add("train/4-more.png", photograph(50, 90, 90))
    filled.ingest()
    listing = filled.build()
    assert 1 <= listing["encoded"] <= 4 < len(listing["shards"])
    assert list(verify(OUT)) == []
    added.unlink()
    filled.ingest()
    assert filled.build()["encoded"] == 0
    assert digests(OUT) == before


def test_a_change_of_the_task_is_another_build(filled):
    first = filled.build()
    other = filled.build(degradation={"kind": "jpeg", "quality": [10]})
    assert other["encoded"] == len(other["shards"])
    assert other["digest"] != first["digest"]
    degradation = {"kind": "jpeg", "quality": [10], "subsampling": "4:2:0"}
    assert other["degradation"] == degradation == read_shards_json(OUT)["degradation"]
    assert list(verify(OUT)) == []


# killed builds


@pytest.mark.slow
def test_a_build_killed_three_times_at_random_moments_ends_in_the_same_bytes(workplace, monkeypatch):
    fill(workplace, number=60, side=150)
    command = [sys.executable, "-m", "memoir", "build", workplace.task(), "--cpus", "2"]
    moments = np.random.default_rng()  # a seed would try the same moments each time
    finished: list[int] = []
    for _ in range(3):
        before, wanted = len(list(STORE.glob("*.tar"))), moments.integers(1, 8)
        with Path("log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            while process.poll() is None and len(list(STORE.glob("*.tar"))) < before + wanted:
                time.sleep(0.001)
            time.sleep(moments.uniform(0, 0.02))
        finally:
            workers = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, Path("log").read_text()
        assert not psutil.wait_procs(workers, timeout=60)[1]
        assert not OUT.exists()
        finished.append(len(list(STORE.glob("*.tar"))))
    assert 0 < finished[0] < finished[1] < finished[2]
    monkeypatch.setattr(stage, "FEW", 10**6)
    listing = workplace.build()
    assert 0 < listing["encoded"] < len(listing["shards"])
    assert not list(STORE.rglob("*.tmp"))
    after_kills = digests(OUT)
    STORE.parent.rename("cache-of-the-killed")
    shutil.rmtree(OUT)
    assert workplace.build()["encoded"] == len(listing["shards"])
    assert digests(OUT) == after_kills


LEFTOVERS = (STORE / ".123-abc.tmp", STORE / "recipes" / ".124-abd.tmp")


def leave() -> None:
    for path in LEFTOVERS:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a shard")


def test_temporary_files_of_killed_builds_are_removed(filled):
    leave()
    filled.build()
    assert not any(path.exists() for path in LEFTOVERS)


def test_temporary_files_stay_while_another_build_uses_the_store(filled, monkeypatch):
    def run_and_look(*arguments):
        leave()
        subprocess.run(
            [sys.executable, "-c", OTHER], check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        )
        assert all(path.exists() for path in LEFTOVERS)
        yield from here(*arguments)

    here = stage._run
    monkeypatch.setattr(stage, "_run", run_and_look)
    filled.build()
    assert all(path.exists() for path in LEFTOVERS)
    filled.build()
    assert not any(path.exists() for path in LEFTOVERS)


OTHER = "from pipeline.shards.kept import claimed\nwith claimed(): pass"


def test_two_builds_of_one_task_at_a_time_both_succeed(filled):
    filled.build()
    before = digests(OUT)
    failures = []

    def again() -> None:
        try:
            for _ in range(5):
                stage.build("tiny.yaml", Path("data/manifest/manifest.json"), OUT)
        except BaseException as error:  # whatever it is, it must reach the test
            failures.append(error)

    threads = [threading.Thread(target=again) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert digests(OUT) == before


# mistakes and mishaps


def test_a_source_that_changed_since_it_was_ingested_is_one_line(filled, cli):
    filled.task()
    path = filled.add("train/0.png", photograph(77, 90, 90))
    (filled.root / "photos/train/9.png").unlink()
    code, out, err = cli("build", "tiny.yaml")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("memoir: build tiny.yaml: 2 of ")
    assert f"{path}: changed since it was ingested; run `memoir ingest` again" in err
    assert f"{filled.root}/photos/train/9.png: No such file or directory; run `memoir ingest` again" in err
    assert [path.name for path in OUT.parent.iterdir()] == ["manifest"]
    filled.ingest()
    assert cli("build", "tiny.yaml")[0] == 0


def test_a_failing_build_leaves_the_last_one_alone(filled):
    filled.build()
    before = digests(OUT)
    filled.add("train/3.png", b"changed")
    with pytest.raises(UserError):
        filled.build(colour="gray")
    assert digests(OUT) == before


def test_many_failures_are_counted_and_the_first_are_named(filled, monkeypatch):
    shards = len(filled.build()["shards"])
    forget()
    changed = [filled.add(f"train/{i}.png", b"changed") for i in range(10)]
    monkeypatch.setattr(stage, "SHOWN", 2)
    with pytest.raises(UserError) as error:
        filled.build()
    text = str(error.value)
    assert text.startswith(f"build tiny.yaml: {shards - 1} of {shards} shards failed: ")
    assert text.count("changed since it was ingested") == 2
    listed = ".cache/logs/tiny-rejects.parquet"
    assert text.endswith(f"again; and 8 more, in {listed}")
    rejects = pq.read_table(listed).to_pylist()
    assert [row["path"] for row in rejects] == [str(path) for path in sorted(changed)]
    assert {row["reason"] for row in rejects} == {"changed since it was ingested; run `memoir ingest` again"}


def test_an_image_that_the_degradation_does_not_take_is_named(workplace, without_ray):
    path = workplace.add("train/1.png", photograph(1, 16, 16))
    workplace.ingest()

    def refuse(*_: object) -> None:
        from pipeline.images import UnusableImageError

        raise UnusableImageError("too small to shrink")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.degradations.scale.modcrop", refuse)
        with pytest.raises(UserError, match=f"1 of 1 shards failed: {path}: too small to shrink$"):
            workplace.build(degradation={"kind": "scale", "factor": [2]})


def test_a_worker_with_other_libraries_is_refused(filled, monkeypatch):
    orders = stage._orders

    def of_a_driver_with_another_numpy(*arguments):
        return [order.replace(versions()["numpy"], "0.0") for order in orders(*arguments)]

    monkeypatch.setattr(stage, "_orders", of_a_driver_with_another_numpy)
    with pytest.raises(UserError, match=r"node .* has .*, the build needs .*'numpy': '0\.0'.*: install the same$"):
        filled.build()


def test_the_versions_are_those_of_all_libraries_that_decode_or_change_pixels(filled):
    filled.build()
    recorded = json.loads(Path("data/tiny/versions.json").read_text())
    assert recorded == versions()
    assert recorded.keys() == {"numpy", "opencv", "pillow", "scipy", "simplejpeg"}


def test_other_versions_that_give_the_same_bytes_are_the_same_dataset(filled, monkeypatch):
    filled.build()
    before = Path("data/tiny/shards.json").read_bytes()
    others = versions() | {"numpy": "0.0"}
    monkeypatch.setattr(stage, "versions", lambda: others)
    assert filled.build()["encoded"] > 0  # it cannot know beforehand
    assert Path("data/tiny/shards.json").read_bytes() == before
    assert json.loads(Path("data/tiny/versions.json").read_text()) == others


def test_shards_json_has_the_licence_of_each_dataset_of_its_splits(filled):
    assert filled.build()["licences"] == {"photos": None}
    source = Source(layout="folder", root="photos", licence="CC0")
    ingest({"photos": source, "others": source.model_copy(update={"licence": "MIT"})}, Path("data/manifest"))
    assert filled.build()["licences"] == {"photos": "CC0"}
    assert read_shards_json(Path("data/tiny"))["licences"] == {"photos": "CC0"}


def test_a_store_in_a_file_is_one_line(filled, cli):
    filled.task()
    Path("file").write_text("")
    code, out, err = cli("build", "tiny.yaml", "--store", "file/store")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"memoir: \S*file/store\S*: Not a directory\n", err)


@pytest.mark.parametrize("calls", [0, 1, 7])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(filled, cli, monkeypatch, calls):
    """The disk is full from some write on: in a shard, in its recipe, in a later one."""
    fsync, left = os.fsync, iter(range(calls))

    def fill_up(file: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", fill_up)
    filled.task()
    code, out, err = cli("build", "tiny.yaml")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "No space left on device" in err
    assert str(STORE) in err
    assert not list(STORE.rglob("*.tmp"))
    assert [path.name for path in OUT.parent.iterdir()] == ["manifest"]
    monkeypatch.setattr(os, "fsync", fsync)
    assert cli("build", "tiny.yaml")[0] == 0
    assert list(verify(OUT)) == []


def test_a_disk_that_fills_up_at_the_end_leaves_the_last_build(filled, cli, monkeypatch):
    filled.build()
    before = digests(OUT)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "data/.tiny.tmp/rejects.parquet")

    monkeypatch.setattr(assemble, "write_table", full)
    assert cli("build", "tiny.yaml") == (1, "", "memoir: data/.tiny.tmp/rejects.parquet: No space left on device\n")
    assert digests(OUT) == before
    assert sorted(path.name for path in OUT.parent.iterdir()) == ["manifest", "tiny"]


def test_an_output_on_another_file_system_is_copied(filled, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    filled.build()
    before = digests(OUT)
    monkeypatch.setattr(os, "link", refuse)
    filled.build()
    assert digests(OUT) == before


def test_the_commands_errors_are_one_line_each(workplace, cli, without_ray):
    def said(*arguments: str) -> str:
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        return err

    assert said("build", "photo-jpeg").startswith("memoir: unknown task 'photo-jpeg'; did you mean 'photos-jpeg'?")
    assert said("build", "photos-jpeg").endswith("manifest.json: no manifest; run `memoir ingest` first\n")
    workplace.add("train/1.png", photograph(1, 20, 20))
    workplace.ingest()
    workplace.task(splits={"train": ["photo/train"]})
    assert said("build", "tiny.yaml").startswith("memoir: the manifest has no images in 'photo/train'; did you mean")
    workplace.task(splits={"train": ["photos/train"], "vla": []})
    assert said("build", "tiny.yaml").startswith("memoir: tiny.yaml:")


# degradations by name


def test_the_chroma_of_a_colour_jpeg_is_coded_as_the_task_says(workplace, without_ray):
    path = workplace.add("train/1.png", photograph(1, 40, 48))
    workplace.ingest()
    for subsampling in ("4:2:0", "4:4:4"):
        degradation = {"kind": "jpeg", "quality": [30], "subsampling": subsampling}
        workplace.build(colour="rgb", degradation=degradation)
        (version,) = ShardSet(OUT, "train").versions()
        assert (version.planes["lq"] == jpeg(read_image(path)[0], 30, subsampling)).all()
        rows = pq.read_table(OUT / "index").to_pylist()
        assert {"jpeg": 30, "subsampling": subsampling} in [json.loads(r["parameters"] or "null") for r in rows]


def test_stored_noise_belongs_to_the_image_not_to_its_neighbours(filled):
    stored = {"kind": "noise", "sigma": [25], "drawn": "stored", "quantised": True}

    def noise(**changes: object) -> dict[str, np.ndarray]:
        filled.build(degradation=stored | changes)
        versions = list(ShardSet(OUT, "train").versions())
        return {v.key: v.planes["lq"].astype(int) - v.planes["gt"] for v in versions}

    first, again, other = noise(), noise(), noise(seed=1)
    (filled.root / "photos/train/3.png").unlink()
    filled.ingest()
    without = noise()
    assert len(without) == len(first) - 1
    assert all((without[key] == first[key]).all() and (again[key] == first[key]).all() for key in without)
    assert not any((other[key] == first[key]).all() for key in first)
    assert len({each[0, :100].tobytes() for each in first.values()}) == len(first)  # each image has its own
    assert np.concatenate([each.ravel() for each in first.values()]).std() == pytest.approx(25, rel=0.05)


def test_frames_are_resized_to_the_task_s_square(workplace, without_ray):
    for frame in range(3):
        workplace.add(f"train/s/{frame}.png", photograph(frame, 50, 64))
    workplace.ingest("scenes")
    scenes = {"splits": {"train": ["photos/train"]}, "colour": "rgb"}
    workplace.build(degradation={"kind": "timelapse", "size": 32}, **scenes)
    for version in ShardSet(OUT, "train").versions():
        for name, frame in (("v", version.planes["v"]), ("w", version.planes["w"])):
            assert frame.shape == (32, 32, 3), name
    mean = photograph(0, 50, 64).mean((0, 1))
    assert np.abs(next(ShardSet(OUT, "train").versions()).planes["v"].mean((0, 1)) - mean).max() < 3
    whole = workplace.build(degradation={"kind": "timelapse"}, **scenes)
    assert whole["encoded"] == len(whole["shards"])


# the mean of a scene

SCENES = {"splits": {"train": ["photos/train"]}, "colour": "rgb"}
MEAN = {"kind": "timelapse", "target": "mean"}


@pytest.mark.parametrize("size", [None, 32])
def test_the_mean_of_a_scene_is_stored_once_beside_its_frames(workplace, without_ray, size):
    frames = {(s, f): photograph(10 * s + f, 50, 64) for s in range(2) for f in range(3)}
    for (scene, frame), pixels in frames.items():
        workplace.add(f"train/{scene}/{frame}.png", pixels)
    workplace.ingest("scenes")
    listing = workplace.build(degradation=MEAN | {"size": size}, **SCENES)
    rows = pq.read_table(OUT / "index").to_pylist()
    assert [(row["member"], row["role"], row["level"]) for row in rows] == [
        ("gt.npy", "gt", None),
        *((f"lq-{i}.npy", "lq", i) for i in range(3)),
        ("json", "json", None),
    ] * 2
    assert [row["parameters"] for row in rows[::5]] == ['{"mean": 3}'] * 2
    assert listing["parts"][0].keys() == {"shards", "index"}
    assert not (OUT / "pairs").exists()
    assert list(verify(OUT)) == []
    versions = list(ShardSet(OUT, "train").versions())
    assert [(version.key, version.level) for version in versions] == [
        (f"photos-train-{s}", f) for s in range(2) for f in range(3)
    ]
    for s in range(2):
        stored = [version.planes["lq"].astype(float) for version in versions[3 * s : 3 * s + 3]]
        for f, version in enumerate(versions[3 * s : 3 * s + 3]):
            if size is None:
                assert (stored[f] == frames[s, f]).all()
            assert stored[f].shape[:2] == ((size, size) if size else (50, 64))
            assert (version.planes["gt"] == np.floor(np.mean(stored, axis=0) + 0.5)).all()


def test_pairs_and_the_mean_of_the_same_frames_are_other_shards(workplace, without_ray):
    for frame in range(3):
        workplace.add(f"train/s/{frame}.png", photograph(frame, 50, 64))
    workplace.ingest("scenes")
    digests = [workplace.build(degradation=each, **SCENES)["digest"] for each in ({"kind": "timelapse"}, MEAN)]
    assert digests[0] != digests[1]


def test_negatives_of_a_frame_are_mixed_with_the_mean_of_its_scene(workplace, without_ray):
    for frame in range(3):
        workplace.add(f"train/s/{frame}.png", photograph(frame, 30, 40))
    workplace.ingest("scenes")
    workplace.build(degradation=MEAN, negatives={"number": 1, "lambdas": [0.5], "kept": "stored"}, **SCENES)
    assert list(verify(OUT)) == []
    dataset = ShardSet(OUT, "train")
    assert dataset.negatives is not None
    for i, version in enumerate(dataset.versions()):
        half = (version.planes["lq"].astype(float) + version.planes["gt"]) / 2
        negative = dataset.pixels(int(dataset.negatives[i, 0]))
        assert negative.dtype == np.int16
        assert (negative == np.rint(half / 255 * 16384)).all()


@pytest.mark.parametrize(("shape", "said"), [((50, 60, 3), "60x50 with 3"), ((50, 64, 1), "64x50 with 1")])
def test_a_frame_unlike_the_others_of_its_scene_has_no_mean_with_them(workplace, without_ray, shape, said):
    for frame in range(3):
        workplace.add(f"train/s/{frame}.png", photograph(frame, *(shape if frame == 1 else (50, 64, 3))))
    workplace.ingest("scenes")
    with pytest.raises(UserError) as error:
        workplace.build(degradation=MEAN, **SCENES)
    assert str(error.value).endswith(
        f"photos/train/s/1.png: it and the first frame of its scene are {said} channels and 64x50 with 3 channels: "
        "leave one of them out"
    )
    assert "\n" not in str(error.value)
    workplace.build(degradation={"kind": "timelapse"}, **SCENES)  # pairs of them are cut where both have pixels


# every image is accounted for


def test_images_that_a_task_does_not_take_are_listed_with_the_reason(workplace, without_ray):
    for i in range(3):
        for seed, letter in enumerate("ABC"):
            workplace.add(f"train/train_{letter}/{i}.png", photograph(10 * i + seed, 20, 20, 1 if letter == "B" else 3))
    workplace.ingest("istd:istd")
    listing = workplace.build(splits={"train": ["photos/train"]})
    assert listing["images"] == {"found": 9, "used": 3, "rejected": 6}
    rejects = pq.read_table(OUT / "rejects.parquet").to_pylist()
    assert len(rejects) == 6
    assert {row["reason"] for row in rejects} == {f"{role}: a task of kind jpeg takes gt" for role in ("lq", "mask")}
    assert {Path(row["path"]).parent.name for row in rejects} == {"train_A", "train_B"}
    listing = workplace.build(splits={"train": ["photos/train"]}, degradation={"kind": "paired"})
    assert listing["images"] == {"found": 9, "used": 9, "rejected": 0}
    assert pq.read_table(OUT / "rejects.parquet").num_rows == 0


# built shards and sources in a bucket


def elsewhere(monkeypatch, folder: Path, workplace: Workplace) -> Workplace:
    """Another machine: other folders, the same raw images in their place."""
    shutil.copytree(workplace.root / "photos", folder / "photos")
    monkeypatch.chdir(folder)
    return Workplace(folder)


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_what_one_machine_built_another_takes_from_the_shared_store(filled, kind, request, tmp_path, monkeypatch):
    store = request.getfixturevalue("s3") + "/built" if kind == "bucket" else f"file://{tmp_path}/shared"
    first = filled.build(store=store)
    before = digests(OUT)
    assert first["encoded"] == len(first["shards"])
    other = elsewhere(monkeypatch, tmp_path / "other", filled)
    other.ingest()
    assert other.build(store=store)["encoded"] == 0
    assert digests(OUT) == before
    assert list(verify(OUT)) == []
    # a damaged copy in the store is not believed
    name = first["shards"][0]["name"]
    storage(store).write(name, b"damaged")
    forget()
    assert other.build(store=store)["encoded"] == 1
    assert digests(OUT) == before
    assert len(storage(store).read(name)) == first["shards"][0]["bytes"]


def test_what_this_machine_built_is_not_read_back_from_the_shared_store(filled, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(kept, "download", lambda recipes, shared: [read.extend(recipes), set(recipes)][1])
    store = f"file://{tmp_path}/shared"
    listing = filled.build(store=store)
    assert listing["encoded"] == len(listing["shards"])
    assert read == []
    assert {each["name"] for each in listing["shards"]} < set(storage(store).names())


def test_a_shard_that_is_there_is_read_once_when_another_machine_s_recipe_comes(filled, tmp_path, monkeypatch):
    store = f"file://{tmp_path}/shared"
    names = [shard["name"] for shard in filled.build(store=store)["shards"]]
    shutil.rmtree(STORE / "recipes")
    shutil.rmtree(OUT)
    (STORE / names[0]).unlink()
    read = []
    for module in (kept, shard_format):
        monkeypatch.setattr(module, "file_sha256", lambda path: [read.append(path.name), file_sha256(path)][1])
    assert filled.build(store=store)["encoded"] == 0
    assert sorted(name for name in read if name.endswith(".tar")) == sorted(names)


def upload(folder: Path, uri: str) -> None:
    for path in sorted(folder.rglob("*.png")):
        storage(uri).write(path.relative_to(folder).as_posix(), path)


def test_photographs_in_a_bucket_give_the_shards_of_a_folder(filled, s3, monkeypatch, tmp_path):
    filled.build()
    before = [shard["sha256"] for shard in read_shards_json(OUT)["shards"]]
    upload(filled.root / "photos", f"{s3}/raw")
    for path in (filled.root / "photos").rglob("*.png"):
        path.unlink()
    forget()
    filled.ingest(root=f"{s3}/raw")
    manifest = read_manifest(Path("data/manifest/manifest.json"))
    assert all(path.startswith(f"{s3}/raw/") for path in manifest["path"].to_pylist())
    assert filled.build()["encoded"] > 0
    assert [shard["sha256"] for shard in read_shards_json(OUT)["shards"]] == before
    # a node that has no copy reads the bucket
    shutil.rmtree(sources.MIRROR)
    forget()
    filled.build()
    assert [shard["sha256"] for shard in read_shards_json(OUT)["shards"]] == before
    # an object that changed is found by its content
    path = manifest["path"][0].as_py()
    storage(f"{s3}/raw").write(path.removeprefix(f"{s3}/raw/"), b"changed")
    forget()
    with pytest.raises(UserError, match=f"{path}: changed since it was ingested; run `memoir ingest` again$"):
        filled.build()


def test_halves_of_images_in_a_bucket_are_built_on_a_node_without_a_copy(workplace, s3, without_ray):
    workplace.add("0.png", photograph(0, 24, 48))
    upload(workplace.root / "photos", s3)
    path = f"{s3}/0.png"
    group = [
        File(name, path, source_image(sources.fetched_file(path), part)[1], part)
        for name, part in (("gt", "right"), ("lq-0", "left"))
    ]
    shutil.rmtree(sources.MIRROR)
    task = Task(degradation=Paired(kind="paired"), colour="rgb", splits={"train": ("photos/train",)})
    ((_, members),) = samples([Group("a", tuple(group))], task)
    half = photograph(0, 24, 48)[:, 24:]
    assert members[0][1].endswith(half.tobytes())


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ({"AWS_ACCESS_KEY_ID": None}, r"no credentials; set AWS_ACCESS_KEY_ID$"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"no whole answer from http://127.0.0.1:9 .* the network"),
        ({"bucket": "s3://no-such-bucket-of-ours/raw"}, r"no bucket 'no-such-bucket-of-ours'"),
        ({"bucket": "empty"}, r"nothing there; check the name, or upload the data set$"),
    ],
)
def test_a_bucket_of_photographs_that_cannot_be_read_says_what_is_missing(workplace, s3, monkeypatch, setting, problem):
    uri = setting.pop("bucket", s3)
    if uri != "empty" and uri == s3:
        storage(s3).write("train/1.png", encode(photograph(0, 20, 20), "PNG"))
    for name, value in setting.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=problem) as error:
        workplace.ingest(root=s3 if uri == "empty" else uri)
    assert SECRET not in str(error.value)
    assert not Path("data/manifest/manifest.json").exists()


def test_a_copy_of_a_bucket_follows_it(workplace, s3):
    bucket = storage(s3)
    for name, data in (("a/1.png", b"one"), ("a/2.png", b"two"), ("a/", b"")):
        bucket.write(name, data)
    folder = sources.local_folder(s3)
    assert sorted(path.name for path in (folder / "a").iterdir()) == ["1.png", "2.png"]
    (folder / "a/2.png").write_bytes(b"")  # cut short
    bucket.client.delete_object(Bucket=bucket.bucket, Key="a/1.png")
    bucket.write("b.png", b"three")
    unchanged = (folder / "a").stat().st_ino
    assert sources.local_folder(s3) == folder
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")} == {
        "a/2.png": b"two",
        "b.png": b"three",
    }
    assert (folder / "a").stat().st_ino == unchanged
    bucket.write("a/../c.png", b"four")
    with pytest.raises(UserError, match=r"a/\.\./c\.png: its key is no relative path; rename the object$"):
        sources.local_folder(s3)


# 16 bits a channel


def deep(seed: int, height: int = 40, width: int = 50, channels: int = 3) -> np.ndarray:
    """Another picture for each seed, whose low bits matter: uint16."""
    return widened(photograph(seed, height, width, channels), 16) ^ np.uint16(37 * seed % 200 + 1)


@pytest.fixture
def mixed(workplace, without_ray) -> Workplace:
    """Pairs of 8 and of 16 bits; of the last one only the input has 16."""
    for i in range(4):
        make, gt = (deep if i in (1, 2) else photograph), photograph if i == 3 else None
        workplace.add(f"train/lq/{i}.png", (deep if i == 3 else make)(2 * i, 40, 50))
        workplace.add(f"train/gt/{i}.{'tiff' if i == 2 else 'png'}", (gt or make)(2 * i + 1, 40, 50))
    workplace.add("val/lq/0.png", photograph(90, 40, 50))
    workplace.add("val/gt/0.png", photograph(91, 40, 50))
    workplace.ingest("pairs")
    return workplace


PAIRED = {"degradation": {"kind": "paired"}, "colour": "rgb"}


def test_a_task_of_8_bits_lists_the_images_of_16_and_their_partners(mixed, cli):
    mixed.task(**PAIRED)
    code, out, err = cli("build", "tiny.yaml")
    assert code == 0
    assert "data/tiny: 10 images = 4 used + 6 not, see data/tiny/rejects.parquet" in out
    assert "the smallest image to train on is 50x40" in out
    reasons = {
        row["path"].removeprefix("photos/"): row["reason"] for row in pq.read_table(OUT / "rejects.parquet").to_pylist()
    }
    why = "16 bits a channel, and the task's shards have 8: say bits: 16 in the task, or convert it to 8"
    assert reasons == {
        **dict.fromkeys(
            ["train/lq/1.png", "train/gt/1.png", "train/lq/2.png", "train/gt/2.tiff", "train/lq/3.png"], why
        ),
        "train/gt/3.png": f"its partner has {why}",
    }
    assert err == (
        f"data/tiny: 5 not used, {why} (the first: photos/train/lq/1.png)\n"
        f"data/tiny: 1 not used, its partner has {why} (the first: photos/train/gt/3.png)\n"
    )
    assert "bits" not in json.loads((OUT / "shards.json").read_text())


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_task_of_16_bits_stores_both_depths_as_the_same_pictures(mixed, codec):
    listing = mixed.build(**PAIRED, bits=16, codec=codec)
    assert listing["images"] == {"found": 10, "used": 10, "rejected": 0}
    assert json.loads((OUT / "shards.json").read_text())["bits"] == 16
    assert list(verify(OUT)) == []
    rows = [row for row in pq.read_table(OUT / "index").to_pylist() if row["role"] != "json"]
    assert {row["dtype"] for row in rows} == {"uint16"}
    assert all((row["offset"] + row["header"]) % 64 == 0 for row in rows if codec == "raw")
    for row in rows:
        if row["split"] == "train" and codec == "raw":
            data = (OUT / "train" / row["shard"]).read_bytes()[row["offset"] :][: row["length"]]
            array = np.load(io.BytesIO(data))
            assert array.dtype == np.dtype("<u2")
            i = int(row["key"][-1])
            seed = 2 * i + (row["role"] == "gt")
            own = i in (1, 2) or (i == 3 and row["role"] == "lq")
            assert (array == (deep(seed) if own else widened(photograph(seed, 40, 50), 16))).all()
    versions = {version.key: version.planes for version in ShardSet(OUT, "train").versions()}
    assert (versions["photos-train-2"]["gt"] == deep(5)).all()
    assert (versions["photos-train-0"]["lq"] == widened(photograph(0, 40, 50), 16)).all()


@pytest.mark.parametrize("colour", ["y", "gray", "rgb"])
def test_inputs_of_16_bits_are_made_by_the_formulas_of_8_and_rounded_to_16(workplace, colour):
    path = workplace.add("train/1.png", deep(1, 33, 50))
    file = File("gt", str(path), hashlib.sha256(path.read_bytes()).hexdigest())
    common = {"colour": colour, "splits": {"train": ("photos/train",)}, "bits": 16}
    gt = {"y": rgb2ycbcr_y, "gray": rgb2gray, "rgb": lambda image: image}[colour](deep(1, 33, 50))
    noise = Noise(kind="noise", sigma=(30,), drawn="stored", quantised=True)
    for degradation, made, dtype, white in (
        (Scale(kind="scale", factor=(3,)), bicubic_lowres(modcrop(gt, 3) / 65535, 3), np.int16, 16384),
        (noise, awgn(gt / 65535, 30, (0, "noise", "a", 30)).clip(0, 1), np.uint16, 65535),
    ):
        planes = {
            plane.role: plane.pixels
            for plane in sample_planes(Group("a", (file,)), Task(degradation=degradation, **common))
        }
        assert (planes["gt"] == gt).all()
        assert planes["lq"].dtype == dtype
        assert np.abs(planes["lq"] - made * white).max() <= 0.52


def test_scenes_of_16_bits_have_a_resized_mean_of_16_bits(workplace, without_ray):
    for i in range(3):
        workplace.add(f"train/a/{i}.png", deep(i, 40, 60, 1) if i else photograph(i, 40, 60, 1))
    workplace.ingest("scenes")
    degradation = {"kind": "timelapse", "target": "mean", "size": 20}
    workplace.build(degradation=degradation, bits=16)
    versions = list(ShardSet(OUT, "train").versions())
    frames = [version.planes["lq"] for version in versions]
    gt = versions[0].planes["gt"]
    assert len(frames) == 3
    assert gt.dtype == np.uint16
    assert gt.shape == (20, 20, 1)
    assert (gt == scene_mean(frames)).all()
    exact = deep(1, 40, 60, 1)[..., 0].reshape(20, 2, 20, 3)[:, :, :, 1].astype(float).mean(1)  # the middle of each 2x3
    assert np.abs(frames[1][..., 0] - exact).max() <= 1


SIDE = st.integers(16, 30)


@given(height=SIDE, width=SIDE, channels=st.sampled_from([1, 3]), seed=st.integers(0, 2**32 - 1), data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_image_of_16_bits_survives_file_shard_batch_and_file(
    workplace, without_ray, height, width, channels, seed, data
):
    pixels = np.random.default_rng(seed).integers(0, 65536, (height, width, channels), np.uint16)
    suffix, codec = (data.draw(st.sampled_from(choices)) for choices in ((".png", ".tiff"), ("raw", "png")))
    shutil.rmtree("photos", ignore_errors=True)
    workplace.add(f"train/1{suffix}", pixels)
    workplace.ingest()
    workplace.build(degradation={"kind": "noise", "sigma": [30]}, colour="rgb", bits=16, codec=codec)
    p = min(height, width)
    batch = Loader(OUT, batch=1, sampling=Grid(p, p, dihedral=False)).cut(Position())
    gt = batch["gt"][0].permute(1, 2, 0).numpy()
    assert (gt == pixels[:p, :p]).all()
    write_image(Path(f"out{suffix}"), gt)
    assert (read_image(Path(f"out{suffix}"), bits=16)[0] == pixels[:p, :p]).all()
