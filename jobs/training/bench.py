"""Where the time of a recipe's step goes on this machine: `memoir bench step`."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from jobs.arithmetic import native_bf16
from jobs.limit import Convolutions, alone, now
from jobs.recipe import read_recipe
from jobs.training.here import run_here
from jobs.training.loop import Run, State

ROUNDS = 3
WAITS, IDLE = 0.03, 0.5  # shares of a step: waiting for data, and time outside of convolutions, that are worth a word


class Step(NamedTuple):
    """Medians over the steps, in milliseconds; one worker.

    step: all of it, with the loader. waiting: for the batch. forward, backward, rest: of the same step on a batch that is held; rest
    is clipping, optimiser, averages and what the loop does around them. convolutions: each alone, in the quicker layout. samples: in a second, with the loader.
    """

    step: float
    waiting: float
    forward: float
    backward: float
    rest: float
    convolutions: float
    samples: float
    precision: str
    threads: int


def bench_step(recipe_name: str, *, data: str, seconds: float, overrides: Sequence[str] = ()) -> Step:
    """Train a recipe's first steps in this process, with one worker's share of its batch, for so long; nothing is kept.

    Raises UserError as `memoir train` does.
    """
    recipe = read_recipe(recipe_name, [*overrides])
    share = recipe.data.batch // recipe.training.fewest
    one = [*overrides, "training.workers=1", f"data.batch={share}", "data.stages=[]"]
    recipe = read_recipe(recipe_name, one)
    run = run_here(recipe, data)
    cut: Any = run.loader.cut(run.state.position)
    batch = run.loader.to_device(cut, run.device)
    steps: list[float] = []
    waits: list[float] = []
    parts: list[tuple[float, float, float]] = []
    run.step(batch)  # what is made once
    for _ in range(ROUNDS):  # in turns, for the speed of a machine changes within seconds
        for found, more in zip((steps, waits), _with_loader(run, seconds / 2 / ROUNDS), strict=True):
            found += more
        parts += _parts(run, batch, seconds / 4 / ROUNDS)
    forward, backward, rest = (1e3 * median(part) for part in zip(*parts, strict=True))
    with Convolutions() as convolutions:
        run.objective(batch | {"progress": torch.tensor(0.5, device=run.device)})[0].backward()
    shapes = max(len(convolutions.found), 1)
    floor = alone(convolutions.found, seconds / 4 / 2 / shapes, run.device.type)
    step, waiting = 1e3 * median(steps), 1e3 * median(waits)
    samples = run.loader.batch / median(steps)
    return Step(step, waiting, forward, backward, rest, floor, samples, run.precision, torch.get_num_threads())


def _with_loader(run: Run, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of the steps with the loader, and of waiting for it."""
    steps: list[float] = []
    waits: list[float] = []
    loading: Any = run.loader.batches()
    end = time.perf_counter() + seconds
    with closing(loading) as batches:
        while len(steps) < 4 or time.perf_counter() < end:
            began = time.perf_counter()
            position, cut = next(batches)
            batch = run.loader.to_device(cut, run.device)
            cut.hand_back()
            waits.append(now(run.device.type) - began)
            run.step(batch)
            steps.append(now(run.device.type) - began)
            run.state = State(run.state.step + 1, position)
            run.total = max(run.total, run.state.step + 1)
    return steps[2:], waits[2:]  # the first batches are waited for in any case


def _parts(run: Run, batch: dict[str, Tensor], seconds: float) -> list[tuple[float, float, float]]:
    """Seconds of forward, backward and the rest of each of some steps on one batch."""
    found: list[tuple[float, float, float]] = []
    device, objective, clip = run.device.type, run.objective, run.optimiser.clip
    forwards: list[tuple[float, float]] = []  # beginning and end, of each part of an accumulated step
    clips: list[float] = []

    class Timed(nn.Module):
        def forward(self, part: dict[str, Tensor]) -> Any:
            began = now(device)
            made = objective(part)
            forwards.append((began, now(device)))
            return made

    def timed(lr: float) -> Tensor:
        clips.append(now(device))
        return clip(lr)

    run.objective = Timed()
    vars(run.optimiser)["clip"] = timed
    try:
        end = time.perf_counter() + seconds
        while len(found) < 2 or time.perf_counter() < end:
            forwards.clear()
            began = now(device)
            run.step(batch)
            whole = now(device) - began
            ahead = sum(after - before for before, after in forwards)
            back = clips[-1] - forwards[0][0] - ahead
            found.append((ahead, back, whole - ahead - back))
    finally:
        run.objective = objective
        del vars(run.optimiser)["clip"]
    return found


def told(found: Step) -> list[str]:
    """In words, with what to change first."""
    whole = found.forward + found.backward + found.rest
    lines = [
        f"{found.samples:,.1f} samples/s; a step takes {found.step:,.1f} ms, {found.waiting / found.step:.1%} of it waiting for data "
        f"({found.threads} threads, {found.precision})",
        f"without the loader {whole:,.1f} ms ({found.step / whole - 1:+.1%} with it): forward {found.forward:,.1f}, backward "
        f"{found.backward:,.1f}, clipping, optimiser and the loop {found.rest:,.1f}",
    ]
    lines.append(
        f"its convolutions alone take {found.convolutions:,.1f} ms: a step is at {found.convolutions / whole:.0%} of that limit"
    )
    if found.waiting > WAITS * found.step:
        lines.append("first: training.loader_threads, for the step waits for data")
    elif found.rest > 0.2 * whole:
        lines.append("first: a larger batch, for clipping and optimiser take a fifth of each step whatever its size")
    elif found.precision == "fp32" and native_bf16(torch.device("cpu")):
        lines.append("first: optimisation.precision auto, for this CPU has bf16")
    elif found.threads < len(os.sched_getaffinity(0)):
        lines.append(
            f"first: training.cpus_per_worker, or more workers: {len(os.sched_getaffinity(0))} CPUs are here, and "
            f"{found.threads} used"
        )
    elif found.convolutions < IDLE * whole:
        lines.append("first: a larger batch or patch, for more than half of the step is not its convolutions")
    else:
        lines.append("nothing stands out: a step is near what its convolutions take here")
    return lines
