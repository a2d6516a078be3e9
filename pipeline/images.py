"""Reading and writing 8-bit images: the one place where files become arrays."""

import hashlib
import io
import os
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

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


def read_part(path: Path, part: str) -> np.ndarray:
    """One image of a file that holds several, as pixels of `decode_image`.

    part: "left" or "right", the halves of an image that holds a pair side by side; or a variable of a MATLAB file and where
    the image lies in it, counted from 0: "ValidationGtBlocksSrgb[39,31]", or "InoisySRGB[0:512,88:600]". Floats there are
    in [0, 1], and rounded to 8 bits (values beyond, up to 2, become black and white). Raises UnusableImageError.
    """
    if part in ("left", "right"):
        pixels, _ = read_image(path)
        half, odd = divmod(pixels.shape[1], 2)
        if odd:
            raise UnusableImageError(f"{pixels.shape[1]} pixels wide, which is no pair side by side")
        return np.ascontiguousarray(pixels[:, :half] if part == "left" else pixels[:, half:])
    name, _, inside = part.removesuffix("]").partition("[")
    array = _cut(path, name, [[int(n) for n in index.split(":")] for index in inside.split(",")])
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UnusableImageError(f"{part} is {_by(array.shape)}, which is no image of 1 or 3 channels")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.max(initial=0) > 2:  # a resampled image overshoots 1, but not so far
            raise UnusableImageError(f"{part} holds floats that are not in [0, 1]")
        array = np.rint(array * 255).clip(0, 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnusableImageError(f"{part} holds {array.dtype}, not 8-bit pixels")
    return np.ascontiguousarray(array)


def _cut(path: Path, name: str, ranges: list[list[int]]) -> np.ndarray:
    """A part of a variable of a MATLAB file: an index, or a start and an end, for each of its first axes."""
    try:
        stat = path.stat()
        with path.open("rb") as file:
            version_7_3 = b"MATLAB 7.3" in file.read(128)
    except OSError as error:
        raise UnusableImageError(f"cannot be opened: {error.strerror}") from None
    try:
        if not version_7_3:
            with _one_matlab_file:
                return _indexed(_matlab(path, stat.st_mtime_ns, stat.st_size).get(name), name, ranges)
        import h5py

        with h5py.File(path) as file:  # reads what is asked for only
            variable = file.get(name)
            return _indexed(variable if isinstance(variable, h5py.Dataset) else None, name, ranges, turned=True)
    except UnusableImageError:
        raise
    except Exception:  # what damage does to the two readers is not documented
        raise UnusableImageError("not a MATLAB file, or damaged") from None


def _indexed(variable: Any, name: str, ranges: list[list[int]], *, turned: bool = False) -> np.ndarray:
    """turned: the axes of `variable` are MATLAB's from last to first, as HDF5 has them."""
    if variable is None:
        raise UnusableImageError(f"no variable {name} in it")
    shape = variable.shape[::-1] if turned else variable.shape
    fits = len(ranges) <= len(shape) and all(
        0 <= each[0] < n and each[-1] <= n for each, n in zip(ranges, shape, strict=False)
    )
    if not fits:
        raise UnusableImageError(f"{name} is {_by(shape)}, and the part lies outside it")
    index = [each[0] if len(each) == 1 else slice(*each) for each in ranges] + [slice(None)] * (
        len(shape) - len(ranges)
    )
    return np.asarray(variable[tuple(index[::-1])]).T if turned else np.asarray(variable[tuple(index)])


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


_one_matlab_file = threading.Lock()


@lru_cache(maxsize=2)  # the two files of a pair; each holds up to 1,280 images
def _matlab(path: Path, mtime_ns: int, size: int) -> Mapping[str, np.ndarray]:
    """The variables of a MATLAB file older than version 7.3."""
    from scipy.io import loadmat

    return loadmat(path, appendmat=False)


def source_image(path: Path, part: str | None) -> tuple[np.ndarray, str]:
    """An image as (pixels of `decode_image`, sha256): of the file's bytes, or, for a part of a file, of its pixels.

    Raises UnusableImageError.
    """
    if part is None:
        pixels, data = read_image(path)
        return pixels, hashlib.sha256(data).hexdigest()
    pixels = read_part(path, part)
    return pixels, hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


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
