"""Tiny datasets, built by the tests themselves."""

import io
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import settings
from PIL import Image

import memoir
from pipeline.images import write_image
from pipeline.raw.manifest import Counts, Source, ingest
from pipeline.shards import build as stage
from pipeline.shards.format import file_sha256
from pipeline.storage import Bucket, storage
from pipeline.task import read_task

# Of the clusters that tests start: beside another test Ray's 15 starves their workers.
os.environ.setdefault("RAY_worker_niceness", "0")
# The time of one example says more of the machine than of the code. What is checked of a commit is the same each time.
settings.register_profile("memoir", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("memoir")

SECRET = "averysecretvalue"  # AWS_SECRET_ACCESS_KEY of the tests' server
JPEG = {"colour": "y", "degradation": {"kind": "jpeg", "quality": [10, 20]}, "shard_bytes": 65536}


def photograph(seed: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth shapes and some noise, another picture for each seed: uint8, (height, width, channels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [
        120 + 60 * np.sin(x / rng.uniform(4, 12)) + 50 * np.cos(y / rng.uniform(4, 12)) + 40 * (x > y)
        for _ in range(channels)
    ]
    return (np.stack(planes, axis=-1) + rng.normal(0, 6, (height, width, channels))).clip(0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, suffix: str, **options: Any) -> bytes:
    """uint8 (H, W), (H, W, 2) with alpha, (H, W, 3) or (H, W, 4) as an image file, by Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix, **options)
    return buffer.getvalue()


TINY_PARAMS = {
    "store": "store",
    "datasets": {"photos": {"layout": "folder", "root": "photos"}},
    "tasks": ["tiny"],
    "recipes": {"tiny": {"task": "tiny"}},
}


def tiny_photographs(root: Path) -> None:
    """Write photos/train and photos/val below `root`, for the runs of whole trainings: 64x64 pixels, grey, of coarse blocks."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 1)):
        for i in range(count):
            low = rng.integers(0, 256, (8, 8, 1), np.uint8)
            write_image(root / f"photos/{split}/{i}.png", np.kron(low, np.ones((8, 8, 1), np.uint8)))


BEGAN = {
    "who": "Ada <ada@example.org>",
    "when": "2026-01-02T03:04:05Z",
    "commit": "c" * 40,
    "data": "/data/photos-jpeg",
}
MACHINE = {"python": "3.12.1", "cpu": "A CPU", "instructions": "AVX2", "libraries": {"torch": "2.0"}}


def untrained_run(place: Path, recipe: str, seed: int = 0, **results: Any) -> Path:
    """The checkpoint of a recipe `tiny` as `memoir train` leaves it, with random weights; returns the folder of runs.

    recipe: the YAML file's text. results: JSON files beside the pointer, by name; `scores` as `write_scores` takes them.
    `place` is a project, whose store has the checkpoint.
    """
    import torch
    from safetensors.torch import save_file

    from jobs.evaluation.scores import write_scores
    from jobs.origin import digest, origin
    from jobs.recipe import build_model, read_recipe
    from jobs.training.loop import weights

    place.mkdir(parents=True, exist_ok=True)
    (place / "tiny.yaml").write_text(recipe)
    resolved = read_recipe(str(place / "tiny.yaml"))
    (place / "params.yaml").write_text(f"store: {place / 'store'}\ndatasets: {{}}\ntasks: []\nrecipes: {{}}\n")
    run = f"tiny-{digest(origin(resolved, 'd1935'))}"
    checkpoint = place / "store/runs" / run / "step-00000006"
    checkpoint.mkdir(parents=True)
    torch.manual_seed(seed)
    save_file(weights(build_model(resolved.model)), checkpoint / "model.safetensors")
    (checkpoint / "recipe.json").write_text(resolved.model_dump_json(indent=1))
    for name, value in (("began", BEGAN), ("machine", MACHINE)):
        (checkpoint.parent / f"{name}.json").write_text(json.dumps(value))
    task = resolved.data.task
    pointer = {
        "recipe": "tiny",
        "run": run,
        "checkpoint": f"runs/{run}/step-00000006",
        "samples": "d1935",
        "sha256": file_sha256(checkpoint / "model.safetensors"),
        "step": 6,
        "data": {"task": task, "digest": "d1935", **read_task(task).model_dump(mode="json")},
    }
    folder = place / "runs/tiny"
    folder.mkdir(parents=True, exist_ok=True)
    if (scores := results.pop("scores", None)) is not None:
        write_scores(folder, scores)
    for name, value in {"checkpoint": pointer, **results}.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return place / "runs"


@dataclass
class Workplace:
    """A folder to run stages in: photographs below photos/, one task."""

    root: Path

    def add(self, name: str, contents: np.ndarray | bytes) -> Path:
        """A file below photos/: an image, or its bytes."""
        path = self.root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        else:
            write_image(path, contents)
        return path

    def ingest(self, layout: str = "folder", root: str = "photos") -> tuple[Counts, pa.Table]:
        """Relative to the working directory, as the stage runs: the counts, and the table of rejects.

        layout: its name, or name:variant.
        """
        name, _, variant = layout.partition(":")
        source = Source(layout=name, root=root, variant=variant or None, allow_counts=True)
        done = ingest({"photos": source}, Path("data/manifest"))
        counts, rejects = done.counts, done.rejects
        return counts[0], rejects

    def task(self, **changes: Any) -> str:
        """A task of JPEG at two qualities, in small shards, with these changes: the name to build it by."""
        splits = {split: [f"photos/{split}"] for split in ("train", "val") if (self.root / "photos" / split).exists()}
        (self.root / "tiny.yaml").write_text(yaml.safe_dump(JPEG | {"splits": splits} | changes))
        return "tiny.yaml"

    def build(self, cpus: int | None = None, store: str | None = None, **changes: Any) -> dict[str, Any]:
        """Build the task into data/tiny."""
        manifest, out = Path("data/manifest/manifest.json"), Path("data/tiny")
        return stage.build(self.task(**changes), manifest, out, cpus=cpus, store=store)


def table_file(folder: Path, table: str = "index") -> Path:
    """The only part of a table in a small dataset."""
    (path,) = (folder / table).iterdir()
    return path


def tree(root: Path, *files: str) -> Path:
    """Files below a root, for layouts, which never open one."""
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a layout never opens a file")
    return root


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """An empty workplace, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return Workplace(tmp_path)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of any number of images make their shards in this process: starting Ray takes seconds."""
    monkeypatch.setattr(stage, "FEW", 10**6)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all the tests that need one."""
    import ray

    from pipeline.cluster import connect

    connect(2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build once for many tests: (name, pixels of each file below photos/, changes of the task) -> built folder."""
    folders: dict[str, Path] = {}

    def built(name: str, files: dict[str, np.ndarray], layout: str = "folder", **changes: Any) -> Path:
        if name not in folders:
            with pytest.MonkeyPatch.context() as patch:
                place = Workplace(tmp_path_factory.mktemp(name))
                patch.chdir(place.root)
                patch.setattr(stage, "FEW", 10**6)
                for file, pixels in files.items():
                    place.add(file, pixels)
                place.ingest(layout)
                place.build(**changes)
            folders[name] = place.root / "data" / "tiny"
        return folders[name]

    return built


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`memoir` with these arguments, in this process: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["memoir", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            memoir.main()
        captured = capsys.readouterr()
        return int(leaving.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def unusable() -> dict[str, tuple[bytes, str]]:
    """Files that no stage takes: name -> (contents, a part of the reason)."""
    rgb = photograph(0, 40, 50)
    grey = rgb[..., 0]
    wide = grey.astype(np.uint16) * 257
    files = {
        "empty.png": (b"", "empty file"),
        "text.png": (b"not a picture\n" * 100, "not an image"),
        "sixteen-grey.png": (encode(wide, "PNG"), "16 bits a channel"),
        "sixteen-rgb.png": (_png16(np.stack([wide] * 3, axis=-1)), "16 bits a channel"),
        "grey-alpha.png": (encode(np.stack([grey, grey], axis=-1), "PNG"), "alpha channel"),
        "alpha.png": (encode(np.dstack([rgb, grey]), "PNG"), "alpha channel"),
        "cmyk.jpg": (_cmyk(rgb), "CMYK colours"),
    }
    for kind, data in (("PNG", encode(rgb, "PNG")), ("JPEG", encode(rgb, "JPEG"))):
        for length, reason in ((20, "not an image"), (len(data) * 3 // 4, "truncated"), (len(data) - 30, "truncated")):
            files[f"{kind}-cut-at-{length}.{kind.lower()}"] = (data[:length], reason)
    return files


def _png16(pixels: np.ndarray) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


def _cmyk(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: small networks wait for their threads longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of an S3 server of the tests' own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(server, monkeypatch) -> str:
    """The URI of an empty bucket."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    name = f"bucket-{uuid.uuid4().hex}"
    bucket = storage(f"s3://{name}")
    assert isinstance(bucket, Bucket)
    bucket.client.create_bucket(Bucket=name)
    return bucket.uri


def check_finite_in_bf16(model: Any, batch: dict[str, Any]) -> None:
    """A training step and a restoration of the batch's lq under autocast: float32 outside, and nothing that is not finite."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        loss, logs = model.training_loss(batch)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert {"psnr"} <= logs.keys()
    assert all(value.isfinite() for value in logs.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    with torch.autocast("cpu", torch.bfloat16):
        restored = model.eval().restore(batch["lq"])
    assert restored.dtype == torch.float32
    assert restored.isfinite().all()
