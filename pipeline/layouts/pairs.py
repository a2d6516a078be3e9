from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import UserError
from pipeline.layouts.base import SPLITS, Layout, Role, Row
from pipeline.layouts.files import listed

# An error names these folders, and nothing is guessed: with the two swapped, a model would learn to degrade.
OTHER_NAMES: dict[Role, frozenset[str]] = {
    "lq": frozenset(
        {"lq", "input", "inputs", "lr", "low", "blur", "noisy", "rain", "rainy", "hazy", "source", "degraded"}
    ),
    "gt": frozenset(
        {"gt", "target", "targets", "groundtruth", "ground_truth", "hq", "hr", "high", "clean", "clear", "sharp"}
    ),
    "mask": frozenset({"mask", "masks"}),
}


class Pairs(Layout):
    """One's own pairs: {train,val,test}/{lq,gt[,mask]}/**/<name>.*, degraded image, clean image and, if wanted, its mask.

    Pairs have the same name, the suffix apart, and the same subfolders, which join the key: lq/cats/1.jpg and gt/cats/1.png
    are cats-1. Where a split has a folder mask, each of its pairs has one. Folders of other names are not guessed at: a
    common one, such as input, is an error that says how to rename it. What else lies in the root or in a split is a reject,
    text files (README.md, list.txt, ...) apart.
    """

    name = "pairs"
    tree = "{train,val,test}/{lq,gt[,mask]}/**/*.{png,jpg,...}"

    def scan(self) -> Iterator[Row]:
        splits = self.split_folders()
        yield from self.beside("train", "lq", self.root, SPLITS)
        for split in splits:
            folder = self.root / split
            for role in OTHER_NAMES:
                _named(folder, role)
            yield from self.beside(split, "lq", folder, tuple(OTHER_NAMES))
            places = {role: folder / role for role in OTHER_NAMES if role != "mask" or (folder / role).is_dir()}
            yield from self.matched(split, places, deep=True)


def _named(folder: Path, role: Role) -> None:
    """Raises UserError if the folder of a role stands there under another name only."""
    names = [entry.name for entry in listed(folder) if (folder / entry.name).is_dir()]
    other = [name for name in names if name.lower() in OTHER_NAMES[role]]
    if role not in names and other:
        raise UserError(
            f"{folder / other[0]}: a folder of this name is not guessed at; if it is the {role}, rename it {role!r}"
        )
