"""What a recipe's options give in the same time: each trained with several seeds, and the gain over the recipe as it is.

    python benchmarks/study.py --data data --out DIR [--minutes 8] [--seeds 3] [--recipe memnet-jpeg-cpu]
        [--test jpeg-q10=datasets/Classic5 ...] [--measure-only]

The minutes are of one core. First the steps of all variants are timed in turns, with nothing else running, and so is each first one, in
which a compiler may be at work; from that comes the number of steps that the minutes hold, and the schedule of each run ends with them. The
trainings come then, one on each core, and what else runs beside them changes no result. OUT keeps the times and each score, and a
study that was stopped goes on where it was.

The gain is the mean over the seeds of a variant's score minus the recipe's with the same seed, with its 95 % interval.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python benchmarks/study.py` has benchmarks/ alone

from jobs.evaluation.interval import margin
from jobs.evaluation.validating import Validator, means
from jobs.recipe import Validation, read_recipe
from jobs.training.here import run_here

ONE_CORE = ["training.workers=1", "training.cpus_per_worker=1", "training.portable=false"]
ROUNDS = 20  # of the timing
Part = tuple[float, list[str]]  # a share of the steps, and what the recipe has there
PROGRESSIVE: list[Part] = [
    (0.5, ["data.patch=32", "data.batch=18"]),
    (0.3, ["data.patch=48", "data.batch=8"]),
    (0.2, ["data.patch=64", "data.batch=4"]),
]
VARIANTS: dict[str, list[Part]] = {
    "as it is": [(1, [])],
    "ema": [(1, ["optimisation.ema={decay: 0.999}"])],
    "adamw": [(1, ["optimisation.optimiser=adamw"])],
    "progressive": PROGRESSIVE,
    "compiled": [(1, ["optimisation.compile=true"])],
}


def timed(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of a step of each variant and of its first ones, by name; measured once, on one core."""
    file = options.out / "speed.json"
    if not file.exists():
        file.write_text(_again(options, ["--speed"], 0))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def speeds(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """What `timed` returns, measured in this process: the steps of all variants in turns, each with one batch of its own.

    The speed of a machine changes by the minute, and so a step's time is that of the recipe as it is, times the median of their
    ratio in each round.
    """
    parts = {str(changed): changed for variant in VARIANTS.values() for _, changed in variant}
    steps, first, rounds = {}, {}, []
    for name, changed in parts.items():
        run = run_here(read_recipe(options.recipe, [*ONE_CORE, *changed]), options.data)
        cut: Any = run.loader.cut(run.state.position)
        steps[name] = partial(run.step, run.loader.to_device(cut, run.device))
        first[name] = _seconds(steps[name])
        print(f"{name}: {first[name]:.1f} s for the first step", file=sys.stderr, flush=True)
    for _ in range(ROUNDS):
        rounds.append({name: min(_seconds(step) for _ in range(2)) for name, step in steps.items()})
    plain = str(VARIANTS["as it is"][0][1])
    each = median(times[plain] for times in rounds)
    ratio = {name: median(times[name] / times[plain] for times in rounds) for name in parts}
    print({name: round(found, 3) for name, found in ratio.items()}, file=sys.stderr)
    return {
        name: {
            "each": each * sum(share * ratio[str(changed)] for share, changed in variant),
            "first": sum(first[str(changed)] - each * ratio[str(changed)] for _, changed in variant),
        }
        for name, variant in VARIANTS.items()
    }


def _seconds(step: Callable[[], tuple[Tensor, ...]]) -> float:
    began = time.perf_counter()
    float(step()[0])
    return time.perf_counter() - began


def steps_of(options: argparse.Namespace, took: dict[str, float]) -> int:
    """How many steps the minutes hold."""
    return int((60 * options.minutes - took["first"]) / took["each"])


def overrides_of(name: str, steps: int, seed: int) -> list[str]:
    """What a variant changes of the recipe."""
    parts = VARIANTS[name]
    found = [*parts[0][1], f"optimisation.length={{steps: {steps}}}", f"training.seed={seed}"]
    stages, after = [], 0.0
    for (share, _), (_, then) in itertools.pairwise(parts):
        after += share
        values = ", ".join(each.removeprefix("data.").replace("=", ": ") for each in then)
        stages.append(f"{{after: {round(after * steps)}, {values}}}")
    return [*found, *([f"data.stages=[{', '.join(stages)}]"] if stages else [])]


def train(options: argparse.Namespace, name: str, steps: int, seed: int) -> dict[str, Any]:
    """Train and score, in this process."""
    given = overrides_of(name, steps, seed)
    recipe = read_recipe(options.recipe, [*ONE_CORE, *given, f"training.validate_every={steps + 1}"])
    run = run_here(recipe, options.data)
    run.validation, run.validator = [], None
    run.train(
        lambda run: None, lambda record: print(record.get("step"), record.get("psnr"), file=sys.stderr, flush=True)
    )
    scores = {}
    with run._evaluated():
        run.model.eval()
        for test in options.test:
            benchmark, _, data = test.partition("=")
            validator = Validator(Validation(benchmark=benchmark, data=data))
            found, _ = validator.scores(run.model, run.bits, 0, 1, lambda: None)
            scores[test] = means(found)["psnr"]
    return {"name": name, "seed": seed, "steps": steps, "precision": run.precision, "scores": scores}


def _again(options: argparse.Namespace, call: list[str], core: int) -> str:
    """What this script prints with these arguments, on one core."""
    same = ["--recipe", options.recipe, "--data", options.data, "--out", str(options.out), "--test", *options.test]
    command = ["taskset", "--cpu-list", str(core), sys.executable, __file__, *same, *call]
    log = options.out / f"{'-'.join(call).replace('/', ' ')[:80]}.log"
    with log.open("w") as err:
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=err, text=True).stdout


def trained(options: argparse.Namespace, times: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """All runs, those first that are done."""
    file = options.out / "results.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    there = {(row["name"], row["seed"]) for row in done}
    wanted = [(name, seed) for seed in range(options.seeds) for name in VARIANTS if (name, seed) not in there]
    cores: SimpleQueue[int] = SimpleQueue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def run(asked: tuple[str, int]) -> None:
        name, seed = asked
        core = cores.get()
        try:
            row = _again(options, ["--train", name, str(steps_of(options, times[name])), str(seed)], core)
        finally:
            cores.put(core)
        with file.open("a") as results:
            results.write(row)

    with ThreadPoolExecutor(cores.qsize()) as pool:
        list(pool.map(run, wanted))
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(options: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """Scores and gains, in Markdown."""
    score = {(row["name"], row["seed"], test): row["scores"][test] for row in rows for test in options.test}
    lines = [f"|  | steps | {' | '.join(f'{test}, dB | gain' for test in options.test)} |"]
    lines.append("|---" * (2 + 2 * len(options.test)) + "|")
    for name in VARIANTS:
        cells = [name, f"{next(row['steps'] for row in rows if row['name'] == name):,}"]
        for test in options.test:
            own = [score[name, seed, test] for seed in range(options.seeds)]
            gains = [mine - score["as it is", seed, test] for seed, mine in enumerate(own)]
            cells.append(f"{sum(own) / len(own):.3f}")
            wide = margin(gains)
            cells.append("" if name == "as it is" or wide is None else f"{sum(gains) / len(gains):+.3f} ± {wide:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Time, train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="memnet-jpeg-cpu")
    parser.add_argument("--data", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--test", nargs="+", metavar="BENCHMARK=DATA", default=[f"jpeg-q{q}=datasets/Classic5" for q in (10, 20)]
    )
    parser.add_argument("--measure-only", action="store_true", help="time the steps, and end")
    parser.add_argument("--speed", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.speed:
        print(json.dumps(speeds(options), indent=1))
        return
    if options.train:
        name, steps, seed = options.train
        print(json.dumps(train(options, name, int(steps), int(seed))))
        return
    times = timed(options)
    if not options.measure_only:
        print(table(options, trained(options, times)))


if __name__ == "__main__":
    main()
