from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Role, Row, reject_same_key
from pipeline.layouts.files import Rule, files_under, natural, safe_key, subfolders, unusable
from pipeline.layouts.scenes import numbered

PATCHES: Mapping[int, str] = {
    638493: "the number of lines in real_world.txt; readmes say 638,492",
    638500: "all images, some of which real_world.txt does not name",
}


class SPA(Layout):
    """SPA-Data, real rain: real_world/000/000-<f>/000-<f>_<x>_<y>.png with real_world_gt/000/000_<x>_<y>.png, and a test set.

    Training images are patches: the place x, y of all frames f of one scene (lq) has one clean patch (gt), and they are
    one group. Where there is the list real_world.txt, with `<rainy> <clean>` on a line, it says what is a pair; mirrors
    have lost it, and then the names do. Test pairs are real_test_1000/{rain/000,gt/000gt}.png. Both may lie in folders
    Training and Testing, as published. The scene is in the scene column. Trap: of scene 274 some listed names are folders
    that hold an image of another name, which is a reject. Counts: 638,492 is in public readmes, and users count 638,493
    lines in the list and 638,500 images. Images without a clean one (Real_Internet) are not read. Source: Wang et al.,
    Spatial Attentive Single-Image Deraining with a High Quality Real Rain Dataset, CVPR 2019.
    """

    name = "spa"
    home = "https://github.com/stevewongv/SPANet"
    tree = "real_world/*/*/*.png, real_world_gt/*/*.png, real_world.txt, real_test_1000/{rain/*.png,gt/*gt.png}"
    counts = (
        Count("train", "lq", 638492, causes=PATCHES),
        Count("test", "lq", 1000),
    )

    def scan(self) -> Iterator[Row]:
        training = self.folder("Training", "")
        rainy, clean, pairs = (training / name for name in ("real_world", "real_world_gt", "real_world.txt"))
        if pairs.is_file():
            yield from self.listed_pairs(
                {"train": pairs},
                ("lq", "gt"),
                [rainy, clean],
                key=lambda path: path.stem.replace("_", "-"),  # the key that the names alone would give
                scene=lambda path: path.relative_to(training).parts[1],
                below=training,
            )
        else:
            yield from self._by_name(rainy, clean)
        test = self.folder("Testing/real_test_1000", "real_test_1000")
        rules: dict[Role, str] = {"lq": "{n}", "gt": "{n}gt"}
        yield from self.matched("test", {"lq": test / "rain", "gt": test / "gt"}, rules=rules)

    def _by_name(self, rainy: Path, clean: Path) -> Iterator[Row]:
        yield from self.loose("train", "lq", rainy, "not in the folder of a scene")
        yield from self.loose("train", "gt", clean, "not in the folder of a scene")
        for scene in sorted({each.name for folder in (rainy, clean) for each in subfolders(folder)}):
            frames = sorted({path.parent for path in files_under(rainy / scene)}) or [rainy / scene]
            rules: dict[Role, str] = {"lq": f"{scene}-{{frame}}_{{x}}_{{y}}", "gt": f"{scene}_{{x}}_{{y}}"}
            yield from self.matched("train", {"lq": frames, "gt": clean / scene}, scene, rules)


class SPAScenes(Layout):
    """SPA-Data's training set as scenes without clean images: real_world/000/000-<f>/000-<f>_<x>_<y>.png, role frame.

    Which time-lapse deraining learns from: what the videos' cameras saw of the place x, y is one scene, its frames in the
    order of f. The scene column names the video. The clean images, the list of pairs and the test set are not read, and an
    image without a clean one is as good as another. Both may lie in the folder Training, as published. The paper's 170
    scenes are videos: `scenes: 170` in a task takes one place of each. Source: as of `spa`.
    """

    name = "spa-scenes"
    home = SPA.home
    tree = "real_world/<video>/<video>-<frame>/<video>-<frame>_<x>_<y>.png"
    counts = (Count("train", "frame", 638492, causes=PATCHES),)

    def scan(self) -> Iterator[Row]:
        rainy = self.folder("Training", "") / "real_world"
        yield from self.loose("train", "frame", rainy, "not in the folder of a video")
        for video in subfolders(rainy):
            rule = Rule(f"{video.name}-{{frame}}_{{x}}_{{y}}")
            rows, orders = [], {}
            for path in files_under(video):
                flat = len(path.relative_to(video).parts) == 2
                reason = unusable(path) if flat else "not directly in the folder of a frame"
                found = rule.parse(path.stem)
                if reason is None and found is None:
                    reason = f"its name is not of the form {rule.pattern}"
                if reason is not None or found is None:
                    yield self.reject("train", "frame", path, reason or "")
                    continue
                key, place = path.stem.replace("_", "-"), f"{video.name}-{found['x']}-{found['y']}"  # as in `spa`
                row = self.row("train", "frame", path, safe_key(key), safe_key(video.name))
                rows.append(replace(row, group=safe_key(place)))
                orders[path] = natural(found["frame"])
            scenes = defaultdict(list)
            for row in reject_same_key(rows, self.root):
                scenes[row.group].append(row)
            for place in sorted(scenes, key=natural):
                yield from numbered(sorted(scenes[place], key=lambda row: orders[row.path]))
