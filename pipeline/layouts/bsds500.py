from collections.abc import Iterator

from pipeline.layouts.base import SPLITS, Count, Layout, Row


class BSDS500(Layout):
    """Berkeley segmentation data set: [BSDS500/]data/images/{train,val,test}/<number>.jpg, role gt, 481x321 or 321x481.

    The restoration papers' BSD100 is its val, their BSD400 its train and test. The segmentations are not read.
    Source: Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, TPAMI 2011.
    """

    name = "bsds500"
    home = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html"
    licence = "non-commercial research and education (Berkeley)"
    tree = "data/images/{train,val,test}/*.jpg"
    counts = (Count("train", "gt", 200), Count("val", "gt", 100), Count("test", "gt", 200))

    def scan(self) -> Iterator[Row]:
        inner = self.root / "BSDS500"
        images = (inner if inner.is_dir() else self.root) / "data" / "images"
        for split in SPLITS:
            yield from self.images(split, "gt", images / split)
