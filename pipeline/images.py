"""Reading and writing image files: the one place where files become arrays.

PNG, JPEG, BMP, TIFF and WEBP are read, by their first bytes and not by their suffix. Pillow decodes, except JPEG
(simplejpeg, the same libjpeg-turbo, which says when a scan is damaged) and colour of 16 bits (OpenCV; Pillow has none).
"""

import hashlib
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageCms

from pipeline.depth import Bits
from pipeline.errors import UserError
from pipeline.formats import (
    foreign,
    image_format,
    jpeg_fault,
    jpeg_of_means,
    jpeg_pixels_only,
    jpeg_shortened,
    png_damage,
    png_falls_short,
    png_pixels_only,
    webp_frames,
)

cv2.setNumThreads(1)  # parallelism is over images; nested threads only contend
# What the decoders refuse is reported here, in one line; their own words of it would stand beside it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
for _decoder in ("PIL", "tifffile"):
    logging.getLogger(_decoder).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")  # but `_collected` has them
Image.MAX_IMAGE_PIXELS = None  # `pixel_limit` is checked instead, from the header too

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
LIMIT = "MEMOIR_MEGAPIXELS"  # the environment's name of the setting of `pixel_limit`

JPEG_EXIF = 65533  # bytes, of a segment's 65535 with its length
# Complaints of libjpeg after which the picture is whole: of the file around it. All others are of its pixels.
HARMLESS = re.compile(
    r"\d+ extraneous bytes before marker|unknown JFIF revision|Unknown Adobe color transform|thumbnail|Invalid SOS parameters"
)


class UnusableImageError(ValueError):
    """Why one file cannot be used, as a phrase for the list of rejects."""


@dataclass(frozen=True)
class Picture:
    """What a file shows, upright, in its own colour space.

    pixels: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB. alpha: (H, W) of the same dtype; None where there is none, or it
    is opaque everywhere. icc: the embedded profile. exif: the embedded EXIF, whose orientation is reset, as the pixels are
    upright. dpi: horizontal and vertical. warnings: what the decoder complained of, as phrases.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    icc: bytes | None
    exif: bytes | None
    dpi: tuple[float, float] | None
    warnings: tuple[str, ...]


def pixel_limit() -> int:
    """How many pixels an image may have: a million times the environment's MEMOIR_MEGAPIXELS, 200 by default.

    Raises UserError for a value that is no positive number.
    """
    value = os.environ.get(LIMIT, "200")
    try:
        limit = round(float(value) * 1e6)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise UserError(f"{LIMIT}={value}: give a positive number, the millions of pixels that an image may have")
    return limit


def read_picture(path: Path) -> tuple[Picture, bytes]:
    """What an image file shows, examined, and its bytes. Raises UnusableImageError and nothing else; opens regular files only."""
    data = _file_bytes(path)
    return picture(data, examined=True), data


def picture(data: bytes, *, examined: bool = False) -> Picture:
    """What the bytes of an image file show. Raises UnusableImageError and nothing else for any bytes.

    examined: look for damage that decoders pass over, too, for the warnings; a JPEG then takes up to three times as long.
    """
    with _opened(data) as (image, kind, warned):
        with _decoding("damaged or truncated"):
            pixels, alpha = _pixels(image, data, kind, warned)
            if examined and kind == "JPEG":
                warned += _jpeg_damage(data)
        orientation, exif = _exif(image, kind, warned)
        icc = image.info.get("icc_profile") or None
        dpi = _dpi(image.info.get("dpi"))
    if orientation != 1:
        pixels, alpha = _upright(pixels, orientation), None if alpha is None else _upright(alpha, orientation)
    if alpha is not None and alpha.min() == np.iinfo(alpha.dtype).max:
        alpha = None
    return Picture(
        np.ascontiguousarray(pixels),
        alpha,
        icc if isinstance(icc, bytes) else None,
        exif,
        dpi,
        tuple(dict.fromkeys(warned)),
    )


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as its header has them, before it is turned upright. Raises UnusableImageError."""
    with _opened(_file_bytes(path)) as (image, _, _):
        return image.size


def read_image(path: Path, *, bits: Bits = 8) -> tuple[np.ndarray, bytes]:
    """An image file as (pixels of `decode_image`, its bytes). Raises UnusableImageError."""
    data = _file_bytes(path)
    return decode_image(data, bits=bits), data


def decode_image(data: bytes, *, bits: Bits = 8) -> np.ndarray:
    """The bytes of an image file as (H, W, 1) grey or (H, W, 3) RGB of the file's own depth, upright, in sRGB.

    bits: a channel that it may have at most. 8: uint8; 16: uint8 or uint16, which `pipeline.depth` makes one. Raises
    UnusableImageError for what training does not take: see `srgb_image`, and more bits, since rounding them is a decision of
    whoever has them.
    """
    return _at_most(srgb_image(picture(data))[0], bits)


def _at_most(pixels: np.ndarray, bits: Bits) -> np.ndarray:
    if pixels.dtype.itemsize * 8 > bits:
        raise UnusableImageError("16 bits a channel; convert it to 8, or say bits: 16 in the task")
    return pixels


def srgb_image(shown: Picture) -> tuple[np.ndarray, str | None]:
    """The pixels of a picture, converted from its embedded profile to sRGB, and that profile's name if that changed them.

    Raises UnusableImageError for real transparency, and for 16 bits in another colour space than sRGB. A profile that cannot
    be used is passed by: `profile_fault` says so.
    """
    if shown.alpha is not None:
        raise UnusableImageError("alpha channel (transparent in places); flatten it")
    profile = _profile(shown.icc, shown.pixels.shape[2]) if shown.icc else None
    if profile is None or profile.transform is None:
        return shown.pixels, None
    if shown.pixels.dtype != np.uint8:
        raise UnusableImageError(f"16 bits a channel in the colours of {profile.name}; convert it to sRGB")
    grey = shown.pixels.shape[2] == 1
    image = Image.fromarray(shown.pixels[..., 0] if grey else shown.pixels)
    converted = np.asarray(profile.transform.apply(image))
    return (np.ascontiguousarray(converted[..., :1]) if grey else converted), profile.name


def profile_fault(shown: Picture) -> str | None:
    """Why the embedded profile of a picture is not heeded, as a phrase; None if it is, or there is none."""
    return _profile(shown.icc, shown.pixels.shape[2]).fault if shown.icc else None


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


def source_image(path: Path, part: str | None, *, bits: Bits = 8) -> tuple[np.ndarray, str]:
    """An image as (pixels of `decode_image`, sha256): of the file's bytes, or, for a part of a file, of its pixels.

    Raises UnusableImageError.
    """
    known = source_facts(path, part, bits=bits)
    return known.pixels, known.sha256


@dataclass(frozen=True)
class Facts:
    """What `ingest` records of an image. profile: the name of the embedded profile whose colours were converted to sRGB.

    warnings: of the decoder, and of what the file has and is not heeded, as phrases.
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


def _file_bytes(path: Path) -> bytes:
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise UnusableImageError("a folder, not an image file")
        if not stat.S_ISREG(state.st_mode):
            raise UnusableImageError("not a regular file")  # opening a FIFO waits, a device does what it does
        if state.st_size > 8 * pixel_limit() + 2**26:  # RGBA of 16 bits, and what may lie around it
            raise UnusableImageError(f"too large a file for an image ({state.st_size:,} bytes; {LIMIT} is the setting)")
        return path.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"cannot be opened: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, UnusableImageError | UserError):
            raise
        raise UnusableImageError("cannot be opened: its name holds a zero byte") from None


@contextmanager
def _decoding(failure: str) -> Iterator[None]:
    """Whatever a decoder raises becomes an UnusableImageError that starts with `failure`."""
    try:
        yield
    except (UnusableImageError, UserError):
        raise
    except MemoryError:
        raise UnusableImageError("more pixels than this machine's memory holds") from None
    except Exception as error:  # what damage does to the decoders is not documented
        phrase = " ".join(str(error).split())[:120]
        raise UnusableImageError(f"{failure} ({phrase})" if phrase else failure) from None


_warnings_are_one_threads = threading.Lock()


@contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    """Warnings that this thread causes inside go to the list; Python's own collection is of all threads at once."""
    me = threading.get_ident()
    with _warnings_are_one_threads, warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, *rest: Any, **named: Any) -> None:
            if threading.get_ident() == me:
                found.append(" ".join(str(message).split()))
            else:
                others(message, *rest, **named)

        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Image.Image, str, list[str]]]:
    """An image whose header has been read and is acceptable, its format, and a list for complaints."""
    if not data:
        raise UnusableImageError("empty file")
    kind = image_format(data)
    if kind is None:
        other = foreign(data)
        raise UnusableImageError(f"{other}; convert it to PNG" if other else "not an image, or its header is damaged")
    if kind == "WEBP" and webp_frames(data):
        raise UnusableImageError("several frames (animated WebP); save the wanted one as PNG")
    warned: list[str] = []
    with _decoding("not an image, or its header is damaged"):
        try:
            with _collected(warned):
                image = Image.open(io.BytesIO(data), formats=[kind])
        except Exception:
            reason = jpeg_fault(data) if kind == "JPEG" else _tiff_kind(data) if kind == "TIFF" else None
            if reason:
                raise UnusableImageError(reason) from None
            raise
    with image:
        with _decoding("not an image, or its header is damaged"):
            _check_header(image, kind, data)
        yield image, kind, warned


def _check_header(image: Image.Image, kind: str, data: bytes) -> None:
    """Raises UnusableImageError for what the header says and no command takes."""
    width, height = image.size
    if width <= 0 or height <= 0:
        raise UnusableImageError("no pixels")
    limit = pixel_limit()
    if width * height > limit:
        raise UnusableImageError(
            f"{width}x{height} pixels, and at most {limit / 1e6:g} million are read; cut it into tiles, or set {LIMIT}"
        )
    if kind == "JPEG":
        entries = getattr(image, "mpinfo", None)  # a phone's preview or gain map beside its picture is no second frame
        kinds = [entry["Attribute"]["MPType"] for entry in entries[0xB002]] if entries else []
        frames = sum(each.startswith("Multi-Frame") for each in kinds)
    else:
        frames = getattr(image, "n_frames", 1)
    if frames > 1:
        names = {"PNG": "animated PNG", "TIFF": "pages of a TIFF", "WEBP": "animated WebP", "JPEG": "MPO"}
        raise UnusableImageError(f"{frames} frames ({names.get(kind, kind)}); save the wanted one as PNG")
    if kind == "TIFF" and image.mode in ("RGB", "RGBA"):
        bits, planes = (image.tag_v2.get(tag, default) for tag, default in ((258, ()), (284, 1)))  # type: ignore[attr-defined]
        if 16 in bits and planes != 1:  # of which Pillow and OpenCV give other pixels, and no error
            raise UnusableImageError("a TIFF of 16 bits a channel in separate planes; convert it to PNG")
    if image.mode in ("CMYK", "LAB", "HSV"):
        raise UnusableImageError(f"{image.mode} colours; convert it to RGB")
    if image.mode in ("I", "F"):
        raise UnusableImageError(
            (_tiff_kind(data) if kind == "TIFF" else None)
            or f"pixels of the mode {image.mode}; convert it to 8 or 16 bits"
        )


def _tiff_kind(data: bytes) -> str | None:
    """What a TIFF holds that is not read; None if that cannot be told."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            kind, bits = np.dtype(page.dtype).kind if page.dtype is not None else "", page.bitspersample
            photometric, compression = (
                str(getattr(each, "name", each)) for each in (page.photometric, page.compression)
            )
    except Exception:  # what damage does is not documented
        return None
    if kind == "f":
        return f"a TIFF of {bits}-bit floats; convert it to integers of 8 or 16 bits"
    if kind == "i":
        return f"a TIFF of signed {bits}-bit numbers; convert it to unsigned 8 or 16 bits"
    if bits not in (1, 8, 16):
        return f"a TIFF of {bits} bits a channel; convert it to 8 or 16"
    return f"a TIFF of {photometric} in {compression}; convert it to uncompressed RGB, or to PNG"


def _pixels(image: Image.Image, data: bytes, kind: str, warned: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, C) as they lie in the file, and alpha."""
    if kind == "PNG" and (damage := png_damage(data)):
        raise UnusableImageError(f"damaged or truncated ({damage})")
    if kind == "JPEG":
        return _jpeg_pixels(data, "GRAY" if image.mode == "L" else "RGB", warned), None
    raw = _rawmode(image)
    if "16" in raw and image.mode in ("RGB", "RGBA") and kind in ("PNG", "TIFF"):
        return _wide_colour(image, data, raw)
    inverted = kind == "TIFF" and image.tag_v2.get(262) == 0 and image.mode == "I;16"  # type: ignore[attr-defined]
    image.load()
    if kind == "PNG" and _may_lack_rows(image) and png_falls_short(data):
        raise UnusableImageError("damaged or truncated (it ends before its last row)")
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16)
        clear = image.info.get("transparency")
        alpha = np.where(grey == clear, np.uint16(0), np.uint16(65535)) if isinstance(clear, int) else None
        return (65535 - grey if inverted else grey)[..., None], alpha
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if "transparency" in image.info or image.mode == "PA":
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    elif image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if image.mode in ("LA", "RGBA"):
        return array[..., :-1], np.ascontiguousarray(array[..., -1])
    return array.reshape(*array.shape[:2], -1), None


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether a loaded PNG looks like one with too little data, in whose place Pillow leaves zeros and says nothing."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or not any(last.tobytes())


def _rawmode(image: Image.Image) -> str:
    """How Pillow names the layout of the file's pixels, such as RGB;16B."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _jpeg_pixels(data: bytes, colours: str, warned: list[str]) -> np.ndarray:
    """simplejpeg tells the first complaint only: what harmless ones are about is cut off, so that others are heard."""
    for _ in range(2):
        try:
            return simplejpeg.decode_jpeg(data, colours)
        except ValueError as error:
            if not HARMLESS.search(str(error)):
                raise
            warned.append(str(error))
            data = jpeg_pixels_only(data)
    return simplejpeg.decode_jpeg(data, colours, strict=False)  # which does not let junk in the header pass


def _jpeg_damage(data: bytes) -> Iterator[str]:
    """What shows that the scan of a JPEG is damaged where libjpeg has no complaint, as phrases.

    Wrong codes are still codes, and soon fall into step with the right ones. What is left is a wrong number of blocks, or
    wrong differences between blocks. Either can stay unseen: files of the finest tables, and scans that change by little.
    """
    means = jpeg_of_means(data)
    if means is not None:
        with suppress(Exception), Image.open(io.BytesIO(means[0]), formats=["JPEG"]) as image:
            image.draft(
                "YCbCr" if image.mode == "RGB" else "L", (1, 1)
            )  # an eighth of the size: a pixel for each block
            shown = np.asarray(image).reshape(image.size[1], image.size[0], -1).astype(np.int16)
            if (np.abs(shown - 128) > means[1]).any():
                yield "its scan is damaged: it holds values that no picture has"
    short = jpeg_shortened(data)
    if short is not None:
        with suppress(ValueError):
            simplejpeg.decode_jpeg(short, "GRAY", min_width=1, min_height=1)
            yield "its scan may be damaged: bytes are left over after its last block"


def _wide_colour(image: Image.Image, data: bytes, raw: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour of 16 bits, which Pillow cuts to 8, and 16-bit grey with alpha."""
    if raw.startswith("RGBa"):
        raise UnusableImageError("16 bits a channel with colours multiplied by alpha; save it with straight alpha")
    bare = png_pixels_only(data) if image.format == "PNG" else data  # of other chunks libpng complains on stderr
    array = cv2.imdecode(np.frombuffer(bare, np.uint8), cv2.IMREAD_UNCHANGED)
    shapes = [(image.height, image.width, channels) for channels in (3, 4)]
    if array is None or array.dtype != np.uint16 or array.shape not in shapes:
        raise UnusableImageError(
            "16 bits a channel, damaged or in a layout that OpenCV does not read; convert it to PNG"
        )
    colours = array[..., 2::-1]
    alpha = np.ascontiguousarray(array[..., 3]) if array.shape[2] == 4 and "X" not in raw else None
    clear = image.info.get("transparency")
    if alpha is None and isinstance(clear, tuple):
        alpha = np.where((colours == clear).all(axis=2), np.uint16(0), np.uint16(65535))
    return (colours[..., :1] if raw.startswith("LA") else colours), alpha


def _exif(image: Image.Image, kind: str, warned: list[str]) -> tuple[int, bytes | None]:
    """(orientation, EXIF with orientation 1). A TIFF is turned by both decoders; its tags are not EXIF."""
    if kind == "TIFF":
        return 1, None
    try:
        with _collected(warned):
            exif = image.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, 1)
            if orientation != 1:
                exif[ExifTags.Base.Orientation] = 1
            data = exif.tobytes() if len(exif) else None
    except Exception:  # what damage does is not documented
        warned.append("its EXIF cannot be read, and an orientation in it is not heeded")
        return 1, None
    return (orientation if orientation in range(1, 9) else 1), data


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turned and mirrored as EXIF's orientation 1..8 asks. array: (H, W) or (H, W, C)."""
    if orientation >= 5:
        array = array.swapaxes(0, 1)
    vertical, horizontal = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(array[:: -1 if vertical else 1, :: -1 if horizontal else 1])


def _dpi(value: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(each) for each in value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (x, y) if 0 < x < 1e5 and 0 < y < 1e5 else None


@dataclass(frozen=True)
class _Profile:
    """An embedded profile for images of so many channels. transform: to sRGB, None if it is sRGB or cannot be used."""

    name: str
    transform: Any
    fault: str | None


@lru_cache(maxsize=16)
def _profile(icc: bytes, channels: int) -> _Profile:
    mode = "L" if channels == 1 else "RGB"
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(icc))
        name = " ".join(ImageCms.getProfileName(profile).split()) or "an unnamed profile"
        flags = ImageCms.Flags.NOCACHE  # the cache of one transform is not for many threads
        transform = ImageCms.buildTransform(profile, _srgb(), mode, "RGB", flags=flags)
        probe = _probe(channels)
        converted = np.asarray(transform.apply(Image.fromarray(probe))).astype(int)
    except Exception:  # what damage does is not documented
        return _Profile("", None, "its colour profile cannot be used, and is not heeded")
    alike = np.abs(converted - probe.reshape(*probe.shape[:2], -1)).max() <= 1
    return _Profile(name, None if alike else transform, None)


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")


def _probe(channels: int) -> np.ndarray:
    """Colours that tell a profile from sRGB: all greys, or a grid of 17x17x17."""
    if channels == 1:
        return np.arange(256, dtype=np.uint8)[None]
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)


def write_image(
    path: Path,
    pixels: np.ndarray,
    *,
    alpha: np.ndarray | None = None,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
    quality: int = 95,
    subsampling: str = "4:4:4",
) -> None:
    """Write an image in the format of the suffix, atomically.

    pixels: uint8 (H, W), (H, W, 1) grey or (H, W, 3) RGB; uint16 for PNG and TIFF. alpha: (H, W) of the same dtype, not for
    JPEG and BMP. icc, exif, dpi: what `Picture` has; not for BMP and 16-bit TIFF. quality, subsampling ("4:4:4", "4:2:2" or
    "4:2:0"): of JPEG; WEBP is lossless. Raises UserError for a suffix that is not in SUFFIXES, and for what the format
    cannot hold.
    """
    check_format(path, pixels.dtype, alpha=alpha is not None, exif=exif)
    flat = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.dtype == np.uint16:
        data = _encode_wide(path, flat, alpha, icc, exif, dpi)
    else:
        try:
            data = _encode(path.suffix.lower(), flat, alpha, icc, exif, dpi, quality, subsampling)
        except (ValueError, OSError) as error:  # of the format's limits on sides and on what lies beside the pixels
            raise UserError(f"{path}: cannot be written in this format ({error}); write a PNG") from None
    write_bytes(path, data)


def check_format(path: Path, dtype: np.typing.DTypeLike, *, alpha: bool, exif: bytes | None) -> None:
    """Raise UserError unless the format of the suffix holds pixels of this dtype, transparency where there is any, and EXIF."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: not a name for an image; end it in {', '.join(sorted(SUFFIXES))}")
    if alpha and suffix in (".jpg", ".jpeg", ".bmp"):
        raise UserError(f"{path}: {suffix} holds no transparency; write a PNG")
    if dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        raise UserError(f"{path}: {suffix} holds 8 bits a channel, and these are 16; write a PNG")
    if exif and len(exif) > JPEG_EXIF and suffix in (".jpg", ".jpeg"):
        raise UserError(f"{path}: {len(exif):,} bytes of EXIF, and a JPEG holds {JPEG_EXIF:,}; write a PNG")


def _encode(
    suffix: str,
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    icc: bytes | None,
    exif: bytes | None,
    dpi: tuple[float, float] | None,
    quality: int,
    subsampling: str,
) -> bytes:
    layers = pixels if alpha is None else np.dstack([pixels, alpha])
    image = Image.fromarray(layers[..., 0] if layers.shape[2] == 1 else layers)
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}.get(suffix, suffix[1:].upper())
    settings: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": subsampling},
        "PNG": {"compress_level": 1},
        "WEBP": {"lossless": True, "exact": True},
    }
    options = settings.get(kind, {})
    if kind != "BMP":
        options |= {name: value for name, value in (("icc_profile", icc), ("exif", exif), ("dpi", dpi)) if value}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _encode_wide(
    path: Path,
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    icc: bytes | None,
    exif: bytes | None,
    dpi: tuple[float, float] | None,
) -> bytes:
    suffix = path.suffix.lower()
    if suffix != ".png" and (icc or exif or dpi):
        raise UserError(f"{path}: a TIFF of 16 bits is written without profile, EXIF and dpi; write a PNG")
    if alpha is not None:
        pixels = np.dstack([np.broadcast_to(pixels, (*pixels.shape[:2], 3)), alpha])
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[pixels.shape[2]]
    ok, coded = cv2.imencode(suffix, np.ascontiguousarray(pixels[..., order]))
    assert ok
    data: bytes = coded.tobytes()
    return data if suffix != ".png" else _png_with(data, icc, exif, dpi)


def _png_with(data: bytes, icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """A PNG with these chunks behind its header, which OpenCV does not write."""
    chunks = []
    if icc:
        chunks.append(b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc))
    if dpi:
        chunks.append(b"pHYs" + struct.pack(">IIB", *(round(each / 0.0254) for each in dpi), 1))
    if exif:
        chunks.append(b"eXIf" + exif.removeprefix(b"Exif\0\0"))
    added = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )
    header = 8 + 25  # the signature, and IHDR
    return data[:header] + added + data[header:]


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
