"""The steps of a chain: what each draws, and what it does to an image."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from pydantic import Field, model_validator

from pipeline.config import Frozen
from pipeline.degradations.chain.amounts import amount, drawn_from, one_of, shown
from pipeline.degradations.chain.kernels import Shape, bell, sinc
from pipeline.degradations.colour import rgb2gray
from pipeline.degradations.jpeg import Subsampling, jpeg
from pipeline.degradations.orientation import Turns, fewest
from pipeline.depth import Bits, levels, peak

Filter = Literal["bicubic", "bilinear", "area"]
FILTERS = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


def _placed(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers on the scale of a dtype's levels, rounded half to even and clipped to them. values: written to."""
    return np.rint(values, out=values).clip(0, peak(dtype), out=values).astype(dtype)


def resized(image: np.ndarray, size: tuple[int, int], how: str) -> np.ndarray:
    """The image resized to (height, width); it stays (H, W, C)."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=FILTERS[how]).reshape(*size, -1)


def _filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The image filtered by a kernel in float32 and rounded once; the border is mirrored. It stays (H, W, C)."""
    filtered = cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)
    return filtered.reshape(image.shape)


class Step(Frozen):
    """One of the degradations of a chain."""

    kind: str
    probability: float = Field(1, gt=0, le=1, description="that it happens")

    @property
    def draws(self) -> int:
        """How many random numbers its parameters are drawn by."""
        return 2

    @property
    def turns(self) -> Turns:
        """As Degradation.turns."""
        return "all"

    @property
    def deepest(self) -> Bits:
        """As Degradation.deepest."""
        return 16

    @abstractmethod
    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """The image after this step, in its own dtype, and what was drawn: of each step that happened its parameters, by its kind.

        size: (height, width) of the target. at: `draws` random numbers in [0, 1). rng: for all other draws.
        """

    def said(self) -> str:
        """The step as a model's card writes it."""
        options = self.model_dump(exclude_defaults=True, exclude={"kind", "keep"})
        text = ", ".join(f"{name} {shown(value)}" for name, value in options.items())
        return f"{self.kind} ({text})" if text else self.kind


class BlurStep(Step):
    """Blur by a Gaussian, or by a kernel of `kernels.bell`; the border is mirrored."""

    kind: Literal["blur"]
    sigma: Annotated[Any, amount(0.05, 50)] = Field(description="in pixels of the image as it is by then")
    radius: Annotated[Any, amount(1, 50, whole=True, optional=True)] = Field(
        None,
        description="the kernel has 2 radius + 1 pixels a side; without it, a round Gaussian is as wide as it needs",
    )
    sigma_y: Annotated[Any, amount(0.05, 50, optional=True)] = Field(
        None, description="across; without it, the kernel is round"
    )
    rotation: Annotated[Any, amount(-360, 360, optional=True)] = Field(
        None, description="of a kernel that is not round, in degrees; without it, sigma is along the rows"
    )
    shape: Shape = Field("gaussian", description="of the kernel; the others need `radius` and `beta`")
    beta: Annotated[Any, amount(0.1, 10, optional=True)] = Field(None, description="the exponent of the other shapes")

    @model_validator(mode="after")
    def _options_that_go_together(self) -> "BlurStep":
        if self.rotation is not None and self.sigma_y is None:
            raise ValueError("a round kernel has no rotation: add sigma_y, or leave rotation out")
        if (self.beta is None) != (self.shape == "gaussian"):
            raise ValueError("shape: generalised or plateau and beta go together: give both, or neither for a Gaussian")
        if self.radius is None and (self.sigma_y is not None or self.beta is not None):
            raise ValueError("only a round Gaussian finds its own size: add radius, such as [3, 10] for 7 to 21 pixels")
        return self

    @property
    def draws(self) -> int:
        """As Step.draws."""
        return 2 if self.radius is None else 5

    @property
    def turns(self) -> Turns:
        """A long kernel has a direction, unless all directions are drawn alike: a whole number of half turns."""
        if self.sigma_y is None:
            return "all"
        if self.rotation is None:
            return "flips"
        drawn = self.rotation if isinstance(self.rotation, tuple) else (0, 1)
        return "all" if drawn[1] > drawn[0] and (drawn[1] - drawn[0]) % 180 == 0 else "half turn"

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        drawn: dict[str, Any] = {"sigma": drawn_from(self.sigma, at[0])}
        if self.radius is None:
            return cv2.GaussianBlur(image, (0, 0), drawn["sigma"]).reshape(image.shape), [{"blur": drawn}]
        drawn["radius"] = int(drawn_from(self.radius, at[1]))
        if self.sigma_y is not None:
            drawn["sigma_y"] = drawn_from(self.sigma_y, at[2])
        if self.rotation is not None:
            drawn["rotation"] = drawn_from(self.rotation, at[3])
        if self.beta is not None:
            drawn |= {"shape": self.shape, "beta": drawn_from(self.beta, at[4])}
        return _filtered(image, bell(**{"sigma_y": drawn["sigma"]} | drawn)), [{"blur": drawn}]


class SincStep(Step):
    """The low-pass filter of `kernels.sinc`, which leaves ringing and overshoot; the border is mirrored."""

    kind: Literal["sinc"]
    cutoff: Annotated[Any, amount(0.01, 1)] = Field(
        description="the lowest frequency that is lost; 1 is half a cycle a pixel, or pi radians"
    )
    radius: Annotated[Any, amount(1, 50, whole=True)] = Field(description="the kernel has 2 radius + 1 pixels a side")

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        cutoff, radius = drawn_from(self.cutoff, at[0]), int(drawn_from(self.radius, at[1]))
        return _filtered(image, sinc(radius, cutoff)), [{"sinc": {"cutoff": cutoff, "radius": radius}}]


class ScaleStep(Step):
    """Resize down, or up, to a fraction of the target's sides, and back to the target's size."""

    kind: Literal["scale"]
    factor: Annotated[Any, amount(0.01, 4)] = Field(description="of the target's sides")
    filter: Filter | Annotated[tuple[Filter, ...], Field(min_length=1)] = Field(
        "bicubic", description="of both ways; of several, one is drawn"
    )
    keep: bool = Field(
        False, description="what follows works at this size; the chain's last act is to bring the image back"
    )

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        drawn = {"factor": drawn_from(self.factor, at[0]), "filter": one_of(self.filter, at[1])}
        height, width = (max(1, round(side * drawn["factor"])) for side in size)
        image = resized(image, (height, width), drawn["filter"])
        return image if self.keep else resized(image, size, drawn["filter"]), [{"scale": drawn}]


class NoiseStep(Step):
    """White Gaussian noise."""

    kind: Literal["noise"]
    sigma: Annotated[Any, amount(0, 255)] = Field(description="on the scale 0..255, whatever the task's bits")
    grey: float = Field(0, ge=0, le=1, description="probability that all channels have the same noise")

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        drawn = {"sigma": drawn_from(self.sigma, at[0]), "grey": at[1] < self.grey}
        shape = (*image.shape[:2], 1) if drawn["grey"] else image.shape
        noisy = rng.standard_normal(shape, np.float32)
        noisy *= np.float32(drawn["sigma"] * (peak(image.dtype) // 255))
        noisy = noisy + image if drawn["grey"] else np.add(noisy, image, out=noisy)
        return _placed(noisy, image.dtype), [{"noise": drawn}]


class PoissonStep(Step):
    """Poisson noise, that of counted photons, times a factor: its variance is in proportion to the light.

    White is as many photons as there are different levels in the image, of 256, rounded up to a power of two, as in
    Real-ESRGAN. So an image of few levels has more noise than a photograph, and one of a single level the most.
    """

    kind: Literal["poisson"]
    scale: Annotated[Any, amount(0, 20)] = Field(description="the noise is multiplied by it")
    grey: float = Field(
        0, ge=0, le=1, description="probability that all channels have the same noise, that of their luma"
    )

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        drawn = {"scale": drawn_from(self.scale, at[0]), "grey": at[1] < self.grey}
        seen, white = rgb2gray(image) if drawn["grey"] else image, peak(image.dtype)
        # A few rows at a time, which draws the same numbers: the floats of a large image would take many times its bytes.
        many = max(1, 2**15 // image.shape[1])
        rows = [slice(top, top + many) for top in range(0, image.shape[0], many)]
        present = np.zeros(256, bool)
        for band in rows:
            present[levels(seen[band] / white, np.uint8)] = True
        photons = 1 << (int(present.sum()) - 1).bit_length()
        noisy = np.empty_like(image)
        for band in rows:
            light = seen[band] / white
            noise = rng.poisson(light * photons) / photons - light
            noisy[band] = _placed(image[band] + noise * (drawn["scale"] * white), image.dtype)
        return noisy, [{"poisson": drawn}]


class JpegStep(Step):
    """Compress to JPEG and decode, by the encoder of the kind `jpeg`."""

    kind: Literal["jpeg"]
    quality: Annotated[Any, amount(1, 100, whole=True)] = Field(description="IJG scale")
    subsampling: Subsampling | Annotated[tuple[Subsampling, ...], Field(min_length=1)] = Field(
        "4:2:0", description="of the chroma; of several, one is drawn; grey planes have none"
    )

    @property
    def turns(self) -> Turns:
        """As Jpeg.turns."""
        return "flips"

    @property
    def deepest(self) -> Bits:
        """JPEG holds 8 bits a channel."""
        return 8

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken."""
        drawn = {"quality": int(drawn_from(self.quality, at[0])), "subsampling": one_of(self.subsampling, at[1])}
        return jpeg(image, **drawn), [{"jpeg": drawn}]


Single = Annotated[BlurStep | SincStep | ScaleStep | NoiseStep | PoissonStep | JpegStep, Field(discriminator="kind")]


class Choice(Frozen):
    """Steps of which it is drawn whether they are taken."""

    weight: float = Field(gt=0, le=1e6, description="how likely, beside the other choices' weights")
    steps: Annotated[tuple[Single, ...], Field(min_length=1, max_length=100)]


class OneOfStep(Step):
    """One of several sequences of steps, drawn by weight."""

    kind: Literal["one_of"]
    choices: Annotated[
        tuple[Choice, ...], Field(min_length=2, max_length=100, description="`weight` and `steps` of each")
    ]

    @property
    def turns(self) -> Turns:
        """As Degradation.turns."""
        return fewest(step.turns for choice in self.choices for step in choice.steps)

    @property
    def deepest(self) -> Bits:
        """As Degradation.deepest."""
        return min(step.deepest for choice in self.choices for step in choice.steps)

    def taken(
        self, image: np.ndarray, size: tuple[int, int], at: Sequence[float], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """As Step.taken; only the steps of the drawn choice draw numbers."""
        below = list(itertools.accumulate(choice.weight for choice in self.choices))
        chosen = next(i for i, weight in enumerate(below) if at[0] * below[-1] < weight)
        return through(self.choices[chosen].steps, image, size, rng)

    def said(self) -> str:
        """As Step.said; the weights are shares of 1."""
        total = sum(choice.weight for choice in self.choices)
        shares = [f"{c.weight / total:.3g} {', then '.join(step.said() for step in c.steps)}" for c in self.choices]
        often = f" (probability {self.probability:g})" if self.probability < 1 else ""
        return f"one of{often}: {'; '.join(shares)}"


AnyStep = Annotated[
    BlurStep | SincStep | ScaleStep | NoiseStep | PoissonStep | JpegStep | OneOfStep, Field(discriminator="kind")
]


def through(
    steps: Sequence[Step], image: np.ndarray, size: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The image after the steps, each of which happens with its probability, and what was drawn for those that happened."""
    numbers = iter(rng.random(sum(1 + step.draws for step in steps)).tolist())
    happened: list[dict[str, Any]] = []
    for step in steps:
        whether, *at = itertools.islice(numbers, 1 + step.draws)
        if whether < step.probability:
            image, drawn = step.taken(image, size, at, rng)
            happened += drawn
    return image, happened
