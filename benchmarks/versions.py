"""What an edit of a data set costs a team: shards encoded again, bytes and requests of `dvc push` and `dvc pull`.

    python -m benchmarks.versions PHOTOS [--images 1000000]

PHOTOS: a folder of images, e.g. BSDS500/data/images. Two clones, A and B, share a bucket at an S3 server of this process,
behind a proxy that counts. The JPEG task, in shards of the default size, is built from all photographs at A, pushed, and
pulled at B. Then A adds 5 images side by side, removes 3 that are neighbours, and replaces 1; builds, and pushes; B pulls.
Then B does the same with 9 images in 9 places. Raw images, manifest, shards and tables are all counted.
Then the same edit of so many simulated images: the tables alone, and how many shards change.
Target: at most 10 MB pushed and pulled, and 3 shards encoded for each place.
"""

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
from moto.server import ThreadedMotoServer

from benchmarks.faults import proxy
from benchmarks.scale import manifest
from pipeline.images import SUFFIXES, read_image, write_image
from pipeline.layouts.files import natural
from pipeline.raw.manifest import write_manifest
from pipeline.shards.assemble import Table
from pipeline.shards.format import read_shards_json
from pipeline.shards.plan import ShardPlan, parts, plan
from pipeline.task import Task

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
ADDED, REMOVED, REPLACED = 5, 3, 1
PARAMS = "store: store\ndatasets: {photos: {layout: folder, root: photos}}\ntasks: [jpeg]\nrecipes: {}\n"
TASK = """colour: y
degradation: {kind: jpeg, quality: [10, 20]}
splits: {train: [photos/train]}
"""
STAGES = """stages:
  ingest: {cmd: python -m memoir ingest, deps: [photos], outs: [data/manifest]}
  build: {cmd: python -m memoir build jpeg.yaml, deps: [data/manifest/manifest.json, jpeg.yaml], outs: [data/jpeg]}
"""


class Handler(proxy.Handler):
    """Counts what passes."""

    server: "Proxy"

    def answer(self, body: bytes) -> None:
        answer = self.upstream(body)
        with self.server.lock:
            self.server.requests[self.command] += 1
            self.server.up += len(body)
            self.server.down += len(answer.body)
        self.give(answer)


class Proxy(proxy.Proxy):
    """requests: by method. up, down: bytes of bodies."""

    def __init__(self, upstream: str, handler: type[Handler] = Handler) -> None:
        self.lock = threading.Lock()
        self.requests: Counter[str] = Counter()
        self.up = self.down = 0
        super().__init__(upstream, "127.0.0.1", handler)

    def taken(self) -> str:
        """What passed since the last call, as a part of a row."""
        with self.lock:
            row = f"{self.requests.total():>9} {self.up / 1e6:>8.2f} {self.down / 1e6:>8.2f}"
            self.requests.clear()
            self.up = self.down = 0
        return row


def run(where: Path, *command: str) -> str:
    """A command's output, in a clone. It is the user's `dvc` or `git`."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def edit(clone: Path, seed: int, scattered: bool) -> None:
    """Add, remove and replace photographs of a clone, in three places of their order, or each in another place."""
    photos = sorted((clone / "photos/train").iterdir(), key=lambda path: natural(path.stem))
    places = np.random.default_rng(seed).permutation(len(photos) - ADDED)
    chosen = places[: ADDED + REMOVED + REPLACED].tolist()
    if not scattered:
        added, removed, replaced = chosen[:3]
        chosen = [*range(added, added + ADDED), *range(removed, removed + REMOVED), replaced]
    for i in chosen[:ADDED]:
        image = read_image(photos[i])[0]
        write_image(photos[i].with_name(f"{photos[i].stem}-{seed}.jpg"), np.roll(image, 100, 1))
    for i in chosen[ADDED : ADDED + REMOVED]:
        photos[i].unlink()
    for i in chosen[ADDED + REMOVED :]:
        write_image(photos[i], read_image(photos[i])[0][::-1])


def publish(clone: Path, what: str, counted: Proxy) -> None:
    """Build and push what a clone has, and print what that took."""
    run(clone, "dvc", "add", "-q", "photos")
    run(clone, "dvc", "repro", "-q")
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-qm", what)
    counted.taken()
    run(clone, "dvc", "push", "-q")
    run(clone, "git", "push", "-q", "origin", "HEAD:main")
    shards = read_shards_json(clone / "data/jpeg")["shards"]
    log = json.loads((clone / ".cache/logs/build-jpeg.json").read_text())
    total = sum(shard["bytes"] for shard in shards) / 1e6
    print(f"{what:>22} {len(shards):>7} {total:>8.1f} {log['encoded']:>8} {counted.taken()}", flush=True)


def receive(clone: Path, what: str, counted: Proxy) -> None:
    """Pull what the other clone pushed, and print what that took."""
    run(clone, "git", "pull", "-q", "origin", "main")
    counted.taken()
    run(clone, "dvc", "pull", "-q")
    print(f"{what:>22} {'':>7} {'':>8} {'':>8} {counted.taken()}", flush=True)


def real(photos: Path, place: Path) -> None:
    """The rows of the two clones."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    counted = Proxy(f"http://{host}:{port}")
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="team")
    a, b = place / "a", place / "b"
    run(place, "git", "init", "-q", "--bare", "-b", "main", "origin.git")
    run(place, "git", "clone", "-q", "origin.git", "a")
    run(a, "git", "config", "user.email", "a@team")
    run(a, "git", "config", "user.name", "a")
    (a / "photos/train").mkdir(parents=True)
    for path in sorted(p for p in photos.rglob("*") if p.suffix.lower() in SUFFIXES):
        shutil.copy(path, a / "photos/train" / path.name)
    for name, text in (("params.yaml", PARAMS), ("jpeg.yaml", TASK), ("dvc.yaml", STAGES), (".gitignore", ".cache\n")):
        (a / name).write_text(text)
    run(a, "dvc", "init", "-q")
    shutil.copy(ROOT / ".dvc/config", a / ".dvc/config")
    run(a, "dvc", "remote", "add", "-d", "team", "s3://team/dvc")
    run(a, "dvc", "remote", "modify", "team", "endpointurl", f"http://127.0.0.1:{counted.server_port}")
    print(f"{'':>22} {'shards':>7} {'MB':>8} {'encoded':>8} {'requests':>9} {'MB up':>8} {'MB down':>8}")
    publish(a, "A: first push", counted)
    run(place, "git", "clone", "-q", "-b", "main", "origin.git", "b")
    run(b, "git", "config", "user.email", "b@team")
    run(b, "git", "config", "user.name", "b")
    receive(b, "B: first pull", counted)
    edit(a, 1, scattered=False)
    publish(a, "A: edit in 3 places", counted)
    receive(b, "B: pull", counted)
    edit(b, 2, scattered=True)
    publish(b, "B: edit in 9 places", counted)
    receive(a, "A: pull", counted)
    server.stop()


def described(shards: list[ShardPlan]) -> list[tuple[tuple[str, ...], ...]]:
    """The contents of each part of the tables: for each of its shards, the sha256 of its images."""
    contents = [tuple(shard.files["sha256"].to_pylist()) for shard in shards]
    ends = np.cumsum(parts(shards)).tolist()
    return [tuple(contents[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def index_bytes(part: tuple[tuple[str, ...], ...], place: Path) -> int:
    """The size of a part of the index with rows as a build writes them for these images."""
    table = Table(place, "index")
    with table:
        for images in part:
            shard, offset = f"{hashlib.sha256(''.join(images).encode()).hexdigest()[:16]}.tar", 512
            for image in images:
                side = 300 + int(image[:4], 16) % 200
                for member, level in (("gt.npy", None), ("lq-q10.npy", 10), ("lq-q20.npy", 20), ("json", None)):
                    pixels = member != "json"
                    length = side * side + 128 if pixels else 100
                    row = {"split": "train", "shard": shard, "key": f"photos-train-img_{image[:6]}", "member": member}
                    row |= {"role": member.partition("-")[0].partition(".")[0], "level": level, "offset": offset}
                    row |= {"length": length, "sha256": hashlib.sha256(f"{image}{member}".encode()).hexdigest()}
                    if pixels:
                        row |= {"header": 128, "shape": [side, side, 1], "dtype": "uint8"}
                    table.write([row | {"group": row["key"]}])
                    offset += 512 + length + -length % 512
    return max(path.stat().st_size for path in (place / "index").glob(f"{table.sha256[:16]}*"))


def simulated(images: int, place: Path) -> None:
    """What the edit moves of the tables, and of the shards, of so many photographs."""
    before = manifest(images)
    numbers = np.random.default_rng(1).permutation(images)[: ADDED + REMOVED + REPLACED]
    kept = np.ones(images, bool)
    kept[numbers[ADDED:]] = False
    added = before.take(pa.array(numbers[: ADDED + REPLACED])).to_pylist()
    for row in added:
        row |= {"key": f"{row['key']}x", "group": f"{row['key']}x", "sha256": row["sha256"][::-1]}
    after = pa.concat_tables([before.filter(pa.array(kept)), pa.Table.from_pylist(added, before.schema)])
    task = Task(colour="y", degradation={"kind": "jpeg", "quality": [10, 20]}, splits={"train": ("photos/train",)})  # type: ignore[arg-type]
    files, shards, tables, listings = [], [], [], []
    for number, table in enumerate((before, after)):
        folder = place / str(number)
        write_manifest(folder, table.sort_by("key"), {})
        files.append({path.name: path.stat().st_size for path in (folder / "images").iterdir()})
        planned = plan(table, task)
        tables.append(described(planned))
        shards.append([images for part in tables[-1] for images in part])
        listed = {"split": "train", "name": f"{'0' * 16}.tar", "bytes": 10**8, "sha256": "0" * 64, "groups": 100}
        listed |= {"members": 400, "recipe": "0" * 64}
        whole = {"parts": [{"shards": 2, "index": "0" * 64}] * len(tables[-1]), "shards": [listed] * len(planned)}
        listings.append(len(json.dumps(whole, indent=1)))
    changed = [part for part in tables[1] if part not in set(tables[0])]
    moved = sum(index_bytes(part, place) for part in changed)
    share = sum(len(images) for part in changed for images in part) / images
    new = len(set(shards[1]) - set(shards[0]))
    print(f"{images:,} images: {new} of {len(shards[1]):,} shards change")
    print(f"  index: {len(changed)} of {len(tables[1])} parts, {moved / 1e6:.2f} MB of some {moved / share / 1e6:.0f}")
    lost = {name: size for name, size in files[1].items() if name not in files[0]}
    total = sum(files[1].values()) / 1e6
    print(f"  manifest: {len(lost)} of {len(files[1])} parts, {sum(lost.values()) / 1e6:.2f} MB of {total:.0f}")
    print(f"  shards.json: {listings[1] / 1e6:.2f} MB")


def main() -> None:
    """Print a row for each push and pull, and then the simulation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=10**6, help="simulated")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="memoir-benchmark-"))
    try:
        real(arguments.photos.resolve(), place)
        (place / "tables").mkdir()
        simulated(arguments.images, place / "tables")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
