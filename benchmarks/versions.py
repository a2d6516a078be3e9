"""What an edit of a data set costs: shards encoded again, and bytes that `dvc push` moves.

    python benchmarks/versions.py PHOTOS [--shard-mib 8]

PHOTOS: a folder of images, e.g. BSDS500/data/images. In a temporary DVC repository the JPEG task is built from all of
them; then 5 images are added, 5 removed and 1 replaced, one edit after the other, each followed by a build and a push
to a local remote. Target: at most 3 shards change for each edit.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.images import SUFFIXES, read_image, write_image
from pipeline.shards.format import read_shards_json

BIN = Path(sys.executable).parent
PARAMS = "store: store\ndatasets: {photos: {layout: folder, root: photos}}\ntasks: [jpeg]\nrecipes: {}\n"
TASK = """colour: y
degradation: {{kind: jpeg, quality: [10, 20]}}
splits: {{train: [photos/train]}}
shard_bytes: {shard_bytes}
"""


def run(*command: str) -> str:
    """A command's output. It is the user's `memoir`, `dvc` or `git`."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def remote_files() -> dict[str, int]:
    """What the remote holds: file -> bytes."""
    return {str(path): path.stat().st_size for path in Path("remote").rglob("*") if path.is_file()}


def version(what: str, before: set[str], pushed: dict[str, int]) -> tuple[set[str], dict[str, int]]:
    """Ingest, build and push, and print what that cost. Returns the shards and what the remote holds."""
    run("memoir", "ingest")
    report = run("memoir", "build", "jpeg.yaml")
    encoded = int(report.split(" encoded now")[0].rsplit(" ", 1)[1])
    run("dvc", "add", "data/jpeg")
    run("dvc", "push", "data/jpeg.dvc")
    shards = {shard["name"]: shard["bytes"] for shard in read_shards_json(Path("data/jpeg"))["shards"]}
    held = remote_files()
    moved = sum(size for path, size in held.items() if path not in pushed)
    new = shards.keys() - before
    assert len(new) == encoded
    print(
        f"{what:>12} {len(shards):>7} {sum(shards.values()) / 1e6:>8.1f} {encoded:>8} "
        f"{sum(shards[name] for name in new) / 1e6:>8.1f} {len(held.keys() - pushed.keys()):>13} {moved / 1e6:>8.1f}",
        flush=True,
    )
    return set(shards), held


def main() -> None:
    """Print a row for each version."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--shard-mib", type=float, default=8)
    arguments = parser.parse_args()
    paths = sorted(p.resolve() for p in arguments.photos.rglob("*") if p.suffix.lower() in SUFFIXES)
    place = Path(tempfile.mkdtemp(prefix="memoir-benchmark-"))
    try:
        os.chdir(place)
        folder = Path("photos/train")
        folder.mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / path.name)
        Path("params.yaml").write_text(PARAMS)
        Path("jpeg.yaml").write_text(TASK.format(shard_bytes=int(arguments.shard_mib * 2**20)))
        for command in ("git init -q", "dvc init -q", "dvc remote add -q -d local remote"):
            run(*command.split())
        print(f"{'':>12} {'shards':>7} {'MB':>8} {'encoded':>8} {'MB':>8} {'files pushed':>13} {'MB':>8}")
        shards, held = version("first", set(), {})
        middle = folder / paths[len(paths) // 2].name
        image = read_image(middle)[0]
        for i in range(5):
            write_image(folder / f"{middle.stem}-{i}.png", np.roll(image, 10 * (i + 1), 1))
        shards, held = version("5 added", shards, held)
        for path in paths[len(paths) // 3 :][:5]:
            (folder / path.name).unlink()
        shards, held = version("5 removed", shards, held)
        replaced = folder / paths[3 * len(paths) // 4].name
        write_image(replaced, read_image(replaced)[0][::-1])
        version("1 replaced", shards, held)
    finally:
        os.chdir("/")
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
