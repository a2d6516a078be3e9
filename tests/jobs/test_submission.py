import h5py
import numpy as np
import pytest
from scipy.io import loadmat

from jobs.evaluation import submission
from jobs.evaluation.submission import submit_dnd
from pipeline.errors import UserError

SIDE = 12


@pytest.fixture(scope="module")
def dnd(tmp_path_factory):
    """DND with small images: 50 of 40x50 pixels in MATLAB's 7.3, 20 boxes of 12x12 in each."""
    root = tmp_path_factory.mktemp("dnd")
    (root / "images_srgb").mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(root / "info.mat", "w", userblock_size=512) as file:
        references = np.empty((1, 50), h5py.ref_dtype)
        for i in range(50):
            corners = np.stack([rng.integers(1, 40 - SIDE, 20), rng.integers(1, 50 - SIDE, 20)])
            boxes = np.concatenate([corners, corners + SIDE - 1]).astype(float)  # (4, 20): the axes of HDF5 are turned
            references[0, i] = file.create_dataset(f"#refs#/{i}", data=boxes).ref
        file.create_dataset("info/boundingboxes", data=references, dtype=h5py.ref_dtype)
    for i in range(1, 51):
        path = root / f"images_srgb/{i:04}.mat"
        with h5py.File(path, "w", userblock_size=512) as file:
            file["InoisySRGB"] = rng.random((3, 50, 40), np.float32)
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file")
    return root


def patch(root, image: int, box: int) -> np.ndarray:
    """By MATLAB's rule: InoisySRGB(top:bottom, left:right, :), counted from 1."""
    with h5py.File(root / "info.mat") as file:
        top, left, bottom, right = np.array(file[file["info/boundingboxes"][0, image]])[:, box].astype(int)
    with h5py.File(root / f"images_srgb/{image + 1:04}.mat") as file:
        return np.array(file["InoisySRGB"]).T[top - 1 : bottom, left - 1 : right]


def test_the_files_hold_each_patch_in_its_place_without_rounding(dnd, tmp_path):
    files = submit_dnd("identity", dnd, tmp_path / "out", tmp_path)
    assert [file.name for file in files] == [f"{i:04}.mat" for i in range(1, 51)]
    for image in (0, 7, 49):
        found = loadmat(files[image])
        assert found["Idenoised"].shape == (1, 20)
        assert found["Idenoised"].dtype == object
        for box in (0, 3, 19):
            cell = found["Idenoised"][0, box]
            assert cell.dtype == np.float32
            assert np.array_equal(cell, patch(dnd, image, box))
        assert (found["eval_version"].item(), bool(found["israw"].item())) == ("1.0", False)


def test_what_the_model_makes_is_clipped_and_not_rounded(dnd, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "identity", lambda lq, tile: lq * 3 - 1)
    files = submit_dnd("identity", dnd, tmp_path, tmp_path)
    cell = loadmat(files[2])["Idenoised"][0, 5]
    assert np.array_equal(cell, (patch(dnd, 2, 5) * 3 - 1).clip(0, 1))
    assert cell.min() == 0 < 1 == cell.max()


def test_a_diverged_model_writes_nothing(dnd, tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "identity", lambda lq, tile: lq * np.nan)
    with pytest.raises(UserError, match=r"0001\.mat: restored to NaN") as error:
        submit_dnd("identity", dnd, tmp_path, tmp_path)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_whole_is_one_line(dnd, tmp_path):
    part = tmp_path / "DND"
    (part / "images_srgb").mkdir(parents=True)
    (part / "info.mat").symlink_to(dnd / "info.mat")
    (part / "images_srgb/0001.mat").symlink_to(dnd / "images_srgb/0001.mat")
    with pytest.raises(UserError, match="20 patches, and the server wants 1,000"):
        submit_dnd("identity", part, tmp_path / "out", tmp_path)
    (part / "images_srgb/0051.mat").write_bytes(b"")
    with pytest.raises(UserError, match=r"0051\.mat: no boxes in info\.mat"):
        submit_dnd("identity", part, tmp_path / "out", tmp_path)


def test_a_damaged_image_is_one_line_of_the_command(dnd, tmp_path, cli):
    part = tmp_path / "DND"
    (part / "images_srgb").mkdir(parents=True)
    (part / "info.mat").symlink_to(dnd / "info.mat")
    for path in (dnd / "images_srgb").iterdir():
        (part / "images_srgb" / path.name).symlink_to(path)
    (part / "images_srgb/0002.mat").unlink()
    (part / "images_srgb/0002.mat").write_bytes(b"MATLAB 7.3 MAT-file" + bytes(1000))
    code, _, err = cli("dnd", "--model", "identity", "--data", str(part), "--out", str(tmp_path / "out"))
    assert code != 0
    assert err.strip().splitlines()[-1].endswith("0002.mat: not a MATLAB file, or damaged")
