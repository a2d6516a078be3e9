"""Whoever computes with a model does it in fp32 and not in TF32, whatever the process was told before."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained_run

from jobs.evaluation.evaluate import evaluate, evaluate_recipe
from jobs.models.memnet import MemNet
from jobs.recipe import BenchmarkRun, read_recipe
from jobs.restoring.restore import restore
from jobs.training.loop import Run
from pipeline.images import write_image

Flags = list[tuple[bool, bool]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def seen(monkeypatch) -> Iterator[Flags]:
    """Whether products and convolutions may use TF32, each time that MemNet's convolutions run; before, they may."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    flags: Flags = []
    predictions = MemNet.predictions

    def watched(self: MemNet, x: torch.Tensor) -> list[torch.Tensor]:
        flags.append((matmul.allow_tf32, cudnn.allow_tf32))
        return predictions(self, x)

    monkeypatch.setattr(MemNet, "predictions", watched)
    yield flags
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.fixture
def images(tmp_path) -> Path:
    write_image(tmp_path / "Kodak" / "a.png", np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8))
    return tmp_path / "Kodak"


RECIPE = """
model: {{name: memnet, memory_blocks: 1, recursions: 1, channels: 2}}
data: {{task: {task}, patch: 12, stride: 8, batch: 4}}
optimisation: {{optimiser: adam, lr: 0.001, schedule: cosine, length: {{steps: 1}}}}
training: {{workers: 1}}
evaluation: {{benchmarks: [{{benchmark: jpeg-q10, data: {images}}}]}}
"""


@pytest.mark.parametrize("how", ["evaluate", "evaluate_recipe", "restore"])
def test_evaluation_and_restoration_are_in_fp32(seen, images, tmp_path, monkeypatch, how):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    runs = untrained_run(tmp_path / "project", RECIPE.format(task="photos-jpeg", images=images))
    recipe = str(tmp_path / "project" / "tiny.yaml")
    if how == "evaluate":
        evaluate("tiny", BenchmarkRun(benchmark="jpeg-q10", data=str(images)), runs)
    elif how == "evaluate_recipe":
        evaluate_recipe(recipe, runs)
    else:
        assert [each.problem for each in restore("tiny", images, tmp_path / "out", runs)] == [None]
    assert set(seen) == {(False, False)}


def test_training_is_in_fp32(seen, images, tmp_path, builder):
    rng = np.random.default_rng(0)
    names = ("train/a.png", "val/a.png")
    files = {name: rng.integers(0, 256, (20, 20, 1), np.uint8) for name in names}
    data = builder("tf32", files, degradation={"kind": "jpeg", "quality": [10]})
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(task="tiny", images=images))
    run = Run(read_recipe(str(tmp_path / "tiny.yaml")), data, torch.device("cpu"))
    run.train(lambda run: None, lambda record: None)
    assert len(seen) > 1  # the step, and the validation
    assert set(seen) == {(False, False)}
