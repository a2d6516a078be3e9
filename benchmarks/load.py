"""Pairs per second of the loader on one core, beside eight peers and memcpy.

    python benchmarks/load.py PHOTOS [--peers DIR] [--sides 256 512] [--cores 1] [--rounds 5] [--seconds 1] [--s3 URI]

PHOTOS: a folder of images, e.g. BSDS500/data/images/train. Squares of the first 200, clean and as JPEG of quality 40, are
built by `memoir ingest` and `memoir build`; every peer stores the pixels of these shards and gives batches of 32 pairs of
RGB crops of 256x256, uint8, in an order of its own, shuffled:

- memoir: raw shards, random crops, without and with the 8 flips and rotations; and shards of PNG, decoded anew for each
  crop, as images are that the loader has no room for, or kept once decoded, as it does with the first 256 MiB;
- folder: a PNG file for each image, cv2.imread, torch's DataLoader;
- lmdb: BasicSR's way, two lmdbs of PNG (BasicSR itself does not import beside torch without torchvision);
- webdataset: tar shards of PNG;
- energon: Megatron Energon, the same tars with its index, in its own order;
- mosaic: mosaicml-streaming's MDS shards, of PNG and of raw arrays;
- litdata: its chunks, of PNG and of raw arrays;
- grain: ArrayRecord files without compression, of PNG and of raw arrays, read by a thread of its own for each core;
- spdl: its pipeline over PNG files, with a thread for each core and one that makes batches; decoded as for the others, and
  by FFmpeg, its own decoder, which takes as long as cv2's only to open a file, and as long again for the pixels;
- memcpy: the limit, contiguous copies of as many bytes for each batch out of 256 MiB, into one buffer; and into three in
  turn, as a loader needs them: one is in use, one is ready, one is written.

FFCV is not among them: it comes as source, and does not build where OpenCV's headers are missing.

With squares of 256 no loader reads a pixel that it does not deliver; with 512, those that decode read three in four in
vain. PNG is decoded by cv2 for all, which is faster than Pillow, the decoder of webdataset, mosaic, litdata and Energon
(640 beside 540 images of 256x256 per CPU second); none converts to float. All are pinned to one core, in turn, a new
iterator and three batches not counted each time, and work in this process. With --cores N they have N: memoir, Grain, SPDL
and memcpy N threads, the others N worker processes, whose epochs have the pairs 100 times or do not end, for workers start
anew with each; CPU time is that of all processes. The figures are medians over the rounds; the ratio to memoir and the
share of memcpy are medians of the rounds' own. Files are in the page cache.

Then the same with 16 bits, of squares of 256, with noise instead of JPEG, which has 8: memoir and the peers' raw arrays.
Then MemNet's patches: 31x31 grey at every 21 pixels in 8 views, of the photographs at quality 10 and 20; and the memory
that a loader takes as the number of samples grows.

With --s3 URI, of an empty place in a bucket (AWS_ENDPOINT_URL and boto3's other variables say where), the pairs of squares of
256 are read from there instead, in this process: an epoch with an empty cache, cold, which begins when the loader is
made, and the next one, warm. Energon, Grain and SPDL are not in it: the first has a client of its own to configure, the
others read files.

What is not memoir's dependency is left out if it cannot be imported. To have it: pip install lmdb, and into a folder of their
own, which --peers then names:
pip install --no-deps --target DIR mosaicml-streaming litdata lightning-utilities obstore tifffile xxhash Brotli zstd \
    python-snappy cramjam catalogue grain array_record absl-py etils portpicker spdl spdl-io spdl-core megatron-energon \
    multi-storage-client mfusepy filetype rapidyaml deprecation xattr wcmatch bracex prettytable pyroute2
SPDL's own decoder needs FFmpeg's shared libraries, versions 4 to 9, where the linker finds them.
"""

import argparse
import gc
import itertools
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from peers import BATCH, PATCH, PEERS, RAW, REMOTE, Batches, Open, Pair, decoded, png, upload

from pipeline.images import SUFFIXES, write_image
from pipeline.loading.bench import copies, shard_bytes
from pipeline.loading.loader import Loader
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards import shard_set
from pipeline.shards.cache import ShardCache
from pipeline.shards.shard_set import ShardSet

IMAGES = 200
KEPT = shard_set.DECODED
NOISE = "{kind: noise, sigma: [25], drawn: stored, quantised: true}"


# memoir, and the limit


def memoir(folder: Path, sampling: Grid | RandomCrops, batch: int, threads: int, *, kept: int = KEPT) -> Open:
    """The loader, so many threads beside this one. kept: bytes of decoded PNG that stay in memory."""
    loader = Loader(folder, batch=batch, sampling=sampling, threads=threads)

    def run() -> Batches:
        shard_set.DECODED = kept
        yield from delivered(loader)

    return run


def remote_memoir(uri: str) -> Open:
    """The loader of a dataset in a bucket, through an empty cache."""

    def run() -> Batches:
        cache = ShardCache(Path(tempfile.mkdtemp()))
        with closing(cache):
            yield from delivered(Loader(uri, batch=BATCH, sampling=RandomCrops(PATCH, dihedral=False), cache=cache))

    return run


def delivered(loader: Loader) -> Batches:
    """Its batches, without padding."""
    with closing(loader.batches()) as batches:
        for _, each in batches:
            true = int(each["weight"].sum())
            yield each["gt"][:true].permute(0, 2, 3, 1), each["lq"][:true].permute(0, 2, 3, 1)
            each.hand_back()


def memcpy(
    source: np.ndarray, batch: int, patch: int, channels: int, threads: int, *, buffers: int = 1, dtype: str = "u1"
) -> Open:
    """A batch's bytes, copied in one piece, into so many buffers in turn, or each thread into its own.

    source: uint8 (n,), larger than a batch.
    """
    shape = 2, batch, patch, patch, channels
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize

    def run() -> Batches:
        for buffer in copied(np.array_split(source, threads), size, buffers):
            gt, lq = torch.from_numpy(buffer.view(dtype).reshape(shape))
            yield gt, lq

    return run


def copied(parts: list[np.ndarray], size: int, buffers: int) -> Iterator[np.ndarray]:
    """`copies` of each of these parts, by this thread if it is one, or else by a thread for each."""
    if len(parts) == 1:
        yield from copies(parts[0], size, buffers)
    ways = [copies(part, size, buffers) for part in parts]
    with ThreadPoolExecutor(len(ways)) as pool:
        coming = deque(pool.submit(next, way) for way in ways)
        for way in itertools.cycle(ways):
            yield coming.popleft().result()
            coming.append(pool.submit(next, way))


# The measurement


def build(photos: list[Path], sides: list[int], place: Path) -> None:
    """data/side-<n> of squares, -png and -16 bits, and data/grey of the photographs, as a user builds them."""
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
        for suffix, degradation, rest in (
            ("", "{kind: jpeg, quality: [40]}", ""),
            ("-png", "{kind: jpeg, quality: [40]}", "codec: png\n"),
            ("-16", NOISE, "bits: 16\n"),
        ):
            task = f"colour: rgb\ndegradation: {degradation}\nsplits: {{train: [{name}/train]}}\n{rest}"
            if side == PATCH or suffix != "-16":
                tasks[f"{name}{suffix}"] = task
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


def measure(ways: dict[str, Open], rounds: int, seconds: float, cores: int) -> dict[str, np.ndarray]:
    """Measure in turn, so that all have the same neighbours: (rounds, 3) of pairs/s, MB/s and CPU microseconds a pair each.

    cores: what the ways have, each of which makes some batches ahead; those are taken before the time begins.
    """
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            with closing(way()) as batches:
                for _ in range(3 * cores):
                    next(batches)
                taken = size = 0
                cpu, began = cpu_seconds(), time.perf_counter()
                while (wall := time.perf_counter() - began) < seconds or not taken:
                    gt, lq = next(batches)
                    taken += len(gt)
                    size += gt.nbytes + lq.nbytes
                cpu = cpu_seconds() - cpu
            rows[name].append((taken / wall, size / wall / 1e6, cpu / taken * 1e6))
    return {name: np.array(row) for name, row in rows.items()}


def cpu_seconds() -> float:
    """CPU time of this process, and of those that it started and that live."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(each.user + each.system for each in times)


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
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="for each way and round")
    parser.add_argument("--s3", metavar="URI", help="an empty place in a bucket, s3://bucket/prefix")
    arguments = parser.parse_args()
    if not 1 <= arguments.cores <= len(os.sched_getaffinity(0)):
        parser.error(f"--cores: there are {len(os.sched_getaffinity(0))}")
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it here
    if arguments.peers:
        sys.path.append(str(arguments.peers.resolve()))
    photos = sorted(p.resolve() for p in arguments.photos.iterdir() if p.suffix.lower() in SUFFIXES)[:IMAGES]
    with tempfile.TemporaryDirectory(prefix="memoir-benchmark-") as temporary:
        run(photos, arguments, Path(temporary))


def run(photos: list[Path], arguments: argparse.Namespace, place: Path) -> None:
    """Print all tables; the stores are below `place`."""
    build(photos, [PATCH] if arguments.s3 else arguments.sides, place)
    # mosaic and litdata leave files where temporary ones go, and litdata empties `data` there; Ray needs a short path.
    (place / "temporary").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(place / "temporary")
    packages = ("torch", "numpy", "opencv-python-headless", "webdataset", "lmdb", "mosaicml-streaming", "litdata")
    packages += ("grain", "spdl", "megatron-energon")
    print(f"\n{platform.platform()}, Python {platform.python_version()}, " + ", ".join(map(installed, packages)))
    memories = [] if arguments.s3 else [measured_memory(place / "data/grey", stride) for stride in (21, 7, 2)]
    # So many cores from here on: a thread of a package keeps those that it began with.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.cores :])
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    if arguments.s3:
        from_bucket(arguments, place)
    else:
        from_disk(arguments, place)
        print(f"\n{'':>10}{'samples':>13}{'MiB before':>13}{'MiB loading':>13}{'MiB mapped':>13}")
        for samples, before, peak, rss in memories:  # samples: about 1, 9 and 107 times
            print(f"{'memoir':>10}{samples:>13,}{before:>13,.1f}{peak:>13,.1f}{rss:>13,.1f}")


def measured_memory(folder: Path, stride: int) -> tuple[int, float, float, float]:
    """`memory`, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory, (folder, stride))


def pairs_of(folder: Path) -> list[Pair]:
    """The pairs of a dataset."""
    planes = [(v.key, v.planes["gt"], v.planes["lq"]) for v in ShardSet(folder, "train").versions()]
    return [Pair(key, gt, lq, png(gt), png(lq)) for key, gt, lq in planes]


def from_disk(arguments: argparse.Namespace, place: Path) -> None:
    """Print the tables of pairs per second."""
    cores, crops = arguments.cores, RandomCrops(PATCH, dihedral=False)
    tables: list[tuple[str, dict[str, Open], dict[str, int]]] = []
    for side, bits in [(side, 8) for side in arguments.sides] + [(PATCH, 16)] * (PATCH in arguments.sides):
        folder = place / (f"data/side-{side}" + ("-16" if bits == 16 else ""))
        pairs = pairs_of(folder)
        ways: dict[str, Open] = {"memoir": memoir(folder, crops, BATCH, cores)}
        sizes = {"memoir": disk(folder)}
        if bits == 8:
            coded = folder.with_name(f"{folder.name}-png")
            ways["memoir, PNG"] = memoir(coded, crops, BATCH, cores, kept=0)
            ways["memoir, PNG, kept"] = memoir(coded, crops, BATCH, cores)
            sizes["memoir, PNG"] = disk(coded)
        for name, peer in (PEERS if bits == 8 else RAW).items():
            at = place / f"{side} {bits} {name}"
            at.mkdir()
            try:
                ways[name] = peer(pairs, at, cores)
                sizes[name] = disk(at)
            except ImportError as error:
                print(f"{name} is left out: {error}")
        # litdata's writer sets another one, with which DataLoader would have to pickle the datasets.
        multiprocessing.set_start_method("fork", force=True)
        if side == PATCH:
            for name, way in ways.items():
                check(name, way(), pairs)
        source, dtype = sources(folder), f"u{bits // 8}"
        ways["memoir, 8 views"] = memoir(folder, RandomCrops(PATCH), BATCH, cores)
        ways["memcpy"] = memcpy(source, BATCH, PATCH, 3, cores, dtype=dtype)
        ways["memcpy, 3 buffers"] = memcpy(source, BATCH, PATCH, 3, cores, buffers=3, dtype=dtype)
        title = f"RGB crops of {PATCH}x{PATCH}, {bits} bits, out of {len(pairs)} pairs of {side}x{side}, batch {BATCH}"
        tables.append((title, ways, sizes))
    grey = place / "data/grey"
    for batch in (64, 256):
        ways = {
            "memoir, 8 views": memoir(grey, Grid(31, 21), batch, cores),
            "memoir": memoir(grey, Grid(31, 21, dihedral=False), batch, cores),
            "memcpy": memcpy(sources(grey), batch, 31, 1, cores),
        }
        tables.append((f"grey patches of 31x31, stride 21, batch {batch}", ways, {}))
    print(f"load average before the measurement: {os.getloadavg()[0]:.2f}; {cores} of {os.cpu_count()} cores")
    for title, ways, sizes in tables:
        show(title, measure(ways, arguments.rounds, arguments.seconds, cores), sizes)


def from_bucket(arguments: argparse.Namespace, place: Path) -> None:
    """Print the table of pairs per second out of a bucket: of an epoch with nothing cached, and of the next."""
    folder, uri = place / f"data/side-{PATCH}", arguments.s3.rstrip("/")
    pairs = pairs_of(folder)
    ways: dict[str, Open] = {}
    for name, stored in (("memoir", folder), ("memoir, PNG", folder.with_name(f"{folder.name}-png"))):
        upload(stored, f"{uri}/{stored.name}")
        ways[name] = remote_memoir(f"{uri}/{stored.name}")
    for name, peer in REMOTE.items():
        at = place / f"s3 {name}"
        at.mkdir()
        try:
            ways[name] = peer(pairs, at, f"{uri}/{name.replace(', ', '-')}")
        except ImportError as error:
            print(f"{name} is left out: {error}")
    for name, way in ways.items():
        check(name, way(), pairs)
    shard_set.DECODED = 0
    rows: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            gc.collect()
            began, taken, ends = time.perf_counter(), 0, []
            with closing(way()) as batches:
                for gt, _ in batches:
                    taken += len(gt)
                    if taken % len(pairs) == 0:
                        ends.append(time.perf_counter() - began)
                    if len(ends) == 2:
                        break
            rows[name].append([len(pairs) / ends[0], len(pairs) / (ends[1] - ends[0])])
    print(f"\n{len(pairs)} pairs of {PATCH}x{PATCH} out of {uri}, pairs/s\n{'':>22}{'cold':>13}{'warm':>13}")
    for name, row in rows.items():
        cold, warm = np.median(row, axis=0)
        print(f"{name:>22}{cold:>13,.0f}{warm:>13,.0f}")


def installed(package: str) -> str:
    """Name and version."""
    try:
        return f"{package} {version(package)}"
    except ImportError:
        return f"no {package}"


if __name__ == "__main__":
    main()
