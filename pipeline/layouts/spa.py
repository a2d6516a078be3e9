from collections.abc import Iterator
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Role, Row
from pipeline.layouts.files import files_under, subfolders


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
        Count(
            "train",
            "lq",
            638492,
            causes={
                638493: "the number of lines in real_world.txt; readmes say 638,492",
                638500: "all images, some of which real_world.txt does not name",
            },
        ),
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
