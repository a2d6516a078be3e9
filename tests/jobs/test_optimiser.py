"""Optimisers, clipping, averages and schedules, and that a run with any of them resumes to the bit."""

import functools
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from jobs.models import convolution
from jobs.models.batchnorm import BatchNorm2d, batch_statistics
from jobs.models.convolution import Conv2d
from jobs.models.dynamic import gated, region_affine
from jobs.models.memnet import MemNet
from jobs.recipe import Optimisation, Recipe, read_recipe
from jobs.training import loop
from jobs.training.loop import Run
from jobs.training.optimiser import Average, ConvMuon, Optimiser, adaptive_clip, learning_rate
from pipeline.errors import UserError
from pipeline.files import write_bytes

RECIPE = """
model: {name: memnet, memory_blocks: 2, recursions: 1, channels: 4, bn_momentum: 0.1}
data: {task: tiny, patch: 12, stride: 8, dihedral: false, batch: 8}
optimisation: {optimiser: adam, lr: 0.003, schedule: constant, length: {steps: 8}}
training: {workers: 1, seed: 3, log_every: 1, validate_every: 4, checkpoint_every: 1}
evaluation: {benchmarks: [{benchmark: jpeg-q10, data: images}]}
"""
CPU = torch.device("cpu")
OFF = torch.amp.GradScaler("cpu", enabled=False)
KINDS = ["sgd", "adam", "adamw", "schedule-free-adamw", "lion", "muon"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(builder: Callable[..., Path]) -> Path:
    rng = np.random.default_rng(0)
    names = [f"train/{i}.png" for i in range(3)] + ["val/0.png"]
    files = {name: rng.integers(40, 200, (5, 5, 1), np.uint8).repeat(4, 0).repeat(4, 1) for name in names}
    return builder("optimiser", files, degradation={"kind": "jpeg", "quality": [10, 20]})


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "tiny.yaml").write_text(RECIPE)
    return read_recipe(str(folder / "tiny.yaml"), list(overrides))


def of(**options: Any) -> Optimisation:
    return Optimisation(**{"optimiser": "sgd", "lr": 0.1, "schedule": "constant", "length": {"steps": 100}} | options)


def everything(run: Run) -> list[Any]:
    states = [part.state_dict() for part in run.optimiser.parts]
    numbers = [{k: v for k, v in group.items() if k != "params"} for state in states for group in state["param_groups"]]
    tensors = [t for state in states for values in state["state"].values() for t in values.values()]
    averaged = run._averaged() or {}
    return [*run.model.state_dict().values(), *tensors, *averaged.values(), numbers, run.scaler.state_dict()]


def same(a: Run, b: Run) -> bool:
    pairs = zip(everything(a), everything(b), strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def nothing(_: Any) -> None: ...


# resuming

WAYS = [
    *([f"optimisation.optimiser={kind}"] for kind in KINDS),
    ["optimisation.ema={decay: 0.9, every: 2}"],
    ["optimisation.accumulate=4", "optimisation.clip=0.5"],
    ["optimisation.precision=fp16", "optimisation.ema={decay: 0.5}"],
    ["optimisation.schedule=cosine-restarts", "optimisation.period={steps: 3}", "optimisation.optimiser=adamw"],
]


@pytest.mark.parametrize("overrides", WAYS, ids=lambda way: "-".join(way).replace("optimisation.", ""))
def test_a_run_resumes_to_the_bit_whatever_moves_its_weights(overrides, data, tmp_path):
    asked = recipe(tmp_path, *overrides)
    whole = Run(asked, data, CPU)
    before = [p.clone() for p in whole.model.parameters()]
    saved: dict[int, dict[str, bytes]] = {}
    whole.train(lambda run: saved.update({run.state.step: run.save()}), nothing)
    assert not any(torch.equal(a, b) for a, b in zip(before, whole.model.parameters(), strict=True))
    for step in (1, 3, 4):
        for name, contents in saved[step].items():
            write_bytes(tmp_path / str(step) / name, contents)
        again = Run(asked, data, CPU)
        again.load(tmp_path / str(step))
        again.train(lambda run, step=step: check(run, saved), nothing)
        assert same(whole, again)
        assert whole.scores == again.scores


def check(run: Run, saved: dict[int, dict[str, bytes]]) -> None:
    files = run.save()
    for name in files.keys() - {"metrics.jsonl", "optimiser.pt"}:  # clocks; the zip of torch.save
        assert files[name] == saved[run.state.step][name], name


# the optimisers


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind, data, tmp_path):
    rate = {"sgd": "0.00001", "lion": "0.0003"}.get(kind, "0.001")
    run = Run(
        recipe(
            tmp_path, f"optimisation.optimiser={kind}", f"optimisation.lr={rate}", "optimisation.length={steps: 60}"
        ),
        data,
        CPU,
    )
    losses: list[float] = []
    run.train(nothing, lambda record: losses.append(record["loss"]) if "loss" in record else None)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def hidden(seed: int = 0) -> Any:
    """A model with two hidden convolutions, a first and a last one; its weights in the recipes' layout."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 1, 3)]
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    model.in_channels = 1
    return model


def test_muon_moves_the_convolutions_between_feature_maps_and_adamw_the_rest():
    model = hidden()
    optimiser = Optimiser(model, of(optimiser="muon"))
    kinds = {type(part).__name__: sum(len(g["params"]) for g in part.param_groups) for part in optimiser.parts}
    assert kinds == {"AdamW": 5, "ConvMuon": 2}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimiser.step(0.01, OFF)
    for name in ("1.weight", "2.weight"):
        moved = (before[name] - model.get_parameter(name).detach()).flatten(1)
        values = torch.linalg.svdvals(moved) / (0.01 * 0.2 * math.sqrt(max(moved.shape)))
        assert values.min() > 0.5  # near the nearest semi-orthogonal matrix, in the length of AdamW's step
        assert values.max() < 1.3
        u, _, v = torch.linalg.svd(grads[name].flatten(1), full_matrices=False)
        assert torch.nn.functional.cosine_similarity(moved.flatten(), (u @ v).flatten(), dim=0) > 0.95
    for name in ("0.weight", "3.weight", "1.bias"):
        moved = before[name] - model.get_parameter(name).detach()
        torch.testing.assert_close(moved, 0.01 * grads[name].sign(), rtol=1e-2, atol=1e-5)  # Adam's first step


def test_muon_does_not_depend_on_the_layout_in_memory():
    moved = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = hidden().to(memory_format=layout)
        optimiser = Optimiser(model, of(optimiser="muon"))
        model(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))).square().mean().backward()
        optimiser.step(0.01, OFF)
        moved.append(model[1].weight.detach().clone())
    torch.testing.assert_close(*moved, rtol=0, atol=1e-6)


def test_muon_is_torchs_but_for_its_rounding():
    """torch's orthogonalises in bfloat16."""
    model = hidden()
    optimiser = Optimiser(model, of(optimiser="muon", momentum=0.9, weight_decay=0.1))
    theirs = {name: model.get_parameter(name).detach().flatten(1).clone() for name in ("1.weight", "2.weight")}
    torchs = torch.optim.Muon(
        list(theirs.values()), lr=0.01, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(4):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for name, matrix in theirs.items():
            matrix.grad = model.get_parameter(name).grad.flatten(1)
        optimiser.step(0.01, OFF)
        torchs.step()
        for name, matrix in theirs.items():
            torch.testing.assert_close(model.get_parameter(name).detach().flatten(1), matrix, rtol=0, atol=4e-4)


def test_the_state_of_a_weight_is_where_muon_and_not_adamw_has_it():
    optimiser = Optimiser(hidden(), of(optimiser="muon"))
    assert isinstance(optimiser.parts[1], ConvMuon)
    assert {id(p) for p in optimiser.parts[1].weights}.isdisjoint(
        id(p) for group in optimiser.parts[0].param_groups for p in group["params"]
    )


def test_schedule_free_evaluates_the_average_of_its_steps(data, tmp_path):
    """Defazio et al. 2024: x_t is the mean of z_1..z_t, and y_t = (1 - beta) z_t + beta x_t, for a constant rate."""
    run = Run(recipe(tmp_path, "optimisation.optimiser=schedule-free-adamw"), data, CPU)
    name, p = next(iter(run.model.named_parameters()))
    z: list[Tensor] = []

    def look(run: Run) -> None:
        z.append(run.optimiser.parts[0].state[p]["z"].clone())
        x = torch.stack(z).mean(0)
        found = run.optimiser.evaluated(run.model)
        assert found is not None
        torch.testing.assert_close(found[name], x, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(p.detach(), 0.1 * z[-1] + 0.9 * x, rtol=1e-4, atol=1e-6)

    run.train(look, nothing)
    assert len(z) == 8


@pytest.mark.parametrize("kind", ["lion", "schedule-free-adamw"])
def test_an_optimiser_that_is_not_installed_is_one_line(kind, monkeypatch):
    for module in ("lion_pytorch", "schedulefree"):
        monkeypatch.setitem(sys.modules, module, None)
    line = rf"^optimisation\.optimiser: {kind} is not installed; install it with `pip install 'memoir\[optimisers\]'`$"
    with pytest.raises(UserError, match=line):
        Optimiser(hidden(), of(optimiser=kind))


# groups


def test_weight_decay_spares_what_the_rules_name():
    net = nn.Sequential()
    net.conv, net.norm, net.memory = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4)
    net.in_channels = 1

    def spared(*rules: str) -> set[str]:
        optimiser = Optimiser(net, of(weight_decay=0.1, no_decay=rules))
        names = {id(p): name for name, p in net.named_parameters()}
        return {names[id(p)] for group in optimiser.groups if not group["weight_decay"] for p in group["params"]}

    assert spared() == set()
    assert spared("bias") == {"conv.bias", "norm.bias", "memory.bias"}
    assert spared("norm") == {"norm.weight", "norm.bias"}
    assert spared("memory") == {"memory.weight", "memory.bias"}
    assert spared("norm", "bias", "memory") == set(dict(net.named_parameters())) - {"conv.weight"}


def test_parts_of_a_network_have_rates_of_their_own_or_stay(data, tmp_path):
    rates = "{blocks: 0.1, blocks.0.conv_a: 0, blocks.1.gate.conv.bias: 0.5}"
    asked = [
        "optimisation.optimiser=sgd",
        "optimisation.lr=0.00001",
        "optimisation.momentum=0",
        "optimisation.bias_lr=0.5",
    ]
    moved = []
    for more in ([], [f"optimisation.lr_of={rates}"]):
        run = Run(recipe(tmp_path, *asked, *more), data, CPU)
        run.model.double()
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        _, cut = next(run.loader.batches(run.state.position))
        run.step({n: v.double() if v.is_floating_point() else v for n, v in run.loader.to_device(cut, CPU).items()})
        moved.append({name: p.detach() - before[name] for name, p in run.model.named_parameters()})
    for name, step in moved[0].items():
        share = 0.1 if name.startswith("blocks.") else 1.0
        share = 0 if name.startswith("blocks.0.conv_a.") else 0.5 if name == "blocks.1.gate.conv.bias" else share
        torch.testing.assert_close(moved[1][name], share * step, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ({"layer": 0.1}, r"^optimisation\.lr_of: the model has no layer; .*known: 0, 0\.bias"),
        ({"1.wight": 0.1}, r"the model has no 1\.wight; did you mean '1\.weight'"),
        (dict.fromkeys("0123", 0), "no parameter of the model moves"),
    ],
)
def test_rates_of_what_is_not_there_are_one_line(rates, says):
    with pytest.raises(UserError, match=says):
        Optimiser(hidden(), of(lr_of=rates))


def test_a_compiled_step_is_the_same_within_rounding_and_resumes_to_the_bit(data, tmp_path, monkeypatch):
    """By what comes before the compiler: the graph of forward and backward. See the slow test for the compiler itself."""
    monkeypatch.setattr(loop.torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    eager, whole = (Run(recipe(tmp_path, f"optimisation.compile={on}"), data, CPU) for on in ("false", "true"))
    files: dict[int, dict[str, bytes]] = {}
    for run in (eager, whole):
        run.train(lambda run: files.update({run.state.step: run.save()}), lambda record: None)
    for (name, a), b in zip(eager.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    assert [r["loss"] for r in whole.records if "loss" in r] == pytest.approx(
        [r["loss"] for r in eager.records if "loss" in r], rel=1e-5
    )
    for name, contents in files[min(files)].items():
        write_bytes(tmp_path / "saved" / name, contents)
    again = Run(recipe(tmp_path, "optimisation.compile=true"), data, CPU)
    again.load(tmp_path / "saved")
    again.train(lambda run: None, lambda record: None)
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


class Functions(nn.Module):
    """The functions of autograd that are ours and not MemNet's, on maps that are large enough for all of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = Conv2d(2, 4, 3, padding=1, bias=False), BatchNorm2d(4)
        self.weight, self.bias = nn.Parameter(torch.rand(4, 1, 1)), nn.Parameter(torch.rand(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.conv(x)
        z = self.bn(z, batch_statistics(z, of_rank=True))
        mask = z.mean(1, keepdim=True) > 0
        scale = z.std(1, keepdim=True)
        z = region_affine(z, mask, scale, 1 - scale, 1e-5, self.weight, self.bias)
        return gated(z, z.flip(1), 1e-4, unbiased=True).square().mean()


def test_functions_with_gradients_of_their_own_compile_to_the_same_within_rounding(monkeypatch):
    monkeypatch.setattr(convolution, "SLOW", True)
    x = torch.rand(1, 2, 96, 96).contiguous(memory_format=torch.channels_last)
    found = []
    for how in (lambda model: model, functools.partial(torch.compile, backend="aot_eager", fullgraph=True)):
        model = Functions()
        loss = how(model)(x)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for eager, whole in zip(*found, strict=True):
        torch.testing.assert_close(whole, eager, rtol=1e-4, atol=1e-4 * float(eager.abs().max()))


@pytest.mark.slow
def test_the_compiler_makes_the_same_step_within_rounding_and_its_work_is_kept(data, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    small = ["model.channels=2", "optimisation.length={steps: 2}"]
    losses = []
    for on in ("false", "true"):
        run = Run(recipe(tmp_path, *small, f"optimisation.compile={on}"), data, CPU)
        run.train(lambda run: None, lambda record: None)
        losses.append([r["loss"] for r in run.records if "loss" in r])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert list((tmp_path / "compiled").rglob("*.so"))


def test_a_missing_compiler_is_one_line_before_anything_starts(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UserError, match=r"^optimisation\.compile: there is no no-such-compiler here; install it, set CXX,"
    ):
        Run(recipe(tmp_path, "optimisation.compile=true"), data, CPU)


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon", "schedule-free-adamw"])
def test_weight_decay_is_decoupled_from_the_gradient(kind):
    """Without a gradient, a weight shrinks by lr x decay, which Adam's L2 would make a whole step."""
    model = hidden()
    optimiser = Optimiser(model, of(optimiser=kind, weight_decay=0.5))
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step(0.1, OFF)
    for start, p in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), start * (1 - 0.1 * 0.5), rtol=1e-5, atol=1e-7)


def test_betas_are_the_optimisers_own_unless_the_recipe_has_others():
    found = {}
    for kind in ("adam", "adamw", "lion", "schedule-free-adamw"):
        for betas in (None, (0.8, 0.95)):
            found[kind, betas] = Optimiser(hidden(), of(optimiser=kind, betas=betas, momentum=0.7)).groups[0]["betas"]
    assert found["lion", None] == (0.9, 0.99)
    assert {found[kind, None] for kind in ("adam", "adamw", "schedule-free-adamw")} == {(0.7, 0.999)}
    assert {value for (_, betas), value in found.items() if betas} == {(0.8, 0.95)}


# clipping


def clipped(o: Optimisation, grads: list[Tensor]) -> tuple[float, list[Tensor]]:
    model = hidden()
    optimiser = Optimiser(model, o)
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad.clone()
    return float(optimiser.clip(0.1)), [p.grad for p in model.parameters()]


def test_gradients_are_clipped_by_value():
    grads = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) for i, p in enumerate(hidden().parameters())
    ]
    norm, found = clipped(of(clip=0.5, clip_by="value"), grads)
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads)), rel=1e-5)  # before
    for grad, limited in zip(grads, found, strict=True):
        assert torch.equal(limited, grad.clamp(-0.5, 0.5))


def test_adaptive_clipping_limits_each_output_channel_to_its_weights():
    weight, bias = nn.Parameter(torch.randn(3, 2, 3, 3)), nn.Parameter(torch.tensor([0.0, 2.0]))
    weight.grad, bias.grad = torch.randn(3, 2, 3, 3), torch.tensor([1.0, 3.0])
    weight.grad[0] *= 1e-4  # small enough already
    before = weight.grad.clone()
    adaptive_clip([weight, bias, nn.Parameter(torch.ones(1))], 0.1)
    for i in range(3):
        ratio = float(weight.grad[i].norm() / weight[i].detach().norm())
        assert ratio == pytest.approx(float(before[i].norm() / weight[i].detach().norm()) if i == 0 else 0.1, rel=1e-4)
        assert torch.nn.functional.cosine_similarity(weight.grad[i].flatten(), before[i].flatten(), dim=0) > 0.9999
    torch.testing.assert_close(bias.grad, torch.tensor([1.0, 3.0]) * 0.2 / math.sqrt(10))  # a vector is one unit


# the average


@given(decay=st.floats(0.01, 0.999), every=st.integers(1, 4), warmup=st.booleans(), steps=st.integers(0, 12))
def test_the_average_is_the_weighted_sum_of_all_weights(decay, every, warmup, steps):
    model = nn.BatchNorm2d(2)
    average = Average(model, of(ema={"decay": decay, "every": every, "warmup": warmup}).ema)
    rng = np.random.default_rng(steps)
    expected = model.weight.detach().double().clone()
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(rng.normal(size=2)))
            model.num_batches_tracked += 1
        average.update(step)
        if step % every == 0:
            n = step // every
            d = min(decay, (1 + n) / (10 + n)) if warmup else decay
            expected = d * expected + (1 - d) * model.weight.detach().double()
    torch.testing.assert_close(average.weights["weight"].double(), expected, rtol=1e-5, atol=1e-6)
    assert int(average.weights["num_batches_tracked"]) == steps // every * every


def test_the_average_is_what_is_validated_and_saved_and_the_training_goes_on_without_it(data, tmp_path):
    plain, averaged = (Run(recipe(tmp_path, *more), data, CPU) for more in ([], ["optimisation.ema={decay: 0.8}"]))
    for run in (plain, averaged):
        run.train(nothing, nothing)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), averaged.model.parameters(), strict=True))
    assert plain.scores != averaged.scores
    for name, contents in averaged.save().items():
        write_bytes(tmp_path / "saved" / name, contents)
    held, raw = (load_file(tmp_path / "saved" / f"{name}.safetensors") for name in ("model", "training"))
    assert all(torch.equal(raw[name], tensor) for name, tensor in averaged.model.state_dict().items())
    assert all(torch.equal(held[name], tensor) for name, tensor in averaged.average.weights.items())
    assert not torch.equal(held["recon.weight"], raw["recon.weight"])
    plain.model.load_state_dict(held)
    assert plain.validate() == {"psnr": averaged.scores[8]} == averaged.validate()


# parts


@pytest.mark.parametrize("number", [0, 1], ids=["full", "padded"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(number, data, tmp_path, monkeypatch):
    """For a model without statistics of the batch. Of the last batch of an epoch half is padding, and so are whole parts."""
    monkeypatch.setattr(MemNet, "train", lambda self, mode=True: self)
    found = []
    for k in (1, 2, 4):
        run = Run(
            recipe(tmp_path, f"optimisation.accumulate={k}", "optimisation.optimiser=sgd", "data.batch=16"), data, CPU
        )
        run.model.double()
        for module in run.model.modules():
            module.training = False
        _, cut = next(itertools.islice(run.loader.batches(run.state.position), number, None))
        batch = {n: v.double() if v.is_floating_point() else v for n, v in run.loader.to_device(cut, CPU).items()}
        assert int(batch["weight"].sum()) == (16 if number == 0 else 8)
        loss, logs, norm = run.step(batch)
        found.append((torch.cat([p.grad.flatten() for p in run.model.parameters()]), loss, norm, logs.keys()))
    for gradient, loss, norm, logged in found[1:]:
        torch.testing.assert_close(gradient, found[0][0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(torch.stack((loss, norm)), torch.stack(found[0][1:3]), rtol=1e-9, atol=0)
        assert logged == found[0][3]


def test_what_parts_change_is_told(data, tmp_path):
    assert not any("parts of a worker's batch" in note for note in Run(recipe(tmp_path), data, CPU).notes)
    (note,) = [n for n in Run(recipe(tmp_path, "optimisation.accumulate=2"), data, CPU).notes if "parts" in n]
    assert note.startswith("2 parts of a worker's batch: ")


# fp16


def test_a_scale_that_is_too_large_costs_a_step_and_is_halved(data, tmp_path):
    run = Run(recipe(tmp_path, "optimisation.precision=fp16"), data, CPU)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    before = [p.detach().clone() for p in run.model.parameters()]
    _, cut = next(run.loader.batches(run.state.position))
    run.step(run.loader.to_device(cut, CPU))
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    assert run.scaler.get_scale() == 2.0**99
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    run.model.recon.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match=r"not finite|loss is nan"):
        run.step(run.loader.to_device(cut, CPU))


# schedules


def rates(o: Optimisation, total: int) -> list[float]:
    return [learning_rate(o, step, total, 10) for step in range(total)]


def test_the_linear_and_the_constant_schedule():
    assert rates(of(), 5) == [0.1] * 5
    assert rates(of(schedule="linear", lr_end=0.05), 5) == pytest.approx([0.1, 0.09, 0.08, 0.07, 0.06])


def test_the_cosine_restarts_after_periods_that_grow():
    found = rates(of(schedule="cosine-restarts", period={"steps": 10}, period_factor=2, lr_end=0.01), 70)
    assert [step for step in range(70) if found[step] == 0.1] == [0, 10, 30]
    assert found[5] == found[20] == found[50] == pytest.approx(0.055)
    assert min(found) > 0.01
    assert found[:10] == pytest.approx(
        [learning_rate(of(schedule="cosine", lr_end=0.01), step, 10, 10) for step in range(10)]
    )


def test_one_cycle_rises_over_the_warm_up_and_falls_to_the_end():
    found = rates(of(schedule="one-cycle", warmup={"steps": 30}, lr_end=0.001), 100)
    assert found[0] == pytest.approx(0.1 / 25)
    assert found[15] == pytest.approx((0.1 + 0.004) / 2)
    assert found[30] == 0.1 == max(found)
    assert found[65] == pytest.approx(0.0505)
    assert found == sorted(found[:30]) + sorted(found[30:], reverse=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "cosine-restarts"}, "needs period"),
        ({"schedule": "cosine", "period": {"steps": 3}}, "no other has one"),
        ({"schedule": "one-cycle"}, "needs warmup"),
        ({"schedule": "constant", "lr_end": 0.01}, "constant does not"),
        ({"clip_by": "value"}, "clip_by needs clip"),
        ({"clip_by": "value", "clip": 1, "clip_over_lr": True}, "clip_over_lr is for clip_by norm"),
        ({"betas": (0.9, 0.99)}, "sgd has momentum"),
        ({"optimiser": "adam", "betas": (0.9, 1.0)}, "from 0 to below 1"),
        ({"optimiser": "schedule-free-adamw", "schedule": "linear"}, "averages by itself"),
        ({"optimiser": "schedule-free-adamw", "ema": {}}, "averages by itself"),
        ({"optimiser": "muon", "precision": "fp16"}, "muon: precision"),
        ({"ema": {"decay": 1.0}}, "less than 1"),
        ({"lr_of": {"blocks": -1.0}}, "0 and above"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        of(**options)


def test_parts_that_do_not_divide_and_what_is_not_portable_are_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=r"optimisation\.accumulate: 3 does not divide a worker's 8 samples \(data\.batch 8, 1 workers\)",
    ):
        recipe(tmp_path, "optimisation.accumulate=3")
    for wrong in ("optimiser=muon", "optimiser=lion", "precision=fp16", "precision=tf32"):
        with pytest.raises(UserError, match="is not portable"):
            recipe(tmp_path, "training.portable=true", f"optimisation.{wrong}")
