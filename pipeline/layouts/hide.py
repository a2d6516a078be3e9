from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Row, Split
from pipeline.layouts.files import files_under, unusable


class HIDE(Layout):
    """HIDE: [HIDE_dataset/]{train,test/test-close-ups,test/test-long-shot}/<name>.png, sharp ones in GT/<name>.png.

    Pairs have the same name, in which there may be dots (`1fromGOPR1096.MP4`); lq is the blurred image, gt the one in GT,
    which all splits share. The subset of a test image is its scene and starts its key. Where one of the three folders
    was not unpacked, its images in GT are passed by. The text files are not read. Counts are those of the paper, not
    of files. Source: Shen et al., Human-Aware Motion Deblurring, ICCV 2019.
    """

    name = "hide"
    home = "https://github.com/joanshen0508/HA_deblur"
    tree = "train/*.png, test/{test-close-ups,test-long-shot}/*.png, GT/*.png"
    counts = (Count("train", "lq", 6397), Count("test", "lq", 2025))

    def scan(self) -> Iterator[Row]:
        root = self.folder("HIDE_dataset", "")
        subsets: list[tuple[Split, str | None]] = [
            ("train", None),
            ("test", "test-close-ups"),
            ("test", "test-long-shot"),
        ]
        folders = [root / split / (subset or "") for split, subset in subsets]
        blurred: set[str] = set()
        for (split, subset), folder in zip(subsets, folders, strict=True):
            names = {path.stem for path in files_under(folder)}
            blurred |= names
            for row in self.matched(split, {"lq": folder, "gt": root / "GT"}, subset):
                if row.role == "lq" or row.path.stem in names:
                    yield row
        for path in files_under(root / "GT"):
            if path.stem not in blurred and all(folder.is_dir() for folder in folders):
                reason = unusable(path) or "no blurred image of its name in train, test-close-ups or test-long-shot"
                yield self.reject("test", "gt", path, reason)
        yield from self.loose("test", "lq", root / "test", "not in the folder test-close-ups or test-long-shot")
