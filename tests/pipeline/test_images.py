import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.errors import UserError
from pipeline.images import UnusableImageError, decode_image, read_image, write_bytes, write_image

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
