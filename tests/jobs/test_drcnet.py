# ruff: noqa: E741 - I is the paper's name of the degraded image
import copy
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import check_finite_in_bf16
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.models.contrastive import ratio
from jobs.models.drcnet import (
    ContrastiveOptions,
    DFROptions,
    DRCNet,
    RegionNorm,
    distances,
    energy_attention,
    inverse_energy,
    mixup,
    other_images,
    region_normalise,
)
from jobs.models.dynamic import SLOPE
from jobs.models.vgg import VGG19Features, VGGOptions
from jobs.training.loop import Objective
from pipeline.errors import UserError

DFR_VARIANTS = ("base", "sf", "ea", "sf_id", "sf_ea", "full")
NETWORKS: tuple[dict[str, object], ...] = (  # options of the module
    *({"branches": branches} for branches in DFR_VARIANTS),
    {"region_norm": "literal"},
    {"response_kernel": 7},
    {"sf_levels": (1,)},
    {"profile": "released"},
)
STAND_IN = VGGOptions(path="stand-in")
LAMBDAS = (1.0, 0.95, 0.90)

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(seed: int = 0, **options: object) -> DRCNet:
    """Width 4, 3 levels, the stand-in of VGG19, and a threshold that about half of the pixels pass.

    options: of the module, of the contrastive term, or the width.
    """
    torch.manual_seed(seed)
    dfr = {"t": 0.5} | {key: value for key, value in options.items() if key in DFROptions.model_fields}
    cr = {"vgg": STAND_IN} | {key: value for key, value in options.items() if key in ContrastiveOptions.model_fields}
    rest = {key: value for key, value in options.items() if key not in {*dfr, *cr}}
    groups = {"dfr": DFROptions(**dfr), "contrastive": ContrastiveOptions(**cr)}
    model = DRCNet(**{"width": 4, "levels": 3} | groups | rest)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("norm.conv.weight"):  # responses of both sides of 0.5
                p.normal_()
                p -= p.mean((2, 3), keepdim=True)
            elif name.endswith("norm.weight"):
                p.uniform_(0.5, 1.5)
            elif name.endswith("norm.bias"):
                p.normal_(0, 0.5)
    return model


def make_batch(n: int = 3, size: int = 16, dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    gt = torch.rand(n, 3, size, size, generator=generator)
    lq = gt + 0.2 * torch.randn(gt.shape, generator=generator)
    batch = {"gt": gt, "lq": lq, "weight": torch.ones(n), **more}
    return {name: value.to(dtype) for name, value in batch.items()} | {"count": torch.tensor(float(n))}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def closest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any gradient, relative to the largest value in it."""
    return max(float((ours[k] - g).abs().max() / g.abs().max().clamp_min(1e-12)) for k, g in theirs.items())


# what the paper counts

# The release's InstanceNorm inside the region normalisation is affine, which adds its bias once for each region. Without it:
AFFINE = 1920


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 18_974_518 - AFFINE),  # Table 4: 18.9M
        ({"response_kernel": 7}, 18_975_798 - AFFINE),
        ({"profile": "released"}, 18_975_798),
        ({"branches": "sf_ea", "response_kernel": 7}, 18_621_622 - AFFINE),  # 18.6M
        ({"branches": "sf_id", "response_kernel": 7}, 15_803_574 - AFFINE),  # 15.8M
        ({"branches": "sf", "response_kernel": 7}, 15_449_398 - AFFINE),  # 15.4M
        ({"branches": "base"}, 12_693_382),  # 12.7M
        ({"branches": "ea"}, 13_047_558),  # 13.1M, with the identity branch
    ],
)
def test_the_parameters_are_those_of_table_4(options, count):
    with torch.device("meta"):
        assert parameters(DRCNet(dfr=DFROptions(**options))) == count


def test_the_affine_parameters_left_out_are_two_for_each_normalised_channel():
    with torch.device("meta"):
        model = DRCNet()
    halves = [block.conv.out_channels // 4 for stage in (model.stage_1, model.stage_2) for block in stage.encoder]
    assert halves == [32, 64, 128, 256] * 2
    assert 2 * sum(halves) == AFFINE


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"width": 5}, "width"),
        ({"width": 0}, "width"),
        ({"levels": 1}, "levels"),
        ({"levels": 6}, "levels"),
        ({"dfr": DFROptions(sf_levels=(4,))}, "sf_levels"),
        ({"dfr": DFROptions(sf_levels=(0, 2)), "levels": 2}, "sf_levels"),
    ],
)
def test_arguments_that_make_no_network_are_refused(options, named):
    with torch.device("meta"), pytest.raises(ValueError, match=named) as refusal:
        DRCNet(**options)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("group", "options"),
    [
        (DFROptions, {"branches": "ddf"}),
        (DFROptions, {"response_kernel": 5}),
        (DFROptions, {"region_norm": "batch"}),
        (DFROptions, {"delta": 0.0}),
        (DFROptions, {"t": 0.0}),
        (DFROptions, {"t": 1.0}),
        (DFROptions, {"sf_levels": (-1,)}),
        (DFROptions, {"sf_levels": (0,), "branches": "base"}),
        (DFROptions, {"sf_levels": (0,), "branches": "ea"}),
        (DFROptions, {"affine": True, "region_norm": "literal"}),
        (DFROptions, {"profile": "printed"}),
        (DFROptions, {"profile": []}),
        (ContrastiveOptions, {"profile": "printed"}),
        (ContrastiveOptions, {"ratio": "rank"}),
        (ContrastiveOptions, {"negatives": "inter"}),
        (ContrastiveOptions, {"outputs": "first"}),
        (ContrastiveOptions, {"mix_role": "both"}),
        (ContrastiveOptions, {"alpha": -0.1}),
        (ContrastiveOptions, {"start": -0.1}),
        (ContrastiveOptions, {"start": 1.0}),
        (ContrastiveOptions, {"ramp": -0.1}),
        (ContrastiveOptions, {"ramp": 1.5}),
        (ContrastiveOptions, {"lambdas": ()}),
        (ContrastiveOptions, {"lambdas": (1.0, 0.0)}),
        (ContrastiveOptions, {"lambdas": (1.1,)}),
        (ContrastiveOptions, {"layers": (1, 6)}),
        (ContrastiveOptions, {"weights": (1.0,)}),
    ],
)
def test_options_that_make_no_module_or_no_objective_are_refused(group, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        group(**options)


def test_the_defaults_are_the_papers():
    arguments = inspect.signature(DRCNet.__init__).parameters
    dfr, contrastive_ = arguments["dfr"].default, arguments["contrastive"].default
    assert (dfr.branches, dfr.delta, dfr.t, dfr.response_kernel) == ("full", 1e-6, 0.75, 3)
    assert (contrastive_.negatives, contrastive_.lambdas, contrastive_.alpha) == ("intra", LAMBDAS, 0.04)


def test_a_profile_is_its_values_and_what_is_given_beside_it():
    released = {"delta": 1e-4, "unbiased": True, "t": 0.8, "response_kernel": 7, "affine": True}
    assert DFROptions(profile="released") == DFROptions(**released, profile="released")
    assert {name: getattr(DFROptions(profile="released"), name) for name in released} == released
    assert DFROptions(profile="released", t=0.6).t == 0.6
    assert DFROptions(profile="paper").t == 0.75
    cr = ContrastiveOptions(profile="released")
    assert (cr.alpha, cr.ramp, cr.outputs, cr.ratio, cr.mix_role) == (0.05, 0, "all", "batch", "degraded")
    assert (ContrastiveOptions(profile="paper").ramp, ContrastiveOptions().ramp) == (0, 0.05)
    for options in (DFROptions(profile="released", t=0.6), ContrastiveOptions(profile="released", alpha=0.1)):
        dumped = options.model_dump(mode="json")  # as recipes are kept: every value stands there
        assert type(options).model_validate(dumped) == options
        assert type(options).model_validate(dumped | {"profile": "ours"}).model_dump(exclude={"profile"}) == (
            options.model_dump(exclude={"profile"})
        )


def test_only_mixtures_need_negatives_of_the_task():
    assert tiny().inputs == ("lq", "gt", "intra negatives")
    for others in (tiny(negatives="extra"), tiny(negatives="own"), tiny(contrastive=None)):
        assert others.inputs == ("lq", "gt")


# energy attention


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e4])
def test_a_constant_map_has_the_factor_sigmoid_of_one_half(value):
    v = torch.full((2, 3, 8, 9), value)
    assert torch.equal(inverse_energy(v, 1e-6), torch.full_like(v, 0.5))
    torch.testing.assert_close(energy_attention(v, 1e-6), 0.62246 * v, rtol=1e-5, atol=0)


def test_the_mean_of_the_inverse_energy_is_three_quarters():
    v = torch.randn(2, 3, 8, 9, dtype=torch.float64) * torch.tensor([0.1, 1, 30]).view(1, 3, 1, 1)
    for delta, tolerance in ((1e-12, 1e-9), (1e-6, 1e-4)):
        mean = inverse_energy(v, delta).mean((2, 3))
        torch.testing.assert_close(mean, torch.full_like(mean, 0.75), rtol=0, atol=tolerance)


def test_with_one_pixel_less_the_mean_of_the_inverse_energy_is_less():
    v = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mean = inverse_energy(v, 1e-12, unbiased=True).mean((2, 3))
    torch.testing.assert_close(mean, torch.full_like(mean, 0.5 + 19 / 20 / 4))
    assert torch.equal(inverse_energy(torch.ones(1, 1, 1, 1), 1e-4, unbiased=True), torch.full((1, 1, 1, 1), 0.5))


def test_a_single_outlier_has_the_largest_inverse_energy():
    v = torch.zeros(1, 1, 5, 13, dtype=torch.float64)  # N = 64 zeros
    v[..., 2, 3] = 7
    assert float(inverse_energy(v, 1e-12)[..., 2, 3]) == pytest.approx(64 / 4 + 0.5)


def test_the_inverse_energy_inverts_equation_8_channel_by_channel():
    v, delta = torch.randn(2, 3, 4, 5, dtype=torch.float64), 0.3
    for sample in range(2):
        for channel in range(3):
            x = v[sample, channel]
            mu = sum(x.flatten().tolist()) / 20
            var = sum((value - mu) ** 2 for value in x.flatten().tolist()) / 20
            e = 4 * (var + delta) / ((x - mu) ** 2 + 2 * var + 2 * delta)
            torch.testing.assert_close(inverse_energy(v, delta)[sample, channel], 1 / e)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9), width=st.integers(1, 9), scale=st.sampled_from([1e-6, 1.0, 1e4]), seed=st.integers(0, 99)
)
def test_the_factor_is_between_0_6225_and_1(height, width, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    v = scale * torch.randn(2, 3, height, width, generator=generator)
    factor = torch.sigmoid(inverse_energy(v, 1e-6))
    assert float(factor.min()) >= 0.6224
    assert float(factor.max()) < 1


# region normalisation


def masks(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(*shape, generator=generator) < torch.tensor([0.5, 0.1, 0.9]).view(3, 1, 1, 1)


def by_filling(z: Tensor, mask: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Region normalisation as its authors compute it, sample by sample. weight, bias: of the InstanceNorm."""
    samples = []
    for x, m in zip(z, mask, strict=True):
        out = torch.zeros_like(x)
        for region in (m[0], ~m[0]):
            mean = (x * region).sum((1, 2), keepdim=True) / region.sum().clamp_min(1)
            filled = torch.where(region, x, mean)  # its mean is `mean`, and where it is filled the normal is 0
            normal = F.instance_norm(filled[None], weight=weight, bias=bias, eps=1e-5)[0]
            out = out + normal * (region.sum().clamp_min(1).double() / region.numel()).sqrt()
        samples.append(out)
    return torch.stack(samples)


def test_two_regions_are_normalised_as_by_filling_and_instancenorm():
    z, mask = torch.randn(3, 4, 9, 8, dtype=torch.float64) * 0.01 + 2, masks(3, 1, 9, 8)  # eps shows
    torch.testing.assert_close(region_normalise(z, mask), by_filling(z, mask), rtol=1e-7, atol=1e-9)


def test_an_affine_normalisation_adds_its_bias_once_for_each_region():
    torch.manual_seed(0)
    norm, z = RegionNorm(DFROptions(t=0.5, affine=True), 4).double(), torch.randn(4, 4, 9, 8, dtype=torch.float64)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    z[3] = z[3, :, :1, :1]  # one response everywhere but at the border
    for t, regions in ((0.5, 2), (1e-9, 1)):
        norm.t = t
        m = norm.response(z)
        assert bool(((m > t).double().mean((1, 2, 3)) < 1).any()) == (regions == 2)
        expected = by_filling(z, m > t, norm.weight.flatten(), norm.bias.flatten())
        torch.testing.assert_close(norm(z), expected * (1 + norm.gamma(m)) + norm.beta(m), rtol=1e-7, atol=1e-9)


def test_the_literal_normalisation_is_equations_5_to_7():
    z, mask = torch.randn(3, 4, 9, 8, dtype=torch.float64) * 0.01 + 2, masks(3, 1, 9, 8)
    for k in range(3):
        for c in range(4):
            values = z[k, c][mask[k, 0]]
            mu = values.mean()
            sigma = ((values - mu).square().sum() / len(values) + 1e-5).sqrt()
            torch.testing.assert_close(region_normalise(z, mask, "literal")[k, c], (z[k, c] - mu) / sigma)


@pytest.mark.parametrize("region_norm", ["two_region", "literal"])
@pytest.mark.parametrize("value", [False, True])
def test_with_one_region_only_it_is_instancenorm(region_norm, value):
    z = 3 * torch.randn(3, 4, 9, 8) + 5
    mask = torch.full((3, 1, 9, 8), value)
    assert float((region_normalise(z, mask, region_norm) - F.instance_norm(z)).abs().max()) < 2e-6


@torch.no_grad()
@pytest.mark.parametrize("t", [1e-9, 1 - 1e-9])
def test_without_gamma_and_beta_a_mask_of_one_value_makes_the_module_instancenorm(t):
    torch.manual_seed(0)
    norm = RegionNorm(DFROptions(t=t), 6)
    for conv in (norm.gamma, norm.beta):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    z = torch.randn(2, 6, 8, 8)
    assert float((norm(z) - F.instance_norm(z)).abs().max()) < 2e-6


def test_gamma_and_beta_are_convolutions_of_the_response():
    torch.manual_seed(0)
    norm, z = RegionNorm(DFROptions(t=0.5), 6).double(), torch.randn(2, 6, 8, 8, dtype=torch.float64)
    pooled = torch.stack([z.mean(1), z.max(1).values], 1)
    m = torch.sigmoid(F.conv2d(pooled, norm.conv.weight, padding=1))
    torch.testing.assert_close(norm.response(z), m)
    gamma, beta = (F.conv2d(m, conv.weight, conv.bias, padding=1) for conv in (norm.gamma, norm.beta))
    torch.testing.assert_close(norm(z), (1 + gamma) * region_normalise(z, m > 0.5) + beta)


@pytest.mark.parametrize("region_norm", ["two_region", "literal"])
def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(region_norm):
    z, mask = torch.randn(3, 4, 9, 8), masks(3, 1, 9, 8)
    other = torch.cat([z[:1], 100 * z[1:]])
    other_mask = torch.cat([mask[:1], ~mask[1:]])
    alone = region_normalise(z, mask, region_norm)[0]
    assert torch.equal(region_normalise(other, other_mask, region_norm)[0], alone)
    model = tiny(region_norm=region_norm).eval()
    images = torch.rand(3, 3, 16, 16)
    changed = torch.cat([images[:1], 1 - images[1:] * 0.3])
    torch.testing.assert_close(model.restore(changed)[:1], model.restore(images)[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("region_norm", ["two_region", "literal"])
def test_an_offset_costs_the_statistics_no_precision(region_norm):
    mask = masks(3, 1, 32, 32)
    mask[1] = False
    mask[1, 0, 4, 4] = True  # a region of one pixel
    z = 50 + 0.1 * torch.randn(3, 4, 32, 32)
    if region_norm == "literal":
        z, mask = z[[0, 2]], mask[[0, 2]]
    exact = region_normalise(z.double(), mask, region_norm)
    assert float((region_normalise(z, mask, region_norm) - exact).abs().max()) < 2e-3  # of z's own 4e-6 in 0.1


def test_the_gradients_of_the_normalisation_and_the_attention_are_exact():
    z = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    mask = masks(3, 1, 4, 4)[[0, 2]]
    for norm in ("two_region", "literal"):
        assert torch.autograd.gradcheck(lambda z, norm=norm: region_normalise(z, mask, norm), z)
        for value in (True, False):
            assert torch.autograd.gradcheck(
                lambda z, norm=norm, value=value: region_normalise(z, torch.full_like(mask, value), norm), z
            )
    assert torch.autograd.gradcheck(lambda z: energy_attention(z, 1e-6), z)


def test_the_response_is_trained_through_gamma_and_beta_only():
    torch.manual_seed(0)
    z = torch.randn(2, 4, 8, 8)
    for path in (True, False):
        norm = RegionNorm(DFROptions(t=0.5), 4)
        if not path:
            nn.init.zeros_(norm.gamma.weight)
            nn.init.zeros_(norm.beta.weight)
        assert 0.1 < float((norm.response(z) > 0.5).float().mean()) < 0.9
        norm(z).square().sum().backward()
        assert bool(norm.conv.weight.grad.any()) == path


# the network


def plain_outputs(model: DRCNet, I: Tensor, dfr: str, t: float, region_norm: str, released: bool) -> list[Tensor]:
    """DRCNet written out, on the model's parameters: each branch with a convolution of its own."""
    delta = 1e-4 if released else 1e-6
    P = dict(model.named_parameters())

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        weight = P[f"{name}.weight"]
        options = {"padding": weight.shape[2] // 2} | options
        return F.conv2d(x, weight, P.get(f"{name}.bias"), **options)

    def lrelu(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    def attention(v: Tensor) -> Tensor:
        mu, var = v.mean((2, 3), keepdim=True), v.var((2, 3), unbiased=released, keepdim=True)
        return lrelu(v * torch.sigmoid((v - mu) ** 2 / (4 * (var + delta)) + 0.5))

    def normalised(name: str, u: Tensor) -> Tensor:
        half = u.shape[1] // 2
        if f"{name}.norm.conv.weight" not in P:
            return u
        z = u[:, :half]
        m = torch.sigmoid(conv(f"{name}.norm.conv", torch.cat([z.mean(1, True), z.max(1, True).values], 1)))
        normal = region_normalise(z, m.detach() > t, region_norm)
        if released:
            f = (m.detach() > t).double().mean((2, 3), keepdim=True)
            least = 1 / z[0, 0].numel()  # of an empty region
            twice = f.clamp_min(least).sqrt() + (1 - f).clamp_min(least).sqrt()
            normal = P[f"{name}.norm.weight"] * normal + P[f"{name}.norm.bias"] * twice
        a = normal * (1 + conv(f"{name}.norm.gamma", m)) + conv(f"{name}.norm.beta", m)
        return torch.cat([a, u[:, half:]], 1)

    def block(name: str, x: Tensor) -> Tensor:
        weight, bias = P[f"{name}.conv.weight"], P[f"{name}.conv.bias"]
        if dfr == "base":
            return lrelu(conv(f"{name}.conv", x))
        if dfr == "ea":
            return attention(conv(f"{name}.conv", x)) + conv(f"{name}.identity", x)
        o = len(weight) // (2 if dfr in ("sf_ea", "full") else 1)
        out = lrelu(normalised(name, F.conv2d(x, weight[:o], bias[:o], padding=1)))  # SF
        if dfr in ("sf_ea", "full"):
            out = out * attention(F.conv2d(x, weight[o:], bias[o:], padding=1))  # EA
        return out + conv(f"{name}.identity", x) if dfr in ("sf_id", "full") else out

    def resblock(name: str, x: Tensor) -> Tensor:
        return lrelu(conv(f"{name}.conv_b", lrelu(conv(f"{name}.conv_a", x)))) + conv(f"{name}.shortcut", x)

    def unet(name: str, x: Tensor, before: tuple | None) -> tuple[list[Tensor], list[Tensor]]:
        e, d = [], [None, None]
        for i in range(3):
            x = block(f"{name}.encoder.{i}", x)
            if i < 2:
                if before:
                    x = x + conv(f"{name}.csff_e.{i}", before[0][i]) + conv(f"{name}.csff_d.{i}", before[1][i])
                e.append(x)
                if dfr in ("base", "ea"):
                    x = F.max_pool2d(x, 2)
                else:
                    assert P[f"{name}.down.{i}.weight"].shape[2:] == (4, 4)
                    x = conv(f"{name}.down.{i}", x, stride=2, padding=1)
        for i in (1, 0):
            up = F.conv_transpose2d(x, P[f"{name}.up.{i}.weight"], P[f"{name}.up.{i}.bias"], stride=2)
            x = d[i] = resblock(f"{name}.decoder.{i}", torch.cat([up, conv(f"{name}.skip.{i}", e[i])], 1))
        return e, d

    before = unet("stage_1", conv("stage_1.stem", I), None)
    d_0 = before[1][0]
    out_1 = conv("sam.image", d_0) + I
    f = d_0 + conv("sam.features", d_0) * torch.sigmoid(conv("sam.attention", out_1))
    x = conv("merge", torch.cat([conv("stage_2.stem", I), f], 1))
    return [out_1, conv("tail", unet("stage_2", x, before)[1][0]) + I]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_it_is_the_papers_network_forward_and_backward(options):
    model = tiny(**options).double()
    I = make_batch(2, dtype=torch.float64)["lq"]
    results = []
    for network in (
        model.outputs,
        lambda x: plain_outputs(
            model,
            x,
            options.get("branches", "full"),
            0.5,
            options.get("region_norm", "two_region"),
            "profile" in options,
        ),
    ):
        x = I.clone().requires_grad_()
        outputs = network(x)
        seed = [(k + 1) * torch.linspace(-1, 1, out.numel()).double().view_as(out) for k, out in enumerate(outputs)]
        results.append([*outputs, *torch.autograd.grad(outputs, [x, *model.parameters()], seed)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    assert torch.equal(model(I), model.outputs(I)[1])


def test_both_regions_occur_in_the_tiny_network():
    """Else the tests with it would test InstanceNorm."""
    model, fractions = tiny(), []
    for module in model.modules():
        if isinstance(module, RegionNorm):
            module.register_forward_hook(
                lambda module, args, out: fractions.append(float((module.response(args[0]) > module.t).float().mean()))
            )
    model(make_batch()["lq"])
    assert len(fractions) == 6
    assert sum(0.1 < f < 0.9 for f in fractions) >= 3, fractions


def test_only_the_given_levels_are_normalised():
    model = tiny(sf_levels=(0, 2))
    for stage in (model.stage_1, model.stage_2):
        assert [block.norm is not None for block in stage.encoder] == [True, False, True]


def test_delta_and_t_reach_their_places():
    I = make_batch()["lq"]
    for changed in ({"delta": 1.0}, {"t": 0.45}, {"unbiased": True}):  # the tiny maps have 256 to 16 pixels
        assert not torch.allclose(tiny(**changed)(I), tiny()(I), atol=1e-5)


def test_without_tail_and_image_convolutions_both_outputs_are_the_input():
    model = tiny()
    for conv in (model.tail, model.sam.image):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    I = make_batch()["lq"]
    out_1, out_2 = model.outputs(I)
    assert torch.equal(out_1, I)
    assert torch.equal(out_2, I)


def without_attention(u: Tensor, v: Tensor, delta: float, unbiased: bool) -> Tensor:
    return F.leaky_relu(u, SLOPE) * F.leaky_relu(v, SLOPE)


@torch.no_grad()
def test_removing_the_attention_changes_the_output(monkeypatch):
    model, I = tiny(), make_batch()["lq"]
    with_attention = model(I)
    monkeypatch.setattr("jobs.models.drcnet.gated", without_attention)
    assert float((model(I) - with_attention).abs().max()) > 1e-3


@settings(max_examples=20, deadline=None)
@given(height=st.integers(16, 37), width=st.integers(16, 37), levels=st.sampled_from([2, 4, 5]))
def test_any_size_is_restored_at_its_size(height, width, levels):
    model = DRCNet(width=2, levels=levels).eval()
    x = torch.rand(2, 3, height, width)
    y = model.restore(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert model.size_multiple == 2 ** (levels - 1)
    if height % model.size_multiple == width % model.size_multiple == 0:
        assert torch.equal(y, model(x))


def test_an_odd_size_is_continued_by_reflection_at_its_far_sides():
    model = tiny().eval()
    x = torch.rand(1, 3, 17, 22)
    whole = torch.cat([x, x[:, :, [15, 14, 13]]], 2)
    whole = torch.cat([whole, whole[..., [20, 19]]], 3)
    assert whole.shape[2:] == (20, 24)
    torch.testing.assert_close(model.restore(x), model(whole)[..., :17, :22])


def test_evaluation_computes_what_training_does_and_there_are_no_buffers():
    model, I = tiny(), make_batch()["lq"]
    assert torch.equal(model.train()(I), model.eval().restore(I))
    assert not list(model.buffers())
    assert not model.restore(I).requires_grad


def test_restoring_in_training_mode_is_a_defect():
    with pytest.raises(AssertionError, match="eval"):
        tiny().restore(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("shape", [(1, 1, 16, 16), (1, 3, 18, 16), (1, 3, 16, 18), (3, 16, 16)])
def test_shapes_that_do_not_fit_are_refused_in_one_line(shape):
    with pytest.raises(ValueError, match="multiples of 4") as error:
        tiny()(torch.rand(shape))
    assert "\n" not in str(error.value)


# the contrastive term


def identity_cr(X: Tensor, I: Tensor, J: Tensor, role: str = "degraded") -> Tensor:
    """Of each sample, with the identity as G."""
    lambdas = torch.tensor(LAMBDAS, dtype=X.dtype).expand(len(X), -1)
    return ratio(
        *distances([X], [J], [list(mixup(I, J, lambdas, role))], lambdas.t()), (1.0,), X.new_ones(len(X)), "sample"
    )


PATH = (0.0, 0.5, 0.9, 0.95, 0.999)


def test_the_term_falls_along_the_way_from_the_input_to_the_target():
    I, J = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    values = torch.stack([identity_cr((1 - s) * I + s * J, I, J) for s in PATH])
    assert (values.diff(dim=0) < 0).all()
    expected = [(1 - s) / sum(k * abs(1 - s - k) for k in LAMBDAS) for s in PATH]  # c_k = lambda_k
    torch.testing.assert_close(values, torch.tensor(expected).double()[:, None].expand(-1, 2), rtol=1e-4, atol=0)


def test_the_roles_of_equation_11_as_printed_do_not():
    """A negative control: with lambda on the target, the negatives are nearly the target."""
    I, J = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    values = torch.stack([identity_cr((1 - s) * I + s * J, I, J, "clean") for s in PATH])
    rises = values.diff(dim=0) > 0
    assert rises.any(0).all()
    assert rises[:2].all()  # from the input to 0.9 of the way


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), role=st.sampled_from(["degraded", "clean"]))
def test_the_term_is_not_negative_and_0_at_the_target(seed, role):
    generator = torch.Generator().manual_seed(seed)
    X, I, J = torch.rand(3, 2, 3, 6, 6, generator=generator)
    assert (identity_cr(X, I, J, role) > 0).all()
    assert torch.equal(identity_cr(J, I, J, role), torch.zeros(2))
    assert identity_cr(I, I, J, role).isfinite().all()
    assert torch.equal(identity_cr(J, J, J, role), torch.zeros(2))  # the input is clean: 0 / 1e-7


def test_the_gradient_of_the_term_is_exact():
    torch.manual_seed(0)
    maps = [torch.randn(5, 2, 2, 3, 3, dtype=torch.float64) for _ in range(2)]
    c = torch.tensor([[1.0, 1], [0.95, 0.5], [0.9, 0.8]], dtype=torch.float64)

    def term(a: Tensor, b: Tensor) -> Tensor:
        terms = distances([a, b], [m[1] for m in maps], [list(m[2:]) for m in maps], c)
        return ratio(*terms, (0.25, 1.0), c.new_ones(2), "sample")

    assert torch.autograd.gradcheck(term, [m[0].requires_grad_() for m in maps])


def plain_cr(model: DRCNet, X: Tensor, J: Tensor, negatives: list[list[Tensor]], c: list[list[float]]) -> list[float]:
    """The term of each sample in plain loops. negatives, c: n of them for each sample."""
    values = []
    for i in range(len(X)):
        layers, omegas = model.contrastive.maps
        G = VGG19Features(layers, STAND_IN, normalise=model.contrastive.vgg_norm)
        G_X, G_J = G(X[i : i + 1]), G(J[i : i + 1])
        value = 0.0
        for k, omega in enumerate(omegas):
            away = sum(
                weight * float((G_X[k] - G(N[None])[k]).abs().mean())
                for N, weight in zip(negatives[i], c[i], strict=True)
            )
            value += omega * float((G_X[k] - G_J[k]).abs().mean()) / (away + 1e-7)
        values.append(value)
    return values


def term_of(model: DRCNet, X: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return model._regularisation(model.contrastive, [X], batch)[0]


@pytest.mark.parametrize("vgg_norm", [False, True])
@pytest.mark.parametrize("role", ["degraded", "clean"])
def test_intra_cr_mixes_input_and_target(vgg_norm, role):
    model, batch = tiny(mix_role=role, vgg_norm=vgg_norm), make_batch()
    I, J, X = batch["lq"], batch["gt"], make_batch()["gt"].flip(-1)
    assert model.contrastive.maps == ((1, 6, 11), (1 / 16, 1 / 8, 1 / 4))
    a, b = (I, J) if role == "degraded" else (J, I)
    negatives = [[k * a[i] + (1 - k) * b[i] for k in LAMBDAS] for i in range(3)]
    expected = plain_cr(model, X, J, negatives, [list(LAMBDAS)] * 3)
    assert term_of(model, X, batch).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_batchs_mixing_weights_take_the_place_of_the_constructors():
    lambdas = torch.tensor([[1.0, 0.5], [0.9, 0.8], [0.7, 0.6]])
    model, batch = tiny(), make_batch(lambdas=lambdas)
    I, J, X = batch["lq"], batch["gt"], make_batch()["gt"].flip(-1)
    negatives = [[float(k) * I[i] + (1 - float(k)) * J[i] for k in lambdas[i]] for i in range(3)]
    expected = plain_cr(model, X, J, negatives, lambdas.tolist())
    assert term_of(model, X, batch).tolist() == pytest.approx(expected, rel=1e-4)
    same = make_batch(lambdas=torch.tensor(LAMBDAS).expand(3, -1))
    assert torch.equal(term_of(model, X, same), term_of(model, X, make_batch()))


def test_stored_negatives_give_the_numbers_of_planned_ones():
    model, batch = tiny(), make_batch(lambdas=torch.tensor([[1.0, 0.5], [0.9, 0.8], [0.7, 0.6]]))
    X = make_batch()["gt"].flip(-1)
    stored = mixup(batch["lq"], batch["gt"], batch["lambdas"], "degraded").transpose(0, 1).contiguous()
    expected = term_of(model, X, batch)
    assert torch.equal(term_of(model, X, batch | {"negatives": stored}), expected)
    assert not torch.allclose(term_of(model, X, batch | {"negatives": stored.flip(0)}), expected)  # they are used
    clean = tiny(mix_role="clean")
    assert torch.equal(term_of(clean, X, batch | {"negatives": stored}), term_of(clean, X, batch))
    without = make_batch(negatives=mixup(batch["lq"], batch["gt"], torch.tensor(LAMBDAS).expand(3, -1), "degraded"))
    without["negatives"] = without["negatives"].transpose(0, 1)
    assert torch.equal(term_of(model, X, without), term_of(model, X, make_batch()))


@pytest.mark.parametrize(
    "more",
    [
        {"lambdas": torch.ones(3)},
        {"lambdas": torch.ones(2, 3)},
        {"negatives": torch.rand(3, 2, 3, 16, 16)},  # without lambdas there are three
        {"negatives": torch.rand(3, 3, 3, 16, 8)},
    ],
)
def test_negatives_that_do_not_fit_are_refused(more):
    with pytest.raises(ValueError, match="shape"):
        tiny().training_loss(make_batch(**more))


def test_own_cr_has_the_input_as_its_only_negative_and_five_layers():
    model, batch = tiny(negatives="own"), make_batch(2, size=32)
    assert model.contrastive.maps == ((1, 6, 11, 20, 29), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1))
    X = batch["gt"].flip(-1)
    expected = plain_cr(model, X, batch["gt"], [[N] for N in batch["lq"]], [[1.0]] * 2)
    assert term_of(model, X, batch).tolist() == pytest.approx(expected, rel=1e-4)


def test_extra_cr_rolls_the_batch():
    model, batch = tiny(negatives="extra"), make_batch(5)
    X, I = batch["gt"].flip(-1), batch["lq"]
    negatives = [[I[(i + k) % 5] for k in (1, 2, 3)] for i in range(5)]
    expected = plain_cr(model, X, batch["gt"], negatives, [[1.0] * 3] * 5)
    assert term_of(model, X, batch).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [[1], [1, 1], [1, 1, 1, 1, 1], [1, 0], [1, 0, 1, 1], [0, 0], [0, 1, 1, 0, 1]])
@pytest.mark.parametrize("n", [1, 3])
def test_the_others_are_true_samples_and_never_oneself(weights, n):
    images, true = torch.arange(len(weights)).view(-1, 1, 1, 1), torch.tensor(weights) > 0
    others, has = other_images(images, true, 0, len(weights), n)
    assert others.shape == (n, len(weights), 1, 1, 1)
    alone = sum(weights) < 2
    for i, weight in enumerate(weights):
        assert bool(has[i]) == (weight > 0 and not alone)
        if has[i]:
            found = others[:, i].flatten().tolist()
            assert i not in found
            assert all(weights[k] for k in found)
            assert len(set(found)) == min(n, sum(weights) - 1)
    part, part_has = other_images(images, true, len(weights) - 1, 1, n)
    assert torch.equal(part, others[:, -1:])
    assert torch.equal(part_has, has[-1:])


def test_extra_cr_needs_another_image():
    with pytest.raises(ValueError, match="2 or more"):
        tiny(negatives="extra").training_loss(make_batch(1))


def test_extra_cr_of_a_sample_with_padding_only_is_0():
    model, batch = tiny(negatives="extra"), make_batch(2)
    batch["weight"][1] = 0
    loss, logs = model.training_loss(batch)
    assert torch.equal(loss, logs["l1"])
    assert float(logs["cr"]) == 0


def test_no_gradient_reaches_vgg_the_target_or_the_negatives():
    model = tiny()
    leaves = {name: value.requires_grad_() for name, value in make_batch().items() if name in ("lq", "gt")}
    leaves["negatives"] = torch.rand(3, 3, 3, 16, 16).requires_grad_()
    leaves["lambdas"] = torch.rand(3, 3).requires_grad_()
    X = torch.rand(3, 3, 16, 16, requires_grad=True)
    for given_ in (leaves, {name: leaves[name] for name in ("lq", "gt", "lambdas")}):
        term_of(model, X, make_batch() | given_).sum().backward()
        assert X.grad.any()
        assert all(leaf.grad is None for leaf in leaves.values())
    assert all(t.grad is None for pair in model._features.weights.values() for t in pair)


def test_the_target_and_the_negatives_pass_vgg_once_together_and_keep_no_graph():
    model, calls = tiny(outputs="all"), []
    features = VGG19Features((1, 6, 11), STAND_IN)

    def counted(x: Tensor) -> list[Tensor]:
        calls.append((len(x), x.requires_grad))
        return features(x)

    model._features = counted
    leaves = {name: value.requires_grad_() for name, value in make_batch().items() if name in ("lq", "gt")}
    model.training_loss(make_batch() | leaves)
    assert calls == [(3 * (1 + 3), False), (3, True), (3, True)]


def test_vgg_is_neither_trained_nor_saved_and_read_only_when_needed(tmp_path):
    model = tiny()
    names = set(model.state_dict())
    model.training_loss(make_batch())
    assert set(model.state_dict()) == set(dict(model.named_parameters())) == names
    assert not any("vgg" in name or "feature_" in name for name in names)
    path = str(tmp_path / "vgg19.safetensors")
    absent = tiny(vgg=VGGOptions(path=path))
    absent.eval().restore(make_batch()["lq"])
    with pytest.raises(UserError, match="no VGG19 weights there"):
        absent.training_loss(make_batch())
    tiny(contrastive=None).training_loss(make_batch())
    (tmp_path / "vgg19.safetensors").write_bytes(b"another file")
    with pytest.raises(UserError, match="sha256"):
        tiny(vgg=VGGOptions(path=path, sha256="0" * 64)).training_loss(make_batch())


# the objective


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{"contrastive": None}, {}, {"outputs": "all"}, {"negatives": "extra"}, {"alpha": 0.3}]
)
def test_the_objective_is_equation_13_with_both_outputs_supervised(options):
    model, batch = tiny(**options), make_batch()
    loss, logs = model.training_loss(batch)
    with torch.no_grad():
        outputs, J = model.outputs(batch["lq"]), batch["gt"]
    l1 = sum(float((out - J).abs().mean()) for out in outputs)
    assert float(logs["l1"]) == pytest.approx(l1, rel=1e-5)
    cr = 0.0
    if model.contrastive is not None:
        for X in outputs if model.contrastive.outputs == "all" else outputs[1:]:
            cr += float(term_of(model, X, batch).mean())
        assert float(logs["cr"]) == pytest.approx(cr, rel=1e-5)
        assert cr > 0
    else:
        assert set(logs) == {"l1", "psnr"}
    assert float(loss) == pytest.approx(l1 + options.get("alpha", 0.04) * cr, rel=1e-5)
    assert float(logs["psnr"]) == pytest.approx(-10 * math.log10(float((outputs[1] - J).square().mean())), rel=1e-5)


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("supervised", ["last", "all"])
def test_the_gradient_is_that_of_the_written_out_objective_and_so_is_its_share(supervised, over):
    model, batch = tiny(outputs=supervised, alpha=0.5, ratio=over).double(), make_batch(dtype=torch.float64)
    loss, logs = model.training_loss(batch)
    loss.backward()
    actual = gradients(model)
    model.zero_grad()
    I, J = batch["lq"], batch["gt"]
    G = VGG19Features((1, 6, 11), STAND_IN)
    outputs = model.outputs(I)
    for out in outputs:
        out.retain_grad()
    lambdas = torch.tensor(LAMBDAS, dtype=torch.float64).expand(3, -1)
    G_N, G_J = [G(N) for N in mixup(I, J, lambdas, "degraded")], G(J)
    cr = torch.zeros(()).double()
    for X in outputs if supervised == "all" else outputs[1:]:
        for k, (omega, x) in enumerate(zip(model.contrastive.maps[1], G(X), strict=True)):
            to_J = (x - G_J[k]).abs().mean((1, 2, 3))
            to_N = sum(c * (x - N[k]).abs().mean((1, 2, 3)) for c, N in zip(LAMBDAS, G_N, strict=True))
            each = to_J.mean() / (to_N.mean() + 1e-7) if over == "batch" else to_J / (to_N + 1e-7)
            cr = cr + omega * each.mean()
    assert float(logs["cr"]) == pytest.approx(cr.item(), rel=1e-9)
    l1 = sum((out - J).abs().mean() for out in outputs)
    (l1 + 0.5 * cr).backward(retain_graph=True)
    assert closest(actual, gradients(model)) < 1e-9
    targets = outputs if supervised == "all" else outputs[1:]
    norms = [
        torch.stack([g.flatten(1).norm(dim=1) for g in torch.autograd.grad(term, targets, retain_graph=True)]).norm(
            dim=0
        )
        for term in (0.5 * cr, l1)
    ]
    assert float(logs["cr_grad_share"]) == pytest.approx(float((norms[0] / (norms[0] + norms[1])).mean()), rel=1e-6)
    assert 0.01 < float(logs["cr_grad_share"]) < 0.99


@torch.no_grad()
def test_the_share_of_a_perfect_output_is_a_number():
    model, batch = tiny(), make_batch()
    for conv in (model.tail, model.sam.image):
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    batch["gt"] = batch["lq"]
    loss, logs = model.training_loss(batch)
    assert float(loss) == 0
    assert float(logs["cr_grad_share"]) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("start", "ramp", "shares"),
    [
        (0.0, 0.05, {0.0: 0, 0.025: 0.5, 0.05: 1, 0.9: 1}),
        (0.5, 0.2, {0.0: 0, 0.5: 0, 0.55: 0.25, 0.7: 1, 0.99: 1}),
        (0.0, 0.0, {0.0: 1, 0.5: 1}),
        (0.5, 0.0, {0.0: 0, 0.49: 0, 0.5: 1}),
    ],
)
def test_alpha_rises_over_its_share_of_the_run(start, ramp, shares):
    model = tiny(start=start, ramp=ramp)
    for progress, share in shares.items():
        loss, logs = model.training_loss(make_batch() | {"progress": torch.tensor(progress)})
        assert float(loss) == pytest.approx(float(logs["l1"]) + 0.04 * share * float(logs["cr"]), rel=1e-5)
    loss, logs = model.training_loss(make_batch())
    assert float(loss) == pytest.approx(float(logs["l1"]) + 0.04 * float(logs["cr"]), rel=1e-5)


def test_by_default_training_begins_without_the_term():
    model, batch = tiny(), make_batch() | {"progress": torch.tensor(0.0)}
    model.training_loss(batch)[0].backward()
    actual = gradients(model)
    plain = tiny(contrastive=None)
    plain.training_loss(batch)[0].backward()
    assert closest(actual, gradients(plain)) < 1e-6


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
def test_the_objective_reaches_every_parameter(options):
    model = tiny(**options)
    model.training_loss(make_batch())[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any(), name


def padded(batch: dict[str, Tensor], value: float, n: int = 2) -> dict[str, Tensor]:
    """The batch with n samples of weight 0 more."""
    out = dict(batch)
    for name in ("gt", "lq", "lambdas", "weight"):
        if name in batch:
            more = torch.full((n, *batch[name].shape[1:]), 0.0 if name == "weight" else value)
            out[name] = torch.cat([batch[name], more])
    return out


@pytest.mark.parametrize("negatives", [None, "intra", "extra", "own"])
def test_padding_changes_nothing(negatives):
    model = tiny(contrastive=None) if negatives is None else tiny(negatives=negatives)
    size = 32 if negatives == "own" else 16
    batch = make_batch(size=size, lambdas=torch.tensor([[1.0, 0.9]] * 3))
    loss, logs = model.training_loss(batch)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for value in (0.0, 0.7):
        padded_loss, padded_logs = model.training_loss(padded(batch, value))
        torch.testing.assert_close(padded_loss, loss)
        for name in logs:
            torch.testing.assert_close(padded_logs[name], logs[name])
        actual = torch.autograd.grad(padded_loss, list(model.parameters()))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-6)


def test_the_mean_over_ranks_is_that_of_the_global_batch():
    model, whole = tiny(), make_batch(5, lambdas=torch.rand(5, 2) * 0.5 + 0.5)
    expected, expected_logs = model.training_loss(whole)

    def values(part: slice, padding: bool) -> tuple[Tensor, dict[str, Tensor]]:
        batch = {name: value[part] for name, value in whole.items() if name != "count"} | {"count": torch.tensor(2.5)}
        return model.training_loss(padded(batch, 0.9) if padding else batch)

    for parts in ((slice(0, 3), slice(3, 5)), (slice(0, 5), slice(0, 0))):
        results = [values(parts[0], False), values(parts[1], True)]
        torch.testing.assert_close((results[0][0] + results[1][0]) / 2, expected)
        for name in ("l1", "cr", "cr_grad_share"):
            torch.testing.assert_close((results[0][1][name] + results[1][1][name]) / 2, expected_logs[name])


@pytest.mark.parametrize(
    "options", [{}, {"negatives": "extra", "region_norm": "literal"}, {"outputs": "all", "branches": "ea"}]
)
def test_the_gradient_of_the_objective_is_exact(options):
    """Against finite differences along random directions of all parameters."""
    model, batch = tiny(width=2, alpha=0.5, **options).double(), make_batch(2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    model.training_loss(batch)[0].backward()
    values = list(model.parameters())
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in values]
        slope = sum(float((p.grad * d).sum()) for p, d in zip(values, direction, strict=True))
        sides = []
        for step in (1e-7, -2e-7):
            with torch.no_grad():
                for p, d in zip(values, direction, strict=True):
                    p.add_(d, alpha=step)
            sides.append(float(model.training_loss(batch)[0].detach()))
        with torch.no_grad():
            for p, d in zip(values, direction, strict=True):
                p.add_(d, alpha=1e-7)
        assert (sides[0] - sides[1]) / 2e-7 == pytest.approx(slope, rel=1e-4)


IMAGES = {
    "black": torch.zeros(2, 3, 16, 16),
    "white": torch.ones(2, 3, 16, 16),
    "grey": torch.full((2, 3, 16, 16), 0.3),
    "checkers": (torch.arange(2 * 3 * 256).view(2, 3, 16, 16) % 2).float(),
    "one white pixel": F.pad(torch.ones(2, 3, 1, 1), (8, 7, 8, 7)),
    "far out of range": torch.linspace(-20, 20, 2 * 3 * 256).view(2, 3, 16, 16),
}


@pytest.mark.parametrize(
    "options", [{}, {"t": 0.75}, {"region_norm": "literal"}, {"negatives": "extra", "outputs": "all"}]
)
@pytest.mark.parametrize("name", IMAGES)
def test_bf16_stays_finite_on_any_input(name, options):
    model, lq = tiny(**options), IMAGES[name]
    batch = {"lq": lq, "gt": lq.flip(-1), "weight": torch.ones(2), "count": torch.tensor(2.0)}
    check_finite_in_bf16(model, batch)


@torch.no_grad()
def test_under_autocast_the_convolutions_are_bf16_and_the_normalisation_is_not():
    model, I = tiny(), make_batch()["lq"]
    exact = model(I)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(I)
        norm = RegionNorm(DFROptions(t=0.5), 4)
        m = norm.response(torch.randn(1, 2, 8, 8))
        assert m.dtype == torch.bfloat16  # by itself; not inside the module:
        out = norm(torch.randn(1, 2, 8, 8))
        assert out.dtype == torch.float32
    assert y.dtype == torch.float32
    assert 0 < float((y - exact).abs().max()) < 0.3


def test_a_map_in_bf16_has_its_energy_in_float32():
    v = (50.1 + 0.3 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))).bfloat16()
    exact = energy_attention(v.double(), 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        actual = energy_attention(v, 1e-6)
    assert actual.dtype == torch.bfloat16
    # Two roundings to 8 bits, of the factor and of the product; a mean in bf16 would be off by a third of a deviation.
    assert float(((actual.double() - exact) / exact).abs().max()) < 2 * 2**-8


@torch.no_grad()
def test_a_map_in_bf16_is_thresholded_in_float32():
    torch.manual_seed(0)
    norm, z = RegionNorm(DFROptions(t=0.5), 4), torch.randn(2, 4, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        actual = norm(z)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual, norm(z.float()).bfloat16())


# two ranks

RUNS: dict[str, tuple[dict[str, object], int]] = {  # the options, and the samples of the global batch
    "intra": ({}, 4),
    "all": ({"outputs": "all", "branches": "ea"}, 4),
    "uneven": ({}, 3),  # the second rank has one true sample and one of padding
    "batch": ({"ratio": "batch", "outputs": "all"}, 4),
    "uneven batch": ({"ratio": "batch"}, 3),
    "extra": ({"negatives": "extra"}, 2),  # one sample a rank
    "none": ({"contrastive": None}, 4),
}


def global_batch(n: int) -> dict[str, Tensor]:
    """In float64: what differs is then the semantics, not the rounding."""
    lambdas = torch.linspace(0.5, 1, 2 * n).view(n, 2)
    return make_batch(n, dtype=torch.float64, lambdas=lambdas, progress=torch.tensor(0.04))


def rank(index: int, folder: Path) -> None:
    """One of two gloo ranks: half of each global batch; leaves what it computed in folder/<index>.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=index, world_size=2)
    results = {}
    for name, (options, n) in RUNS.items():
        whole, each = global_batch(n), (n + 1) // 2
        batch = {key: value[index * each : (index + 1) * each] for key, value in whole.items() if value.dim()}
        if len(batch["lq"]) < each:
            batch = padded(batch, 0.3, each - len(batch["lq"]))
        objective = DistributedDataParallel(Objective(tiny(**options).double()), forward_sync_buffers=False)
        loss, logs = objective(batch | {"count": torch.tensor(n / 2), "progress": whole["progress"]})
        loss.backward()
        results[name] = gradients(objective.module.model), {"loss": loss.detach(), **logs}
    torch.save(results, folder / f"{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(rank, (folder,), nprocs=2)
    return [torch.load(folder / f"{index}.pt") for index in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_with_half_the_batch_equal_one_process(ranks, name):
    options, n = RUNS[name]
    model = tiny(**options).double()
    loss, logs = model.training_loss(global_batch(n))
    loss.backward()
    expected = gradients(model)
    for result in ranks:
        assert closest(result[name][0], expected) < 1e-7
    for key, value in ({"loss": loss} | logs).items():
        if key != "psnr":  # of the ranks' means
            mean = (ranks[0][name][1][key] + ranks[1][name][1][key]) / 2
            torch.testing.assert_close(mean, value.detach(), rtol=1e-5, atol=0)


# it learns


def scenes(n: int, rng: np.random.Generator, side: int) -> Tensor:
    """Images of a ramp and five rectangles in colour, in [0, 1]."""
    images = np.empty((n, 3, side, side), np.float32)
    y, x = np.mgrid[:side, :side] / (side - 1)
    for image in images:
        slope = rng.uniform(-0.4, 0.4, (3, 2))
        image[:] = 0.5 + slope[:, :1, None] * (y - 0.5) + slope[:, 1:, None] * (x - 0.5)
        for _ in range(5):
            top, left = rng.integers(0, side * 3 // 4, 2)
            height, width = rng.integers(side // 6, side // 2, 2)
            image[:, top : top + height, left : left + width] = rng.uniform(0, 1, (3, 1, 1))
    return torch.from_numpy(images)


def noisy(gt: Tensor, rng: np.random.Generator) -> Tensor:
    """With noise whose deviation grows from .03 at the left to .28 at the right."""
    sigma = torch.linspace(0.03, 0.28, gt.shape[3])
    return gt + sigma * torch.from_numpy(rng.standard_normal(gt.shape, np.float32))


def db(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize(
    ("width", "levels", "side", "steps", "gain"),
    [(8, 2, 32, 120, 4), pytest.param(12, 3, 48, 200, 6, marks=pytest.mark.slow)],
)
def test_it_learns_to_remove_noise_that_varies_over_the_image(monkeypatch, width, levels, side, steps, gain):
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = DRCNet(width=width, levels=levels, contrastive=None)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        gt = scenes(4, rng, side)
        batch = {"gt": gt, "lq": noisy(gt, rng), "weight": torch.ones(4), "count": torch.tensor(4.0)}
        loss, _ = model.training_loss(batch)
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            responses = [m.conv.weight for m in model.modules() if isinstance(m, RegionNorm)]
            assert all(weight.grad is not None and weight.grad.any() for weight in responses)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimiser.step()
    model.eval()
    gt = scenes(16, rng, side)
    lq = noisy(gt, rng)
    seen: list[tuple[RegionNorm, Tensor]] = []
    handle = model.stage_1.encoder[0].norm.register_forward_hook(lambda m, args, out: seen.append((m, args[0])))
    output = model.restore(lq)
    handle.remove()
    before, after = db(lq, gt), db(output, gt)
    print(f"input {before:.2f} dB, output {after:.2f} dB")
    assert after >= before + gain
    response = seen[0][0].response(seen[0][1])
    mask = (response > response.median()).float()  # t lowered to the median
    halves = [float(mask[..., part].mean()) for part in (slice(0, side // 2), slice(side // 2, side))]
    print(f"masked pixels in the clean and the noisy half: {halves}")
    assert abs(halves[0] - halves[1]) > 0.05
    monkeypatch.setattr("jobs.models.drcnet.gated", without_attention)
    assert float((model.restore(lq) - output).abs().mean()) > 1e-3


def pixels(role: str, **images: Tensor) -> tuple[float, float]:
    """mean |X - J| before and after the term alone has moved the pixels of X."""
    rng = np.random.default_rng(0)
    J = scenes(2, rng, 48)
    I = noisy(J, rng)
    X = (0.3 * I + 0.7 * J + 0.02 * torch.from_numpy(rng.standard_normal(J.shape, np.float32))).requires_grad_()
    before = float((X.detach() - J).abs().mean())
    optimiser = torch.optim.Adam([X], 5e-4)
    for _ in range(300):
        optimiser.zero_grad()
        identity_cr(X, I, J, role).mean().backward()
        optimiser.step()
    return before, float((X.detach() - J).abs().mean())


def test_the_term_alone_draws_the_image_to_the_target():
    before, after = pixels("degraded")
    print(f"|X - J| {before:.4f} -> {after:.5f}")
    assert after < before / 5


def test_with_the_roles_as_printed_it_drives_the_image_away():
    """A negative control."""
    before, after = pixels("clean")
    print(f"|X - J| {before:.4f} -> {after:.4f}")
    assert after > 1.5 * before


def test_a_copy_of_the_model_trains_alike():
    """As an average of weights needs it: the frozen features are no part of what is copied, and survive it."""
    model, batch = tiny(), make_batch()
    loss, _ = model.training_loss(batch)
    assert torch.equal(copy.deepcopy(model).training_loss(batch)[0], loss)
