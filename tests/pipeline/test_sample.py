import dataclasses
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.degradations.rain import LIGHT, rain, streaks
from pipeline.errors import UserError
from pipeline.images import read_image
from pipeline.layouts import layout
from pipeline.params import read_params
from pipeline.raw import sample
from pipeline.raw.sample import write_samples

PARAMS = Path(__file__).parents[2] / "params.yaml"
SETS = ["README.md", "photos", "rain", "shadow", "timelapse"]


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "datasets"
    write_samples(root)
    return root


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


# the tree


def test_the_sample_data_sets_have_these_bytes(samples):
    assert digest(samples) == "863ed1842cc9ab31ee7d20abd3722408d10d9885275b15dadf97a2c05c57257a"


def test_writing_twice_from_scratch_gives_the_same_bytes(samples, tmp_path):
    write_samples(tmp_path / "again")
    assert digest(tmp_path / "again") == digest(samples)


def test_the_samples_are_small_and_counted(samples):
    sets = write_samples(samples)
    assert [each.name for each in sets] == SETS
    files = [path for path in samples.rglob("*") if path.is_file()]
    assert sum(each.files for each in sets) == len(files)
    assert sum(each.bytes for each in sets) == sum(path.stat().st_size for path in files) < 25 * 10**6


def test_every_set_is_read_by_its_layout_without_a_reject(samples):
    groups = {}
    for name, source in read_params(PARAMS).datasets.items():
        rows = list(layout(source.layout, name, samples / name, source.variant).rows())
        assert [row.reject_reason for row in rows if row.reject_reason] == []
        groups[name] = [len({row.group for row in rows if row.split == split}) for split in ("train", "val", "test")]
    assert groups == {"photos": [7, 2, 3], "rain": [6, 0, 4], "shadow": [6, 0, 3], "timelapse": [3, 1, 1]}


def test_a_photograph_is_in_the_same_split_in_every_set():
    splits = {photograph.file: photograph.split for photograph in sample.PHOTOGRAPHS}
    assert "motorcycle_right.png" not in splits
    for crop in (*sample.SCENES, *sample.RAIN_PAIRS, *sample.SHADOWS):
        assert crop.name.split("/")[0] == splits[crop.file]


def test_the_photographs_are_copies_and_the_readme_names_each(samples):
    package = importlib.util.find_spec("skimage")
    readme = (samples / "README.md").read_text()
    for photograph in sample.PHOTOGRAPHS:
        copy = samples / "photos" / photograph.split / photograph.file
        assert copy.read_bytes() == (Path(package.origin).parent / "data" / photograph.file).read_bytes()
        assert f"| {photograph.file} | {photograph.split} |" in readme
    assert "No number computed on them supports a claim" in readme


def test_an_uncompressed_png_is_read_as_it_was_written(tmp_path):
    for shape in ((1, 1, 1), (7, 3, 3), (200, 200, 3)):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        (tmp_path / "a.png").write_bytes(sample._png(pixels))
        assert np.array_equal(read_image(tmp_path / "a.png")[0], pixels)


def test_writing_samples_does_not_import_scikit_image():
    code = (
        "import pathlib, sys, tempfile, pipeline.raw.sample as s; s.write_samples(pathlib.Path(tempfile.mkdtemp())); "
    )
    check = "sys.exit('skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code + check], check=False).returncode == 0


# what is there already


def test_a_second_write_changes_nothing_and_says_so(tmp_path):
    root = tmp_path / "datasets"
    assert all(each.added == each.files for each in write_samples(root))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert all(each.added == 0 for each in write_samples(root))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_missing_samples_are_added_beside_the_users_own_files(tmp_path):
    (tmp_path / "GoPro").mkdir()
    (tmp_path / "GoPro" / "mine.png").write_bytes(b"mine")
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "photos" / "train" / "mine.png").write_bytes(b"mine")
    write_samples(tmp_path)
    (tmp_path / "rain/train/Rain13K/input/1.png").unlink()
    assert {each.name: each.added for each in write_samples(tmp_path)} == dict.fromkeys(SETS, 0) | {"rain": 1}
    assert (tmp_path / "GoPro" / "mine.png").read_bytes() == b"mine"
    assert (tmp_path / "photos" / "train" / "mine.png").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*SETS, "GoPro"])


@pytest.mark.parametrize("theirs", ["rain/test/Rain100H/input/1.png", "README.md", "shadow", "timelapse/train/bench"])
def test_a_file_of_the_users_is_never_overwritten_and_nothing_is_written(theirs, tmp_path):
    root = tmp_path / "datasets"
    (root / theirs).parent.mkdir(parents=True)
    (root / theirs).write_bytes(b"mine")
    with pytest.raises(UserError, match=rf"datasets/{theirs}: is not the sample of that name; move it away"):
        write_samples(root)
    assert [path for path in root.rglob("*") if path.is_file()] == [root / theirs]
    assert (root / theirs).read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_a_link_to_another_disk_is_filled_where_it_leads(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "datasets").symlink_to(tmp_path / "disk" / "data")
    write_samples(tmp_path / "datasets")
    assert (tmp_path / "datasets").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk" / "data").iterdir()) == SETS


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(root, photographs):
        (root / "photos").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample, "_render", full)
    with pytest.raises(UserError, match=r"datasets: cannot be written \(No space left on device\)"):
        write_samples(tmp_path / "datasets")
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "datasets").write_bytes(b"")
    with pytest.raises(UserError, match="datasets: is a file; name a folder"):
        write_samples(tmp_path / "datasets")


def test_another_photograph_in_scikit_image_is_an_error_of_one_line(tmp_path, monkeypatch):
    other = dataclasses.replace(sample.PHOTOGRAPHS[0], sha256="0" * 64)
    monkeypatch.setattr(sample, "PHOTOGRAPHS", (other, *sample.PHOTOGRAPHS[1:]))
    with pytest.raises(
        UserError, match=r"astronaut\.png: not the file of scikit-image 0\.26; install that: pip [^\n]*$"
    ):
        write_samples(tmp_path / "datasets")
    assert list(tmp_path.iterdir()) == []


# what was rendered


def test_the_streaks_of_a_scene_move_and_its_background_stays(samples):
    for scene in (path for path in (samples / "timelapse").glob("*/*") if path.is_dir()):
        frames = np.stack([read_image(path)[0] for path in sorted(scene.iterdir())])  # (8, 160, 160, 3)
        assert frames.shape == (8, 160, 160, 3)
        still = np.median(frames, axis=0)
        for frame in frames:
            dry = np.abs(frame - still).max(-1) <= 2
            assert 0.5 < dry.mean() < 0.99
        assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_heavy_rain_hides_more_than_light_rain(samples):
    def psnr(name: str) -> float:
        rainy, clean = (read_image(path)[0].astype(float) for path in sorted((samples / "rain/test").glob(name)))
        return float(10 * np.log10(255**2 / np.mean((rainy - clean) ** 2)))

    assert all(14 < psnr(f"Rain100H/*/{n}.png") < 20 < 24 < psnr(f"Rain100L/*/{n}.png") < 32 for n in (1, 2))


def test_a_shadow_is_dark_inside_its_mask_and_absent_far_from_it(samples):
    for path in (samples / "shadow").glob("*/*_A/*.png"):
        split = path.parents[1].name
        shadow, mask, clean = (
            read_image(path.parents[1] / f"{split}_{letter}" / path.name)[0].astype(int) for letter in "ABC"
        )
        assert set(np.unique(mask)) == {0, 255}
        assert 0.02 < (mask == 255).mean() < 0.5
        assert (shadow <= clean).all()
        assert shadow[mask[..., 0] == 255].mean() < 0.65 * clean[mask[..., 0] == 255].mean()
        assert np.mean(shadow == clean) > 0.3


# rain itself


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))),
    st.integers(0, 300),
    st.integers(-256, 256),
)
def test_rain_keeps_the_shape_and_moves_pixels_towards_the_light_only(image, drops, slope):
    rainy = rain(image, ("scene", 1), drops, slope)
    assert (rainy.shape, rainy.dtype) == (image.shape, np.uint8)
    assert np.array_equal(rainy, rain(image, ("scene", 1), drops, slope))
    low, high = np.minimum(image, LIGHT), np.maximum(image, LIGHT)
    assert ((rainy >= low) & (rainy <= high)).all()


def test_rain_depends_on_its_key_and_grows_with_its_drops():
    image = np.zeros((64, 64), np.uint8)
    assert not np.array_equal(rain(image, ("a",), 50, 0), rain(image, ("b",), 50, 0))
    wet = [int((rain(image, ("a",), drops, 0) > 0).sum()) for drops in (0, 20, 100, 300)]
    assert wet[0] == 0
    assert wet == sorted(wet)
    assert wet[3] > 2 * wet[1]


@pytest.mark.parametrize("slope", [-128, 0, 128])
def test_streaks_fall_along_their_slope_and_fill_the_picture_to_its_edges(slope):
    layer = streaks(256, 256, (7,), 1000, slope).astype(float)

    def likeness(shift: int) -> float:  # with the picture 8 rows further down and `shift` to the right
        return float((layer[8:, 16:-16] * np.roll(layer, shift, axis=1)[:-8, 16:-16]).sum())

    assert max(range(-8, 9), key=likeness) == round(8 * slope / 256)
    edges = [layer[:24], layer[-24:], layer[:, :24], layer[:, -24:]]
    assert all(0.85 * layer.mean() < edge.mean() < 1.15 * layer.mean() for edge in edges)


def test_rain_refuses_what_it_cannot_render():
    with pytest.raises(ValueError, match="expected uint8"):
        rain(np.zeros((8, 8)), (), 10, 0)
    with pytest.raises(ValueError, match="slope"):
        rain(np.zeros((8, 8), np.uint8), (), 10, 257)
