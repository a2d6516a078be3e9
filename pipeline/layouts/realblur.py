from collections.abc import Iterator
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Row

FOLDERS = {  # "itensity" is how the publication spells it
    "J": "RealBlur-J_ECC_IMCORR_centroid_itensity_ref",
    "R": "RealBlur-R_BM3D_ECC_IMCORR_centroid_itensity_ref",
}


class RealBlur(Layout):
    """RealBlur: [RealBlur/]RealBlur-J_ECC_.../<scene>/{blur/blur_<n>,gt/gt_<n>}.png (R: RealBlur-R_BM3D_ECC_...).

    Variant J is made of the camera's JPEGs, R of its raw images; they are two data sets of the same scenes. The pairs and
    splits are those of the publication's RealBlur_{J,R}_{train,test}_list.txt beside the folders, a gt and an lq a line.
    Names would give the pairs, but not the split: without a list its images are rejects. The scene starts the key. A gt
    is aligned to its lq with an error that the published scores take out first (ECC). Counts are those of the lists.
    Source: Rim et al., Real-World Blur Dataset for Learning and Benchmarking Deblurring Algorithms, ECCV 2020.
    """

    name = "realblur"
    home = "https://github.com/rimchang/RealBlur"
    licence = "CC BY 4.0"
    tree = f"{{{','.join(FOLDERS.values())}}}/<scene>/{{blur,gt}}/*.png, RealBlur_{{J,R}}_{{train,test}}_list.txt"
    variants = ("J", "R")
    counts = (Count("train", "lq", 3758), Count("test", "lq", 980))

    def scan(self) -> Iterator[Row]:
        assert self.variant is not None
        root = self.folder("RealBlur", "")
        train, test = (root / f"RealBlur_{self.variant}_{split}_list.txt" for split in ("train", "test"))
        yield from self.listed_pairs(
            {"train": train, "test": test},
            ("gt", "lq"),
            [root / FOLDERS[self.variant]],
            key=lambda path: f"{scene_of(path)}-{path.stem.removeprefix('blur_').removeprefix('gt_')}",
            scene=scene_of,
            below=root,
        )


def scene_of(path: Path) -> str:
    """`scene001` of `scene001/gt/gt_1.png`."""
    return path.parent.parent.name
