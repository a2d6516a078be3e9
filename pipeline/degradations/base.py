"""The interface of a kind of degradation: planning, building, loading, scoring and publishing use it and know no kind."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator

from pipeline.config import Frozen
from pipeline.degradations.orientation import Turns, apart, dihedral, upright
from pipeline.depth import Bits

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from torch import Tensor  # its import takes seconds, and reading a task does without

# The degradation that recipes record for shards of clean images, whichever kind the loader draws: the shards are the same
# for all kinds.
CLEAN = {"kind": "noise"}


def _distinct(levels: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(levels)) < len(levels):
        raise ValueError("a level is given twice")
    return levels


Distinct = AfterValidator(_distinct)


class Plane(NamedTuple):
    """An array of a sample. pixels: (H, W, C) of the task's bits, or int16. columns: level and parameters, as in the index."""

    name: str
    role: str
    pixels: np.ndarray
    columns: dict[str, Any]


def turned_name(role: str, member: str, view: int) -> tuple[str, str]:
    """The name and the role of a member that was made of this view: lq-q10 becomes lq1-q10, of role lq1."""
    turned = f"{role}{view or ''}"
    return turned + member.removeprefix(role), turned


class Degradation(Frozen):
    """The options of one kind, and what follows from them.

    The defaults are those of a kind that makes its inputs from clean images, one by one.

    roles: the roles of the images that it reads from the manifest, in the order of a group's members. grouped: whether
    several images with the same `group` are a sample. images: what a message calls them. level_text: how a level is
    written. restores: what the card of a model says that it is for.
    """

    kind: str
    roles: ClassVar[tuple[str, ...]] = ("gt",)
    grouped: ClassVar[bool] = False
    images: ClassVar[str] = "images"
    level_text: ClassVar[str] = "{}"
    restores: ClassVar[str] = "Images degraded as the inputs of its training data are"

    def found(self, here: "Path") -> "Degradation":
        """The same degradation, ready to build. here: the folder that is searched for the user's own code."""
        return self

    # what it is

    @property
    def left_out(self) -> str:
        """Why a frame that can be used may be in no shard."""
        return "the only frame of its scene that can be used, and a sample needs two"

    @property
    def levels(self) -> tuple[int, ...]:
        """The strengths at which each clean image is degraded; none where the inputs are published ones."""
        return ()

    @property
    def drawn_by(self) -> Literal["build", "threads", "device"]:
        """Who makes the inputs: the build, which stores them; or the loader, which draws them anew for each patch in each
        epoch, in its threads or on the device.
        """
        return "build"

    @property
    def online(self) -> bool:
        """Whether the loader makes the inputs, from shards of clean images."""
        return self.drawn_by != "build"

    @property
    def stored_levels(self) -> tuple[int, ...]:
        """The levels that a build makes from each clean image."""
        return () if self.online else self.levels

    @property
    def turns(self) -> Turns:
        """Which views of an image that was degraded as a whole are degraded images themselves.

        All are for a degradation without a direction. Published inputs, too, are turned as their papers do it.
        """
        return "all"

    @property
    def views(self) -> tuple[int, ...]:
        """The views of each clean image that a build degrades for training, the image as it is first."""
        return (0,) if self.online else apart(self.turns)

    @property
    def orientations(self) -> str:
        """How `memoir inspect` and a card tell that images are degraded in several views; empty where they are not."""
        number = len(self.views)
        return (
            f"degraded in {number} orientations for training, for its artefacts have a direction" if number > 1 else ""
        )

    @property
    def fixed(self) -> bool:
        """Whether inputs are stored as `pipeline.depth.fixed` numbers, and not as levels."""
        return False

    @property
    def deepest(self) -> Bits:
        """The most bits per channel of an image that it can be applied to."""
        return 16

    @property
    def of_frames(self) -> bool:
        """Whether samples are pairs of frames, which have no targets, and stand in a table of their own."""
        return False

    @property
    def side(self) -> int | None:
        """The side, in pixels, of the squares that images are resized to; None if they keep their size."""
        return None

    @property
    def factors(self) -> tuple[int, ...]:
        """The factors by which an image has to be enlarged before a model restores it."""
        return ()

    def said(self) -> dict[str, list[str]]:
        """The options as a card lists them; options that were not given may be missing."""
        options = self.model_dump(mode="json", exclude_unset=True, exclude={"kind", "seed"})
        return {
            key: [str(each) for each in (value if isinstance(value, list) else [value])]
            for key, value in options.items()
            if value not in (None, False)
        }

    # the plan

    def lost(self, manifest: "pa.Table", rows: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """Which images of one source are not used: bool, (n,). deep: the images with more bits than the task has."""
        return deep

    def names(self, manifest: "pa.Table", rows: np.ndarray, first: np.ndarray) -> list[str] | None:
        """The names of the members that images become, as in pipeline.shards.plan.File; None if all are gt.

        rows: in the order of the shards. first: where groups begin in them. Raises UserError for a group that lacks a member.
        """
        return None

    def nbytes(self, width: np.ndarray, height: np.ndarray, first: np.ndarray, bits: Bits, views: int) -> np.ndarray:
        """How many bytes each image puts into its shard for each channel, int64 (n,); negatives are not counted.

        first: as in `names`. bits: the task's. views: how many views are degraded.
        """
        area = width * height if self.side is None else np.full_like(width, self.side**2)
        return area * (bits // 8 + len(self.stored_levels) * views * (2 if self.fixed else bits // 8))

    def stored(self) -> dict[str, Any] | None:
        """The options that the bytes of a shard depend on."""
        return CLEAN if self.online else self.model_dump(mode="json")

    # the build

    def opened(self, image: np.ndarray) -> np.ndarray:
        """The image that planes are taken from, made from a decoded one. image: uint8 or uint16, (H, W, C)."""
        return image

    def planes(
        self, name: str, image: np.ndarray, key: str, before: Sequence[Plane], views: Sequence[int] = (0,)
    ) -> Iterator[Plane]:
        """The planes that one image of a sample becomes.

        name: the member's name. image: the task's planes of the image. key: the sample's key. before: the planes that the
        sample already has. views: those of the clean image that are degraded. The input made of another view than 0 is
        turned back, and its role and name have the number of the view, as in lq1-q10.
        Raises UnusableImageError for an image that it does not take.
        """
        role, _, number = name.partition("-")
        yield Plane(name, role, image, {"level": int(number)} if number else {})
        for level in self.stored_levels if role == "gt" else ():
            for view in views:
                member, lq, parameters = self.made(np.ascontiguousarray(dihedral(image, view)), level, key)
                columns = {"level": level, "parameters": json.dumps(parameters)}
                yield Plane(*turned_name("lq", member, view), np.ascontiguousarray(upright(lq, view)), columns)

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """The input at one of the stored levels: the name of its member, its pixels and the parameters for the index."""
        raise NotImplementedError(f"{self.kind} makes no inputs")

    def sample(self, planes: list[Plane]) -> list[Plane]:
        """All planes of a sample. planes: the planes of its images."""
        return planes

    def inputs(self, names: Sequence[str]) -> list[int]:
        """The levels of the degraded images that one sample has. names: the names of its members."""
        return list(self.levels)

    def pairs(self, key: str, names: Sequence[str], contents: Sequence[str]) -> Iterator[tuple[int, int]]:
        """The pairs of frames of a scene, by their numbers. names, contents: the members' names and sha256."""
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
        """A whole image's input for validation, the same each time: float32 in [0, 1]. image: uint8 or uint16, (H, W, C)."""
        raise NotImplementedError(f"{self.kind} is not drawn by the loader")

    def patches(
        self, gt: np.ndarray, level: np.ndarray, sample: np.ndarray, seed: int, epoch: int, out: np.ndarray
    ) -> None:
        """Write the inputs of patches into `out`, where `drawn_by` is threads. gt, out: uint8 or uint16 (n, p, p, C).

        level, sample: int64 (n,). An input depends on its own patch, level and sample, on seed and epoch.
        """
        raise NotImplementedError(f"{self.kind} is not drawn in the loader's threads")

    def on_device(
        self, gt: "Tensor", level: "Tensor", sample: np.ndarray, seed: int, epoch: int, white: int
    ) -> "Tensor":
        """The inputs of patches, where `drawn_by` is device: float32 (n, C, p, p) in [0, 1]. white: the task's white level."""
        raise NotImplementedError(f"{self.kind} is not drawn on the device")
