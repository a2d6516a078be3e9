from collections.abc import Iterator

from pipeline.layouts.base import Count, Layout, Role, Row


class Raindrop(Layout):
    """Raindrop (DeRaindrop, AGAN): {train,test_a,test_b}/{data/<n>_rain,gt/<n>_clean}.png, pairs by number.

    lq is the view through drops on glass, gt the clear one. test_a, well aligned, is a part of test_b, so the variant says
    which of them is the test split, and the other is not read. Papers mostly report test_a. Counts are of the archives as
    users count them: of test_b the readme says 239. Source: Qian et al., Attentive Generative Adversarial Network for
    Raindrop Removal from a Single Image, CVPR 2018.
    """

    name = "raindrop"
    home = "https://github.com/rui1996/DeRaindrop"
    tree = "{train,test_a,test_b}/{data/*_rain.png,gt/*_clean.png}"
    variants = ("test_a", "test_b")

    def published(self) -> tuple[Count, ...]:
        train = Count("train", "lq", 861)
        if self.variant == "test_a":
            return train, Count("test", "lq", 58)
        return train, Count("test", "lq", 249, causes={239: "the number in the readme; the archive holds 249"})

    def scan(self) -> Iterator[Row]:
        train, test = self.root / "train", self.root / str(self.variant)
        rules: dict[Role, str] = {"lq": "{n}_rain", "gt": "{n}_clean"}
        yield from self.matched("train", {"lq": train / "data", "gt": train / "gt"}, rules=rules)
        yield from self.matched("test", {"lq": test / "data", "gt": test / "gt"}, rules=rules)
