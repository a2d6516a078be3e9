"""One image by its path, as stages take it: in sRGB, at the depth that they ask for. It may be a part of a file."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.depth import Bits
from pipeline.images.colour import profile_fault, srgb_image
from pipeline.images.picture import UnusableImageError, file_bytes, picture, read_picture


def read_image(path: Path, *, bits: Bits = 8) -> tuple[np.ndarray, bytes]:
    """An image file as (pixels of `decode_image`, its bytes). Raises UnusableImageError."""
    data = file_bytes(path)
    return decode_image(data, bits=bits), data


def decode_image(data: bytes, *, bits: Bits = 8) -> np.ndarray:
    """The bytes of an image file as (H, W, 1) grey or (H, W, 3) RGB of the file's own depth, upright, in sRGB.

    bits: the most bits per channel that it may have. 8: uint8; 16: uint8 or uint16, which `pipeline.depth` unifies. Raises
    UnusableImageError for images that training does not take: see `srgb_image`, and images with more bits, since only their
    owner can decide to round them.
    """
    return _at_most(srgb_image(picture(data))[0], bits)


def _at_most(pixels: np.ndarray, bits: Bits) -> np.ndarray:
    if pixels.dtype.itemsize * 8 > bits:
        raise UnusableImageError("16 bits a channel; convert it to 8, or say bits: 16 in the task")
    return pixels


def source_image(path: Path, part: str | None, *, bits: Bits = 8) -> tuple[np.ndarray, str]:
    """An image as (pixels of `decode_image`, sha256 of the file's bytes or, for a part of a file, of its pixels).

    Raises UnusableImageError.
    """
    known = source_facts(path, part, bits=bits)
    return known.pixels, known.sha256


@dataclass(frozen=True)
class Facts:
    """What `ingest` records of an image. profile: the name of the embedded profile whose colours were converted to sRGB.

    warnings: what the decoder complained of, and what is ignored in the file, as phrases.
    """

    pixels: np.ndarray
    sha256: str
    profile: str | None
    warnings: tuple[str, ...]


def source_facts(path: Path, part: str | None, *, bits: Bits = 8) -> Facts:
    """`source_image`, with what else is known of the file. Raises UnusableImageError."""
    if part is not None:
        pixels = read_part(path, part, bits=bits)
        return Facts(pixels, hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest(), None, ())
    shown, data = read_picture(path)
    pixels, profile = srgb_image(shown)
    fault = profile_fault(shown)
    said = (*shown.warnings, fault) if fault else shown.warnings
    return Facts(_at_most(pixels, bits), hashlib.sha256(data).hexdigest(), profile, said)


def read_part(path: Path, part: str, *, bits: Bits = 8) -> np.ndarray:
    """One image of a file that holds several, as pixels of `decode_image`.

    part: "left" or "right", the halves of an image that holds a pair side by side; or a variable of a MATLAB file and where
    the image lies in it, counted from 0: "ValidationGtBlocksSrgb[39,31]", or "InoisySRGB[0:512,88:600]". Floats there are
    in [0, 1], and rounded to 8 bits (values beyond, up to 2, become black and white). Raises UnusableImageError.
    """
    if part in ("left", "right"):
        pixels, _ = read_image(path, bits=bits)
        half, odd = divmod(pixels.shape[1], 2)
        if odd:
            raise UnusableImageError(f"{pixels.shape[1]} pixels wide, which is no pair side by side")
        return np.ascontiguousarray(pixels[:, :half] if part == "left" else pixels[:, half:])
    array = matlab_image(path, part)
    if array.dtype.kind == "f":
        array = np.rint(array * 255).clip(0, 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnusableImageError(f"{part} holds {array.dtype}, not 8-bit pixels")
    return array


def matlab_image(path: Path, part: str) -> np.ndarray:
    """An image in a MATLAB file as it stands there, (H, W, 1) or (H, W, 3), not rounded. part: as in `read_part`.

    Raises UnusableImageError for a damaged file, another shape, and for floats that are not in [0, 1].
    """
    name, _, inside = part.removesuffix("]").partition("[")
    array = _cut(path, name, [[int(n) for n in index.split(":")] for index in inside.split(",")])
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise UnusableImageError(f"{part} is {_by(array.shape)}, which is no image of 1 or 3 channels")
    # a resampled image overshoots 1, but not beyond 2
    if array.dtype.kind == "f" and (not np.isfinite(array).all() or array.max(initial=0) > 2):
        raise UnusableImageError(f"{part} holds floats that are not in [0, 1]")
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

        with h5py.File(path) as file:  # h5py reads only what is asked for
            variable = file.get(name)
            return _indexed(variable if isinstance(variable, h5py.Dataset) else None, name, ranges, turned=True)
    except UnusableImageError:
        raise
    except Exception:  # it is not documented what the two readers raise for damaged files
        raise UnusableImageError("not a MATLAB file, or damaged") from None


def _indexed(variable: Any, name: str, ranges: list[list[int]], *, turned: bool = False) -> np.ndarray:
    """The part of `variable` at an index. turned: its axes are MATLAB's from last to first, as HDF5 has them."""
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
