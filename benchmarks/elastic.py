"""What batches come when the number of ranks changes in the middle of an epoch: memoir's loader beside Grain's ElasticIterator.

    python benchmarks/elastic.py [--peers DIR] [--images 1003] [--batch 24] [--seconds 2] [--rounds 5]

Both have the same images (noise, 64x64 RGB, uint8; one sample each) in their own shuffled order, for two epochs. A first run has
one rank and nothing happens to it. In a second one ranks come and go: 2 for ten steps, then killed; 3 from the state that was
saved after the seventh, so that three steps come again; then 1, to the end. What is compared, of the second run's last word on
each step:

- sets: steps whose global batch has the same samples as in the first run;
- order: steps that have them in the same order too, ranks one after the other. Losses and gradients are sums over a batch, whose
  last bits depend on that;
- all: samples that came exactly as often as there were epochs, of all there are;
- what happens at the end of the data: memoir pads the last batch of an epoch, with weight 0.

A mixture of two sources in proportions 3 : 1 is compared in the same way. Then samples/s of one rank, in turn, pinned to one
core, each with one thread of its own beside the one that takes the batches; the ratio is the median of the rounds' own.

Grain is not memoir's dependency: pip install --no-deps --target DIR grain array_record absl-py etils portpicker cloudpickle
protobuf. Without it the figures are memoir's alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.images import write_image
from pipeline.loading.loader import Loader, Position
from pipeline.loading.mixture import Mixture, Source
from pipeline.sampling.patches import Grid

SIDE, EPOCHS = 64, 2
CHANGES = [
    (2, 10),
    (3, 9),
    (1, None),
]  # ranks, steps until the next; the first ones are killed and lose their last LOST
LOST = 3

Step = list[int]  # the samples of a global batch, of one rank after the other


class Way(NamedTuple):
    """One loader. begin: (rank, ranks, state or None) -> steps of that rank, each with the state after it. epoch: samples in one."""

    name: str
    begin: Callable[[int, int, Any], Iterator[tuple[list[int], Any]]]
    epoch: int


def build(place: Path, name: str, images: np.ndarray) -> Path:
    """A data set of these images, as a user builds it; sample i is image i of `ordered`."""
    for i, pixels in enumerate(images):
        write_image(place / name / "train" / f"{i:06d}.png", pixels)
    (place / "params.yaml").write_text(
        f"store: store\ndatasets:\n  {name}: {{layout: folder, root: {name}}}\ntasks: [{name}]\nrecipes: {{}}\n"
    )
    (place / f"{name}.yaml").write_text(
        f"colour: rgb\ndegradation: {{kind: noise, sigma: [1]}}\nsplits: {{train: [{name}/train]}}\n"
    )
    for command in (["ingest"], ["build", f"{name}.yaml"]):
        subprocess.run([sys.executable, "-m", "memoir", *command], cwd=place, check=True, capture_output=True)
    return place / "data" / name


def opened(folder: Path, batch: int, rank: int, ranks: int) -> Loader:
    """memoir's loader of whole images."""
    return Loader(folder, batch=batch, sampling=Grid(SIDE, SIDE, dihedral=False), rank=rank, world_size=ranks)


def memoir(folders: list[Path], batch: int) -> Way:
    """Of one folder its loader; of two a mixture, 3 : 1."""

    def loader(rank: int, ranks: int) -> Loader | Mixture:
        of = [opened(folder, batch, rank, ranks) for folder in folders]
        return of[0] if len(of) == 1 else Mixture([Source("a", of[0], 3), Source("b", of[1], 1)])

    def begin(rank: int, ranks: int, state: Position | None) -> Iterator[tuple[list[int], Any]]:
        one = loader(rank, ranks)
        batches: Any = one.batches(state or Position())
        with closing(batches):
            for position, cut in batches:
                parts = [(0, cut)] if isinstance(one, Loader) else [(p.source, b) for p, b in cut.pieces]
                found: dict[int, int] = {}
                for number, (source, part) in enumerate(parts):
                    slots = range(len(part["sample"])) if isinstance(one, Loader) else cut.pieces[number][0].slots
                    first = 0 if isinstance(one, Loader) else int(one.first[source])
                    for slot, sample, weight in zip(slots, part["sample"], part["weight"], strict=True):
                        if weight > 0:
                            found[int(slot)] = first + int(sample)
                following = Position(position.epoch, position.batch + 1)
                if following.batch == len(one):
                    following = Position(position.epoch + 1)
                yield [found[slot] for slot in sorted(found)], following
                cut.hand_back()

    return Way("memoir", begin, loader(0, 1).samples)


def grain_way(images: list[np.ndarray], batch: int) -> Way:
    """Of one array Grain's shuffled source; of two its mix, 3 : 1. Raises ImportError where Grain is not installed."""
    import grain
    from grain.experimental import ElasticIterator

    class Images:
        def __init__(self, first: int, pixels: np.ndarray) -> None:
            self.first, self.pixels = first, pixels

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"sample": self.first + int(i), "pixels": self.pixels[int(i)]}

    firsts = np.cumsum([0, *map(len, images)]).tolist()

    def begin(rank: int, ranks: int, state: Any) -> Iterator[tuple[list[int], Any]]:
        sources = [
            grain.MapDataset.source(Images(first, each)).seed(i).shuffle().repeat()
            for i, (first, each) in enumerate(zip(firsts, images, strict=False))
        ]
        mixed = sources[0] if len(sources) == 1 else grain.MapDataset.mix(sources, weights=[0.75, 0.25])
        shard = grain.sharding.ShardOptions(shard_index=rank, shard_count=ranks)
        threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch)
        steps = iter(ElasticIterator(mixed, batch, shard, read_options=threads))
        if state is not None:
            steps.set_state(state)
        for step in steps:
            yield step["sample"].tolist(), steps.get_state()

    return Way("grain", begin, sum(map(len, images)))


def walked(way: Way, steps: int, changes: list[tuple[int, int | None]]) -> list[Step]:
    """The global batches of a run, each as it came last."""
    found: dict[int, Step] = {}
    done, state = 0, None
    for number, (ranks, wanted) in enumerate(changes):
        until = steps if wanted is None else min(steps, done + wanted)
        running = [way.begin(rank, ranks, state) for rank in range(ranks)]
        states = [state]
        for step in range(done, until):
            parts = [next(rank) for rank in running]
            found[step] = [sample for part, _ in parts for sample in part]
            states.append(parts[0][1])
        for rank in running:
            rank.close()  # type: ignore[attr-defined]
        lost = LOST if number == 0 and wanted is not None else 0
        done, state = until - lost, states[len(states) - 1 - lost]
    return [found[step] for step in range(steps)]


def compared(way: Way, batch: int, *, mixture: bool = False) -> list[str]:
    """The row of the table."""
    steps = EPOCHS * -(-way.epoch // batch)
    whole, changed = walked(way, steps, [(1, None)]), walked(way, steps, CHANGES)
    sets = sum(sorted(a) == sorted(b) for a, b in zip(whole, changed, strict=True))
    order = sum(a == b for a, b in zip(whole, changed, strict=True))
    times = Counter(sample for step in changed for sample in step)
    exact = sum(times[sample] == EPOCHS for sample in range(way.epoch))
    return [way.name, f"{sets} of {steps}", f"{order} of {steps}", "" if mixture else f"{exact:,} of {way.epoch:,}"]


def rate(way: Way, seconds: float, batch: int) -> float:
    """Samples a second of one rank."""
    with closing(way.begin(0, 1, None)) as steps:  # type: ignore[type-var]
        next(steps)
        began, number = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            number += sum(len(samples) for samples, _ in islice(steps, 10))
        return number / (time.perf_counter() - began)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="folder where Grain is installed")
    parser.add_argument("--images", type=int, default=1003)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=2, help="for each way and round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.peers:
        sys.path.append(str(arguments.peers.resolve()))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8) for n in (arguments.images, arguments.images // 3)]
    with tempfile.TemporaryDirectory(prefix="memoir-benchmark-") as temporary:
        folders = [build(Path(temporary, name), name, each) for name, each in zip("ab", images, strict=True)]
        report([*zip(folders, images, strict=True)], arguments)


def report(corpora: list[tuple[Path, np.ndarray]], arguments: argparse.Namespace) -> None:
    """Measure and print."""
    batch = arguments.batch

    def ways(number: int) -> list[Way]:
        found = [memoir([folder for folder, _ in corpora[:number]], batch)]
        try:
            return [*found, grain_way([pixels for _, pixels in corpora[:number]], batch)]
        except ImportError as error:
            print(f"grain is left out: {error}")
            return found

    print("| one source | same sets | same order | samples that came twice in two epochs |\n|---|---|---|---|")
    for way in ways(1):
        print(f"| {' | '.join(compared(way, batch))} |")
    print("\n| two sources, 3 : 1 | same sets | same order | |\n|---|---|---|---|")
    for way in ways(2):
        print(f"| {' | '.join(compared(way, batch, mixture=True))} |")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [[rate(way, arguments.seconds, batch) for way in ways(1)] for _ in range(arguments.rounds)]
    for number, way in enumerate(ways(1)):
        values = [row[number] for row in rows]
        ratio = statistics.median(row[0] / row[number] for row in rows)
        print(
            f"{way.name}: {statistics.median(values):,.0f} samples/s of {SIDE}x{SIDE}; memoir is {ratio:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
