"""`memoir bench step`: where the time of a recipe's step goes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import photograph
from torch import nn

from jobs.limit import Convolutions, alone
from jobs.recipe import read_recipe
from jobs.training import bench as module
from jobs.training.bench import Step, bench_step, told
from jobs.training.here import run_here
from pipeline.errors import UserError

RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 4, bn_momentum: 0.1}
data: {task: tiny, patch: 8, crops: 4, batch: 8, stages: [{after: 3, batch: 4}]}
optimisation: {optimiser: adam, lr: 0.002, schedule: cosine, length: {steps: 5}, ema: {decay: 0.9}}
training: {workers: 2}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
EVEN = Step(100, 1, 30, 60, 9, 80, 80, "bf16", 2)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(builder: Callable[..., Path], tmp_path, monkeypatch) -> Path:
    built = builder("bench-step", {f"train/{i}.png": photograph(i, 20, 20, 1) for i in range(3)})
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(RECIPE)
    return built.parent


def test_the_parts_of_a_step_are_measured_with_one_workers_share_of_the_batch(data, monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 1)
    found = bench_step("tiny.yaml", data=str(data), seconds=0.4)
    assert found.samples == pytest.approx(4 * 1e3 / found.step)
    assert 0 < found.waiting < found.step
    assert min(found.forward, found.backward, found.rest, found.convolutions) > 0
    assert (found.precision, found.threads, found.workers) == ("fp32", 1, 2)
    assert found.together is None  # no room for two
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.yaml"]  # nothing is kept
    with pytest.raises(UserError, match=r"nowhere/tiny"):
        bench_step("tiny.yaml", data="nowhere", seconds=0.1)


@pytest.mark.parametrize(("k", "ahead", "back"), [(1, 1, 1), (2, 2, 2)])
def test_a_step_is_its_forwards_its_backwards_and_the_rest(k, ahead, back, data, monkeypatch):
    """By a clock that is a second later whenever it is looked at."""
    run = run_here(read_recipe("tiny.yaml", ["training.workers=1", f"optimisation.accumulate={k}"]), str(data))
    cut: Any = run.loader.cut(run.state.position)
    ticks = count()
    monkeypatch.setattr(module, "now", lambda _: next(ticks))
    assert set(module._parts(run, run.loader.to_device(cut, run.device), 0)) == {(ahead, back, 2)}
    assert "clip" not in vars(run.optimiser)


def test_all_workers_are_measured_together_where_there_is_room_for_them(data, monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    short = ["optimisation.length={steps: 2}", "data.stages=[]"]  # shorter than what is measured
    found = bench_step("tiny.yaml", data=str(data), seconds=0.4, overrides=short)
    assert found.together is not None
    assert found.network is not None
    assert found.together > 0
    assert 0 < found.network < 1
    assert any("2 workers here" in line for line in told(found))
    assert sorted(path.name for path in Path().iterdir()) == ["tiny.yaml"]
    alone = bench_step("tiny.yaml", data=str(data), seconds=0.4, overrides=["training.workers=1"])
    assert (alone.workers, alone.together) == (1, None)
    assert not any("workers" in line for line in told(alone)[:-1])


def of_a_user(rank: int, *_: object) -> None:
    raise UserError("tiny: the batch does not fit; make it smaller")


def of_a_kill(rank: int, *_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        (of_a_user, "^tiny: the batch does not fit; make it smaller$"),
        (
            of_a_kill,
            r"^tiny\.yaml: with 2 workers together, process \d terminated with signal SIGKILL; give training\.workers=1",
        ),
    ],
)
def test_a_worker_that_ends_is_told_in_a_line(ends, says, data, monkeypatch):
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    monkeypatch.setattr(module, "_one_of_all", ends)
    with pytest.raises(UserError, match=says):
        bench_step("tiny.yaml", data=str(data), seconds=0.1)


def test_all_convolutions_are_counted_forward_and_backward():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Conv2d(4, 4, 3, bias=False))
    with Convolutions() as found:
        model(torch.rand(2, 1, 12, 12)).sum().backward()
    kinds = sorted((key[0], key[2]) for key in found.found)
    shapes = [(3, 1, 3, 3), (3, 4, 2, 2), (4, 4, 3, 3)]
    assert kinds == sorted((way, shape) for way in ("forward", "backward") for shape in shapes)
    assert set(found.found.values()) == {1}
    once = alone(found.found, 0)
    twice = alone(found.found + found.found, 0)
    assert 0 < once < twice  # roughly the double


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"waiting": 4}, "first: training.loader_threads"),
        ({"workers": 2, "together": 120.0, "network": 0.2}, "first: fewer workers with more CPUs each"),
        ({"workers": 2, "together": 120.0, "network": 0.05}, "nothing stands out"),
        ({"rest": 40}, "first: a larger batch, for clipping and optimiser"),
        ({"precision": "fp32"}, "first: optimisation.precision auto"),
        ({"threads": 1}, "first: training.cpus_per_worker, or more workers: 2 CPUs are here, and 1 used"),
        ({"threads": 1, "workers": 2}, "nothing stands out"),
        ({"convolutions": 20}, "first: a larger batch or patch"),
        ({}, "nothing stands out"),
    ],
)
def test_what_to_change_first_is_what_costs_most(change, says, monkeypatch):
    monkeypatch.setattr(module, "native_bf16", lambda device: True)
    monkeypatch.setattr(module, "available_cpus", lambda: 2)
    assert told(EVEN._replace(**change))[-1].startswith(says)


@pytest.mark.parametrize("command", [["bench", "step", "--seconds", "0.3"], ["lr-range", "--steps", "4"]])
def test_the_commands_take_a_recipe_that_is_portable(data, command):
    Path("tiny.yaml").write_text(RECIPE.replace("workers: 2", "workers: 2, portable: true"))
    name = [*command[:-2], "tiny.yaml", *command[-2:], "--data", str(data)]
    done = subprocess.run([sys.executable, "-m", "memoir", *name], capture_output=True, text=True, check=False)
    assert (done.returncode, "tiny" in done.stdout or "the loss" in done.stdout) == (0, True), done.stderr
