"""`memoir bench restore`: how quickly images are restored, from file to file."""

from pathlib import Path

import pytest
from conftest import photograph, untrained_run

from jobs.restoring.bench import Rate, bench_restore, told
from pipeline.errors import UserError
from pipeline.images import write_image

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 16}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 6}}
training: {workers: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: datasets/Classic5}]}
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    runs = untrained_run(tmp_path / "project", RECIPE)
    monkeypatch.chdir(runs.parent)
    return runs


def test_a_folder_is_restored_again_and_again_and_nothing_is_kept(runs, tmp_path):
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", photograph(number, 40, 50))
    before = sorted(tmp_path.rglob("*"))
    found = bench_restore("tiny", tmp_path / "in", runs, seconds=0.5)
    assert sorted(tmp_path.rglob("*")) == before
    assert found.images % 3 == 0
    assert found.megapixels == pytest.approx(found.images * 40 * 50 / 1e6)
    assert found.restored == 40 * 50 / 1e6
    assert 0 < found.convolutions < found.network
    assert min(found.read, found.write, found.seconds) > 0
    assert found.off is None


def test_in_bf16_it_says_how_far_it_is_from_fp32(runs, tmp_path):
    write_image(tmp_path / "in/0.png", photograph(0, 40, 50))
    found = bench_restore("tiny", tmp_path / "in", runs, seconds=0.1, precision="bf16")
    assert found.off is not None
    assert 0 < found.off < 10
    assert told(found)[-1].startswith(f"in bf16 it differs from the image in fp32 by {found.off:.2f} of 255 levels")


def test_what_cannot_be_restored_is_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: not a folder"):
        bench_restore("tiny", tmp_path / "nowhere", runs, seconds=0.1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_text("no image")
    with pytest.raises(UserError, match=r"a.png: not an image"):
        bench_restore("tiny", tmp_path / "in", runs, seconds=0.1)
    (tmp_path / "in/b.heic").write_text("another format")
    with pytest.raises(UserError, match=r"b.heic: .*give a folder of images alone"):
        bench_restore("tiny", tmp_path / "in", runs, seconds=0.1)


def test_the_rate_is_told_beside_its_limit():
    found = Rate(8, 4.0, 2.0, 0.5, 3, 300, 5, 100, 2)
    assert "2.000 megapixels/s from file to file: 8 images of 0.50 megapixels" in told(found)[0]
    assert "5.000 megapixels/s: from file to file it is 40% of that limit" in told(found)[-1]
