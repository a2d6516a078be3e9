"""Raw data in the copy in which DVC runs an experiment."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline.errors import UserError
from pipeline.raw.at_hand import check_out


@pytest.fixture
def enter(tmp_path, monkeypatch):
    """Enter a folder below `tmp_path`, a project of DVC with six images in photos/ that only its cache has."""

    def entered(place: str) -> list[Path]:
        root = tmp_path / place
        for split in ("train", "val"):
            for i in range(3):
                path = root / f"photos/{split}/{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{split} {i}")
        monkeypatch.chdir(root)
        with Repo.init(no_scm=True) as repo:
            repo.add("photos")
        shutil.rmtree("photos")
        return sorted(path for path in Path(".dvc/cache/files").rglob("*") if path.is_file() and path.suffix != ".dir")

    return entered


COPY = ".dvc/tmp/exps/standalone/tmpx"


@pytest.mark.parametrize("root", ["photos", "photos/train"])
def test_an_experiment_has_the_images_that_dvc_tracks(enter, root):
    enter(COPY)
    check_out([root, "s3://bucket/photos", "elsewhere"])
    assert [path.read_text() for path in sorted(Path("photos/train").iterdir())] == ["train 0", "train 1", "train 2"]
    assert not Path("elsewhere").exists()
    check_out([root])


def test_what_nobody_asks_for_and_what_is_no_experiment_is_left_alone(enter, tmp_path):
    enter(COPY)
    check_out(["others"])
    assert not Path("photos").exists()
    enter("project")
    check_out(["photos"])
    assert not Path("photos").exists()


def test_a_part_of_the_images_is_one_line_and_none_of_them_is_no_mistake(enter):
    objects = enter(COPY)
    assert len(objects) == 6
    objects[0].unlink()
    with pytest.raises(
        UserError, match=r"photos: DVC's cache has 5 of its 6 files; run `dvc pull photos\.dvc` in the project"
    ):
        check_out(["photos/train"])
    assert not Path("photos").exists()
    for path in objects[1:]:
        path.unlink()
    check_out(["photos/train"])
    assert not Path("photos").exists()


def test_a_broken_file_of_dvc_is_one_line(enter):
    enter(COPY)
    Path("photos.dvc").write_text("outs: [")
    with pytest.raises(UserError, match=r"the raw data of this experiment: DVC says: .*photos\.dvc"):
        check_out(["photos"])
