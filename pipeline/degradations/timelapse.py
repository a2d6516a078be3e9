"""The frames of time-lapse scenes, where one frame is the input for another."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from pipeline.degradations.base import Degradation, Plane
from pipeline.degradations.paired import numbers
from pipeline.degradations.scene_choice import chosen_frames, chosen_scenes
from pipeline.degradations.scene_mean import scene_mean
from pipeline.degradations.scene_pairs import scene_pairs
from pipeline.depth import Bits
from pipeline.images import UnusableImageError

if TYPE_CHECKING:
    import pyarrow as pa


Count = Annotated[int, Field(ge=1)]


class TimeLapse(Degradation):
    """The frames of scenes: two make a sample without a clean image, or one and the scene's pseudo ground truth."""

    kind: Literal["timelapse"]
    pairs_per_scene: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all",
        description="of the T (T - 1) / 2 pairs of a scene of T frames: all, or so many drawn by `seed`; "
        "which frame of a pair is the first, the loader draws in each epoch",
    )
    scenes: Count | dict[str, Count] | None = Field(
        None,
        description="of each <dataset>/<split>: so many scenes drawn by `seed`, of as many videos as there are; or a mapping "
        "that says so for some data sets; null: all",
    )
    frames: Annotated[int, Field(ge=2)] | None = Field(
        None, description="of each scene: so many drawn by `seed`; null: all"
    )
    seed: int = Field(0, description="of which scenes, frames and pairs are taken")
    target: Literal["mean"] | None = Field(
        None,
        description="mean: each frame is a sample, and the mean of its scene's frames its gt; null: pairs are, without gt",
    )
    size: Annotated[int, Field(ge=16)] | None = Field(
        None, description="side in pixels of the squares that frames are resized to, bilinear; null: as they are"
    )

    roles: ClassVar[tuple[str, ...]] = ("frame",)
    grouped: ClassVar[bool] = True
    images: ClassVar[str] = "scenes"
    level_text: ClassVar[str] = "frame {}"
    restores: ClassVar[str] = "Images of what moves before a still background in its training data, such as rain"

    @model_validator(mode="after")
    def _pairs_or_targets(self) -> "TimeLapse":
        if self.target and (self.pairs_per_scene != "all" or (self.seed and not self.chooses)):
            raise ValueError("with a target each frame is a sample: leave out pairs_per_scene and seed")
        return self

    @property
    def chooses(self) -> bool:
        """Whether it takes some of the scenes or frames only."""
        return self.scenes is not None or self.frames is not None

    @property
    def left_out(self) -> str:
        """As Degradation.left_out."""
        return "not among the scenes and frames that the task takes" if self.chooses else super().left_out

    @property
    def of_frames(self) -> bool:
        """As Degradation.of_frames."""
        return not self.target

    @property
    def side(self) -> int | None:
        """As Degradation.side."""
        return self.size

    def lost(self, manifest: "pa.Table", rows: np.ndarray, deep: np.ndarray) -> np.ndarray:
        """As Degradation.lost: a lost frame takes no other frame with it, unless only one is left."""
        import pyarrow as pa

        columns = ["dataset", "group", "scene", "sha256"]
        taken = manifest.select(columns).take(pa.array(rows)).combine_chunks()
        encoded = taken["group"].combine_chunks().dictionary_encode()
        group = encoded.indices.to_numpy()
        lost = deep | (np.bincount(group, ~deep)[group] < 2)
        if not self.chooses:
            return lost
        names, videos, contents = (
            encoded.dictionary.to_pylist(),
            taken["scene"].to_pylist(),
            taken["sha256"].to_pylist(),
        )
        members: dict[str, list[int]] = {}
        for i in np.flatnonzero(~lost).tolist():
            members.setdefault(names[group[i]], []).append(i)
        number = self.scenes.get(taken["dataset"][0].as_py()) if isinstance(self.scenes, dict) else self.scenes
        if number is not None:
            of_video = {name: videos[frames[0]] for name, frames in members.items()}
            members = {name: members[name] for name in chosen_scenes(of_video, number, seed=self.seed)}
        lost[:] = True
        for name, frames in members.items():
            hashes = [contents[i] for i in frames]
            kept = chosen_frames(hashes, self.frames or len(frames), seed=self.seed, scene=name)
            lost[[frames[i] for i in kept]] = False
        return lost

    def names(self, manifest: "pa.Table", rows: np.ndarray, first: np.ndarray) -> list[str] | None:
        """As Degradation.names: frame-<n>, or lq-<n> beside a target."""
        import pyarrow as pa

        name = "lq" if self.target else "frame"
        return [f"{name}-{frame}" for frame in manifest["frame"].take(pa.array(rows)).to_pylist()]

    def nbytes(self, width: np.ndarray, height: np.ndarray, first: np.ndarray, bits: Bits, views: int) -> np.ndarray:
        """As Degradation.nbytes; the target is as large as a frame."""
        nbytes = super().nbytes(width, height, first, bits, views)
        if self.target:
            nbytes[first] *= 2
        return nbytes

    def stored(self) -> dict[str, Any] | None:
        """As Degradation.stored: which frames make a pair stands beside the shards."""
        return self.model_dump(mode="json", include={"size", "target"}, exclude_none=True) or None

    def opened(self, image: np.ndarray) -> np.ndarray:
        """As Degradation.opened, resized."""
        if not self.size:
            return image
        # for uint8 the plain one is exact too: the same on every machine
        how = cv2.INTER_LINEAR if image.dtype == np.uint8 else cv2.INTER_LINEAR_EXACT
        return cv2.resize(image, (self.size, self.size), interpolation=how).reshape(self.size, self.size, -1)

    def planes(
        self, name: str, image: np.ndarray, key: str, before: Sequence[Plane], views: Sequence[int] = (0,)
    ) -> Iterator[Plane]:
        """As Degradation.planes."""
        if self.target and before and image.shape != before[0].pixels.shape:
            sizes = " and ".join("{1}x{0} with {2} channels".format(*i.shape) for i in (image, before[0].pixels))
            raise UnusableImageError(f"it and the first frame of its scene are {sizes}: leave one of them out")
        yield from super().planes(name, image, key, before, views)

    def sample(self, planes: list[Plane]) -> list[Plane]:
        """As Degradation.sample, with the target before its frames."""
        if not self.target:
            return planes
        parameters = json.dumps({"mean": len(planes)})
        return [Plane("gt", "gt", scene_mean([p.pixels for p in planes]), {"parameters": parameters}), *planes]

    def inputs(self, names: Sequence[str]) -> list[int]:
        """As Degradation.inputs."""
        return numbers(names)

    def pairs(self, key: str, names: Sequence[str], contents: Sequence[str]) -> Iterator[tuple[int, int]]:
        """As Degradation.pairs: those that are sampled."""
        frames = [int(name.partition("-")[2]) for name in names]
        for v, w in scene_pairs(contents, self.pairs_per_scene, seed=self.seed, scene=key):
            yield frames[v], frames[w]
