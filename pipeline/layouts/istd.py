from collections.abc import Iterator, Mapping
from typing import ClassVar

from pipeline.layouts.base import Layout, Row, Split


class ISTD(Layout):
    """ISTD as published: {train,test}/{train,test}_{A,B,C}/<scene>-<n>.png, 640x480.

    Triples have the same name: A with the shadow (lq), B the shadow mask (mask), C without the shadow (gt).
    Source: Wang et al., Stacked Conditional GANs for Jointly Learning Shadow Detection and Shadow Removal, CVPR 2018.
    """

    name = "istd"
    tree = "{train,test}/{train,test}_{A,B,C}/*.png"
    counts: ClassVar[Mapping[str, int]] = {"train": 1330, "test": 540}

    def scan(self) -> Iterator[Row]:
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            shadow, mask, clean = (self.root / split / f"{split}_{letter}" for letter in "ABC")
            yield from self.matched(split, {"lq": shadow, "mask": mask, "gt": clean})
