import hashlib
import io
import math
import platform
from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from pipeline.degradations import noise
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.noise import awgn, noisy_levels
from pipeline.degradations.scale import bicubic_lowres, imresize, modcrop
from pipeline.depth import widened
from pipeline.images import UnusableImageError
from pipeline.keyed import philox

COLOURS = st.tuples(*[st.integers(0, 255)] * 3)


def photograph(height: int, width: int, channels: int) -> np.ndarray:
    """Smooth gradients, an edge and some noise: uint8, (height, width, channels)."""
    y, x = np.mgrid[:height, :width]
    planes = [
        120 + 60 * np.sin(x / (7 + c)) + 50 * np.cos(y / (5 + c)) + 40 * (x > width // 2) for c in range(channels)
    ]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, channels))
    return (np.stack(planes, axis=-1) + noise).clip(0, 255).astype(np.uint8)


def half_up(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


# colour


@pytest.mark.parametrize(
    ("colour", "luma", "grey"),
    [
        ((0, 0, 0), 16, 0),
        ((255, 255, 255), 235, 255),
        ((255, 0, 0), 81, 76),
        ((0, 255, 0), 145, 150),
        ((0, 0, 255), 41, 29),
    ],
)
def test_luma_and_grey_of_the_primaries_are_matlabs(colour, luma, grey):
    image = np.full((2, 3, 3), colour, np.uint8)
    assert (rgb2ycbcr_y(image) == np.full((2, 3, 1), luma)).all()
    assert (rgb2gray(image) == np.full((2, 3, 1), grey)).all()


@given(COLOURS)
def test_luma_and_grey_are_rounded_exactly(colour):
    image = np.array(colour, np.uint8).reshape(1, 1, 3)
    r, g, b = map(Fraction, colour)
    luma = 16 + (Fraction("65.481") * r + Fraction("128.553") * g + Fraction("24.966") * b) / 255
    assert rgb2ycbcr_y(image).item() == half_up(luma)
    to_yiq = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])
    grey = float(to_yiq[0] @ np.array(colour))
    assert rgb2gray(image).dtype == np.uint8
    assert abs(rgb2gray(image).item() - grey) <= 0.5 + 1e-9


@given(st.tuples(*[st.integers(0, 65535)] * 3))
def test_luma_and_grey_of_16_bits_are_rounded_exactly(colour):
    image = np.array(colour, np.uint16).reshape(1, 1, 3)
    r, g, b = map(Fraction, colour)
    luma = 16 * 257 + (Fraction("65.481") * r + Fraction("128.553") * g + Fraction("24.966") * b) / 255
    assert rgb2ycbcr_y(image).dtype == rgb2gray(image).dtype == np.uint16
    assert rgb2ycbcr_y(image).item() == half_up(luma)
    assert rgb2gray(image).item() == half_up(Fraction(589_399 * r + 1_157_447 * g + 224_810 * b, 1_971_656))


def test_luma_and_grey_of_8_bits_are_those_of_16_rounded():
    image = photograph(60, 70, 3)
    for convert in (rgb2ycbcr_y, rgb2gray):
        assert np.abs(convert(widened(image, 16)) / 257 - convert(image)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("convert", "weights", "divisor", "offset"),
    [
        (rgb2ycbcr_y, (65_481, 128_553, 24_966), 255_000, 16),
        (rgb2gray, (589_399, 1_157_447, 224_810), 1_971_656, 0),
    ],
)
@pytest.mark.parametrize("error", [0, 1e-9, -1e-9])
def test_each_of_the_16_million_colours_is_rounded_as_whole_numbers_are(
    monkeypatch, convert, weights, divisor, offset, error
):
    transform = cv2.transform  # its sums may be rounded in another way on another machine
    monkeypatch.setattr(cv2, "transform", lambda image, row: transform(image, row) + error)
    green, blue = np.mgrid[:256, :256].astype(np.uint8)
    rest = green * np.int64(weights[1]) + blue * np.int64(weights[2]) + divisor // 2
    for red in range(256):
        plane = convert(np.stack([np.full_like(green, red), green, blue], axis=-1))  # (256, 256, 1)
        np.testing.assert_array_equal(plane[..., 0], (rest + red * weights[0]) // divisor + offset)


@pytest.mark.parametrize("convert", [rgb2ycbcr_y, rgb2gray])
def test_a_plane_does_not_depend_on_the_layout_of_the_image(convert):
    image = photograph(300, 250, 3)  # more than is converted at a time
    np.testing.assert_array_equal(convert(image[::-1, 7:]), convert(image)[::-1, 7:])


@pytest.mark.parametrize("convert", [rgb2ycbcr_y, rgb2gray])
def test_grey_images_pass_the_colour_conversions_unchanged(convert):
    image = photograph(4, 5, 1)
    assert (convert(image) == image).all()


@pytest.mark.parametrize("convert", [rgb2ycbcr_y, rgb2gray])
@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((4, 0, 3), np.uint8)],
)
def test_other_arrays_are_refused_by_the_colour_conversions(convert, image):
    with pytest.raises(ValueError, match="expected uint8"):
        convert(image)


# JPEG


SUBSAMPLINGS = ("4:2:0", "4:2:2", "4:4:4")


def coded(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> tuple[np.ndarray, bytes]:
    """What `jpeg` returns, and the file that it decodes on the way."""
    files = []
    decode = cv2.imdecode
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imdecode", lambda data, flags: files.append(data.tobytes()) or decode(data, flags))
        pixels = jpeg(*arguments)
    (file,) = files
    return pixels, file


def sampling_factors(file: bytes) -> list[tuple[int, int]]:
    """(horizontal, vertical) of each component, from the header of a baseline frame."""
    position = 2  # after the start of the image
    while file[position : position + 2] != b"\xff\xc0":
        assert file[position] == 0xFF
        position += 2 + int.from_bytes(file[position + 2 : position + 4])
    components = file[position + 9]
    return [divmod(file[position + 11 + 3 * n], 16) for n in range(components)]


@pytest.mark.parametrize("quality", [1, 10, 20, 75, 100])
@pytest.mark.parametrize(("channels", "chroma"), [(1, {}), *((3, {"subsampling": each}) for each in SUBSAMPLINGS)])
def test_jpeg_is_what_another_ijg_encoder_makes(monkeypatch, channels, chroma, quality):
    image = photograph(51, 67, channels)
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality, **chroma)
    reference = np.asarray(Image.open(file)).reshape(image.shape)
    pixels, data = coded(monkeypatch, image, quality, *chroma.values())
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - reference).max() <= 1
    if features.check("libjpeg_turbo"):  # the same library: the same file
        assert data == file.getvalue()
        np.testing.assert_array_equal(pixels, reference)


def test_a_jpeg_is_stored_with_the_chroma_subsampling_asked_for(monkeypatch):
    image = photograph(20, 30, 3)
    chroma = [(1, 1), (1, 1)]
    found = {each: sampling_factors(coded(monkeypatch, image, 50, each)[1]) for each in SUBSAMPLINGS}
    assert found == {"4:2:0": [(2, 2), *chroma], "4:2:2": [(2, 1), *chroma], "4:4:4": [(1, 1), *chroma]}
    assert sampling_factors(coded(monkeypatch, image, 50)[1]) == found["4:2:0"]
    grey = photograph(20, 30, 1)
    (_, only), *others = (coded(monkeypatch, grey, 50, each) for each in SUBSAMPLINGS)
    assert len(sampling_factors(only)) == 1
    assert [file for _, file in others] == [only, only]


def test_chroma_detail_survives_where_it_is_stored_whole():
    luma = 128
    stripes = np.where(np.arange(32) % 2, 40, -40)  # of one pixel, in Cr only: the luma stays
    colour = np.stack([luma + 1.402 * stripes, luma - 0.714 * stripes, np.full(32, luma)], axis=-1)
    across = np.broadcast_to(np.rint(colour).astype(np.uint8), (32, 32, 3))

    def contrast(image: np.ndarray, subsampling: str) -> float:
        """Of red to its mean, beside that of the image."""
        return jpeg(image, 95, subsampling)[..., 0].std() / image[..., 0].std()

    for image, kept in ((across, ("4:4:4",)), (across.swapaxes(0, 1), ("4:4:4", "4:2:2"))):
        for subsampling in SUBSAMPLINGS:
            left = contrast(np.ascontiguousarray(image), subsampling)
            assert left > 0.9 if subsampling in kept else left < 0.1, subsampling


def test_jpeg_keeps_the_order_of_the_channels():
    red = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    assert np.abs(jpeg(red, 95).astype(int) - red).max() < 6


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (7, 9, 3)])
def test_jpeg_keeps_any_shape(shape):
    assert jpeg(np.full(shape, 99, np.uint8), 50).shape == shape


def test_jpeg_refuses_what_it_cannot_code():
    image = photograph(8, 8, 3)
    for quality in (0, 101):
        with pytest.raises(ValueError, match=r"1\.\.100"):
            jpeg(image, quality)
    for each in (image, image[..., :1]):
        with pytest.raises(ValueError, match=r"one of 4:2:0, 4:2:2, 4:4:4, got '4:1:1'"):
            jpeg(each, 10, "4:1:1")
    for wrong in (image / 255, image[..., 0], image[..., :2]):
        with pytest.raises(ValueError, match="expected uint8"):
            jpeg(wrong, 10)
    with pytest.raises(UnusableImageError, match="65501x1 pixels"):
        jpeg(np.zeros((1, 65_501, 1), np.uint8), 10)


# scale


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def reference_line(line: list[float], length: int, scale: float) -> list[float]:
    """Every output pixel by itself, over all input pixels that the kernel reaches, mirrored one step at a time."""
    stretch = min(scale, 1.0)
    reach = 2 / stretch
    result = []
    for n in range(length):
        centre = (n + 0.5) / scale - 0.5
        total = weight_sum = 0.0
        for i in range(math.floor(centre - reach) - 1, math.ceil(centre + reach) + 2):
            weight = cubic((i - centre) * stretch)
            inside = i
            while not 0 <= inside < len(line):
                inside = -1 - inside if inside < 0 else 2 * len(line) - 1 - inside
            total += weight * line[inside]
            weight_sum += weight
        result.append(total / weight_sum)
    return result


def reference(image: np.ndarray, size: tuple[int, int], scales: tuple[float, float]) -> np.ndarray:
    """Bicubic resize of a plane, one line after the other, the axis that shrinks more first."""
    whole = image.dtype.kind == "u"
    most = 255 if image.dtype == np.uint8 else 65535
    result = image.astype(float)
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        lines = result if axis == 1 else result.T
        lines = np.array([reference_line(list(line), size[axis], scales[axis]) for line in lines])
        if whole:
            lines = np.vectorize(lambda value: math.floor(min(max(value, 0), most) + 0.5))(lines)
        result = lines if axis == 1 else lines.T
    return result


SIDES = st.integers(1, 14)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from([1 / 4, 1 / 3, 1 / 2, 0.37, 0.8, 1, 1.5, 2, 3, 4]), st.integers(0, 9))
def test_imresize_by_a_scale_equals_the_slow_reference(height, width, scale, seed):
    image = np.random.default_rng(seed).random((height, width))
    size = (math.ceil(scale * height), math.ceil(scale * width))
    assert imresize(image, scale=scale).shape == size
    np.testing.assert_allclose(imresize(image, scale=scale), reference(image, size, (scale, scale)), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_imresize_to_a_size_equals_the_slow_reference(height, width, rows, columns, seed):
    image = np.random.default_rng(seed).random((height, width))
    expected = reference(image, (rows, columns), (rows / height, columns / width))
    np.testing.assert_allclose(imresize(image, size=(rows, columns)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((14, 9), (5, 20)),
        ((9, 14), (20, 5)),
        ((20, 11), (7, 4)),
        ((9, 13), (18, 26)),
        ((13, 17), (9, 5)),
        ((70, 7), (90, 9)),
    ],
)
def test_imresize_of_levels_rounds_and_clips_after_each_pass(source, size, dtype):
    levels = np.array([0, 31, 77, 200, 255], np.uint8) if dtype == np.uint8 else np.array([0, 7000, 65535], dtype)
    image = np.random.default_rng(0).choice(levels, source)
    resized = imresize(image, size=size)
    assert resized.dtype == dtype
    expected = reference(image, size, (size[0] / source[0], size[1] / source[1]))
    np.testing.assert_array_equal(resized, expected)


def test_imresize_of_a_large_colour_image_is_that_of_its_planes():
    image = photograph(150, 40, 3) / 255  # more rows than are made at a time
    resized = imresize(image, size=(200, 25))
    assert resized.dtype == np.float64
    for channel in range(3):
        expected = reference(image[..., channel], (200, 25), (200 / 150, 25 / 40))
        np.testing.assert_allclose(resized[..., channel], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 4, 5])
@pytest.mark.parametrize("size", [(30, 70), (130, 21)])
def test_imresize_takes_any_number_of_channels_and_any_layout(channels, size):
    image = np.random.default_rng(0).random((60, 42, channels))
    resized = imresize(image, size=size)
    assert resized.shape == (*size, channels)
    for channel in range(channels):
        np.testing.assert_array_equal(resized[..., channel], imresize(image[..., channel], size=size))
    turned = imresize(image.swapaxes(0, 1), size=size[::-1])
    np.testing.assert_allclose(turned.swapaxes(0, 1), resized, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_imresize_computes_in_64_bits_and_leaves_its_input_alone(dtype):
    image = np.random.default_rng(0).random((30, 20)).astype(dtype)
    before = image.copy()
    resized = imresize(image, scale=2.5)
    assert resized.dtype == np.float64
    np.testing.assert_array_equal(resized, imresize(image.astype(np.float64), scale=2.5))
    np.testing.assert_array_equal(image, before)


def whole_numbers(height: int, width: int) -> np.ndarray:
    """uint8, (height, width), without a function of floats."""
    y, x = np.mgrid[:height, :width]
    return ((y * 37 + x * x * 11 + (x * y) // 7 * 29) % 256).astype(np.uint8)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM fuses products and sums")
def test_the_scales_give_the_same_to_the_last_bit_on_every_machine():
    pixels = whole_numbers(180, 120)
    results = {
        "down": imresize(pixels / 255, scale=1 / 3),
        "up": imresize(pixels / 255, scale=3),
        "size": imresize(pixels / 255, size=(77, 200)),
        "uint8": imresize(pixels, scale=1 / 3),
        "lowres": bicubic_lowres(pixels / 255, 3),
    }
    assert {name: hashlib.sha256(each.tobytes()).hexdigest()[:16] for name, each in results.items()} == {
        "down": "2f3cfb47a0ab97dd",
        "up": "36b1403906c4b1c1",
        "size": "e6e8921734fa7d16",
        "uint8": "b40255e4f34c871c",
        "lowres": "c9ef9759db1f0a03",
    }


def test_imresize_refuses_wrong_arguments():
    image = np.zeros((4, 4))
    for arguments in ({}, {"scale": 2, "size": (8, 8)}, {"scale": 0}, {"scale": math.nan}, {"size": (0, 4)}):
        with pytest.raises(ValueError, match="either a scale"):
            imresize(image, **arguments)
    for wrong in (np.zeros((4, 4), np.int32), np.zeros(4), np.zeros((0, 4))):
        with pytest.raises(ValueError, match="expected floats, uint8 or uint16"):
            imresize(wrong, scale=2)


def test_modcrop_cuts_to_multiples_at_the_bottom_right():
    image = photograph(11, 14, 3)
    assert (modcrop(image, 4) == image[:8, :12]).all()
    assert (modcrop(image, 11) == image[:11, :11]).all()
    with pytest.raises(UnusableImageError, match="14x11 pixels, smaller than the scale factor 12"):
        modcrop(image, 12)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_low_resolution_input_has_the_target_size_and_is_not_rounded(factor):
    image = photograph(24, 36, 1) / 255
    lowres = bicubic_lowres(image, factor)
    assert lowres.shape == image.shape
    small = reference(image[..., 0], (24 // factor, 36 // factor), (1 / factor, 1 / factor))
    expected = reference(small, (24, 36), (factor, factor))
    np.testing.assert_allclose(lowres[..., 0], expected, rtol=0, atol=1e-12)
    for wrong in (photograph(24, 36, 1), np.zeros(24), np.zeros((0, 24))):
        with pytest.raises(ValueError, match="floating"):
            bicubic_lowres(wrong, factor)


@pytest.mark.parametrize("shape", [(330, 120), (330, 120, 3), (120, 330, 1), (331, 121, 3)])
def test_the_low_resolution_input_is_two_calls_of_imresize(shape):
    image = np.random.default_rng(0).random(shape)  # more rows than are made at a time
    expected = imresize(imresize(image, scale=1 / 3), size=shape[:2])
    np.testing.assert_allclose(bicubic_lowres(image, 3), expected, rtol=0, atol=1e-14)


# noise and its keys


def test_noise_has_the_named_strength_and_is_not_clipped():
    image = np.full((400, 400, 1), 0.95, np.float32)
    noisy = awgn(image, 50, ("image", 1))
    assert noisy.dtype == np.float32
    assert (noisy - image).std() == pytest.approx(50 / 255, rel=0.01)
    assert (noisy - image).mean() == pytest.approx(0, abs=0.002)
    assert noisy.max() > 1.2
    assert len(np.unique(noisy)) > 100_000  # not quantised


def test_noise_depends_on_its_key_and_on_nothing_else():
    image = np.zeros((8, 9, 1))
    first = awgn(image, 30, ("a", 1))
    awgn(image, 30, ("b", 1))
    assert (awgn(image, 30, ("a", 1)) == first).all()
    assert (awgn(image, 30, ("a", 2)) != first).any()
    np.testing.assert_array_equal(awgn(image.astype(np.float32), 30, ("a", 1)), first.astype(np.float32))
    np.testing.assert_allclose(awgn(image, 60, ("a", 1)), 2 * first, rtol=1e-6)


def test_noise_refuses_whole_numbers_and_negative_strength():
    with pytest.raises(ValueError, match="float32 or float64"):
        awgn(np.zeros((2, 2, 1), np.uint8), 30, ("a",))
    with pytest.raises(ValueError, match="sigma"):
        awgn(np.zeros((2, 2, 1)), -1, ("a",))


def test_noise_in_8_bits_is_that_of_the_floats_rounded_and_clipped():
    image = photograph(60, 70, 3)
    noisy = noisy_levels(image, 40, ("a", 1))
    assert noisy.dtype == np.uint8
    exact = awgn(image / 255, 40, ("a", 1)) * 255
    assert ((exact < -1) | (exact > 256)).any()  # some of it is clipped
    assert np.abs(noisy - exact.clip(0, 255)).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(noisy_levels(image, 0, ("a", 1)), image)


def test_noise_in_8_bits_is_rounded_half_to_even(monkeypatch):
    class Halves:
        def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
            return np.full(shape, 0.25, dtype)

    monkeypatch.setattr(noise, "philox", lambda *key: Halves())
    image = np.array([[0, 1, 2, 3, 254, 255]], np.uint8)
    assert noisy_levels(image, 2, ("a",)).tolist() == [[0, 2, 2, 4, 254, 255]]


def test_noise_in_16_bits_is_that_of_8_on_257_times_its_levels():
    image = widened(photograph(60, 70, 3), 16) + np.uint16(77)
    noisy = noisy_levels(image, 40, ("a", 1))
    assert noisy.dtype == np.uint16
    exact = awgn(image / 65535, 40, ("a", 1)) * 65535
    assert ((exact < -1) | (exact > 65536)).any()
    assert np.abs(noisy - exact.clip(0, 65535)).max() <= 0.5 + 0.02  # of float32 at 65535
    np.testing.assert_array_equal(noisy_levels(image, 0, ("a", 1)), image)


def test_noise_in_8_bits_refuses_floats_and_negative_strength():
    with pytest.raises(ValueError, match="uint8"):
        noisy_levels(np.zeros((2, 2, 1)), 30, ("a",))
    with pytest.raises(ValueError, match="sigma"):
        noisy_levels(np.zeros((2, 2, 1), np.uint8), -1, ("a",))


def test_a_key_gives_the_same_stream_on_every_machine():
    assert philox("noise", 7, "Set5-baby").integers(0, 2**32, 3).tolist() == [3902713474, 207544862, 1723495437]


def test_different_keys_give_different_streams():
    keys = [
        (),
        (1,),
        ("1",),
        (-1,),
        (2**70,),
        ("a", "b"),
        ("ab",),
        ("a", ""),
        ("", "a"),
        ('a","b',),
        ("é",),
        ("a", 1),
        (1, "a"),
    ]
    assert len({philox(*key).integers(0, 2**63) for key in keys}) == len(keys)
    assert philox(np.int64(5), "x").integers(0, 2**63) == philox(5, "x").integers(0, 2**63)
    with pytest.raises(TypeError):
        philox(0.5)
