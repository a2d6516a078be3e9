import errno
import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import encode, photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.images import (
    UnusableImageError,
    decode_image,
    picture,
    profile_fault,
    read_image,
    read_picture,
    srgb_image,
    write_image,
)

RGB = photograph(1, 40, 50)
GREY = RGB[..., :1]
PALETTE = Image.fromarray(RGB).quantize(32)
ROTATION = 0x0112  # the EXIF tag of the orientation


def encode_with_exif(pixels: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ROTATION] = orientation
    return encode(pixels, "JPEG", exif=exif, quality=95)


# what is taken


@pytest.mark.parametrize("suffix", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_lossless_files_give_their_pixels(suffix, pixels):
    assert (decode_image(encode(pixels.squeeze(), suffix)) == pixels).all()


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_a_jpeg_gives_about_its_pixels_with_its_channels(pixels):
    smooth = np.full_like(pixels, (200, 120, 40)[: pixels.shape[2]])
    decoded = decode_image(encode(smooth.squeeze(), "JPEG", quality=95))
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - smooth).max() <= 3  # an exchange of red and blue would be 160


def test_a_palette_is_looked_up():
    assert (decode_image(encode(np.asarray(PALETTE.convert("RGB")), "PNG")) == np.asarray(PALETTE.convert("RGB"))).all()
    assert (decode_image(_png(PALETTE)) == np.asarray(PALETTE.convert("RGB"))).all()


def test_one_bit_is_grey():
    bits = Image.fromarray(GREY.squeeze()).convert("1")
    assert (decode_image(_png(bits)) == np.asarray(bits)[..., None] * np.uint8(255)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_a_photograph_is_turned_upright(orientation, pixels):
    blocks = np.kron(pixels[:5, :6], np.ones((8, 8, 1), np.uint8))  # (40, 48, C), one colour for each block of the JPEG
    data = encode_with_exif(blocks.squeeze(), orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert upright.shape[:2] == ((48, 40) if orientation > 4 else (40, 48))
    decoded = decode_image(data)
    assert decoded.shape == (*upright.shape[:2], pixels.shape[2])
    assert np.abs(decoded.squeeze().astype(int) - upright).max() <= 2


def test_the_bytes_come_with_the_pixels(tmp_path):
    (tmp_path / "1.png").write_bytes(encode(RGB, "PNG"))
    pixels, data = read_image(tmp_path / "1.png")
    assert (pixels == RGB).all()
    assert data == (tmp_path / "1.png").read_bytes()


# what is refused


def test_every_unusable_file_is_refused_with_its_reason(unusable, tmp_path):
    for name, (data, reason) in unusable.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnusableImageError) as refusal:
            read_image(tmp_path / name)
        assert reason in str(refusal.value), name


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_a_file_cut_short_anywhere_is_refused(suffix, pixels, tmp_path, capfd):
    data = encode(pixels.squeeze(), suffix)
    end = len(data) - 20
    for length in (*range(1, end, len(data) // 40), *range(end, len(data))):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(UnusableImageError):
            read_image(tmp_path / "cut")
        assert capfd.readouterr().err == "" or length >= end  # the C libraries have no say before Pillow has looked


def test_a_palette_with_a_transparent_colour_is_refused():
    with pytest.raises(UnusableImageError, match="alpha channel"):
        decode_image(_png(PALETTE, transparency=3))


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    data = encode(RGB, "PNG")
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "0.002")
    assert (decode_image(data) == RGB).all()
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "0.0019")
    monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(
        UnusableImageError, match=r"^50x40 pixels, and at most 0\.0019 million are read; .*MEMOIR_MEGAPIXELS"
    ):
        decode_image(data)
    monkeypatch.setenv("MEMOIR_MEGAPIXELS", "many")
    with pytest.raises(UserError, match=r"^MEMOIR_MEGAPIXELS=many: give a positive number"):
        decode_image(data)


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(UnusableImageError, match="a folder, not an image file"):
        read_image(tmp_path)
    with pytest.raises(UnusableImageError, match="cannot be opened: No such file"):
        read_image(tmp_path / "missing.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "WEBP", "BMP"]), st.data())
@settings(max_examples=150)
def test_damage_is_read_or_refused_and_nothing_else(suffix, data):
    contents = bytearray(encode(RGB[:16, :16], suffix))
    for _ in range(data.draw(st.integers(1, 8))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode_image(bytes(contents))
    except UnusableImageError:
        return
    assert picture(bytes(contents), examined=True).pixels.shape == pixels.shape
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] in (1, 3)


# writing


@pytest.mark.parametrize("pixels", [RGB, GREY, GREY.squeeze()], ids=["rgb", "grey", "flat"])
def test_what_is_written_is_read_back(pixels, tmp_path):
    write_image(tmp_path / "new" / "1.png", pixels)
    assert (read_image(tmp_path / "new" / "1.png")[0] == pixels.reshape(40, 50, -1)).all()


def test_a_name_that_is_no_images_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"1\.xyz: not a name for an image; end it in \.bmp, "):
        write_image(tmp_path / "1.xyz", RGB)


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "write", [lambda path: write_bytes(path, b"new"), lambda path: write_image(path, RGB)], ids=["bytes", "image"]
)
def test_a_failed_write_leaves_the_old_file_and_no_other(
    failing: str, error: BaseException, write: Callable[[Path], None], tmp_path, monkeypatch
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(error)):
        write(tmp_path / "1.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "1.png").write_bytes(b"old")
    with pytest.raises(type(error)):
        write(tmp_path / "1.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def _png(image: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


# what viewers show


def test_a_webp_whose_exif_has_a_prefix_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[ROTATION] = 6
    data = encode(RGB, "WEBP", lossless=True, exif=b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0"))
    assert (decode_image(data) == np.rot90(RGB, -1)).all()


@pytest.mark.parametrize("masks", [(0x7C00, 0x3E0, 0x1F), (0xF800, 0x7E0, 0x1F)], ids=["555", "565"])
def test_white_of_16_bits_a_pixel_is_255(masks):
    header = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 16, 3, 512, 0, 0, 0, 0) + struct.pack("<III", *masks)
    white = struct.pack("<H", sum(masks)) * 256
    data = struct.pack("<2sIHHI", b"BM", 14 + len(header) + 512, 0, 0, 14 + len(header)) + header + white
    assert (decode_image(data) == 255).all()


def test_an_embedded_profile_is_converted_to_srgb_and_one_of_srgb_costs_nothing():
    wide = _linear_profile()
    flat = np.full((20, 20, 3), 60, np.uint8)
    shown = picture(encode(flat, "PNG", icc_profile=wide))
    assert (shown.pixels == 60).all()
    assert shown.icc == wide
    pixels, name = srgb_image(shown)
    assert name
    assert np.abs(pixels.astype(int) - 133).max() <= 2  # linear 60/255 in the curve of sRGB
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert srgb_image(picture(encode(RGB, "PNG", icc_profile=srgb)))[1] is None
    assert (decode_image(encode(RGB, "PNG", icc_profile=srgb)) == RGB).all()


def test_a_profile_that_cannot_be_used_is_told_and_not_heeded():
    shown = picture(encode(RGB, "PNG", icc_profile=b"no profile" * 20))
    assert profile_fault(shown) == "its colour profile cannot be used, and is not heeded"
    assert (srgb_image(shown)[0] == RGB).all()


def test_opaque_alpha_is_rgb_and_real_alpha_comes_beside_the_pixels():
    opaque = np.dstack([RGB, np.full_like(RGB[..., 0], 255)])
    assert (decode_image(encode(opaque, "PNG")) == RGB).all()
    clear = np.dstack([RGB, RGB[..., 0]])
    shown = picture(encode(clear, "PNG"))
    assert (shown.pixels == RGB).all()
    assert shown.alpha is not None
    assert (shown.alpha == RGB[..., 0]).all()


@pytest.mark.parametrize("suffix", ["PNG", "GIF", "WEBP", "TIFF"])
def test_files_of_several_frames_are_refused_by_name(suffix):
    frames = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    buffer = io.BytesIO()
    frames[0].save(buffer, suffix, save_all=True, append_images=frames[1:])
    with pytest.raises(UnusableImageError, match="frames"):
        picture(buffer.getvalue())


# 16 bits


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_read_as_they_were_written(suffix, channels, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), np.uint16)
    write_image(tmp_path / f"1{suffix}", deep)
    pixels, _ = read_image(tmp_path / f"1{suffix}", bits=16)
    assert pixels.dtype == np.uint16
    assert (pixels == deep).all()
    with pytest.raises(UnusableImageError, match="16 bits a channel"):
        read_image(tmp_path / f"1{suffix}")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tile", [None, (16, 16)], ids=["strips", "tiles"])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
def test_a_tiff_is_turned_upright_once_whatever_its_depth(pixels, tile, orientation):
    upright = decode_image(_tiff(pixels, orientation, tile=tile))
    assert upright.shape[:2] == ((50, 40) if orientation > 4 else (40, 50))
    deep = decode_image(_tiff(widened(pixels, 16), orientation, tile=tile), bits=16)
    assert deep.dtype == np.uint16
    assert (deep == widened(upright, 16)).all()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_tiff_with_16_bits_a_channel_in_separate_planes_is_refused(compression):
    planes = widened(RGB, 16).transpose(2, 0, 1)
    data = _tiff(planes, planarconfig="separate", compression=compression)
    with pytest.raises(UnusableImageError, match="a TIFF of 16 bits a channel in separate planes; convert it to PNG"):
        decode_image(data, bits=16)
    data = _tiff(RGB.transpose(2, 0, 1), planarconfig="separate", compression=compression)
    assert (decode_image(data) == RGB).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("length", [1, 3, 4, 13, 40])
def test_bytes_after_the_end_of_a_png_are_no_damage(length, depth, tmp_path):
    pixels = widened(RGB, depth)
    write_image(tmp_path / "1.png", pixels)
    assert (decode_image((tmp_path / "1.png").read_bytes() + b"\n" * length, bits=16) == pixels).all()


def _tiff(pixels: np.ndarray, orientation: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    kind = "rgb" if 3 in (pixels.shape[0], pixels.shape[-1]) else "minisblack"
    tags = [(ROTATION, "H", 1, orientation, True)]
    tifffile.imwrite(buffer, pixels.squeeze(), photometric=kind, extratags=tags, **options)
    return buffer.getvalue()


def test_what_lies_beside_the_pixels_is_written_and_read_back(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    beside = {"icc": _linear_profile(), "exif": exif.tobytes(), "dpi": (300.0, 150.0)}
    for name, pixels in (("8.png", RGB), ("16.png", RGB.astype(np.uint16) * 257), ("8.jpg", RGB)):
        write_image(tmp_path / name, pixels, **beside)
        shown, _ = read_picture(tmp_path / name)
        assert shown.icc == beside["icc"], name
        assert shown.exif is not None
        assert b"a camera" in shown.exif, name
        assert shown.dpi == pytest.approx((300, 150), abs=0.02), name
        assert shown.pixels.dtype == pixels.dtype


# what is no picture, or a damaged one


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0\0\x1cftypavif" + bytes(40), "AVIF; convert it to PNG"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "HEIC; convert it to PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript; convert it to PNG"),
        (b"DDS " + bytes(124), "a DDS texture; convert it to PNG"),
    ],
)
def test_a_format_that_is_not_read_is_named_and_never_opened(data, reason, monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(UnusableImageError, match=f"^{reason}$"):
        picture(data)


def test_a_jpeg_of_another_kind_is_named():
    data = bytearray(encode(RGB, "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12
    with pytest.raises(UnusableImageError, match="a JPEG of 12 bits a channel; convert it to 8"):
        picture(bytes(data))
    data[frame + 1] = 0xC3
    with pytest.raises(UnusableImageError, match="lossless JPEG; convert it to PNG"):
        picture(bytes(data))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_tiff_of_other_numbers_says_which(kind):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((20, 20), kind))
    with pytest.raises(UnusableImageError, match=r"a TIFF of (signed 16-bit numbers|32-bit floats); convert it to"):
        picture(buffer.getvalue())


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "colours", "channels"), [(8, 2, 3), (8, 6, 4), (8, 0, 1), (16, 0, 1), (1, 0, 1)])
def test_a_png_whose_data_ends_early_is_refused_though_its_checksums_are_right(depth, colours, channels, interlaced):
    header = struct.pack(">IIBBBBB", 9, 5, depth, colours, 0, 0, interlaced)
    passes = [(2, 1), (1, 1), (3, 1), (2, 2), (5, 1), (4, 3), (9, 2)] if interlaced else [(9, 5)]
    row = [-(-columns * depth * channels // 8) for columns, rows in passes for _ in range(rows)]
    black = b"".join(bytes(1 + length) for length in row)  # alpha aside
    for missing, refused in ((0, False), (1, True), (1 + row[-1], True), (len(black), True)):
        data = _png_of(header, black[: len(black) - missing])
        if not refused:
            assert picture(data).pixels.shape[:2] == (5, 9)
            continue
        with pytest.raises(UnusableImageError, match="damaged or truncated"):
            picture(data)


def _png_of(header: bytes, rows: bytes) -> bytes:
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))
        for kind, contents in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_decoders_say_nothing_of_damage_beside_the_one_line(tmp_path):
    whole = _tiff(RGB)
    after = 8 + 2 + 12 * struct.unpack_from("<H", whole, 8)[0]  # where the next page's offset stands
    offsets = {"value": whole.index(struct.pack("<HHI", 258, 3, 3)) + 8, "first page": 4, "next page": after}
    for name, at in offsets.items():
        beyond = struct.pack("<I", len(whole) - 1)
        (tmp_path / f"{name}.tif").write_bytes(whole[:at] + beyond + whole[at + 4 :])
    program = """
import sys, pathlib
from pipeline.images import UnusableImageError, read_image
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_image(path)
        print("read")
    except UnusableImageError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == len(offsets)


def test_a_damaged_scan_is_refused_and_junk_around_it_is_a_warning():
    data = encode(RGB, "JPEG", quality=95)
    half = data[: len(data) // 2] + b"\xff\xd9"
    with pytest.raises(UnusableImageError, match="premature end"):
        picture(half)
    shown = picture(data[:-2] + bytes(9) + data[-2:])
    assert any("extraneous bytes" in warning for warning in shown.warnings)


JUNK = b"\1\2\xff\0junk"


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize(
    "before", [b"\xff\xdb", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"], ids=["dqt", "dht", "sos", "eoi"]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_with_junk_before_a_marker_has_the_pixels_of_one_without(pixels, before, progressive):
    data = encode(pixels.squeeze(), "JPEG", quality=90, progressive=progressive)
    at = data.rindex(before) if before == b"\xff\xd9" else data.index(before)
    shown = picture(data[:at] + JUNK * 3 + data[at:])
    assert (shown.pixels == picture(data).pixels).all()
    assert any("extraneous bytes before marker" in warning for warning in shown.warnings)


@pytest.mark.parametrize("junk_at", [b"\xff\xdb", b"\xff\xc4", b"\xff\xd9"], ids=["dqt", "dht", "eoi"])
def test_junk_in_a_jpeg_hides_no_damage(junk_at):
    data = encode(RGB, "JPEG", quality=95)
    scan = data.index(b"\xff\xda") + 14
    dry = data[: (scan + len(data)) // 2] + b"\xff\xd9"
    none = data[:scan] + b"\xff\0" * 8 + data[scan:]
    damaged = none if junk_at == b"\xff\xd9" else dry
    at = damaged.rindex(junk_at)
    with pytest.raises(UnusableImageError, match=r"damaged or truncated .*(premature end|bad Huffman code)"):
        picture(damaged[:at] + JUNK + damaged[at:])


def test_an_unknown_version_of_jfif_is_a_warning():
    data = bytearray(encode(RGB, "JPEG", quality=90))
    data[11] = 5
    shown = picture(bytes(data))
    assert (shown.pixels == picture(encode(RGB, "JPEG", quality=90)).pixels).all()
    assert shown.warnings == ("Warning: unknown JFIF revision number 5.01",)


@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["rgb", "grey"])
@pytest.mark.parametrize("quality", [10, 50, 90])
@pytest.mark.parametrize("progressive", [False, True])
def test_values_that_no_picture_has_are_a_warning_where_the_decoder_has_no_complaint(
    pixels, quality, progressive, tmp_path
):
    def warnings(data):
        (tmp_path / "1.jpg").write_bytes(data)
        return read_picture(tmp_path / "1.jpg")[0].warnings

    data = bytearray(encode(np.full_like(pixels.squeeze(), 250), "JPEG", quality=quality, progressive=progressive))
    assert warnings(data) == ()
    step = data.index(b"\xff\xdb") + 5
    data[step] *= 2  # and so are the means of its blocks, as if the differences between them had been read wrongly
    assert picture(bytes(data)).warnings == ()
    assert warnings(data) == ("its scan is damaged: it holds values that no picture has",)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
@pytest.mark.parametrize("quality", [10, 75, 95, 100])
def test_extreme_pictures_are_not_taken_for_damaged_ones(options, quality, tmp_path):
    noise = np.random.default_rng(0).integers(0, 2, (40, 50, 3), np.uint8) * np.uint8(255)
    for number, pixels in enumerate((RGB, np.zeros_like(RGB), np.full_like(RGB, 255), noise, noise[..., 0])):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(encode(pixels, "JPEG", quality=quality, **options))
        assert read_picture(path)[0].warnings == ()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_few_bytes_that_are_left_over_after_the_last_block_are_a_warning(progressive, tmp_path):
    data = encode(RGB, "JPEG", quality=90, progressive=progressive)
    preview = encode(RGB[:16, :16], "JPEG")  # such as a phone puts behind its picture
    for between, warnings in ((b"", 0), (b"\0", 1)):
        (tmp_path / "1.jpg").write_bytes(data[:-2] + between + data[-2:] + preview)
        shown, _ = read_picture(tmp_path / "1.jpg")
        assert (shown.pixels == picture(data).pixels).all()
        left_over = "its scan may be damaged: bytes are left over after its last block"
        assert shown.warnings[-1:] == (left_over,) * warnings  # the decoder says so too, where it has not read ahead


def test_a_changed_byte_of_a_png_is_seen_by_its_checksum():
    data = bytearray(encode(RGB, "PNG"))
    data[-15] ^= 1  # in the checksum of the pixels, which decoders pass over
    with pytest.raises(UnusableImageError, match="the checksum of its IDAT chunk is wrong"):
        picture(bytes(data))


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(UnusableImageError, match="not a regular file"):
        read_picture(tmp_path / "1.png")


def _linear_profile() -> bytes:
    """A profile with sRGB's primaries and a linear curve."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (number,) = struct.unpack_from(">I", data, 128)
    entries = [struct.unpack_from(">4sII", data, 132 + 12 * i) for i in range(number)]
    curve = next(offset for tag, offset, _ in entries if tag == b"rTRC")
    data[curve : curve + 16] = b"para\0\0\0\0" + struct.pack(">HHi", 0, 0, 1 << 16)  # y = x^1
    return bytes(data)
