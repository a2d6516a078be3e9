from collections.abc import Iterator
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Role, Row, Split

OTHER_RELEASE = "the masks of DHAN were made for another release of the test set, of other images: 15 pairs have none"


class SRD(Layout):
    """SRD: [SRD/]{Train,Test}/{shadow,shadow_free}/*.jpg, 840x640 and some larger.

    A pair is shadow/<name> (lq) and shadow_free/<name>_no_shadow (gt) in Train, shadow_free/<name>_free in Test.
    SRD has no masks; those that the authors of DHAN detected are used where they are: {trainmask,testmask}/<name>.jpg beside
    Train and Test. A pair without its mask is then a reject, and so is a mask without a pair; take the folder of masks away
    to have all pairs. Two releases of the test set are in use, both of 408 pairs and of the same names for the most part.
    Counts are those of the paper. Unsure: the folders of the masks, which their archive does not say.
    Sources: Qu et al., DeshadowNet, CVPR 2017; Cun et al., Towards Ghost-free Shadow Removal, AAAI 2020 (masks).
    """

    name = "srd"
    tree = "{Train,Test}/{shadow,shadow_free}/*.jpg, and masks, if any, in {trainmask,testmask}/*.jpg"
    counts = (Count("train", "lq", 2680), Count("test", "lq", 408, causes={393: OTHER_RELEASE}))

    def scan(self) -> Iterator[Row]:
        releases: tuple[tuple[Split, str, str], ...] = (("train", "Train", "no_shadow"), ("test", "Test", "free"))
        for split, folder, suffix in releases:
            pictures = self.folder("SRD", "") / folder
            masks = self.folder("SRD", "") / f"{split}mask"
            places: dict[Role, Path] = {"lq": pictures / "shadow", "gt": pictures / "shadow_free"}
            if masks.is_dir():
                places["mask"] = masks
            yield from self.matched(split, places, rules={"gt": f"{{name}}_{suffix}"})
