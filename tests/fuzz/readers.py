"""The readers of files from others, as functions that a fuzzer feeds with bytes.

Each takes what a reader must take: a result, or its one line for damaged files, UserError or UnusableImageError. Any other
exception is a find, and so is a hang or a lot of memory. What the reader checks by a sum is given the right sum first: who
writes a file can write its sum too.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Workplace, photograph, table_file, untrained_run

from jobs.publishing.publish import models, publish
from jobs.recipe import Recipe
from jobs.restoring.checkpoint import load_model
from jobs.restoring.tiles import restore_plane
from pipeline.config import parse_json, parse_yaml, read_yaml
from pipeline.dvc_objects import read_files
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, decode_image, read_image
from pipeline.loading.loader import Loader, Position
from pipeline.params import Params
from pipeline.revisions.merge import merge_lock, merge_tracked
from pipeline.sampling.patches import RandomCrops
from pipeline.shards import build as stage
from pipeline.shards.format import dataset_digest, verify
from pipeline.task import Task

Reader = Callable[[bytes], None]
RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2}
data: {task: photos-jpeg, patch: 31, stride: 21, batch: 12}
optimisation: {optimiser: adam, lr: 0.00001, schedule: cosine, length: {steps: 6}}
training: {workers: 3}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: datasets/Classic5}]}
"""
ROW = {
    "psnr": 28.125,
    "ssim": 0.78125,
    "images": 5,
    "protocol": "gray-float@1",
    "baseline": {"psnr": 27.8, "ssim": 0.7},
}
SCORES = {"Classic5/jpeg-q10": {**ROW, "paper": {}}}


def text(place: Path) -> Reader:
    """YAML and JSON: by itself, and as a recipe, a task and params.yaml."""
    path = place / "any.yaml"

    def read(data: bytes) -> None:
        for parse in (parse_yaml, parse_json):
            with suppress(UserError):
                repr(parse(data, "here"))
        path.write_bytes(data)
        for schema in (Recipe, Task, Params):
            with suppress(UserError):
                read_yaml(path, schema)

    return read


def picture(place: Path) -> Reader:
    """A photograph; a PNG as it is and with right checksums."""
    path = place / "photograph"

    def read(data: bytes) -> None:
        for version in dict.fromkeys((data, with_right_sums(data))):
            path.write_bytes(version)
            with suppress(UnusableImageError):
                read_photograph(path)

    return read


def read_photograph(path: Path) -> None:
    """Read it for tasks of 16 bits, and of 8, which get the same pixels or none. Raises what reading at 16 does."""
    pixels, data = read_image(path, bits=16)
    assert pixels.size
    assert pixels.shape[2:] in ((1,), (3,))
    if pixels.dtype == np.uint8:
        assert np.array_equal(decode_image(data), pixels)
    else:
        assert pixels.dtype == np.uint16
        with pytest.raises(UnusableImageError):
            decode_image(data)


def with_right_sums(data: bytes) -> bytes:
    """The bytes of a PNG with the checksums that fit its chunks; other bytes as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    right, at = bytearray(data), 8
    while at + 12 <= len(right):
        end = at + 8 + int.from_bytes(right[at : at + 4], "big")
        if end + 4 <= len(right):
            right[end : end + 4] = zlib.crc32(right[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(right)


def dataset(place: Path) -> Reader:
    """A built dataset of which one file is other bytes: the first byte says which, the rest are they."""
    built = [*_built(place)]
    files = [
        (folder, path.relative_to(folder)) for folder in built for path in sorted(folder.rglob("*")) if path.is_file()
    ]

    def read(data: bytes) -> None:
        folder, name = files[data[0] % len(files)] if data else files[0]
        copy = place / "changed"
        shutil.copytree(folder, copy, copy_function=os.link)
        try:
            (copy / name).unlink()
            (copy / name).write_bytes(data[1:])
            with suppress(UserError):
                put_right(copy, name)
            read_dataset(copy)
        finally:
            shutil.rmtree(copy)

    return read


def read_dataset(folder: Path) -> None:
    """Everything that reads a dataset: `verify`, and batches of a split. Raises what they do, but UserError."""
    with suppress(UserError):
        list(verify(folder))
    with suppress(UserError):
        loader = Loader(folder, batch=4, sampling=RandomCrops(12, 1))
        try:
            loader.cut(Position(0, 0))
            loader.cut(Position(0, len(loader) - 1))
            for version in loader.shard_set.versions():
                sum(int(plane.sum()) for plane in version.planes.values())
        finally:
            loader.shard_set.close()


def put_right(folder: Path, name: Path) -> None:
    """Give a file of a dataset that was changed the sums and the name that fit it, wherever they stand."""
    listing = parse_json((folder / "shards.json").read_bytes(), "shards.json")
    sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if name.suffix == ".parquet" and name.parent.name:
        _rename_table(folder, listing, name.parent.name, name.stem, sha256)
    elif name.suffix == ".tar":
        named = f"{sha256[:16]}.tar"
        (shard,) = (shard for shard in listing["shards"] if shard["name"] == name.name)
        shard |= {"name": named, "sha256": sha256, "bytes": (folder / name).stat().st_size}
        listing["digest"] = dataset_digest(listing["shards"])
        (folder / name).rename(folder / name.with_name(named))
        path = table_file(folder)
        index = pq.read_table(path)
        names = [named if old == name.name else old for old in index["shard"].to_pylist()]
        index = index.set_column(index.schema.get_field_index("shard"), "shard", pa.array(names, pa.string()))
        path.unlink()
        pq.write_table(index, path)
        _rename_table(folder, listing, "index", path.stem, hashlib.sha256(path.read_bytes()).hexdigest())
    else:
        return
    (folder / "shards.json").unlink()
    (folder / "shards.json").write_text(json.dumps(listing))


def _rename_table(folder: Path, listing: dict, table: str, old: str, sha256: str) -> None:
    """Give a part of a table the name of its contents, in the folder and in shards.json."""
    (part,) = (part for part in listing["parts"] if (part[table] or "").startswith(old))
    part[table] = sha256
    (folder / table / f"{old}.parquet").rename(folder / table / f"{sha256[:16]}.parquet")


def _built(place: Path) -> list[Path]:
    """Two datasets: JPEG pairs with negatives as raw pixels, and pairs of frames as PNG."""
    folders = []
    negatives = {"kind": "extra", "number": 1, "kept": "planned", "lambdas": [1.0]}
    kinds = {
        "photos": ("folder", {"negatives": negatives}, ["train/1.png", "train/2.png", "val/3.png", "val/4.png"]),
        "scenes": ("scenes", {"degradation": {"kind": "timelapse"}, "codec": "png", "colour": "rgb"},
                   [f"train/a/{i}.png" for i in range(3)]),
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "FEW", 10**6)
        for kind, (layout, changes, names) in kinds.items():
            work = Workplace(place / kind)
            work.root.mkdir(parents=True)
            patch.chdir(work.root)
            for seed, name in enumerate(names):
                work.add(name, photograph(seed, 24, 20))
            work.ingest(layout)
            work.build(**changes)
            folders.append(work.root / "data/tiny")
    return folders


def published(place: Path) -> Reader:
    """A store with one version of which one file is other bytes: the first byte says which, the rest are they."""
    runs = untrained_run(place, RECIPE, metrics={"step": 6, "loss": 0.1}, scores=SCORES)
    store = place / "team"
    folder = Path(publish("tiny", str(store), runs, str(place / "store"))["uri"])
    names = [*sorted(path for path in folder.iterdir()), folder.parent / "latest.json"]
    plane = np.zeros((12, 12, 1), np.float32)

    def read(data: bytes) -> None:
        path = names[data[0] % len(names)] if data else names[0]
        sums = folder / "SHA256SUMS"
        before = path.read_bytes(), sums.read_bytes()
        try:
            path.write_bytes(data[1:])
            if path.parent == folder and path != sums:
                sums.write_text(
                    "".join(
                        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in names[:-1] if p != sums
                    )
                )
            read_store(store, plane)
        finally:
            path.write_bytes(before[0])
            sums.write_bytes(before[1])

    return read


def read_store(store: Path, plane: np.ndarray) -> None:
    """Everything that reads a store with the model `tiny`. Raises what it does, but UserError."""
    with suppress(UserError):
        models(str(store))
    with suppress(UserError):
        trained = load_model(f"{store}/models/tiny", store)
        restore_plane(trained.model, plane)


def revisions(_: Path) -> Reader:
    """What DVC writes and others push: a folder's list of files, dvc.lock, a *.dvc file."""

    def read(data: bytes) -> None:
        with suppress(UserError):
            assert not [name for name in read_files(data, "here") if name.startswith("/") or ".." in name.split("/")]
        for base, ours, theirs in ((data, data, data), (b"", data, b""), (data, b"", b"")):
            with suppress(UserError):
                merge_lock(base, ours, theirs, "dvc.lock")
        with suppress(UserError):
            merge_tracked(b"", data, b"outs:\n- {md5: a, path: a}\n", "a.dvc")

    return read


READERS: dict[str, Callable[[Path], Reader]] = {
    "text": text,
    "picture": picture,
    "dataset": dataset,
    "published": published,
    "revisions": revisions,
}


def reader(name: str) -> Reader:
    """One of READERS, in a folder of its own in which the process then works."""
    place = Path(tempfile.mkdtemp(prefix=f"memoir-fuzz-{name}-"))
    made = READERS[name](place)
    os.chdir(place)
    return made
