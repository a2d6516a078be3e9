"""Additive noise, drawn by key."""

import hashlib
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from pipeline.degradations.base import Degradation, Distinct
from pipeline.depth import levels, peak, unit
from pipeline.keyed import digest64, hashed, philox

if TYPE_CHECKING:
    from torch import Tensor  # its import takes seconds, and reading a task does without


def awgn(image: np.ndarray, sigma: float, key: tuple[int | str, ...]) -> np.ndarray:
    """Add white Gaussian noise, as the denoising papers do: neither clipped nor quantised.

    image: float32 or float64 of any shape, in [0, 1]. sigma: the noise's standard deviation on the 0..255 scale.
    key: names the draw (`pipeline.keyed.philox`); the same key and shape give the same noise, scaled by sigma.
    Returns the same shape and dtype. Raises ValueError for another dtype or a negative sigma.
    Source: MemNet, section 5.1: y = x + sigma/255 * N(0, 1).
    """
    if image.dtype not in (np.float32, np.float64):
        raise ValueError(f"expected a float32 or float64 image in [0, 1], got {image.dtype}")
    if sigma < 0:
        raise ValueError(f"sigma is at least 0, got {sigma}")
    return image + np.float32(sigma / 255) * philox(*key).standard_normal(image.shape, np.float32)


def noisy_levels(image: np.ndarray, sigma: float, key: tuple[int | str, ...]) -> np.ndarray:
    """Add the noise of `awgn` and store it as a file does: rounded half to even and clipped to the levels of its dtype.

    image: uint8 or uint16 of any shape. sigma: the noise's standard deviation on the 0..255 scale, whatever the dtype (a
    level of uint8 is 257 of uint16), before rounding and clipping. key: as in `awgn`, with the same draw. Returns the same
    shape and dtype. Raises ValueError for another dtype or a negative sigma.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected a uint8 or uint16 image, got {image.dtype}")
    if sigma < 0:
        raise ValueError(f"sigma is at least 0, got {sigma}")
    noisy = philox(*key).standard_normal(image.shape, np.float32)
    noisy *= np.float32(sigma * (peak(image.dtype) // 255))
    noisy += image
    return np.rint(noisy, out=noisy).clip(0, peak(image.dtype), out=noisy).astype(image.dtype)


class Noise(Degradation):
    """Additive white Gaussian noise, drawn on clean images by the loader, anew in each epoch, or by the build and stored."""

    kind: Literal["noise"]
    sigma: Annotated[tuple[Annotated[int, Field(gt=0, le=255)], ...], Distinct] = Field(
        (30, 50, 70), min_length=1, description="on the scale 0..255, whatever the task's bits"
    )
    drawn: Literal["online", "stored"] = Field(
        "online", description="by the loader in each epoch, or once by the build"
    )
    quantised: bool = Field(
        False, description="rounded and clipped to the task's bits, as a noisy file is; stored noise always is"
    )
    seed: int = Field(0, description="of stored noise")

    level_text: ClassVar[str] = "sigma {}"
    restores: ClassVar[str] = "Images with additive white Gaussian noise, its sigma on the scale 0..255"

    @model_validator(mode="after")
    def _shards_hold_levels(self) -> "Noise":
        if self.drawn == "stored" and not self.quantised:
            raise ValueError("stored noise is rounded and clipped: add quantised: true, or draw it online")
        return self

    @property
    def levels(self) -> tuple[int, ...]:
        """The sigmas."""
        return self.sigma

    @property
    def drawn_by(self) -> Literal["build", "threads", "device"]:
        """As Degradation.drawn_by."""
        return "device" if self.drawn == "online" else "build"

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """As Degradation.made."""
        return f"lq-s{level}", noisy_levels(image, level, (self.seed, "noise", key, level)), {"awgn": level}

    def whole(self, image: np.ndarray, level: int, key: str, seed: int) -> np.ndarray:
        """As Degradation.whole; below 0 and above 1 too, unless the noise is quantised."""
        lq = awgn(unit(image), level, (seed, "validation", key, level))
        return unit(levels(lq, image.dtype)) if self.quantised else lq

    def on_device(
        self, gt: "Tensor", level: "Tensor", sample: np.ndarray, seed: int, epoch: int, white: int
    ) -> "Tensor":
        """As Degradation.on_device; below 0 and above 1 too, unless the noise is quantised."""
        import torch

        from pipeline.normal import counter_normal

        # Keyed by (seed, epoch, sample): the noise of a sample is its own, whichever rank draws it.
        keys = torch.from_numpy(hashed(digest64("noise", seed, epoch), sample).view(np.int64)).to(gt.device)
        noise = counter_normal(keys, math.prod(gt.shape[1:])).view(gt.shape)
        lq = gt + level.float().view(-1, 1, 1, 1) / 255 * noise
        return (lq * white).round().clamp(0, white) / white if self.quantised else lq

    @staticmethod
    def benchmark(plane: np.ndarray, level: float) -> tuple[list[np.ndarray], np.ndarray]:
        """As Degradation.benchmark: three draws of sigma `level`, keyed by the pixels: renamed or moved files get the same."""
        pixels = hashlib.blake2b(plane.tobytes(), digest_size=16).hexdigest()
        gt = unit(plane)
        return [awgn(gt, level, ("benchmark", seed, pixels)) for seed in range(3)], gt
