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
from jobs.training.run import Planned, plan_run
from pipeline.cluster import jobs_address
from pipeline.config import parse_yaml
from pipeline.errors import UserError

MOST = 1000  # runs of a sweep


class Point(NamedTuple):
    """Values of the grid by their keys, and the runs that have them: one for each seed."""

    values: dict[str, Any]
    runs: list[Planned]


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
        points.append(Point(values, [plan_run(recipe, data=data, store=store, overrides=each) for each in seeded]))
    names = [planned.variant for point in points for planned in point.runs]
    if len(set(names)) < len(names):
        raise UserError("--grid: two of the combinations are the same run; leave out values that are equal")
    return points


def sweep(
    recipe: str, points: list[Point], *, data: str, store: str, runs: Path, run: Runner | None = None
) -> list[dict[str, Any]]:
    """Train and evaluate all runs, those first that are planned first; what is finished already is not done again.

    With the address of a cluster all are sent to it at once, and it runs as many as it has room for. run: takes the arguments
    of a memoir command and returns what it prints; by default they run as processes of their own, whose failure ends the sweep.
    Returns a row for each point, the best first: {"values", "names": of the runs, "scores": {data set/benchmark: {metric:
    {"mean", "margin": half of its 95 % interval over the seeds, "each"}}}}.
    """
    run = run or _run
    planned = [each for point in points for each in point.runs]
    places = ["--data", data, "--store", store]
    if jobs_address():
        from jobs.training.submit import client, submit

        cluster = client()
        for each in planned:
            submit(each, cluster)
    found = {}
    for i, each in enumerate(planned):
        sys.stderr.write(f"sweep: {i + 1} of {len(planned)}: {each.variant}\n")
        changes = [word for override in each.overrides for word in ("--set", override)]
        run(["train", recipe, *changes, *places, "--runs", str(runs)])
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
    return sorted(rows, key=_goodness, reverse=True)


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
                    one = row["scores"][benchmark][name]
                    line.append(metric.shown(one["mean"], one["margin"]))
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
