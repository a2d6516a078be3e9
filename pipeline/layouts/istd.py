from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Row, Split

CLEAN = {"istd": "{}_C", "istd+": "{}_C_fixed_official"}


class ISTD(Layout):
    """ISTD as published: [ISTD_Dataset/]{train,test}/{train,test}_{A,B,C}/<scene>-<n>.png, 640x480.

    Triples have the same name: A with the shadow (lq), B the shadow mask (mask), C without the shadow (gt).
    Variants: `istd`, and `istd+`, whose images without shadow have the colours of those with it and stand in
    {train,test}_C_fixed_official. Scores on the two are not comparable. The release of ISTD+ may lie in the folder of ISTD;
    only the targets of the variant are read. Counts are those of the papers.
    Sources: Wang et al., Stacked Conditional GANs for Jointly Learning Shadow Detection and Shadow Removal, CVPR 2018;
    Le and Samaras, Shadow Removal via Shadow Image Decomposition, ICCV 2019 (ISTD+).
    """

    name = "istd"
    home = "https://github.com/DeepInsight-PCALab/ST-CGAN; ISTD+: https://github.com/cvlab-stonybrook/SID"
    tree = "{train,test}/{train,test}_{A,B,C}/*.png; ISTD+: {train,test}_C_fixed_official in place of _C"
    variants = tuple(CLEAN)
    counts = (Count("train", "lq", 1330), Count("test", "lq", 540))

    def scan(self) -> Iterator[Row]:
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            folder = self.folder("ISTD_Dataset", "") / split
            shadow, mask = folder / f"{split}_A", folder / f"{split}_B"
            clean = folder / CLEAN[self.variant or "istd"].format(split)
            yield from self.matched(split, {"lq": shadow, "mask": mask, "gt": clean})
