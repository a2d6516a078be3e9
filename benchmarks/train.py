"""What Ray Train and DDP cost: images/s of a recipe in a plain loop, and with one and two workers; and how long a start takes.

    python benchmarks/train.py RECIPE [--data data] [--steps 300] [--rounds 3]

plain: jobs.training.loop in one process, without Ray and without checkpoints. Each worker has one core, as has the plain loop; and one
worker has two, beside which two workers of a core each are to be seen.
images/s over all steps but those up to the first record, the median of the rounds, which take turns. network: the share of
the steps' time that a worker waits for the others: their gradients, BatchNorm's statistics, the memory's update. Targets:
one worker within 3 % of the plain loop.
start: seconds from the command to the end of the first step, beside those that the plain loop takes for imports and data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

PLAIN = """
import json, sys, time
from pathlib import Path
import torch
from jobs.training.loop import Run
from jobs.recipe import read_recipe
torch.set_num_threads(1)
recipe = read_recipe(sys.argv[1], sys.argv[2:])
run = Run(recipe, Path("{data}", recipe.data.task), torch.device("cpu"))
run.train(lambda run: None, lambda record: print(json.dumps(record), flush=True))
"""


class Trained(NamedTuple):
    """images_per_s: after the first record. network: share of the time. start: seconds from the command to the first step's end."""

    images_per_s: float
    network: float
    start: float


def measured(records: list[dict[str, float]], began: float, first: float) -> Trained:
    """began, first: when the command started and its first record was seen, by one clock."""
    steady = [record for record in records if "loss" in record]
    head, tail = steady[0], steady[1:]
    seconds = sum(record["seconds"] for record in tail)
    images = sum(record["images_per_s"] * record["seconds"] for record in tail)
    network = sum(record["network_s"] for record in tail)
    # of the first record, the steps after its first
    later = (head["step"] - 1) * seconds / (tail[-1]["step"] - head["step"])
    return Trained(images / seconds, network / seconds, first - began - later)


def plain(recipe: str, data: str, overrides: list[str]) -> Trained:
    """The loop in one process."""
    began = time.perf_counter()
    command = [sys.executable, "-c", PLAIN.replace("{data}", data), recipe, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    records, first = [], 0.0
    for line in process.stdout:
        first = first or time.perf_counter()
        records.append(json.loads(line))
    if process.wait():
        raise SystemExit("the plain loop failed")
    return measured(records, began, first)


def with_ray(recipe: str, data: str, overrides: list[str], workers: int, cpus: int) -> Trained:
    """`memoir train` with so many workers, of so many cores each."""
    with tempfile.TemporaryDirectory(prefix="memoir-train-") as place:
        began = time.perf_counter()
        shape = [f"training.workers={workers}", f"training.cpus_per_worker={cpus}"]
        sets = [part for override in [*overrides, *shape] for part in ("--set", override)]
        command = [sys.executable, "-m", "memoir", "train", recipe, "--data", data, "--store", place, *sets]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen([*command, "--runs", f"{place}/runs"], stdout=subprocess.DEVNULL, env=environment)
        first = 0.0
        while process.poll() is None:
            time.sleep(0.01)
            if not first and any(path.stat().st_size for path in Path(place).glob("runs/*/metrics.jsonl")):
                first = time.perf_counter()
        if process.returncode:
            raise SystemExit(f"memoir train failed with {workers} workers")
        (path,) = (path for path in Path(place).glob("runs/*/metrics.jsonl"))
        return measured([json.loads(line) for line in path.read_text().splitlines()], began, first)


def main() -> None:
    """Print a row for each way to train: the plain loop, and workers x cores of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", default="data", help="where the built datasets are")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    steps = arguments.steps
    every = [f"training.{name}={steps}" for name in ("validate_every", "checkpoint_every")]
    overrides = [
        "training.portable=false",
        *arguments.set,
        f"optimisation.length={{steps: {steps}}}",
        *every,
        f"training.log_every={steps // 10}",
    ]
    data = str(Path(arguments.data).resolve())
    ways: dict[str, Callable[[], Trained]] = {"plain loop": partial(plain, arguments.recipe, data, overrides)}
    for workers, cpus in ((1, 1), (1, 2), (2, 1)):
        ways[f"{workers} x {cpus}"] = partial(with_ray, arguments.recipe, data, overrides, workers, cpus)
    rows: dict[str, list[Trained]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            rows[name].append(way())
    base = statistics.median(result.images_per_s for result in rows["plain loop"])
    print(f"{'':<12} {'images/s':>9} {'of plain':>9} {'network':>8} {'start s':>8}")
    for name, results in rows.items():
        speed, network, start = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"{name:<12} {speed:>9.1f} {speed / base:>9.3f} {network:>8.1%} {start:>8.1f}")


if __name__ == "__main__":
    main()
