"""Published pairs read as scenes of frames without ground truth."""

from conftest import tree

from pipeline.layouts import layout
from pipeline.layouts.rain14000 import Rain14000Scenes
from pipeline.layouts.spa import SPA, SPAScenes

PATCHES = [
    f"real_world/{v}/{v}-{f}/{v}-{f}_{place}.png" for v in ("000", "017") for f in (9, 10) for place in ("0_3", "1_0")
]


def rows(kind, root):
    return list(kind("set", root).rows())


def usable(found):
    return [(row.scene, row.group, row.frame, row.key) for row in found if row.reject_reason is None]


def rejected(found, root):
    return {row.path.relative_to(root).as_posix(): row.reject_reason for row in found if row.reject_reason is not None}


def test_the_places_of_spas_videos_are_scenes_of_their_frames_in_order(tmp_path):
    root = tree(tmp_path, *PATCHES, "real_world_gt/000/000_0_3.png", "real_test_1000/rain/000.png", "real_world.txt")
    found = rows(SPAScenes, root)
    assert usable(found) == [
        (video, f"{video}-{place}", number, f"{video}-{frame}-{place}")
        for video in ("000", "017")
        for place in ("0-3", "1-0")
        for number, frame in enumerate((9, 10))
    ]
    assert {(row.split, row.role) for row in found} == {("train", "frame")}
    assert rejected(found, root) == {}
    assert isinstance(layout("spa-scenes", "set", root), SPAScenes)


def test_spas_scenes_may_lie_in_the_folder_of_the_publisher(tmp_path):
    plain, training = tmp_path / "plain", tmp_path / "published"
    tree(plain, *PATCHES)
    tree(training, *(f"Training/{file}" for file in PATCHES))
    assert usable(rows(SPAScenes, plain)) == usable(rows(SPAScenes, training)) != []


def test_spas_scenes_need_no_clean_image_and_their_keys_are_those_of_the_pairs(tmp_path):
    root = tree(tmp_path, *PATCHES, "real_world_gt/000/000_0_3.png")
    pairs = {row.key: row.group for row in rows(SPA, root) if row.role == "lq"}
    scenes = {row.key: row.group for row in rows(SPAScenes, root)}
    assert scenes.items() >= {key: group for key, group in pairs.items() if key in scenes}.items()
    assert len(scenes) == 8


def test_spas_scenes_name_what_is_strange_or_alone(tmp_path):
    inside = "real_world/000/000-9/000-9_0_5.png/rain_s208_resize-14_0_3.png"  # a folder of this name is published
    strange = ["real_world/000/000-9/000-9_03.png", "real_world/000/000-9/001-9_0_4.png", "real_world/000/loose.png"]
    root = tree(tmp_path, *PATCHES, inside, *strange, "real_world/000/000-9/000-9_7_7.png", "real_world/loose.png")
    found = rows(SPAScenes, root)
    form = "its name is not of the form 000-{frame}_{x}_{y}"
    assert rejected(found, root) == {
        inside: "not directly in the folder of a frame",
        strange[0]: form,
        strange[1]: form,
        strange[2]: "not directly in the folder of a frame",
        "real_world/000/000-9/000-9_7_7.png": "the only usable frame of its scene; a pair needs two",
        "real_world/loose.png": "not in the folder of a video",
    }
    assert len(usable(found)) == 8


def test_spas_scenes_have_the_published_count_and_know_the_others(tmp_path):
    (count,) = SPAScenes("set", tmp_path).published()
    assert (count.split, count.role, count.number, set(count.causes)) == ("train", "frame", 638492, {638493, 638500})


def test_the_rainy_images_of_rain14000_are_the_frames_of_a_clean_one(tmp_path):
    names = [f"{image}_{rain}.jpg" for image in (10, 2) for rain in (14, 2, 1)]
    files = [
        f"{split}/{file}"
        for split in ("training", "testing")
        for file in (*[f"rainy_image/{n}" for n in names], "ground_truth/2.jpg")
    ]
    root = tree(tmp_path, *files, "training/rainy_image/3_1.jpg", "training/rainy_image/odd.jpg")
    found = rows(Rain14000Scenes, root)
    assert usable(found) == 2 * [
        (str(image), str(image), number, f"{image}-{rain}")
        for image in (2, 10)
        for number, rain in enumerate((1, 2, 14))
    ]
    assert [row.split for row in found if row.reject_reason is None] == ["train"] * 6 + ["test"] * 6
    assert rejected(found, root) == {
        "training/rainy_image/3_1.jpg": "the only usable frame of its scene; a pair needs two",
        "training/rainy_image/odd.jpg": "its name is not of the form {image}_{rain}",
    }
    assert [(each.split, each.role, each.number) for each in Rain14000Scenes.counts] == [
        ("train", "frame", 12600),
        ("test", "frame", 1400),
    ]
    # PReNet's folders
    other = tree(tmp_path / "other", *(f"Rain12600/rainy_image/{n}" for n in names))
    assert len(usable(rows(Rain14000Scenes, other))) == 6
