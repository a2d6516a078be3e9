from collections.abc import Iterator
from pathlib import Path

from pipeline.layouts.base import Count, Layout, Role, Row, Split

PAIRS = {  # variant: training and test pairs
    "H-old": (1800, 100),
    "L-old": (200, 100),
    "H-prenet": (1254, 100),
    "H-rcdnet": (1800, 100),
    "L-rcdnet": (200, 100),
    "H-new": (1800, 200),
    "L-new": (1800, 200),
}
CAUSES: dict[Split, dict[int, str]] = {
    "train": {
        1254: "546 pairs with the backgrounds of test images are left out: variant H-prenet",
        1800: "Rain100H as first released, 546 pairs with the backgrounds of test images, or a second release (Rain200)",
        200: "Rain100L as first released",
    },
    "test": {100: "the test set of the first release", 200: "the test set of the second release (Rain200)"},
}


class Rain100(Layout):
    """Rain100H and Rain100L, heavy and light rain, in the four forms they are passed on in; lq rainy, gt clean.

    `H-old`, `L-old`: RainTrainH/{rain,norain}-<n>.png in one folder, Rain100H/{[rainy/]rain,norain}-<n>.png; the number
    is the pair, and the layers rainstreak-<n>.png and rainregion-<n>.png beside them are passed by. `H-prenet`: the same
    names without the 546 training pairs that show backgrounds of test images; where their clean images were left in, they
    are rejects. `H-new`, `L-new` (also Rain200H and Rain200L): rain_data_{train,test}_{Heavy,Light}, or {train,test},
    each with rain/X2/norain-<n>x2.png, or without X2, and norain/norain-<n>.png; changed since, while
    most papers report on the old. `H-rcdnet`, `L-rcdnet`: the old images as {train,test}/{rain,norain}/<name>.png, in a folder
    `small` or not. Counts are of the publishers' readmes. Source: Yang et al., Deep Joint Rain Detection and Removal from
    a Single Image, CVPR 2017; Ren et al., Progressive Image Deraining Networks, CVPR 2019; Wang et al., A Model-driven
    Deep Neural Network for Single Image Rain Removal, CVPR 2020.
    """

    name = "rain100"
    tree = (
        "RainTrain{H,L}/{rain,norain}-*.png and Rain100{H,L}/{rainy/rain-*,norain-*}.png (old, prenet), "
        "rain_data_{train,test}_{Heavy,Light}/{rain/X2/norain-*x2,norain/norain-*}.png (new), "
        "{train,test}/{rain,norain}/*.png (rcdnet)"
    )
    variants = tuple(PAIRS)

    def published(self) -> tuple[Count, ...]:
        train, test = PAIRS[str(self.variant)]
        return Count("train", "lq", train, causes=CAUSES["train"]), Count("test", "lq", test, causes=CAUSES["test"])

    def scan(self) -> Iterator[Row]:
        letter, form = str(self.variant).split("-")
        splits: tuple[Split, ...] = ("train", "test")
        for split in splits:
            if form == "new":
                yield from self._second_release(split, "Heavy" if letter == "H" else "Light")
            elif form == "rcdnet":
                place = self.folder(f"{split}/small", split)
                yield from self.matched(split, {"lq": place / "rain", "gt": place / "norain"})
            else:
                yield from self._first_release(split, letter)

    def _first_release(self, split: Split, letter: str) -> Iterator[Row]:
        place = self.root / (f"RainTrain{letter}" if split == "train" else f"Rain100{letter}")
        rainy = place if split == "train" else [place / "rainy", place]
        rules: dict[Role, str] = {"lq": "rain-{n}", "gt": "norain-{n}"}
        for row in self.matched(split, {"lq": rainy, "gt": place}, rules=rules):
            if not row.path.name.startswith(("rainstreak-", "rainregion-")):
                yield row

    def _second_release(self, split: Split, rain: str) -> Iterator[Row]:
        place = self.folder(f"rain_data_{split}_{rain}", split)
        folders: dict[Role, Path | list[Path]] = {"lq": [place / "rain" / "X2", place / "rain"], "gt": place / "norain"}
        yield from self.matched(split, folders, rules={"lq": "norain-{n}x2", "gt": "norain-{n}"})
