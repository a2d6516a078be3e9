"""Ray Train around the loop: real workers, killed for real."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from jobs.train import _mendable
from pipeline.images import write_image

pytestmark = pytest.mark.slow

RECIPE = {
    "model": {"name": "memnet", "memory_blocks": 2, "recursions": 1, "channels": 8, "bn_momentum": 0.05},
    "data": {"task": "tiny", "patch": 24, "stride": 16, "batch": 8},
    "optimisation": {
        "optimiser": "adam",
        "lr": 0.002,
        "schedule": "cosine",
        "length": {"steps": 240},
        "precision": "bf16",
    },
    "training": {"workers": 2, "log_every": 10, "validate_every": 120, "checkpoint_every": 20},
    "evaluation": {"benchmarks": [{"benchmark": "jpeg-q10", "data": "photos/val"}]},
}
TASK = {
    "colour": "y",
    "degradation": {"kind": "jpeg", "quality": [10, 20]},
    "splits": {"train": ["photos/train"], "val": ["photos/val"]},
    "shard_bytes": 65536,
}


def memoir(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "memoir", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a built dataset `data/tiny` and a recipe `tiny.yaml` for it."""
    root = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for i in range(count):
            low = rng.integers(0, 256, (8, 8, 1), np.uint8)
            write_image(root / f"photos/{split}/{i}.png", np.kron(low, np.ones((8, 8, 1), np.uint8)))
    params = {
        "store": "store",
        "datasets": {"photos": {"layout": "folder", "root": "photos"}},
        "tasks": ["tiny"],
        "recipes": {"tiny": {"task": "tiny"}},
    }
    for name, content in (("params", params), ("tiny-task/tiny", TASK), ("tiny", RECIPE)):
        path = root / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    for arguments in (["ingest"], ["build", "tiny-task/tiny.yaml", "--cpus", "1"]):
        done = memoir(*arguments, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


def train(root: Path, store: str) -> subprocess.Popen[bytes]:
    """`memoir train` in a session of its own, its output in <store>.log."""
    log = (root / f"{store}.log").open("ab")
    command = [sys.executable, "-m", "memoir", "train", "tiny.yaml", "--store", store, "--runs", f"runs-{store}"]
    return subprocess.Popen(command, cwd=root, stdout=log, stderr=log, start_new_session=True)


def finish(root: Path, store: str, process: subprocess.Popen[bytes]) -> dict:
    assert process.wait(timeout=240) == 0, (root / f"{store}.log").read_text()
    return json.loads((root / f"runs-{store}/tiny/checkpoint.json").read_text())


def until_step(root: Path, store: str, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until rank 0 has logged a step."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, (root / f"{store}.log").read_text()
        for path in root.glob(f"{store}/runs/*/metrics.jsonl"):
            if any(json.loads(line)["step"] >= step for line in path.read_text().splitlines()[:-1]):
                return
        time.sleep(0.05)
    pytest.fail("training did not get there")


@pytest.fixture(scope="module")
def undisturbed(workplace: Path) -> dict:
    """The pointer of a run that nothing interrupted."""
    return finish(workplace, "undisturbed", train(workplace, "undisturbed"))


def records(root: Path, store: str) -> list[dict]:
    (path,) = root.glob(f"{store}/runs/*/metrics.jsonl")
    timings = {"seconds", "wait_s", "images_per_s", "network_s", "peak_mib"}
    return [{k: v for k, v in json.loads(line).items() if k not in timings} for line in path.read_text().splitlines()]


def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run(workplace, undisturbed):
    process = train(workplace, "worker")
    until_step(workplace, "worker", 60, process)
    workers = [
        p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    assert finish(workplace, "worker", process)["sha256"] == undisturbed["sha256"]
    assert records(workplace, "worker") == records(workplace, "undisturbed")


def test_the_same_command_continues_a_run_whose_every_process_was_killed(workplace, undisturbed):
    process = train(workplace, "all")
    until_step(workplace, "all", 100, process)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        each.kill()
    process.wait()
    interrupted = max(record["step"] for record in records(workplace, "all"))
    assert interrupted < RECIPE["optimisation"]["length"]["steps"]
    assert finish(workplace, "all", train(workplace, "all"))["sha256"] == undisturbed["sha256"]
    assert records(workplace, "all") == records(workplace, "undisturbed")


def test_a_killed_driver_leaves_no_process_behind_and_its_run_continues(workplace, undisturbed):
    process = train(workplace, "driver")
    until_step(workplace, "driver", 60, process)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=180)  # agents of Ray notice last
    assert not alive
    assert finish(workplace, "driver", train(workplace, "driver"))["sha256"] == undisturbed["sha256"]


def test_a_finished_run_is_found_and_not_run_again(workplace, undisturbed):
    before = {p: p.stat().st_mtime_ns for p in (workplace / "undisturbed").rglob("*") if p.is_file()}
    began = time.monotonic()
    assert finish(workplace, "undisturbed", train(workplace, "undisturbed")) == undisturbed
    assert time.monotonic() - began < 20
    assert before == {p: p.stat().st_mtime_ns for p in (workplace / "undisturbed").rglob("*") if p.is_file()}


def test_a_recipe_for_gpus_on_a_machine_without_is_one_line(workplace):
    recipe = {**RECIPE, "training": {**RECIPE["training"], "gpu": True}}
    (workplace / "gpu.yaml").write_text(yaml.safe_dump(recipe))
    done = memoir("train", "gpu.yaml", "--store", "gpu", cwd=workplace)
    assert done.returncode == 1
    assert "GPU" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_full_disk_under_a_worker_is_told_and_a_defect_is_not():
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    def failed(error: Exception) -> WorkerGroupError:
        return WorkerGroupError("failed", {0: UserExceptionWithTraceback(error, "traceback")})

    full = OSError(errno.ENOSPC, "No space left on device", "store/model.safetensors")
    wrapped = RuntimeError("upload failed")
    wrapped.__cause__ = full
    for error in (full, wrapped):
        assert _mendable(failed(error)) == "store/model.safetensors: No space left on device"
    assert _mendable(failed(OSError(errno.EIO, "Input/output error"))) is None
    assert _mendable(failed(ValueError("a defect"))) is None
