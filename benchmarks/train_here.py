"""A recipe's training in as many seconds as there are, in this process: without Ray, a store and DVC.

    python benchmarks/train_here.py RECIPE --data data --out DIR --seconds 300 [--set KEY=VALUE ...]

A tenth of the seconds goes into finding out how long a step takes; then the recipe is trained anew, with the length that fits, so that
its learning rate falls as the recipe says. Prints the records as tab-separated values; DIR has weights.safetensors and recipe.json.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from safetensors.torch import save_file

from jobs.recipe import read_recipe
from jobs.training.here import run_here
from jobs.training.loop import weights

SPARE = 0.92  # of the seconds: what is left is for validation and for writing
COLUMNS = ("step", "loss", "psnr", "val_psnr", "images_per_s", "lr")


class Speed(NamedTuple):
    """Seconds of a step, and those that the first ones take beyond it."""

    each: float
    first: float


def speed(recipe: str, data: str, seconds: float, overrides: list[str]) -> Speed:
    """Measured in as many seconds, after the first steps."""
    run = run_here(read_recipe(recipe, overrides), data)
    run.validation, run.validator = [], None
    ends, step = [], run.step
    began = time.perf_counter()

    def timed(batch: Any) -> Any:
        done = step(batch)
        float(done[0])  # waits for the device
        ends.append(time.perf_counter())
        if len(ends) > 5 and ends[-1] > ends[2] + seconds:
            run.total = run.state.step + 1
        return done

    run.step = timed  # type: ignore[method-assign]
    run.train(lambda run: None, lambda record: None)
    each = median(after - before for before, after in pairwise(ends[2:]))
    return Speed(each, max(0.0, ends[2] - began - 3 * each))


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", default="data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    one = [*options.set, "training.workers=1", "training.portable=false"]
    began = time.perf_counter()
    each = speed(options.recipe, options.data, options.seconds / 10, one).each
    steps = max(1, int(SPARE * (options.seconds - time.perf_counter() + began) / each))
    recipe = read_recipe(options.recipe, [*one, f"optimisation.length={{steps: {steps}}}"])
    run = run_here(recipe, options.data)
    print("\t".join(("seconds", *COLUMNS)))

    def told(record: dict[str, float]) -> None:
        values = [record.get(name, "") for name in COLUMNS]
        print("\t".join(map(str, (round(time.perf_counter() - began, 1), *values))), flush=True)

    run.train(lambda run: None, told)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(weights(run.model), options.out / "weights.safetensors")
    (options.out / "recipe.json").write_text(recipe.model_dump_json(indent=1))


if __name__ == "__main__":
    main()
