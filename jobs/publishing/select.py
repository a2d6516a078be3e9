"""Which of a store's models are shown, and in which order."""

import math
from typing import Any, Literal

from pipeline.errors import UserError, nearest


def select(
    held: list[dict[str, Any]],
    *,
    task: str | None = None,
    benchmark: str | None = None,
    min_psnr: float | None = None,
    sort: Literal["name", "psnr", "when"] = "name",
) -> list[dict[str, Any]]:
    """Those of `models` that are asked for, each with the scores that are asked for.

    benchmark: its name, or <data set>/<name>. min_psnr: in dB, of at least one of those scores. sort: by recipe and version;
    by the best PSNR of those scores, the highest first; or the last trained first. Raises UserError for a task or a
    benchmark that no model has.
    """
    tasks = sorted({str(each["task"]) for each in held if each["task"]})
    if task is not None and task not in tasks:
        raise UserError(f"--task {task}: no model of it in the store; {nearest(task, tasks)}")
    keys = sorted({key for each in held for key in each["scores"]})
    if benchmark is not None and not any(_is(key, benchmark) for key in keys):
        raise UserError(f"--benchmark {benchmark}: no model has a score of it; {nearest(benchmark, keys)}")
    found = []
    for each in held:
        scores = {key: row for key, row in each["scores"].items() if benchmark is None or _is(key, benchmark)}
        if task not in (None, each["task"]) or (benchmark is not None and not scores):
            continue
        if min_psnr is not None and _psnr(scores) < min_psnr:
            continue
        found.append(each | {"scores": scores})
    if sort == "psnr":
        found.sort(key=lambda each: -_psnr(each["scores"]))
    elif sort == "when":
        found.sort(key=lambda each: each["lineage"]["when"] or "", reverse=True)
    return found


def _is(key: str, benchmark: str) -> bool:
    return benchmark in (key, key.rpartition("/")[2])


def _psnr(scores: dict[str, dict[str, float | None]]) -> float:
    """The highest PSNR; that of identical images is infinite, and without one it is less than any."""
    values = [row["psnr"] for row in scores.values() if "psnr" in row]
    return max((math.inf if value is None else value for value in values), default=-math.inf)
