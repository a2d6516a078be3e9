from pathlib import Path

import pytest
from conftest import tree

from pipeline.layouts.base import Layout, Row
from pipeline.layouts.files import safe_key
from pipeline.layouts.gtrain import GTRain
from pipeline.layouts.rain13k import Rain13K
from pipeline.layouts.rain100 import Rain100
from pipeline.layouts.rain12000 import Rain12000
from pipeline.layouts.rain14000 import Rain14000
from pipeline.layouts.raindrop import Raindrop
from pipeline.layouts.spa import SPA


def rows(kind: type[Layout], root: Path, variant: str | None = None) -> list[Row]:
    return list(kind("set", root, variant).rows())


def used(found: list[Row], root: Path) -> list[tuple[str, str, str, str, str]]:
    """(split, key, group, role, file), in order."""
    return [
        (row.split, row.key, row.group, row.role, row.path.relative_to(root).as_posix())
        for row in found
        if row.reject_reason is None
    ]


def rejected(found: list[Row], root: Path) -> dict[str, str]:
    return {row.path.relative_to(root).as_posix(): row.reject_reason for row in found if row.reject_reason is not None}


def counts(kind: type[Layout], root: Path, variant: str | None = None) -> list[tuple[str, str, str | None, int]]:
    published = kind("set", root, variant).published()
    return [(count.split, count.role, count.subset, count.number) for count in published]


def pair(key: str, rainy: str, clean: str, split: str = "train") -> list[tuple[str, str, str, str, str]]:
    return [(split, key, key, "lq", rainy), (split, key, key, "gt", clean)]


# Rain13K


def test_rain13k_rejects_the_copy_in_test2800_and_nothing_else(tmp_path):
    sides = ["test/Test2800/input", "test/Test2800/target"]
    files = [f"{side}/926_{n}.jpg" for n in (1, 10) for side in sides]
    root = tree(tmp_path, *files, "test/Test2800/input/926_10(1).jpg")
    reason = "a copy of 926_10 by mistake; delete it"
    for copies in (["test/Test2800/input/926_10(1).jpg"], [f"{side}/926_10(1).jpg" for side in sides]):
        found = rows(Rain13K, tree(root, *copies))
        assert [row[1] for row in used(found, root)] == [f"Test2800-926_{n}" for n in (1, 1, 10, 10)]
        assert rejected(found, root) == dict.fromkeys(copies, reason)


def test_rain13k_takes_a_name_with_brackets_in_its_other_sets(tmp_path):
    root = tree(tmp_path, "test/Test100/input/926_10(1).png", "test/Test100/target/926_10(1).png")
    assert rejected(rows(Rain13K, root), root) == {}


def test_rain13k_says_why_a_count_may_differ(tmp_path):
    causes = {count.subset: count.causes for count in Rain13K("set", tmp_path).published()}
    assert causes["Test100"] == {100: "the papers count 100; the archives hold 98"}
    assert causes["Rain100H"] == causes["Rain100L"] != {}
    assert causes["Test1200"] == {}


# Rain100H and Rain100L


def first_release(letter: str, *numbers: int) -> list[str]:
    train = [f"RainTrain{letter}/{kind}-{n}.png" for n in numbers for kind in ("rain", "norain")]
    test = [f"Rain100{letter}/{kind}-{n:03}.png" for n in numbers for kind in ("rainy/rain", "norain")]
    return train + test


@pytest.mark.parametrize(("variant", "letter"), [("H-old", "H"), ("L-old", "L"), ("H-prenet", "H")])
def test_rain100_of_the_first_release_pairs_by_number_and_passes_the_layers_of_rain_by(variant, letter, tmp_path):
    layers = [f"RainTrain{letter}/{layer}-1.png" for layer in ("rainstreak", "rainregion")]
    root = tree(tmp_path, *first_release(letter, 1, 10, 2), *layers)
    found = rows(Rain100, root, variant)
    train, test = f"RainTrain{letter}", f"Rain100{letter}"
    assert used(found, root) == [
        *(row for n in (1, 10, 2) for row in pair(f"{n}", f"{train}/rain-{n}.png", f"{train}/norain-{n}.png")),
        *(
            row
            for n in ("001", "002", "010")
            for row in pair(n, f"{test}/rainy/rain-{n}.png", f"{test}/norain-{n}.png", "test")
        ),
    ]
    assert len(found) == 12
    assert {(row.variant, row.scene, row.part) for row in found} == {(variant, None, None)}


def test_rain100_of_the_first_release_may_have_its_test_pairs_in_one_folder(tmp_path):
    files = ["Rain100L/rain-001.png", "Rain100L/norain-001.png"]
    root = tree(tmp_path, *files)
    assert used(rows(Rain100, root, "L-old"), root) == pair("001", *files, "test")


def test_rain100_of_the_first_release_names_what_is_missing_or_strange(tmp_path):
    root = tree(tmp_path, *first_release("H", 1, 2, 3, 4), "RainTrainH/rain-5 (copy).png", "RainTrainH/mask-1.png")
    (root / "RainTrainH/norain-2.png").unlink()
    (root / "RainTrainH/rain-3.png").rename(root / "RainTrainH/Rain-3.png")
    (root / "Rain100H/rainy/rain-002.png").unlink()
    tree(root, "Rain100H/rainy/more/rain-004.png", "Rain100H/old/rain-004.png")
    found = rows(Rain100, root, "H-old")
    assert [row[:2] for row in used(found, root)[::2]] == [
        ("train", "1"),
        ("train", "4"),
        *(("test", n) for n in ("001", "003", "004")),
    ]
    form = "its name is not of the form rain-{n} or norain-{n}"
    missing = "no RainTrainH: RainTrainH/{} is missing".format
    assert rejected(found, root) == {
        "RainTrainH/Rain-3.png": form,
        "RainTrainH/mask-1.png": form,
        "RainTrainH/norain-3.png": missing("rain-3.png"),
        "RainTrainH/rain-2.png": missing("norain-2.png"),
        "RainTrainH/rain-5 (copy).png": missing("norain-5 (copy).png"),
        "Rain100H/norain-002.png": "no rainy: Rain100H/rainy/rain-002.png is missing",
        "Rain100H/old/rain-004.png": "in a subfolder, where the layout has none",
        "Rain100H/rainy/more/rain-004.png": "in a subfolder, where the layout has none",
    }


@pytest.mark.parametrize("place", ["rain_data_{}_Heavy", "{}"])
@pytest.mark.parametrize("rain", ["rain/X2", "rain"])
def test_rain100_of_the_second_release_strips_x2_at_the_end_only(place, rain, tmp_path):
    files = [
        f"{place.format(split)}/{file}"
        for split in ("train", "test")
        for file in (
            f"{rain}/norain-1x2.png",
            f"{rain}/norain-box2x2.png",
            "norain/norain-1.png",
            "norain/norain-box2.png",
        )
    ]
    root = tree(tmp_path, *files)
    found = rows(Rain100, root, "H-new")
    assert used(found, root) == [
        row
        for split in ("train", "test")
        for n in ("1", "box2")
        for row in pair(
            n,
            f"{place.format(split)}/{rain}/norain-{n}x2.png",
            f"{place.format(split)}/norain/norain-{n}.png",
            split,
        )
    ]
    assert rejected(found, root) == {}


def test_rain100_of_the_second_release_names_what_is_missing_or_strange(tmp_path):
    light = "rain_data_test_Light"
    files = [f"{light}/{file}" for n in range(4) for file in (f"rain/X2/norain-{n}x2.png", f"norain/norain-{n}.png")]
    root = tree(tmp_path, *files, "rain_data_test_Heavy/norain/norain-9.png", f"{light}/rain/norain-3x2.png")
    (root / light / "norain/norain-0.png").unlink()
    (root / light / "rain/X2/norain-1x2.png").rename(root / light / "rain/X2/norain-1.png")
    found = rows(Rain100, root, "L-new")
    assert [row[1] for row in used(found, root)] == ["2", "2"]
    assert rejected(found, root) == {
        f"{light}/rain/X2/norain-0x2.png": f"no norain: {light}/norain/norain-0.png is missing",
        f"{light}/rain/X2/norain-1.png": "its name is not of the form norain-{n}x2",
        f"{light}/norain/norain-1.png": f"no X2: {light}/rain/X2/norain-1x2.png is missing",
        f"{light}/rain/X2/norain-3x2.png": f"same key 3 as {light}/rain/norain-3x2.png; keep or rename one",
        f"{light}/rain/norain-3x2.png": f"same key 3 as {light}/rain/X2/norain-3x2.png; keep or rename one",
        f"{light}/norain/norain-3.png": "no X2: 2 files have the key 3",
    }


@pytest.mark.parametrize("small", ["", "/small"])
def test_rain100_of_rcdnet_pairs_equal_names(small, tmp_path):
    files = [f"{split}{small}/{side}/norain-1.png" for split in ("train", "test") for side in ("rain", "norain")]
    root = tree(tmp_path, *files, f"train{small}/rain/norain-2.png")
    found = rows(Rain100, root, "L-rcdnet")
    assert used(found, root) == [*pair("norain-1", *files[:2]), *pair("norain-1", *files[2:], "test")]
    assert rejected(found, root) == {
        f"train{small}/rain/norain-2.png": f"no norain: train{small}/norain/norain-2.png is missing"
    }


@pytest.mark.parametrize(
    ("variant", "train", "test"),
    [("H-old", 1800, 100), ("L-old", 200, 100), ("H-prenet", 1254, 100), ("H-new", 1800, 200), ("L-new", 1800, 200)],
)
def test_rain100_counts_depend_on_the_release(variant, train, test, tmp_path):
    assert counts(Rain100, tmp_path, variant) == [("train", "lq", None, train), ("test", "lq", None, test)]
    causes = [count.causes for count in Rain100("set", tmp_path, variant).published()]
    assert "H-prenet" in causes[0][1254]
    assert set(causes[1]) == {100, 200}


# Rain12000 (DID-MDN)


@pytest.mark.parametrize("training", ["", "DID-MDN-training/"])
def test_rain12000_takes_the_left_half_for_rainy_and_the_right_for_clean(training, tmp_path):
    densities = ("Rain_Heavy", "Rain_Medium", "Rain_Light")
    files = [f"{training}{density}/train2018new/0.jpg" for density in densities]
    root = tree(tmp_path, *files, "DID-MDN-test/0.jpg", "DID-MDN-test/1.mat", f"{training}Rain_Heavy/trainnew/0.jpg")
    found = rows(Rain12000, root)
    assert [
        (row.split, row.scene, row.key, row.group, row.role, row.part, row.path.relative_to(root).as_posix())
        for row in found
        if row.reject_reason is None
    ] == [
        *(
            ("train", density, f"{density}-0", f"{density}-0", role, part, file)
            for density, file in zip(densities, files, strict=True)
            for role, part in (("lq", "left"), ("gt", "right"))
        ),
        ("test", None, "0", "0", "lq", "left", "DID-MDN-test/0.jpg"),
        ("test", None, "0", "0", "gt", "right", "DID-MDN-test/0.jpg"),
    ]
    assert rejected(found, root) == {"DID-MDN-test/1.mat": "not an image by its suffix"}
    assert counts(Rain12000, root) == [
        *(("train", "lq", density, 4000) for density in densities),
        ("test", "lq", None, 1200),
    ]


def test_rain12000_loses_only_the_pair_whose_file_is_lost_or_doubled(tmp_path):
    root = tree(tmp_path, *(f"DID-MDN-test/{n}.jpg" for n in range(4)))
    (root / "DID-MDN-test/1.jpg").unlink()
    tree(root, "DID-MDN-test/2.png")
    found = rows(Rain12000, root)
    assert sorted({(row[1], row[4]) for row in used(found, root)}) == [
        ("0", "DID-MDN-test/0.jpg"),
        ("3", "DID-MDN-test/3.jpg"),
    ]
    assert rejected(found, root) == {
        "DID-MDN-test/2.jpg": "same key 2 as DID-MDN-test/2.png; keep or rename one",
        "DID-MDN-test/2.png": "same key 2 as DID-MDN-test/2.jpg; keep or rename one",
    }


# Rain14000 (DDN)


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Rain12600", "Rain1400")])
def test_rain14000_groups_the_rainy_images_of_a_clean_one(train, test, tmp_path):
    files = [f"{train}/rainy_image/{image}_{rain}.jpg" for image in (1, 12) for rain in (1, 2, 14)]
    clean = [f"{train}/ground_truth/{image}.jpg" for image in (1, 12)]
    root = tree(tmp_path, *files, *clean, f"{test}/rainy_image/901_1.jpg", f"{test}/ground_truth/901.jpg")
    found = rows(Rain14000, root)
    assert used(found, root) == [
        *(
            row
            for image in (1, 12)
            for row in (
                ("train", f"{image}", f"{image}", "gt", f"{train}/ground_truth/{image}.jpg"),
                *(
                    ("train", f"{image}-{rain}", f"{image}", "lq", f"{train}/rainy_image/{image}_{rain}.jpg")
                    for rain in (1, 14, 2)
                ),
            )
        ),
        ("test", "901", "901", "gt", f"{test}/ground_truth/901.jpg"),
        ("test", "901-1", "901", "lq", f"{test}/rainy_image/901_1.jpg"),
    ]
    assert rejected(found, root) == {}


def test_rain14000_keeps_a_clean_image_that_lost_one_of_its_rainy_ones(tmp_path):
    files = [f"training/rainy_image/{image}_{rain}.jpg" for image in (1, 2, 3) for rain in (1, 2)]
    root = tree(tmp_path, *files, *(f"training/ground_truth/{image}.jpg" for image in (1, 2, 3)))
    (root / "training/rainy_image/1_1.jpg").unlink()
    (root / "training/ground_truth/2.jpg").rename(root / "training/ground_truth/22.jpg")
    tree(root, "training/rainy_image/3.jpg")
    found = rows(Rain14000, root)
    assert [row[1] for row in used(found, root)] == ["1", "1-2", "3", "3-1", "3-2"]
    lost = "no ground_truth: training/ground_truth/2.jpg is missing"
    assert rejected(found, root) == {
        "training/rainy_image/3.jpg": "its name is not of the form {image}_{rain}",
        "training/rainy_image/2_1.jpg": lost,
        "training/rainy_image/2_2.jpg": lost,
        "training/ground_truth/22.jpg": "no rainy_image: training/rainy_image/22_*.jpg is missing",
    }
    assert counts(Rain14000, root) == [
        ("train", "lq", None, 12600),
        ("train", "gt", None, 900),
        ("test", "lq", None, 1400),
        ("test", "gt", None, 100),
    ]


# SPA-Data


def spa(*patches: tuple[str, str, str]) -> list[str]:
    rainy = [f"real_world/{scene}/{scene}-{frame}/{scene}-{frame}_{place}.png" for scene, frame, place in patches]
    clean = [f"real_world_gt/{scene}/{scene}_{place}.png" for scene, _, place in patches]
    return [*rainy, *dict.fromkeys(clean)]


SPA_PATCHES = spa(("000", "1", "0_3"), ("000", "2", "0_3"), ("000", "2", "1_0"), ("017", "1", "0_3"))


def spa_list(root: Path, start: str, files: list[str] = SPA_PATCHES) -> Path:
    lines = []
    for rainy in (file for file in files if file.startswith("real_world/")):
        scene, _, name = rainy.split("/")[1:]
        lines.append(f"{start}{rainy} {start}real_world_gt/{scene}/{scene}_{name.split('_', 1)[1]}\n")
    (root / "real_world.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("start", [None, "/", "./", ""])
def test_spa_has_the_same_rows_with_its_list_and_without(start, tmp_path):
    root = tree(tmp_path, *SPA_PATCHES, "real_test_1000/rain/000.png", "real_test_1000/gt/000gt.png")
    tree(root, "real_test_1000.txt", "Real_Internet/1.png")
    found = rows(SPA, root if start is None else spa_list(root, start))
    assert sorted(used(found, root)) == sorted(
        [
            *pair("000", "real_test_1000/rain/000.png", "real_test_1000/gt/000gt.png", "test"),
            ("train", "000-0-3", "000-0-3", "gt", "real_world_gt/000/000_0_3.png"),
            ("train", "000-1-0", "000-1-0", "gt", "real_world_gt/000/000_1_0.png"),
            ("train", "000-1-0-3", "000-0-3", "lq", "real_world/000/000-1/000-1_0_3.png"),
            ("train", "000-2-0-3", "000-0-3", "lq", "real_world/000/000-2/000-2_0_3.png"),
            ("train", "000-2-1-0", "000-1-0", "lq", "real_world/000/000-2/000-2_1_0.png"),
            ("train", "017-0-3", "017-0-3", "gt", "real_world_gt/017/017_0_3.png"),
            ("train", "017-1-0-3", "017-0-3", "lq", "real_world/017/017-1/017-1_0_3.png"),
        ]
    )
    assert {row.scene for row in found if row.path.parts[-2].startswith("017")} == {"017"}
    assert rejected(found, root) == {}


def test_spa_may_lie_in_the_folders_of_the_publisher(tmp_path):
    root = tree(tmp_path, *(f"Training/{file}" for file in SPA_PATCHES))
    tree(root, "Testing/real_test_1000/rain/7.png", "Testing/real_test_1000/gt/7gt.png")
    by_name = sorted(used(rows(SPA, root), root))
    spa_list(root / "Training", "/")
    assert sorted(used(rows(SPA, root), root)) == by_name
    assert len(by_name) == 9


def test_spa_by_its_list_rejects_what_is_missing_and_what_is_not_named(tmp_path):
    root = spa_list(tree(tmp_path, *SPA_PATCHES), "/")
    (root / "real_world/000/000-1/000-1_0_3.png").unlink()
    (root / "real_world_gt/017/017_0_3.png").unlink()
    tree(root, "real_world/000/000-1/000-1_0_3.png/rain_s208_resize-14_0_3.png", "real_world_gt/000/000_5_5.png")
    found = rows(SPA, root)
    assert sorted(row[1] for row in used(found, root)) == ["000-0-3", "000-1-0", "000-2-0-3", "000-2-1-0"]
    assert rejected(found, root) == {
        "real_world/000/000-1/000-1_0_3.png/rain_s208_resize-14_0_3.png": "no list names it",
        "real_world/017/017-1/017-1_0_3.png": "no gt: real_world_gt/017/017_0_3.png is missing",
        "real_world_gt/000/000_5_5.png": "no list names it",
    }


def test_spa_by_name_rejects_what_is_missing_and_what_is_strange(tmp_path):
    root = tree(
        tmp_path,
        *SPA_PATCHES,
        "real_world/notes.txt",
        "real_world/loose.png",
        "real_world_gt/loose.png",
        "real_world_gt/099/099_0_0.png",
    )
    (root / "real_world/000/000-1/000-1_0_3.png").unlink()
    (root / "real_world/000/000-2/000-2_1_0.png").unlink()
    (root / "real_world_gt/017/017_0_3.png").rename(root / "real_world_gt/017/017_03.png")
    tree(root, "real_world/000/000-1/000-1_0_3.png/rain_s208_resize-14_0_3.png", "real_world/000/018-1_0_3.png")
    found = rows(SPA, root)
    assert [row[1] for row in used(found, root)] == ["000-0-3", "000-2-0-3"]
    form = "its name is not of the form {}".format
    assert rejected(found, root) == {
        "real_world/000/000-1/000-1_0_3.png/rain_s208_resize-14_0_3.png": form("000-{frame}_{x}_{y}"),
        "real_world/000/018-1_0_3.png": form("000-{frame}_{x}_{y}"),
        "real_world/017/017-1/017-1_0_3.png": "no 017: real_world_gt/017/017_0_3.png is missing",
        "real_world/loose.png": "not in the folder of a scene",
        "real_world_gt/000/000_1_0.png": "no 000: real_world/000/000-*_1_0.png is missing",
        "real_world_gt/017/017_03.png": form("017_{x}_{y}"),
        "real_world_gt/099/099_0_0.png": "no 099: real_world/099/099-*_0_0.png is missing",
        "real_world_gt/loose.png": "not in the folder of a scene",
    }


def test_spa_counts_rainy_patches_and_knows_the_other_numbers(tmp_path):
    assert counts(SPA, tmp_path) == [("train", "lq", None, 638492), ("test", "lq", None, 1000)]
    assert set(SPA("set", tmp_path).published()[0].causes) == {638493, 638500}


# Raindrop


def raindrop(folder: str, *numbers: int) -> list[str]:
    return [f"{folder}/{file}.png" for n in numbers for file in (f"data/{n}_rain", f"gt/{n}_clean")]


@pytest.mark.parametrize(("variant", "number"), [("test_a", 58), ("test_b", 249)])
def test_raindrop_takes_one_of_its_overlapping_test_sets(variant, number, tmp_path):
    files = {folder: raindrop(folder, 0, 1) for folder in ("train", "test_a", "test_b")}
    root = tree(tmp_path, *(file for each in files.values() for file in each))
    found = rows(Raindrop, root, variant)
    assert used(found, root) == [
        row
        for split, folder in (("train", "train"), ("test", variant))
        for n in (0, 1)
        for row in pair(f"{n}", *files[folder][2 * n : 2 * n + 2], split)
    ]
    assert rejected(found, root) == {}
    assert counts(Raindrop, root, variant) == [("train", "lq", None, 861), ("test", "lq", None, number)]


def test_raindrop_knows_the_number_in_the_readme(tmp_path):
    assert list(Raindrop("set", tmp_path, "test_b").published()[1].causes) == [239]


def test_raindrop_names_what_is_missing_or_strange(tmp_path):
    root = tree(tmp_path, *raindrop("train", 0, 1, 2), "train/data/3_clean.png")
    (root / "train/gt/0_clean.png").unlink()
    (root / "train/data/1_rain.png").rename(root / "train/data/11_rain.png")
    found = rows(Raindrop, root, "test_a")
    assert [row[1] for row in used(found, root)] == ["2", "2"]
    assert rejected(found, root) == {
        "train/data/0_rain.png": "no gt: train/gt/0_clean.png is missing",
        "train/data/11_rain.png": "no gt: train/gt/11_clean.png is missing",
        "train/data/3_clean.png": "its name is not of the form {n}_rain",
        "train/gt/1_clean.png": "no data: train/data/1_rain.png is missing",
    }


# GT-RAIN


def gtrain(scene: str, frames: int, clean: int) -> list[str]:
    names = [f"R-{frame:03}" for frame in range(frames)] + [f"C-{frame:03}" for frame in range(clean)]
    return [f"{scene}/Webcam-{name}.png" for name in names]


@pytest.mark.parametrize("prefix", ["GT-RAIN_", ""])
def test_gtrain_groups_the_frames_of_a_scene_but_for_the_one_of_moving_clean_frames(prefix, tmp_path):
    train, val = f"{prefix}train/old.town 1", f"{prefix}val/Gurutto_1-2"
    root = tree(tmp_path, *gtrain(train, 2, 1), *gtrain(val, 2, 2), *gtrain(f"{prefix}test/M1135_0-0", 1, 1))
    found = rows(GTRain, root)
    group = safe_key("old.town 1-Webcam")
    assert used(found, root) == [
        ("train", safe_key("old.town 1-Webcam-000"), group, "lq", f"{train}/Webcam-R-000.png"),
        ("train", safe_key("old.town 1-Webcam-001"), group, "lq", f"{train}/Webcam-R-001.png"),
        ("train", group, group, "gt", f"{train}/Webcam-C-000.png"),
        *(
            row
            for n in ("000", "001")
            for row in pair(f"Gurutto_1-2-Webcam-{n}", f"{val}/Webcam-R-{n}.png", f"{val}/Webcam-C-{n}.png", "val")
        ),
        ("test", "M1135_0-0-Webcam", "M1135_0-0-Webcam", "gt", f"{prefix}test/M1135_0-0/Webcam-C-000.png"),
        ("test", "M1135_0-0-Webcam-000", "M1135_0-0-Webcam", "lq", f"{prefix}test/M1135_0-0/Webcam-R-000.png"),
    ]
    assert [row.scene for row in found] == ["old.town 1"] * 3 + ["Gurutto_1-2"] * 4 + ["M1135_0-0"] * 2
    assert rejected(found, root) == {}


def test_gtrain_names_what_is_missing_or_strange(tmp_path):
    train = "GT-RAIN_train"
    scenes = [file for scene in "abc" for file in gtrain(f"{train}/{scene}", 2, 1)]
    root = tree(tmp_path, *scenes, *gtrain(f"{train}/Gurutto_1-2", 2, 2), f"{train}/loose.png", f"{train}/a/1.txt")
    (root / train / "a/Webcam-R-000.png").unlink()
    (root / train / "b/Webcam-C-000.png").rename(root / train / "b/Webcam-C-001.png")
    (root / train / "Gurutto_1-2/Webcam-C-001.png").unlink()
    found = rows(GTRain, root)
    assert [row[1] for row in used(found, root)] == [
        "Gurutto_1-2-Webcam-000",
        "Gurutto_1-2-Webcam-000",
        "a-Webcam",
        "a-Webcam-001",
        "c-Webcam",
        "c-Webcam-000",
        "c-Webcam-001",
    ]
    lost = f"no b: {train}/b/Webcam-C-000.png is missing"
    assert rejected(found, root) == {
        f"{train}/loose.png": "not in the folder of a scene",
        f"{train}/a/1.txt": "not an image by its suffix",
        f"{train}/b/Webcam-C-001.png": "its name is not of the form {name}-R-{frame} or {name}-C-000",
        f"{train}/b/Webcam-R-000.png": lost,
        f"{train}/b/Webcam-R-001.png": lost,
        f"{train}/Gurutto_1-2/Webcam-R-001.png": f"no Gurutto_1-2: {train}/Gurutto_1-2/Webcam-C-001.png is missing",
    }


def test_gtrain_counts_the_pairs_of_the_paper(tmp_path):
    assert sum(number for *_, number in counts(GTRain, tmp_path)) == 31524


# all of them


@pytest.mark.parametrize(
    ("kind", "variant", "side", "other"),
    [
        (Rain13K, None, "train/Rain13K/input/{}.png", "train/Rain13K/target/{}.png"),
        (Rain100, "H-old", "RainTrainH/rain-{}.png", "RainTrainH/norain-{}.png"),
        (Rain100, "L-new", "test/rain/X2/norain-{}x2.png", "test/norain/norain-{}.png"),
        (Rain12000, None, "DID-MDN-test/{}.jpg", "DID-MDN-test/{}.jpg"),
        (Rain14000, None, "training/rainy_image/{}_1.jpg", "training/ground_truth/{}.jpg"),
        (SPA, None, "real_test_1000/rain/{}.png", "real_test_1000/gt/{}gt.png"),
        (Raindrop, "test_a", "train/data/{}_rain.png", "train/gt/{}_clean.png"),
        (GTRain, None, "GT-RAIN_val/s/{}-R-000.png", "GT-RAIN_val/s/{}-C-000.png"),
    ],
)
@pytest.mark.parametrize("name", ["scene.0001", "old town", "-dash", "été 雨", "a-b"])
def test_names_of_any_characters_make_pairs_that_stay_apart(kind, variant, side, other, name, tmp_path):
    root = tree(tmp_path, *(each.format(n) for each in (side, other) for n in (name, f"{name}.2")))
    found = rows(kind, root, variant)
    assert rejected(found, root) == {}
    assert [len(each) for each in ({row.group for row in found}, found)] == [2, 4]
