import subprocess
import sys

import pytest

from pipeline.errors import UserError
from pipeline.task import Task, read_task

SPLITS = {"train": ("photos/train",)}
NOISE = {"kind": "noise", "sigma": (25,)}
MEAN = {"kind": "timelapse", "target": "mean"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"degradation": NOISE | {"drawn": "stored"}}, "stored noise is rounded and clipped: add quantised: true"),
        ({"degradation": {"kind": "timelapse"}, "negatives": {}}, "pairs of frames have no targets"),
        ({"degradation": MEAN | {"pairs_per_scene": 3}}, "with a target each frame is a sample: leave out pairs_per_"),
        (
            {"degradation": MEAN | {"seed": 1}},
            "with a target each frame is a sample: leave out pairs_per_scene and seed",
        ),
        ({"degradation": MEAN | {"target": "median"}}, "'mean'"),
        ({"degradation": NOISE, "negatives": {"kind": "extra"}}, "negatives are intra and planned; or draw it stored"),
        ({"degradation": NOISE, "negatives": {"kept": "stored"}}, "negatives are intra and planned; or draw it stored"),
        ({"degradation": {"kind": "jpeg", "subsampling": "4:1:1"}}, "'4:2:0', '4:2:2' or '4:4:4'"),
        ({"codec": "webp"}, "'raw' or 'png'"),
        ({"bits": 12}, "8 or 16"),
        ({"bits": 16}, "JPEG holds 8 bits a channel; leave bits out"),
        ({"splits": {"val": ("photos/val",)}}, "no train split"),
        ({"splits": {"train": ("photos/a", "photos/a")}}, "'photos/a' is named twice"),
    ],
)
def test_a_task_that_cannot_be_built_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        Task.model_validate({"colour": "rgb", "degradation": {"kind": "jpeg"}, "splits": SPLITS} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "degradation": NOISE | {"drawn": "stored", "quantised": True},
            "negatives": {"kind": "extra", "kept": "stored"},
        },
        {"degradation": NOISE, "negatives": {}},
        {"degradation": {"kind": "paired"}, "negatives": {"kept": "stored"}},
        {"degradation": MEAN | {"size": 64}},
        {"degradation": MEAN, "negatives": {}},
        {"degradation": {"kind": "paired"}, "bits": 16},
    ],
)
def test_a_task_that_can_be_built_is_not(changes):
    task = Task.model_validate({"colour": "rgb", "splits": SPLITS} | changes)
    assert Task.model_validate(task.model_dump(mode="json")) == task  # as a worker gets it


def test_the_papers_negatives_are_in_the_tasks_of_their_recipes():
    for name in ("rain13k", "sidd", "gopro", "rain-pairs"):
        negatives = read_task(name).negatives
        assert negatives is not None
        assert (negatives.kind, negatives.number, negatives.lambdas) == ("intra", 3, (1, 0.95, 0.9))


def test_a_misspelt_option_is_told_with_those_of_its_kind(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("colour: y\ndegradation: {kind: jpeg, qualty: [10]}\nsplits: {train: [photos/train]}\n")
    with pytest.raises(UserError) as error:
        read_task(str(path))
    known = "did you mean 'quality'? known: kind, quality, subsampling"
    assert str(error.value) == f"{path}:2: degradation.jpeg.qualty: unknown key; {known}"


def test_a_task_is_read_without_torch():
    code = "import sys, pipeline.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
