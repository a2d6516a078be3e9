import errno
import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import encode, photograph

from pipeline.errors import UserError
from pipeline.layouts import LAYOUTS
from pipeline.raw import manifest
from pipeline.raw.leaks import perceptual_hash
from pipeline.raw.manifest import SCHEMA, Room, Source, ingest, licences, read_manifest, write_manifest

MANIFEST = Path("data/manifest/manifest.json")
REJECTS = Path("data/manifest/rejects.parquet")


def reasons() -> dict[str, str]:
    """Of the rejects, by file name."""
    return {Path(row["path"]).name: row["reject_reason"] for row in pq.read_table(REJECTS).to_pylist()}


def test_bad_images_are_rejects_with_their_reasons_and_the_good_ones_are_used(workplace, unusable):
    good = [
        workplace.add("train/rgb.png", photograph(0, 20, 30)),
        workplace.add("train/grey.png", photograph(1, 20, 30, 1)),
        workplace.add("train/photo.jpg", encode(photograph(2, 20, 30), "JPEG")),
        workplace.add("val/1.png", photograph(3, 16, 16)),
    ]
    bad = {}
    for name, (data, reason) in unusable.items():
        path = workplace.add(f"train/{name}", data)
        if reason == "16 bits a channel":  # of which a task may make use
            good.append(path)
        else:
            bad[name] = reason
    workplace.add("train/dot.png", photograph(4, 1, 1))
    workplace.add("train/low.png", photograph(5, 15, 40))
    workplace.add("train/notes.txt", b"not by its suffix")
    workplace.add("train/IMG_1.HEIC", b"of a phone")
    (workplace.root / "photos/train/gone.png").symlink_to("nowhere")
    bad |= {
        "dot.png": "1x1 pixels; the least is 16x16",
        "low.png": "40x15 pixels; the least is 16x16",
        "notes.txt": "not an image by its suffix",
        "IMG_1.HEIC": "HEIC files are not read; convert it to PNG",
        "gone.png": "a broken link",
    }
    counts, rejects = workplace.ingest()
    assert (counts.found, counts.used, counts.rejected) == (len(good) + len(bad), len(good), len(bad))
    assert rejects.equals(pq.read_table(REJECTS))
    said = reasons()
    assert said.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in said[name], name
    used = read_manifest(MANIFEST).to_pylist()
    assert sorted(row["path"] for row in used) == sorted(p.relative_to(workplace.root).as_posix() for p in good)


def test_what_a_file_is_warned_of_is_in_its_row_and_on_stderr(workplace, cli):
    data = encode(photograph(0, 32, 32), "JPEG", quality=90)
    tables = data.index(b"\xff\xdb")
    workplace.add("train/junk.jpg", data[:tables] + b"12345" + data[tables:])
    workplace.add("train/profile.png", encode(photograph(1, 32, 32), "PNG", icc_profile=b"none" * 99))
    workplace.add("train/whole.jpg", encode(photograph(2, 32, 32), "JPEG", quality=90))
    write_params()
    code, out, err = cli("ingest")
    assert (code, out) == (0, "photos: 3 found = 3 used + 0 rejected\n")
    warned = {
        "photos/train/junk.jpg": "Corrupt JPEG data: 5 extraneous bytes before marker 0xdb",
        "photos/train/profile.png": "its colour profile cannot be used, and is not heeded",
        "photos/train/whole.jpg": None,
    }
    assert {row["path"]: row["warning"] for row in read_manifest(MANIFEST).to_pylist()} == warned
    lines = [f"warning {path}: {warning}\n" for path, warning in warned.items() if warning]
    assert err == "".join(lines) + "photos: of the used, 2 with a warning\n"


def test_a_row_says_what_the_file_holds(workplace):
    path = workplace.add("val/cats/1.png", photograph(0, 20, 30, 1))
    workplace.ingest()
    assert read_manifest(MANIFEST).to_pylist() == [
        {
            "dataset": "photos",
            "variant": None,
            "split": "val",
            "key": "cats-1",
            "role": "gt",
            "path": "photos/val/cats/1.png",
            "part": None,
            "scene": None,
            "frame": None,
            "group": "cats-1",
            "width": 30,
            "height": 20,
            "channels": 1,
            "bit_depth": 8,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "phash": perceptual_hash(photograph(0, 20, 30, 1)),
            "profile": None,
            "warning": None,
            "reject_reason": None,
        }
    ]


def test_a_pair_with_an_unusable_partner_is_rejected_whole(workplace):
    for seed, name in enumerate("123"):
        workplace.add(f"train/Rain13K/input/{name}.png", photograph(seed, 20, 20))
        workplace.add(f"train/Rain13K/target/{name}.png", photograph(9 + seed, 20, 20))
    workplace.add("train/Rain13K/target/2.png", b"broken")
    counts, rejects = workplace.ingest("rain13k")
    assert (counts.found, counts.used, counts.rejected) == (6, 4, 2)
    broken = "not an image, or its header is damaged"
    assert [(row["role"], row["reject_reason"]) for row in rejects.to_pylist()] == [
        ("lq", f"its partner cannot be used (2.png: {broken})"),
        ("gt", broken),
    ]


def test_two_files_of_one_key_are_both_rejects(workplace):
    workplace.add("train/1.png", photograph(0, 20, 20))
    workplace.add("train/1.jpg", encode(photograph(1, 20, 20), "JPEG"))
    workplace.add("train/2.png", photograph(2, 20, 20))
    counts, _ = workplace.ingest()
    assert (counts.used, counts.rejected) == (1, 2)
    assert reasons() == {
        "1.png": "same key 1 as train/1.jpg; keep or rename one",
        "1.jpg": "same key 1 as train/1.png; keep or rename one",
    }


def test_equal_folders_give_equal_bytes(workplace, tmp_path_factory, monkeypatch, unusable):
    written = []
    for names in (["b", "a", "c"], ["c", "b", "a"]):
        root = tmp_path_factory.mktemp("same")
        monkeypatch.chdir(root)
        for name in names:
            path = root / "photos/train" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(photograph(ord(name), 20, 20), "PNG"))
        (root / "photos/train/x.jpg").write_bytes(unusable["cmyk.jpg"][0])
        workplace.ingest()
        written.append((MANIFEST.read_bytes(), REJECTS.read_bytes()))
    assert written[0] == written[1]


def test_an_empty_folder_and_one_without_a_usable_image_are_one_line(workplace):
    (workplace.root / "photos").mkdir()
    with pytest.raises(UserError, match=r"^photos: holds nothing of the layout 'folder'; expected [^\n]+$"):
        workplace.ingest()
    workplace.add("train/1.png", b"")
    with pytest.raises(UserError) as error:
        workplace.ingest()
    assert str(error.value) == (
        "photos: no usable image in dataset photos (1 rejected; the first: photos/train/1.png: empty file)"
    )
    with pytest.raises(UserError, match=r"^no datasets to ingest"):
        ingest({}, Path("data/manifest"))
    assert not MANIFEST.exists()


def test_an_unknown_layout_names_the_nearest(workplace):
    with pytest.raises(UserError, match=r"^photos: unknown layout 'foldr'; did you mean 'folder'\?"):
        ingest({"photos": Source(layout="foldr", root="photos")}, Path("data/manifest"))


def test_what_is_no_manifest_is_one_line(workplace):
    with pytest.raises(UserError, match=r"manifest\.json: no manifest; run `memoir ingest` first$"):
        read_manifest(MANIFEST)
    workplace.add("train/1.png", photograph(0, 20, 20))
    workplace.add("train/2.png", b"")
    workplace.ingest()
    data = MANIFEST.read_bytes()
    said = r"^data/manifest[^\n]*: not a manifest, or a damaged one; run `memoir ingest`"
    for path in (REJECTS, MANIFEST.parent):
        with pytest.raises(UserError, match=said):
            read_manifest(path)
    for changed in (b"", data[: len(data) // 2], b"[]", data.replace(b'"rows": 1', b'"rows": -1')):
        assert changed != data
        MANIFEST.write_bytes(changed)
        with pytest.raises(UserError, match=said):
            read_manifest(MANIFEST)
    MANIFEST.write_bytes(data)
    assert len(read_manifest(MANIFEST)) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: pq.write_table(pq.read_table(path).select(["key"]), path),
        lambda path: shutil.copy(REJECTS, path),
    ],
)
def test_a_part_of_the_manifest_that_is_missing_or_damaged_is_one_line(workplace, change):
    workplace.add("train/1.png", photograph(0, 20, 20))
    workplace.add("train/2.png", b"")
    workplace.ingest()
    (part,) = (MANIFEST.parent / "images").iterdir()
    for rename in (False, True):  # with the sum of the damaged file in manifest.json, too
        change(part)
        if rename and part.exists():
            sha256 = hashlib.sha256(part.read_bytes()).hexdigest()
            part = part.rename(part.with_name(f"{sha256[:16]}.parquet"))
            contents = json.loads(MANIFEST.read_text())
            MANIFEST.write_text(json.dumps(contents | {"parts": [{"sha256": sha256, "rows": 1}]}))
        with pytest.raises(
            UserError, match=r"^data/manifest/images/\w+\.parquet: missing, or not a part of the manifest; run"
        ):
            read_manifest(MANIFEST)
        if not part.exists():
            return


def test_a_part_of_another_manifest_is_refused(workplace):
    workplace.add("train/1.png", photograph(0, 20, 20))
    workplace.ingest()
    (part,) = (MANIFEST.parent / "images").iterdir()
    pq.write_table(pa.Table.from_pylist([pq.read_table(part).to_pylist()[0] | {"key": "2"}], SCHEMA), part)
    with pytest.raises(UserError, match=r"missing, or not a part of the manifest"):
        read_manifest(MANIFEST)


def test_an_edit_changes_few_parts_of_the_manifest_and_leaves_no_other_files(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        dict.fromkeys(SCHEMA.names) | {"dataset": "d", "split": "train", "key": str(i), "role": "gt", "path": str(i)}
        for i in range(40_000)
    ]
    for row in rows:
        row["sha256"] = rng.bytes(32).hex()
    before = None
    for edited in (rows, rows[:700] + rows[703:], rows[:25_000] + rows[3:4] + rows[25_000:]):
        table = pa.Table.from_pylist(edited, SCHEMA)
        write_manifest(tmp_path, table, {})
        assert read_manifest(tmp_path / "manifest.json").equals(table)
        files = {path.name for path in (tmp_path / "images").iterdir()}
        assert {
            f"{part['sha256'][:16]}.parquet" for part in json.loads((tmp_path / "manifest.json").read_text())["parts"]
        } == files
        assert len(files) > 3
        assert before is None or 1 <= len(files - before) <= 3
        before = before or files


# memory


def test_room_is_given_to_who_fits_and_comes_back_after_an_error():
    room, entered, leave = Room(10), threading.Semaphore(0), threading.Event()

    def work(pixels: int) -> None:
        with room.taken(pixels):
            entered.release()
            leave.wait(60)

    with ThreadPoolExecutor(3) as pool:
        works = [pool.submit(work, 6), pool.submit(work, 4)]
        assert all(entered.acquire(timeout=30) for _ in works)
        works.append(pool.submit(work, 1))
        assert not entered.acquire(timeout=0.2)  # it waits
        leave.set()
        assert entered.acquire(timeout=30)
    assert [each.result() for each in works] == [None] * 3
    for pixels in (10, 1000):  # who wants more than all has all
        with suppress(ValueError), room.taken(pixels):
            assert room.used == 10
            raise ValueError("damaged")
        assert room.used == 0


def test_images_are_in_memory_as_many_at_a_time_as_there_is_room_for(workplace, monkeypatch):
    for i in range(12):
        workplace.add(f"train/{i}.png", photograph(i, 20, 20))
    lock, at_once, most = threading.Lock(), 0, 0
    read = manifest.source_facts

    def slow(*arguments: Any, **more: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        try:
            return read(*arguments, **more)
        finally:
            with lock:
                at_once -= 1

    monkeypatch.setattr(manifest, "source_facts", slow)
    monkeypatch.setattr(manifest, "available_cpus", lambda: 6)
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "0.0008")  # two of 400 pixels
    assert workplace.ingest()[0].used == 12
    assert most == 2
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "1")
    workplace.ingest()
    assert most > 2


# the command


def write_params(layout: str = "folder") -> None:
    params = {
        "store": "store",
        "datasets": {"photos": {"layout": layout, "root": "photos", "licence": "CC0"}},
        "tasks": [],
        "recipes": {},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))


def test_the_command_prints_the_counts_and_names_the_rejects(workplace, cli):
    write_params()
    workplace.add("train/1.png", photograph(0, 20, 20))
    workplace.add("train/2.png", b"")
    assert cli("ingest") == (
        0,
        "photos: 2 found = 1 used + 1 rejected\n",
        "reject photos/train/2.png: empty file\n",
    )


def test_the_commands_errors_are_one_line_each(workplace, cli):
    assert cli("ingest") == (1, "", "memoir: params.yaml: No such file or directory\n")
    write_params("foldr")
    code, out, err = cli("ingest")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("memoir: photos: unknown layout 'foldr'; did you mean 'folder'?")
    write_params()
    code, out, err = cli("ingest")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("memoir: photos: no such folder")


def test_a_full_disk_is_one_line(workplace, cli, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_params()
    workplace.add("train/1.png", photograph(0, 20, 20))
    monkeypatch.setattr(os, "fsync", full)
    assert cli("ingest") == (1, "", "memoir: data/manifest/rejects.parquet: No space left on device\n")
    assert list(Path("data/manifest").iterdir()) == []


def test_the_licence_is_the_publications_or_what_params_yaml_says_and_an_unknown_one_is_told(workplace, cli):
    for name in ("Set5/a.png", "BSD100/a.png"):
        workplace.add(name, photograph(0, 20, 20))
    said = {"allow_counts": True, "root": "photos"}
    params = {
        "bsd": {"layout": "bsd100", **said},
        "ours": {"layout": "bsd100", **said, "licence": "by permission"},
        "five": {"layout": "set5", **said},
    }
    Path("params.yaml").write_text(yaml.safe_dump({"store": "s", "datasets": params, "tasks": [], "recipes": {}}))
    code, _, err = cli("ingest")
    assert code == 0
    found = licences(read_manifest(MANIFEST))
    assert found == {"bsd": LAYOUTS["bsd100"].licence, "ours": "by permission", "five": None}
    assert found["bsd"] is not None
    assert [line for line in err.splitlines() if "licence" in line] == [
        "five: its licence is not known; say `licence:` beside it in params.yaml"
    ]


@pytest.mark.parametrize("metadata", [b"{", b"[]", b'{"a": 1}', b'{"a": {"licence": "x\\ny"}}'])
def test_licences_of_a_damaged_manifest_are_one_line(workplace, metadata):
    workplace.add("train/a.png", photograph(0, 20, 20))
    workplace.ingest()
    table = read_manifest(MANIFEST)
    assert licences(table.replace_schema_metadata({})) == {}
    with pytest.raises(UserError, match=r"list of datasets is damaged; run `memoir ingest` again"):
        licences(table.replace_schema_metadata({"memoir": metadata}))
