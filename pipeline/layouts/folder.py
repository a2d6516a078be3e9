import logging
from collections.abc import Iterator

from pipeline.layouts.base import Layout, Row, Split
from pipeline.layouts.files import SIDE_FILES, files_under, safe_key, unusable

log = logging.getLogger(__name__)


class Folder(Layout):
    """Clean photographs: {train,val,test}/**/<image>, role gt. Subfolders join the key: train/cats/1.png is cats-1.

    Without any of the three split folders, every image below the root is training data, and a warning says so.
    With them, a file beside them is a reject. Text files directly in the root (README.md, list.txt, ...) are passed by.
    """

    name = "folder"
    tree = "{train,val,test}/**/*.{png,jpg,...}, or images only"

    def scan(self) -> Iterator[Row]:
        splits: dict[str, Split] = {split: split for split in self.split_folders()}
        if not splits:
            log.warning("%s: no folder train, val or test in it; all its images are training data", self.root)
        for path in files_under(self.root):
            parts = path.relative_to(self.root).parts
            if len(parts) == 1 and path.suffix.lower() in SIDE_FILES:
                continue
            split, reason = splits.get(parts[0], "train"), unusable(path)
            if splits and parts[0] not in splits:
                reason = "not in train, val or test; move it into one of them"
            if reason:
                yield self.reject(split, "gt", path, reason)
            else:
                folders = parts[1:-1] if splits else parts[:-1]
                yield self.row(split, "gt", path, safe_key("-".join((*folders, path.stem))))
