"""Images that lie with others in one file: halves of an image, and parts of a MATLAB file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from pipeline.images import UnusableImageError, read_part, source_image, write_image
from pipeline.images.source import _matlab

BLOCKS = np.stack([np.stack([photograph(10 * i + j, 18, 20) for j in range(4)]) for i in range(3)])  # (3, 4, 18, 20, 3)
PHOTO = photograph(7, 40, 50)
HEADER = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Apr 10 12:00:00 2017 HDF5 schema 1.00 ."


def version_5(path: Path, **variables: np.ndarray) -> Path:
    savemat(path, variables, do_compression=True)
    return path


def version_7_3(path: Path, **variables: np.ndarray) -> Path:
    """As MATLAB writes it: a user block of 512 bytes with its header, then HDF5 with the axes from last to first."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in variables.items():
            file.create_dataset(name, data=array.T, chunks=True, compression="gzip")
    with path.open("r+b") as file:
        file.write(HEADER.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


@pytest.fixture(params=[version_5, version_7_3])
def written(request, tmp_path):
    """Write variables into a MATLAB file of either version."""
    return lambda **variables: request.param(tmp_path / "1.mat", **variables)


def refusal(path: Path, part: str) -> str:
    with pytest.raises(UnusableImageError) as raised:
        read_part(path, part)
    return str(raised.value)


# halves


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_side_by_side_gives_its_halves(channels, tmp_path):
    pixels = PHOTO[..., :channels]
    write_image(tmp_path / "1.png", pixels)
    assert (read_part(tmp_path / "1.png", "left") == pixels[:, :25]).all()
    assert (read_part(tmp_path / "1.png", "right") == pixels[:, 25:]).all()


def test_an_image_of_odd_width_has_no_halves(tmp_path):
    write_image(tmp_path / "1.png", PHOTO[:, :49])
    for part in ("left", "right"):
        assert refusal(tmp_path / "1.png", part) == "49 pixels wide, which is no pair side by side"


def test_half_of_a_damaged_or_missing_image_is_refused_as_the_whole_is(tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    assert refusal(tmp_path / "1.png", "left") == "not an image, or its header is damaged"
    assert refusal(tmp_path / "2.png", "left") == "cannot be opened: No such file or directory"


# MATLAB files


def test_a_block_is_found_by_its_indices_in_matlabs_order_of_axes(written):
    path = written(Blocks=BLOCKS, Other=BLOCKS[::-1])
    for i in range(3):
        for j in range(4):
            block = read_part(path, f"Blocks[{i},{j}]")
            assert block.dtype == np.uint8
            assert block.flags.c_contiguous
            assert (block == BLOCKS[i, j]).all()


def test_a_crop_is_found_by_its_ranges(written):
    path = written(InoisySRGB=PHOTO)
    assert (read_part(path, "InoisySRGB[3:23,30:50]") == PHOTO[3:23, 30:50]).all()
    assert (read_part(path, "InoisySRGB[0:40]") == PHOTO).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_rounded_to_the_nearest_of_256_levels(dtype, written):
    levels = np.linspace(-0.02, 1.02, 20 * 16 * 3, dtype=dtype).reshape(20, 16, 3)
    pixels = read_part(written(I=levels), "I[0:20]")
    assert pixels.dtype == np.uint8
    assert np.abs(pixels - levels.clip(0, 1) * 255.0).max() <= 0.5 + 1e-4
    assert (read_part(written(I=PHOTO.astype(dtype) / 255), "I[0:40]") == PHOTO).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.5, 254])
def test_floats_that_are_no_share_of_white_are_refused(value, written):
    array = np.full((20, 20, 3), 0.5)
    array[3, 4, 1] = value
    assert refusal(written(I=array), "I[0:20]") == "I[0:20] holds floats that are not in [0, 1]"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("Blocks[3,0]", "Blocks is 3x4x18x20x3, and the part lies outside it"),
        ("Blocks[0,4]", "Blocks is 3x4x18x20x3, and the part lies outside it"),
        ("Blocks[-1,0]", "Blocks is 3x4x18x20x3, and the part lies outside it"),
        ("Blocks[0,0,0:19]", "Blocks is 3x4x18x20x3, and the part lies outside it"),
        ("Blocks[0,0,0,0,0,0]", "Blocks is 3x4x18x20x3, and the part lies outside it"),
        ("Blocks[0]", "Blocks[0] is 4x18x20x3, which is no image of 1 or 3 channels"),
        ("Blocks[0,0,0]", "Blocks[0,0,0] is 20x3, which is no image of 1 or 3 channels"),
        ("Turned[0:3]", "Turned[0:3] is 3x18x20, which is no image of 1 or 3 channels"),
        ("Wide[0:18]", "Wide[0:18] holds uint16, not 8-bit pixels"),
        ("GtBlocks[0,0]", "no variable GtBlocks in it"),
    ],
)
def test_a_part_that_is_no_8_bit_image_is_refused(part, reason, written):
    first = BLOCKS[0, 0]
    path = written(Blocks=BLOCKS, Turned=first.transpose(2, 0, 1), Wide=first.astype(np.uint16) * 257)
    assert refusal(path, part) == reason


@pytest.mark.parametrize("contents", [b"", b"\x00", b"not a matrix\n" * 50, HEADER.ljust(600), bytes(200)])
def test_a_file_that_is_not_matlabs_is_refused(contents, tmp_path):
    (tmp_path / "1.mat").write_bytes(contents)
    assert refusal(tmp_path / "1.mat", "I[0,0]") == "not a MATLAB file, or damaged"


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refusal(tmp_path / "1.mat", "I[0,0]") == "cannot be opened: No such file or directory"
    assert refusal(tmp_path, "I[0,0]") == "cannot be opened: Is a directory"


def test_a_group_of_hdf5_is_no_variable(tmp_path):
    path = version_7_3(tmp_path / "1.mat", I=PHOTO)
    with h5py.File(path, "r+") as file:
        file.create_group("info")
    assert refusal(path, "info[0:5]") == "no variable info in it"
    assert (read_part(path, "I[0:40]") == PHOTO).all()


@given(st.booleans(), st.data())
@settings(max_examples=60)
def test_damage_is_read_or_refused_and_nothing_else(tmp_path_factory, new, data):
    path = (version_7_3 if new else version_5)(tmp_path_factory.mktemp("damaged") / "1.mat", I=PHOTO)
    contents = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(contents[: data.draw(st.integers(1, len(contents)))])
    try:
        assert read_part(path, "I[0:40]").dtype == np.uint8
    except UnusableImageError:
        return


def test_a_file_that_was_rewritten_is_read_again(written):
    path = written(Blocks=BLOCKS)
    assert (read_part(path, "Blocks[0,0]") == BLOCKS[0, 0]).all()
    written(Blocks=BLOCKS[::-1, :, :, :16])
    assert (read_part(path, "Blocks[0,0]") == BLOCKS[2, 0, :, :16]).all()


def test_a_pair_of_old_files_is_read_once_for_all_its_blocks(tmp_path):
    paths = [version_5(tmp_path / f"{name}.mat", Blocks=BLOCKS) for name in ("noisy", "gt")]
    _matlab.cache_clear()
    for j in range(4):
        for path in paths:
            read_part(path, f"Blocks[0,{j}]")
    assert _matlab.cache_info().misses == 2


def test_the_hash_of_a_part_is_that_of_its_pixels_and_shape(tmp_path):
    path = version_5(tmp_path / "1.mat", I=PHOTO)
    same = version_7_3(tmp_path / "2.mat", J=PHOTO)
    assert source_image(path, "I[0:40]")[1] == source_image(same, "J[0:40]")[1]
    assert source_image(path, "I[0:40]")[1] != source_image(path, "I[0:39]")[1]
