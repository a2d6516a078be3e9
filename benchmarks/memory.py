"""Peak memory of the ingest and build stages as the number of photographs grows.

    python benchmarks/memory.py PHOTOS [--times 1 4 16]

PHOTOS: a folder of images, e.g. BSDS500/data/images/train. Each is taken so many times, under names of its own, through
`memoir ingest` and `memoir build` as a user runs them, with two shards at a time. The figures are the most memory of
their own (USS) that the driver and Ray's largest worker take. Target: flat.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.images import SUFFIXES

PARAMS = "store: store\ndatasets:\n  photos: {layout: folder, root: photos}\ntasks: [tiny]\nrecipes: {}\n"
TASK = """colour: y
degradation: {kind: jpeg, quality: [10, 20]}
splits: {train: [photos/train]}
shard_bytes: 8388608
"""


def peaks(*arguments: str) -> tuple[float, float, float]:
    """Run memoir: MiB at the peak of this process and of its largest worker, and seconds."""
    began = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", "memoir", *arguments], stdout=subprocess.DEVNULL)
    driver = worker = 0
    while process.poll() is None:
        try:
            driver = max(driver, process.memory_full_info().uss)
            workers = [each for each in process.children(recursive=True) if each.name().startswith("ray::")]
            worker = max([worker, *(each.memory_full_info().uss for each in workers)])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"memoir {' '.join(arguments)}: exit code {process.returncode}")
    return driver / 2**20, worker / 2**20, time.perf_counter() - began


def main() -> None:
    """Print a row for each number of photographs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args()
    paths = sorted(p.resolve() for p in arguments.photos.iterdir() if p.suffix.lower() in SUFFIXES)
    print(f"{'images':>8} {'ingest MiB':>11} {'build MiB':>10} {'worker MiB':>11} {'ingest s':>9} {'build s':>8}")
    for times in arguments.times:
        with tempfile.TemporaryDirectory(prefix="memoir-memory-") as place:
            os.chdir(place)
            Path("photos/train").mkdir(parents=True)
            for i in range(times):
                for path in paths:
                    Path(f"photos/train/{path.stem}-{i}{path.suffix}").symlink_to(path)
            Path("params.yaml").write_text(PARAMS)
            Path("tiny.yaml").write_text(TASK)
            ingest, _, ingest_seconds = peaks("ingest")
            driver, worker, seconds = peaks("build", "tiny.yaml", "--cpus", "2")
            os.chdir("/")
        print(
            f"{times * len(paths):>8,} {ingest:>11.0f} {driver:>10.0f} {worker:>11.0f} {ingest_seconds:>9.1f} {seconds:>8.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
