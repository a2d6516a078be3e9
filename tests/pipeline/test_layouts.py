import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tree
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.layouts import LAYOUTS, Layout, Row, layout, safe_key
from pipeline.layouts.files import LONGEST_KEY, files_under, natural


def rows(name: str, root: Path) -> list[Row]:
    """Of a layout's first variant."""
    return list(layout(name, "set", root, next(iter(LAYOUTS[name].variants), None)).rows())


def used(found: list[Row]) -> list[tuple[str, str, str, str]]:
    return [(row.split, row.key, row.role, row.path.name) for row in found if row.reject_reason is None]


def rejected(found: list[Row], root: Path) -> dict[str, str]:
    return {row.path.relative_to(root).as_posix(): row.reject_reason for row in found if row.reject_reason is not None}


# names and keys


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_key_holds_only_what_a_tar_member_of_webdataset_may_hold(name):
    key = safe_key(name)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", key)
    assert len(key) <= LONGEST_KEY
    assert safe_key(name) == key


@given(st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", fullmatch=True))
def test_a_plain_name_is_its_own_key(name):
    assert safe_key(name) == name


@given(st.sets(st.text("aB1_-. é/", min_size=1, max_size=6), max_size=50))
def test_names_that_differ_have_keys_that_differ(names):
    assert len({safe_key(name) for name in names}) == len(names)


def test_long_names_have_short_keys_that_differ_where_the_names_do():
    keys = {safe_key("x" * 100 + end) for end in "12"}
    assert [len(key) for key in keys] == [LONGEST_KEY, LONGEST_KEY]


@given(st.permutations(["frame2", "frame10", "frame1", "frame01", "b3", "10", "9"]))
def test_natural_order_counts_instead_of_spelling(names):
    assert sorted(names, key=natural) == ["9", "10", "b3", "frame01", "frame1", "frame2", "frame10"]


# the walk


def test_a_loop_of_links_ends_and_a_link_to_another_folder_is_followed(tmp_path):
    tree(tmp_path / "elsewhere", "linked.png")
    root = tree(tmp_path / "root", "a/1.png")
    (root / "a" / "up").symlink_to(root, target_is_directory=True)
    (root / "b").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    assert [path.relative_to(root).as_posix() for path in files_under(root)] == ["a/1.png", "b/linked.png", "self"]


def test_hidden_files_and_folders_are_passed_by(tmp_path):
    root = tree(tmp_path, "train/1.png", "train/.1.png.tmp", "train/.DS_Store", ".cache/2.png")
    tree(root, "train/Thumbs.db", "train/desktop.ini", "train/._1.png", "__MACOSX/train/1.png", "train/@eaDir/1.png")
    assert used(rows("folder", root)) == [("train", "1", "gt", "1.png")]
    assert len(rows("folder", root)) == 1


def test_a_broken_link_and_a_pipe_are_rejects(tmp_path):
    root = tree(tmp_path, "train/1.png")
    (root / "train" / "2.png").symlink_to(root / "gone.png")
    os.mkfifo(root / "train" / "3.png")
    reason = "a broken link, or not a regular file"
    assert rejected(rows("folder", root), root) == {"train/2.png": reason, "train/3.png": reason}


def test_a_name_that_is_not_utf8_is_a_reject_and_the_others_go_on(tmp_path):
    root = tree(tmp_path, "train/1.png")
    try:
        (root / os.fsdecode(b"train/\xff.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert used(rows("folder", root)) == [("train", "1", "gt", "1.png")]
    assert rejected(rows("folder", root), root) == {"train/\udcff.png": "its name is not UTF-8; rename it"}


def test_names_that_differ_in_their_unicode_form_only_are_a_pair(tmp_path):
    one, other = (unicodedata.normalize(form, "é1.png") for form in ("NFC", "NFD"))
    root = tree(tmp_path, f"train/lq/{one}", f"train/gt/{other}")
    assert sorted(row[2] for row in used(rows("pairs", root))) == ["gt", "lq"]
    assert rejected(rows("pairs", root), root) == {}


def test_two_unicode_forms_of_a_name_in_one_folder_are_told_apart(tmp_path):
    one, other = (unicodedata.normalize(form, "é1.png") for form in ("NFC", "NFD"))
    root = tree(tmp_path, f"train/{one}", f"train/{other}")
    said = rejected(rows("folder", root), root)
    assert "as 'train/e\\u0301" in said[f"train/{one}"]
    assert "as 'train/\\xe9" in said[f"train/{other}"]


def test_a_folder_that_cannot_be_listed_is_an_error_of_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"train: cannot be listed \(Permission denied\); mend its permissions$"):
        list(files_under(tree(tmp_path, "train/1.png") / "train"))


# every layout


def test_layouts_are_found_by_their_name():
    assert all(each.name == name for name, each in LAYOUTS.items())
    assert len(LAYOUTS) == 31


def test_an_unknown_layout_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"^set: unknown layout 'rain13'; did you mean 'rain13k'\?"):
        layout("rain13", "set", tmp_path)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_missing_and_an_empty_folder_are_errors_that_name_it_and_the_tree(name, tmp_path):
    with pytest.raises(UserError, match=r"gone: no such folder; unpack the data set 'set' there: .*[{<]"):
        layout(name, "set", tmp_path / "gone", next(iter(LAYOUTS[name].variants), None))
    with pytest.raises(UserError, match=rf"{tmp_path.name}: holds nothing of the layout '{name}'; expected .*[{{<]"):
        rows(name, tmp_path)


class Blurred(Layout):
    name, tree, variants = "blurred", "*.png", ("blur", "blur_gamma")

    def scan(self) -> Iterator[Row]:
        yield from self.images("test", "gt", self.root)


def test_a_variant_must_be_one_that_the_layout_knows_and_is_in_every_row(tmp_path):
    tree(tmp_path, "1.png")
    assert [row.variant for row in Blurred("set", tmp_path, "blur_gamma").rows()] == ["blur_gamma"]
    with pytest.raises(UserError, match=r"no variant 'gamma'; did you mean 'blur_gamma'\? known: blur, blur_gamma"):
        Blurred("set", tmp_path, "gamma")
    with pytest.raises(UserError, match="needs a variant; known: blur, blur_gamma"):
        Blurred("set", tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path.name}: layout 'srd' has no variants; leave out 'plus'"):
        layout("srd", "set", tmp_path, "plus")


def test_a_data_set_name_that_is_no_key_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"the data set name 'my photos' may hold"):
        layout("folder", "my photos", tmp_path)


def test_two_files_with_one_key_are_rejects_that_name_each_other(tmp_path):
    root = tree(tmp_path, "train/a.png", "train/a.jpg", "train/b.png", "val/a.png", "train/x/y.png", "train/x-y.png")
    found = rows("folder", root)
    assert used(found) == [("train", "b", "gt", "b.png"), ("val", "a", "gt", "a.png")]
    assert rejected(found, root) == {
        "train/a.jpg": "same key a as train/a.png; keep or rename one",
        "train/a.png": "same key a as train/a.jpg; keep or rename one",
        "train/x/y.png": "same key x-y as train/x-y.png; keep or rename one",
        "train/x-y.png": "same key x-y as train/x/y.png; keep or rename one",
    }


def test_a_file_that_is_no_image_is_a_reject_that_shares_no_group_with_an_image(tmp_path):
    root = tree(tmp_path, "data/images/train/8068.jpg", "data/images/train/8068.seg", "data/images/train/index.db")
    found = rows("bsds500", root)
    assert used(found) == [("train", "8068", "gt", "8068.jpg")]
    assert set(rejected(found, root).values()) == {"not an image by its suffix"}
    assert len({row.group for row in found}) == 3


# folder


def test_folder_takes_split_folders_and_joins_subfolders_to_the_key(tmp_path):
    files = (
        "test/a.PNG",
        "train/b.jpeg",
        "train/cats/1.webp",
        "train/scene.0001.png",
        "train/scene.0002.png",
        "val/c.tif",
    )
    found = rows("folder", tree(tmp_path, *files))
    assert [row.path for row in found] == [tmp_path / file for file in files]
    assert [row.key for row in found] == [
        "a",
        "b",
        "cats-1",
        safe_key("scene.0001"),
        safe_key("scene.0002"),
        "c",
    ]
    assert all((row.role, row.group, row.scene, row.frame) == ("gt", row.key, None, None) for row in found)


def test_folder_without_split_folders_is_training_data_with_a_warning(tmp_path, caplog):
    root = tree(tmp_path, "a.png", "cats/b.png")
    with caplog.at_level(logging.WARNING):
        found = rows("folder", root)
    assert used(found) == [("train", "a", "gt", "a.png"), ("train", "cats-b", "gt", "b.png")]
    assert caplog.messages == [f"{root}: no folder train, val or test in it; all its images are training data"]


def test_folder_rejects_what_lies_beside_its_split_folders_but_not_its_readme(tmp_path):
    root = tree(tmp_path, "README.md", "LICENSE", "train.dvc", "train/1.png", "valid/2.png", "3.png", "train/notes.txt")
    reason = "not in train, val or test; move it into one of them"
    assert rejected(rows("folder", root), root) == {
        "3.png": reason,
        "valid/2.png": reason,
        "train/notes.txt": "not an image by its suffix",
    }


def test_folder_does_not_take_a_capital_test_folder_for_training_data(tmp_path):
    with pytest.raises(UserError, match=r"Test: a split folder is written 'test'; rename it$"):
        rows("folder", tree(tmp_path, "train/1.png", "Test/2.png"))


# BSDS500


@pytest.mark.parametrize("inner", ["", "BSDS500/"])
def test_bsds500_takes_the_images_of_its_three_splits_only(inner, tmp_path):
    images = [f"{inner}data/images/{split}/{n}.jpg" for split, n in (("train", 1), ("val", 2), ("test", 3))]
    found = rows("bsds500", tree(tmp_path, *images, f"{inner}data/groundTruth/train/1.mat"))
    assert used(found) == [("train", "1", "gt", "1.jpg"), ("val", "2", "gt", "2.jpg"), ("test", "3", "gt", "3.jpg")]
    assert len(found) == 3
    assert [count.number for count in LAYOUTS["bsds500"].counts] == [200, 100, 200]


# Rain13K


def pairs(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{side}/{name}" for name in names for side in ("input", "target")]


def test_rain13k_pairs_by_name_and_keeps_its_test_sets_apart(tmp_path):
    files = pairs("train/Rain13K", "1.jpg", "2.jpg") + pairs("test/Rain100L", "1.png") + pairs("test/Test100", "1.png")
    found = rows("rain13k", tree(tmp_path, *files))
    assert [(row.split, row.scene, row.key, row.role) for row in found] == [
        ("train", "Rain13K", "Rain13K-1", "lq"),
        ("train", "Rain13K", "Rain13K-1", "gt"),
        ("train", "Rain13K", "Rain13K-2", "lq"),
        ("train", "Rain13K", "Rain13K-2", "gt"),
        ("test", "Test100", "Test100-1", "lq"),
        ("test", "Test100", "Test100-1", "gt"),
        ("test", "Rain100L", "Rain100L-1", "lq"),
        ("test", "Rain100L", "Rain100L-1", "gt"),
    ]
    assert all(row.group == row.key and row.frame is None for row in found)
    assert sum(count.number for count in LAYOUTS["rain13k"].counts) == 13711 + 4298


def test_a_missing_file_shifts_no_other_pair(tmp_path):
    root = tree(tmp_path, *pairs("train/Rain13K", *(f"{n}.jpg" for n in range(6))))
    (root / "train/Rain13K/target/1.jpg").unlink()
    (root / "train/Rain13K/input/4.jpg").unlink()
    found = rows("rain13k", root)
    kept = [row for row in found if row.reject_reason is None]
    assert [row.path.stem for row in kept if row.role == "lq"] == ["0", "2", "3", "5"]
    assert [row.path.stem for row in kept if row.role == "gt"] == ["0", "2", "3", "5"]
    assert rejected(found, root) == {
        "train/Rain13K/input/1.jpg": "no target: train/Rain13K/target/1.jpg is missing",
        "train/Rain13K/target/4.jpg": "no input: train/Rain13K/input/4.jpg is missing",
    }


def test_a_pair_may_differ_in_suffix_but_not_have_two_inputs(tmp_path):
    files = ["input/1.jpg", "target/1.png", "input/2.jpg", "input/2.png", "target/2.png", "target/sub/1.png"]
    root = tree(tmp_path, *(f"train/Rain13K/{file}" for file in files))
    found = rows("rain13k", root)
    assert used(found) == [("train", "Rain13K-1", "lq", "1.jpg"), ("train", "Rain13K-1", "gt", "1.png")]
    assert rejected(found, root) == {
        "train/Rain13K/input/2.jpg": "same key Rain13K-2 as train/Rain13K/input/2.png; keep or rename one",
        "train/Rain13K/input/2.png": "same key Rain13K-2 as train/Rain13K/input/2.jpg; keep or rename one",
        "train/Rain13K/target/2.png": "no input: 2 files have the key Rain13K-2",
        "train/Rain13K/target/sub/1.png": "in a subfolder, where the layout has none",
    }


# ISTD


def test_istd_makes_triples_of_shadow_mask_and_clean(tmp_path):
    files = [f"{split}/{split}_{letter}/91-1.png" for split in ("train", "test") for letter in "ABC"]
    root = tree(tmp_path, *files, "train/train_A/2-1.png", "train/train_C/2-1.png")
    found = rows("istd", root)
    assert used(found) == [
        (split, "91-1", role, "91-1.png") for split in ("train", "test") for role in ("lq", "mask", "gt")
    ]
    assert rejected(found, root) == {
        "train/train_A/2-1.png": "no train_B: train/train_B/2-1.png is missing",
        "train/train_C/2-1.png": "no train_B: train/train_B/2-1.png is missing",
    }
    assert [count.number for count in LAYOUTS["istd"].counts] == [1330, 540]


# scenes


def test_scenes_number_their_frames_in_natural_order(tmp_path):
    frames = [f"train/s10/frame{n}.png" for n in (10, 2, 1)] + ["train/s9/0.png", "train/s9/1.png", "train/s9/x.txt"]
    found = rows("scenes", tree(tmp_path, *frames))
    kept = [row for row in found if row.reject_reason is None]
    assert [(row.scene, row.group, row.frame, row.key) for row in kept] == [
        ("s9", "s9", 0, "s9-0"),
        ("s9", "s9", 1, "s9-1"),
        ("s10", "s10", 0, "s10-frame1"),
        ("s10", "s10", 1, "s10-frame2"),
        ("s10", "s10", 2, "s10-frame10"),
    ]
    assert all((row.split, row.role) == ("train", "frame") for row in found)
    assert rejected(found, tmp_path) == {"train/s9/x.txt": "not an image by its suffix"}


def test_a_scene_with_one_usable_frame_is_a_reject(tmp_path):
    files = "test/alone/1.png", "test/twins/1.png", "test/twins/2.png", "test/twins/2.jpg", "test/loose.png"
    found = rows("scenes", tree(tmp_path, *files))
    one = "the only usable frame of its scene; a pair needs two"
    assert used(found) == []
    assert rejected(found, tmp_path) == {
        "test/alone/1.png": one,
        "test/twins/1.png": one,
        "test/twins/2.jpg": "same key twins-2 as test/twins/2.png; keep or rename one",
        "test/twins/2.png": "same key twins-2 as test/twins/2.jpg; keep or rename one",
        "test/loose.png": "not directly in the folder of a scene",
    }


def test_scene_folders_with_spaces_become_safe_groups_that_stay_apart(tmp_path):
    found = rows("scenes", tree(tmp_path, *(f"val/{s}/{n}.png" for s in ("old town", "old.town") for n in (1, 2))))
    groups = {row.group for row in found}
    assert len(groups) == 2
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", group) for group in groups)
    assert len({row.key for row in found}) == 4
