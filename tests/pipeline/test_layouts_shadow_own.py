"""Shadow sets, time-lapse scenes, and the layouts for data of one's own."""

from pathlib import Path

import pytest
from conftest import tree

from pipeline.errors import UserError
from pipeline.layouts.base import Layout, Row
from pipeline.layouts.files import safe_key
from pipeline.layouts.folder import Folder
from pipeline.layouts.istd import ISTD
from pipeline.layouts.pairs import Pairs
from pipeline.layouts.scenes import Scenes
from pipeline.layouts.srd import SRD
from pipeline.layouts.timelap import TimeLap

ODD_NAMES = ("scene.0001", "scene.0002", "old town", "Straße-猫", "-rf", "a'b", "%s", "x" * 120)


def rows(kind: type[Layout], root: Path, variant: str | None = None) -> list[Row]:
    return list(kind("set", root, variant).rows())


def used(found: list[Row], root: Path) -> list[tuple[str, str, str, str]]:
    """(split, key, role, file), in order."""
    good = [row for row in found if row.reject_reason is None]
    return [(row.split, row.key, row.role, row.path.relative_to(root).as_posix()) for row in good]


def rejected(found: list[Row], root: Path) -> dict[str, str]:
    return {row.path.relative_to(root).as_posix(): row.reject_reason for row in found if row.reject_reason is not None}


# ISTD and ISTD+


def triple(split: str, name: str, clean: str = "C") -> list[str]:
    return [f"{split}/{split}_{letter}/{name}.png" for letter in ("A", "B", clean)]


@pytest.mark.parametrize(("variant", "clean"), [("istd", "C"), ("istd+", "C_fixed_official")])
@pytest.mark.parametrize("inner", ["", "ISTD_Dataset/"])
def test_istd_takes_the_targets_of_its_variant_only(variant, clean, inner, tmp_path):
    files = [f"{inner}{file}" for split in ("train", "test") for file in triple(split, "91-1", clean)]
    both = [
        f"{inner}{split}/{split}_{folder}/91-1.png"
        for split in ("train", "test")
        for folder in ("C", "C_fixed_official")
    ]
    found = rows(ISTD, tree(tmp_path, *files, *both), variant)
    roles = [(split, role) for split in ("train", "test") for role in ("lq", "mask", "gt")]
    assert used(found, tmp_path) == [(s, "91-1", role, file) for (s, role), file in zip(roles, files, strict=True)]
    assert {row.variant for row in found} == {variant}
    assert rejected(found, tmp_path) == {}


def test_istd_needs_a_variant_since_the_two_are_not_comparable(tmp_path):
    with pytest.raises(UserError, match=r"layout 'istd' needs a variant; known: istd, istd\+"):
        ISTD("set", tmp_path)


def test_istd_plus_without_its_targets_names_the_first_that_it_lacks(tmp_path):
    found = rows(ISTD, tree(tmp_path, *triple("train", "1-1")), "istd+")
    wanted = "no train_C_fixed_official: train/train_C_fixed_official/1-1.png is missing"
    assert rejected(found, tmp_path) == dict.fromkeys(triple("train", "1-1")[:2], wanted)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_istd_without_one_file_rejects_its_triple_and_no_other(lost, tmp_path):
    files = [triple("train", f"{n}-1") for n in (1, 2, 10)]
    root = tree(tmp_path, *(file for each in files for file in each))
    (root / files[1][lost]).unlink()
    found = rows(ISTD, root, "istd")
    assert [key for _, key, _, _ in used(found, root)] == ["1-1"] * 3 + ["10-1"] * 3
    kept = [file for i, file in enumerate(files[1]) if i != lost]
    reason = f"no train_{'ABC'[lost]}: {files[1][lost]} is missing"
    assert rejected(found, root) == dict.fromkeys(kept, reason)


def test_istd_counts(tmp_path):
    for variant in ISTD.variants:
        published = ISTD("set", tmp_path, variant).published()
        assert [(each.split, each.role, each.number) for each in published] == [
            ("train", "lq", 1330),
            ("test", "lq", 540),
        ]


# SRD

SRD_FILES = (
    "Train/shadow/IMG_5410.jpg",
    "Train/shadow_free/IMG_5410_no_shadow.jpg",
    "Train/shadow/_MG_2794.jpg",
    "Train/shadow_free/_MG_2794_no_shadow.jpg",
    "Test/shadow/IMG_6456.jpg",
    "Test/shadow_free/IMG_6456_free.jpg",
)


@pytest.mark.parametrize("inner", ["", "SRD/"])
def test_srd_pairs_by_the_suffix_of_each_split(inner, tmp_path):
    files = [f"{inner}{file}" for file in SRD_FILES]
    found = rows(SRD, tree(tmp_path, *files, f"{inner}readme.txt"))
    assert used(found, tmp_path) == [
        ("train", "IMG_5410", "lq", files[0]),
        ("train", "IMG_5410", "gt", files[1]),
        ("train", "_MG_2794", "lq", files[2]),
        ("train", "_MG_2794", "gt", files[3]),
        ("test", "IMG_6456", "lq", files[4]),
        ("test", "IMG_6456", "gt", files[5]),
    ]
    assert len(found) == 6
    assert [count.number for count in SRD.counts] == [2680, 408]


def test_srd_does_not_take_the_suffix_of_the_other_split(tmp_path):
    root = tree(tmp_path, *SRD_FILES)
    (root / SRD_FILES[1]).rename(root / "Train/shadow_free/IMG_5410_free.jpg")
    (root / SRD_FILES[5]).rename(root / "Test/shadow_free/IMG_6456_no_shadow.jpg")
    found = rows(SRD, root)
    assert [key for _, key, _, _ in used(found, root)] == ["_MG_2794"] * 2
    assert rejected(found, root) == {
        "Train/shadow_free/IMG_5410_free.jpg": "its name is not of the form {name}_no_shadow",
        SRD_FILES[0]: f"no shadow_free: {SRD_FILES[1]} is missing",
        "Test/shadow_free/IMG_6456_no_shadow.jpg": "its name is not of the form {name}_free",
        SRD_FILES[4]: f"no shadow_free: {SRD_FILES[5]} is missing",
    }


def test_srd_takes_the_masks_of_a_split_where_there_are_any(tmp_path):
    root = tree(tmp_path, *SRD_FILES, "trainmask/IMG_5410.jpg", "trainmask/DSCF0211.jpg")
    found = rows(SRD, root)
    assert [(key, role) for _, key, role, _ in used(found, root)] == [
        ("IMG_5410", "lq"),
        ("IMG_5410", "gt"),
        ("IMG_5410", "mask"),
        ("IMG_6456", "lq"),
        ("IMG_6456", "gt"),
    ]
    assert rejected(found, root) == {
        "trainmask/DSCF0211.jpg": "no shadow: Train/shadow/DSCF0211.jpg is missing",
        SRD_FILES[2]: "no trainmask: trainmask/_MG_2794.jpg is missing",
        SRD_FILES[3]: "no trainmask: trainmask/_MG_2794.jpg is missing",
    }
    assert "masks of DHAN" in SRD.counts[1].causes[408 - 15]


# one's own pairs


def both(split: str, *names: str, roles: tuple[str, ...] = ("lq", "gt")) -> list[str]:
    return [f"{split}/{role}/{name}" for name in names for role in roles]


def test_pairs_have_equal_names_below_lq_and_gt(tmp_path):
    files = both("train", "1.png", "cats/1.png", "cats/old/2.png") + both("val", "1.png")
    found = rows(Pairs, tree(tmp_path, *files, "README.md", "train/list.txt"))
    keys = ["1", "cats-1", "cats-old-2"]
    assert [(split, key, role) for split, key, role, _ in used(found, tmp_path)] == [
        *(("train", key, role) for key in keys for role in ("lq", "gt")),
        ("val", "1", "lq"),
        ("val", "1", "gt"),
    ]
    assert all(row.group == row.key and row.path.as_posix().endswith(row.path.name) for row in found)
    assert {file for *_, file in used(found, tmp_path)} == set(files)
    assert rejected(found, tmp_path) == {}


def test_pairs_may_differ_in_suffix_and_may_have_masks(tmp_path):
    files = ["train/lq/a/1.jpg", "train/gt/a/1.png", "train/mask/a/1.bmp", *both("test", "2.png")]
    found = rows(Pairs, tree(tmp_path, *files, "train/lq/a/3.jpg", "train/gt/a/3.png"))
    assert used(found, tmp_path) == [
        ("train", "a-1", "lq", files[0]),
        ("train", "a-1", "gt", files[1]),
        ("train", "a-1", "mask", files[2]),
        ("test", "2", "lq", files[3]),
        ("test", "2", "gt", files[4]),
    ]
    assert rejected(found, tmp_path) == {
        "train/lq/a/3.jpg": "no mask: train/mask/a/3.jpg is missing",
        "train/gt/a/3.png": "no mask: train/mask/a/3.png is missing",
    }


def test_a_removed_an_added_and_a_renamed_file_move_no_other_pair(tmp_path):
    root = tree(tmp_path, *both("train", *(f"a/{n}.png" for n in range(6))))
    (root / "train/gt/a/1.png").unlink()
    (root / "train/lq/a/3.png").rename(root / "train/lq/a/03.png")
    tree(root, "train/gt/a/2b.png", "train/gt/b/4.png")
    found = rows(Pairs, root)
    good = used(found, root)
    assert [(key, file) for _, key, role, file in good if role == "lq"] == [
        (f"a-{n}", f"train/lq/a/{n}.png") for n in (0, 2, 4, 5)
    ]
    assert [(key, file) for _, key, role, file in good if role == "gt"] == [
        (f"a-{n}", f"train/gt/a/{n}.png") for n in (0, 2, 4, 5)
    ]
    assert rejected(found, root) == {
        "train/lq/a/1.png": "no gt: train/gt/a/1.png is missing",
        "train/lq/a/03.png": "no gt: train/gt/a/03.png is missing",
        "train/gt/a/3.png": "no lq: train/lq/a/3.png is missing",
        "train/gt/a/2b.png": "no lq: train/lq/a/2b.png is missing",
        "train/gt/b/4.png": "no lq: train/lq/b/4.png is missing",
    }


def test_a_subfolder_and_a_name_that_make_one_key_are_no_pair_of_each_other(tmp_path):
    root = tree(tmp_path, "train/lq/a-b/c.png", "train/gt/a/b-c.png", *both("train", "a/d.png"))
    found = rows(Pairs, root)
    assert [key for _, key, _, _ in used(found, root)] == ["a-d"] * 2
    assert rejected(found, root) == {
        "train/lq/a-b/c.png": "no gt: train/gt/a-b/c.png is missing",
        "train/gt/a/b-c.png": "no lq: train/lq/a/b-c.png is missing",
    }


def test_two_pairs_of_one_key_are_rejects_that_name_each_other(tmp_path):
    root = tree(tmp_path, *both("train", "a-b/c.png", "a/b-c.png"))
    found = rows(Pairs, root)
    assert used(found, root) == []
    assert rejected(found, root)["train/lq/a-b/c.png"] == "same key a-b-c as train/lq/a/b-c.png; keep or rename one"


def test_what_lies_beside_the_folders_of_pairs_is_a_reject(tmp_path):
    root = tree(tmp_path, *both("train", "1.png"), "train/depth/1.png", "train/x.png", "valid/lq/1.png", "2.png")
    found = rows(Pairs, root)
    assert [key for _, key, _, _ in used(found, root)] == ["1", "1"]
    assert rejected(found, root) == {
        "2.png": "not in train, val or test; move it into one of them",
        "valid/lq/1.png": "not in train, val or test; move it into one of them",
        "train/depth/1.png": "not in lq, gt or mask; move it into one of them",
        "train/x.png": "not in lq, gt or mask; move it into one of them",
    }


@pytest.mark.parametrize(
    ("files", "folder", "role"),
    [
        (("train/input/1.png", "train/target/1.png"), "train/input", "lq"),
        (("train/lq/1.png", "train/target/1.png"), "train/target", "gt"),
        (("train/LQ/1.png", "train/gt/1.png"), "train/LQ", "lq"),
        ((*both("train", "1.png"), "train/masks/1.png"), "train/masks", "mask"),
        ((*both("train", "1.png"), "val/lq/1.png", "val/HR/1.png"), "val/HR", "gt"),
    ],
)
def test_pairs_do_not_guess_at_other_names_of_their_folders(files, folder, role, tmp_path):
    with pytest.raises(UserError) as error:
        rows(Pairs, tree(tmp_path, *files))
    reason = f"a folder of this name is not guessed at; if it is the {role}, rename it {role!r}"
    assert str(error.value) == f"{tmp_path / folder}: {reason}"


def test_pairs_without_a_split_folder_say_where_they_belong(tmp_path):
    found = rows(Pairs, tree(tmp_path, "lq/1.png", "gt/1.png"))
    assert set(rejected(found, tmp_path).values()) == {"not in train, val or test; move it into one of them"}
    assert len(found) == 2


# TimeLap


def test_timelap_is_scenes_with_the_published_count(tmp_path):
    root = tree(tmp_path, *(f"train/{scene}/{n}.png" for scene in ("scene10", "scene9") for n in (10, 9)))
    found = rows(TimeLap, root)
    assert [(row.group, row.frame, row.path.name) for row in found] == [
        ("scene9", 0, "9.png"),
        ("scene9", 1, "10.png"),
        ("scene10", 0, "9.png"),
        ("scene10", 1, "10.png"),
    ]
    assert [(row.split, row.role) for row in found] == [("train", "frame")] * 4
    assert [(each.split, each.role, each.number) for each in TimeLap.counts] == [("train", "frame", 5580)]


# names, and what lies beside: folder, scenes, pairs


@pytest.mark.parametrize(
    ("kind", "folders", "roles"),
    [
        (Folder, ["train"], ["gt"]),
        (Pairs, ["train/lq", "train/gt"], ["lq", "gt"]),
        (ISTD, ["train/train_A", "train/train_B", "train/train_C"], ["lq", "mask", "gt"]),
    ],
)
def test_odd_names_are_used_and_stay_apart(kind, folders, roles, tmp_path):
    root = tree(tmp_path, *(f"{folder}/{name}.png" for folder in folders for name in ODD_NAMES))
    found = rows(kind, root, "istd" if kind.variants else None)
    assert rejected(found, root) == {}
    assert {(row.path.stem, row.key) for row in found} == {(name, safe_key(name)) for name in ODD_NAMES}
    assert sorted((row.path.stem, row.role) for row in found) == sorted((n, r) for n in ODD_NAMES for r in roles)
    assert len({row.key for row in found}) == len(ODD_NAMES)


def test_odd_names_of_scenes_frames_and_subfolders_are_used_and_stay_apart(tmp_path):
    root = tree(tmp_path, *(f"train/{scene}/{name}.png" for scene in ODD_NAMES for name in ODD_NAMES))
    for kind, groups in ((Scenes, len(ODD_NAMES)), (Folder, len(ODD_NAMES) ** 2)):
        found = rows(kind, root)
        assert rejected(found, root) == {}
        assert len({row.key for row in found}) == len(found) == len(ODD_NAMES) ** 2
        assert len({row.group for row in found}) == groups


@pytest.mark.parametrize("kind", [Folder, Scenes, Pairs])
def test_a_loop_of_links_ends(kind, tmp_path):
    root = tree(tmp_path, "train/lq/1.png", "train/lq/2.png", "train/gt/1.png", "train/gt/2.png")
    before = used(rows(kind, root), root)
    assert len(before) == 4
    (root / "train/lq/up").symlink_to(root / "train", target_is_directory=True)
    (root / "val").symlink_to(root / "val")
    assert used(rows(kind, root), root) == before
    (root / "train/lq/up").unlink()
    (root / "train/lq/up").symlink_to(root / "train/lq", target_is_directory=True)
    assert used(rows(kind, root), root) == before


@pytest.mark.parametrize("kind", [Folder, Scenes, Pairs])
def test_a_split_folder_in_capitals_is_an_error_and_not_passed_by(kind, tmp_path):
    root = tree(tmp_path, "train/lq/1.png", "train/lq/2.png", "train/gt/1.png", "train/gt/2.png", "Test/lq/1.png")
    with pytest.raises(UserError, match=r"Test: a split folder is written 'test'; rename it$"):
        rows(kind, root)


def test_what_lies_beside_the_splits_of_scenes_is_a_reject(tmp_path):
    root = tree(tmp_path, "train/s/1.png", "train/s/2.png", "valid/s/1.png", "0.png", "README.md")
    found = rows(Scenes, root)
    assert [(row.scene, row.frame) for row in found if row.reject_reason is None] == [("s", 0), ("s", 1)]
    assert rejected(found, root) == dict.fromkeys(
        ["0.png", "valid/s/1.png"], "not in train, val or test; move it into one of them"
    )


def test_frames_of_two_scenes_that_make_one_key_leave_no_gap_and_no_lone_frame(tmp_path):
    root = tree(tmp_path, "train/a/b-1.png", "train/a/2.png", "train/a/3.png", "train/a-b/1.png", "train/a-b/4.png")
    found = rows(Scenes, root)
    assert [(row.scene, row.frame, row.path.name) for row in found if row.reject_reason is None] == [
        ("a", 0, "2.png"),
        ("a", 1, "3.png"),
    ]
    assert rejected(found, root) == {
        "train/a/b-1.png": "same key a-b-1 as train/a-b/1.png; keep or rename one",
        "train/a-b/1.png": "same key a-b-1 as train/a/b-1.png; keep or rename one",
        "train/a-b/4.png": "the only usable frame of its scene; a pair needs two",
    }


# archives


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.TGZ", "set.7z", "set.rar", "set.7z.001"])
def test_an_archive_in_place_of_the_folder_is_to_be_unpacked(name, tmp_path):
    tree(tmp_path, name)
    with pytest.raises(UserError) as error:
        Folder("set", tmp_path / name)
    assert str(error.value) == f"{tmp_path / name}: an archive; unpack it, and give the folder as root"


def test_a_folder_of_nothing_but_archives_is_to_be_unpacked(tmp_path):
    tree(tmp_path, "train.zip", "README.md", ".part")
    with pytest.raises(UserError) as error:
        SRD("set", tmp_path)
    assert str(error.value) == f"{tmp_path}: holds nothing but archives (train.zip); unpack them: {SRD.tree}"
    tree(tmp_path, "test.tar.gz", "val.7z")
    with pytest.raises(UserError, match=r"archives \(test\.tar\.gz and 2 more\); unpack them: "):
        Folder("set", tmp_path)


def test_an_archive_beside_unpacked_images_is_no_error_of_its_own(tmp_path):
    root = tree(tmp_path, *SRD_FILES, "Train.zip")
    assert len(used(rows(SRD, root), root)) == 6
    for name in ("1.png", "2.png"):
        tree(tmp_path / "other" / "harbour.zip", name)
    assert len(used(rows(Folder, tmp_path / "other"), tmp_path)) == 2
