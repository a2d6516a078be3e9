from collections.abc import Iterator
from dataclasses import replace

from pipeline.layouts.base import Count, Layout, Row

TEST_SETS = {"Test100": 98, "Rain100H": 100, "Rain100L": 100, "Test2800": 2800, "Test1200": 1200}
SECOND_RELEASE = {200: "the second release of this set has 200 test pairs, and the papers use the first"}
CAUSES = {
    "Test100": {100: "the papers count 100; the archives hold 98"},
    "Rain100H": SECOND_RELEASE,
    "Rain100L": SECOND_RELEASE,
    "Test2800": {1400: "the test set of Rain14000 has 1,400, and is no part of these archives"},
}
COPY = "926_10(1)"


class Rain13K(Layout):
    """Rain13K with its five test sets: train/Rain13K/{input,target}/*.jpg, test/<set>/{input,target}/*.

    Pairs have the same name; lq is the rainy image, gt the clean one. The subset (`Rain13K`, `Rain100H`, ...) is the
    row's scene and starts its key. Counts are those of the files as distributed; the papers say 13,712 training pairs
    and 100 pairs in Test100. Early archives of Test2800 hold 926_10 a second time, as `926_10(1).jpg`: a reject. Some
    backgrounds of the training pairs are those of test images of Rain100H. Source: Jiang et al., Multi-Scale Progressive
    Fusion Network, CVPR 2020, as repackaged by Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021.
    """

    name = "rain13k"
    home = "https://github.com/swz30/MPRNet"
    tree = f"train/Rain13K/{{input,target}}/*, test/{{{','.join(TEST_SETS)}}}/{{input,target}}/*"
    counts = (
        Count("train", "lq", 13711, causes={13712: "the papers count 13,712; the archives hold 13,711"}),
        *(Count("test", "lq", number, name, CAUSES.get(name, {})) for name, number in TEST_SETS.items()),
    )

    def scan(self) -> Iterator[Row]:
        train = self.root / "train" / "Rain13K"
        yield from self.matched("train", {"lq": train / "input", "gt": train / "target"}, subset="Rain13K")
        for subset in TEST_SETS:
            test = self.root / "test" / subset
            for row in self.matched("test", {"lq": test / "input", "gt": test / "target"}, subset=subset):
                copy = subset == "Test2800" and row.path.stem == COPY
                yield replace(row, reject_reason="a copy of 926_10 by mistake; delete it") if copy else row
