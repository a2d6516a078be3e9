"""Several degradations one after another, with parameters drawn at random, as they happen to photographs in practice."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field, PlainValidator, model_validator

from pipeline.config import Frozen
from pipeline.degradations.base import Degradation
from pipeline.degradations.jpeg import Subsampling, jpeg
from pipeline.depth import Bits, peak, unit
from pipeline.keyed import philox

Amount = float | tuple[float, float] | dict[str, tuple[float, ...]]  # fixed; [low, high]; {any: [...]}
Filter = Literal["bicubic", "bilinear", "area"]
FILTERS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}
DRAWS = 3  # numbers that a step draws beside its noise: whether it happens, and two parameters


def _amount(least: float, most: float, *, whole: bool = False) -> PlainValidator:
    """A number from least to most, or the range or list that it is drawn from."""
    expected = f"a {'whole ' * whole}number from {least:g} to {most:g}, [low, high] to draw it from, or {{any: [...]}}"

    def number(value: Any) -> float:
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= value <= most:
            raise ValueError(f"expected {expected}")
        return int(value) if whole else float(value)

    def check(value: Any) -> Amount:
        if isinstance(value, list | tuple):
            if len(value) != 2 or number(value[0]) > number(value[1]):
                raise ValueError(f"expected {expected}")
            return number(value[0]), number(value[1])
        if isinstance(value, dict):
            choices = value.get("any")
            if value.keys() != {"any"} or not isinstance(choices, list | tuple) or not choices:
                raise ValueError(f"expected {expected}")
            return {"any": tuple(number(each) for each in choices)}
        return number(value)

    return PlainValidator(check)


def _drawn(amount: Amount, at: float) -> float:
    """The amount drawn by a random number in [0, 1): in a range of whole numbers all are equally likely."""
    if isinstance(amount, dict):
        return amount["any"][int(at * len(amount["any"]))]
    if isinstance(amount, tuple):
        low, high = amount
        return low + int(at * (high - low + 1)) if isinstance(low, int) else low + at * (high - low)
    return amount


def _choice(choices: Any, at: float) -> Any:
    return choices[int(at * len(choices))] if isinstance(choices, tuple) else choices


def _shown(amount: Any) -> str:
    """An amount as a model's card writes it."""
    if isinstance(amount, dict):
        return " or ".join(f"{each:g}" for each in amount["any"])
    if isinstance(amount, tuple) and not isinstance(amount[0], str):
        return f"{amount[0]:g} to {amount[1]:g}"
    return " or ".join(amount) if isinstance(amount, tuple) else str(amount)


def _resized(image: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """The image resized to (height, width); it stays (H, W, C)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=FILTERS[how]).reshape(*size, -1)


class Step(Frozen):
    """One of the degradations of a chain."""

    kind: str
    probability: float = Field(1, gt=0, le=1, description="that it happens")

    @abstractmethod
    def parameters(self, at: Sequence[float]) -> dict[str, Any]:
        """The drawn parameters. at: two random numbers in [0, 1)."""

    @abstractmethod
    def applied(
        self, image: np.ndarray, size: tuple[int, int], drawn: dict[str, Any], rng: np.random.Generator
    ) -> np.ndarray:
        """The image after this step, in its own dtype. size: (height, width) of the target. drawn: from `parameters`."""

    def said(self) -> str:
        """The step as a model's card writes it."""
        options = self.model_dump(exclude_defaults=True, exclude={"kind", "keep"})
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in options.items())
        return f"{self.kind} ({shown})" if shown else self.kind


class BlurStep(Step):
    """Gaussian blur."""

    kind: Literal["blur"]
    sigma: Annotated[Any, _amount(0.05, 50)] = Field(description="in pixels of the image as it is by then")

    def parameters(self, at: Sequence[float]) -> dict[str, Any]:
        """As Step.parameters."""
        return {"sigma": _drawn(self.sigma, at[0])}

    def applied(
        self, image: np.ndarray, size: tuple[int, int], drawn: dict[str, Any], rng: np.random.Generator
    ) -> np.ndarray:
        """As Step.applied; the border is mirrored."""
        return cv2.GaussianBlur(image, (0, 0), drawn["sigma"]).reshape(image.shape)


class ScaleStep(Step):
    """Resize down, or up, to a fraction of the target's sides, and back to the target's size."""

    kind: Literal["scale"]
    factor: Annotated[Any, _amount(0.01, 4)] = Field(description="of the target's sides")
    filter: Filter | Annotated[tuple[Filter, ...], Field(min_length=1)] = Field(
        "bicubic", description="of both ways; of several, one is drawn"
    )
    keep: bool = Field(
        False, description="what follows works at this size; the chain's last act is to bring the image back"
    )

    def parameters(self, at: Sequence[float]) -> dict[str, Any]:
        """As Step.parameters."""
        return {"factor": _drawn(self.factor, at[0]), "filter": _choice(self.filter, at[1])}

    def applied(
        self, image: np.ndarray, size: tuple[int, int], drawn: dict[str, Any], rng: np.random.Generator
    ) -> np.ndarray:
        """As Step.applied."""
        height, width = (max(1, round(side * drawn["factor"])) for side in size)
        image = _resized(image, (height, width), drawn["filter"])
        return image if self.keep else _resized(image, size, drawn["filter"])


class NoiseStep(Step):
    """White Gaussian noise."""

    kind: Literal["noise"]
    sigma: Annotated[Any, _amount(0, 255)] = Field(description="on the scale 0..255, whatever the task's bits")
    grey: float = Field(0, ge=0, le=1, description="probability that all channels have the same noise")

    def parameters(self, at: Sequence[float]) -> dict[str, Any]:
        """As Step.parameters."""
        return {"sigma": _drawn(self.sigma, at[0]), "grey": at[1] < self.grey}

    def applied(
        self, image: np.ndarray, size: tuple[int, int], drawn: dict[str, Any], rng: np.random.Generator
    ) -> np.ndarray:
        """As Step.applied."""
        white = peak(image.dtype)
        shape = (*image.shape[:2], 1) if drawn["grey"] else image.shape
        noisy = rng.standard_normal(shape, np.float32)
        noisy *= np.float32(drawn["sigma"] * (white // 255))
        noisy = noisy + image if drawn["grey"] else np.add(noisy, image, out=noisy)
        return np.rint(noisy, out=noisy).clip(0, white, out=noisy).astype(image.dtype)


class JpegStep(Step):
    """Compress to JPEG and decode, by the encoder of the kind `jpeg`."""

    kind: Literal["jpeg"]
    quality: Annotated[Any, _amount(1, 100, whole=True)] = Field(description="IJG scale")
    subsampling: Subsampling | Annotated[tuple[Subsampling, ...], Field(min_length=1)] = Field(
        "4:2:0", description="of the chroma; of several, one is drawn; grey planes have none"
    )

    def parameters(self, at: Sequence[float]) -> dict[str, Any]:
        """As Step.parameters."""
        return {"quality": int(_drawn(self.quality, at[0])), "subsampling": _choice(self.subsampling, at[1])}

    def applied(
        self, image: np.ndarray, size: tuple[int, int], drawn: dict[str, Any], rng: np.random.Generator
    ) -> np.ndarray:
        """As Step.applied."""
        return jpeg(image, drawn["quality"], drawn["subsampling"])


AnyStep = Annotated[BlurStep | ScaleStep | NoiseStep | JpegStep, Field(discriminator="kind")]


class Chain(Degradation):
    """Degradations in order, each with fixed or drawn parameters; stored, or drawn anew for each patch in each epoch.

    Between two steps, and after the last, the image is rounded and clipped to its levels, as files are. Draws depend on
    the seed and the image's key and level where they are stored, and on the loader's seed, the epoch and the sample where
    they are drawn online, and on nothing else. The pixels are the same for any number of workers, ranks and threads; on
    machines of another make OpenCV may round a bicubic or area resize otherwise, by one level.
    """

    kind: Literal["chain"]
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1, max_length=100)]
    filter: Filter = Field("bicubic", description="by which an image that a step kept small comes back in the end")
    drawn: Literal["online", "stored"] = "stored"
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
    def deepest(self) -> Bits:
        """As Degradation.deepest."""
        return 8 if any(step.kind == "jpeg" for step in self.steps) else 16

    def said(self) -> dict[str, list[str]]:
        """As Degradation.said."""
        return {"in this order:": [step.said() for step in self.steps]}

    def degraded(self, image: np.ndarray, key: tuple[int | str, ...]) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The image, uint8 or uint16 (H, W, C), after all steps, in its size; and what was drawn for the steps that happened.

        Raises UnusableImageError for a side that JPEG cannot hold.
        """
        rng = philox(*key)
        size = (image.shape[0], image.shape[1])
        happened: list[dict[str, Any]] = []
        for step, (whether, *at) in zip(self.steps, rng.random((len(self.steps), DRAWS)).tolist(), strict=True):
            if whether < step.probability:
                parameters = step.parameters(at)
                image = step.applied(image, size, parameters, rng)
                happened.append({step.kind: parameters})
        return _resized(image, size, self.filter), happened

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
