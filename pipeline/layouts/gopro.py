from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Row, Split
from pipeline.layouts.files import subfolders


class GoPro(Layout):
    """GOPRO_Large: [GOPRO_Large/]{train,test}/<sequence>/{blur,blur_gamma,sharp}/<frame>.png, 1280x720.

    Pairs have the same sequence and frame; gt is sharp, lq is the folder that the variant names: blur is the mean of the
    sharp frames as they are (in most papers), blur_gamma their mean in linear light (what the authors train on). Scores
    on the two cannot be compared. The sequence is the row's scene and starts its key. GOPRO_Large_all, which has sharp
    frames only, is another release. Counts are those of the file lists. Source: Nah et al., Deep Multi-scale
    Convolutional Neural Network for Dynamic Scene Deblurring, CVPR 2017.
    """

    name = "gopro"
    home = "https://seungjunnah.github.io/Datasets/gopro"
    licence = "CC BY 4.0"
    tree = "{train,test}/<sequence>/{blur,blur_gamma,sharp}/*.png"
    variants = ("blur", "blur_gamma")
    counts = (Count("train", "lq", 2103), Count("test", "lq", 1111))

    def scan(self) -> Iterator[Row]:
        assert self.variant is not None
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            sequences = self.folder("GOPRO_Large", "") / split
            for folder in (sequences, *subfolders(sequences)):
                yield from self.loose(split, "lq", folder, "not in the folder blur, blur_gamma or sharp of a sequence")
            for folder in subfolders(sequences):
                yield from self.matched(split, {"lq": folder / self.variant, "gt": folder / "sharp"}, folder.name)
