"""JPEG artefacts: encode and decode in memory."""

from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from pydantic import Field

from pipeline.degradations.base import Degradation, Distinct
from pipeline.degradations.orientation import Turns
from pipeline.depth import Bits, unit
from pipeline.images import UnusableImageError

_SAMPLING = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


def jpeg(image: np.ndarray, quality: int, subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = "4:2:0") -> np.ndarray:
    """Compress to baseline JPEG and back, as the deblocking papers do.

    image: uint8, (H, W, 1) coded as an 8-bit grey JPEG, or (H, W, 3) RGB. quality: 1..100 (IJG scale). subsampling: how
    the chroma planes of RGB are stored: 4:2:0 at half the height and width, 4:2:2 at half the width, 4:4:4 whole. A grey
    image has no chroma, so that all of them give the same.
    Returns the same shape and dtype. Raises ValueError for another shape, dtype, quality or subsampling,
    UnusableImageError for a side that JPEG cannot hold. Source: MemNet, section 5.1; on grey images it reproduces the JPEG
    rows of its Table 5.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"expected uint8 (H, W, 1) or (H, W, 3), got {image.dtype} {image.shape}")
    if not 1 <= quality <= 100:
        raise ValueError(f"JPEG quality is 1..100, got {quality}")
    if subsampling not in _SAMPLING:
        raise ValueError(f"JPEG subsampling is one of {', '.join(_SAMPLING)}, got {subsampling!r}")
    if max(image.shape) > 65_500:  # libjpeg's own limit, which cv2 only logs
        raise UnusableImageError(f"{image.shape[1]}x{image.shape[0]} pixels, a JPEG side holds 65500")
    grey = image.shape[2] == 1
    settings = [
        *(cv2.IMWRITE_JPEG_QUALITY, quality),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLING[subsampling]),
    ]
    ok, data = cv2.imencode(".jpg", image if grey else cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    assert ok
    coded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB)
    assert coded is not None
    return coded.reshape(image.shape)


Quality = Annotated[int, Field(ge=1, le=100)]
Subsampling = Literal["4:2:0", "4:2:2", "4:4:4"]


class Jpeg(Degradation):
    """Compress the whole image to JPEG and decode it, once for each quality."""

    kind: Literal["jpeg"]
    quality: Annotated[tuple[Quality, ...], Distinct] = Field((10, 20), min_length=1, description="IJG scale")
    subsampling: Subsampling = Field("4:2:0", description="of the chroma; grey planes have none")

    level_text: ClassVar[str] = "q{}"
    restores: ClassVar[str] = "Images after JPEG compression"

    @property
    def levels(self) -> tuple[int, ...]:
        """The qualities."""
        return self.quality

    @property
    def turns(self) -> Turns:
        """A transposed JPEG is none that an encoder makes: its table of quantisation steps is not symmetric.

        At quality 10 that is a difference of 6.5 grey levels rms, where the artefacts are 11. Mirrored ones are, but for
        ties of rounding (0.2; with 4:2:0, 1.0); where a side is no multiple of 8 the blocks begin at another column, as
        they do in a patch anyway.
        """
        return "flips"

    @property
    def deepest(self) -> Bits:
        """JPEG holds 8 bits a channel."""
        return 8

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """As Degradation.made."""
        chroma = {"subsampling": self.subsampling} if image.shape[2] == 3 else {}
        return f"lq-q{level}", jpeg(image, level, self.subsampling), {"jpeg": level, **chroma}

    @staticmethod
    def benchmark(plane: np.ndarray, level: float) -> tuple[list[np.ndarray], np.ndarray]:
        """As Degradation.benchmark: `level` is the quality."""
        if plane.dtype != np.uint8:
            what = f"jpeg-q{int(level)} is of JPEG, which holds 8"
            raise UnusableImageError(f"16 bits a channel, and {what}; convert it to 8")
        return [unit(jpeg(plane, int(level)))], unit(plane)
