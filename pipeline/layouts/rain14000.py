from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Role, Row, Split
from pipeline.layouts.files import natural, safe_key
from pipeline.layouts.scenes import numbered

FOLDERS: dict[Split, tuple[str, str]] = {"train": ("training", "Rain12600"), "test": ("testing", "Rain1400")}


class Rain14000(Layout):
    """DDN's set (Rain14000, Rain1400): {training,testing}/{rainy_image/<image>_<rain>.jpg,ground_truth/<image>.jpg}.

    14 rainy images (lq) to one clean (gt), which are one group: what stands before the first `_` is the clean image's
    name. PReNet passes the two splits on as Rain12600 and Rain1400, which is taken as well. Counts are of the release, 900
    and 100 clean images; the paper itself splits the rainy images at random, 9,100 to 4,900, so that its training and test
    images share backgrounds. Source: Fu et al., Removing Rain from Single Images via a Deep Detail Network, CVPR 2017.
    """

    name = "rain14000"
    home = "https://xueyangfu.github.io/projects/cvpr2017.html"
    tree = "{training,testing}/{rainy_image/<image>_<rain>.jpg,ground_truth/<image>.jpg}"
    counts = (
        Count("train", "lq", 12600, causes={9100: "the paper's random split, whose test images share its backgrounds"}),
        Count("train", "gt", 900),
        Count(
            "test", "lq", 1400, causes={4900: "the paper's random split, whose training images share its backgrounds"}
        ),
        Count("test", "gt", 100),
    )

    def scan(self) -> Iterator[Row]:
        for split, names in FOLDERS.items():
            place = self.folder(*names)
            folders: dict[Role, Path] = {"lq": place / "rainy_image", "gt": place / "ground_truth"}
            yield from self.matched(split, folders, rules={"lq": "{image}_{rain}", "gt": "{image}"})


class Rain14000Scenes(Layout):
    """DDN's set as scenes without clean images: {training,testing}/rainy_image/<image>_<rain>.jpg, role frame.

    The 14 rainy images that were rendered of one clean one are the frames of a scene, in the order of their numbers. The
    clean images are not read. Folders and counts as of `rain14000`. The release of time-lapse deraining has a loader that
    learns from them so. Source: Fu et al., Removing Rain from Single Images via a Deep Detail Network, CVPR 2017.
    """

    name = "rain14000-scenes"
    home = Rain14000.home
    tree = "{training,testing}/rainy_image/<image>_<rain>.jpg"
    counts = (Count("train", "frame", 12600), Count("test", "frame", 1400))

    def scan(self) -> Iterator[Row]:
        for split, names in FOLDERS.items():
            scenes = defaultdict(list)
            folder = self.folder(*names) / "rainy_image"
            for row in self.matched(split, {"frame": folder}, rules={"frame": "{image}_{rain}"}):
                if row.reject_reason is not None:
                    yield row
                else:
                    scenes[row.path.stem.partition("_")[0]].append(row)
            for image in sorted(scenes, key=natural):
                rows = [replace(row, scene=safe_key(image), group=safe_key(image)) for row in scenes[image]]
                yield from numbered(sorted(rows, key=lambda row: natural(row.path.stem)))
