"""The listing of raw data: equal where the data are equal, another where one byte is, and cheap the second time."""

import json
import os
import time
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.raw import listing
from pipeline.raw.listing import MEMORY, Contents, digest_of, list_source, list_sources
from pipeline.raw.manifest import Source
from pipeline.raw.sources import local_folder
from pipeline.storage import storage


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the working directory, whose files were written long ago as far as the listing can tell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(listing, "SETTLED_NS", -1)
    for name in ("train/a.png", "train/b.png", "list.txt"):
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return Path("photos")


def digest(root: Path) -> str:
    contents = Contents()
    found = list_source(str(root), contents).digest
    contents.save()
    return found


def test_the_digest_follows_names_and_contents_and_nothing_else(photos, tmp_path):
    before = digest(photos)
    for path in photos.rglob("*"):
        os.utime(path, (1, 1))
    (photos / ".hidden").write_text("no image")
    assert digest(photos) == before
    assert digest(photos.rename(tmp_path / "elsewhere")) == before
    (tmp_path / "elsewhere").rename(photos)
    for path, other in ((photos / "list.txt", "new.txt"), (photos / "train/b.png", "../b.png")):
        moved = path.rename(path.parent / other)
        assert digest(photos) != before
        moved.rename(path)
    assert digest(photos) == before
    (photos / "train/c.png").write_bytes(b"")
    assert digest(photos) != before


def test_a_file_is_read_once_and_again_when_it_was_written(photos, monkeypatch):
    read = []
    hashed = listing.hashlib.file_digest
    monkeypatch.setattr(
        listing.hashlib, "file_digest", lambda f, name: read.append(Path(f.name).name) or hashed(f, name)
    )
    before = digest(photos)
    assert sorted(read) == ["a.png", "b.png", "list.txt"]
    read.clear()
    assert digest(photos) == before
    assert not read
    path = photos / "train/a.png"
    times = path.stat()
    path.write_bytes(b"train/A.png")  # as long as before, and with the times of before
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(photos) != before
    assert read == ["a.png"]


def test_a_file_that_was_just_written_is_not_remembered(photos, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED_NS", 10**15)
    contents = Contents()
    list_source("photos", contents)
    assert not contents.seen
    path = photos / "train/a.png"
    os.utime(path, (time.time() - 10**7,) * 2)  # its other time is that of this call
    list_source("photos", contents)
    assert not contents.seen


@pytest.mark.parametrize("memory", [b"", b"no table"])
def test_a_lost_memory_costs_no_more_than_time(photos, memory):
    before = digest(photos)
    MEMORY.write_bytes(memory)
    assert digest(photos) == before


def test_what_cannot_be_read_is_listed_as_such(photos):
    before = digest(photos)
    (photos / "gone.png").symlink_to("nowhere")
    os.mkfifo(photos / "pipe.png")  # nobody writes to it: opening it would wait for ever
    found = list_source("photos", Contents())
    assert found.files == 5
    assert found.digest != before


def test_lines_of_a_digest_do_not_run_into_each_other():
    alike = [
        [("a", "b"), ("c",)],
        [("a", "b", "c")],
        [("ab", "c")],
        [("a", "bc")],
        [("a",), ("b", "c")],
        [("a", "b\n\0c")],
    ]
    assert len({digest_of(lines) for lines in alike}) == len(alike)
    assert digest_of([(os.fsdecode(b"\xff"), "")]) != digest_of([(os.fsdecode(b"\xfe"), "")])


# what is not at hand


def sources(root: str) -> dict[str, Source]:
    return {"photos": Source(layout="folder", root=root)}


def remembered(path: Path, root: str) -> Path:
    found, lines = list_sources(sources(root), path, Contents())
    assert not lines
    path.write_text(json.dumps({name: each.model_dump(mode="json") for name, each in found.items()}))
    return path


def test_a_folder_that_is_gone_stays_as_it_was_listed_and_is_told(photos):
    before = remembered(Path("before.json"), "photos")
    photos.rename("away")
    found, (line,) = list_sources(sources("photos"), before, Contents())
    assert json.loads(before.read_text())["photos"] == found["photos"].model_dump(mode="json")
    assert line.startswith("photos: taken as it was listed before, 3 files, for it is not at hand: photos: not there;")
    with pytest.raises(UserError, match=r"^other: not there; unpack the data set there, or `dvc pull` it"):
        list_sources(sources("other"), before, Contents())  # another root was never listed
    with pytest.raises(UserError, match=r"^photos: not there"):
        list_sources(sources("photos"), Path("none.json"), Contents())


def test_a_bucket_is_told_apart_by_its_objects_and_stays_as_it_was_where_it_does_not_answer(photos, s3, monkeypatch):
    bucket = storage(f"{s3}/raw")
    bucket.write("train/a.png", b"aaaa")
    before = remembered(Path("before.json"), f"{s3}/raw")
    listed = list_source(f"{s3}/raw", Contents())
    assert (listed.files, listed.bytes) == (1, 4)
    bucket.write("train/a.png", b"bbbb")
    assert list_source(f"{s3}/raw", Contents()).digest != listed.digest
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    found, (line,) = list_sources(sources(f"{s3}/raw"), before, Contents())
    assert found["photos"] == listed
    assert "no whole answer" in line


@pytest.mark.parametrize("text", ["", "[]", '{"photos": 1}', '{"photos": {"root": "photos", "files": -1}}'])
def test_a_listing_that_is_none_is_one_line(photos, text):
    Path("before.json").write_text(text)
    with pytest.raises(UserError, match=r"^before.json: not what `memoir list` writes; remove it$"):
        list_sources(sources("gone"), Path("before.json"), Contents())


def test_an_object_that_is_replaced_within_a_second_is_copied_anew(photos, s3):
    bucket = storage(f"{s3}/raw")
    for contents in (b"aaaa", b"bbbb", b"cccc"):  # of one length
        bucket.write("train/a.png", contents)
        assert (local_folder(f"{s3}/raw") / "train/a.png").read_bytes() == contents
