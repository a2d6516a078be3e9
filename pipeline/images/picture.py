"""What an image file shows: its pixels as a viewer shows them, and what lies beside them.

PNG, JPEG, BMP, TIFF and WEBP are read, by their first bytes and not by their suffix. Pillow decodes, except JPEG
(simplejpeg, the same libjpeg-turbo, which says when a scan is damaged) and colour of 16 bits (OpenCV; Pillow has none).
"""

import io
import logging
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from pipeline.errors import UserError
from pipeline.images.formats import (
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
# This module reports in one line what the decoders refuse; their own messages would be printed beside it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
for _decoder in ("PIL", "tifffile"):
    logging.getLogger(_decoder).setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"PIL\.")  # `_collected` still gets them
Image.MAX_IMAGE_PIXELS = None  # `pixel_limit` is checked instead, from the header too

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


LIMIT = "MEMOIR_MEGAPIXELS"  # the environment variable that sets `pixel_limit`


# Complaints of libjpeg about the file around the picture, which is whole. All others are about its pixels.
HARMLESS = re.compile(
    r"\d+ extraneous bytes before marker|unknown JFIF revision|Unknown Adobe color transform|thumbnail|Invalid SOS parameters"
)


class UnusableImageError(ValueError):
    """Why one file cannot be used, as a phrase for the list of rejects."""


@dataclass(frozen=True)
class Picture:
    """What a file shows, upright, in its own colour space.

    pixels: uint8 or uint16, (H, W, 1) grey or (H, W, 3) RGB. alpha: (H, W) of the same dtype; None if absent, or opaque
    everywhere. icc: the embedded profile. exif: the embedded EXIF, whose orientation is reset, as the pixels are
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
    """What an image file shows, examined, and its bytes. Raises only UnusableImageError; opens regular files only."""
    data = file_bytes(path)
    return picture(data, examined=True), data


def picture(data: bytes, *, examined: bool = False) -> Picture:
    """What the bytes of an image file show. Raises UnusableImageError and nothing else for any bytes.

    examined: also look for damage that decoders do not report, for the warnings; a JPEG then takes up to three times as long.
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
    """(width, height) of an image file as its header gives them, before it is turned upright. Raises UnusableImageError."""
    with _opened(file_bytes(path)) as (image, _, _):
        return image.size


def file_bytes(path: Path) -> bytes:
    try:
        state = path.stat()
        if stat.S_ISDIR(state.st_mode):
            raise UnusableImageError("a folder, not an image file")
        if not stat.S_ISREG(state.st_mode):
            raise UnusableImageError("not a regular file")  # opening a FIFO blocks, and a device may have effects
        if state.st_size > 8 * pixel_limit() + 2**26:  # RGBA of 16 bits, and other data beside the pixels
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
    """Turn every exception of a decoder into an UnusableImageError that starts with `failure`."""
    try:
        yield
    except (UnusableImageError, UserError):
        raise
    except MemoryError:
        raise UnusableImageError("more pixels than this machine's memory holds") from None
    except Exception as error:  # it is not documented what decoders raise for damaged files
        phrase = " ".join(str(error).split())[:120]
        raise UnusableImageError(f"{failure} ({phrase})" if phrase else failure) from None


_warnings_are_one_threads = threading.Lock()


@contextmanager
def _collected(found: list[str]) -> Iterator[None]:
    """Collect in the list the warnings that this thread causes; Python's own collection covers all threads at once."""
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
    """An image with a header that was read and accepted, its format, and a list for complaints."""
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
    """Raises UnusableImageError for a kind of image, as its header gives it, that no command takes."""
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
        if 16 in bits and planes != 1:  # Pillow and OpenCV give other pixels for these, without an error
            raise UnusableImageError("a TIFF of 16 bits a channel in separate planes; convert it to PNG")
    if image.mode in ("CMYK", "LAB", "HSV"):
        raise UnusableImageError(f"{image.mode} colours; convert it to RGB")
    if image.mode in ("I", "F"):
        raise UnusableImageError(
            (_tiff_kind(data) if kind == "TIFF" else None)
            or f"pixels of the mode {image.mode}; convert it to 8 or 16 bits"
        )


def _tiff_kind(data: bytes) -> str | None:
    """The content of a TIFF that is not read, as a phrase; None if it is unknown."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            kind, bits = np.dtype(page.dtype).kind if page.dtype is not None else "", page.bitspersample
            photometric, compression = (
                str(getattr(each, "name", each)) for each in (page.photometric, page.compression)
            )
    except Exception:  # it is not documented what damaged files raise
        return None
    if kind == "f":
        return f"a TIFF of {bits}-bit floats; convert it to integers of 8 or 16 bits"
    if kind == "i":
        return f"a TIFF of signed {bits}-bit numbers; convert it to unsigned 8 or 16 bits"
    if bits not in (1, 8, 16):
        return f"a TIFF of {bits} bits a channel; convert it to 8 or 16"
    return f"a TIFF of {photometric} in {compression}; convert it to uncompressed RGB, or to PNG"


def _pixels(image: Image.Image, data: bytes, kind: str, warned: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (H, W, C) as they lie in the file, and alpha."""
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
    """Whether a loaded PNG looks like one with too little data: Pillow leaves zeros for missing rows, without an error."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return bool(image.info.get("interlace")) or not any(last.tobytes())


def _rawmode(image: Image.Image) -> str:
    """How Pillow names the layout of the file's pixels, such as RGB;16B."""
    args = image.tile[0].args if getattr(image, "tile", None) else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _jpeg_pixels(data: bytes, colours: str, warned: list[str]) -> np.ndarray:
    """simplejpeg reports only the first complaint, so what causes harmless ones is cut off and others are reported."""
    for _ in range(2):
        try:
            return simplejpeg.decode_jpeg(data, colours)
        except ValueError as error:
            if not HARMLESS.search(str(error)):
                raise
            warned.append(str(error))
            data = jpeg_pixels_only(data)
    return simplejpeg.decode_jpeg(data, colours, strict=False)  # which still refuses junk in the header


def _jpeg_damage(data: bytes) -> Iterator[str]:
    """Signs that the scan of a JPEG is damaged although libjpeg does not complain, as phrases.

    Wrong codes are still codes, and soon fall into step with the right ones. What remains is a wrong number of blocks, or
    wrong differences between blocks. Both can go unnoticed in files with the finest tables and where scans change little.
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
    """The pixels of 16-bit colour, which Pillow cuts to 8 bits, and of 16-bit grey with alpha."""
    if raw.startswith("RGBa"):
        raise UnusableImageError("16 bits a channel with colours multiplied by alpha; save it with straight alpha")
    bare = png_pixels_only(data) if image.format == "PNG" else data  # libpng complains about other chunks on stderr
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
    except Exception:  # it is not documented what damaged files raise
        warned.append("its EXIF cannot be read, and an orientation in it is not heeded")
        return 1, None
    return (orientation if orientation in range(1, 9) else 1), data


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array turned and mirrored as EXIF's orientation 1..8 asks. array: (H, W) or (H, W, C)."""
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
