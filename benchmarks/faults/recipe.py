"""What the runs train: a recipe of seconds, and its shards, as a user makes them."""

import os
import sys
from pathlib import Path

import numpy as np
import yaml

from benchmarks.faults.processes import ROOT, check
from pipeline.images import write_image

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 8, "bn_momentum": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 16},
    "optimisation": {
        "optimiser": "adam",
        "lr": 0.002,
        "schedule": "cosine",
        "length": {"steps": 400},
        "precision": "bf16",
    },
    "training": {"workers": 2, "log_every": 4, "validate_every": 200, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10, 20]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
    "shard_bytes": 65536,
}
PARAMS = {
    "store": "store",
    "datasets": {"photos": {"layout": "folder", "root": "photos"}},
    "tasks": ["tiny"],
    "recipes": {"tiny": {"task": "tiny"}},
}


def prepare(work: Path) -> None:
    """The recipe and its shards, as a user makes them."""
    if (work / "data/tiny/shards.json").exists():
        return
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for i in range(count):
            low = rng.integers(0, 256, (8, 8, 1), np.uint8)
            write_image(work / f"photos/{split}/{i}.png", np.kron(low, np.ones((8, 8, 1), np.uint8)))
    for name, content in (("params", PARAMS), ("task/tiny", TASK), ("tiny", RECIPE)):
        path = work / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for arguments in (["ingest"], ["build", "task/tiny.yaml", "--cpus", "1"]):
        command = [sys.executable, "-m", "memoir", *arguments]
        check(command, cwd=work, env=environment | {"PYTHONPATH": str(ROOT)})
