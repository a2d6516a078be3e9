"""What DVC keeps by content: lists of files from outside, and folders that are read through them."""

import hashlib
import json

import pytest

from pipeline.dvc_objects import DvcFolder, dataset_storage, object_name, read_files
from pipeline.errors import UserError
from pipeline.storage import Folder

MD5 = "0cc175b9c0f1b6a831c399e269772661"


def listed(*names: str, **changes: object) -> bytes:
    return json.dumps([{"md5": MD5, "relpath": name} | changes for name in names]).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (listed("../a"), "'../a', which is no path inside its folder"),
        (listed("a/../../b"), "no path inside"),
        (listed("/etc/passwd"), "no path inside"),
        (listed("a//b"), "no path inside"),
        (listed("./a"), "no path inside"),
        (listed(""), "no path inside"),
        (listed("a\0b"), "no path inside"),
        (listed("a", "a"), "given twice"),
        (listed("a", "a/b"), "'a' as a file, and as the folder of 'a/b'"),
        (listed("a", md5="../../../etc/passwd"), "0.md5"),
        (listed("a", md5=MD5.upper()), "0.md5"),
        (listed("a", md5=f"{MD5}.dir"), "0.md5"),
        (listed("a", size=3), "0.size"),
        (b'{"a": 1}', "not a list of files"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_hostile_list_of_files_is_one_line(data, said):
    with pytest.raises(UserError) as told:
        read_files(data, "there")
    assert str(told.value).startswith("there: ")
    assert said in str(told.value)


def kept(place, data: bytes, suffix: str = "") -> str:
    """Put an object into a cache or a remote; returns its md5."""
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    path = place / object_name(md5 + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return md5


@pytest.fixture
def places(tmp_path):
    """A cache that has the list of a folder and one of its files, and a remote that has the other; and the list's md5."""
    files = {"x/a": b"aaa", "b": b"bb"}
    cache, remote = (Folder(str(tmp_path / name), tmp_path / name) for name in ("cache", "remote"))
    md5s = {"x/a": kept(cache.root, files["x/a"]), "b": kept(remote.root, files["b"])}
    listing = json.dumps([{"md5": md5, "relpath": name} for name, md5 in md5s.items()]).encode()
    return [cache, remote], kept(cache.root, listing, ".dir")


def test_a_folder_is_read_from_wherever_its_objects_are(places, tmp_path):
    folder = DvcFolder(*places)
    assert folder.names() == ["b", "x/a"]
    assert folder.names("x") == ["x/a"]
    assert {name: folder.read(name) for name in folder.names()} == {"b": b"bb", "x/a": b"aaa"}
    assert {name: folder.size(name) for name in folder.names()} == {"b": 2, "x/a": 3}
    assert b"".join(folder.chunks("x/a", 1)) == b"aa"
    folder.download("b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"bb"
    with pytest.raises(FileNotFoundError):
        folder.read("c")


def test_the_list_of_a_folder_is_no_file_of_that_name(places):
    (cache, _), md5 = places
    kept(cache.root, b"bb", ".dir")
    with pytest.raises(UserError, match="b: its object is missing"):
        DvcFolder([cache], md5).size("b")


def test_an_object_that_is_missing_or_has_other_contents_is_one_line(places, tmp_path):
    (cache, remote), md5 = places
    alone = DvcFolder([cache], md5)
    for read in (alone.read, alone.size, lambda name: alone.download(name, tmp_path / "copy")):
        with pytest.raises(UserError, match="b: its object is missing"):
            read("b")
    with pytest.raises(UserError, match=r"\.dir: not there; `dvc push` it"):
        _ = DvcFolder([remote], md5).files
    kept_at = remote.root / object_name(hashlib.md5(b"bb", usedforsecurity=False).hexdigest())
    kept_at.write_bytes(b"bc")
    folder = DvcFolder([cache, remote], md5)
    for read in (folder.read, lambda name: folder.download(name, tmp_path / "copy")):
        with pytest.raises(UserError, match="b: its contents are not those of its md5"):
            read("b")
    assert not (tmp_path / "copy").exists()


def test_a_folder_of_dvcs_is_never_written_to(places):
    folder = DvcFolder(*places)
    for write in (lambda: folder.write("b", b""), lambda: folder.write_new("c", b""), lambda: folder.remove("b")):
        with pytest.raises(UserError, match="`dvc add`"):
            write()
    assert folder.read("b") == b"bb"


def test_the_name_of_a_list_is_a_dataset_and_other_names_are_stores(places, tmp_path):
    _, md5 = places
    held = dataset_storage(f"{tmp_path}/cache/{object_name(md5)}.dir")
    assert isinstance(held, DvcFolder)
    assert held.names() == ["b", "x/a"]
    assert held.uri == f"{tmp_path}/cache/{object_name(md5)}.dir"
    for other in (f"{tmp_path}/{object_name(md5)}", "data/tiny", f"{tmp_path}/files/md5/{md5}.dir"):
        assert isinstance(dataset_storage(other), Folder)
