from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Row

DENSITIES = ("Rain_Heavy", "Rain_Medium", "Rain_Light")


class Rain12000(Layout):
    """DID-MDN's set (Rain12000, Rain1200): <n>.jpg in [DID-MDN-training/]Rain_{Heavy,Medium,Light}/train2018new, DID-MDN-test.

    Each file holds a pair side by side: the left half is the rainy image (lq), the right half the clean one (gt), as its
    authors' loader and training take them. A training pair's density is its scene and starts its key. Loaders of others
    take the same number in the three densities for the same photograph. Counts are of the paper; the authors' second test
    set (1,000 pairs of Rain14000) is not read. Source: Zhang and Patel, Density-aware Single Image De-raining using a
    Multi-stream Dense Network, CVPR 2018.
    """

    name = "rain12000"
    home = "https://github.com/hezhangsprinter/DID-MDN"
    tree = f"DID-MDN-training/{{{','.join(DENSITIES)}}}/train2018new/*.jpg, DID-MDN-test/*.jpg"
    counts = (*(Count("train", "lq", 4000, density) for density in DENSITIES), Count("test", "lq", 1200))

    def scan(self) -> Iterator[Row]:
        training = self.folder("DID-MDN-training", "")
        for density in DENSITIES:
            folder = training / density / "train2018new"
            yield from self.halves("train", folder, left="lq", right="gt", subset=density)
        yield from self.halves("test", self.root / "DID-MDN-test", left="lq", right="gt")
