"""What a kind of degradation tells those who plan, build, load, look at, score and publish: they ask it, and know no kind."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator

from pipeline.config import Frozen
from pipeline.depth import Bits

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor  # takes seconds, and whoever only reads a task does without

# What the recipes of shards of clean images say of their degradation, whichever kind the loader draws: the shards of one
# are those of another.
CLEAN = {"kind": "noise"}


def _distinct(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("a level is given twice")
    return levels


Distinct = AfterValidator(_distinct)


class Plane(NamedTuple):
    """An array of a sample. pixels: (H, W, C) of the task's bits. columns: level and parameters, as in the index."""

    name: str
    role: str
    pixels: np.ndarray
    columns: dict[str, Any]


class Degradation(Frozen):
    """The options of one kind, and what follows from them.

    What stands here is true of a kind that makes its inputs of clean images, one by one.

    roles: of the images in the manifest that it reads, in the order of a group's members. grouped: whether several images
    are a sample, by their `group`. images: what a message calls them. level_text: how a level is written. restores: what
    the card of a model says that it is for.
    """

    kind: str
    roles: ClassVar[tuple[str, ...]] = ("gt",)
    grouped: ClassVar[bool] = False
    images: ClassVar[str] = "images"
    level_text: ClassVar[str] = "{}"
    restores: ClassVar[str] = "Images degraded as the inputs of its training data are"

    def found(self, here: "Path") -> "Degradation":
        """The same, ready to build. here: the folder in which code of the user's own is looked for."""
        return self

    # what it is

    @property
    def levels(self) -> tuple[int, ...]:
        """The strengths at which each clean image is degraded; none where the inputs are published ones."""
        return ()

    @property
    def drawn_by(self) -> Literal["build", "threads", "device"]:
        """Who makes the inputs: the build, which stores them; or the loader, of each patch anew in each epoch, in its
        threads or on the device.
        """
        return "build"

    @property
    def online(self) -> bool:
        """Whether the loader makes the inputs, from shards of clean images."""
        return self.drawn_by != "build"

    @property
    def stored_levels(self) -> tuple[int, ...]:
        """The levels that a build makes of each clean image."""
        return () if self.online else self.levels

    @property
    def deepest(self) -> Bits:
        """The most bits a channel that it can be applied to."""
        return 16

    @property
    def of_frames(self) -> bool:
        """Whether samples are pairs of frames, which have no targets, and stand in pairs.parquet."""
        return False

    @property
    def side(self) -> int | None:
        """Of the squares, in pixels, that images are resized to; None: as they are."""
        return None

    @property
    def factors(self) -> tuple[int, ...]:
        """By which an image has to be enlarged before a model restores it."""
        return ()

    def said(self) -> dict[str, list[str]]:
        """The options as a card lists them; those that nobody gave may be missing."""
        options = self.model_dump(mode="json", exclude_unset=True, exclude={"kind", "seed"})
        return {
            key: [str(each) for each in (value if isinstance(value, list) else [value])]
            for key, value in options.items()
            if value not in (None, False)
        }

    # the plan

    def lost(self, manifest: "pa.Table", rows: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """Which images of one source are not used: bool, (n,). deep: those of more bits than the task has."""
        return deep

    def names(self, manifest: "pa.Table", rows: np.ndarray, first: np.ndarray) -> list[str] | None:
        """The members that images become, as in pipeline.shards.plan.File; None: all are gt.

        rows: in the order of the shards. first: where groups begin in them. Raises UserError for a group that lacks one.
        """
        return None

    def pixels(self, width: np.ndarray, height: np.ndarray, first: np.ndarray) -> np.ndarray:
        """How many each image puts into its shard, int64 (n,); without negatives, which are the same planned and stored.

        first: as `names` takes it.
        """
        area = width * height if self.side is None else np.full_like(width, self.side**2)
        return area * (1 + len(self.stored_levels))

    def stored(self) -> dict[str, Any] | None:
        """What of the options the bytes of a shard depend on."""
        return CLEAN if self.online else self.model_dump(mode="json")

    # the build

    def opened(self, image: np.ndarray) -> np.ndarray:
        """A decoded image as it goes on, before its planes are taken. image: uint8 or uint16, (H, W, C)."""
        return image

    def planes(self, name: str, image: np.ndarray, key: str, before: Sequence[Plane]) -> Iterator[Plane]:
        """The planes that one image of a sample becomes.

        name: of its member. image: the task's planes of it. key: of the sample. before: the planes that the sample has by
        then. Raises UnusableImageError for an image that it does not take.
        """
        role, _, number = name.partition("-")
        yield Plane(name, role, image, {"level": int(number)} if number else {})
        for level in self.stored_levels if role == "gt" else ():
            member, lq, parameters = self.made(image, level, key)
            yield Plane(member, "lq", lq, {"level": level, "parameters": json.dumps(parameters)})

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """The input at one of the stored levels: the name of its member, its pixels and the parameters for the index."""
        raise NotImplementedError(f"{self.kind} makes no inputs")

    def sample(self, planes: list[Plane]) -> list[Plane]:
        """All planes of a sample. planes: of its images."""
        return planes

    def inputs(self, names: Sequence[str]) -> list[int]:
        """The levels of the degraded images that one sample has. names: of its members."""
        return list(self.levels)

    def pairs(self, key: str, names: Sequence[str], contents: Sequence[str]) -> Iterator[tuple[int, int]]:
        """The pairs of frames of a scene, by their numbers. names, contents: of the members, and their sha256."""
        yield from ()

    # evaluation

    @staticmethod
    def benchmark(plane: np.ndarray, level: float) -> tuple[list[np.ndarray], np.ndarray]:
        """What the published tables of this kind were measured on: the inputs, one or several draws, and the target.

        plane: uint8 or uint16, (H, W, 1). Returns float32 (H, W, 1) in [0, 1], of one size. Raises UnusableImageError for an
        image that is too small.
        """
        raise NotImplementedError("no published table is of this kind")

    # the loader, where it draws the inputs

    def whole(self, image: np.ndarray, level: int, key: str, seed: int) -> np.ndarray:
        """The input of a whole image for validation, the same each time: float32 in [0, 1]. image: uint8 or uint16, (H, W, C)."""
        raise NotImplementedError(f"{self.kind} is not drawn by the loader")

    def patches(
        self, gt: np.ndarray, level: np.ndarray, sample: np.ndarray, seed: int, epoch: int, out: np.ndarray
    ) -> None:
        """The inputs of patches into `out`, for `drawn_by` threads. gt, out: uint8 or uint16 (n, p, p, C).

        level, sample: int64 (n,). An input depends on its own patch, level and sample, on seed and epoch.
        """
        raise NotImplementedError(f"{self.kind} is not drawn in the loader's threads")

    def on_device(
        self, gt: "Tensor", level: "Tensor", sample: np.ndarray, seed: int, epoch: int, white: int
    ) -> "Tensor":
        """The inputs of patches, for `drawn_by` device: float32 (n, C, p, p) in [0, 1]. white: of the task's bits."""
        raise NotImplementedError(f"{self.kind} is not drawn on the device")
