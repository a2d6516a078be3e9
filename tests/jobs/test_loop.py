import json
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.recipe import Optimisation, Recipe, build_model, read_recipe
from jobs.training.feed import _line
from jobs.training.loop import Run, State
from jobs.training.meter import Meter
from jobs.training.optimiser import Optimiser, learning_rate
from jobs.training.watchdog import Watchdog
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.loading import loader, pool
from pipeline.loading.loader import Position

# 24 samples: an epoch has 3 batches, the last with 4 samples and 6 of padding, which fill rank 1 of 2
RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4, bn_momentum: 0.1}
data: {task: tiny, patch: 12, stride: 8, dihedral: false, batch: 10}
optimisation:
  {optimiser: sgd, lr: 0.1, weight_decay: 0.0001, bias_lr: 0.1, clip: 0.01, clip_over_lr: true,
   schedule: step, lr_step: {steps: 8}, length: {steps: 20}}
training: {seed: 3, loader_threads: 2, log_every: 4, validate_every: 10, checkpoint_every: 5}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
ADAM = [
    "optimisation.optimiser=adam",
    "optimisation.lr=0.003",
    "optimisation.clip_over_lr=false",
    "optimisation.clip=1",
]
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


def dataset(builder: Callable[..., Path], kind: str, seed: int = 0) -> Path:
    """Built from 3 images of 20x20 to train on and 2 to validate with, at two levels each."""
    rng = np.random.default_rng(seed)
    names = [f"train/{i}.png" for i in range(3)] + [f"val/{i}.png" for i in range(2)]
    files = {name: rng.integers(40, 200, (5, 5, 1), np.uint8).repeat(4, 0).repeat(4, 1) for name in names}
    levels = {"jpeg": {"quality": [10, 20]}, "noise": {"sigma": [30, 50]}}[kind]
    return builder(f"loop-{kind}-{seed}", files, degradation={"kind": kind, **levels})


@pytest.fixture(scope="module")
def data(builder) -> Path:
    return dataset(builder, "jpeg")


def recipe(*overrides: str, folder: Path) -> Recipe:
    (folder / "tiny.yaml").write_text(RECIPE)
    return read_recipe(str(folder / "tiny.yaml"), list(overrides))


def everything(run: Run) -> list[Tensor]:
    """Weights, buffers and optimiser state."""
    states = [part.state_dict()["state"] for part in run.optimiser.parts]
    return [
        *run.model.state_dict().values(),
        *(value for state in states for k in sorted(state) for value in state[k].values() if isinstance(value, Tensor)),
        *(run.average.weights.values() if run.average else []),
    ]


def same(a: Run, b: Run) -> bool:
    """Bit for bit, and at the same place."""
    pairs = zip(everything(a), everything(b), strict=True)
    return a.state == b.state and all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs)


def save(run: Run, folder: Path) -> None:
    """A checkpoint as a local folder."""
    for name, data in run.save().items():
        write_bytes(folder / name, data)


def without_clocks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    clocks = {"seconds", "wait_s", "images_per_s", "network_s", "peak_mib"}
    return [{key: value for key, value in record.items() if key not in clocks} for record in records]


def nothing(_: Any) -> None: ...


def never(_: Any) -> None:
    raise AssertionError("called")


# resuming


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [("jpeg", []), ("noise", []), ("jpeg", [*ADAM, "optimisation.precision=bf16"])],
    ids=["sgd", "noise", "adam-bf16"],
)
def test_a_run_that_continues_from_a_checkpoint_equals_the_uninterrupted_one_bit_for_bit(
    kind, overrides, builder, tmp_path
):
    folder = dataset(builder, kind)
    every = ["training.checkpoint_every=1", "training.log_every=1", "training.validate_every=5"]
    length = ["optimisation.lr_step={steps: 4}", "optimisation.length={steps: 10}"]
    cosine = ["optimisation.schedule=cosine", "optimisation.lr_step=null"] if overrides else []
    options = recipe(*every, *length, *overrides, *cosine, folder=tmp_path)
    whole = Run(options, folder, CPU)
    untrained = [tensor.clone() for tensor in whole.model.parameters()]
    records: dict[int, float] = {}

    def log(record: dict[str, Any]) -> None:
        if "loss" in record:
            assert records.setdefault(record["step"], record["loss"]) == record["loss"]

    whole.train(lambda run: save(run, tmp_path / str(run.state.step)), log)
    assert sorted(records) == list(range(1, 11))
    assert not any(torch.equal(a, b) for a, b in zip(untrained, whole.model.parameters(), strict=True))
    again = Run(options, folder, CPU)
    again.train(nothing, log)
    assert same(again, whole)
    for k in (1, 3, 4, 5, 9, 10):  # in an epoch, at its end, at a new learning rate, before, after, the last validation
        resumed = Run(options, folder, CPU)
        resumed.load(tmp_path / str(k))
        assert resumed.state.step == k
        resumed.train(nothing, log)
        assert same(resumed, whole), k
        assert without_clocks(resumed.records) == without_clocks(whole.records)


def test_a_run_that_pauses_does_so_at_its_next_checkpoint_and_goes_on_as_if_it_had_not(data, tmp_path):
    every = ["training.checkpoint_every=4", "training.validate_every=4"]
    whole = Run(recipe(*every, folder=tmp_path), data, CPU)
    whole.train(nothing, nothing)
    pausing = recipe(*every, "training.until=5", folder=tmp_path)
    first = Run(pausing, data, CPU)
    first.train(lambda run: save(run, tmp_path / str(run.state.step)), nothing)
    assert first.paused
    assert first.state.step == 8
    assert 8 in first.scores
    again = Run(pausing, data, CPU)
    again.load(tmp_path / "8")
    again.train(never, nothing)  # is where it shall be
    assert same(again, first)
    onward = Run(
        recipe(*every, "training.until=17", folder=tmp_path), data, CPU
    )  # beyond the last checkpoint before its end
    onward.load(tmp_path / "8")
    onward.train(nothing, nothing)
    assert not onward.paused
    assert same(onward, whole)
    assert without_clocks(onward.records) == without_clocks(whole.records)


@pytest.mark.parametrize("native", [True, False])
def test_a_run_ends_in_the_precision_that_it_began_in_whatever_the_device_has(native, data, tmp_path, monkeypatch):
    options = recipe("optimisation.precision=auto", "optimisation.length={steps: 4}", folder=tmp_path)
    monkeypatch.setattr("jobs.arithmetic.native_bf16", lambda device: native)
    whole = Run(options, data, CPU)
    began = whole.precision
    assert began == ("bf16" if native else "fp32")
    save(whole, tmp_path / "start")
    whole.train(nothing, nothing)
    monkeypatch.setattr("jobs.arithmetic.native_bf16", lambda device: not native)
    resumed = Run(options, data, CPU)
    assert resumed.precision != began
    resumed.load(tmp_path / "start")
    assert resumed.precision == began
    resumed.train(lambda run: save(run, tmp_path / "end"), nothing)
    assert same(resumed, whole)
    assert json.loads((tmp_path / "end/state.json").read_text())["precision"] == began


def test_a_finished_run_stays_as_it_is_but_for_the_validation_after_its_last_checkpoint(data, tmp_path):
    options = recipe("optimisation.length={steps: 2}", folder=tmp_path)
    run = Run(options, data, CPU)
    run.train(lambda run: save(run, tmp_path / "end"), nothing)
    finished = Run(options, data, CPU)
    finished.load(tmp_path / "end")
    finished.train(never, nothing)
    assert same(finished, run)
    assert without_clocks(finished.records) == without_clocks(run.records)
    finished.train(never, never)


def test_a_checkpoint_is_weights_as_safetensors_and_tensors_only(data, tmp_path):
    run = Run(recipe("optimisation.length={steps: 2}", folder=tmp_path), data, CPU)
    run.train(lambda run: save(run, tmp_path / "end"), nothing)
    model = build_model(run.recipe.model)
    model.load_state_dict(load_file(tmp_path / "end" / "model.safetensors"), strict=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, run.model.state_dict()[name])
    torch.load(tmp_path / "end" / "optimiser.pt", weights_only=True)
    resolved = json.loads((tmp_path / "end" / "recipe.json").read_text())
    assert resolved["model"]["multi_supervision"] is True
    assert resolved["optimisation"]["momentum"] == 0.9


@pytest.mark.parametrize("change", ["data", "data.batch=4", "data.stride=4", "training.seed=4"])
def test_a_checkpoint_of_other_batches_is_refused_in_one_line(change, data, builder, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    save(run, tmp_path / "checkpoint")
    other = (
        Run(recipe(folder=tmp_path), dataset(builder, "jpeg", seed=1), CPU)
        if change == "data"
        else Run(recipe(change, folder=tmp_path), data, CPU)
    )
    with pytest.raises(UserError, match=r"checkpoint: was trained on other batches .*: restore the data, or") as error:
        other.load(tmp_path / "checkpoint")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["optimisation.lr=0.2", "model.channels=5"])
def test_a_checkpoint_of_another_recipe_is_refused_in_one_line(change, data, tmp_path):
    save(Run(recipe(folder=tmp_path), data, CPU), tmp_path / "checkpoint")
    other = Run(recipe(change, folder=tmp_path), data, CPU)
    key, value = change.split("=")
    with pytest.raises(
        UserError, match=rf"checkpoint: was trained with {key}=\S+, and the recipe says {value}: "
    ) as error:
        other.load(tmp_path / "checkpoint")
    assert "\n" not in str(error.value)


# two ranks


def rank(index: int, folder: Path, data: Path) -> None:
    """One of two gloo ranks that train the recipe; leaves its state and records in folder/<index>.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    run = Run(read_recipe(str(folder / "tiny.yaml")), data, CPU)
    records: list[dict[str, Any]] = []
    run.train(nothing, records.append)
    torch.save({"state": everything(run), "records": records}, folder / f"{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, builder) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    recipe(folder=folder)
    torch.multiprocessing.spawn(rank, (folder, dataset(builder, "noise")), nprocs=2)
    return folder


def test_two_ranks_train_what_one_process_trains(ranks, builder):
    """20 steps in fp32, over padded batches. Weights and statistics differ by 1e-6, momenta and logs by 1e-4."""
    run = Run(read_recipe(str(ranks / "tiny.yaml")), dataset(builder, "noise"), CPU)
    records: list[dict[str, Any]] = []
    run.train(nothing, records.append)
    both = torch.load(ranks / "0.pt")
    weights = len(run.model.state_dict())
    for k, (ours, theirs) in enumerate(zip(both["state"], everything(run), strict=True)):
        # absolute too: the bias of a convolution in front of a BatchNorm has a gradient of nothing but rounding
        tolerance = 1e-6 if k < weights else 1e-4
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(both["records"], records, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("step", "epoch", "lr", "loss", "grad_norm", "val_psnr"):
            if name in ours:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (ours["step"], name)


def test_both_ranks_hold_the_same_weights_and_buffers_bit_for_bit(ranks):
    first, second = (torch.load(ranks / f"{index}.pt") for index in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first["state"], second["state"], strict=True))
    assert without_clocks(first["records"]) == without_clocks(second["records"])


# what is logged and saved, and when


def test_a_run_logs_validates_and_saves_when_the_recipe_says(data, tmp_path):
    saved: list[int] = []
    records: dict[int, list[dict[str, Any]]] = {}
    for every in (1, 4):
        run = Run(recipe(f"training.log_every={every}", "optimisation.length={steps: 18}", folder=tmp_path), data, CPU)
        saved.clear()
        records[every] = []
        run.train(lambda run: saved.append(run.state.step), records[every].append)
    assert saved == [5, 10, 15, 18]
    assert [r["step"] for r in records[4] if "loss" in r] == [4, 8, 12, 16, 18]
    assert [r["step"] for r in records[4] if "val_psnr" in r] == [10, 18]
    assert [r["epoch"] for r in records[1] if "loss" in r] == [step // 3 for step in range(18)]
    single = {r["step"]: r for r in records[1] if "loss" in r}
    for record in (r for r in records[4] if "loss" in r):
        steps = range(17 if record["step"] == 18 else record["step"] - 3, record["step"] + 1)
        for name in ("loss", "grad_norm", "psnr"):
            assert record[name] == pytest.approx(np.mean([single[step][name] for step in steps])), name


def test_checkpoints_come_by_the_clock_too(data, tmp_path, monkeypatch):
    clock = [0.0]

    def tick() -> float:
        clock[0] += 1
        return clock[0]

    for module in ("loop", "meter"):
        monkeypatch.setattr(f"jobs.training.{module}.time", SimpleNamespace(perf_counter=tick))
    every = ["training.checkpoint_every=100", "training.checkpoint_minutes=0.5", "training.validate_every=100"]
    run = Run(recipe(*every, folder=tmp_path), data, CPU)
    saved: list[int] = []
    run.train(lambda run: saved.append(run.state.step), nothing)
    assert saved == [6, 12, 18, 20]  # after 30 ticks of the clock, of which a step has five or six


def test_every_step_and_every_validated_image_is_a_beat(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    beats: list[int] = []
    run.train(nothing, nothing, lambda: beats.append(run.state.step))
    assert len(beats) == 20 + 2 * len(run.validation)


def test_scores_are_those_of_the_validated_steps(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    run.train(nothing, nothing)
    assert run.scores == {r["step"]: r["val_psnr"] for r in run.records if r["step"] in (10, 20) and "val_psnr" in r}
    assert len(run.scores) == 2


def test_a_run_hands_its_batches_back_so_that_the_loader_needs_no_new_memory(data, tmp_path, monkeypatch):
    made: list[int] = []
    monkeypatch.setattr(loader, "TOGETHER", 1)  # each batch has memory of its own
    monkeypatch.setattr(pool, "_new", lambda *of, new=pool._new: made.append(1) or new(*of))
    Run(recipe(folder=tmp_path), data, CPU).train(nothing, nothing)
    assert 1 <= len(made) <= 2 * 2 + 2 + 1  # ahead, being cut, and taken; of 20


def test_a_watchdog_tells_where_every_thread_stands_when_the_beats_stop():
    told: list[str] = []
    said = threading.Event()

    def hung(stacks: str) -> None:
        told.append(stacks)
        said.set()

    def waits_for_something() -> None:
        for _ in range(6):  # in time
            time.sleep(0.05)
            watchdog.beat()
        assert not told
        assert said.wait(10)

    with Watchdog(0.2, hung) as watchdog:
        waits_for_something()
    assert len(told) == 1
    assert "waits_for_something" in told[0]


def test_a_watchdog_that_was_sent_home_says_nothing():
    told: list[str] = []
    with Watchdog(0.05, told.append):
        pass
    time.sleep(0.2)
    assert not told


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    nn.init.constant_(run.model.recon.weight, math.nan)
    with pytest.raises(
        UserError, match=r"^loss is nan, gradient norm nan at step 1: lower the learning rate, or clip$"
    ) as error:
        run.train(never, never)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(data, tmp_path):
    run = Run(recipe("training.checkpoint_every=2", folder=tmp_path), data, CPU)
    nn.init.constant_(run.model.recon.weight, math.nan)
    with pytest.raises(UserError, match="nan at step 1"):
        run.train(never, never)


def test_a_sample_that_alone_is_not_finite_is_named_and_no_weight_has_moved(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    before = {name: value.clone() for name, value in run.model.state_dict().items() if "bn" not in name}
    _, batch = next(run.loader.batches())
    batch = run.loader.to_device(batch, CPU)
    batch["lq"][1, 0, 3, 4] = math.inf
    name = run.loader.name(int(batch["sample"][1]))
    assert re.fullmatch(r"photos-train-\S+ at level \d+ \(sample \d+\)", name)
    with pytest.raises(
        UserError, match=f"^loss is not finite at step 1: the cause is {re.escape(name)}: leave it out, or"
    ):
        run.step(batch)
    after = run.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_images_per_second_are_those_of_training_alone(data, tmp_path, monkeypatch):
    clock = [0.0]

    def pass_time(seconds: float) -> float:
        clock[0] += seconds
        return clock[0]

    monkeypatch.setattr("jobs.training.loop.time", SimpleNamespace(perf_counter=lambda: pass_time(0.001)))
    every = ["training.log_every=1", "training.validate_every=1", "training.checkpoint_every=1"]
    run = Run(recipe(*every, "optimisation.length={steps: 4}", folder=tmp_path), data, CPU)
    run.validate = lambda beat: {"psnr": pass_time(100)}
    run.train(lambda run: pass_time(1000) and None, nothing)
    seconds = [record["seconds"] for record in run.records if "loss" in record]
    assert len(seconds) == 4
    assert max(seconds) < 1


def test_validation_is_the_mean_psnr_of_the_whole_images(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    nn.init.zeros_(run.model.recon.weight)  # restores nothing
    pairs = [(v.planes["lq"].astype(float), v.planes["gt"].astype(float)) for v in run.validation]
    assert len(pairs) == 4
    psnrs = [10 * math.log10(255**2 / np.mean((lq - gt) ** 2)) for lq, gt in pairs]
    assert run.validate()["psnr"] == pytest.approx(np.mean(psnrs), rel=1e-5)
    first = Run(recipe("training.validation_images=1", folder=tmp_path), data, CPU)
    nn.init.zeros_(first.model.recon.weight)
    assert first.validate()["psnr"] == pytest.approx(psnrs[0], rel=1e-5)


def test_grey_photographs_are_validated_with_as_they_are_trained_on_among_colour(builder, tmp_path):
    rng = np.random.default_rng(0)
    grey = rng.integers(40, 200, (20, 20, 1), np.uint8)
    files = {f"train/{i}.png": rng.integers(40, 200, (20, 20, 3), np.uint8) for i in range(2)}
    folder = builder(
        "loop-grey", {**files, "val/0.png": grey}, colour="rgb", degradation={"kind": "jpeg", "quality": [10]}
    )
    options = recipe("model.in_channels=3", "optimisation.length={steps: 2}", folder=tmp_path)
    run = Run(options, folder, CPU)
    saved: list[int] = []
    run.train(lambda run: saved.append(len(run.scores)), nothing)
    assert saved == [0]  # the checkpoint came before the validation, which may fail
    (version,) = run.validation
    lq = torch.from_numpy(version.planes["lq"] / np.float32(255)).permute(2, 0, 1)[None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        error = (
            run.model.eval().restore(lq).double() - torch.from_numpy(version.planes["gt"] / 255).permute(2, 0, 1)
        ).square()
    assert run.scores[2] == pytest.approx(-10 * math.log10(float(error.mean())), abs=1e-4)


def test_colour_in_the_val_split_of_a_grey_train_split_is_one_line(builder, tmp_path):
    rng = np.random.default_rng(0)
    files = {f"train/{i}.png": rng.integers(40, 200, (20, 20, 1), np.uint8) for i in range(2)}
    files["val/0.png"] = rng.integers(40, 200, (20, 20, 3), np.uint8)
    folder = builder("loop-colour", files, colour="rgb", degradation={"kind": "jpeg", "quality": [10]})
    with pytest.raises(UserError, match=r"photos-val-0 of split val is in colour.*colour: gray"):
        Run(recipe(folder=tmp_path), folder, CPU)


def test_large_images_are_validated_with_in_tiles(builder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    sides = {"train/0.png": 20, "val/0.png": 300}
    files = {name: rng.integers(40, 200, (side, side, 1), np.uint8) for name, side in sides.items()}
    run = Run(recipe(folder=tmp_path), builder("loop-large", files), CPU)
    restored = run.model.restore
    shapes: list[int] = []
    monkeypatch.setattr(run.model, "restore", lambda x: shapes.append(max(x.shape[2:])) or restored(x))
    run.validate()
    assert len(shapes) > len(run.validation)
    assert max(shapes) < 300


def test_what_of_the_data_is_not_used_is_noted_and_goes_into_every_checkpoint(builder, tmp_path):
    rng = np.random.default_rng(0)
    sizes = {"a": 20, "b": 16, "c": 17, "d": 18, "e": 19}
    files = {f"train/{name}.png": rng.integers(40, 200, (side, side, 1), np.uint8) for name, side in sizes.items()}
    folder = builder("loop-small", files)
    options = ["data.patch=20", "optimisation.length={steps: 1}", "data.batch=2"]
    run = Run(recipe(*options, folder=tmp_path), folder, CPU)
    small = "4 of 5 images are smaller than a patch of 20x20, and mirrored at their lower and right edges to fill it: photos-train-b, photos-train-c, photos-train-d and 1 more"
    assert run.notes == [small, "no validation, for task tiny has no val split"]
    assert json.loads(run.save()["state.json"])["notes"] == run.notes
    with pytest.raises(UserError, match=f"^{re.escape(f'{folder}: {small}; mend the data')}"):
        Run(recipe(*options, "training.strict=true", folder=tmp_path), folder, CPU)
    whole = ["data.patch=16", *options[1:], "training.strict=true"]
    assert Run(recipe(*whole, folder=tmp_path), folder, CPU).notes == run.notes[1:]


def test_a_val_split_that_cannot_be_validated_with_is_noted(builder, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{split}/s/{i}.png" for split in ("train", "val") for i in range(2)]
    files = {name: rng.integers(40, 200, (20, 20, 3), np.uint8) for name in names}
    folder = builder("loop-scenes", files, layout="scenes", degradation={"kind": "timelapse"}, colour="rgb")
    path = tmp_path / "scenes.yaml"
    path.write_text(
        RECIPE.replace(RECIPE.splitlines()[1], "model: {name: timelapse, channels: 16, memory: {items: 8}}")
    )
    run = Run(read_recipe(str(path), ["data.patch=16"]), folder, CPU)
    assert run.validation == []
    assert run.notes == ["no validation, for the val split has no clean images to compare with; it is not used"]


def test_validation_changes_no_weight_and_no_statistic(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    before = [tensor.clone() for tensor in everything(run)]
    run.validate()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(run), strict=True))


def test_the_meter_means_over_the_steps_since_the_last_record():
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.start()
        meter.waited()
        meter.add(10, loss=torch.tensor(value))
    first = meter.record(CPU)
    assert first["loss"] == 3
    assert first["images_per_s"] == pytest.approx(30 / first["seconds"])
    assert 0 <= first["wait_s"] <= first["seconds"]
    meter.add(10, loss=torch.tensor(5.0))
    assert meter.record(CPU)["loss"] == 5


def test_images_of_other_channels_than_the_models_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="in_channels is 3 and the images of task tiny have 1"):
        Run(recipe("model.in_channels=3", folder=tmp_path), data, CPU)


# one step


def one_step(
    data: Path, folder: Path, *overrides: str, at: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """(parameters before, their change, gradient norm) of a first step without momentum, at the learning rate of step `at`."""
    run = Run(recipe("optimisation.momentum=0", "optimisation.weight_decay=0", *overrides, folder=folder), data, CPU)
    run.state = State(at, Position())
    with torch.no_grad():
        for p in run.model.parameters():
            p += 0.01  # no bias is 0
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    _, _, norm = run.step(run.loader.to_device(run.loader.cut(Position()), CPU))
    return before, {name: p.detach() - before[name] for name, p in run.model.named_parameters()}, float(norm)


def length(change: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in change.values()))


@pytest.mark.parametrize("lr", [0.1, 0.001])
def test_the_clipping_limits_the_gradient_or_with_over_lr_the_step(lr, data, tmp_path):
    free = ["optimisation.bias_lr=1", f"optimisation.lr={lr}"]
    unclipped = [*free, "optimisation.clip=null", "optimisation.clip_over_lr=false"]
    _, change, norm = one_step(data, tmp_path, *unclipped)
    assert norm > 20
    assert length(change) == pytest.approx(lr * norm, rel=1e-4)
    _, change, unchanged = one_step(data, tmp_path, *free, "optimisation.clip=2", "optimisation.clip_over_lr=false")
    assert unchanged == norm  # what is logged is the norm before clipping
    assert length(change) == pytest.approx(lr * 2, rel=1e-4)
    for at in (0, 8):  # whatever the current learning rate
        _, change, _ = one_step(data, tmp_path, *free, "optimisation.clip=0.005", at=at)
        assert length(change) == pytest.approx(0.005, rel=1e-4)
    _, change, _ = one_step(data, tmp_path, *free, f"optimisation.clip={2 * norm}", "optimisation.clip_over_lr=false")
    assert length(change) == pytest.approx(lr * norm, rel=1e-4)  # a smaller gradient is left as it is


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_convolution_biases_have_a_learning_rate_of_their_own(optimiser, data, tmp_path):
    common = [f"optimisation.optimiser={optimiser}"]
    _, slow, _ = one_step(data, tmp_path, *common, "optimisation.bias_lr=0.1")
    _, full, _ = one_step(data, tmp_path, *common, "optimisation.bias_lr=1")
    biases = [name for name in full if name.endswith(("conv.bias", "conv_a.bias", "conv_b.bias", "recon.bias"))]
    assert len(biases) == 1 + 2 * 2 + 2 + 1
    for name in full:
        share = 0.1 if name in biases else 1
        torch.testing.assert_close(slow[name], share * full[name], rtol=1e-3, atol=1e-7)


def test_weight_decay_pulls_every_parameter_and_is_not_clipped(data, tmp_path):
    before, plain, _ = one_step(data, tmp_path)
    _, decayed, _ = one_step(data, tmp_path, "optimisation.weight_decay=0.5")
    biases = {name for name in before if name.endswith(("conv.bias", "conv_a.bias", "conv_b.bias", "recon.bias"))}
    for name, start in before.items():
        pull = -0.1 * (0.1 if name in biases else 1) * 0.5 * start
        torch.testing.assert_close(decayed[name] - plain[name], pull, rtol=1e-4, atol=1e-6)


def test_every_parameter_is_in_one_group(data, tmp_path):
    run = Run(recipe(folder=tmp_path), data, CPU)
    for o in (run.recipe.optimisation, recipe(*ADAM, folder=tmp_path).optimisation):
        groups = Optimiser(run.model, o).groups
        assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in run.model.parameters())


def test_bf16_keeps_float32_weights_and_trains_to_nearly_the_same(data, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        run = Run(recipe(f"optimisation.precision={precision}", folder=tmp_path), data, CPU)
        run.train(
            nothing, lambda record: losses.append(record["loss"]) if record["step"] == 20 and "loss" in record else 0
        )
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# schedules


def optimisation(**options: Any) -> Optimisation:
    return Optimisation(**{"optimiser": "sgd", "lr": 0.1, "length": {"epochs": 80}} | options)


def test_the_step_schedule_divides_after_each_span_of_epochs():
    o = optimisation(schedule="step", lr_step={"epochs": 20})
    rates = [learning_rate(o, step, 80 * 7, 7) for step in range(80 * 7)]
    assert rates[0] == rates[139] == 0.1
    assert rates[140] == rates[279] == pytest.approx(0.01)
    assert rates[420] == rates[-1] == pytest.approx(0.0001)
    assert len(set(rates)) == 4


def test_the_step_schedule_divides_after_each_span_of_iterations():
    o = optimisation(schedule="step", lr_step={"steps": 200_000}, gamma=0.5)
    at = [learning_rate(o, step, 10**6, 25_000) for step in (0, 199_999, 200_000, 399_999, 400_000)]
    assert at == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_the_cosine_schedule_falls_from_the_learning_rate_to_zero():
    o = optimisation(schedule="cosine")
    assert learning_rate(o, 0, 100, 7) == 0.1
    assert learning_rate(o, 50, 100, 7) == pytest.approx(0.05)
    assert learning_rate(o, 25, 100, 7) == pytest.approx(0.1 * (1 + math.sqrt(0.5)) / 2)
    assert learning_rate(o, 100, 100, 7) == 0


@given(st.integers(1, 10**6), st.data())
def test_no_schedule_ever_rises(total, draw):
    step = draw.draw(st.integers(0, total - 1))
    for o in (optimisation(schedule="cosine"), optimisation(schedule="step", lr_step={"epochs": 2})):
        assert 0.1 >= learning_rate(o, step, total, 9) >= learning_rate(o, step + 1, total, 9) >= 0


def test_the_learning_rate_of_a_run_is_that_of_its_schedule(data, tmp_path):
    records: list[dict[str, Any]] = []
    run = Run(recipe("optimisation.length={epochs: 4}", "training.log_every=1", folder=tmp_path), data, CPU)
    assert run.total == 12
    used = []
    step = run.step
    run.step = lambda batch: (used.append(run.lr()), step(batch))[1]
    run.train(nothing, records.append)
    assert used == [0.1] * 8 + [pytest.approx(0.01)] * 4
    groups = {group["relative_lr"]: group["lr"] for group in run.optimiser.groups}
    assert groups == {1.0: pytest.approx(0.01), 0.1: pytest.approx(0.001)}


def test_a_task_of_scenes_is_told_to_lack_the_targets_that_the_model_needs(builder, tmp_path):
    frames = {
        f"{split}/s/{i}.png": np.full((24, 24, 1), 40 * i + len(split), np.uint8)
        for split in ("train", "val")
        for i in range(2)
    }
    folder = builder("loop-scenes", frames, layout="scenes", degradation={"kind": "timelapse"})
    with pytest.raises(UserError, match=r"^model memnet needs gt, lq, which task \S+ has not$"):
        Run(recipe(folder=tmp_path), folder, torch.device("cpu"))


def test_the_logged_learning_rate_is_the_one_of_that_step(data, tmp_path):
    run = Run(recipe("training.log_every=1", folder=tmp_path), data, torch.device("cpu"))
    run.train(lambda run: None, lambda record: None)
    logged = [record["lr"] for record in run.records if "lr" in record]
    o = run.recipe.optimisation
    assert logged == [learning_rate(o, step, run.total, len(run.loader)) for step in range(run.total)]
    assert logged[-1] > 0


# spikes


@pytest.mark.parametrize(("factor", "log_every", "told"), [(100, 20, True), (3, 20, False), (100, 5, False)])
def test_a_loss_that_stands_out_is_told_with_the_samples_of_its_batch(factor, log_every, told, data, tmp_path):
    """Of 20 steps the eighth; in an interval of 5 steps the median says nothing."""
    run = Run(recipe(f"training.log_every={log_every}", folder=tmp_path), data, CPU)
    lines: list[str] = []
    run.tell = lines.append
    taken: list[list[int]] = []

    def step(batch: dict[str, Tensor]) -> Any:
        taken.append(batch["sample"][batch["weight"] > 0].tolist())
        return torch.tensor(1.0 * factor if len(taken) == 8 else 1.0), {}, torch.zeros(())

    run.step = step
    run.train(nothing, nothing)
    names = [run.loader.name(sample) for sample in taken[7]]
    expected = f"step 8: loss 100, 100 times the median of the steps around it; its {len(names)} samples: {', '.join(names[:3])}"
    assert len(lines) == told
    assert not told or lines[0].startswith(expected)


@pytest.mark.parametrize(
    ("left", "says"), [(7500.0, "2 h 5 min left"), (130.0, "2 min left"), (20.0, "less than 1 min left"), (0.0, None)]
)
def test_the_progress_says_how_long_the_rest_takes(left, says):
    line = _line({"loss": 0.5, "left_s": left})
    assert line == "loss 0.5" + (f"  {says}" if says else "")
