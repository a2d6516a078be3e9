import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import check_finite_in_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from jobs.models.batchnorm import BatchNorm2d, batch_statistics
from jobs.models.memnet import MemNet, Memory
from jobs.recipe import build_model, read_recipe

VARIANTS = (
    {},
    {"long_term": False},
    {"short_term": False},
    {"fe_preact": False},
    {"multi_supervision": False},
    {"share_bn": True},
    {"in_channels": 3},
)


pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed: int = 0, **options: object) -> MemNet:
    """M2R2 of 4 channels in which every parameter and buffer has a value of its own."""
    torch.manual_seed(seed)
    model = MemNet(**{"memory_blocks": 2, "recursions": 2, "channels": 4, "bn_momentum": 0.1} | options)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.bias.normal_(0, 0.1)
            elif isinstance(module, BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        if model.multi_supervision:
            model.ensemble += 0.1 * torch.randn(len(model.ensemble))
    return model


def make_batch(
    n: int = 3, channels: int = 1, height: int = 6, width: int = 5, dtype=torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    gt = torch.rand(n, channels, height, width, generator=generator)
    lq = gt + 0.2 * torch.randn(gt.shape, generator=generator)
    return {
        "gt": gt.to(dtype),
        "lq": lq.to(dtype),
        "weight": torch.ones(n, dtype=dtype),
        "count": torch.tensor(float(n)),
    }


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


# what the paper counts


@pytest.mark.parametrize(
    ("options", "conv_weights", "everything", "depth"),
    [
        ({}, 676_992, 695_497, 80),
        ({"memory_blocks": 4}, 435_328, 447_175, 54),
        ({"recursions": 8}, 726_144, 749_257, 104),
        ({"memory_blocks": 10, "recursions": 10}, 1_373_312, 1_422_029, 212),
    ],
)
def test_parameters_and_depth_are_the_papers(options, conv_weights, everything, depth):
    model = MemNet(**options)
    assert sum(conv.weight.numel() for conv in convolutions(model)) == conv_weights
    assert parameters(model) == everything
    assert model.depth == depth


@pytest.mark.parametrize(
    ("options", "conv_weights", "without_conv_bias"),
    [({"long_term": False}, 590_976, 605_576), ({"short_term": False}, 554_112, 567_560)],
)
def test_the_ablations_have_the_papers_parameters(options, conv_weights, without_conv_bias):
    model = MemNet(**options)
    assert sum(conv.weight.numel() for conv in convolutions(model)) == conv_weights
    assert parameters(model) - sum(conv.bias.numel() for conv in convolutions(model)) == without_conv_bias
    assert model.depth == 80


def test_the_677k_are_made_of_what_the_paper_describes():
    model = MemNet()
    assert model.feature.conv.weight.numel() == model.recon.weight.numel() == 576
    units = [block.conv_a.weight.numel() + block.conv_b.weight.numel() for block in model.blocks]
    assert units == [2 * 36_864] * 6
    assert [block.gate.conv.weight.numel() for block in model.blocks] == [4096 * k for k in range(7, 13)]


def test_batchnorm_layers_are_not_shared():
    def layers(**options: object) -> int:
        return sum(isinstance(module, BatchNorm2d) for module in MemNet(channels=4, **options).modules())

    assert layers() == 85  # 1 + 2MR + M + M
    assert layers(multi_supervision=False) == 80  # one prediction
    assert layers(fe_preact=False) == 84
    assert layers(share_bn=True) == 1 + 2 * 6 + 6 + 6


def test_a_block_holds_two_recursion_convolutions_whatever_r():
    names = [name for name in MemNet(memory_blocks=2, recursions=5, channels=4).state_dict() if name.endswith("weight")]
    assert sum(name.startswith("blocks.0.conv") for name in names) == 2


def test_the_initial_state_is_caffes():
    model = MemNet(memory_blocks=2, recursions=1)
    for conv in convolutions(model):
        assert not conv.bias.any()
        fan_in = conv.weight[0].numel()
        deviation = math.sqrt(2 / fan_in)
        assert float(conv.weight.detach().std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * conv.weight.numel()))
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.001)
            assert (module.weight == 1).all()
            assert not module.bias.any()
    assert model.ensemble.tolist() == [0.5, 0.5]
    assert MemNet(memory_blocks=2, recursions=1, ensemble_init="unit").ensemble.tolist() == [1, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"memory_blocks": 0},
        {"recursions": 0},
        {"channels": -1},
        {"in_channels": 0},
        {"predict_at": 0},
        {"predict_at": 7},
        {"predict_at": 2, "multi_supervision": False},
        {"ensemble_init": "sum"},
        {"loss_scale": "none"},
        {"profile": "printed"},
        {"bn_momentum": 0.0},
        {"bn_momentum": 2.0},
    ],
)
def test_arguments_that_make_no_network_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MemNet(**options)


# what it computes


def plain(model: MemNet, x: Tensor, conv_a: dict[tuple[int, int], Tensor] | None = None) -> tuple[list[Tensor], Tensor]:
    """Predictions and output of a MemNet as the paper writes it, gates with their concatenation, on the model's parameters.

    conv_a: weights of single recursions in place of the block's own, by (block, recursion) from 0.
    """

    def act(bn: nn.BatchNorm2d, x: Tensor) -> Tensor:
        mean, var = (None, None) if model.training else (bn.running_mean, bn.running_var)
        return F.relu(F.batch_norm(x, mean, var, bn.weight, bn.bias, model.training, eps=bn.eps))

    def conv(layer: nn.Conv2d, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return F.conv2d(x, layer.weight if weight is None else weight, layer.bias, padding=layer.padding)

    feature = model.feature
    B = [conv(feature, x) if isinstance(feature, nn.Conv2d) else conv(feature.conv, act(feature.bn, x))]
    for m, block in enumerate(model.blocks):
        H = [B[-1]]
        for r in range(block.recursions):
            bn_a, bn_b = block.bn_a[min(r, len(block.bn_a) - 1)], block.bn_b[min(r, len(block.bn_b) - 1)]
            inner = conv(block.conv_a, act(bn_a, H[-1]), (conv_a or {}).get((m, r)))
            H.append(H[-1] + conv(block.conv_b, act(bn_b, inner)))
        long_term, short_term = B if block.long_term else [], H[1:] if block.short_term else H[-1:]
        B.append(conv(block.gate.conv, act(block.gate.bn, torch.cat([*long_term, *short_term], 1))))
    if not model.multi_supervision:
        y = x + conv(model.recon, act(model.recon_bn[0], B[-1]))
        return [y], y
    y = [x + conv(model.recon, act(bn, B_m)) for bn, B_m in zip(model.recon_bn, B[1:], strict=True)]
    return y, sum(w * y_m for w, y_m in zip(model.ensemble, y, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: "-".join(options) or "default")
def test_it_is_the_papers_network_forward_and_backward(options, training):
    model = tiny(**options).double().train(training)
    batch = make_batch(channels=model.in_channels, dtype=torch.float64)
    results = []
    for network in (lambda x: (model.predictions(x), model(x)), lambda x: plain(model, x)):
        x = batch["lq"].clone().requires_grad_()
        y, output = network(x)
        seed = [torch.full_like(term, k + 1).cumsum(-1) for k, term in enumerate([*y, output])]
        grads = torch.autograd.grad([*y, output], [x, *model.parameters()], seed)
        results.append([*y, output, *grads])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_a_gate_without_the_concatenation_equals_one_with_it(training):
    gate = tiny().blocks[0].gate.double().train(training)  # of 3 memories
    bn, conv = nn.BatchNorm2d(12, momentum=1.0).double().train(training), gate.conv  # as the first batch counts
    bn.load_state_dict(gate.bn.state_dict())
    maps = [torch.randn(3, 4, 6, 5, dtype=torch.float64) * k + k for k in (1, 2, 3)]
    results = []
    for module in (gate, bn):
        leaves = [x.clone().requires_grad_() for x in maps]
        if module is gate:
            out = gate.gather([Memory(x, batch_statistics(x) if training else None) for x in leaves])
        else:
            out = conv(F.relu(bn(torch.cat(leaves, 1))))
        norm = gate.bn if module is gate else bn
        grads = torch.autograd.grad(out, [*leaves, *conv.parameters(), *norm.parameters()], out.detach().sin())
        results.append([out.detach(), *grads, *norm.buffers()])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_gradient_of_a_shared_convolution_is_the_sum_of_its_untied_copies():
    model = tiny(memory_blocks=1).double()
    x = make_batch(dtype=torch.float64)["lq"]
    shared = torch.autograd.grad(model(x).square().sum(), model.blocks[0].conv_a.weight)[0]
    copies = {(0, r): model.blocks[0].conv_a.weight.detach().clone().requires_grad_() for r in range(2)}
    first, second = torch.autograd.grad(plain(model, x, copies)[1].square().sum(), list(copies.values()))
    assert float(first.abs().min()) > 0
    assert float(second.abs().min()) > 0
    torch.testing.assert_close(shared, first + second)


@pytest.mark.parametrize("ensemble_init", ["mean", "unit"])
def test_without_a_residual_every_prediction_is_the_input(ensemble_init):
    model = MemNet(memory_blocks=6, recursions=1, channels=4, ensemble_init=ensemble_init)
    nn.init.zeros_(model.recon.weight)
    x = make_batch()["lq"]
    for y_m in model.predictions(x):
        assert torch.equal(y_m, x)
    expected = x if ensemble_init == "mean" else 6 * x
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)


def test_the_basic_network_returns_its_only_prediction():
    model = tiny(multi_supervision=False).eval()
    assert not hasattr(model, "ensemble")
    x = make_batch()["lq"]
    (y,) = model.predictions(x)
    assert torch.equal(model(x), y)


def test_predict_at_restores_with_that_prediction():
    x = make_batch()["lq"]
    y = tiny().eval().predictions(x)
    for m in (1, 2):
        assert torch.equal(tiny(predict_at=m).eval().restore(x), y[m - 1])


def test_the_long_term_memory_carries_b0_to_the_last_gate():
    for long_term in (True, False):
        model = tiny(recursions=1, long_term=long_term).eval()
        with torch.no_grad():
            for block in model.blocks:
                for conv in (block.conv_a, block.conv_b):
                    conv.weight.zero_()
                    conv.bias.zero_()  # H_r = B_{m-1}
            model.blocks[0].gate.conv.weight.zero_()  # B_1 knows nothing of B_0
            model.blocks[-1].gate.conv.weight[:, 4:] = 0  # only the first memory is left: B_0, or else H_1
        features = []
        model.feature.register_forward_hook(lambda module, args, out, kept=features: kept.append(out))
        y_M = model.predictions(make_batch()["lq"])[-1]
        (gradient,) = torch.autograd.grad(y_M.sum(), features, allow_unused=True)
        assert bool(gradient.any()) == long_term


@pytest.mark.parametrize(("M", "R", "predict_at"), [(1, 1, None), (2, 1, None), (1, 3, None), (2, 2, None), (3, 1, 2)])
def test_an_output_pixel_sees_the_receptive_field(M, R, predict_at):
    torch.manual_seed(0)
    model = MemNet(memory_blocks=M, recursions=R, channels=2, predict_at=predict_at).double().eval()
    for p in model.parameters():
        p.data.abs_()  # no ReLU is off
    side = model.receptive_field
    centre = side // 2 + 2
    x = torch.rand(1, 1, side + 4, side + 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0, 0, centre, centre], x)
    inside = torch.zeros_like(gradient)
    inside[..., 2:-2, 2:-2] = 1
    assert torch.equal((gradient != 0).double(), inside)


def test_the_papers_network_sees_149_pixels():
    assert MemNet(channels=1).receptive_field == 149


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_any_size_is_restored_at_its_size(height, width):
    model = tiny().eval()
    x = torch.rand(2, 1, height, width)
    y = model.restore(x)
    assert y.shape == x.shape
    assert y.isfinite().all()


def test_it_is_fully_convolutional():
    model = tiny(recursions=1).eval()  # sees 13 pixels, 6 to each side
    x = torch.rand(1, 1, 17, 29)
    cut = model.restore(x[..., 2:, 5:])
    torch.testing.assert_close(cut[..., 6:, 6:], model.restore(x)[..., 8:, 11:])


def test_evaluation_changes_no_buffer_and_a_training_step_all_of_them():
    model = tiny()
    for training in (False, True):
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train(training)(make_batch()["lq"])
        assert {not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers()} == {training}


def test_restoring_in_training_mode_is_a_defect():
    with pytest.raises(AssertionError, match="eval"):
        tiny().restore(torch.rand(1, 1, 8, 8))


# the objective


@pytest.mark.parametrize("M", [1, 2, 6])
@torch.no_grad()
def test_the_objective_is_equation_12(M):
    model = tiny(memory_blocks=M, recursions=1).double()
    batch = make_batch(dtype=torch.float64)
    t, N, alpha = batch["gt"], len(batch["gt"]), 1 / (M + 1)
    y = model.predictions(batch["lq"])
    output = sum(w * y_m for w, y_m in zip(model.ensemble, y, strict=True))
    expected = alpha / (2 * N) * sum(float((t[i] - output[i]).square().sum()) for i in range(N))
    expected += (1 - alpha) / (2 * M * N) * sum(float((t[i] - y_m[i]).square().sum()) for y_m in y for i in range(N))
    loss, logs = model.training_loss(batch)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    terms = [float((t - term).square().sum()) / (2 * N) for term in (*y, output)]
    assert float(loss) == pytest.approx(sum(terms) / (M + 1), rel=1e-6)  # all weigh the same
    assert float(logs["psnr"]) == pytest.approx(-10 * math.log10(float((t - output).square().mean())), rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("M", [1, 2, 6])
def test_the_releases_objective_has_every_term_with_weight_1(M):
    released = tiny(memory_blocks=M, recursions=1, loss_scale="sum").double()
    ours = tiny(memory_blocks=M, recursions=1).double()
    batch = make_batch(dtype=torch.float64)
    assert float(released.training_loss(batch)[0]) == pytest.approx((M + 1) * float(ours.training_loss(batch)[0]))


def test_a_profile_is_its_options_and_what_is_given_beside_it():
    def of(**options: object) -> tuple[bool, float, str]:
        model = MemNet(memory_blocks=2, recursions=1, channels=2, **options)
        return isinstance(model.feature, nn.Conv2d), model.ensemble[0].item(), model.loss_scale

    assert of() == of(profile="ours") == (False, 0.5, "mean")
    assert of(profile="paper") == (True, 0.5, "mean")
    assert of(profile="released") == (False, 1, "sum")
    assert of(profile="released", fe_preact=False, ensemble_init="mean", loss_scale="mean") == (True, 0.5, "mean")
    options = read_recipe("memnet-jpeg", ["model.profile=released"]).model
    again = type(options).model_validate(options.model_dump(mode="json"))  # as checkpoints keep it
    assert build_model(again).loss_scale == "sum"


@torch.no_grad()
def test_the_objective_of_the_basic_network_is_equation_4():
    model = tiny(multi_supervision=False).double()
    batch = make_batch(dtype=torch.float64)
    expected = (batch["gt"] - model(batch["lq"])).square().sum() / (2 * 3)
    assert float(model.training_loss(batch)[0]) == pytest.approx(float(expected), rel=1e-6)


def test_the_objective_reaches_every_parameter():
    model = tiny()
    model.training_loss(make_batch())[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def padded(batch: dict[str, Tensor], with_gt: float, with_lq: float) -> dict[str, Tensor]:
    """The batch with two samples of weight 0 more."""
    out = dict(batch)
    for name, value in (("gt", with_gt), ("lq", with_lq)):
        out[name] = torch.cat([batch[name], torch.full((2, *batch[name].shape[1:]), value)])
    out["weight"] = torch.cat([batch["weight"], torch.zeros(2)])
    return out


def test_padding_adds_nothing_to_the_objective():
    """Given equal statistics: with the running ones, that is."""
    model, batch = tiny().eval(), make_batch()
    loss, logs = model.training_loss(batch)
    padded_loss, padded_logs = model.training_loss(padded(batch, 0.9, 0.1))
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_logs["psnr"], logs["psnr"])
    expected = torch.autograd.grad(loss, list(model.parameters()))
    actual = torch.autograd.grad(padded_loss, list(model.parameters()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@torch.no_grad()
def test_the_batch_statistics_see_the_padding():
    """In training the padding has no error of its own, but it is part of the batch that BatchNorm normalises."""
    model, batch = tiny(), make_batch()
    loss = float(model.training_loss(padded(batch, 0.0, 0.5))[0])
    assert float(model.training_loss(padded(batch, 1.0, 0.5))[0]) == loss
    assert float(model.training_loss(padded(batch, 0.0, 0.9))[0]) != pytest.approx(loss, rel=1e-3)


def test_the_mean_over_ranks_is_that_of_the_global_batch():
    model, whole = tiny().eval(), make_batch(5)
    expected, expected_logs = model.training_loss(whole)

    def values(part: slice, padding: bool) -> tuple[Tensor, Tensor]:
        batch = {name: whole[name][part] for name in ("gt", "lq", "weight")} | {"count": torch.tensor(5 / 2)}
        loss, logs = model.training_loss(padded(batch, 0.9, 0.1) if padding else batch)
        return loss, logs["psnr"]

    uneven = [values(slice(0, 3), False), values(slice(3, 5), True)]
    torch.testing.assert_close((uneven[0][0] + uneven[1][0]) / 2, expected)
    nothing_but_padding = [values(slice(0, 5), False), values(slice(0, 0), True)]
    for k, value in enumerate((expected, expected_logs["psnr"])):
        torch.testing.assert_close((nothing_but_padding[0][k] + nothing_but_padding[1][k]) / 2, value)


@pytest.mark.parametrize("options", [{}, {"multi_supervision": False, "fe_preact": False}])
def test_the_gradients_of_the_objective_are_exact(options):
    model = tiny(recursions=1, channels=2, **options).double()
    batch = make_batch(2, height=4, width=3, dtype=torch.float64)
    names = [name for name, _ in model.named_parameters()]

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, lq: Tensor) -> Tensor:
            return self.model.training_loss({**batch, "lq": lq})[0]

    module = Loss()

    def loss(lq: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, {f"model.{n}": v for n, v in zip(names, values, strict=True)}, (lq,))

    assert torch.autograd.gradcheck(loss, (batch["lq"].requires_grad_(), *model.parameters()), eps=1e-7, atol=1e-4)


IMAGES = {
    "black": torch.zeros(2, 1, 12, 12),
    "white": torch.ones(2, 1, 12, 12),
    "grey": torch.full((2, 1, 12, 12), 0.3),
    "checkers": (torch.arange(288).view(2, 1, 12, 12) % 2).float(),
    "one white pixel": F.pad(torch.ones(2, 1, 1, 1), (6, 5, 6, 5)),
    "huge": torch.linspace(-1e4, 1e4, 288).view(2, 1, 12, 12),
}


@pytest.mark.parametrize("name", IMAGES)
def test_bf16_stays_finite_on_any_input(name):
    model, lq = tiny(), IMAGES[name]
    batch = {"lq": lq, "gt": lq.flip(-1), "weight": torch.ones(2), "count": torch.tensor(2.0)}
    check_finite_in_bf16(model, batch)


@torch.no_grad()
def test_under_autocast_the_memories_and_statistics_are_float32():
    model = tiny()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, args, out: seen.extend([*args[0], out]))
    with torch.autocast("cpu", torch.bfloat16):
        y = model.predictions(make_batch()["lq"])
    assert {t.dtype for memory in seen for t in (memory.x, memory.statistics.mean, memory.statistics.var)} == {
        torch.float32
    }
    assert {y_m.dtype for y_m in y} == {torch.float32}
    exact = model.predictions(make_batch()["lq"])
    assert all(float((a - b).abs().max()) < 0.1 for a, b in zip(y, exact, strict=True))
    assert not torch.equal(y[-1], exact[-1])  # the convolutions did run in bf16


# it learns


def rectangles(n: int, rng: np.random.Generator) -> Tensor:
    """Images of 24x24 of a ramp and four rectangles, in [0, 1]."""
    images = np.empty((n, 1, 24, 24), np.float32)
    y, x = np.mgrid[:24, :24] / 23
    for image in images:
        image[0] = 0.5 + 0.4 * (rng.uniform(-1, 1) * (y - 0.5) + rng.uniform(-1, 1) * (x - 0.5))
        for _ in range(4):
            top, left = rng.integers(0, 18, 2)
            height, width = rng.integers(4, 14, 2)
            image[0, top : top + height, left : left + width] = rng.uniform(0, 1)
    return torch.from_numpy(images)


def db(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


def test_it_learns_to_denoise_with_all_of_its_memories():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = MemNet(memory_blocks=2, recursions=2, channels=16, bn_momentum=0.05)
    slices = [
        (block.gate, slice(k, k + 16)) for block in model.blocks for k in range(0, block.gate.bn.num_features, 16)
    ]
    before = [gate.conv.weight[:, columns].detach().flatten().clone() for gate, columns in slices]
    optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    sigma, steps = 50 / 255, 250
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr = 0.1 if step < 0.7 * steps else 0.01
        gt = rectangles(16, rng)
        lq = gt + sigma * torch.from_numpy(rng.standard_normal(gt.shape, np.float32))
        loss, _ = model.training_loss({"gt": gt, "lq": lq, "weight": torch.ones(16), "count": torch.tensor(16.0)})
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01 / lr)
        optimiser.step()
    model.eval()
    gt = rectangles(64, rng)
    lq = gt + sigma * torch.from_numpy(rng.standard_normal(gt.shape, np.float32))
    with torch.no_grad():
        y = model.predictions(lq)
        output = model(lq)
        noisy, final = db(lq, gt), db(output, gt)
        print(f"input {noisy:.2f} dB, output {final:.2f} dB, intermediate {[round(db(y_m, gt), 2) for y_m in y]}")
        assert final >= noisy + 4
        assert final >= max(db(y_m, gt) for y_m in y) - 0.3
        after = [gate.conv.weight[:, columns].flatten() for gate, columns in slices]
        # They turned: weight decay alone shortens them.
        assert all(1 - F.cosine_similarity(a, b, 0) > 1e-4 for a, b in zip(after, before, strict=True))
        model.blocks[-1].gate.conv.weight[:, :32] = 0  # the long-term memories of the last gate
        assert float((model(lq) - output).square().mean().sqrt()) > 1e-3


def test_a_short_run_evaluates_as_it_trains():
    """With the share of 0.001 that long runs have: the running averages are of the batches, and not of where they began."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = MemNet(memory_blocks=2, recursions=1, channels=6, bn_momentum=0.001, recon_init="zero")
    sigma, steps = 50 / 255, 40

    def noisy(n: int) -> tuple[Tensor, Tensor]:
        gt = rectangles(n, rng)
        return gt, gt + sigma * torch.from_numpy(rng.standard_normal(gt.shape, np.float32))

    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        gt, lq = noisy(8)
        loss, _ = model.training_loss({"gt": gt, "lq": lq, "weight": torch.ones(8), "count": torch.tensor(8.0)})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    gt, lq = noisy(32)
    with torch.no_grad():
        evaluated = db(model.eval()(lq), gt)
        trained = db(model.train()(lq), gt)
    print(f"input {db(lq, gt):.2f} dB, batch statistics {trained:.2f} dB, running averages {evaluated:.2f} dB")
    assert trained >= db(lq, gt) + 2
    assert evaluated >= trained - 0.5


def test_a_zero_reconstruction_starts_from_the_identity():
    torch.manual_seed(0)
    lq = torch.rand(2, 1, 20, 24)
    size = {"memory_blocks": 2, "recursions": 1, "channels": 4}
    assert torch.allclose(MemNet(**size, recon_init="zero").eval().restore(lq), lq, atol=1e-6)
    assert not torch.allclose(MemNet(**size).eval().restore(lq), lq, atol=1e-2)
    with pytest.raises(ValueError, match="recon_init"):
        MemNet(**size, recon_init="ones")
