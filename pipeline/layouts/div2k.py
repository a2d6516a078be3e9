from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Row


class DIV2K(Layout):
    """DIV2K: [DIV2K/]DIV2K_train_HR/{0001..0800}.png and DIV2K_valid_HR/{0801..0900}.png, role gt, splits train and val.

    The LR folders (DIV2K_{train,valid}_LR_*) are passed by: low-resolution images are made from these, as MATLAB makes
    them. Source: Agustsson and Timofte, NTIRE 2017 Challenge on Single Image Super-Resolution, CVPR Workshops 2017.
    """

    name = "div2k"
    home = "https://data.vision.ee.ethz.ch/cvl/DIV2K"
    licence = "academic research only; the copyright is the photographers'"
    tree = "{DIV2K_train_HR,DIV2K_valid_HR}/*.png"
    counts = (
        Count("train", "gt", 800, causes={900: "the 100 validation images are among the training images"}),
        Count("val", "gt", 100),
    )

    def scan(self) -> Iterator[Row]:
        root = self.folder("DIV2K", "")
        yield from self.images("train", "gt", root / "DIV2K_train_HR")
        yield from self.images("val", "gt", root / "DIV2K_valid_HR")


class Flickr2K(Layout):
    """Flickr2K: [Flickr2K/]Flickr2K_HR/{000001..002650}.png, role gt, split train. Flickr2K_LR_* is passed by.

    Source: Timofte et al., NTIRE 2017 Challenge on Single Image Super-Resolution: Methods and Results, CVPR Workshops 2017.
    """

    name = "flickr2k"
    tree = "Flickr2K_HR/{000001..002650}.png"
    counts = (Count("train", "gt", 2650),)

    def scan(self) -> Iterator[Row]:
        yield from self.images("train", "gt", self.folder("Flickr2K", "") / "Flickr2K_HR")
