"""16 bits a channel, from files through shards and training to scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Workplace, photograph

from jobs.evaluation.evaluate import evaluate
from jobs.evaluation.metrics import psnr
from jobs.recipe import BenchmarkRun, read_recipe
from jobs.training.loop import Run
from pipeline.depth import widened
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.shards.format import file_sha256, read_shards_json

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4, in_channels: 3}
data: {task: tiny, patch: 24, crops: 2, batch: 4}
optimisation: {optimiser: adam, lr: 0.001, schedule: cosine, length: {steps: 2}}
training: {workers: 1, log_every: 1, validate_every: 2}
evaluation: {benchmarks: [{benchmark: pairs-rgb, data: photos, layout: pairs}]}
"""


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A target whose low bits matter, and a darker input: uint16, (40, 50, 3)."""
    gt = widened(photograph(seed, 40, 50), 16) ^ np.uint16(37 * seed % 200 + 1)
    return gt // 2 + np.uint16(5), gt


@pytest.fixture
def trained(workplace: Workplace, without_ray, one_thread) -> Path:
    """Pairs of 16 bits that are built and trained on for two steps; the folder of runs."""
    for i, split in enumerate(("train", "train", "val", "test")):
        for role, pixels in zip(("lq", "gt"), pair(i + 1), strict=True):
            workplace.add(f"{split}/{role}/{i}.{'tiff' if i == 1 else 'png'}", pixels)
    workplace.ingest("pairs")
    workplace.build(degradation={"kind": "paired"}, colour="rgb", bits=16)
    Path("small.yaml").write_text(RECIPE)
    run = Run(read_recipe("small.yaml"), Path("data/tiny"), torch.device("cpu"))
    checkpoint = Path("store/runs/small-0/step-00000002")
    run.train(lambda run: [write_bytes(checkpoint / name, data) for name, data in run.save().items()] and None, print)
    assert all(np.isfinite(record["loss"]) for record in run.records if "loss" in record)
    listing = read_shards_json(Path("data/tiny"))
    pointer = {
        "recipe": "small",
        "run": "small-0",
        "checkpoint": "runs/small-0/step-00000002",
        "samples": "",
        "sha256": file_sha256(checkpoint / "model.safetensors"),
        "step": 2,
        "data": {k: listing[k] for k in ("task", "digest", "colour", "bits", "degradation", "negatives", "splits")},
    }
    Path("params.yaml").write_text("store: store\ndatasets: {}\ntasks: []\nrecipes: {}\n")
    write_bytes(Path("runs/small/checkpoint.json"), json.dumps(pointer).encode())
    return Path("runs")


def test_pairs_of_16_bits_are_trained_on_and_evaluated(trained):
    lq, gt = pair(4)
    row = evaluate("small", BenchmarkRun(benchmark="pairs-rgb", data="photos", layout="pairs"), trained)
    assert row["images"] == 1
    # the protocol scores what a file of 8 bits would show
    assert row["baseline"]["psnr"] == pytest.approx(psnr(np.floor(lq / 257 + 0.5), np.floor(gt / 257 + 0.5)), abs=1e-3)


def test_a_model_of_8_bits_refuses_pairs_of_16_by_name(trained):
    path = trained / "small/checkpoint.json"
    pointer = json.loads(path.read_text())
    del pointer["data"]["bits"]  # as a model had it before there were others
    path.write_text(json.dumps(pointer))
    with pytest.raises(UserError, match=r"photos/test/lq/3\.png: 16 bits a channel"):
        evaluate("small", BenchmarkRun(benchmark="pairs-rgb", data="photos", layout="pairs"), trained)
