"""Progressive training, other patches, batches, rates and mixtures after so many steps; and mixtures of tasks."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jobs.recipe import Recipe, Share, mixed, read_recipe
from jobs.training import loop
from jobs.training.loop import Run, State
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.loading.loader import Loader, Position
from pipeline.sampling.patches import RandomCrops

# 24 (image, crop) samples
RECIPE = """
model: {name: memnet, memory_blocks: 1, recursions: 1, channels: 2, bn_momentum: 0.1}
data:
  task: tiny
  patch: 8
  crops: 4
  batch: 8
  stages: [{after: 4, patch: 12, batch: 4, lr: 0.001}, {after: 7, batch: 12}]
optimisation: {optimiser: adam, lr: 0.002, schedule: cosine, length: {steps: 10}}
training: {workers: 2, seed: 3, log_every: 1, validate_every: 5, checkpoint_every: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(builder: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    names = [f"train/{i}.png" for i in range(3)] + ["val/0.png"]
    files = {name: rng.integers(40, 200, (5, 5, 1), np.uint8).repeat(4, 0).repeat(4, 1) for name in names}
    return builder("stages", files, degradation={"kind": "jpeg", "quality": [10, 20]})


@pytest.fixture(scope="module")
def others(builder: Callable[..., Path]) -> Path:
    """Six images, whose inputs are noisy."""
    rng = np.random.default_rng(1)
    files = {f"train/{i}.png": rng.integers(40, 200, (24, 24, 1), np.uint8) for i in range(6)}
    return builder("others", files, degradation={"kind": "noise", "sigma": [15]})


MIXED = """
  mix: [{task: tiny, weight: 3, levels: {10: 1, 20: 2}}, {task: others}]
  stages: [{after: 4, patch: 12, batch: 4, mix: [{task: tiny}, {task: others, weight: 3}]}, {after: 7, mix: []}]
"""


def mixture(folder: Path, *overrides: str) -> Recipe:
    """A recipe that mixes, mixes otherwise from step 4 on, and from step 7 on takes `tiny` alone."""
    lines = [line for line in RECIPE.splitlines() if "stages:" not in line]
    at = lines.index("  batch: 8") + 1
    return recipe(folder, *overrides, text="\n".join([*lines[:at], MIXED.strip("\n"), *lines[at:]]))


def recipe(folder: Path, *overrides: str, text: str = RECIPE) -> Recipe:
    (folder / "tiny.yaml").write_text(text)
    return read_recipe(str(folder / "tiny.yaml"), list(overrides))


def flat(lists: Iterable[list[int]]) -> list[int]:
    return [each for part in lists for each in part]


def taken(run: Run) -> tuple[list[list[int]], list[int], list[float]]:
    """The samples, sides and learning rates of the steps of a run, to its end."""
    samples, sides, rates = [], [], []
    step = run.step

    def look(batch: dict[str, Any]) -> Any:
        samples.append(batch["sample"][batch["weight"] > 0].tolist())
        sides.append(batch["gt"].shape[-1])
        rates.append(run.lr())
        return step(batch)

    run.step = look  # type: ignore[method-assign]
    run.train(lambda run: None, lambda record: None)
    return samples, sides, rates


def test_each_stage_has_its_patches_batches_and_learning_rate_and_begins_an_epoch(data, tmp_path):
    run = Run(recipe(tmp_path), data, CPU)
    samples, sides, rates = taken(run)
    assert [len(each) for each in samples] == [8] * 4 + [4] * 3 + [12] * 3
    assert sides == [8] * 4 + [12] * 6  # what a stage does not say stays
    cosine = [0.002 * 0.5 * (1 + np.cos(np.pi * step / 10)) for step in range(10)]
    assert rates == pytest.approx([rate * (1 if step < 4 else 0.5) for step, rate in enumerate(cosine)])
    assert sorted(flat(samples[:3])) == list(range(24))  # an epoch, of which the fourth batch begins the next
    assert sorted(flat(samples[7:9])) == list(range(24))
    assert len(set(flat(samples[4:7]))) == 12
    assert run.state == State(10, Position(4, 1))


def test_the_batches_are_those_of_a_loader_of_the_stage_alone(data, tmp_path):
    samples, _, _ = taken(Run(recipe(tmp_path), data, CPU))
    alone = Loader(data, batch=4, sampling=RandomCrops(12, 4, True), seed=3)
    found = [cut["sample"].tolist() for cut in (alone.cut(Position(2, i)) for i in range(3))]
    assert samples[4:7] == found


def test_a_run_resumes_to_the_bit_in_any_stage(data, tmp_path):
    asked = recipe(tmp_path)
    whole = Run(asked, data, CPU)
    whole.train(
        lambda run: [write_bytes(tmp_path / str(run.state.step) / n, d) for n, d in run.save().items()], lambda _: None
    )
    for step in (1, 3, 4, 5, 7, 9):
        again = Run(asked, data, CPU)
        again.load(tmp_path / str(step))
        again.train(lambda run: None, lambda _: None)
        pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), step
        assert (again.state, again.scores) == (whole.state, whole.scores)


class Alone(nn.Module):
    """Stands for DistributedDataParallel where the other ranks are not there."""

    def __init__(self, objective: nn.Module, **_: Any) -> None:
        super().__init__()

    def _set_ddp_runtime_logging_sample_rate(self, _: int) -> None: ...

    def _get_ddp_logging_data(self) -> dict[str, int]:
        return {}


def walk(asked: Recipe, data: Path | dict[str, Path], rank: int, world: int, killed: int) -> list[list[int]]:
    """The true samples of a rank in each step; the run is killed after one of them, and goes on as another one."""
    found: list[list[int]] = []

    def run(state: State, end: int) -> State:
        with pytest.MonkeyPatch.context() as patch:
            there = SimpleNamespace(
                rank=lambda: rank,
                world_size=lambda: world,
                seconds=lambda: 0.0,
                all_reduce=lambda x, *_: x,
                share_memory=lambda s: None,
            )
            patch.setattr(loop, "collective", there)
            patch.setattr(loop, "distributed", Alone)
            one = Run(asked, data, CPU)
        one.state, one.total = state, end
        one.validation = []

        def look(batch: dict[str, Any]) -> Any:
            found.append(batch["sample"][batch["weight"] > 0].tolist())
            return torch.zeros(()), {}, torch.zeros(())

        one.step = look  # type: ignore[method-assign]
        one.train(lambda run: None, lambda record: None)
        return one.state

    run(run(State(0, Position()), killed), 14)
    return found


@settings(max_examples=15, deadline=None)
@given(
    first=st.integers(1, 6),
    second=st.integers(1, 6),
    batches=st.tuples(*[st.sampled_from([8, 16, 24])] * 3),
    world=st.sampled_from([1, 2, 4, 8]),
    killed=st.integers(1, 13),
)
def test_the_global_batches_depend_on_the_step_alone(data, first, second, batches, world, killed, tmp_path_factory):
    """Whatever the stages, the number of ranks, and where a run was killed."""
    stages = f"[{{after: {first}, batch: {batches[1]}}}, {{after: {first + second}, batch: {batches[2]}}}]"
    overrides = [
        f"data.batch={batches[0]}",
        f"data.stages={stages}",
        "optimisation.length={steps: 14}",
        "training.workers=1",
    ]
    asked = recipe(tmp_path_factory.mktemp("stages"), *overrides)
    whole = walk(asked, data, 0, 1, 14)
    ranks = [walk(asked, data, rank, world, killed) for rank in range(world)]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == whole
    assert [len(each) for each in whole][:first] == [
        batches[0] if 24 % batches[0] == 0 or i % 2 == 0 else 8 for i in range(first)
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("batch: 4,", "batch: 5,", r"training\.workers: 2 does not divide data\.stages\.0\.batch, 5; these do: 1, 5"),
        ("after: 7", "after: 4", "each begins after the one before it"),
        ("{after: 7, batch: 12}", "{after: 10, batch: 12}", "begins after 10 steps, and training ends at 10"),
        ("after: 7, batch: 12", "after: 7, stride: 8", "all have a stride, or all have crops"),
        ("length: {steps: 10}", "length: {epochs: 10}", r"optimisation\.length: in steps where data has stages"),
        ("lr: 0.001", "rate: 0.001", r"stages\.0\.rate"),
    ],
)
def test_stages_that_cannot_be_are_one_line(old, new, says, tmp_path):
    assert old in RECIPE
    with pytest.raises(UserError, match=says) as error:
        recipe(tmp_path, text=RECIPE.replace(old, new))
    assert "\n" not in str(error.value)


def test_a_patch_that_no_image_holds_is_one_line_before_anything_starts(data, tmp_path):
    with pytest.raises(
        UserError, match=r"no image holds a patch of 24x24, which a stage has; the largest sides are 20 and 20$"
    ):
        Run(recipe(tmp_path, text=RECIPE.replace("patch: 12", "patch: 24")), data, CPU)


def test_a_checkpoint_of_other_stages_is_refused(data, tmp_path):
    for name, contents in Run(recipe(tmp_path), data, CPU).save().items():
        write_bytes(tmp_path / "saved" / name, contents)
    for old, new in (("after: 7", "after: 8"), ("lr: 0.001", "lr: 0.0005"), ("batch: 12", "batch: 6")):
        with pytest.raises(UserError, match="was trained on other batches"):
            Run(recipe(tmp_path, text=RECIPE.replace(old, new)), data, CPU).load(tmp_path / "saved")


def test_a_mixture_trains_in_its_proportions_and_resumes_to_the_bit_in_any_stage(data, others, tmp_path):
    asked, places = mixture(tmp_path), {"tiny": data, "others": others}
    assert asked.data.tasks == ["tiny", "others"]
    whole, levels = Run(asked, places, CPU), []
    step = whole.step

    def look(batch: dict[str, Any]) -> Any:
        levels.append(sorted(batch["level"].tolist()))
        return step(batch)

    whole.step = look  # type: ignore[method-assign]
    whole.train(
        lambda run: [write_bytes(tmp_path / str(run.state.step) / n, d) for n, d in run.save().items()], lambda _: None
    )
    assert levels[:4] == [[10] * 2 + [15] * 2 + [20] * 4] * 4  # the noise has level 15
    assert all(each.count(15) == 3 for each in levels[4:7])
    assert all(15 not in each for each in levels[7:])
    for at in (1, 4, 6, 8):
        again = Run(asked, places, CPU)
        again.load(tmp_path / str(at))
        again.train(lambda run: None, lambda _: None)
        pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), at
        assert (again.state, again.scores) == (whole.state, whole.scores)
    other = Run(mixture(tmp_path, "data.mix=[{task: tiny, weight: 2}, {task: others}]"), places, CPU)
    with pytest.raises(UserError, match="was trained on other batches"):
        other.load(tmp_path / "1")


@settings(max_examples=8, deadline=None)
@given(
    weights=st.tuples(*[st.integers(1, 4)] * 4),
    first=st.integers(1, 6),
    world=st.sampled_from([1, 2, 4, 8]),
    killed=st.integers(1, 13),
)
def test_the_global_batches_of_mixtures_depend_on_the_step_alone(
    data, others, weights, first, world, killed, tmp_path_factory
):
    mixes = [f"[{{task: tiny, weight: {a}}}, {{task: others, weight: {b}}}]" for a, b in (weights[:2], weights[2:])]
    overrides = [
        f"data.mix={mixes[0]}",
        f"data.stages=[{{after: {first}, patch: 12, batch: 16, mix: {mixes[1]}}}]",
        "optimisation.length={steps: 14}",
        "training.workers=1",
    ]
    asked, places = recipe(tmp_path_factory.mktemp("mix"), *overrides), {"tiny": data, "others": others}
    ranks = [walk(asked, places, rank, world, killed) for rank in range(world)]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == walk(asked, places, 0, 1, 14)


@pytest.mark.parametrize(
    ("mix", "says"),
    [
        ("[{task: others}]", r"data: task tiny: not one of the mix, others"),
        ("[{task: tiny}, {task: tiny}]", r"data\.mix: each task once"),
        ("[{task: tiny, weight: 0}]", r"data\.mix\.0\.weight"),
        ("[{task: tiny, levels: {}}]", r"data\.mix\.0: levels: one or more"),
        (
            "[{task: tiny, weight: 4999}, {task: others, weight: 5000}]",
            r"repeat after 9,999 samples, and the most is 4,096",
        ),
        ("[{tsk: tiny}]", r"data\.mix\.0\.tsk"),
    ],
)
def test_mixtures_that_cannot_be_are_one_line(mix, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        recipe(tmp_path, f"data.mix={mix}")
    assert "\n" not in str(error.value)


def test_weights_are_the_smallest_with_their_proportions():
    shares = (Share(task="a", weight=6, levels={30: 1, 50: 3}), Share(task="b", weight=6))
    assert mixed(shares) == [("a", 30, 1), ("a", 50, 3), ("b", None, 4)]


def test_the_task_of_a_mixture_is_its_first(tmp_path):
    text = RECIPE.replace("  task: tiny\n", "  mix: [{task: others}, {task: tiny}]\n")
    assert recipe(tmp_path, text=text).data.task == "others"


def test_a_mixture_of_other_colours_is_one_line_before_anything_starts(data, builder, tmp_path):
    files = {"train/0.png": np.random.default_rng(2).integers(0, 255, (20, 20, 3), np.uint8)}
    colour = builder("colour", files, colour="rgb", degradation={"kind": "jpeg", "quality": [10]})
    with pytest.raises(UserError, match=r"other image channels: task tiny at level 10 has 1, and task others 3$"):
        Run(mixture(tmp_path), {"tiny": data, "others": colour}, CPU)
