"""Several degradations one after another, with parameters drawn at random, as they happen to photographs in practice."""

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.degradations.base import Degradation
from pipeline.degradations.chain.steps import AnyStep, Filter, resized, through
from pipeline.degradations.orientation import Turns, fewest
from pipeline.depth import Bits, unit
from pipeline.keyed import philox


class Chain(Degradation):
    """Degradations in order, each with fixed or drawn parameters; stored, or drawn anew for each patch in each epoch.

    Between two steps, and after the last, the image is rounded and clipped to its levels, as files are. Draws depend on
    the seed and the image's key and level where they are stored, and on the loader's seed, the epoch and the sample where
    they are drawn online, and on nothing else. The pixels are the same for any number of workers, ranks and threads; on
    machines of another make OpenCV may round a filter, or a bicubic or area resize, otherwise, by one level.
    """

    kind: Literal["chain"]
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=100, description="in order")]
    filter: Filter = Field("bicubic", description="by which an image that a step kept small comes back in the end")
    drawn: Literal["online", "stored"] = Field("stored", description="by the loader for each patch, or by the build")
    versions: int = Field(1, ge=1, le=1000, description="of each image that are stored")
    seed: int = Field(0, description="of stored draws")

    level_text: ClassVar[str] = "version {}"
    restores: ClassVar[str] = "Images after several degradations, one after another, of which the strengths are drawn"

    @model_validator(mode="after")
    def _online_has_no_versions(self) -> "Chain":
        if self.drawn == "online" and (self.versions, self.seed) != (1, 0):
            raise ValueError("a chain drawn online is another one in each epoch: leave out versions and seed")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """The versions, from 0 on."""
        return tuple(range(self.versions))

    @property
    def drawn_by(self) -> Literal["build", "threads", "device"]:
        """As Degradation.drawn_by."""
        return "threads" if self.drawn == "online" else "build"

    @property
    def turns(self) -> Turns:
        """As Degradation.turns; what is drawn for a view is what was drawn for the image as it is."""
        return fewest(step.turns for step in self.steps)

    @property
    def deepest(self) -> Bits:
        """As Degradation.deepest."""
        return min(step.deepest for step in self.steps)

    def said(self) -> dict[str, list[str]]:
        """As Degradation.said."""
        return {"in this order:": [step.said() for step in self.steps]}

    def degraded(self, image: np.ndarray, key: tuple[int | str, ...]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The image, uint8 or uint16 (H, W, C), after all steps, in its size; and what was drawn for the steps that happened.

        Raises UnusableImageError for a side that JPEG cannot hold.
        """
        size = (image.shape[0], image.shape[1])
        image, happened = through(self.steps, image, size, philox(*key))
        return resized(image, size, self.filter), happened

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """As Degradation.made."""
        return f"lq-v{level}", *self.degraded(image, (self.seed, "chain", key, level))

    def whole(self, image: np.ndarray, level: int, key: str, seed: int) -> np.ndarray:
        """As Degradation.whole."""
        return unit(self.degraded(image, (seed, "validation", key, level))[0])

    def patches(
        self, gt: np.ndarray, level: np.ndarray, sample: np.ndarray, seed: int, epoch: int, out: np.ndarray
    ) -> None:
        """As Degradation.patches."""
        for i, number in enumerate(sample.tolist()):
            out[i] = self.degraded(gt[i], (seed, "chain", epoch, number))[0]
