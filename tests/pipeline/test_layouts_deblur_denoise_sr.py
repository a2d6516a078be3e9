"""Layouts of deblurring, denoising and super-resolution sets, and of the small test sets."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import tree

from pipeline.errors import UserError
from pipeline.layouts.base import Layout, Row
from pipeline.layouts.div2k import DIV2K, Flickr2K
from pipeline.layouts.dnd import DND
from pipeline.layouts.files import safe_key
from pipeline.layouts.gopro import GoPro
from pipeline.layouts.hide import HIDE
from pipeline.layouts.realblur import FOLDERS, RealBlur
from pipeline.layouts.sidd import SIDD
from pipeline.layouts.testsets import BSD100, LIVE1, S14, T91, Classic5, Set5, Set14, Urban100

ODD_NAMES = ["a.1", "a 1", "-1", "é"]


def rows(kind: type[Layout], root: Path, variant: str | None = None) -> list[Row]:
    return list(kind("set", root, variant).rows())


def used(found: list[Row], root: Path) -> list[tuple[str, str, str, str]]:
    return [
        (row.split, row.key, row.role, row.path.relative_to(root).as_posix())
        for row in found
        if row.reject_reason is None
    ]


def rejected(found: list[Row], root: Path) -> dict[str, str]:
    return {row.path.relative_to(root).as_posix(): row.reject_reason for row in found if row.reject_reason is not None}


def numbers(kind: type[Layout], root: Path, variant: str | None = None) -> list[tuple[str, str, int]]:
    return [(count.split, count.role, count.number) for count in kind("set", root, variant).published()]


# GoPro

SEQUENCES = {"train": "GOPR0372_07_00", "test": "GOPR0384_11_00"}


def gopro(root: Path, *names: str, inner: str = "") -> Path:
    files = [
        f"{inner}{split}/{sequence}/{folder}/{name}.png"
        for split, sequence in SEQUENCES.items()
        for folder in ("blur", "blur_gamma", "sharp")
        for name in names
    ]
    return tree(root, *files)


@pytest.mark.parametrize("inner", ["", "GOPRO_Large/"])
@pytest.mark.parametrize("variant", ["blur", "blur_gamma"])
def test_gopro_pairs_the_frames_of_a_sequence_with_the_blur_of_the_variant(variant, inner, tmp_path):
    root = gopro(tmp_path, "000047", "000048", inner=inner)
    tree(root, f"{inner}readme.txt", f"{inner}train/list.txt", f"{inner}train/.DS_Store")
    found = rows(GoPro, root, variant)
    assert used(found, root) == [
        (split, f"{sequence}-{name}", role, f"{inner}{split}/{sequence}/{folder}/{name}.png")
        for split, sequence in SEQUENCES.items()
        for name in ("000047", "000048")
        for role, folder in (("lq", variant), ("gt", "sharp"))
    ]
    assert len(found) == 8
    assert all(row.group == row.key and row.scene == SEQUENCES[row.split] and row.variant == variant for row in found)
    assert numbers(GoPro, root, variant) == [("train", "lq", 2103), ("test", "lq", 1111)]


def test_gopro_does_not_choose_a_blur_by_itself(tmp_path):
    with pytest.raises(UserError, match="needs a variant; known: blur, blur_gamma"):
        GoPro("set", tmp_path)


def test_gopro_names_what_has_no_partner_or_no_place(tmp_path):
    root = gopro(tmp_path, *(f"{n:06}" for n in range(5)))
    before = used(rows(GoPro, root, "blur"), root)
    sequence = root / "train" / SEQUENCES["train"]
    (sequence / "sharp/000001.png").unlink()
    (sequence / "blur/000003.png").rename(sequence / "blur/3.png")
    (sequence / "blur_gamma/000004.png").unlink()
    tree(root, "test/000001.png", f"train/{sequence.name}/000001.png", f"train/{sequence.name}/blur/index.db")
    found = rows(GoPro, root, "blur")
    inside, loose = f"train/{sequence.name}", "not in the folder blur, blur_gamma or sharp of a sequence"
    assert rejected(found, root) == {
        f"{inside}/blur/000001.png": f"no sharp: {inside}/sharp/000001.png is missing",
        f"{inside}/blur/3.png": f"no sharp: {inside}/sharp/3.png is missing",
        f"{inside}/sharp/000003.png": f"no blur: {inside}/blur/000003.png is missing",
        f"{inside}/blur/index.db": "not an image by its suffix",
        f"{inside}/000001.png": loose,
        "test/000001.png": loose,
    }
    lost = (f"{sequence.name}-000001", f"{sequence.name}-000003")
    assert used(found, root) == [each for each in before if each[1] not in lost]


def test_gopro_sequences_with_odd_names_stay_apart(tmp_path):
    files = [f"train/{name}/{folder}/{name}.png" for name in ODD_NAMES for folder in ("blur", "sharp")]
    found = rows(GoPro, tree(tmp_path, *files), "blur")
    assert rejected(found, tmp_path) == {}
    assert {row.key for row in found} == {safe_key(f"{name}-{name}") for name in ODD_NAMES}


# HIDE


def hide(root: Path, inner: str = "") -> Path:
    blurred = {"train": "2fromGOPR0950", "test/test-close-ups": "10fromGOPR1096.MP4", "test/test-long-shot": "7.1"}
    files = [f"{folder}/{name}.png" for folder, name in blurred.items()] + [
        f"GT/{name}.png" for name in blurred.values()
    ]
    lists = ["train.txt", "test.txt", "test/near.txt", "test/far.txt"]
    return tree(root, *(inner + file for file in files + lists))


@pytest.mark.parametrize("inner", ["", "HIDE_dataset/"])
def test_hide_pairs_by_name_with_the_folder_that_its_splits_share(inner, tmp_path):
    root = hide(tmp_path, inner)
    found = rows(HIDE, root)
    near, far = safe_key("test-close-ups-10fromGOPR1096.MP4"), safe_key("test-long-shot-7.1")
    assert used(found, root) == [
        ("train", "2fromGOPR0950", "lq", f"{inner}train/2fromGOPR0950.png"),
        ("train", "2fromGOPR0950", "gt", f"{inner}GT/2fromGOPR0950.png"),
        ("test", near, "lq", f"{inner}test/test-close-ups/10fromGOPR1096.MP4.png"),
        ("test", near, "gt", f"{inner}GT/10fromGOPR1096.MP4.png"),
        ("test", far, "lq", f"{inner}test/test-long-shot/7.1.png"),
        ("test", far, "gt", f"{inner}GT/7.1.png"),
    ]
    assert len(found) == 6
    assert [row.scene for row in found[::2]] == [None, "test-close-ups", "test-long-shot"]
    assert all(row.group == row.key for row in found)
    assert numbers(HIDE, root) == [("train", "lq", 6397), ("test", "lq", 2025)]


def test_hide_names_what_has_no_partner_or_no_place(tmp_path):
    root = hide(tmp_path)
    before = used(rows(HIDE, root), root)
    (root / "GT/7.1.png").unlink()
    (root / "train/2fromGOPR0950.png").rename(root / "train/2.png")
    tree(root, "GT/extra.png", "GT/index.db", "GT/sub/extra2.png", "test/1.png", "test/test-close-ups/1.db")
    found = rows(HIDE, root)
    no_input = "no blurred image of its name in train, test-close-ups or test-long-shot"
    assert rejected(found, root) == {
        "test/test-long-shot/7.1.png": "no GT: GT/7.1.png is missing",
        "train/2.png": "no GT: GT/2.png is missing",
        "GT/2fromGOPR0950.png": no_input,
        "GT/extra.png": no_input,
        "GT/sub/extra2.png": no_input,
        "GT/index.db": "not an image by its suffix",
        "test/1.png": "not in the folder test-close-ups or test-long-shot",
        "test/test-close-ups/1.db": "not an image by its suffix",
    }
    assert used(found, root) == before[2:4]


def test_hide_passes_by_the_sharp_images_of_a_split_that_was_not_unpacked(tmp_path):
    root = hide(tmp_path)
    (root / "train/2fromGOPR0950.png").unlink()
    (root / "train").rmdir()
    assert [row.split for row in rows(HIDE, root)] == ["test"] * 4


# RealBlur


def realblur(root: Path, variant: str = "J", inner: str = "") -> Path:
    folder = FOLDERS[variant]
    pairs = {"train": ["scene001/{}_1", "scene001/{}_2", "scene003/{}_1"], "test": ["scene002/{}_1"]}
    for split, names in pairs.items():
        lines = []
        for name in names:
            scene, file = name.split("/")
            gt, blur = (f"{folder}/{scene}/{role}/{file.format(role)}.png" for role in ("gt", "blur"))
            tree(root, inner + gt, inner + blur)
            lines.append(f"{gt} {blur} ")
        (root / inner / f"RealBlur_{variant}_{split}_list.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("inner", ["", "RealBlur/"])
def test_realblur_takes_the_pairs_and_splits_of_its_lists(inner, tmp_path):
    root = realblur(realblur(tmp_path, "J", inner), "R", inner)
    for variant in ("J", "R"):
        found = rows(RealBlur, root, variant)
        place = inner + FOLDERS[variant]
        assert used(found, root) == [
            (split, f"{scene}-{n}", role, f"{place}/{scene}/{folder}/{folder}_{n}.png")
            for split, scene, n in (
                ("train", "scene001", 1),
                ("train", "scene001", 2),
                ("train", "scene003", 1),
                ("test", "scene002", 1),
            )
            for role, folder in (("lq", "blur"), ("gt", "gt"))
        ]
        assert all(row.group == row.key and row.key.startswith(f"{row.scene}-") for row in found)
        assert len(found) == 8
        assert numbers(RealBlur, root, variant) == [("train", "lq", 3758), ("test", "lq", 980)]


def test_realblur_names_what_the_lists_miss_and_what_they_do_not_name(tmp_path):
    root = realblur(tmp_path)
    before = used(rows(RealBlur, root, "J"), root)
    place = FOLDERS["J"]
    (root / place / "scene001/gt/gt_1.png").unlink()
    blur = root / place / "scene002/blur"
    (blur / "blur_1.png").rename(blur / "blur_9.png")
    for name in ("gt/gt_2.png", "blur/blur_2.png"):
        (root / place / "scene001" / name).unlink()
    tree(root, f"{place}/scene003/blur/blur_2.png", f"{place}/scene003/gt/index.db")
    found = rows(RealBlur, root, "J")
    assert rejected(found, root) == {
        f"{place}/scene001/blur/blur_1.png": f"no gt: {place}/scene001/gt/gt_1.png is missing",
        f"{place}/scene002/gt/gt_1.png": f"no lq: {place}/scene002/blur/blur_1.png is missing",
        f"{place}/scene002/blur/blur_9.png": "no list names it",
        f"{place}/scene003/blur/blur_2.png": "no list names it",
        f"{place}/scene003/gt/index.db": "not an image by its suffix",
    }
    assert used(found, root) == [each for each in before if each[1] == "scene003-1"]


def test_realblur_without_its_lists_has_no_splits_and_says_so(tmp_path):
    root = realblur(tmp_path)
    (root / "RealBlur_J_train_list.txt").unlink()
    found = rows(RealBlur, root, "J")
    assert {row.key for row in found if row.reject_reason is None} == {"scene002-1"}
    assert set(rejected(found, root).values()) == {"no list names it; RealBlur_J_train_list.txt is missing"}
    assert len(rejected(found, root)) == 6
    (root / "RealBlur_J_test_list.txt").unlink()
    assert set(rejected(rows(RealBlur, root, "J"), root).values()) == {
        "no list names it; RealBlur_J_train_list.txt is missing; RealBlur_J_test_list.txt is missing"
    }


# pairs by a list


class Listed(Layout):
    name, tree = "listed", "{a,b}/*.png, list.txt"

    def scan(self):
        lists = {"train": self.root / "list.txt"}
        yield from self.listed_pairs(lists, ("lq", "gt"), [self.root / "a", self.root / "b"], lambda path: path.stem)


def listed(root: Path, text: str | bytes, *files: str) -> list[Row]:
    tree(root, *files)
    (root / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return rows(Listed, root)


def test_a_list_may_have_many_inputs_of_one_target(tmp_path):
    found = listed(
        tmp_path,
        "/a/1_2.png /b/1.png\r\n./a/1_1.png ./b/1.png\n\na/1_1.png b/1.png",
        "a/1_1.png",
        "a/1_2.png",
        "b/1.png",
    )
    assert [(row.key, row.role, row.group) for row in found] == [
        ("1_1", "lq", "1"),
        ("1_2", "lq", "1"),
        ("1", "gt", "1"),
    ]
    assert rejected(found, tmp_path) == {}


def test_a_target_is_kept_while_one_of_its_inputs_is_there(tmp_path):
    text = "a/1_1.png b/1.png\na/1_2.png b/1.png\na/2_1.png b/2.png"
    found = listed(tmp_path, text, "a/1_2.png", "b/1.png", "b/2.png")
    assert [row.path.name for row in found if row.reject_reason is None] == ["1_2.png", "1.png"]
    assert rejected(found, tmp_path) == {"b/2.png": "no lq: a/2_1.png is missing"}


def test_a_list_keeps_names_with_spaces_dots_dashes_and_unicode(tmp_path):
    names = [*ODD_NAMES, "x.PNG.y"]
    text = "\ufeff" + "\n".join(f"a/{name}.png  b/{name}.JPG " for name in names)
    found = listed(tmp_path, text, *(f"a/{name}.png" for name in names), *(f"b/{name}.JPG" for name in names))
    assert rejected(found, tmp_path) == {}
    assert {row.key for row in found} == {safe_key(name) for name in names}
    assert len(found) == 10


def test_an_input_that_a_list_gives_two_targets_is_a_reject(tmp_path):
    found = listed(
        tmp_path, "a/1.png b/1.png\na/1.png b/2.png\na/2.png b/2.png", "a/1.png", "a/2.png", "b/1.png", "b/2.png"
    )
    assert rejected(found, tmp_path) == {
        "a/1.png": "in list.txt with b/1.png and b/2.png; keep one line",
        "b/1.png": "no lq: a/1.png is in list.txt with b/1.png and b/2.png; keep one line",
    }
    assert len(found) == 4


def test_a_broken_link_that_a_list_names_is_a_reject_with_its_partner(tmp_path):
    tree(tmp_path, "a/1.png", "b/x")
    (tmp_path / "b/1.png").symlink_to(tmp_path / "gone.png")
    found = listed(tmp_path, "a/1.png b/1.png")
    assert rejected(found, tmp_path) == {
        "a/1.png": "no gt: b/1.png is a broken link, or not a regular file",
        "b/1.png": "a broken link, or not a regular file",
        "b/x": "not an image by its suffix",
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a/1.png b/1.png\na/2.png\n", r"list\.txt:2: does not name two images; mend the line"),
        ("a/1.png b/1.txt", r"list\.txt:1: does not name two images"),
        ("<html>404</html>", r"list\.txt:1: does not name two images"),
        (b"\xff\xfe\x00", r"list\.txt: not a text in UTF-8; download it again"),
    ],
)
def test_a_list_that_is_none_is_an_error_of_one_line(text, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        listed(tmp_path, text, "a/1.png", "b/1.png")


# SIDD

INSTANCE, OTHER = "0001_001_S6_00100_00060_3200_L", "0002_001_S6_00100_00020_3200_N"


def sidd(root: Path, inner: str = "") -> Path:
    shots = {INSTANCE: ("0001", "010", "011"), OTHER: ("0002", "010")}
    files = [
        f"Data/{folder}/{n}_{kind}_SRGB_{shot}.PNG"
        for folder, (n, *each) in shots.items()
        for shot in each
        for kind in ("GT", "NOISY")
    ]
    return tree(root, *(inner + file for file in ("Scene_Instances.txt", *files)))


@pytest.mark.parametrize("inner", ["", "SIDD_Medium_Srgb/"])
def test_sidd_pairs_noisy_and_gt_of_an_instance(inner, tmp_path):
    root = sidd(tmp_path, inner)
    found = rows(SIDD, root)
    assert used(found, root) == [
        ("train", f"{folder}-{n}-{shot}", role, f"{inner}Data/{folder}/{n}_{kind}_SRGB_{shot}.PNG")
        for folder, n, shot in ((INSTANCE, "0001", "010"), (INSTANCE, "0001", "011"), (OTHER, "0002", "010"))
        for role, kind in (("lq", "NOISY"), ("gt", "GT"))
    ]
    assert len(found) == 6
    assert all(row.group == row.key and row.scene == row.path.parent.name and row.part is None for row in found)
    assert numbers(SIDD, root) == [("train", "lq", 320), ("val", "lq", 1280), ("test", "lq", 1280)]


def test_sidd_names_what_has_no_partner_or_another_name(tmp_path):
    root = sidd(tmp_path)
    before = used(rows(SIDD, root), root)
    folder = root / "Data" / INSTANCE
    (folder / "0001_GT_SRGB_010.PNG").unlink()
    (folder / "0001_NOISY_SRGB_011.PNG").rename(folder / "NOISY_SRGB_011.PNG")
    tree(root, "Data/loose.PNG", f"Data/{INSTANCE}/index.db")
    found = rows(SIDD, root)
    inside = f"Data/{INSTANCE}"
    assert rejected(found, root) == {
        f"{inside}/0001_NOISY_SRGB_010.PNG": f"no {INSTANCE}: {inside}/0001_GT_SRGB_010.PNG is missing",
        f"{inside}/0001_GT_SRGB_011.PNG": f"no {INSTANCE}: {inside}/0001_NOISY_SRGB_011.PNG is missing",
        f"{inside}/NOISY_SRGB_011.PNG": "its name is not of the form {n}_NOISY_SRGB_{shot} or {n}_GT_SRGB_{shot}",
        f"{inside}/index.db": "not an image by its suffix",
        "Data/loose.PNG": "not in the folder of a scene instance",
    }
    assert used(found, root) == before[4:]


def test_sidd_has_a_pair_for_each_block_of_the_validation_files(tmp_path):
    root = tree(tmp_path, "ValidationNoisyBlocksSrgb.mat", "ValidationGtBlocksSrgb.mat")
    found = rows(SIDD, root)
    assert [(row.split, row.key, row.role, row.path.name, row.part, row.scene) for row in found] == [
        (
            "val",
            f"Validation-{i}-{j}",
            role,
            f"Validation{kind}BlocksSrgb.mat",
            f"Validation{kind}BlocksSrgb[{i},{j}]",
            "Validation",
        )
        for i in range(40)
        for j in range(32)
        for role, kind in (("lq", "Noisy"), ("gt", "Gt"))
    ]
    assert all(row.group == row.key and row.reject_reason is None for row in found)


def test_sidd_takes_the_benchmark_without_gt(tmp_path):
    found = rows(SIDD, tree(tmp_path, "BenchmarkNoisyBlocksSrgb.mat"))
    assert {(row.split, row.role, row.reject_reason) for row in found} == {("test", "lq", None)}
    assert len({row.part for row in found}) == 1280
    assert found[33].part == "BenchmarkNoisyBlocksSrgb[1,1]"
    assert found[33].key == "Benchmark-1-1"


def test_sidd_rejects_one_validation_file_without_the_other(tmp_path):
    root = tree(tmp_path, "ValidationNoisyBlocksSrgb.mat", "BenchmarkNoisyBlocksSrgb.mat")
    found = rows(SIDD, root)
    assert rejected(found, root) == {
        "ValidationNoisyBlocksSrgb.mat": "the other half of the pairs, ValidationGtBlocksSrgb.mat, is missing"
    }
    assert len(found) == 1281


# DND


def dnd(root: Path, images: int, inner: str = "") -> Path:
    """info.mat as MATLAB writes it: a struct array, each field an array of references, all axes from last to first."""
    tree(root, *(f"{inner}images_srgb/{n:04}.mat" for n in range(1, images + 1)), f"{inner}images_raw/0001.mat")
    with h5py.File(root / inner / "info.mat", "w", userblock_size=512) as file:
        references = file.create_group("info").create_dataset("boundingboxes", (1, images), h5py.ref_dtype)
        for n in range(images):
            corners = np.array([[1 + 10 * n + b, 2 + b] for b in range(20)], float)
            file[f"#refs#/{n}"] = np.hstack([corners, corners + 511]).T
            references[0, n] = file[f"#refs#/{n}"].ref
    return root


@pytest.mark.parametrize("inner", ["", "DND/", "dnd_2017/"])
def test_dnd_has_a_part_for_each_box_counted_from_0(inner, tmp_path):
    root = dnd(tmp_path, 2, inner)
    found = rows(DND, root)
    assert [(row.key, row.scene, row.path.relative_to(root).as_posix(), row.part) for row in found] == [
        (
            f"{image:04}-{box:02}",
            f"{image:04}",
            f"{inner}images_srgb/{image:04}.mat",
            f"InoisySRGB[{top}:{top + 512},{box}:{box + 512}]",
        )
        for image in (1, 2)
        for box in range(1, 21)
        for top in [10 * (image - 1) + box - 1]
    ]
    assert {(row.split, row.role, row.reject_reason) for row in found} == {("test", "lq", None)}
    assert all(row.group == row.key for row in found)
    assert numbers(DND, root) == [("test", "lq", 1000)]


def test_dnd_rejects_a_file_that_info_does_not_know_and_shifts_no_box(tmp_path):
    root = dnd(tmp_path, 3)
    before = {row.key: row.part for row in rows(DND, root)}
    (root / "images_srgb/0001.mat").rename(root / "images_srgb/1.mat")
    tree(root, "images_srgb/0004.mat", "images_srgb/sub/0002.mat")
    found = rows(DND, root)
    reason = "no boxes in info.mat, which has 3 images"
    assert rejected(found, root) == {f"images_srgb/{name}.mat": reason for name in ("1", "0004", "sub/0002")}
    kept = {row.key: row.part for row in found if row.reject_reason is None}
    assert kept == {key: part for key, part in before.items() if not key.startswith("0001")}


def test_dnd_without_its_info_is_an_error_of_one_line(tmp_path):
    root = dnd(tmp_path, 1)
    (root / "info.mat").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"info\.mat: not the info\.mat of DND, or damaged; download it again"):
        rows(DND, root)
    with h5py.File(root / "info.mat", "w") as file:
        file["boxes"] = np.zeros(3)
    with pytest.raises(UserError, match=r"info\.mat: not the info\.mat of DND"):
        rows(DND, root)
    (root / "info.mat").unlink()
    with pytest.raises(UserError, match=r"info\.mat: missing; it says where the patches lie"):
        rows(DND, root)


# DIV2K and Flickr2K


@pytest.mark.parametrize("inner", ["", "DIV2K/"])
def test_div2k_takes_the_hr_images_of_its_two_splits_only(inner, tmp_path):
    lr = [f"{inner}DIV2K_train_LR_bicubic/X2/0001x2.png", f"{inner}DIV2K_train_HR_sub/0001_s001.png"]
    root = tree(tmp_path, f"{inner}DIV2K_train_HR/0001.png", f"{inner}DIV2K_valid_HR/0801.png", *lr)
    found = rows(DIV2K, root)
    assert used(found, root) == [
        ("train", "0001", "gt", f"{inner}DIV2K_train_HR/0001.png"),
        ("val", "0801", "gt", f"{inner}DIV2K_valid_HR/0801.png"),
    ]
    assert len(found) == 2
    assert numbers(DIV2K, root) == [("train", "gt", 800), ("val", "gt", 100)]
    assert DIV2K.counts[0].causes == {900: "the 100 validation images are among the training images"}


@pytest.mark.parametrize("inner", ["", "Flickr2K/"])
def test_flickr2k_is_training_data(inner, tmp_path):
    root = tree(tmp_path, f"{inner}Flickr2K_HR/000001.png", f"{inner}Flickr2K_LR_bicubic/X2/000001x2.png")
    found = rows(Flickr2K, root)
    assert used(found, root) == [("train", "000001", "gt", f"{inner}Flickr2K_HR/000001.png")]
    assert len(found) == 1
    assert numbers(Flickr2K, root) == [("train", "gt", 2650)]


@pytest.mark.parametrize(
    ("kind", "folder"), [(DIV2K, "DIV2K_train_HR"), (DIV2K, "DIV2K_valid_HR"), (Flickr2K, "Flickr2K_HR")]
)
def test_files_that_are_no_images_of_a_set_are_rejects_there(kind, folder, tmp_path):
    root = tree(tmp_path, f"{folder}/1.png", f"{folder}/1.mat", f"{folder}/X2/1.png")
    found = rows(kind, root)
    assert [row.path.name for row in found if row.reject_reason is None] == ["1.png"]
    assert rejected(found, root) == {
        f"{folder}/1.mat": "not an image by its suffix",
        f"{folder}/X2/1.png": "in a subfolder, where the layout has none",
    }


# small test sets


@pytest.mark.parametrize(
    ("kind", "number"),
    [(Set5, 5), (Set14, 14), (BSD100, 100), (Urban100, 100), (Classic5, 5), (LIVE1, 29), (S14, 14), (T91, 91)],
)
def test_a_small_set_is_found_in_its_folder_flat_or_in_hr(kind, number, tmp_path):
    variant = kind.variants[0] if kind.variants else None
    for n, folder in enumerate(("", *(each.format(variant=variant) + "/" for each in kind.folders))):
        for m, place in enumerate(("", "HR/", "GTmod12/")):
            root = tree(tmp_path / f"{n}{m}", f"{folder}{place}1.bmp", f"{folder}{place}README.md", "licence.txt")
            found = rows(kind, root, variant)
            split = "train" if kind is T91 else "test"
            assert used(found, root) == [(split, "1", "gt", f"{folder}{place}1.bmp")]
            assert len(found) == 1
            assert numbers(kind, root, variant) == [(split, "gt", number)]


def test_a_test_set_passes_by_its_low_resolution_images(tmp_path):
    files = ["HR/baby.png", "GTmod12/baby.png", "LR_bicubic/X2/babyx2.png", "LRbicx4/baby.png"]
    assert used(rows(Set5, tree(tmp_path / "tree", *files)), tmp_path / "tree") == [
        ("test", "baby", "gt", "HR/baby.png")
    ]
    flat = tree(tmp_path / "flat", "baby.bmp", "LRbicx4/baby.png")
    found = rows(Set5, flat)
    assert used(found, flat) == [("test", "baby", "gt", "baby.bmp")]
    assert len(found) == 1


@pytest.mark.parametrize("place", ["", "HR/", "image_SRF_4/"])
def test_older_names_have_the_same_keys(place, tmp_path):
    files = ["img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png", "img_001_SRF_4_LR.png", "img_001_SRF_4_SRCNN.png"]
    found = rows(Urban100, tree(tmp_path, *(place + file for file in files)))
    assert [row.key for row in found] == ["img_001", "img_002"]
    assert rejected(found, tmp_path) == {}


def test_gt_in_a_name_is_no_part_of_the_key(tmp_path):
    assert [row.key for row in rows(Set5, tree(tmp_path, "baby_GT.bmp", "bird_GT.bmp"))] == ["baby", "bird"]


def test_images_that_share_a_key_or_lie_too_deep_are_rejects(tmp_path):
    root = tree(tmp_path, "HR/a.png", "HR/a_GT.png", "HR/x2/b.png", "HR/index.db", "HR/c.png")
    found = rows(Set14, root)
    assert used(found, root) == [("test", "c", "gt", "HR/c.png")]
    assert rejected(found, root) == {
        "HR/a.png": "same key a as HR/a_GT.png; keep or rename one",
        "HR/a_GT.png": "same key a as HR/a.png; keep or rename one",
        "HR/x2/b.png": "in a subfolder, where the layout has none",
        "HR/index.db": "not an image by its suffix",
    }


def test_live1_in_colour_and_in_grey_are_not_mixed(tmp_path):
    root = tree(tmp_path, "LIVE1_color/bikes.bmp", "LIVE1_gray/bikes.png")
    assert used(rows(LIVE1, root, "color"), root) == [("test", "bikes", "gt", "LIVE1_color/bikes.bmp")]
    assert used(rows(LIVE1, root, "gray"), root) == [("test", "bikes", "gt", "LIVE1_gray/bikes.png")]
    with pytest.raises(UserError, match="needs a variant; known: color, gray"):
        LIVE1("set", root)


@pytest.mark.parametrize("kind", [DIV2K, Flickr2K, GoPro, HIDE, RealBlur, SIDD, DND, Set5, LIVE1])
def test_an_empty_folder_is_an_error_that_names_the_tree(kind, tmp_path):
    with pytest.raises(UserError, match=rf"holds nothing of the layout '{kind.name}'; expected .*\{{"):
        rows(kind, tmp_path, kind.variants[0] if kind.variants else None)
