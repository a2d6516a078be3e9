"""What a recipe's options give in the same time: each trained with several seeds, and the gain over the recipe as it is.

    python benchmarks/study.py --data data --out DIR [--minutes 8] [--seeds 3] [--recipe memnet-jpeg-cpu]
        [--test jpeg-q10=datasets/Classic5 ...] [--measure-only]

The minutes are of one core. First each variant's step is timed, with nothing else running, and so are the first steps, in which a
compiler may be at work; from that comes the number of steps that the minutes hold, and the schedule of each run ends with them. The
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python benchmarks/study.py` has benchmarks/ alone

from benchmarks.train_here import Speed, speed
from jobs.evaluation.interval import margin
from jobs.evaluation.validating import Validator, means
from jobs.recipe import Validation, read_recipe
from jobs.training.here import run_here

ONE_CORE = ["training.workers=1", "training.cpus_per_worker=1", "training.portable=false"]
ROUNDS, SECONDS = 3, 8  # of the timing
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
    """Seconds of a step of each variant and of its first ones, by name; measured once."""
    file = options.out / "speed.json"
    if file.exists():
        return json.loads(file.read_text())  # type: ignore[no-any-return]
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(ROUNDS):  # in turns, for the speed of a machine changes by the minute
        for name, parts in VARIANTS.items():
            found = [(share, _speed(options, overrides)) for share, overrides in parts]
            each = {"each": sum(share * each for share, (each, _) in found), "first": sum(s for _, (_, s) in found)}
            rounds[name].append(each)
            print(f"{name}: {1e3 * each['each']:.0f} ms a step, {each['first']:.1f} s at first", file=sys.stderr)
    times = {name: {key: median(each[key] for each in of) for key in of[0]} for name, of in rounds.items()}
    file.write_text(json.dumps(times, indent=1))
    return times


def _speed(options: argparse.Namespace, overrides: list[str]) -> Speed:
    """In a process of its own, which has compiled nothing yet."""
    call = ["--speed", json.dumps(overrides)]
    return Speed(*json.loads(_again(options, call, 0)))


def steps_of(options: argparse.Namespace, time: dict[str, float]) -> int:
    """How many steps the minutes hold."""
    return int((60 * options.minutes - time["first"]) / time["each"])


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
    parser.add_argument("--speed", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.speed is not None:
        print(json.dumps(speed(options.recipe, options.data, SECONDS, [*ONE_CORE, *options.speed])))
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
