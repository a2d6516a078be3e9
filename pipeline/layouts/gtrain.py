from collections.abc import Iterator

from pipeline.layouts.base import SPLITS, Count, Layout, Role, Row
from pipeline.layouts.files import subfolders

PAIRED_SCENE = "Gurutto_1-2"  # in which the background moves


class GTRain(Layout):
    """GT-RAIN, real rain: GT-RAIN_{train,val,test}/<scene>/{<name>-R-<frame>,<name>-C-000}.png.

    The rainy frames of a scene (lq) share one clean frame (gt) and are one group; in Gurutto_1-2 each has a clean frame
    of its own, <name>-C-<frame>. The scene is in the scene column and starts the key. Folders named {train,val,test} are
    taken as well. Counts are of the paper, 31,524 pairs of 101 scenes. Source: Ba et al., Not Just Streaks: Towards Ground
    Truth for Single Image Deraining, ECCV 2022.
    """

    name = "gtrain"
    home = "https://github.com/UCLA-VMG/GT-RAIN"
    tree = "GT-RAIN_{train,val,test}/<scene>/*-{R,C}-*.png"
    counts = (Count("train", "lq", 26124), Count("val", "lq", 3300), Count("test", "lq", 2100))

    def scan(self) -> Iterator[Row]:
        for split in SPLITS:
            folder = self.folder(f"GT-RAIN_{split}", split)
            yield from self.loose(split, "lq", folder, "not in the folder of a scene")
            for scene in subfolders(folder):
                clean = "{name}-C-{frame}" if scene.name == PAIRED_SCENE else "{name}-C-000"
                rules: dict[Role, str] = {"lq": "{name}-R-{frame}", "gt": clean}
                yield from self.matched(split, {"lq": scene, "gt": scene}, scene.name, rules)
