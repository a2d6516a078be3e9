"""What the bytes of a file say: its format, why it is not read, and damage that decoders do not report."""

import re
import struct
import zlib
from collections.abc import Iterator

# The first bytes of the formats that are read, with Pillow's names for them.
FORMATS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
}
# The first bytes of other formats that occur among image files, whatever their suffix.
FOREIGN = {
    b"GIF8": "a GIF, which may have several frames",
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"DDS ": "a DDS texture",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"qoif": "QOI",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"SIMPLE  =": "FITS",
    b"\x8aMNG": "MNG",
    b"\x8bJNG": "JNG",
    b"II\xbc": "JPEG XR",
    b"IIRO": "a raw photograph (ORF)",
    b"IIU\0": "a raw photograph (RW2)",
    b"FUJIFILM": "a raw photograph (RAF)",
    b"FOVb": "a raw photograph (X3F)",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "HDF5",
    b"<svg": "SVG",
    b"<!DOCTYPE html": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
# The formats of ISO base media files, by brand.
BRANDS = {
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"hevc": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
    b"crx ": "a raw photograph (CR3)",
}
NETPBM = re.compile(rb"P[1-7fF][\s#]")
# The start-of-frame markers of JPEG that libjpeg does not decode to 8 bits, or not everywhere.
LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
HIERARCHICAL = (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF)
HUFFMAN = (0xC0, 0xC1, 0xC2)  # Huffman-coded; the other kinds that are decoded are arithmetic-coded
SCAN_END = re.compile(rb"\xff+[^\0\xd0-\xd7\xff]", re.DOTALL)  # a marker that cannot stand inside a scan
# The passes of an interlaced PNG: the first column and row, and the steps from one to the next.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def image_format(data: bytes) -> str | None:
    """Pillow's name of the format if it is read (PNG, JPEG, BMP, TIFF, WEBP); None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for magic, name in FORMATS.items() if data.startswith(magic)), None)


def foreign(data: bytes) -> str | None:
    """The format of a file that is not read, as a noun phrase; None if it is unknown."""
    if data[4:8] == b"ftyp":
        return BRANDS.get(data[8:12], "a video or another ISO media file")
    if NETPBM.match(data):
        return "PNM"
    return next((name for magic, name in FOREIGN.items() if data.lstrip(b"\xef\xbb\xbf").startswith(magic)), None)


def png_damage(data: bytes) -> str | None:
    """Damage of a PNG that its checksums show, as a phrase; None if there is none. Decoders do not check all of them."""
    at = 8
    while at < len(data):
        if at + 12 > len(data):
            return "truncated"
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            return "truncated"
        if zlib.crc32(memoryview(data)[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return f"the checksum of its {kind.decode('latin-1') if kind.isalpha() else 'next'} chunk is wrong"
        if kind == b"IEND":
            return None
        at = end + 4
    return "truncated"


def png_pixels_only(data: bytes) -> bytes:
    """A PNG without its ancillary chunks. data: one in which `png_damage` finds nothing."""
    return data[:8] + b"".join(data[at:end] for kind, at, end in _png_chunks(data) if kind[:1].isupper())


def png_falls_short(data: bytes) -> bool:
    """Whether a PNG holds fewer pixels than its header says. data: one in which `png_damage` finds nothing."""
    missing, stream = 0, zlib.decompressobj()
    for kind, at, end in _png_chunks(data):
        part = data[at + 8 : end - 4]
        if kind == b"IHDR":
            missing = _png_bytes(part)
        while kind == b"IDAT" and part and missing > 0:
            try:
                missing -= len(stream.decompress(part, 1 << 20))
            except zlib.error:
                return True
            part = stream.unconsumed_tail
    return missing > len(stream.flush())


def _png_bytes(header: bytes) -> int:
    """How many bytes the pixels of a PNG take, with the byte that starts each row. header: the contents of IHDR."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colours, 1)
    steps = ADAM7 if interlaced else [(0, 0, 1, 1)]
    sizes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in steps]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk, up to IEND. data: a PNG in which `png_damage` finds nothing."""
    at, kind = 8, b""
    while kind != b"IEND":
        kind = data[at + 4 : at + 8]
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        yield kind, at, end
        at = end


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(offset, marker, contents) of the segments of a JPEG up to the header of its first scan, which is the last of them."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:  # junk between segments, which decoders skip
            at += 1
            continue
        marker = data[at + 1]
        if marker in (0xFF, 0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # fill bytes, and markers without contents
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield at, marker, data[at + 4 : at + 2 + length]
        if marker == 0xDA:
            return
        at += 2 + length


def _starts_frame(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)


def jpeg_fault(data: bytes) -> str | None:
    """Why the kind of a JPEG is not read, as a phrase; None for the ordinary kinds, and if the kind is unknown."""
    for _, marker, contents in jpeg_segments(data):
        if _starts_frame(marker) and len(contents) >= 6:
            bits, channels = contents[0], contents[5]
            if marker in LOSSLESS:
                return "lossless JPEG; convert it to PNG"
            if marker in HIERARCHICAL:
                return "hierarchical JPEG; convert it to PNG"
            if bits != 8:
                return f"a JPEG of {bits} bits a channel; convert it to 8, or to PNG"
            if channels not in (1, 3, 4):
                return f"a JPEG of {channels} channels; convert it to RGB"
    return None


def jpeg_pixels_only(data: bytes) -> bytes:
    """A JPEG without the data beside its picture: junk between segments, comments, thumbnails, the version of JFIF."""
    kept = [data[:2]]
    for at, marker, contents in jpeg_segments(data):
        if marker == 0xDA:
            return b"".join((*kept, data[at:]))
        if marker == 0xE0 and contents.startswith(b"JFIF\0"):
            contents = b"JFIF\0\1\1" + contents[7:]
        elif marker == 0xEE and contents.startswith(
            b"Adobe"
        ):  # the last byte says whether the colours are RGB or YCbCr
            contents = contents[:11] + bytes(min(each, 1) for each in contents[11:])
        elif marker >= 0xE0:
            continue
        kept.append(struct.pack(">BBH", 0xFF, marker, len(contents) + 2) + contents)
    return data


def jpeg_shortened(data: bytes) -> bytes | None:
    """A JPEG without the last byte of its last scan; None if the end is not found, or decoders do not report the lack."""
    segments = list(jpeg_segments(data))
    if any(_starts_frame(marker) and marker not in HUFFMAN for _, marker, _ in segments):
        return None
    at = segments[-1][0] if segments else len(data)
    while at + 4 <= len(data):
        found = SCAN_END.search(data, at + 2 + struct.unpack_from(">H", data, at + 2)[0])
        if not found:
            return None
        at = found.end() - 2
        if data[at + 1] == 0xD9:
            return data[: found.start() - 1] + data[found.start() :]
    return None


def jpeg_of_means(data: bytes) -> tuple[bytes, list[float]] | None:
    """A JPEG that shows each block's mean at about half its contrast, and how far from 128 such means can be in a picture.

    A block's mean is coded as its difference from the block before. Where damage changes the differences, their sum soon
    leaves the range of 8 bits. A decoder clips it without a warning, but at half the contrast it is visible. The distances
    are those of Y, Cb and Cr, or of grey; infinite where a table is too fine. None if the file lacks the tables for it.
    """
    changed, steps, tables = bytearray(data), {}, b""
    for at, marker, contents in jpeg_segments(data):
        k = 0
        while marker == 0xDB and k < len(contents):
            width, start = 1 + (contents[k] > 15), k + 1
            k = start + 64 * width
            if k > len(contents):
                return None
            step = int.from_bytes(contents[start : start + width], "big")
            steps[contents[start - 1] & 15] = step
            changed[at + 4 + start : at + 4 + k] = max(1, step // 2).to_bytes(width, "big") + bytes(63 * width)
        if _starts_frame(marker):
            tables = contents[8::3]
    if not tables or not all(steps.get(table) for table in tables):
        return None
    found = [steps[table] for table in tables]
    # The most that 8 coefficients of the mean can be is 1024, and rounding adds a step; then the rounding of the result.
    return bytes(changed), [(1024 / step + 1) * (step // 2) / 8 + 1 if step > 1 else float("inf") for step in found]


def webp_frames(data: bytes) -> bool:
    """Whether a WebP says that it is animated."""
    return data[12:16] == b"VP8X" and len(data) > 20 and bool(data[20] & 2)
