"""Experiments of DVC: what was asked for is trained, in the copy in which DVC runs it, into the project's store."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import TINY_PARAMS, photograph

from pipeline.shards.format import file_sha256

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 1, "recursions": 1, "channels": 2},
    "data": {"task": "tiny", "patch": 12, "stride": 8, "batch": 2},
    "optimisation": {"optimiser": "adam", "lr": 0.001, "schedule": "cosine", "length": {"steps": 4}},
    "training": {"workers": 1},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "images"}]},
}


@pytest.fixture(scope="module")
def project(builder, tmp_path_factory) -> Path:
    """A second clone with one stage, beside the checkout that the environment's `memoir` imports."""
    data = builder("experiments", {f"train/{i}.png": photograph(i, 24, 24, 1) for i in range(3)}).parent
    root = tmp_path_factory.mktemp("experiments") / "second"
    for name in ("pipeline", "jobs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "memoir.py", root / "memoir.py")
    stage = {
        "cmd": f"memoir train tiny --data {data}",
        "deps": ["jobs/recipes/tiny.yaml"],
        "outs": ["runs/tiny/checkpoint.json"],
    }
    for name, content in (
        ("jobs/recipes/tiny", RECIPE),
        ("params", TINY_PARAMS | {"datasets": {}}),
        ("dvc", {"stages": {"train": stage}}),
    ):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (root / ".gitignore").write_text("/store\n/runs*\n__pycache__\n")
    for command in (
        "git init -q",
        "dvc init -q",
        "git add -A",
        "git -c user.name=t -c user.email=t@t commit -qm first",
    ):
        run(root, *command.split())
    return root


def run(root: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
    }
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def asked_for(root: Path, lr: float) -> tuple[Path, str]:
    """Where the weights of a learning rate belong in the project's store, and their digest, by a training of their own."""
    data = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["train"]["cmd"].split()[-1]
    alone = ("--store", f"store-{lr}", "--runs", "runs-alone", "--set", f"optimisation.lr={lr}")
    run(root, "memoir", "train", "tiny", "--data", data, *alone)
    pointer = json.loads((root / f"runs-alone/tiny+lr={lr}/checkpoint.json").read_text())
    shutil.rmtree(root / f"store-{lr}")
    return root / "store" / pointer["checkpoint"] / "model.safetensors", pointer["sha256"]


def test_an_experiment_in_a_copy_trains_what_it_was_asked_for(project):
    said = run(project, "dvc", "exp", "run", "--temp", "-S", "jobs/recipes/tiny.yaml:optimisation.lr=0.0005")
    assert "memoir: runs the code of this directory" in said
    weights, sha256 = asked_for(project, 0.0005)
    assert file_sha256(weights) == sha256
    assert [path.name for path in (project / "store/runs").iterdir()] == [weights.parts[-3]]


def test_a_queued_experiment_trains_what_it_was_asked_for(project):
    weights, sha256 = asked_for(project, 0.0007)
    run(project, "dvc", "exp", "run", "--queue", "-S", "jobs/recipes/tiny.yaml:optimisation.lr=0.0007")
    run(project, "dvc", "queue", "start")
    try:
        deadline = time.monotonic() + 300
        while not (weights.parents[1] / "done.json").exists():
            assert "Failed" not in (status := run(project, "dvc", "queue", "status")), status
            assert time.monotonic() < deadline, status
            time.sleep(2)
    finally:
        run(project, "dvc", "queue", "stop")
    assert file_sha256(weights) == sha256
