"""Where the time of a recipe's step goes on this machine: `memoir bench step`."""

import json
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from jobs.arithmetic import native_bf16
from jobs.limit import Convolutions, alone, now
from jobs.recipe import read_recipe
from jobs.training.here import run_here
from jobs.training.loop import Run, State
from pipeline.cpus import available_cpus
from pipeline.errors import UserError

ROUNDS = 3
# shares of a step that are worth a word: waiting for data, waiting for other workers, time outside of convolutions
WAITS, NETWORK, IDLE = 0.03, 0.1, 0.5
RECORDS = 3  # of all workers together; the first does not count


class Step(NamedTuple):
    """Medians over the steps, in milliseconds; of one worker but for the last three.

    step: all of it, with the loader. waiting: for the batch. forward, backward, rest: of the same step on a batch that is held; rest
    is clipping, optimiser, averages and what the loop does around them. convolutions: each alone, in the quicker layout. samples: in a
    second, with the loader. workers: of the recipe. together, network: samples in a second of all of them on this machine, and the
    share of the time that a worker waits for the others; None where it is one, or this machine has not room for them.
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
    workers: int = 1
    together: float | None = None
    network: float | None = None


def bench_step(recipe_name: str, *, data: str, seconds: float, overrides: Sequence[str] = ()) -> Step:
    """Train a recipe's first steps in this process, with one worker's share of its batch, for so long; nothing is kept.

    Then all workers do, in processes of their own. Raises UserError as `memoir train` does.
    """
    recipe = read_recipe(recipe_name, [*overrides])
    workers = recipe.training.fewest
    share = recipe.data.batch // workers
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
    threads = torch.get_num_threads()
    result = Step(step, waiting, forward, backward, rest, floor, samples, run.precision, threads, workers)
    if workers == 1 or workers * (1 if run.device.type == "cuda" else threads) > _places(run.device):
        return result
    each = max(1, min(10, round(1e3 * seconds / 4 / RECORDS / step)))
    every = [f"training.workers={workers}", "data.stages=[]", f"training.log_every={each}"]
    together, network = _all(workers, recipe_name, [*overrides, *every], data)
    return result._replace(together=together, network=network)


def _places(device: torch.device) -> int:
    """How many workers of one GPU, or of one thread, this machine has room for."""
    return torch.cuda.device_count() if device.type == "cuda" else available_cpus()


class _EnoughError(Exception):
    """Of steps."""


def _all(workers: int, recipe_name: str, overrides: list[str], data: str) -> tuple[float, float]:
    """Samples in a second of all workers, and the share of the time that one waits for the others."""
    with tempfile.TemporaryDirectory(prefix="memoir-bench-") as place:
        try:
            spawn(_one_of_all, (workers, recipe_name, overrides, data, place), workers)
        except ProcessRaisedException as error:
            _, told, line = str(error).rstrip().rpartition(f"{UserError.__name__}: ")
            raise UserError(line) if told else error from None
        except ProcessExitedException as error:  # killed, for want of memory as a rule
            raise UserError(
                f"{recipe_name}: with {workers} workers together, {error}; give training.workers=1, or a smaller batch"
            ) from None
        records = [json.loads(line) for line in Path(place, "records").read_text().splitlines()][1:]
    seconds = sum(record["seconds"] for record in records)
    samples = sum(record["images_per_s"] * record["seconds"] for record in records)
    return samples / seconds, sum(record["network_s"] for record in records) / seconds


def _one_of_all(rank: int, workers: int, recipe_name: str, overrides: list[str], data: str, place: str) -> None:
    """A worker, without Ray and without a store; the first writes the records."""
    recipe = read_recipe(recipe_name, overrides)
    cuda = recipe.training.gpu and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(rank)
    meeting = f"file://{place}/meeting"
    dist.init_process_group("nccl" if cuda else "gloo", init_method=meeting, rank=rank, world_size=workers)
    run = run_here(recipe, data)
    run.validation, run.validator = [], None
    run.total = max(run.total, RECORDS * recipe.training.log_every + 1)

    def log(record: dict[str, Any]) -> None:
        if rank == 0:
            with Path(place, "records").open("a") as file:
                file.write(json.dumps(record) + "\n")
        if len(run.records) == RECORDS:
            raise _EnoughError

    with suppress(_EnoughError):
        run.train(lambda run: None, log)
    dist.destroy_process_group()


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
    if found.together is not None and found.network is not None:
        lines.append(
            f"{found.workers} workers here: {found.together:,.1f} samples/s, {found.network:.1%} of the time waiting for each other"
        )
    elif found.workers > 1:
        lines.append(f"waiting for the network is not measured: this machine has not room for {found.workers} workers")
    if found.waiting > WAITS * found.step:
        lines.append("first: training.loader_threads, for the step waits for data")
    elif (found.network or 0) > NETWORK:
        lines.append(
            "first: fewer workers with more CPUs each (training.cpus_per_worker), a larger batch, or optimisation.batchnorm rank, for "
            "workers wait for each other"
        )
    elif found.rest > 0.2 * whole:
        lines.append("first: a larger batch, for clipping and optimiser take a fifth of each step whatever its size")
    elif found.precision == "fp32" and native_bf16(torch.device("cpu")):
        lines.append("first: optimisation.precision auto, for this CPU has bf16")
    elif (used := found.threads * found.workers) < (cpus := available_cpus()):
        lines.append(f"first: training.cpus_per_worker, or more workers: {cpus} CPUs are here, and {used} used")
    elif found.convolutions < IDLE * whole:
        lines.append("first: a larger batch or patch, for more than half of the step is not its convolutions")
    else:
        lines.append("nothing stands out: a step is near what its convolutions take here")
    return lines
