from collections.abc import Iterator, Mapping
from typing import ClassVar

from pipeline.layouts.base import Layout, Row

TEST_SETS = {"Test100": 98, "Rain100H": 100, "Rain100L": 100, "Test2800": 2800, "Test1200": 1200}


class Rain13K(Layout):
    """Rain13K with its five test sets: train/Rain13K/{input,target}/*.jpg, test/<set>/{input,target}/*.

    Pairs have the same name; lq is the rainy image, gt the clean one. The subset (`Rain13K`, `Rain100H`, ...) is the
    row's scene and starts its key. Counts are those of the files as distributed; the papers say 13,712 training pairs
    and 100 pairs in Test100. Source: Jiang et al., Multi-Scale Progressive Fusion Network, CVPR 2020, as repackaged by
    Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021.
    """

    name = "rain13k"
    tree = f"train/Rain13K/{{input,target}}/*, test/{{{','.join(TEST_SETS)}}}/{{input,target}}/*"
    counts: ClassVar[Mapping[str, int]] = {"train": 13711, "test": sum(TEST_SETS.values())}

    def scan(self) -> Iterator[Row]:
        train = self.root / "train" / "Rain13K"
        yield from self.matched("train", {"lq": train / "input", "gt": train / "target"}, subset="Rain13K")
        for subset in TEST_SETS:
            test = self.root / "test" / subset
            yield from self.matched("test", {"lq": test / "input", "gt": test / "target"}, subset=subset)
