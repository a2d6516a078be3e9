"""Writing of image files: pixels with the metadata beside them."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images.picture import SUFFIXES

JPEG_EXIF = 65533  # bytes; a segment has 65535 with its length


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
    "4:2:0"): for JPEG; WEBP is lossless. Raises UserError for a suffix that is not in SUFFIXES, and for what the format
    cannot hold.
    """
    check_format(path, pixels.dtype, alpha=alpha is not None, exif=exif)
    flat = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.dtype == np.uint16:
        data = _encode_wide(path, flat, alpha, icc, exif, dpi)
    else:
        try:
            data = _encode(path.suffix.lower(), flat, alpha, icc, exif, dpi, quality, subsampling)
        except (ValueError, OSError) as error:  # the format limits the sides and the metadata
            raise UserError(f"{path}: cannot be written in this format ({error}); write a PNG") from None
    write_bytes(path, data)


def check_format(path: Path, dtype: np.typing.DTypeLike, *, alpha: bool, exif: bytes | None) -> None:
    """Raise UserError unless the suffix's format holds pixels of this dtype, transparency where there is any, and EXIF."""
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
