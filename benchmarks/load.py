"""Pairs per second of the loader on one core, beside five peers and memcpy.

    python benchmarks/load.py PHOTOS [--peers DIR] [--sides 256 512] [--rounds 5] [--seconds 1]

PHOTOS: a folder of images, e.g. BSDS500/data/images/train. Squares of the first 200, clean and as JPEG of quality 40, are
built by `memoir ingest` and `memoir build`; every peer stores the pixels of these shards and gives batches of 32 pairs of
RGB crops of 256x256, uint8, in an order of its own, shuffled:

- memoir: raw shards, random crops, without and with the 8 flips and rotations;
- folder: a PNG file for each image, cv2.imread, torch's DataLoader;
- lmdb: BasicSR's way, two lmdbs of PNG (BasicSR itself does not import beside torch without torchvision);
- webdataset: tar shards of PNG;
- mosaic: mosaicml-streaming's MDS shards, of PNG and of raw arrays;
- litdata: its chunks, of PNG and of raw arrays;
- memcpy: the limit, contiguous copies of as many bytes for each batch out of 256 MiB, into one buffer; and into three in
  turn, as a loader needs them: one is in use, one is ready, one is written.

With squares of 256 no loader reads a pixel that it does not deliver; with 512, those that decode read three in four in
vain. PNG is decoded by cv2 for all, which is faster than Pillow, the decoder of webdataset, mosaic and litdata (640 beside
540 images of 256x256 per CPU second); none converts to float. All run in this process, pinned to one core, in turn, a new
iterator and one batch not counted each time. The figures are medians over the rounds; the ratio to memoir and the share of
memcpy are medians of the rounds' own. Files are in the page cache.

Then MemNet's patches: 31x31 grey at every 21 pixels in 8 views, of the photographs at quality 10 and 20; and the memory
that a loader takes as the number of samples grows.

lmdb, mosaicml-streaming and litdata are not memoir's dependencies; a peer that cannot be imported is left out. To have
them: pip install lmdb, and into a folder of their own, which --peers then names:
pip install --no-deps --target DIR mosaicml-streaming litdata lightning-utilities obstore tifffile xxhash Brotli zstd \
    python-snappy cramjam catalogue
"""

import argparse
import gc
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from peers import BATCH, PATCH, PEERS, Batches, Open, Pair, decoded, png

from pipeline.images import SUFFIXES, write_image
from pipeline.loading.bench import copies, shard_bytes
from pipeline.loading.loader import Loader
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards.shard_set import ShardSet

IMAGES = 200


# memoir, and the limit


def memoir(folder: Path, sampling: Grid | RandomCrops, batch: int) -> Open:
    """The loader, one thread beside this one."""
    loader = Loader(folder, batch=batch, sampling=sampling)

    def run() -> Batches:
        with closing(loader.batches()) as batches:
            for _, each in batches:
                true = int(each["weight"].sum())
                yield each["gt"][:true].permute(0, 2, 3, 1), each["lq"][:true].permute(0, 2, 3, 1)
                each.hand_back()

    return run


def memcpy(source: np.ndarray, batch: int, patch: int, channels: int, buffers: int = 1) -> Open:
    """A batch's bytes, copied in one piece, into so many buffers in turn. source: uint8 (n,), larger than a batch."""
    size = 2 * batch * patch * patch * channels

    def run() -> Batches:
        for buffer in copies(source, size, buffers):
            gt, lq = torch.from_numpy(buffer.reshape(2, batch, patch, patch, channels))
            yield gt, lq

    return run


# The measurement


def build(photos: list[Path], sides: list[int], place: Path) -> None:
    """data/side-<n> of squares and data/grey of the photographs, as a user builds them."""
    datasets = ["grey: {layout: folder, root: grey}"]
    tasks = {"grey": "colour: y\ndegradation: {kind: jpeg, quality: [10, 20]}\nsplits: {train: [grey/train]}\n"}
    (place / "grey/train").mkdir(parents=True)
    for path in photos:
        (place / "grey/train" / path.name).symlink_to(path)
    for side in sides:
        name = f"side-{side}"
        for path in photos:
            rgb = decoded(path.read_bytes())
            rows, columns = (max(0, side - n) for n in rgb.shape[:2])
            rgb = cv2.copyMakeBorder(rgb, 0, rows, 0, columns, cv2.BORDER_REFLECT)
            target = place / name / "train" / f"{path.stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(target, rgb[:side, :side])
        datasets.append(f"{name}: {{layout: folder, root: {name}}}")
        tasks[name] = f"colour: rgb\ndegradation: {{kind: jpeg, quality: [40]}}\nsplits: {{train: [{name}/train]}}\n"
    named = "\n  ".join(datasets)
    (place / "params.yaml").write_text(
        f"store: store\ndatasets:\n  {named}\ntasks: [{', '.join(tasks)}]\nrecipes: {{}}\n"
    )
    commands = [["ingest"]]
    for name, task in tasks.items():
        (place / f"{name}.yaml").write_text(f"{task}shard_bytes: 33554432\n")
        commands.append(["build", f"{name}.yaml"])
    for command in commands:
        subprocess.run([sys.executable, "-m", "memoir", *command], cwd=place, check=True, stdout=subprocess.DEVNULL)


def check(name: str, batches: Batches, pairs: list[Pair]) -> None:
    """Raise SystemExit unless a batch consists of these pairs, uncropped."""
    known = {zlib.crc32(pair.gt.tobytes()): zlib.crc32(pair.lq.tobytes()) for pair in pairs}
    with closing(batches):
        gt, lq = next(batches)
    for a, b in zip(gt.contiguous().numpy(), lq.contiguous().numpy(), strict=True):
        if known.get(zlib.crc32(a)) != zlib.crc32(b):
            raise SystemExit(f"{name}: delivers other pixels than were stored")


def measure(ways: dict[str, Open], rounds: int, seconds: float) -> dict[str, np.ndarray]:
    """Measure in turn, so that all have the same neighbours: (rounds, 3) of pairs/s, MB/s and CPU microseconds a pair each."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            with closing(way()) as batches:
                next(batches)
                taken = size = 0
                cpu, began = time.process_time(), time.perf_counter()
                while (wall := time.perf_counter() - began) < seconds or not taken:
                    gt, lq = next(batches)
                    taken += len(gt)
                    size += gt.nbytes + lq.nbytes
                cpu = time.process_time() - cpu
            rows[name].append((taken / wall, size / wall / 1e6, cpu / taken * 1e6))
    return {name: np.array(row) for name, row in rows.items()}


def show(title: str, measured: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
    """Print the table. sizes: bytes on disk. The first way is memoir's."""
    own, limit = next(iter(measured.values()))[:, 0], measured["memcpy"][:, 0]
    print(f"\n{title}")
    heads = ("pairs/s", "MB/s", "CPU us/pair", "MB stored", "memoir is", "of memcpy")
    print(f"{'':>22}" + "".join(f"{head:>13}" for head in heads))
    for name, row in measured.items():
        pairs, mb, cpu = np.median(row, axis=0)
        stored = f"{sizes[name] / 1e6:,.1f}" if name in sizes else ""
        ratio, share = np.median(own / row[:, 0]), np.median(row[:, 0] / limit)
        print(
            f"{name:>22}{pairs:>13,.0f}{mb:>13,.1f}{cpu:>13,.1f}{stored:>13}{ratio:>12.2f}x{share:>13.1%}", flush=True
        )


def disk(place: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_blocks * 512 for path in place.rglob("*") if path.is_file())


def sources(folder: Path) -> np.ndarray:
    """What memcpy copies: the shards' own bytes, again and again up to 256 MiB."""
    return np.resize(shard_bytes(sorted(folder.glob("train/*.tar"))), 2**28)


def memory(folder: Path, stride: int) -> tuple[int, float, float, float]:
    """Samples; MiB before the loader, and at the peak of 50 batches; and MiB with everything mapped, at the peak.

    The first two are of memory that no file backs: mapped shards are the page cache's, which gives them up when it is
    short. Call it in a process of its own.
    """
    before = status("RssAnon")
    loader = Loader(folder, batch=64, sampling=Grid(31, stride))
    with closing(loader.batches()) as batches:
        peak = before
        for _ in range(50):
            next(batches)[1].hand_back()
            peak = max(peak, status("RssAnon"))
    return loader.samples, before, peak, status("VmHWM")


def status(field: str) -> float:
    """MiB of this process."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--peers", type=Path, help="folder where peers are installed")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="for each way and round")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it here
    if arguments.peers:
        sys.path.append(str(arguments.peers.resolve()))
    photos = sorted(p.resolve() for p in arguments.photos.iterdir() if p.suffix.lower() in SUFFIXES)[:IMAGES]
    with tempfile.TemporaryDirectory(prefix="memoir-benchmark-") as temporary:
        run(photos, arguments, Path(temporary))


def run(photos: list[Path], arguments: argparse.Namespace, place: Path) -> None:
    """Print all tables; the stores are below `place`."""
    build(photos, arguments.sides, place)
    # mosaic and litdata leave files where temporary ones go, and litdata empties `data` there; Ray needs a short path.
    (place / "temporary").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "temporary")
    spawned = multiprocessing.get_context("spawn")
    memories = []
    for stride in (21, 7, 2):  # samples: about 1, 9 and 107 times
        with spawned.Pool(1) as pool:
            memories.append(pool.apply(memory, (place / "data/grey", stride)))
    all_ways: dict[int, dict[str, Open]] = {}
    all_sizes: dict[int, dict[str, int]] = {}
    for side in arguments.sides:
        folder = place / f"data/side-{side}"
        planes = [(v.key, v.planes["gt"], v.planes["lq"]) for v in ShardSet(folder, "train").versions()]
        pairs = [Pair(key, gt, lq, png(gt), png(lq)) for key, gt, lq in planes]
        ways: dict[str, Open] = {"memoir": memoir(folder, RandomCrops(PATCH, dihedral=False), BATCH)}
        sizes = {"memoir": disk(folder)}
        for name, peer in PEERS.items():
            at = place / f"{side} {name}"
            at.mkdir()
            try:
                ways[name] = peer(pairs, at)
                sizes[name] = disk(at)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        if side == PATCH:
            for name, way in ways.items():
                check(name, way(), pairs)
        ways["memoir, 8 views"] = memoir(folder, RandomCrops(PATCH), BATCH)
        ways["memcpy"] = memcpy(sources(folder), BATCH, PATCH, 3)
        ways["memcpy, 3 buffers"] = memcpy(sources(folder), BATCH, PATCH, 3, buffers=3)
        all_ways[side], all_sizes[side] = ways, sizes
    # One core from here on: what was built before may use all of them.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    packages = ("torch", "numpy", "opencv-python-headless", "webdataset", "lmdb", "mosaicml-streaming", "litdata")
    print(f"\n{platform.platform()}, Python {platform.python_version()}, " + ", ".join(map(installed, packages)))
    print(f"load average before the measurement: {os.getloadavg()[0]:.2f}; one core of {os.cpu_count()}")
    timing = arguments.rounds, arguments.seconds
    for side, ways in all_ways.items():
        title = f"RGB crops of {PATCH}x{PATCH} out of {len(photos)} pairs of {side}x{side}, batch {BATCH}"
        show(title, measure(ways, *timing), all_sizes[side])
    grey = place / "data/grey"
    for batch in (64, 256):
        ways = {
            "memoir, 8 views": memoir(grey, Grid(31, 21), batch),
            "memoir": memoir(grey, Grid(31, 21, dihedral=False), batch),
            "memcpy": memcpy(sources(grey), batch, 31, 1),
        }
        show(f"grey patches of 31x31, stride 21, batch {batch}", measure(ways, *timing), {})
    print(f"\n{'':>10}{'samples':>13}{'MiB before':>13}{'MiB loading':>13}{'MiB mapped':>13}")
    for samples, before, peak, rss in memories:
        print(f"{'memoir':>10}{samples:>13,}{before:>13,.1f}{peak:>13,.1f}{rss:>13,.1f}")


def installed(package: str) -> str:
    """Name and version."""
    try:
        return f"{package} {version(package)}"
    except ImportError:
        return f"no {package}"


if __name__ == "__main__":
    main()
