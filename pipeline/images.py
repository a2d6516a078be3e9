"""Reading and writing 8-bit images: the one place where files become arrays."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError

cv2.setNumThreads(1)  # parallelism is over images; nested threads only contend
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it refuses is reported here, in one line

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class UnusableImageError(ValueError):
    """Why one file cannot be used, as a phrase for the list of rejects."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file: uint8, (H, W, 1) grey or (H, W, 3) RGB, turned upright by its EXIF orientation.

    Of a file with several images, the first. Raises UnusableImageError for what the pipeline does not take: not an
    image, alpha, CMYK, more than 8 bits. A file cut short may pass, its rest grey: `read_image` finds those.
    """
    return _decode(data, whole=False)


def read_image(path: Path) -> tuple[np.ndarray, bytes]:
    """An image file as (pixels of `decode_image`, its bytes). Raises UnusableImageError, for truncated files too."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"cannot be opened: {error.strerror}") from None
    return _decode(data, whole=True), data


def _decode(data: bytes, *, whole: bool) -> np.ndarray:
    if not data:
        raise UnusableImageError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise UnusableImageError("too many pixels; cut it into tiles") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise UnusableImageError("not an image, or its header is damaged") from None
    with image:
        mode = image.mode
        if mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
            raise UnusableImageError(f"alpha channel ({mode}); flatten it")
        if mode in ("CMYK", "LAB", "HSV"):
            raise UnusableImageError(f"{mode} colours; convert it to RGB")
        if whole:  # cv2 only warns about a truncated file; Pillow raises
            try:
                image.load()
            except (OSError, ValueError, SyntaxError):
                raise UnusableImageError("damaged or truncated") from None
    colour = cv2.IMREAD_GRAYSCALE if mode in ("1", "L") or mode.startswith("I") else cv2.IMREAD_COLOR_RGB
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), colour | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise UnusableImageError("damaged, or a format that OpenCV does not read")
    if pixels.dtype != np.uint8:
        raise UnusableImageError(f"{pixels.dtype.itemsize * 8} bits a channel; convert it to 8")
    return pixels[..., None] if pixels.ndim == 2 else pixels


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W), (H, W, 1) grey or (H, W, 3) RGB in the format of the suffix, atomically.

    Raises UserError for a suffix that is not in SUFFIXES.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: not a name for an image; end it in {', '.join(sorted(SUFFIXES))}")
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    ok, data = cv2.imencode(path.suffix, pixels)
    assert ok
    write_bytes(path, data.tobytes())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that its name never holds half of it: temporary name, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # a full disk names no file by itself
        raise
