"""One recipe with several values and seeds: each trained and evaluated, and a table of what came of them."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jobs.evaluation.interval import margin
from jobs.evaluation.metrics import METRICS, Metric
from jobs.recipe import Recipe
from jobs.training.run import Planned, plan_run
from jobs.training.train import records_of
from jobs.variant import words
from pipeline.cluster import jobs_address
from pipeline.config import parse_yaml
from pipeline.console import tell
from pipeline.errors import UserError

MOST = 1000  # runs of a sweep


class Point(NamedTuple):
    """Values of the grid by their keys, and the runs that have them: one for each seed, and the overrides that it was given."""

    values: dict[str, Any]
    runs: list[Planned]
    overrides: list[list[str]]


Runner = Callable[[list[str]], str]


def read_grid(given: list[str]) -> dict[str, list[Any]]:
    """The values of each `section.key=v1,v2,...`. Raises UserError for another form, and for a key that comes twice."""
    grid: dict[str, list[Any]] = {}
    for each in given:
        key, equals, text = each.partition("=")
        values = parse_yaml(f"[{text}]".encode(), f"--grid {key}")
        if not (key and equals and values):
            raise UserError(f"--grid {each}: expected section.key=value,value,...")
        if key in grid:
            raise UserError(f"--grid {key}: comes twice; give its values in one list")
        grid[key] = [_number(value) for value in values]
    return grid


def _number(value: Any) -> Any:
    """1e-3, which is a text to YAML, as the number that it is to everybody else."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def plan(
    recipe: str, grid: dict[str, list[Any]], seeds: int | None, overrides: list[str], *, data: str, store: str
) -> list[Point]:
    """What a sweep would train, before anything starts: each combination of the grid's values, with the seeds 0, 1, ...

    seeds: None for the recipe's own. Raises UserError for a mistake in the recipe or in any of the values.
    """
    number = math.prod(map(len, grid.values())) * (seeds or 1)
    if number > MOST:
        raise UserError(f"{number:,} runs are more than {MOST:,}: give fewer values or seeds")
    points = []
    for chosen in itertools.product(*grid.values()):
        values = dict(zip(grid, chosen, strict=True))
        given = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        seeded = [[*given, f"training.seed={seed}"] for seed in range(seeds)] if seeds else [given]
        runs = [plan_run(recipe, data=data, store=store, overrides=each) for each in seeded]
        points.append(Point(values, runs, seeded))
    names = [planned.variant for point in points for planned in point.runs]
    if len(set(names)) < len(names):
        raise UserError("--grid: two of the combinations are the same run; leave out values that are equal")
    return points


def sweep(
    recipe: str,
    points: list[Point],
    *,
    data: str,
    store: str,
    runs: Path,
    run: Runner | None = None,
    halving: int | None = None,
) -> list[dict[str, Any]]:
    """Train and evaluate all runs, those first that are planned first; what is finished already is not done again.

    halving: all points train a part of their length, the best one of so many goes on for as many times as long, until few are left
    that train to their end (Jamieson and Talwalkar 2016). Points are compared by what the recipe is validated by, the mean over
    their seeds. Raises UserError for a recipe that is not validated where it would pause.

    With the address of a cluster all are sent to it at once, and it runs as many as it has room for. run: takes the arguments
    of a memoir command and returns what it prints; by default they run as processes of their own, whose failure ends the sweep.
    Returns a row for each point, the best first: {"values", "names": of the runs, "scores": {data set/benchmark: {metric:
    {"mean", "margin": half of its 95 % interval over the seeds, "each"}}}}; after them those that went no further, without scores,
    and with {"stopped": at this step, "validated": the mean}.
    """
    run = run or _run
    stopped: list[dict[str, Any]] = []
    if halving is not None:
        points, stopped = _halved(recipe, points, halving, data=data, store=store, runs=runs, run=run)
    planned = [each for point in points for each in point.runs]
    given = [each for point in points for each in point.overrides]
    places = ["--data", data, "--store", store]
    if jobs_address():
        from jobs.training.submit import client, submit

        cluster = client()
        for each in planned:
            submit(each, cluster)
    found = {}
    for i, each in enumerate(planned):
        tell(f"sweep: {i + 1} of {len(planned)}: {each.variant}")
        run(["train", recipe, *words(given[i]), *places, "--runs", str(runs)])
        printed = run(
            ["evaluate", "--model", _reference(recipe, each), "--store", store, "--runs", str(runs), "--json"]
        )
        found[each.variant] = json.loads(printed)
    rows = [
        {
            "values": point.values,
            "names": [each.variant for each in point.runs],
            "scores": _means([found[each.variant] for each in point.runs]),
        }
        for point in points
    ]
    return sorted(rows, key=_goodness, reverse=True) + stopped


def rungs(recipe: Recipe, points: int, factor: int) -> list[int]:
    """The steps at which so many points pause, one of `factor` of which goes on each time.

    Each is a step at which the recipe has a checkpoint and a validation. Raises UserError for a recipe that has no such steps.
    """
    total = recipe.optimisation.length.steps
    if total is None:
        raise UserError("--halving: give optimisation.length in steps")
    every = math.lcm(recipe.training.checkpoint_every, recipe.training.validate_every)
    times = 0
    while factor ** (times + 1) <= points:
        times += 1
    found = sorted({max(every, total // factor**k // every * every) for k in range(1, times + 1)})
    if not found or found[-1] >= total or len(found) < times:
        raise UserError(
            f"--halving {factor}: {points} combinations are compared at steps {[total // factor**k for k in range(times, 0, -1)]}, "
            f"and there are a checkpoint and a validation at each {every:,} of {total:,}; give more combinations, or other "
            "training.checkpoint_every and training.validate_every"
        )
    return found


def _halved(
    recipe: str, points: list[Point], factor: int, *, data: str, store: str, runs: Path, run: Runner
) -> tuple[list[Point], list[dict[str, Any]]]:
    """The points that train to their end, and the rows of the others, those that went further first."""
    if jobs_address():
        raise UserError(
            "--halving: runs pause here, or on a node of the cluster with RAY_ADDRESS=host:port, and not as its jobs"
        )
    places = ["--data", data, "--store", store, "--runs", str(runs)]
    stopped: list[dict[str, Any]] = []
    steps = rungs(points[0].runs[0].recipe, len(points), factor)
    for step in steps:
        found: list[tuple[float, Point]] = []
        for i, point in enumerate(points):
            values = []
            for each, given in zip(point.runs, point.overrides, strict=True):
                tell(f"sweep: to step {step:,}: {i + 1} of {len(points)}: {each.variant}")
                run(["train", recipe, *words([*given, f"training.until={step}"]), *places])
                values.append(_validated(each, step))
            found.append((math.fsum(values) / len(values), point))
        found.sort(key=lambda pair: pair[0], reverse=_higher_is_better(points[0].runs[0].recipe))
        kept = max(1, len(found) // factor)
        stopped = [_stopped(point, step, value) for value, point in found[kept:]] + stopped
        points = [point for _, point in found[:kept]]
    return points, stopped


def _stopped(point: Point, step: int, value: float) -> dict[str, Any]:
    return {
        "values": point.values,
        "names": [each.variant for each in point.runs],
        "scores": {},
        "stopped": step,
        "validated": value,
    }


def _metric(recipe: Recipe) -> str:
    return "psnr" if recipe.validation is None else recipe.validation.metric


def _higher_is_better(recipe: Recipe) -> bool:
    return METRICS[_metric(recipe)].better == "higher"


def _validated(planned: Planned, step: int) -> float:
    """The run's last validation up to this step: it may have ended before, or be further."""
    key = f"val_{_metric(planned.recipe)}"
    values = [record[key] for record in records_of(planned) if record["step"] <= step and key in record]
    if not values:
        raise UserError(f"{planned.run}: has no validation up to step {step:,}; see training.validate_every")
    return float(values[-1])


def _reference(recipe: str, planned: Planned) -> str:
    """What `memoir evaluate --model` takes: a recipe's file has its variants beside it."""
    folder, slash, last = recipe.rpartition("/")
    return f"{folder}{slash}{last}{planned.variant.removeprefix(planned.name)}"


def _run(arguments: list[str]) -> str:
    """Run a memoir command with this Python; its messages are shown. Raises UserError if it fails."""
    done = subprocess.run([sys.executable, "-m", "memoir", *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"memoir {' '.join(arguments[:2])} ended with {done.returncode}; mend it, and the same command continues"
        )
    return done.stdout


def _means(scores: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    means: dict[str, dict[str, Any]] = {}
    for benchmark, row in scores[0].items():
        means[benchmark] = {}
        for name in METRICS.keys() & row.keys():
            each = [math.inf if one[benchmark][name] is None else one[benchmark][name] for one in scores]
            mean = math.fsum(each) / len(each) if all(map(math.isfinite, each)) else None
            means[benchmark][name] = {
                "mean": mean,
                "margin": margin(each),
                "each": [v if math.isfinite(v) else None for v in each],
            }
    return means


def _first(row: dict[str, Any]) -> tuple[Metric, float]:
    """The metric by which rows are ordered: the first of the first benchmark."""
    figures = next(iter(row["scores"].values()))
    metric = next(metric for name, metric in METRICS.items() if name in figures)
    mean = figures[metric.name]["mean"]
    return metric, math.inf if mean is None else mean


def _goodness(row: dict[str, Any]) -> float:
    metric, mean = _first(row)
    return mean if metric.better == "higher" else -mean


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The rows as lines of text: the grid's values, and a column for each metric of each benchmark."""
    heads = [*rows[0]["values"]]
    cells = [[json.dumps(value) for value in row["values"].values()] for row in rows]
    for benchmark, figures in rows[0]["scores"].items():
        for name, metric in METRICS.items():
            if name in figures:
                heads.append(f"{benchmark} {metric.heading}")
                for line, row in zip(cells, rows, strict=True):
                    if "stopped" in row:
                        line.append("")
                        continue
                    one = row["scores"][benchmark][name]
                    line.append(metric.shown(one["mean"], one["margin"]))
    if "stopped" in rows[-1]:
        heads.append("stopped at step")
        for line, row in zip(cells, rows, strict=True):
            line.append(f"{row['stopped']:,}, at {row['validated']:.4g}" if "stopped" in row else "")
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
