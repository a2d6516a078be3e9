"""CPU seconds from a folder of photographs to training data, beside two ways that are common today.

    python benchmarks/build.py PHOTOS [--rounds 3]

PHOTOS: a folder of images, e.g. BSDS500/data/images/train. For the JPEG task (quality 10 and 20) and super-resolution
(x2, x3, x4) the same pixels are prepared three ways, interleaved, one process, one thread:

- memoir: raw-pixel shards with index and checksums (pipeline.shards.build's work on each shard, without Ray);
- lmdb: BasicSR's way, an equivalent written here (BasicSR itself does not import beside torch without torchvision):
  each version is cut into sub-images of 160x160, as many pixels once, and written as PNG files of a folder (compression
  3); then all files are read, decoded and put into an lmdb as PNG (compression 1), as its two scripts do;
- webdataset: ShardWriter with PNG members, whole images.

All three decode each photograph once and degrade it with the same functions. Targets: 5 times fewer CPU seconds than
lmdb, and 80 % of memoir's own in decoding and degradation.
"""

import argparse
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import webdataset

from pipeline.degradations.colour import rgb2ycbcr_y
from pipeline.degradations.jpeg import Jpeg
from pipeline.degradations.scale import Scale
from pipeline.images import SUFFIXES, decode_image
from pipeline.shards.encode import samples
from pipeline.shards.format import write_shard
from pipeline.shards.plan import File, Group
from pipeline.task import Task

SPLITS = {"train": ("photos/train",)}
TASKS = {
    "jpeg q10, q20": Task(colour="y", degradation=Jpeg(kind="jpeg", quality=(10, 20)), splits=SPLITS),
    "sr x2, x3, x4": Task(colour="y", degradation=Scale(kind="scale", factor=(2, 3, 4)), splits=SPLITS),
}
PNG, LMDB_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3], [cv2.IMWRITE_PNG_COMPRESSION, 1]  # BasicSR's defaults
SUB_IMAGE = 160  # 2x3 of them are a photograph of BSDS500 but for its last row and column


def versions(path: Path, task: Task) -> dict[str, np.ndarray]:
    """The limit: what every way has to do. Name of the version -> uint8 (H, W, 1)."""
    gt = rgb2ycbcr_y(decode_image(path.read_bytes()))
    return {plane.name: plane.pixels for plane in task.degradation.planes("gt", gt, path.stem, ())}


def limit(paths: list[Path], task: Task, out: Path) -> None:
    """Decode and degrade, and store nothing."""
    for path in paths:
        versions(path, task)


def memoir(paths: list[Path], task: Task, out: Path) -> None:
    """Shards of 100 images."""
    for start in range(0, len(paths), 100):
        groups = [
            Group(path.stem, (File("gt", str(path), hashlib.sha256(path.read_bytes()).hexdigest()),))
            for path in paths[start : start + 100]
        ]
        write_shard(samples(groups, task), out)


def lmdb(paths: list[Path], task: Task, out: Path) -> None:
    """PNG files of sub-images, then an lmdb of them."""
    import lmdb

    for path in paths:
        for name, pixels in versions(path, task).items():
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            tops, lefts = (range(0, side - SUB_IMAGE + 1, SUB_IMAGE) for side in pixels.shape[:2])
            for i, (y, x) in enumerate((y, x) for y in tops for x in lefts):
                part = np.ascontiguousarray(pixels[y : y + SUB_IMAGE, x : x + SUB_IMAGE])
                cv2.imwrite(str(folder / f"{path.stem}_s{i:03d}.png"), part, PNG)
    for folder in sorted(out.iterdir()):
        environment = lmdb.open(str(folder) + ".lmdb", map_size=2**34)
        with environment.begin(write=True) as transaction:
            for file in sorted(folder.iterdir()):
                pixels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
                _, data = cv2.imencode(".png", pixels, LMDB_PNG)
                transaction.put(file.stem.encode(), data.tobytes())
        environment.close()


def shard_writer(paths: list[Path], task: Task, out: Path) -> None:
    """webdataset's own writer, with PNG members."""
    out.mkdir(parents=True)
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxcount=100, verbose=0) as writer:
        for path in paths:
            sample: dict[str, object] = {"__key__": path.stem}
            for name, pixels in versions(path, task).items():
                sample[f"{name}.png"] = cv2.imencode(".png", pixels, PNG)[1].tobytes()
            writer.write(sample)


def main() -> None:
    """Print the median CPU and wall seconds of each way, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    paths = sorted(p for p in arguments.photos.iterdir() if p.suffix.lower() in SUFFIXES)
    ways: dict[str, Callable[[list[Path], Task, Path], None]] = {"limit": limit, "memoir": memoir}
    ways["webdataset"] = shard_writer
    if find_spec("lmdb"):
        ways["lmdb"] = lmdb
    else:
        print("lmdb is not installed: that peer is left out (pip install lmdb)")
    for title, task in TASKS.items():
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        sizes = {}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                place = Path(tempfile.mkdtemp(prefix="memoir-benchmark-"))
                cpu, wall = time.process_time(), time.perf_counter()
                way(paths, task, place / "out")
                times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
                stored = "*.lmdb/*" if name == "lmdb" else "**/*"
                sizes[name] = sum(f.stat().st_size for f in (place / "out").glob(stored) if f.is_file())
                shutil.rmtree(place)
        print(f"\n{title}, {len(paths)} photographs, median of {arguments.rounds} rounds")
        print(f"{'':>12} {'CPU s':>8} {'wall s':>8} {'MB':>8} {'CPU / memoir':>13}")
        own = float(np.median([cpu for cpu, _ in times["memoir"]]))
        for name, measured in times.items():
            cpu, wall = (float(np.median(column)) for column in zip(*measured, strict=True))
            print(f"{name:>12} {cpu:>8.2f} {wall:>8.2f} {sizes[name] / 1e6:>8.1f} {cpu / own:>13.2f}")


if __name__ == "__main__":
    main()
