"""The learning-rate range test (Smith 2017, section 3.3): the loss while the rate rises, from a run's first steps."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from jobs.recipe import read_recipe
from jobs.training.here import run_here
from pipeline.errors import UserError

SMOOTHED = 0.9  # share of what was before in the smoothed loss
DIVERGED = 4  # times its lowest: the smoothed loss at which the test ends


class Point(NamedTuple):
    """A step: its learning rate, its loss, and the losses so far, smoothed without a bias to the first."""

    lr: float
    loss: float
    smoothed: float


class Range(NamedTuple):
    """points: in ascending order of their rates. steepest: the rate at which the smoothed loss falls fastest. diverges: the one at
    which it is far above its lowest; None: it never was.
    """

    points: list[Point]
    steepest: float
    diverges: float | None


def lr_range(
    recipe_name: str, *, data: str, lowest: float, highest: float, steps: int, overrides: Sequence[str] = ()
) -> Range:
    """Train so many steps in this process, with the recipe's batches, at rates that rise exponentially; nothing is kept.

    All else is the recipe's: optimiser, momentum, clipping. Raises UserError as `memoir train` does.
    """
    if not 0 < lowest < highest:
        raise UserError(f"lr-range: from {lowest:g} to {highest:g}; give two rates, the lower one first")
    how = [
        "training.workers=1",
        "optimisation.schedule=constant",
        "optimisation.lr_step=null",
        "optimisation.period=null",
    ]
    recipe = read_recipe(recipe_name, [*overrides, *how, "optimisation.lr_end=0", "optimisation.warmup=null"])
    run = run_here(recipe, data)
    rates = [lowest * (highest / lowest) ** (i / max(steps - 1, 1)) for i in range(steps)]
    run.lr = lambda: rates[run.state.step]  # type: ignore[method-assign]
    losses: list[float] = []
    step = run.step

    def measured(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        found = step(batch)
        losses.append(float(found[0]))
        if _diverged(losses):
            run.total = run.state.step + 1
        return found

    run.step, run.total, run.validation, run.validator = measured, steps, [], None  # type: ignore[method-assign]
    try:
        run.train(lambda run: None, lambda record: None)
    except UserError:  # not finite: it has diverged
        if not losses:
            raise
    return judged(rates, losses)


def judged(rates: Sequence[float], losses: Sequence[float]) -> Range:
    """What the losses at these rates say. Raises UserError for fewer than three."""
    if len(losses) < 3:
        raise UserError(
            f"lr-range: diverged at step {len(losses)} already, at a rate of {rates[len(losses) - 1]:g}; begin lower"
        )
    smoothed = _smoothed(losses)
    points = [Point(*each) for each in zip(rates, losses, smoothed, strict=False)]
    slopes = [
        (b.smoothed - a.smoothed) / (math.log(b.lr) - math.log(a.lr)) for a, b in zip(points, points[2:], strict=False)
    ]
    steepest = points[1 + min(range(len(slopes)), key=slopes.__getitem__)].lr
    return Range(points, steepest, points[-1].lr if _diverged(losses) or len(losses) < len(rates) else None)


def _smoothed(losses: Sequence[float]) -> list[float]:
    found, average = [], 0.0
    for i, loss in enumerate(losses, 1):
        average = SMOOTHED * average + (1 - SMOOTHED) * loss
        found.append(average / (1 - SMOOTHED**i))
    return found


def _diverged(losses: Sequence[float]) -> bool:
    smoothed = _smoothed(losses)
    return smoothed[-1] > DIVERGED * min(smoothed)


def table(found: Range, rows: int = 20) -> list[str]:
    """The points in so many lines, and what they say."""
    every = max(1, len(found.points) // rows)
    lines = [f"{'lr':>10}  {'loss':>10}  {'smoothed':>10}"]
    lines += [f"{p.lr:>10.3g}  {p.loss:>10.4g}  {p.smoothed:>10.4g}" for p in found.points[::every]]
    ends = "does not diverge" if found.diverges is None else f"diverges at {found.diverges:.2g}"
    return [*lines, f"the loss falls fastest at {found.steepest:.2g}, and {ends}"]


def curve(found: Range) -> str:
    """The points as a table of tab-separated values."""
    return "\n".join(["lr\tloss\tsmoothed", *("\t".join(map(repr, point)) for point in found.points)]) + "\n"
